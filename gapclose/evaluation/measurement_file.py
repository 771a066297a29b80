"""``measurement.json``: all results on the base model's test clips, as one strict JSON object.

Pure functions of labels, scores and readings.

Shapes: N items, C concepts, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from gapclose.core.results import Result
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.controls.interchange import Interchange
from gapclose.evaluation.controls.layer_analysis import NestedChoice
from gapclose.evaluation.controls.logit_lens import LayerReading
from gapclose.evaluation.controls.mdl import Codelength
from gapclose.evaluation.controls.scoring import ControlScorer, JudgedControl
from gapclose.evaluation.measurement_answers import WrittenAnswers
from gapclose.evaluation.measurement_parts import Calibration, Cell, Confusion, RocCurve, calibration, cells, confusion, curves
from gapclose.metrics.bootstrap import finite
from gapclose.metrics.config import GapConfig
from gapclose.metrics.judgeable import ActionQuality
from gapclose.metrics.labels import Action, Labels
from gapclose.metrics.power import minimum_detectable as detectable_difference
from gapclose.metrics.power import paired_error
from gapclose.metrics.verdict import Verdict, decide
from gapclose.metrics.verdict_evidence import VerdictEvidence, collect_evidence
from gapclose.probes.linear import FrozenProbe

UNSAID = 20  # items shown
VERSION = 1
"""of the form of the file"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate(Result):
    """The verdicts by which a training is allowed: ``gate.json``."""

    split: str
    n_clips: int
    n_items: int
    verdicts: Mapping[str, Verdict]
    """by modality"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeFacts(Result):
    """The frozen probe in short."""

    layer: int
    """the highest that it reads"""
    layers: tuple[int, ...]
    n_layers: int
    """of the model"""
    family: str
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsaidItem(Result):
    """An item whose right concept is read and not said."""

    id: str
    clip: str
    modality: str
    text: str
    media: Sequence[tuple[str, str]]
    """kind and path"""
    options: Sequence[str]
    said: str
    right: str
    reading: Mapping[str, float]
    """concept -> probability"""
    action: Mapping[str, float]
    """option -> probability among the options"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement(Result):
    """``measurement.json``; what was not asked for is None or empty."""

    version: int = VERSION
    thorough: bool
    seed: int
    n_clips: int
    n_items: int
    split: str
    concepts: tuple[str, ...]
    alarm: tuple[str, ...]
    modalities: Sequence[str]
    probe: ProbeFacts
    cells: Sequence[Cell]
    roc: Mapping[str, Mapping[str, RocCurve]]
    """scope -> ``reading`` and ``action``; empty where no concept is an alarm"""
    confusion: Confusion
    calibration: Calibration
    verdicts: Mapping[str, Verdict]
    """by modality"""
    acting: Mapping[str, ActionQuality]
    """by scope"""
    written: Mapping[str, WrittenAnswers]
    """modality whose questions the model does not answer -> examples of its answers"""
    controls: Sequence[JudgedControl]
    codelength: Codelength | None
    layers: Sequence[LayerReading]
    nested: NestedChoice | None
    interchange: Interchange | None
    baselines: Mapping[str, Any] | None
    minimum_detectable: Mapping[str, float | None]
    """by scope"""
    known_but_unsaid: Sequence[UnsaidItem]
    data_root: str
    """what the media paths of the items are relative to"""
    protocol: Mapping[str, Any] | None


