"""Layer by layer: the probe's reading and the logit lens.

Shapes: M fit items, N items, B batch, D width, L decoder layers, C concepts, O options, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gapclose.core.logging import progress
from gapclose.core.results import Result
from gapclose.data.items import Item
from gapclose.evaluation.controls.scoring import ControlScorer
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.labels import Action, Labels, concept_scores
from gapclose.models.loading import LoadedModel
from gapclose.models.sharding import unsharded_root
from gapclose.models.structure import decoder, output_embedding, unwrap
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.refit import refit

TOLERANCE = {torch.float32: 0.01}
"""largest difference in nats between the lens at the last layer and the model's scores; 0.3 for
half precision"""


# -- layer by layer -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptAccuracy(Result):
    """How well something tells the concepts of the test items."""

    balanced: Interval
    auroc: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReading(Result):
    """Reading and lens of one layer."""

    layer: int
    reading: ConceptAccuracy
    lens: ConceptAccuracy | None
    """None where there is no lens"""


def layer_profile(
    layers: Sequence[int],
    residual: Callable[[str, int], torch.Tensor],
    y: np.ndarray,
    probe: FrozenProbe,
    judge: ControlScorer,
    lens: Callable[[torch.Tensor], np.ndarray] | None,
) -> list[LayerReading]:
    """Compute reading and lens of every layer with intervals, for ``measurement.json``.

    Each layer's probe is fitted on the fit items with the frozen probe's family and strength, so no
    layer gains from its own choice and nothing is chosen on the judged items. One layer is in
    memory at a time.

    Args:
        residual: (``fit`` or ``test``, layer) -> (M, D) or (N, D).
        y: (M,) concepts of the fit items.
        lens: residual (N, D) -> option scores (N, O); None: no lens.
    """
    rows = []
    for layer in progress(layers, len(layers), "reading every layer"):
        test = residual("test", layer)
        found = judge.judge("all", refit(probe, residual("fit", layer).double().numpy(), y, test.double().numpy()))
        reading = ConceptAccuracy(balanced=Interval.of(found.balanced), auroc=Interval.of(found.auroc))
        rows.append(LayerReading(layer=layer, reading=reading, lens=None if lens is None else _lens_row(lens(test), judge)))
    return rows


def _lens_row(scores: np.ndarray, judge: ControlScorer) -> ConceptAccuracy:
    """Compute balanced accuracy of the best option's concept, as for the action, and AUROC of
    the concept marginals."""
    labels, clips = judge.labels, judge.clips["all"]
    said = Action(chosen=scores.argmax(1), scores=scores).concept(labels)
    areas = []
    for concepts in labels.detections:
        positive = np.isin(labels.concept, concepts)
        if positive.any() and not positive.all():
            areas.append(clips.auroc(margins(scores, labels, concepts), positive))
    area = np.mean(areas, axis=0) if areas else np.full(len(clips.weights), np.nan)
    balanced = clips.balanced(said == labels.concept, labels)
    return ConceptAccuracy(balanced=Interval.of(balanced), auroc=Interval.of(area))


def margins(scores: np.ndarray, labels: Labels, concepts: Sequence[int]) -> np.ndarray:
    """Return the log-odds (N,) of the options that express one of ``concepts`` against the
    others, in nats."""
    inside = concept_scores(scores, labels.option_concept, concepts, inside=True)
    return inside - concept_scores(scores, labels.option_concept, concepts, inside=False)


# -- logit lens ---------------------------------------------------------------------------------------------------------------------


def final_norm(model: Any) -> nn.Module:
    """Return the norm between the last decoder layer and the output head.

    It is a child of the module that holds the layers.

    Raises:
        ValueError: when there is none, or several of which none is called ``norm``.
    """
    holder = decoder(model)
    norms = {name: child for name, child in holder.named_children() if "norm" in type(child).__name__.lower()}
    found = norms.get("norm") or (next(iter(norms.values())) if len(norms) == 1 else None)
    if found is None:
        raise ValueError(f"{type(holder).__name__} has the norms {sorted(norms)}; which of them is the final one is not known")
    return found


def first_tokens(loaded: LoadedModel, items: Sequence[Item]) -> list[list[int]]:
    """Return the first token of every option of every item.

    Raises:
        ValueError: when two options of an item begin with the same token, which the lens cannot
            tell apart.
    """
    found = []
    for item in items:
        tokens = [loaded.option_tokens(o.text)[0] for o in item.options]
        if len(set(tokens)) < len(tokens):
            raise ValueError(f"item {item.id!r}: options {[o.text for o in item.options]} share a first token")
        found.append(tokens)
    return found


@torch.no_grad()
def lens_scores(loaded: LoadedModel, residual: torch.Tensor, tokens: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
    """Score the options' first tokens as if the model ended after these residuals (N, D).

    Returns (N, O). Logit lens (nostalgebraist 2020): the final norm is applied, then the output
    head; -inf beyond an item's options. For the residuals of the last layer these are the model's
    own scores of one-token options.
    """
    model = unwrap(loaded.model)
    norm, head = final_norm(model), output_embedding(model)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)  # Gemma squashes its logits after the head
    scores = np.full((len(tokens), max(len(t) for t in tokens)), -np.inf)
    for start in range(0, len(residual), batch_size):
        hidden = residual[start : start + batch_size].to(loaded.device, head.weight.dtype)
        with unsharded_root(loaded.model):
            logits = head(norm(hidden)).float()  # (B, V)
        logp = (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1).cpu()
        for n, mine in enumerate(tokens[start : start + batch_size]):
            scores[start + n, : len(mine)] = logp[n, list(mine)].numpy()
    return scores


def make_lens(
    loaded: LoadedModel, items: Sequence[Item], last: torch.Tensor, scores: np.ndarray, batch_size: int
) -> Callable[[torch.Tensor], np.ndarray]:
    """Return the lens for these items, checked at the last layer against the model's scores.

    Args:
        last: (N, D) residuals of the last layer. scores: (N, O) the model's own.

    Raises:
        ValueError: when they differ (a model that merges streams or rescales before its head),
            options share a first token, or the final norm is not found.
    """
    tokens = first_tokens(loaded, items)
    ours = lens_scores(loaded, last, tokens, batch_size)
    short = np.array([all(len(loaded.option_tokens(o.text)) == 1 for o in item.options) for item in items])
    both = short[:, None] & np.isfinite(ours)
    off = float(np.abs(np.where(both, ours, 0) - np.where(both, scores[:, : ours.shape[1]], 0)).max())
    if off > TOLERANCE.get(last.dtype, 0.3):
        raise ValueError(f"norm and head after the last layer are {off:.3g} nats off the model's own scores")
    return lambda residual: lens_scores(loaded, residual, tokens, batch_size)
