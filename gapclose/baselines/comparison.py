"""Every inference-time method at every budget, chosen on fit and judged once on test, beside the base model on the same clips.

Shapes: M fit items, N test items, O options, C concepts, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gapclose.baselines.answer import answer_by_probe, answer_by_text
from gapclose.baselines.operating import Method, Rates, Scores, Seen, Setting, choose, front, rates, unchanged
from gapclose.baselines.pgla import pgla, pgla_by_text
from gapclose.baselines.shift import shift, shift_each
from gapclose.gap import Action, Labels, intervals, statistics
from gapclose.resample import Clips

BUDGETS = (None, 0.03, 0.01, 0.0)
"""standard accuracy, 0..1, that a setting may lose on fit; None: any, which is how PGLA was published"""
FIGURES = ("balanced", "option_balanced", "standard_accuracy", "rejection", "false_alarm", "auroc", "dprime", "criterion")
FRONT = 50  # points of a front at most
GAINS = ("balanced", "option_balanced", "standard_accuracy", "rejection", "auroc")


def methods(fit: Seen, known: Labels, items: Seen, *, folds: int, seed: int) -> Iterator[Method]:
    """Every method, with its scores at every setting; no label of ``items`` is asked for.

    Raises:
        ValueError: when there are no concepts of either kind, or too few clips for the folds.
    """
    yield from pgla(fit, known, items, folds=folds, seed=seed)
    yield shift(fit, known, items)
    if len(known.alarm) > 1:
        yield shift_each(fit, known, items)
    yield pgla_by_text(fit, known, items, folds=folds, seed=seed)
    yield answer_by_text(fit, known, items)
    yield answer_by_probe(fit, known, items)


def compare(fit: Seen, known: Labels, items: Seen, labels: Labels, clips: Clips, *, folds: int, seed: int) -> dict[str, Any]:
    """What ``measurement.json`` holds under ``baselines``.

    Args:
        known: labels of the fit items, which choose. labels: those of the test items, which judge. clips: of the test items.

    Returns:
        ``base`` with the figures of the base model; ``methods``, each with a row in ``points`` for every budget and a ``front``. A row
        has the chosen ``setting`` (None: none within the budget is better, the answers stay the base model's), its rates on ``fit``, the
        figures on test with intervals, under ``gain`` the paired differences to the base model, and under ``chosen`` the option of every
        test item, so that other comparisons can be paired too.
    """
    before = _figures(clips, labels, items.scores, items.reading)
    base = {**intervals(before), "fit": _at(unchanged(fit), {}, known)}
    found: list[dict[str, Any]] = []
    for method in methods(fit, known, items, folds=folds, seed=seed):
        points = []
        for budget, setting in zip(BUDGETS, choose(method, fit, known, BUDGETS), strict=True):
            if setting is None:
                kept = {"gain": intervals({k: before[k] * 0 for k in GAINS}), "chosen": items.scores.argmax(1).tolist()}
                points.append({"budget": budget, "setting": None, **base, **kept})
                continue
            scores = method.items([setting])[0]
            after = _figures(clips, labels, scores, items.reading)
            gain = {name: after[name] - before[name] for name in GAINS}
            row = {"budget": budget, "setting": dict(setting), **intervals(after), "fit": _at(method.fit, setting, known)}
            points.append({**row, "gain": intervals(gain), "chosen": scores.argmax(1).tolist()})
        found.append({"name": method.name, "label": method.label, "points": points, "front": pareto(method, known, labels)})
    return {"n_fit": len(known.gold), "base": base, "methods": found}


def pareto(method: Method, known: Labels, labels: Labels) -> list[dict[str, Any]]:
    """Rejection against standard accuracy: the settings that none beats on fit, with their rates there and, without intervals, on test.

    Of many settings, :data:`FRONT` evenly by rank with both ends.
    """
    there = rates(method.fit, method.settings, known)
    kept = front(there)
    kept = [kept[k] for k in np.unique(np.linspace(0, len(kept) - 1, min(FRONT, len(kept))).round().astype(int))]
    settings = [method.settings[k] for k in kept]
    here = rates(method.items, settings, labels)
    return [
        {"setting": dict(setting), "fit": _as_dict(there, k), "test": _as_dict(here, n)}
        for n, (k, setting) in enumerate(zip(kept, settings, strict=True))
    ]


def _figures(clips: Clips, labels: Labels, scores: np.ndarray, reading: np.ndarray) -> dict[str, np.ndarray]:
    """What :func:`gapclose.gap.statistics` finds about the action of scores (N, O), each (R + 1,)."""
    found = statistics(clips, labels, Action(chosen=scores.argmax(1), scores=scores), reading)
    return {name: found[f"action.{name}"] for name in FIGURES}


def _at(scores: Scores, setting: Setting, labels: Labels) -> dict[str, float | None]:
    return _as_dict(rates(scores, [setting], labels), 0)


def _as_dict(found: Rates, k: int) -> dict[str, float | None]:
    values = {"option_balanced": found.balanced[k], "standard_accuracy": found.standard[k], "rejection": found.rejection[k]}
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
