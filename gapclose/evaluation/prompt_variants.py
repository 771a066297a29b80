"""One item set under several prompts: a gap under a single prompt shows little.

The same holds for a closure. The frozen probe, fitted under the run's own prompt, is used under
every prompt. In addition a probe with the same layers, family and strength is fitted under each
prompt. Both are fitted on the base model.

Shapes: N items, C concepts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gapclose.core.logging import get_logger
from gapclose.data.answer_matching import parse_all
from gapclose.data.item_set import ItemSet
from gapclose.data.prompt_templates import apply_prompt
from gapclose.evaluation.context import ProbedContext
from gapclose.evaluation.measurement import Statistics, scored
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.gap import closure, intervals, statistics
from gapclose.metrics.labels import Action, Labels
from gapclose.observe.store import Observations
from gapclose.probes.refit import refit

logger = get_logger(__name__)

FIGURES = ("balanced", "option_balanced", "standard_accuracy", "rejection", "false_alarm", "auroc")
"""recorded figures of the action"""
Measures = dict[str, dict[str, Statistics]]
"""prompt -> scope (``all`` or a modality) -> statistics, each (R + 1,)"""


def measure_prompt_variants(run: ProbedContext, stage: str, base: Measures | None = None) -> tuple[dict[str, Any], Measures]:
    """Measure the test gap items under every prompt in ``prompts.measured`` and the run's own.

    The current model is used.

    Args:
        stage: ``base`` or ``adapted``; the run's own prompt has already been observed for it.
        base: the base model's measures, to compute changes.

    Returns:
        The record of every prompt, and the statistics behind it; both empty without other prompts.
    """
    names = run.config.prompts.names
    if len(names) == 1:
        return {}, {}
    found = {name: _measured(run, stage, name, fitting=base is None) for name in names}
    first = found[names[0]]
    return {name: _record(found[name], first, (base or {}).get(name)) for name in names}, found


def _measured(run: ProbedContext, stage: str, name: str, *, fitting: bool) -> dict[str, Statistics]:
    """Compute statistics of the test gap items under one prompt, by scope; with ``fitting`` also
    those of a probe fitted under it."""
    config, probe = run.config, run.probe
    items = apply_prompt(run.plain, name, config.prompts)
    test = items.select(split="test", purpose="gap")
    if name == config.prompts.asked:
        seen = run.observe_measured(stage, "test").take([i.id for i in test])
    else:
        logger.info(f"{stage}: test under the prompt {name}")
        limit = config.prompts.limit(name, config.observe.max_new_tokens)
        seen = run.observe(
            f"{stage}-test-{_slug(name)}", test, layers=probe.layers, generate=True, replace=stage != "base", max_new_tokens=limit
        )
    reading = probe.predict_proba(probe.features(seen.residuals))
    within = None
    if fitting and config.prompts.refit:
        within = reading if name == config.prompts.asked else _refitted(run, name, items, seen)
    answers = _answers(run, name, test, seen)
    labels, action = Labels.of(test), scored(Labels.of(test), seen)
    scopes = {"all": np.ones(len(test), dtype=bool)} | {m: labels.modality == m for m in sorted(set(labels.modality.tolist()))}
    return {scope: _statistics(run, keep, labels, action, reading, within, answers) for scope, keep in scopes.items()}


def _refitted(run: ProbedContext, name: str, items: ItemSet, seen: Observations) -> np.ndarray:
    """Return the reading (N, C) of a probe fitted under this prompt."""
    fit = items.select(split="fit", purpose="gap")
    known = run.observe(f"base-fit-{_slug(name)}", fit, layers=run.probe.layers)
    z_fit, z = (run.probe.features(of.residuals).double().numpy() for of in (known, seen))
    return refit(run.probe, z_fit, Labels.of(fit).concept, z)


def _answers(run: ProbedContext, name: str, items: ItemSet, seen: Observations) -> dict[str, np.ndarray]:
    """Match generated answers to options (N,), -1 for none: ``exact`` matching only, and the
    run's ``matched``."""
    assert seen.answers is not None
    matched = run.config.prompts.matching(name)(seen.answers, items.items)
    return {"exact": parse_all(seen.answers, items.items), "matched": matched}


def _statistics(
    run: ProbedContext,
    keep: np.ndarray,
    labels: Labels,
    action: Action,
    reading: np.ndarray,
    within: np.ndarray | None,
    answers: Mapping[str, np.ndarray],
) -> Statistics:
    """Compute all figures of the items where ``keep`` (N,) bool is true."""
    part, mine = labels.take(keep), Action(chosen=action.chosen[keep], scores=action.scores[keep])
    clips = ClipBootstrap(part.clip, run.config.gap.replicates, run.config.seed)
    found = statistics(clips, part, mine, reading[keep])
    if within is not None:
        other = statistics(clips, part, mine, within[keep])
        found |= {f"within.{k}": other[k] for k in ("reading.balanced", "reading.auroc", "gap.balanced", "gap.auroc")}
    said = replace(mine, chosen=answers["matched"][keep]).concept(part)
    found["generated.balanced"] = clips.balanced(said == part.concept, part)
    everything = np.ones(len(said), dtype=bool)
    for kind, chosen in answers.items():
        found[f"generated.{kind}"] = clips.mean(chosen[keep] >= 0, everything)
    return found


def _record(now: dict[str, Statistics], first: dict[str, Statistics], base: dict[str, Statistics] | None) -> dict[str, Any]:
    """Build the record of one prompt: every figure with its interval, overall and by modality."""
    record = _figures(now["all"], first["all"], base["all"] if base else None)
    record["modality"] = {s: _figures(now[s], first[s], base[s] if base else None) for s in now if s != "all"}
    return record


def _figures(now: Statistics, first: Statistics, base: Statistics | None) -> dict[str, Any]:
    """Build the figures of one scope. ``reading`` and ``gap`` use the frozen probe, ``within``
    the prompt's own; ``gap_difference`` is relative to the run's own prompt."""
    kept = {f"action.{k}" for k in FIGURES} | {"reading.balanced", "reading.auroc", "gap.balanced", "gap.matched", "gap.auroc"}
    found = intervals({k: v for k, v in now.items() if k in kept or k.startswith(("within.", "generated."))})
    found["gap_difference"] = Interval.of(now["gap.balanced"] - first["gap.balanced"]).to_dict()
    if base is not None:
        changed = closure(base, now)
        found["change"] = intervals({k: changed[k] for k in ("closure", "closure_auroc", "action_gain", "standard_drop")})
        found["change"]["generated_gain"] = Interval.of(now["generated.balanced"] - base["generated.balanced"]).to_dict()
    return found


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
