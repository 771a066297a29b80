"""Layer analysis: all layers, interchange of twins, nested choice of layer, the paper's figures.

Shapes: N test items, D width, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from gapclose.core.logging import get_logger, progress
from gapclose.core.results import Result
from gapclose.evaluation.controls.interchange import Interchange, interchange, twins
from gapclose.evaluation.controls.logit_lens import LayerReading, layer_profile, make_lens
from gapclose.evaluation.controls.scoring import Control, JudgedControl
from gapclose.evaluation.controls.sentence_encoder import encode
from gapclose.evaluation.controls.suite import ControlSuite
from gapclose.evaluation.protocols.compare import set_beside
from gapclose.metrics.bootstrap import Interval
from gapclose.models.families import SEVERAL_STREAMS
from gapclose.models.structure import decoder
from gapclose.observe.store import pad_options
from gapclose.probes.nested_cv import nested_reading
from gapclose.probes.refit import refit

logger = get_logger(__name__)


def _observe_layers(of: ControlSuite, part: str) -> list[int]:
    """Store the residuals of all layers; return the layers, the embedding first."""
    layers = list(range(len(of.run.loaded.layers) + 1))
    of.run.observe(f"layers-{part}", of.fit if part == "fit" else of.judged, layers=layers)
    return layers


def _layer_residual(of: ControlSuite, part: str, layer: int) -> torch.Tensor:
    items = of.fit if part == "fit" else of.judged
    return of.stored(f"layers-{part}", items, [layer]).residuals[layer]


def layers(of: ControlSuite) -> tuple[Control, list[LayerReading]]:
    """Return the embedding layer as a control, and reading and lens of every layer."""
    layers = [_observe_layers(of, part) for part in ("fit", "test")][-1]
    fit, test = (_layer_residual(of, part, 0).double().numpy() for part in ("fit", "test"))
    embedding = Control(
        name="embedding",
        label="embedding layer (layer 0 at the answer position)",
        question="is it there before any layer has run?",
        readings=[refit(of.probe, fit, of.known.concept, test)],
        at_chance=True,
    )
    last = _layer_residual(of, "test", layers[-1])
    try:
        lens = make_lens(of.run.loaded, of.judged.items, last, of.action.scores, of.config.observe.batch_size)
    except ValueError as error:
        logger.info(f"no logit lens: {error}")
        lens = None
    return embedding, layer_profile(layers, partial(_layer_residual, of), of.known.concept, of.probe, of.judge, lens)


def interchanged(of: ControlSuite) -> Interchange | None:
    """Score answers under the twin's residual.

    None without twins, or for decoders with several residual streams. The patch replaces everything
    the probe reads: for a stacked probe the residuals of all its layers, so that the probe then
    reads exactly the twin's. After the highest layer the stream is the twin's, as if only that
    layer were patched. The lower layers determine the key-value cache of the layers between, which
    only options of several tokens attend to.
    """
    donor_of = twins(of.judged.items)
    place = {i.id: n for n, i in enumerate(of.judged)}
    if not donor_of:
        logger.info("no interchange: no test item has a twin (tag `twin`: the id of an item of the same clip with another right concept)")
        return None
    if decoder(of.run.loaded.model).config.model_type in SEVERAL_STREAMS:
        logger.info("no interchange: this decoder keeps several residual streams, of which a twin's residual is only one")
        return None
    paired = np.array([i.id in donor_of for i in of.judged])
    items = replace(of.judged, items=tuple(i for i in of.judged if i.id in donor_of))
    read = {layer: of.seen.residuals[layer] for layer in of.probe.layers}
    patch = {layer: {i: z[place[donor]] for i, donor in donor_of.items()} for layer, z in read.items()}
    seen = of.run.observe("interchange-test", items, patch=patch)
    rank = {i.id: n for n, i in enumerate(items)}
    donor = np.array([rank[donor_of[i.id]] for i in items])
    labels = of.labels.take(paired)
    after = pad_options(seen.scores, labels.option_concept.shape[1]).double().numpy()
    return interchange(labels, donor, of.action.scores[paired], after, of.probe.layers, of.config.gap.replicates, of.config.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class NestedChoice(Result):
    """The probe chosen again inside every outer fold."""

    balanced: Interval
    """balanced accuracy on fit, 0..1"""
    layers: tuple[int, ...]
    """the highest layer of every fold's probe"""
    stacks: tuple[tuple[int, ...], ...]
    """the layers of every fold's probe, rising"""


def nested(of: ControlSuite) -> NestedChoice | None:
    """Score the probe on fit with layers, family and strength chosen again inside every outer fold.

    No choice sees the items it is judged on. None if there are too few clips for nested folds.
    """
    config, known = of.config.probe, of.known
    layers = config.candidates(len(of.run.loaded.layers))
    residuals = of.stored("base-fit", of.fit, layers).residuals
    try:
        found = nested_reading(
            residuals, known.concept, known.clip, known.concepts, config,
            layers=layers, modality=known.modality, seed=of.config.seed, spread=True,
        )  # fmt: skip
    except ValueError as error:
        logger.info(f"no nested choice of the layer: {error}")
        return None
    judged = of.judge_of(known, found.reading).reading["all"]
    stacks = tuple(tuple(layers) for layers, _, _ in found.chosen)
    return NestedChoice(balanced=Interval.of(judged.balanced), layers=tuple(layers[-1] for layers in stacks), stacks=stacks)


def protocol(of: ControlSuite, entries: Sequence[JudgedControl]) -> dict[str, Any]:
    """Compare the source paper's figures with ours on the test items, on which nothing was chosen.

    The paper does not publish its rule for matching answers to options; the run's is used
    (:class:`gapclose.data.answer_matching.AnswerMatcher`).
    """
    _, *layers = _observe_layers(of, "test")
    texts, encoder = [i.text for i in of.judged], of.config.controls.text_encoder
    assert of.seen.answers is not None
    match = of.config.prompts.matching(of.config.prompts.asked)
    return set_beside(
        of.judge,
        of.action,
        entries,
        texts=texts,
        said=match(of.seen.answers, of.judged.items),
        residual_of=lambda layer: _layer_residual(of, "test", layer).float().numpy(),
        layers=progress(layers, len(layers), "the paper's probe at every layer"),
        encoded=encode(encoder, texts, of.config.observe.batch_size) if encoder else None,
    )
