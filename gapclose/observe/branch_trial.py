"""Find out whether a model reads the answers of an item in one row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import send_to_device

from gapclose.core.distributed import run_on_all_ranks
from gapclose.core.logging import get_logger
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.branches import branches_unsupported
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.models.sharding import unwrap_engine
from gapclose.models.structure import unwrap
from gapclose.observe.answer_rows import AnswerRows, answer_rows, prompt_with_answers
from gapclose.observe.forward import forward_part
from gapclose.observe.tolerance import allowed_difference

logger = get_logger(__name__)


def can_branch(loaded: LoadedModel, items: Sequence[Item], media: MediaLoader) -> bool:
    """Whether rows with several branches give what rows of their own give, on all processes alike.

    The model's settings are looked at first. Then a trial runs the first item with several contexts
    of every combination of media both ways, beside the one with the shortest text, so that one of
    them is padded. A reason against it is logged.
    """
    reasons = run_on_all_ranks(lambda: _refusal(loaded, items, media))
    reason = next((r for r in reasons if r is not None), None)
    if reason:
        logger.info(f"every answer of several tokens has a prompt of its own: {reason}")
    return reason is None


@torch.no_grad()
def _refusal(loaded: LoadedModel, items: Sequence[Item], media: MediaLoader) -> str | None:
    tried: dict[tuple[str, ...], Item] = {}
    for item in items:
        if media_signature(item) not in tried and len(answer_rows(loaded, [item], branching=False).rows) > 1:
            tried[media_signature(item)] = item
    if not tried:
        return None
    if reason := branches_unsupported(loaded.model):
        return reason
    dtype = next(unwrap(loaded.model).parameters()).dtype
    for kinds, item in tried.items():
        shortest = min((i for i in items if media_signature(i) == kinds), key=lambda i: len(i.text))
        pair = [item, shortest]
        try:
            apart, together = (_answers(loaded, answer_rows(loaded, pair, branching=b), media) for b in (False, True))
            alone = _answers(loaded, answer_rows(loaded, [item], branching=False), media)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, LookupError) as error:
            return f"a first try failed ({type(error).__name__}: {error})"
        allowed = allowed_difference(dtype, apart[: len(alone)], alone)
        if not (difference := float((apart - together).abs().max())) <= allowed:
            return f"in one row, a log-probability differs by {difference:.2g} ({allowed:.2g} is allowed)"
    return None


def _answers(loaded: LoadedModel, laid: AnswerRows, media: MediaLoader) -> torch.Tensor:
    """Log-probabilities of the answer tokens, (G,)."""
    prompt, length = prompt_with_answers(loaded, media, laid.rows)
    part = send_to_device({"prompt": prompt, **laid.tensors(length)}, loaded.device)
    return forward_part(unwrap_engine(loaded.model), part)[part["place"], part["token"]]
