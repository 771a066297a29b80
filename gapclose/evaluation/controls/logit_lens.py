"""Where does it get lost? Layer by layer what a probe reads and what the model would say, and whether the residual moves the answer.

Shapes: M fit items, N items, B batch, D width, L decoder layers, C concepts, O options, V vocabulary.
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
"""nats by which the lens at the last layer may differ from the model's own scores; half precision may by 0.3"""


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
    """Reading and lens of every layer with intervals, as they stand in ``measurement.json``.

    The probe of a layer is fitted on the fit items with the family and strength that were chosen for the frozen probe, so no layer is
    favoured by a choice of its own, and nothing is chosen on the items that are judged. One layer is in memory at a time.

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
    """Balanced accuracy of the concept that the best option expresses, as for the action, and AUROC of the concept marginals."""
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
    """Log-odds (N,) of the options that express one of ``concepts`` against the others, in nats."""
    inside = concept_scores(scores, labels.option_concept, concepts, inside=True)
    return inside - concept_scores(scores, labels.option_concept, concepts, inside=False)


# -- logit lens ---------------------------------------------------------------------------------------------------------------------


def final_norm(model: Any) -> nn.Module:
    """The norm between the last decoder layer and the output head: a child of the module that holds the layers.

    Raises:
        ValueError: when there is none, or several and none is called ``norm``.
    """
    holder = decoder(model)
    norms = {name: child for name, child in holder.named_children() if "norm" in type(child).__name__.lower()}
    found = norms.get("norm") or (next(iter(norms.values())) if len(norms) == 1 else None)
    if found is None:
        raise ValueError(f"{type(holder).__name__} has the norms {sorted(norms)}; which of them is the final one is not known")
    return found


def first_tokens(loaded: LoadedModel, items: Sequence[Item]) -> list[list[int]]:
    """The first token of every option of every item.

    Raises:
        ValueError: when two options of an item begin with the same token, which the lens could not tell apart.
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
    """Scores (N, O) of the options' first tokens if the model ended after these residuals (N, D) (logit lens; nostalgebraist 2020).

    The final norm is applied once, then the output head; -inf beyond an item's options. With the residuals of the last layer these are
    the model's own scores of one-token options.
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
    """The lens for these items, checked: after the last layer it must say what the model says.

    Args:
        last: (N, D) residuals of the last layer. scores: (N, O) the model's own.

    Raises:
        ValueError: when it does not (a model that merges streams or rescales before its head), or first tokens do not tell options
            apart, or the final norm is not found.
    """
    tokens = first_tokens(loaded, items)
    ours = lens_scores(loaded, last, tokens, batch_size)
    short = np.array([all(len(loaded.option_tokens(o.text)) == 1 for o in item.options) for item in items])
    both = short[:, None] & np.isfinite(ours)
    off = float(np.abs(np.where(both, ours, 0) - np.where(both, scores[:, : ours.shape[1]], 0)).max())
    if off > TOLERANCE.get(last.dtype, 0.3):
        raise ValueError(f"norm and head after the last layer are {off:.3g} nats off the model's own scores")
    return lambda residual: lens_scores(loaded, residual, tokens, batch_size)
