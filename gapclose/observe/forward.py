"""One forward of a batch: residuals at the answer position, scores of the options, and greedy answers.

Shapes: B batch, T prompt tokens, D width, O options (padded to the longest list), V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from gapclose.data.items import Item
from gapclose.models.branches import branched
from gapclose.models.hooks import answer_logits, capture_residuals, last_logits, patched_at, reset_rope_deltas, skip_layers
from gapclose.models.loading import LoadedModel
from gapclose.models.sharding import all_reduce_max, is_sharded, unsharded_root, unwrap_engine
from gapclose.models.structure import unwrap
from gapclose.observe.prefix_cache import continuation_positions

if TYPE_CHECKING:
    from gapclose.observe.request import ObservationRequest


def read_batch(
    loaded: LoadedModel, batch: Sequence[Item], inputs: dict[str, torch.Tensor], wanted: ObservationRequest, *, keep: bool = False
) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor], Any]:
    """Score the options and capture the residuals of a batch in one forward of the prompts.

    Args:
        keep: return the cache of the prompts too, so that answers can continue it.

    Returns:
        Log-probabilities of the next token (B, V) and of the options (B, O), residuals by layer
        (B, D), and the key-value cache of the prompts (None without ``keep``).
    """
    model, rows = unwrap_engine(loaded.model), torch.arange(len(batch), device=loaded.device)
    last = torch.full_like(rows, inputs["input_ids"].shape[1] - 1)
    options = [[loaded.option_tokens(o.text) for o in item.options] for item in batch]
    longer = [o for o in range(max(map(len, options))) if any(len(tokens) > 1 for per_item in options for tokens in per_item[o : o + 1])]
    rereads: list[int | None] = [*longer, *[None] * (all_reduce_max(len(longer)) - len(longer))] if is_sharded(model) else [*longer]
    donors = {layer: torch.stack([of[i.id] for i in batch]) for layer, of in wanted.patch.items()}
    with patched_at(model, last, donors), capture_residuals(model, wanted.layers, last) as residuals, answer_logits(model, rows, last):
        output = model(**inputs, use_cache=keep or bool(rereads) or "past_key_values" in inputs)
    logp = output.logits[0].float().log_softmax(-1)  # (B, V)
    scores = _score(model, logp, options, rereads, inputs, output.past_key_values)
    return logp, scores, residuals, output.past_key_values if keep else None


def _score(
    model: Any, logp: torch.Tensor, options: list[list[list[int]]], rereads: list[int | None], inputs: dict[str, torch.Tensor], cache: Any
) -> torch.Tensor:
    """Summed token log-probabilities of every option, (B, O).

    First tokens come from the prompt's own forward (``logp``, (B, V)). Longer options continue its
    key-value cache, so the media are read once. They do so one option index at a time, which leaves
    the batch (and a model's stored rotary offsets) unchanged. ``rereads`` lists these indices; None
    is a forward that only other processes need, and its result is dropped.
    """
    size, width = len(options), max(len(o) for o in options)
    scores = torch.full((size, width), -torch.inf, device=logp.device)
    for b, per_item in enumerate(options):
        first = torch.tensor([tokens[0] for tokens in per_item], device=logp.device)
        scores[b, : len(per_item)] = logp[b, first]
    for o in rereads:
        rest = [per_item[o] if o is not None and o < len(per_item) else per_item[0][:1] for per_item in options]
        steps = max(1, max(len(tokens) for tokens in rest) - 1)
        fed = torch.zeros((size, steps), dtype=torch.long)
        mask = torch.zeros((size, steps), dtype=inputs["attention_mask"].dtype)
        for b, tokens in enumerate(rest):
            fed[b, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            mask[b, : len(tokens) - 1] = 1
        attention = torch.cat([inputs["attention_mask"], mask.to(logp.device)], 1)
        positions = continuation_positions(model, attention, steps, counted="position_ids" in inputs)
        places = {"input_ids": fed.to(logp.device), "attention_mask": attention, "position_ids": positions}
        out = model(**places, past_key_values=copy.deepcopy(cache), use_cache=True)
        later = out.logits.float().log_softmax(-1)  # (B, steps, V)
        for b, tokens in enumerate(rest):
            for t, token in enumerate(tokens[1:]):
                scores[b, o] += later[b, t, token]
    return scores


def generate(
    loaded: LoadedModel, model: Any, inputs: dict[str, torch.Tensor], max_new_tokens: int, sampling: Mapping[str, Any] | None = None
) -> list[str]:
    """Generate answers from the logits alone, greedy unless ``sampling`` says otherwise.

    A repetition penalty or another setting of the checkpoint could give answers that disagree with
    the scores.

    Args:
        sampling: further arguments of transformers' ``generate``, e.g. ``{"do_sample": True}``.
    """
    generated = generate_tokens(loaded, model, inputs, max_new_tokens, sampling)
    return loaded.tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def generate_tokens(
    loaded: LoadedModel, model: Any, inputs: dict[str, torch.Tensor], max_new_tokens: int, sampling: Mapping[str, Any] | None = None
) -> Any:
    """Do as :func:`generate`; return what transformers' ``generate`` returns, by default tokens (B, T + new)."""
    base, tokenizer = unwrap(model), loaded.tokenizer
    own = base.generation_config  # generate() takes missing arguments from there
    ends = {"eos_token_id": own.eos_token_id, "bos_token_id": own.bos_token_id}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    base.generation_config = transformers.GenerationConfig(**ends, pad_token_id=pad)
    try:
        with last_logits(base), unsharded_root(model):
            how = {"do_sample": False, "num_beams": 1, **(sampling or {})}
            return base.generate(**inputs, max_new_tokens=max_new_tokens, **how, synced_gpus=is_sharded(model))
    finally:
        base.generation_config = own


def forward_part(model: Any, part: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities (P, V) at the answer positions of a part, from stored states or media.

    Parts come from :class:`gapclose.training.collator.Collator`.
    """
    prompt = part["prompt"]
    reset_rope_deltas(model)
    below = skip_layers(model, range(1, part.get("frozen", 0) + 1), prompt.get("inputs_embeds"))
    with below, branched(model, part.get("branch")), answer_logits(model, part["rows"], part["positions"]):
        return model(**prompt, use_cache=False).logits[0].float().log_softmax(-1)
