"""``measurement.json``: everything that was measured on the base model's test clips, as one strict JSON object for a report to show.

Pure functions of labels, scores and readings.

Shapes: N items, C concepts, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from gapclose.data.item_set import ItemSet
from gapclose.evaluation.controls.logit_lens import margins
from gapclose.evaluation.controls.scoring import ControlScorer
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.calibration import brier_score, calibration_bins, expected_calibration_error
from gapclose.metrics.config import GapConfig
from gapclose.metrics.judgeable import ActionQuality
from gapclose.metrics.labels import Action, Labels, evidence_for
from gapclose.metrics.power import minimum_detectable as detectable_difference
from gapclose.metrics.power import paired_error
from gapclose.metrics.verdict import Untrained, VerdictEvidence, collect_evidence
from gapclose.metrics.verdict import decide as judge_proofs
from gapclose.probes.linear import FrozenProbe

POINTS = 200  # of a ROC curve
UNSAID = 20  # items shown


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
    controls: Sequence[Mapping[str, Any]],
    rivals: Mapping[str, np.ndarray],
    untrained: Mapping[str, Sequence[np.ndarray]] | None = None,
    acting: Mapping[str, ActionQuality] | None = None,
    codelength: Mapping[str, float] | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    nested: Mapping[str, Any] | None = None,
    interchange: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole object. What was not asked for is None or empty.

    Args:
        items: the N gap items of test. judge: of the probe's ``reading`` (N, C) of them.
        data_root: what the media paths of the items are relative to.
        controls: entries by :meth:`gapclose.evaluation.controls.scoring.ControlScorer.entry`. rivals: readings (N, C) that a verdict compares with.
        untrained: kind of network with random weights -> draws (N, C). acting: scope -> whether the model answers such questions.
    """
    labels = judge.labels
    proofs = collect_evidence(labels, reading, rivals, config, seed=seed, untrained=untrained)
    return {
        "version": 1,
        "thorough": thorough,
        "seed": seed,
        "n_clips": judge.clips["all"].n,
        "n_items": len(items),
        "split": "test",
        "concepts": list(labels.concepts),
        "alarm": list(labels.alarm),
        "modalities": [s for s in judge.keep if s != "all"],
        "probe": {
            "layer": probe.layer,
            "layers": list(probe.layers),
            "n_layers": n_layers,
            "family": probe.family,
            "strength": probe.strength,
        },
        "cells": cells(judge, action, reading),
        "roc": curves(judge, action, reading),
        "confusion": confusion(labels, action, reading),
        "calibration": calibration(labels, reading),
        "verdicts": verdicts(proofs, config, acting),
        "acting": {scope: of.to_dict() for scope, of in (acting or {}).items()},
        "controls": list(controls),
        "codelength": codelength,
        "layers": list(layers),
        "nested": nested,
        "interchange": interchange,
        "baselines": baselines,
        "minimum_detectable": minimum_detectable(judge, reading, rivals, proofs),
        "known_but_unsaid": known_but_unsaid(items, labels, action, reading),
        "data_root": data_root,
        "protocol": protocol,
    }


def data_root(root: Path, run_directory: Path) -> str:
    """Where the media are: relative to the run directory when inside it."""
    return root.relative_to(run_directory).as_posix() if root.is_relative_to(run_directory) else str(root)


def cells(judge: ControlScorer, action: Action, reading: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of action (on the concept), option and reading in every cell modality x concept."""
    labels, clips = judge.labels, judge.clips["all"]
    index, names = labels.cells
    right = {
        "action": action.concept(labels) == labels.concept,
        "option": action.chosen == labels.gold,
        "reading": reading.argmax(1) == labels.concept,
    }
    means = {key: clips.cell_means(values, labels) for key, values in right.items()}  # (R + 1, cells)
    rows = []
    for k, name in enumerate(names):
        modality, concept = name.rsplit("/", 1)
        row = {"modality": modality, "concept": concept, "n_items": int((index == k).sum())}
        row["n_clips"] = len(np.unique(labels.clip[index == k]))
        rows.append(row | {key: Interval.of(mean[:, k]).to_dict() for key, mean in means.items()})
    return sorted(rows, key=lambda row: (row["modality"], labels.concepts.index(row["concept"])))


def curves(judge: ControlScorer, action: Action, reading: np.ndarray) -> dict[str, Any]:
    """ROC curves of the alarm concepts together, and the operating points of what is said and of what is most probable.

    Empty where no concept is an alarm: one curve cannot show one concept against the rest for all of them.
    """
    found: dict[str, Any] = {}
    for scope, keep, labels, clips in judge.scopes():
        alarm = [labels.concepts.index(a) for a in labels.alarm]
        positive = np.isin(labels.concept, alarm)
        if not positive.any() or positive.all():
            continue
        part = Action(chosen=action.chosen[keep], scores=action.scores[keep])
        sides = {
            "reading": (evidence_for(reading[keep], alarm), np.isin(reading[keep].argmax(1), alarm)),
            "action": (margins(part.scores, labels, alarm), np.isin(part.concept(labels), alarm)),
        }
        found[scope] = {}
        for side, (score, alarmed) in sides.items():
            false_alarm, hit = curve(score, positive)
            point = {"false_alarm": float(alarmed[~positive].mean()), "hit": float(alarmed[positive].mean())}
            area = Interval.of(clips.auroc(score, positive)).to_dict()
            found[scope][side] = {"false_alarm": false_alarm.tolist(), "hit": hit.tolist(), "auroc": area, "point": point}
    return found


def curve(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-alarm and hit rates of a ROC from (0, 0) to (1, 1), at most :data:`POINTS` of them."""
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    ends = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])  # last item of every distinct score; infinite ones tie too
    hit = np.r_[0, positive[order].cumsum()[ends] / positive.sum()]
    false_alarm = np.r_[0, (~positive[order]).cumsum()[ends] / (~positive).sum()]
    kept = np.unique(np.linspace(0, len(hit) - 1, min(POINTS, len(hit))).round().astype(int))
    return false_alarm[kept], hit[kept]


