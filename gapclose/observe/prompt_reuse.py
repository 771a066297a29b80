"""Find out whether generated answers can continue the forward that scored the options.

Without this, generation reads every prompt a second time.

Shapes: B batch, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gapclose.core.logging import get_logger
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.hooks import reset_rope_deltas
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.models.sharding import is_sharded, unwrap_engine
from gapclose.models.structure import unwrap
from gapclose.observe.forward import generate_tokens, read_batch
from gapclose.observe.prefix_cache import next_logits
from gapclose.observe.request import ObservationRequest
from gapclose.observe.tolerance import allowed_difference

TRIED = 3
"""tokens that the trial generates"""
LIKELIEST = 100
"""tokens that the trial compares at each position, the likeliest: greedy answers consist of them"""

logger = get_logger(__name__)


class PromptReuse:
    """Whether answers to a batch continue its forward.

    It is tried once for every combination of media, and once more at the first batch of it that is
    padded. The trial generates a few tokens behind the shortest and the longest prompt of the batch,
    by transformers' ``generate`` and from the cache that scoring leaves. A reason against it is
    logged, and then prompts are read again. So they are under a sharded model, whose processes must run equally many
    forwards, which ``generate`` sees to.
    """

    def __init__(self, loaded: LoadedModel, media: MediaLoader) -> None:
        self.loaded, self.media = loaded, media
        self._allowed: dict[tuple[tuple[str, ...], bool], bool] = {}

    def allows(self, batch: Sequence[Item], mask: torch.Tensor) -> bool:
        """Whether the answers to ``batch``, whose items have the same kinds of media, continue it.

        Args:
            mask: (B, T) attention mask of its prompts.
        """
        if is_sharded(self.loaded.model):
            return False
        lengths = mask.sum(1)
        kind = media_signature(batch[0]), bool((lengths < mask.shape[1]).any())
        if kind not in self._allowed:
            ends = dict.fromkeys((int(lengths.argmin()), int(lengths.argmax())))
            reason = reuse_refusal(self.loaded, [batch[n] for n in ends], self.media)
            if reason:
                logger.info(f"answers to questions with {' and '.join(kind[0]) or 'text'} read their prompts again: {reason}")
            self._allowed[kind] = reason is None
        return self._allowed[kind]


@torch.no_grad()
def reuse_refusal(loaded: LoadedModel, few: Sequence[Item], media: MediaLoader) -> str | None:
    """Return why the answers to ``few`` items cannot continue the forward of their scores, or None."""
    model = unwrap_engine(loaded.model)
    inputs = {name: value.to(loaded.device) for name, value in loaded.prompts(few, media).items()}
    how = {"min_new_tokens": TRIED, "output_logits": True, "return_dict_in_generate": True}
    reset_rope_deltas(model)
    expected = generate_tokens(loaded, model, inputs, TRIED, how)
    tokens = expected.sequences[:, inputs["input_ids"].shape[1] :]
    reset_rope_deltas(model)
    try:
        logp, _, _, cache = read_batch(loaded, few, inputs, ObservationRequest(), keep=True)
        if cache is None:
            return "the model returns no cache"
        asked: dict[str, Any] = {**inputs, "past_key_values": cache}
        found = [logp, *(next_logits(model, asked, tokens[:, t]).float().log_softmax(-1) for t in range(TRIED - 1))]
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        return f"a first try failed ({type(error).__name__}: {error})"
    whole = torch.stack([logits.float().log_softmax(-1) for logits in expected.logits])  # (TRIED, B, V)
    likely = whole.topk(min(LIKELIEST, whole.shape[-1]), dim=-1).indices
    here, mine = whole.gather(-1, likely), torch.stack(found).gather(-1, likely)
    elsewhere = _next_of_first(loaded, few, media).gather(-1, likely[0, 0])
    difference, allowed = float((mine - here).abs().max()), allowed_difference(unwrap(loaded.model).dtype, here[0, 0], elsewhere)
    return None if difference <= allowed else f"from the cache, a log-probability differs by {difference:.2g} ({allowed:.2g} is allowed)"


def _next_of_first(loaded: LoadedModel, few: Sequence[Item], media: MediaLoader) -> torch.Tensor:
    """Return the log-probabilities of the next token of the first item in another batch, (V,)."""
    other = few[:1] if len(few) > 1 else [few[0], few[0]]
    inputs = {name: value.to(loaded.device) for name, value in loaded.prompts(other, media).items()}
    reset_rope_deltas(unwrap_engine(loaded.model))
    return read_batch(loaded, other, inputs, ObservationRequest())[0][0]
