"""Inference-time baselines of a run, from the base model's observations.

Shapes: N items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gapclose.core.logging import get_logger
from gapclose.evaluation.baselines.compare import compare
from gapclose.evaluation.baselines.operating_point import Seen
from gapclose.evaluation.controls.suite import ControlSuite
from gapclose.evaluation.controls.text import read_text, text_out_of_fold
from gapclose.evaluation.measurement import scored
from gapclose.metrics.labels import Labels

logger = get_logger(__name__)


def run_baselines(of: ControlSuite) -> dict[str, Any] | None:
    """Build the entry ``baselines`` of ``measurement.json``; None, with a message, without alarm
    concepts."""
    known, text, folds = of.known, of.text, of.folds
    if not known.alarm:
        logger.info("no inference-time baselines: the item set has no alarm concepts, so there are no rejections to move")
        return None
    val = _validation(of)
    logger.info(f"inference-time baselines: settings chosen on {'val' if val else 'fit, out of fold'}")
    fit = Seen(
        scores=scored(known, of.seen_fit).scores,
        option_concept=known.option_concept,
        residual=of.z_fit,
        reading=of.run.fit_reading,
        text=text_out_of_fold([i.text for i in of.fit], known.concept, known.clip, text, known=known.modality, **folds),
    )
    test = Seen(scores=of.action.scores, option_concept=of.labels.option_concept, residual=of.z, reading=of.reading, text=text.reading)
    return compare(fit, known, test, of.labels, of.judge.clips["all"], val=val, **folds)


def _validation(of: ControlSuite) -> tuple[Seen, Labels] | None:
    """Return the N labelled gap items of val, observed as by ``gapclose close``; None if a
    concept is missing."""
    val = of.run.items.select(split="val", purpose="gap")
    val = replace(val, items=tuple(i for i in val if i.gold is not None))
    if {i.concept for i in val} != set(val.concepts):
        return None
    labels, seen = Labels.of(val), of.run.observe_measured("base", "val").take([i.id for i in val])
    z = of.probe.features(seen.residuals)
    found = Seen(
        scores=scored(labels, seen).scores,
        option_concept=labels.option_concept,
        residual=z.double().numpy(),
        reading=of.probe.predict_proba(z),
        text=read_text(of.fit, val, **of.folds).reading,
    )
    return found, labels