def confusion(labels: Labels, action: Action, reading: np.ndarray) -> dict[str, Any]:
    """Counts of said (scored) and of read concepts, rows by the right concept; the last column is for no concept."""
    count = len(labels.concepts)

    def table(said: np.ndarray) -> list[list[int]]:
        counts = np.zeros((count, count + 1), dtype=int)
        np.add.at(counts, (labels.concept, said % (count + 1)), 1)  # -1 goes into the last column
        return counts.tolist()

    names = list(labels.concepts)
    tables = {"action": table(action.concept(labels)), "reading": table(reading.argmax(1))}
    return {"concepts": names, "said": [*names, "none"], **tables}


def calibration(labels: Labels, reading: np.ndarray) -> dict[str, Any]:
    """How often the most probable concept is right, by how probable the reading holds it."""
    bins = [b._asdict() for b in calibration_bins(reading, labels.concept)]
    return {"bins": bins, "ece": expected_calibration_error(reading, labels.concept), "brier": brier_score(reading, labels.concept)}


def known_but_unsaid(items: ItemSet, labels: Labels, action: Action, reading: np.ndarray) -> list[dict[str, Any]]:
    """The items where the reading is surest of the right concept and the model says another, the same number of every modality if there are."""
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
        row: dict[str, Any] = {"id": item.id, "clip": item.clip, "modality": item.modality, "text": item.text}
        row |= {"media": [list(m) for m in item.media], "options": options}
        row |= {"said": options[action.chosen[n]], "right": options[labels.gold[n]]}
        row["reading"] = {c: float(p) for c, p in zip(labels.concepts, reading[n], strict=True)}
        row["action"] = {o: float(p) for o, p in zip(options, probable, strict=True)}
        rows.append(row)
    return rows


def verdicts(
    proofs: Mapping[str, VerdictEvidence], config: GapConfig, acting: Mapping[str, ActionQuality] | None = None
) -> dict[str, dict[str, Any]]:
    """Word and sentence for every modality, and the figures that they rest on."""
    return {
        name: {
            "word": verdict.word,
            "sentence": verdict.why,
            "control": verdict.proof.control,
            "difference": verdict.proof.difference.to_dict(),
            "p": _finite(verdict.proof.p_of_both),
            "p_holm": _finite(verdict.p),
            "mcnemar": _finite(verdict.proof.mcnemar),
            "random_weights": _random(verdict.proof.untrained),
        }
        for name, verdict in judge_proofs(proofs, config, acting=acting).items()
    }


def _random(found: Untrained | None) -> dict[str, Any] | None:
    if found is None:
        return None
    figures = {"balanced": found.accuracy.to_dict(), "chance": found.chance, "difference": found.difference.to_dict()}
    return {"kind": found.kind, "draws": found.draws, **figures, "p": _finite(found.p)}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def minimum_detectable(
    judge: ControlScorer, reading: np.ndarray, rivals: Mapping[str, np.ndarray], proofs: Mapping[str, VerdictEvidence]
) -> dict[str, float | None]:
    """The smallest difference of reading and best control that so many clips find with power 0.8, by scope; None for one clip."""
    labels = judge.labels
    accuracy = {name: judge.judge("all", rival).balanced[0] for name, rival in rivals.items()}
    best = rivals[max(accuracy, key=lambda name: accuracy[name])]
    difference = (reading.argmax(1) == labels.concept).astype(float) - (best.argmax(1) == labels.concept)
    error = paired_error(difference, labels.clip, labels.cells[0])
    found = {"all": detectable_difference(error, judge.clips["all"].n), **{name: proof.detectable for name, proof in proofs.items()}}
    return {scope: _finite(value) for scope, value in found.items()}