def assemble(
    items: ItemSet,
    judge: ControlScorer,
    action: Action,
    reading: np.ndarray,
    probe: FrozenProbe,
    *,
    config: GapConfig,
    n_layers: int,
    seed: int,
    data_root: str,
    thorough: bool,
    controls: Sequence[JudgedControl],
    rivals: Mapping[str, np.ndarray],
    untrained: Mapping[str, Sequence[np.ndarray]] | None = None,
    acting: Mapping[str, ActionQuality] | None = None,
    written: Mapping[str, WrittenAnswers] | None = None,
    codelength: Codelength | None = None,
    layers: Sequence[LayerReading] = (),
    nested: NestedChoice | None = None,
    interchange: Interchange | None = None,
    protocol: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Any] | None = None,
) -> Measurement:
    """The whole object.

    Args:
        items: the N gap items of test. judge: of the probe's ``reading`` (N, C) of them.
        data_root: what the media paths of the items are relative to.
        controls: entries by :meth:`gapclose.evaluation.controls.scoring.ControlScorer.entry`. rivals: readings (N, C) that a verdict compares with.
        untrained: kind of network with random weights -> draws (N, C). acting: scope -> whether the model answers such questions.
        written: modality whose questions it does not answer -> examples of its answers.
    """
    labels = judge.labels
    proofs = collect_evidence(labels, reading, rivals, config, seed=seed, untrained=untrained)
    return Measurement(
        thorough=thorough,
        seed=seed,
        n_clips=judge.clips["all"].n,
        n_items=len(items),
        split="test",
        concepts=tuple(labels.concepts),
        alarm=tuple(labels.alarm),
        modalities=[s for s in judge.keep if s != "all"],
        probe=ProbeFacts(layer=probe.layer, layers=tuple(probe.layers), n_layers=n_layers, family=probe.family, strength=probe.strength),
        cells=cells(judge, action, reading),
        roc=curves(judge, action, reading),
        confusion=confusion(labels, action, reading),
        calibration=calibration(labels, reading),
        verdicts=decide(proofs, config, acting=acting),
        acting=acting or {},
        written=written or {},
        controls=controls,
        codelength=codelength,
        layers=layers,
        nested=nested,
        interchange=interchange,
        baselines=baselines,
        minimum_detectable=minimum_detectable(judge, reading, rivals, proofs),
        known_but_unsaid=known_but_unsaid(items, labels, action, reading),
        data_root=data_root,
        protocol=protocol,
    )


def data_root(root: Path, run_directory: Path) -> str:
    """Return the media directory, relative to the run directory if inside it."""
    return root.relative_to(run_directory).as_posix() if root.is_relative_to(run_directory) else str(root)


def known_but_unsaid(items: ItemSet, labels: Labels, action: Action, reading: np.ndarray) -> list[UnsaidItem]:
    """List the items with the most certain right reading whose answer is another concept.

    At most :data:`UNSAID`, equally many per modality where possible.
    """
    doubt = np.where(np.eye(reading.shape[1], dtype=bool)[labels.concept], 0, reading).sum(1)  # of what rounds to certainty, too
    unsaid = np.flatnonzero((reading.argmax(1) == labels.concept) & (action.concept(labels) != labels.concept))
    unsaid = unsaid[np.argsort(doubt[unsaid], kind="stable")]
    place = np.zeros(len(unsaid), dtype=int)
    for name in np.unique(labels.modality):
        mine = labels.modality[unsaid] == name
        place[mine] = np.arange(mine.sum())
    taken = np.sort(np.argsort(place, kind="stable")[:UNSAID])
    rows = []
    for n in unsaid[taken]:
        item = items.items[n]
        options = [o.text for o in item.options]
        probable = softmax(action.scores[n, : len(options)])
        row = UnsaidItem(
            id=item.id,
            clip=item.clip,
            modality=item.modality,
            text=item.marked_text,
            media=item.media,
            options=options,
            said=options[action.chosen[n]],
            right=options[labels.gold[n]],
            reading={c: float(p) for c, p in zip(labels.concepts, reading[n], strict=True)},
            action={o: float(p) for o, p in zip(options, probable, strict=True)},
        )
        rows.append(row)
    return rows


def minimum_detectable(
    judge: ControlScorer, reading: np.ndarray, rivals: Mapping[str, np.ndarray], proofs: Mapping[str, VerdictEvidence]
) -> dict[str, float | None]:
    """Compute the smallest difference of reading and best control that so many clips detect with
    power 0.8, by scope; None if undefined, as for one clip."""
    labels = judge.labels
    accuracy = {name: judge.judge("all", rival).balanced[0] for name, rival in rivals.items()}
    best = rivals[max(accuracy, key=lambda name: accuracy[name])]
    difference = (reading.argmax(1) == labels.concept).astype(float) - (best.argmax(1) == labels.concept)
    error = paired_error(difference, labels.clip, labels.cells[0])
    found = {"all": detectable_difference(error, judge.clips["all"].n), **{name: proof.detectable for name, proof in proofs.items()}}
    return {scope: finite(value) for scope, value in found.items()}
