"""Compare all inference-time baselines at every budget with the base model on the same clips.

Settings are chosen on val or fit and judged once on test.

Shapes: N items of one split, O options, C concepts, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gapclose.evaluation.baselines.operating_point import Method, Rates, Scores, Seen, Setting, choose, front, rates, unchanged
from gapclose.evaluation.baselines.pgla import pgla, pgla_by_text
from gapclose.evaluation.baselines.probe_answer import answer_by_probe, answer_by_text
from gapclose.evaluation.baselines.shift import shift, shift_each
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.gap import intervals, statistics
from gapclose.metrics.labels import Action, Labels

BUDGETS = (None, 0.03, 0.01, 0.0)
"""standard accuracy, 0..1, that a setting may lose on the items it is chosen on; None: any, as
PGLA was published"""
FIGURES = ("balanced", "option_balanced", "standard_accuracy", "rejection", "false_alarm", "auroc", "dprime", "criterion")
FRONT = 50  # largest number of points of a front
GAINS = ("balanced", "option_balanced", "standard_accuracy", "rejection", "auroc")


def methods(fit: Seen, known: Labels, choice: Seen, *, folds: int, seed: int) -> Iterator[Method]:
    """Yield every method, fitted on fit, with its settings.

    Args:
        known: labels of the fit items. choice: the items to choose on.

    Raises:
        ValueError: when there are no alarm concepts or no others, or too few clips for the folds.
    """
    yield from pgla(fit, known, folds=folds, seed=seed)
    yield shift(fit, known, choice)
    if len(known.alarm) > 1:
        yield shift_each(fit, known, choice)
    yield pgla_by_text(fit, known, folds=folds, seed=seed)
    yield answer_by_text(fit, known)
    yield answer_by_probe(fit, known)


def compare(
    fit: Seen, known: Labels, items: Seen, labels: Labels, clips: ClipBootstrap, *, val: tuple[Seen, Labels] | None, folds: int, seed: int
) -> dict[str, Any]:
    """Build the entry ``baselines`` of ``measurement.json``.

    Args:
        known: labels of the fit items, to fit on. labels: of the test items, to judge by. clips: of
            the test items.
        val: the items to choose on, with their labels; None: the fit items, out of fold.

    Returns:
        ``chosen_on`` and ``n_choice``, the split used for the choice and its number of items;
            ``base`` with the figures of the base model; ``methods``, each with a row in ``points``
            per budget and a ``front``. A row has the chosen ``setting`` (None: none within the
            budget is better, so the answers stay the base model's), its rates on the choice items
            under ``choice``, the test figures with intervals, paired differences to the base model
            under ``gain``, and the option of every test item under ``chosen``, for further paired
            comparisons.
    """
    choice, choosing = val or (fit, known)
    before = _figures(clips, labels, items.scores, items.reading)
    base = {**intervals(before), "choice": _at(unchanged(choice), {}, choosing)}
    found: list[dict[str, Any]] = []
    for method in methods(fit, known, choice, folds=folds, seed=seed):
        there, here = method.answers(choice) if val else method.fit, method.answers(items)
        points = []
        for budget, setting in zip(BUDGETS, choose(method.settings, there, unchanged(choice), choosing, BUDGETS), strict=True):
            if setting is None:
                kept = {"gain": intervals({k: before[k] * 0 for k in GAINS}), "chosen": items.scores.argmax(1).tolist()}
                points.append({"budget": budget, "setting": None, **base, **kept})
                continue
            scores = here([setting])[0]
            after = _figures(clips, labels, scores, items.reading)
            gain = {name: after[name] - before[name] for name in GAINS}
            row = {"budget": budget, "setting": dict(setting), **intervals(after), "choice": _at(there, setting, choosing)}
            points.append({**row, "gain": intervals(gain), "chosen": scores.argmax(1).tolist()})
        edge = pareto(method.settings, there, choosing, here, labels)
        found.append({"name": method.name, "label": method.label, "points": points, "front": edge})
    return {"chosen_on": "val" if val else "fit", "n_choice": len(choosing.gold), "base": base, "methods": found}


def pareto(settings: Sequence[Setting], there: Scores, choosing: Labels, here: Scores, labels: Labels) -> list[dict[str, Any]]:
    """Return the Pareto-optimal settings in rejection and standard accuracy on the choice items.

    Each has its rates there and on test, without intervals. At most :data:`FRONT` are returned,
    evenly by rank, including both ends.

    Args:
        there, choosing: scores and labels of the items to choose on. here, labels: of the test
            items.
    """
    chosen = rates(there, settings, choosing)
    kept = front(chosen)
    kept = [kept[k] for k in np.unique(np.linspace(0, len(kept) - 1, min(FRONT, len(kept))).round().astype(int))]
    tried = [settings[k] for k in kept]
    judged = rates(here, tried, labels)
    return [
        {"setting": dict(setting), "choice": _as_dict(chosen, k), "test": _as_dict(judged, n)}
        for n, (k, setting) in enumerate(zip(kept, tried, strict=True))
    ]


def _figures(clips: ClipBootstrap, labels: Labels, scores: np.ndarray, reading: np.ndarray) -> dict[str, np.ndarray]:
    """Return the action's figures by :func:`gapclose.metrics.gap.statistics` for scores (N, O),
    each (R + 1,)."""
    found = statistics(clips, labels, Action(chosen=scores.argmax(1), scores=scores), reading)
    return {name: found[f"action.{name}"] for name in FIGURES}


def _at(scores: Scores, setting: Setting, labels: Labels) -> dict[str, float | None]:
    return _as_dict(rates(scores, [setting], labels), 0)


def _as_dict(found: Rates, k: int) -> dict[str, float | None]:
    values = {"option_balanced": found.balanced[k], "standard_accuracy": found.standard[k], "rejection": found.rejection[k]}
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
