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

from gapclose.gap import Action, Labels
from gapclose.items import ItemSet
from gapclose.judge import Judge
from gapclose.localise import margins
from gapclose.probes import FrozenProbe
from gapclose.resample import Interval

POINTS = 200  # of a ROC curve
BINS = 10  # of confidence, with equally many items each
UNSAID = 20  # items shown


def assemble(
    items: ItemSet,
    judge: Judge,
    action: Action,
    reading: np.ndarray,
    probe: FrozenProbe,
    *,
    n_layers: int,
    seed: int,
    data_root: str,
    controls: Sequence[Mapping[str, Any]],
    text_readings: Mapping[str, np.ndarray],
    codelength: Mapping[str, float] | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    nested: Mapping[str, Any] | None = None,
    interchange: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole object. What was not asked for is None or empty.

    Args:
        items: the N gap items of test. judge: of the probe's ``reading`` (N, C) of them.
        data_root: what the media paths of the items are relative to.
        controls: entries by :meth:`gapclose.judge.Judge.entry`. text_readings: readings (N, C) that a verdict compares with.
    """
    labels = judge.labels
    return {
        "version": 1,
        "seed": seed,
        "n_clips": judge.clips["all"].n,
        "n_items": len(items),
        "split": "test",
        "concepts": list(labels.concepts),
        "alarm": list(labels.alarm),
        "modalities": [s for s in judge.keep if s != "all"],
        "probe": {"layer": probe.layer, "n_layers": n_layers, "family": probe.family, "strength": probe.strength},
        "cells": cells(judge, action, reading),
        "roc": curves(judge, action, reading),
        "confusion": confusion(labels, action, reading),
        "calibration": calibration(labels, reading),
        "verdicts": verdicts(judge, text_readings),
        "controls": list(controls),
        "codelength": codelength,
        "layers": list(layers),
        "nested": nested,
        "interchange": interchange,
        "minimum_detectable": minimum_detectable(judge),
        "known_but_unsaid": known_but_unsaid(items, labels, action, reading),
        "data_root": data_root,
        "protocol": None,
    }


def data_root(root: Path, run_directory: Path) -> str:
    """Where the media are: relative to the run directory when inside it."""
    return root.relative_to(run_directory).as_posix() if root.is_relative_to(run_directory) else str(root)


def cells(judge: Judge, action: Action, reading: np.ndarray) -> list[dict[str, Any]]:
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
        rows.append(row | {key: Interval.of(mean[:, k]).as_dict() for key, mean in means.items()})
    return sorted(rows, key=lambda row: (row["modality"], labels.concepts.index(row["concept"])))


def curves(judge: Judge, action: Action, reading: np.ndarray) -> dict[str, Any]:
    """ROC curves of the alarm concepts together, and the operating points of what is said and of what is most probable.

    Empty where no concept is an alarm: one curve cannot show one concept against the rest for all of them.
    """
    found: dict[str, Any] = {}
    for scope, keep, labels, clips in judge.scopes():
        alarm = [labels.concepts.index(a) for a in labels.alarm]
        positive = np.isin(labels.concept, alarm)
        if not positive.any() or positive.all():
            continue
        believed, part = reading[keep][:, alarm].sum(1), Action(chosen=action.chosen[keep], scores=action.scores[keep])
        evidence = np.log(np.maximum(believed, 1e-300)) - np.log(np.maximum(1 - believed, 1e-300))
        sides = {
            "reading": (evidence, np.isin(reading[keep].argmax(1), alarm)),
            "action": (margins(part.scores, labels, alarm), np.isin(part.concept(labels), alarm)),
        }
        found[scope] = {}
        for side, (score, alarmed) in sides.items():
            false_alarm, hit = curve(score, positive)
            point = {"false_alarm": float(alarmed[~positive].mean()), "hit": float(alarmed[positive].mean())}
            area = Interval.of(clips.auroc(score, positive)).as_dict()
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
    confidence, right = reading.max(1), reading.argmax(1) == labels.concept
    parts = [p for p in np.array_split(np.argsort(confidence, kind="stable"), BINS) if len(p)]
    bins = [{"confidence": float(confidence[p].mean()), "accuracy": float(right[p].mean()), "n": len(p)} for p in parts]
    return {"bins": bins, **calibration_error(labels, reading)}


def known_but_unsaid(items: ItemSet, labels: Labels, action: Action, reading: np.ndarray) -> list[dict[str, Any]]:
    """The items where the reading is surest of the right concept and the model says another."""
    sure = reading[np.arange(len(items)), labels.concept]
    unsaid = np.flatnonzero((reading.argmax(1) == labels.concept) & (action.concept(labels) != labels.concept))
    rows = []
    for n in unsaid[np.argsort(-sure[unsaid], kind="stable")][:UNSAID]:
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


# -- to be answered by modules of their own ------------------------------------------------------------------------------------------


def calibration_error(labels: Labels, reading: np.ndarray) -> dict[str, float | None]:
    """``ece`` and ``brier`` of the reading."""
    return {"ece": None, "brier": None}


def verdicts(judge: Judge, text_readings: Mapping[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """A word for every modality: ``real`` where the reading beats the best text reading beyond its interval."""
    found = {}
    for scope in (s for s in judge.keep if s != "all"):
        rivals = {name: judge.judge(scope, reading).balanced for name, reading in text_readings.items()}
        best = max(rivals, key=lambda name: rivals[name][0])
        difference = Interval.of(judge.reading[scope].balanced - rivals[best])
        word = "real" if difference.lower > 0 else "explained by text"
        told = f"{difference.value:+.3f} [{difference.lower:+.3f}, {difference.upper:+.3f}]"
        found[scope] = {"word": word, "sentence": f"{scope}: the reading minus the best text control ({best}) is {told}."}
    return found


def minimum_detectable(judge: Judge) -> dict[str, float | None]:
    """The smallest difference that so many clips find, by scope."""
    return dict.fromkeys(judge.keep)
