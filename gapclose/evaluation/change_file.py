"""``change.json``: base and adapted model on the same test clips, as one strict JSON object.

It is computed from the stored observations of both; no model is used.

Shapes: N items, C concepts, O options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from gapclose.core.results import Result
from gapclose.evaluation.context import EvaluationContext
from gapclose.evaluation.controls.scoring import ControlScorer
from gapclose.evaluation.examples import varied
from gapclose.evaluation.measurement import scored
from gapclose.evaluation.measurement_file import data_root
from gapclose.evaluation.measurement_parts import Calibration, Cell, Confusion, RocCurve, calibration, cells, confusion, curves
from gapclose.metrics.labels import Action, Labels, concept_scores
from gapclose.observe.store import Observations, read_observations

VERSION = 1
"""of the form of the file"""
KINDS = ("gained", "lost", "still_wrong")
"""kinds of examples: wrong before and right after, right before and wrong after, wrong both times"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PremiseCounts(Result):
    """Counts of test items by premise and answer; an answer that expresses an alarm rejects."""

    true_accepted: int
    true_rejected: int
    false_accepted: int
    false_rejected: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOnTest(Result):
    """One of the two models on the test items."""

    premises: Mapping[str, PremiseCounts]
    """by scope; empty where no concept is an alarm, or every one"""
    cells: Sequence[Cell]
    roc: Mapping[str, Mapping[str, RocCurve]]
    """scope -> ``reading`` and ``action``; empty where no concept is an alarm"""
    confusion: Confusion
    calibration: Mapping[str, Calibration]
    """``reading``: of the frozen probe; ``action``: of the model's probabilities of the concepts"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Result):
    """The answer of one model to one question."""

    said: str
    """the option that scores highest"""
    probability: float
    """of that option among the options"""
    written: str | None
    """what the model writes when it answers freely, where that is another answer"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleItem(Result):
    """An item with the answers of both models."""

    id: str
    clip: str
    modality: str
    text: str
    media: Sequence[tuple[str, str]]
    """kind and path"""
    options: Sequence[str]
    right: str
    base: Answer
    adapted: Answer
    reading: Mapping[str, float]
    """concept -> probability by the frozen probe, of the adapted model"""
    base_reading: Mapping[str, float]
    """the same of the base model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change(Result):
    """``change.json``."""

    version: int = VERSION
    seed: int
    epoch: int
    """whose adapter it is"""
    n_clips: int
    n_items: int
    split: str
    alarm: Sequence[str]
    base: ModelOnTest
    adapted: ModelOnTest
    counts: Mapping[str, int]
    """items by kind (:data:`KINDS`), and ``still_right``"""
    examples: Mapping[str, Sequence[ExampleItem]]
    """kind -> items (:func:`gapclose.evaluation.examples.varied`)"""
    data_root: str
    """what the media paths of the items are relative to"""


def measure_change(run: EvaluationContext, epoch: int) -> Change:
    """Compare the stored test observations of the base and of the adapted model.

    An answer is right if its option expresses the right concept, as everywhere.

    Args:
        run: a run that has observed ``base-test`` and ``adapted-test``.
        epoch: of the adapter.
    """
    items = run.items.select(split="test", purpose="gap")
    labels, seed = Labels.of(items), run.config.seed
    seen, actions, models, readings, n_clips = list[Observations](), list[Action](), list[ModelOnTest](), list[np.ndarray](), 0
    for stage in ("base", "adapted"):
        stored = read_observations(run.directory / "observations" / f"{stage}-test", [i.id for i in items], layers=run.probe.layers)
        action, reading = scored(labels, stored), run.probe.predict_proba(run.probe.features(stored.residuals))
        judge = ControlScorer(labels, reading, run.config.gap.replicates, seed, run.config.gap.detectable)
        n_clips = judge.clips["all"].n
        seen.append(stored)
        actions.append(action)
        readings.append(reading)
        models.append(_model(judge, action, reading))
    before, after = (action.concept(labels) == labels.concept for action in actions)
    kinds = {"gained": ~before & after, "lost": before & ~after, "still_wrong": ~before & ~after}
    cell, names = labels.cells
    about = {"group": [names[k] for k in cell], "question": [i.stem or i.text for i in items], "clip": labels.clip.tolist()}
    match = run.config.prompts.matching(run.config.prompts.asked)
    written = [list(zip(of.answers, match(of.answers, items.items).tolist(), strict=True)) for of in seen if of.answers is not None]

    def example(n: int) -> ExampleItem:
        item = items.items[n]
        options = [o.text for o in item.options]
        answers = []
        for action, texts in zip(actions, written, strict=True):
            chosen = int(action.chosen[n])
            probability = float(softmax(action.scores[n, : len(options)])[chosen])
            text, parsed = texts[n]
            answers.append(Answer(said=options[chosen], probability=probability, written=None if parsed == chosen else text))
        return ExampleItem(
            id=item.id,
            clip=item.clip,
            modality=item.modality,
            text=item.marked_text,
            media=item.media,
            options=options,
            right=options[labels.gold[n]],
            base=answers[0],
            adapted=answers[1],
            reading={c: float(p) for c, p in zip(labels.concepts, readings[1][n], strict=True)},
            base_reading={c: float(p) for c, p in zip(labels.concepts, readings[0][n], strict=True)},
        )

    return Change(
        seed=seed,
        epoch=epoch,
        n_clips=n_clips,
        n_items=len(items),
        split="test",
        alarm=tuple(labels.alarm),
        base=models[0],
        adapted=models[1],
        counts={**{kind: int(of.sum()) for kind, of in kinds.items()}, "still_right": int((before & after).sum())},
        examples={
            kind: [example(n) for n in varied(np.flatnonzero(of), **about, seed=[seed, k])] for k, (kind, of) in enumerate(kinds.items())
        },
        data_root=data_root(run.items.root, run.directory),
    )


def _model(judge: ControlScorer, action: Action, reading: np.ndarray) -> ModelOnTest:
    labels = judge.labels
    return ModelOnTest(
        premises=premises(judge, action),
        cells=cells(judge, action, reading),
        roc=curves(judge, action, reading),
        confusion=confusion(labels, action, reading),
        calibration={"reading": calibration(labels, reading), "action": calibration(labels, concept_probabilities(action, labels))},
    )


def premises(judge: ControlScorer, action: Action) -> dict[str, PremiseCounts]:
    """Count test items by premise (true where the right concept is no alarm) and answer, by scope.

    Empty unless there are alarm concepts and others.
    """
    labels = judge.labels
    if not 0 < len(labels.alarm) < len(labels.concepts):
        return {}
    rejected = np.isin(action.concept(labels), [labels.concepts.index(a) for a in labels.alarm])
    found = {}
    for scope, keep in judge.keep.items():
        true, false = keep & labels.standard, keep & ~labels.standard
        found[scope] = PremiseCounts(
            true_accepted=int((true & ~rejected).sum()),
            true_rejected=int((true & rejected).sum()),
            false_accepted=int((false & ~rejected).sum()),
            false_rejected=int((false & rejected).sum()),
        )
    return found


def concept_probabilities(action: Action, labels: Labels) -> np.ndarray:
    """Probabilities (N, C) that the model gives to the concepts, among the options of each item.

    The options that express a concept count together.
    """
    count = len(labels.concepts)
    scores = np.stack([concept_scores(action.scores, labels.option_concept, [c], inside=True) for c in range(count)], axis=1)
    return softmax(scores, axis=1)
