"""Teachers: whose readings of the train items training aims for, round by round.

The first teacher is the frozen probe on the base model. Each later round fits a probe again, with the same labels, on the residuals of the
model that the round before it has left, at whatever layer reads best now: what the model has begun to say may be easier to read. Readings
are taken once, before the round trains, so no gradient and no later change of the model reaches them.

Shapes: N train items, M val items, C concepts, O options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gapclose.gap import Labels
from gapclose.items import ItemSet
from gapclose.media import SUPPORTED
from gapclose.observations import read_observations
from gapclose.probes import FrozenProbe, choose_probe

if TYPE_CHECKING:
    from gapclose.run import Run


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """One round's reading."""

    probe: FrozenProbe
    train: np.ndarray
    """(N, C)"""
    val: np.ndarray
    """(M, C), for the operating point"""
    log_likelihood: float
    """nats per labelled fit item, out of fold: what tells whether another round reads better"""


def train_items(run: Run) -> ItemSet:
    """The items that targets are for, without whatever labels they have."""
    return run.items.select(split="train", purpose="gap").unlabelled()


def val_items(run: Run) -> ItemSet:
    return run.items.select(split="val", purpose="gap")


def first_teacher(run: Run) -> tuple[Teacher, np.ndarray, np.ndarray]:
    """The frozen probe's reading of the base model.

    Returns:
        The teacher, the base model's option scores of the train items (N, O), and the sentinel's reading of them (N, C).
    """
    config = run.config.targets
    blank = SUPPORTED if config.control in ("blank_media", "blank_targets") else ()
    train, val, layers = train_items(run), val_items(run), {*run.probe.layers, *run.sentinel.layers}
    seen = run.observe("base-train", train, layers=sorted(layers), blank=blank)
    judged = read_observations(run.directory / "observations" / "base-val", [i.id for i in val], layers=run.probe.layers)
    teacher = Teacher(
        probe=run.probe,
        train=run.probe.read(run.probe.see(seen.residuals)),
        val=run.probe.read(run.probe.see(judged.residuals)),
        log_likelihood=run.fit_log_likelihood,
    )
    return teacher, seen.scores.double().numpy(), run.sentinel.read(run.sentinel.see(seen.residuals))


def next_teacher(run: Run, number: int) -> Teacher:
    """The probe of a later round, chosen over all layers of the model as it is now by the same grouped cross-validation.

    Honest only where the model was not trained on the labels: it would carry those of the fit items themselves.
    """
    fit, layers = run.items.select(split="fit", purpose="gap"), range(1, len(run.loaded.layers) + 1)
    seen, labels = run.observe(f"round-{number}-fit", fit, layers=list(layers)), Labels.of(fit)
    choice = choose_probe(
        seen.residuals, labels.concept, labels.clip, fit.concepts, run.config.probe, layers=list(layers), seed=run.config.seed,
        label=f"choosing the probe of round {number}",
    )  # fmt: skip
    readings = {}
    for split, items in (("train", train_items(run)), ("val", val_items(run))):
        found = run.observe(f"round-{number}-{split}", items, layers=choice.probe.layers)
        readings[split] = choice.probe.read(choice.probe.see(found.residuals))
    evidence = {"chosen_from": choice.table, "n_fit": len(fit), "seed": run.config.seed, "round": number}
    run.on_main(lambda: choice.probe.save(run.directory / "probes" / f"round-{number}", evidence))
    return Teacher(probe=choice.probe, log_likelihood=choice.log_likelihood, **readings)


def compared(run: Run, number: int, now: Teacher, before: Teacher | None, sentinel: np.ndarray) -> dict[str, Any]:
    """What ``rounds.json`` holds of a round: how well its teacher reads, whether that is better than before, and whether the sentinel agrees.

    Args:
        sentinel: (N, C) the sentinel's reading of the train items in the base model: another family, layer and model than the teachers of
            later rounds. A teacher that drifts away from the clips and towards what the student says loses its agreement.
    """
    val, said = Labels.of(val_items(run)), now.train.argmax(1)
    cell, names = val.cells
    right = now.val.argmax(1) == val.concept
    found = {
        "round": number,
        "layers": list(now.probe.layers),
        "family": now.probe.family,
        "strength": now.probe.strength,
        "log_likelihood": now.log_likelihood,
        "val_balanced": float(np.mean([right[cell == k].mean() for k in range(len(names))])),
        "sentinel_agrees": float((said == sentinel.argmax(1)).mean()),
        "helps": before is None or now.log_likelihood > before.log_likelihood,
    }
    if before is not None:
        found["changed"] = float((said != before.train.argmax(1)).mean())
    return found
