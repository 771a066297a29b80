"""Run all controls and the layer analysis, and build ``measurement.json``.

Forwards in addition to the plain measurement:

- fit and test for all layers;
- fit and test per set of blanked media (three sets for items with images and audio);
- test items with a twin;
- fit, val and test per network with random weights, if any modality is judgeable;
- val for the inference-time baselines, which closing the gap needs anyway.

All are stored and resumed after an interruption like other observations.

Shapes: M fit items, N test items, D width, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from gapclose.core.logging import get_logger
from gapclose.evaluation.baselines.run_baselines import run_baselines
from gapclose.evaluation.config import CONTROLS, is_built_in
from gapclose.evaluation.context import EvaluationContext
from gapclose.evaluation.controls.layer_analysis import interchanged, layers, nested, protocol
from gapclose.evaluation.controls.mdl import codelength
from gapclose.evaluation.controls.random_weights import random_controls, random_readings
from gapclose.evaluation.controls.scoring import Control, JudgedControl
from gapclose.evaluation.controls.suite import ControlSuite
from gapclose.evaluation.controls.text import read_text
from gapclose.evaluation.measurement_file import Gate, Measurement, assemble, data_root
from gapclose.metrics.verdict import decide
from gapclose.metrics.verdict_evidence import collect_evidence

logger = get_logger(__name__)

RIVALS = ("majority", "text_only", "text_encoder", "options", "blank_all_refit")
"""controls that a verdict compares with: readers without the media, including the model with
blanked media"""


def extra_control(name: str, suite: ControlSuite, taken: Collection[str]) -> Control:
    """Return a user's control, checked. It is compared with the reading; verdicts do not use it.

    Args:
        taken: names of the user's other controls.

    Raises:
        ValueError: when it is no Control, its name is taken, it has no readings, a reading is no
            (N, C) array of probabilities, or its concepts are not one index (N,) per reading.
    """
    control, shape = CONTROLS.get(name)(suite), suite.reading.shape
    if not isinstance(control, Control):
        raise ValueError(
            f"controls.extra {name!r} returned {type(control).__name__}; return a gapclose.evaluation.controls.scoring.Control"
        )
    if is_built_in(control.name) or control.name in taken:
        raise ValueError(f"controls.extra {name!r} is named {control.name!r}, as another control is; give it another name")
    if not len(control.readings):
        raise ValueError(f"controls.extra {name!r} has no readings; give it one or more, each of shape {shape}, items x concepts")
    readings = [np.asarray(reading) for reading in control.readings]
    for reading in readings:
        if reading.shape != shape or not (reading >= 0).all() or not (np.abs(reading.sum(1) - 1) <= 1e-3).all():
            raise ValueError(
                f"controls.extra {name!r}: its readings must be probabilities of shape {shape}, items x concepts, rows that sum to one"
            )
    if control.concepts is None:
        return replace(control, readings=readings)
    concepts = [np.asarray(of) for of in control.concepts]
    if [of.shape for of in concepts] != [shape[:1]] * len(readings) or not np.isin(concepts, np.arange(shape[1])).all():
        raise ValueError(
            f"controls.extra {name!r}: its concepts must be an array of shape {shape[:1]} for each reading, of indices below {shape[1]}"
        )
    return replace(control, readings=readings, concepts=[of.astype(int) for of in concepts])


def extra_controls(suite: ControlSuite) -> list[JudgedControl]:
    """Run and judge the controls that ``controls.extra`` names, in its order.

    Raises:
        ValueError: as :func:`extra_control`.
    """
    found: list[JudgedControl] = []
    for name in suite.config.controls.extra:
        control = extra_control(name, suite, [c.name for c in found])
        if control.at_chance and (share := suite.judge.outside(control)):
            logger.info(
                f"controls.extra {name!r}: {share:.1%} of its readings name a concept that their item's modality does not have; its accuracy "
                "counts the most probable concept of the modality there"
            )
        found.append(suite.judge.entry(control))
    return found


def run_controls(run: EvaluationContext, *, thorough: bool) -> Measurement:
    """Build ``measurement.json``: all configured controls, or (not ``thorough``) only those
    without media and random weights.

    The user's own controls run first, so that a fault in one costs no other control.
    """
    now, wanted = ControlSuite(run, "test", run.text), run.config.controls
    own = extra_controls(now) if thorough else []
    random = random_readings(run, thorough=thorough, needed=run.measured["test"].judgeable)
    controls = now.wording_controls()
    entries = [now.judge.entry(c) for c in [*controls, *random_controls(random, "test")]]
    rest: dict[str, Any] = {}
    more: list[Control] = []
    if thorough:
        more.append(now.confidence())
        if wanted.layers:
            embedding, rest["layers"] = layers(now)
            more.append(embedding)
        if wanted.residualise:
            more.append(now.residualised())
        if wanted.blank:
            more += now.blanked()
        entries += [*(now.judge.entry(c) for c in more), *own]
        entries += now.label_controls() if wanted.labels else []
        if wanted.codelength:
            known = now.known
            logger.info("codelength of the concepts given the residuals")
            facts = (known.concept, known.modality, known.clip, run.probe)
            rest["codelength"] = codelength(now.z_fit, *facts, draws=wanted.draws, rng=now.rng(2))
        rest["interchange"] = interchanged(now) if wanted.interchange else None
        rest["nested"] = nested(now) if wanted.nested else None
        rest["protocol"] = protocol(now, entries) if wanted.protocol else None
        rest["baselines"] = run_baselines(now) if wanted.baselines else None
    return assemble(
        now.judged,
        now.judge,
        now.action,
        now.reading,
        run.probe,
        config=run.config.gap,
        n_layers=len(run.loaded.layers),
        seed=run.config.seed,
        data_root=data_root(run.items.root, run.directory),
        controls=entries,
        thorough=thorough,
        rivals={c.name: c.readings[0] for c in [*controls, *more] if c.name in RIVALS},
        untrained={kind: of["test"] for kind, of in random.items()},
        acting=run.measured["test"].acting,
        written=run.measured["test"].written,
        **rest,
    )


def gate(run: EvaluationContext) -> Gate:
    """Build ``gate.json``: verdicts on val that decide whether to train.

    So test is kept for the final result. The controls need no media: text, order and lengths of the
    options, majority class, and random weights.
    """
    if extra := run.config.controls.extra:
        logger.info(f"controls.extra {extra}: not run by `gapclose close`; `gapclose measure` runs them")
    fit, val = (run.items.select(split=split, purpose="gap") for split in ("fit", "val"))
    text = read_text(fit, val, folds=run.config.probe.folds, seed=run.config.seed)
    now = ControlSuite(run, "val", text)
    random = random_readings(run, thorough=False, needed=run.measured["val"].judgeable)
    untrained = {kind: of["val"] for kind, of in random.items()}
    rivals = {c.name: c.readings[0] for c in now.wording_controls()}
    proofs = collect_evidence(now.labels, now.reading, rivals, run.config.gap, seed=run.config.seed, untrained=untrained)
    verdicts = decide(proofs, run.config.gap, acting=run.measured["val"].acting)
    return Gate(split="val", n_clips=now.judge.clips["all"].n, n_items=len(val), verdicts=verdicts)
