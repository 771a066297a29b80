"""Measure the gap on plain arrays (:func:`measure_gap`), with readings and scores from any source.

Shapes: N items, C concepts, O options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapclose.core.imports import require
from gapclose.core.results import Result
from gapclose.data.items import EVERYTHING
from gapclose.metrics.array_checks import (
    Array,
    concepts_of_options,
    label_faults,
    nameless,
    names,
    numbers,
    probability_faults,
    right_options,
    score_faults,
    whole_numbers,
)
from gapclose.metrics.bootstrap import ClipBootstrap, Interval, finite
from gapclose.metrics.config import GapConfig
from gapclose.metrics.gap import statistics
from gapclose.metrics.labels import Action, Labels
from gapclose.metrics.verdict import Verdict, decide
from gapclose.metrics.verdict_evidence import collect_evidence


@dataclass(frozen=True, kw_only=True)
class GapFigures(Result):
    """Reading, action and their gaps on one group of items, with 95 % clip-bootstrap intervals."""

    n_items: int
    n_clips: int
    reading: Interval
    """balanced accuracy of the reading"""
    action: Interval
    """balanced accuracy of the concept that the chosen option expresses"""
    reading_auroc: Interval
    action_auroc: Interval
    gap: Interval
    """reading - action, by balanced accuracy"""
    gap_matched: Interval
    """true-positive rate of the reading at the action's own false-alarm rate, minus that of the
    action"""
    gap_auroc: Interval
    """reading_auroc - action_auroc"""
    standard_accuracy: Interval
    """share of the standard items (right concept is no alarm) on which the right option is chosen"""
    false_alarm: Interval
    """share of the standard items on which the action expresses an alarm; without alarms, the mean
    over concepts of one against the rest"""


@dataclass(frozen=True, kw_only=True)
class GapMeasurement(GapFigures):
    """The result of :func:`measure_gap`: the figures over all items, and per modality."""

    by_modality: dict[str, GapFigures]
    verdict: dict[str, Verdict]
    """modality -> verdict on its reading: a word of :data:`gapclose.metrics.verdict.VERDICTS` with
    the reason"""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures ready for JSON, each verdict as a word, a sentence and a p-value."""
        verdicts = {name: {"word": of.word, "sentence": of.why, "p": finite(of.p)} for name, of in self.verdict.items()}
        return super().to_dict() | {"verdict": verdicts}

    def to_pandas(self) -> Any:
        """Return one row per modality and figure: columns modality, figure, value, lower, upper.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        require("pandas", "datasets", "GapMeasurement.to_pandas")
        import pandas

        scopes = {"all": self, **self.by_modality}
        rows = [
            {"modality": scope, "figure": name, "value": value.value, "lower": value.lower, "upper": value.upper}
            for scope, of in scopes.items()
            for name, value in vars(of).items()
            if isinstance(value, Interval)
        ]
        return pandas.DataFrame(rows)

    def plot(self) -> Any:
        """Plot reading and action with their intervals, one row for all items and per modality.

        Returns:
            a matplotlib figure; with a single modality, only the row for all items.

        Raises:
            MissingPackage: when matplotlib is not installed.
        """
        require("matplotlib", "figures", "GapMeasurement.plot")
        from matplotlib.figure import Figure

        scopes = {"all": self, **self.by_modality} if len(self.by_modality) > 1 else {"all": self}
        figure = Figure(figsize=(6, 0.8 + 0.6 * len(scopes)), layout="constrained")
        axes = figure.subplots()
        for name, shift, colour in (("action", 0.12, "C3"), ("reading", -0.12, "C0")):
            found = [getattr(of, name) for of in scopes.values()]
            values = np.array([i.value for i in found])
            errors = np.nan_to_num(np.array([[i.value - i.lower, i.upper - i.value] for i in found]).T)
            axes.errorbar(values, np.arange(len(scopes)) + shift, xerr=np.maximum(errors, 0), fmt="o", color=colour, label=name, capsize=3)
        axes.set_yticks(range(len(scopes)), [f"{name} ({of.n_clips} clips)" for name, of in scopes.items()])
        axes.set_ylim(len(scopes) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("balanced accuracy, 95 % clip-bootstrap interval")
        axes.legend(loc="best", frameon=False)
        return figure


def measure_gap(
    readings: Array,
    scores: Array,
    labels: Array,
    *,
    clips: Array | None = None,
    modality: Array | None = None,
    option_concept: Array | None = None,
    gold: Array | None = None,
    alarm: Sequence[int] = (),
    controls: Mapping[str, Array] | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> GapMeasurement:
    """Measure the gap between what a probe predicts and what a model answers, on arrays.

    Args:
        readings: (N, C) the probe's probabilities of the concepts, on items that the probe was not
            fitted on.
        scores: (N, O) the model's scores of the options, usually log-probabilities. The option with
            the largest score is its answer. -inf where an item has no such option.
        labels: (N,) index of the right concept, 0 to C - 1.
        clips: (N,) the clip that each question is about; resampling is by clip. None: every item
            has its own clip.
        modality: (N,) names of groups that are measured separately. None: one group.
        option_concept: (O,) or (N, O) the concept that each option expresses, or -1 for none;
            choosing such an option is wrong. None: option k expresses concept k.
        gold: (N,) index of the right option; needed only where several options of an item express
            its right concept.
        alarm: the concepts that object to the question, such as "the premise is false". Empty:
            every concept is detected against the rest.
        controls: name -> (N, C) readings from less information, such as the text alone. The verdict
            compares with the best control; the majority class is always one.
        replicates: number of bootstrap replicates.
        seed: of the resampling.

    Raises:
        ValueError: naming the arrays whose shape or values are wrong, with the remedy. Values are
            checked once the shapes fit.
    """
    faults = list[str]()
    reading, score = (numbers(name, value, faults) for name, value in (("readings", readings), ("scores", scores)))
    concept = whole_numbers("labels", labels, faults)
    n, c = len(reading), reading.shape[1]
    for name, array in (("scores", score), ("labels", concept)):
        if len(array) != n:
            faults.append(f"{name} has {len(array)} rows and readings {n}; give both the same items in the same order")
    if faults:
        raise ValueError("; ".join(faults))
    faults += [*probability_faults("readings", reading), *score_faults(score), *label_faults(concept, c)]
    others = {name: numbers(f"controls[{name!r}]", value, faults) for name, value in (controls or {}).items()}
    for name, other in others.items():
        if other.shape != reading.shape:
            faults.append(f"controls[{name!r}] has shape {other.shape} and readings {reading.shape}; they must be equal")
        else:
            faults += probability_faults(f"controls[{name!r}]", other)
    groups = {name: names(of) for name, of in (("clips", clips), ("modality", modality)) if of is not None}
    faults += [f"{name} has shape {of.shape}; it must be ({n},)" for name, of in groups.items() if of.shape != (n,)]
    faults += [f"{name} has no value in row {row}; give every item one" for name, of in groups.items() for row in nameless(of)[:1]]
    table = concepts_of_options(option_concept, score, c, faults)
    if bad := [k for k in alarm if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k < c]:
        faults.append(f"alarm names concepts {bad}; readings have concepts 0 to {c - 1}")
    elif len(set(alarm)) == c:
        faults.append("alarm names every concept; leave at least one that does not object")
    if "majority" in others:
        faults.append("controls['majority'] is there already; give the control another name")
    if "modality" in groups and EVERYTHING in groups["modality"].tolist():
        faults.append(f"modality has {EVERYTHING!r}, which stands for all items; rename it")
    if faults:
        raise ValueError("; ".join(faults))
    right = right_options(gold, concept, table, faults)
    if faults:
        raise ValueError("; ".join(faults))
    known = Labels(
        clip=groups.get("clips", np.arange(n)),
        modality=groups.get("modality", np.full(n, "items")).astype(str),
        concept=concept,
        gold=right,
        option_concept=table,
        concepts=tuple(str(k) for k in range(c)),
        alarm=tuple(str(k) for k in alarm),
    )
    action, config = Action(chosen=score.argmax(1), scores=score), GapConfig(replicates=replicates)
    majority = np.full((n, c), 0.0)
    for name in set(known.modality.tolist()):
        keep = known.modality == name
        majority[keep] = np.eye(c)[np.bincount(concept[keep], minlength=c).argmax()]
    proofs = collect_evidence(known, reading, {"majority": majority, **others}, config, seed=seed)
    everything = _figures(known, action, reading, np.ones(n, dtype=bool), replicates, seed)
    return GapMeasurement(
        **vars(everything),
        by_modality={
            m: _figures(known, action, reading, known.modality == m, replicates, seed) for m in sorted(set(known.modality.tolist()))
        },
        verdict=decide(proofs, config),
    )


def _figures(labels: Labels, action: Action, reading: np.ndarray, keep: np.ndarray, replicates: int, seed: int) -> GapFigures:
    part, clips = labels.take(keep), ClipBootstrap(labels.clip[keep], replicates, seed)
    found = statistics(clips, part, Action(chosen=action.chosen[keep], scores=action.scores[keep]), reading[keep])
    of = {name: Interval.of(values) for name, values in found.items()}
    return GapFigures(
        n_items=int(keep.sum()),
        n_clips=clips.n,
        reading=of["reading.balanced"],
        action=of["action.balanced"],
        reading_auroc=of["reading.auroc"],
        action_auroc=of["action.auroc"],
        gap=of["gap.balanced"],
        gap_matched=of["gap.matched"],
        gap_auroc=of["gap.auroc"],
        standard_accuracy=of["action.standard_accuracy"],
        false_alarm=of["action.false_alarm"],
    )
