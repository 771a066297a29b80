"""Objectives against each other at equal label budgets: means over seeds of many runs, with paired intervals.

A *way* of answering is a trained objective, an inference-time method, or the base model. Runs of one seed share their test items, so ways
are compared seed by seed on the same items. What is claimed is about objectives, whose labels, trainings and clips change with the seed, so
the interval of a mean is Student's t over the seeds; resampled clips would leave the trainings out. One seed has the interval of its clips
alone, which says nothing of another training.

Shapes: N items, O options, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import t

from gapclose.core.errors import ErrorCollector
from gapclose.core.files import read_json
from gapclose.data.item_set import ItemSet
from gapclose.data.load import in_order, read_data
from gapclose.data.prompt_templates import apply_template
from gapclose.evaluation.baselines.compare import BUDGETS, pareto
from gapclose.evaluation.baselines.operating_point import Scored, alarms
from gapclose.evaluation.baselines.shift import best_shift, shifts
from gapclose.evaluation.run_records import record_of
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.calibration import expected_calibration_error
from gapclose.metrics.config import GapConfig
from gapclose.metrics.labels import Action, Labels
from gapclose.observe.store import read_observations
from gapclose.pipeline.config import parse_config
from gapclose.training.checkpoint_selection import best_epoch

REPLICATES = 2_000
SURE = 0.9
"""probability of a wrong rejection from which it counts as confident"""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one way answers on the test gap items of one seed."""

    labels: Labels
    chosen: np.ndarray
    """(N,) option"""
    scores: np.ndarray | None
    """(N, O) in nats, where the way has a distribution over options"""
    items: ItemSet
    """those items"""
    base_instead: bool = False
    """no setting of the way within the budget did better on val than the base model, so these are its answers"""

    def tagged(self, name: str, value: str) -> np.ndarray:
        """(N,) bool, the items that have a tag."""
        return np.array([i.tags.get(name) == value for i in self.items])


