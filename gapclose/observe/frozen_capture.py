"""Capture the states that enter the first adapted layer, and check that a model can start there.

Known obstacles are reported by name. A trial finds the others: it compares the model's own forward
of a batch with one from the captured states.

Shapes: B rows, T tokens, D width of the residual stream, A axes of rotary positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device

from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.branches import branch_positions, branched
from gapclose.models.hooks import answer_logits, capture_residuals, skip_layers
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.models.sharding import unwrap_engine
from gapclose.models.structure import decoder, decoder_layers, unwrap
from gapclose.observe.answer_rows import AnswerRows, Row, answer_rows, branch_numbers, prompt_with_answers
from gapclose.observe.forward import forward_part

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""largest accepted difference between a log-probability from stored states and the model's own, in
the same rows; beyond it the cache is not used"""
UNDERSTOOD = {
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "use_cache",
    "cache_position",
    "visual_pos_masks",
}
"""decoder inputs that are supported; any other input of a family would be missing when the decoder
starts from stored states"""


@dataclass(frozen=True, kw_only=True)
class Entered:
    """The inputs of the first adapted layer."""

    hidden: torch.Tensor
    """(B, T, D)"""
    mask: torch.Tensor
    """(B, T), that of the prompt"""
    positions: torch.Tensor | None
    """(B, T) or (A, B, T); None where the decoder counts positions itself"""
    length: int
    """tokens of the padded prompt, without answers"""
    residuals: dict[int, torch.Tensor]
    """layer -> (B, D) at the answer position"""
    given: dict[str, Any]
    """the decoder's arguments besides the prompt's own inputs, and the attention mask that it was
    given"""


@torch.inference_mode()
def capture_hidden(loaded: LoadedModel, rows: Sequence[Row], media: MediaLoader, frozen: int, layers: Sequence[int] = ()) -> Entered:
    """Run the media towers and the first ``frozen`` decoder layers on a batch."""
    model, device = unwrap_engine(loaded.model), loaded.device
    inputs, length = prompt_with_answers(loaded, media, rows)
    inputs = send_to_device(inputs, device)
    caught: dict[str, Any] = {}

    def at_decoder(module: Any, args: tuple, kwargs: dict) -> None:
        caught["given"] = kwargs

    def at_layer(module: Any, args: tuple, kwargs: dict) -> None:
        caught["hidden"] = args[0] if args else kwargs["hidden_states"]

    branch = branch_numbers(rows)
    blocks, last = decoder_layers(model), torch.full((len(rows),), length - 1, device=device)
    handles = [
        decoder(model).register_forward_pre_hook(at_decoder, with_kwargs=True),
        blocks[frozen].register_forward_pre_hook(at_layer, with_kwargs=True),
    ]
    try:
        with (
            skip_layers(model, range(frozen + 1, len(blocks) + 1)), capture_residuals(model, layers, last) as residuals,
            branched(model, branch), answer_logits(model, last[:1] * 0, last[:1]),
        ):  # fmt: skip
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    given = {k: v for k, v in caught["given"].items() if k not in inputs or k == "attention_mask"}
    positions = given.get("position_ids")
    if positions is not None:
        positions = positions.expand(*positions.shape[:-2], len(rows), -1)
        if branch is not None:
            positions = branch_positions(positions, branch.to(device), inputs["attention_mask"])
    return Entered(
        hidden=caught["hidden"], mask=inputs["attention_mask"], positions=positions, length=length, residuals=residuals, given=given
    )


def unsupported_reason(
    loaded: LoadedModel, batches: Sequence[Sequence[Item]], media: MediaLoader, frozen: int, *, branching: bool
) -> str | None:
    """Return why the model cannot start from stored states, or None.

    Known obstacles are checked first. Then a trial runs the first batch of every combination of
    media by the model's own forward and from its states.
    """
    if frozen < 1:
        return "lora.layers leaves no decoder layer below the first adapted one"
    if getattr(decoder(loaded.model).config, "num_kv_shared_layers", 0):
        return "upper layers of its decoder use keys and values of lower ones"
    tolerance = TOLERANCE[next(unwrap(loaded.model).parameters()).dtype]
    for batch in first_of_each(batches):
        laid = answer_rows(loaded, batch, branching=branching)
        entered = capture_hidden(loaded, laid.rows, media, frozen)
        if reason := _not_all(entered, frozen):
            return reason
        try:
            difference = max_difference(loaded, laid, media, entered, frozen)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return f"the model does not start from stored states ({type(error).__name__}: {error})"
        if not difference <= tolerance:
            return f"from stored states, a log-probability differs by {difference:.2g} from the model's own ({tolerance:g} is allowed)"
    return None


def first_of_each(batches: Sequence[Sequence[Item]]) -> list[Sequence[Item]]:
    """Return the first batch of every combination of media."""
    return list({media_signature(batch[0]): batch for batch in reversed(batches)}.values())


def _not_all(entered: Entered, frozen: int) -> str | None:
    """Return why stored states do not suffice for the adapted layers, or None.

    The states are the residual stream, a mask of tokens, and positions.
    """
    if entered.hidden.dim() != 3:
        return "its decoder has several residual streams"
    if entered.hidden.shape[:2] != entered.mask.shape:
        return f"its decoder sees {entered.hidden.shape[1]} tokens where the prompt has {entered.mask.shape[1]}"
    given = {k: v for k, v in entered.given.items() if v is not None and not isinstance(v, bool | int | float | str)}
    late = given.pop("deepstack_visual_embeds", [])
    if len(late) > frozen:
        return f"visual features enter its decoder up to layer {len(late)}, and the first adapted one is {frozen + 1}"
    if other := sorted(given.keys() - UNDERSTOOD):
        return f"its decoder is also given {', '.join(other)}"
    mask = given.get("attention_mask")
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        return "attention between its tokens depends on the media"
    return None


@torch.inference_mode()
def max_difference(loaded: LoadedModel, laid: AnswerRows, media: MediaLoader, entered: Entered, frozen: int) -> float:
    """The largest difference of a log-probability at the answer positions.

    It compares the model's own forward with one from ``entered``.
    """
    model = unwrap_engine(loaded.model)
    inputs, length = prompt_with_answers(loaded, media, laid.rows)
    places = send_to_device(laid.tensors(length), loaded.device)
    stored = {"inputs_embeds": entered.hidden, "attention_mask": entered.mask}
    stored |= {} if entered.positions is None else {"position_ids": entered.positions}
    own = forward_part(model, {"prompt": send_to_device(inputs, loaded.device), **places})
    return float((forward_part(model, {"prompt": stored, "frozen": frozen, **places}) - own).abs().max())