Point = tuple[float | None, float | None, float | None]
"""of a front: standard accuracy on val, and standard accuracy and rejection on test; None where no item tells"""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A figure over seeds."""

    interval: Interval
    """95 %, Student's t over seeds; over the test clips where there is one seed; from the lower to the higher of two, since t with one degree
    of freedom says next to nothing"""
    seeds: int

    @property
    def kind(self) -> str:
        """What the interval is: ``t``, ``range`` (of two seeds) or ``bootstrap`` (of one seed's clips); empty where there is none."""
        return {1: "bootstrap", 2: "range"}.get(self.seeds, "t") if np.isfinite(self.interval.lower) else ""


def items_of(directory: Path, split: str) -> ItemSet:
    """The labelled gap items of a run in one split, in its own prompt and order of options, without those that it left out because of their media.

    Raises:
        ValueError: with every problem of the data.
    """
    return asked_items(directory).select(split=split, purpose="gap")


@lru_cache(maxsize=1)  # several figures of one run are had after one another
def asked_items(directory: Path) -> ItemSet:
    """The items of a run as it asked them: in its own prompt and order of options, without those that it left out because of their media."""
    path = directory / "items.json"
    bound, config = read_json(path), parse_config(["--config", str(directory / "config.yaml")])
    problems = ErrorCollector(f"the item set {bound['root']} of the run {directory}")
    found = in_order(read_data(Path(bound["root"]), config.data, problems), config.data, config.prompts, problems)
    found = apply_template(found, config.prompts.asked, config.prompts, problems)
    problems.raise_if_any()
    out = {s["item"] for s in bound.get("skipped", [])}
    return replace(found, items=tuple(i for i in found if i.id not in out))


def skipped(directory: Path) -> int:
    """How many items a run left out because of their media, over all splits."""
    return (record_of(directory, "base/test") or {}).get("n_skipped", 0)


def trained(directory: Path) -> dict[str, Answers]:
    """``base`` and ``adapted`` of a finished run."""
    items = items_of(directory, "test")
    return {side: _stored(directory, f"{side}-test", items) for side in ("base", "adapted")}


def _stored(directory: Path, stage: str, items: ItemSet) -> Answers:
    labels = Labels.of(items)
    seen = read_observations(directory / "observations" / stage, [i.id for i in items], layers=[])
    scores = seen.scores[:, : labels.option_concept.shape[1]].double().numpy()
    return Answers(labels=labels, chosen=scores.argmax(1), scores=scores, items=items)


def adapted_points(directory: Path) -> tuple[dict[float | None, Answers], list[Point]]:
    """Operating points of an adapted model: a shift of its rejections, chosen on val, judged on test.

    Returns:
        Standard-accuracy budget -> answers on test after the shift that is best on val within it, the base model's where none is better
        than that; and the front of val (:func:`bare_front`).
    """
    record = record_of(directory, "adapted/test")
    assert record is not None
    val, test = (items_of(directory, split) for split in ("val", "test"))
    stages = {"there": (val, f"epoch-{record['epoch']}-val"), "before": (val, "base-val"), "here": (test, "adapted-test")}
    stages["base"] = (test, "base-test")
    scored = {name: _stored(directory, stage, items) for name, (items, stage) in stages.items()}
    seen = {name: Scored(scores=a.scores, option_concept=a.labels.option_concept) for name, a in scored.items() if a.scores is not None}
    choosing, judging = scored["there"].labels, scored["here"].labels
    settings, scores_of = shifts(seen["there"], alarms(choosing))
    there, here = scores_of(seen["there"]), scores_of(seen["here"])
    found: dict[float | None, Answers] = {}
    for budget in BUDGETS:
        setting = best_shift(seen["there"], seen["before"], choosing, budget)
        if setting is None:
            found[budget] = replace(scored["base"], base_instead=True)
            continue
        scores = here([setting])[0]
        found[budget] = replace(scored["here"], scores=scores, chosen=scores.argmax(1))
    edge = pareto(settings, there, choosing, here, judging)
    return found, bare_front(edge)


def chosen_on_val(directories: Sequence[Path], gap: GapConfig) -> int:
    """Of several trainings of one way, the index of the one whose chosen epoch is best on val, by the rule that chose the epochs."""
    records = []
    for n, directory in enumerate(directories):
        adapted = record_of(directory, "adapted/test")
        assert adapted is not None
        val = record_of(directory, f"epoch-{adapted['epoch']}/val")
        assert val is not None
        records.append(val | {"epoch": n})
    return best_epoch(records, gap)


def bare_front(points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """A front without its settings, the highest standard accuracy on val first."""
    return [(p["choice"]["standard_accuracy"], p["test"]["standard_accuracy"], p["test"]["rejection"]) for p in points]


def untrained_front(directory: Path) -> dict[str, list[Point]]:
    """Method -> its front of settings as chosen."""
    methods = read_json(directory / "measurement.json")["baselines"]["methods"]
    return {m["name"]: bare_front(m["front"]) for m in methods}


def untrained(directory: Path, budget: float | None) -> dict[str, Answers]:
    """Every inference-time method of a run at a standard-accuracy budget, by name.

    Raises:
        ValueError: when the run has not measured them, or not at that budget.
    """
    measured = read_json(directory / "measurement.json").get("baselines")
    if not measured:
        raise ValueError(
            f"{directory}: no inference-time baselines in measurement.json; run `gapclose measure` with controls.baselines true"
        )
    if measured.get("chosen_on") != "val":
        raise ValueError(
            f"{directory}: its methods without training were not chosen on val (labels there, or a newer run, are needed); delete it"
        )
    items, found = items_of(directory, "test"), {}
    for method in measured["methods"]:
        points = [p for p in method["points"] if p["budget"] == budget]
        if not points:
            raise ValueError(
                f"{directory}: {method['name']} has no point at a budget of {budget}; there are {[p['budget'] for p in method['points']]}"
            )
        chosen, instead = np.array(points[0]["chosen"]), points[0]["setting"] is None
        found[method["name"]] = Answers(labels=Labels.of(items), chosen=chosen, scores=None, items=items, base_instead=instead)
    return found


def figures(answers: Answers, seed: int, where: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Figures of one way on one seed, each (R + 1,): balanced accuracy on the concept, standard accuracy, rejection; nan where none count.

    Args:
        where: (N,) bool, the items that count; None: all.
    """
    if where is not None:
        answers = replace(answers, labels=answers.labels.take(where), chosen=answers.chosen[where])
    labels = answers.labels
    if not len(labels.gold):
        return dict.fromkeys(("balanced", "standard", "rejection"), np.full(REPLICATES + 1, np.nan))
    clips = _resamples(tuple(labels.clip.tolist()), seed)
    said = Action(chosen=answers.chosen, scores=np.zeros(())).concept(labels)
    alarm = [labels.concepts.index(a) for a in labels.alarm]
    return {
        "balanced": clips.balanced(said == labels.concept, labels),
        "standard": clips.mean(answers.chosen == labels.gold, labels.standard),
        "rejection": clips.mean(np.isin(said, alarm), ~labels.standard),
    }


@lru_cache(maxsize=8)
def _resamples(clip: tuple[Any, ...], seed: int) -> ClipBootstrap:
    return ClipBootstrap(np.array(clip), REPLICATES, seed)


def on_degraded(answers: Answers) -> dict[str, np.ndarray]:
    """On items of clips whose picture and sound are noise (tag ``degraded``): calibration error of the action over concepts, and the share of
    confident wrong rejections; each (1,), nan where there are none."""
    keep, labels = answers.tagged("degraded", "yes"), answers.labels
    if answers.scores is None or not keep.any():
        return {"ece": np.array([np.nan]), "sure_and_wrong": np.array([np.nan])}
    options = softmax(answers.scores[keep], axis=1)  # (n, O)
    concept = labels.option_concept[keep]
    belief = np.stack([np.where(concept == c, options, 0).sum(1) for c in range(len(labels.concepts))], axis=1)
    alarm = [labels.concepts.index(a) for a in labels.alarm]
    wrong = np.isin(belief.argmax(1), alarm) & (belief.argmax(1) != labels.concept[keep])
    return {
        "ece": np.array([expected_calibration_error(belief, labels.concept[keep])]),
        "sure_and_wrong": np.array([(wrong & (belief.max(1) >= SURE)).mean()]),
    }


def mean_over_seeds(values: Sequence[np.ndarray]) -> Mean:
    """The mean of one figure (R + 1,) over seeds."""
    if len(values) == 1:
        return Mean(interval=Interval.of(values[0]), seeds=1)
    firsts = [float(v[0]) for v in values]
    if len(firsts) == 2:
        return Mean(interval=Interval(float(np.mean(firsts)), min(firsts), max(firsts)), seeds=2)
    value, half = float(np.mean(firsts)), float(t.ppf(0.975, len(firsts) - 1) * np.std(firsts, ddof=1) / np.sqrt(len(firsts)))
    return Mean(interval=Interval(value, value - half, value + half), seeds=len(values))


def against(ours: Mapping[int, Mapping[str, np.ndarray]], theirs: Mapping[int, Mapping[str, np.ndarray]], name: str) -> Mean | None:
    """Ours minus theirs over the seeds that both have, seed by seed (of one seed, item by item); None where they share none.

    Args:
        ours, theirs: seed -> :func:`figures`.
    """
    shared = sorted(set(ours) & set(theirs))
    return mean_over_seeds([ours[s][name] - theirs[s][name] for s in shared]) if shared else None


def cpu_minutes(directories: Sequence[Path]) -> float | None:
    """Processor time of all these runs, or None where it was not recorded of all; what they took from one another counts once."""
    paths = [d / "cost.json" for d in directories]
    if not all(p.is_file() for p in paths):
        return None
    costs = [read_json(p) for p in paths]
    return (sum(c["cpu_seconds"] for c in costs) + max(c["cpu_seconds_of_others"] for c in costs)) / 60


def read_by(directory: Path) -> dict[str, Any]:
    """The frozen probe of a run: its layers (the highest), how many labelled items it was fitted on, and its AUROC on test."""
    stored, record = read_json(directory / "probes" / "frozen.json"), record_of(directory, "base/test")
    assert record is not None
    return {"layer": stored["layer"], "labels": stored["n_fit"], "auroc": record["reading"]["auroc"]["value"]}


def more(directory: Path) -> dict[str, float | None]:
    """What the record of a finished training says besides: closure, retention, held-out question type, and what went wrong (0 or 1 each)."""
    record = record_of(directory, "adapted/test")
    assert record is not None
    change, nothing = record["change"], {"value": None}
    found: dict[str, Any] = {
        "closure": change["closure"],
        "standard_drop": change["standard_drop"],
        "retention_drop": change.get("retention_drop", nothing),
        "transfer": record["transfer"]["action"]["balanced"] if "transfer" in record else nothing,
    }
    return {
        **{name: interval["value"] for name, interval in found.items()},
        "cpu_minutes": cpu_minutes([directory]),
        "auroc_gain": change["auroc_gain"]["value"],
        "not_real": float(bool(record["forced"])),
        "stopped": float(bool(record["stopped"])),
        "over_budget": float(record["state"] in ("over-rejecting", "collapsed")),
    }
