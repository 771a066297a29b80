"""Follow the tokens of one answer while ``generate`` writes it: text as it comes, and log-probabilities.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from itertools import takewhile
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

LOWEST = -9999.0
"""the log-probability of an impossible token, as OpenAI writes it"""
Heard = Callable[[str, list[dict[str, Any]]], None]


class Stopped(Exception):
    """Nobody waits for this answer any more."""


class Revised(RuntimeError):
    """A later token changed text that had been sent already."""


class TokenRecorder(BaseStreamer, LogitsProcessor):
    """Both streamer and logits processor of one call of ``generate`` with one conversation.

    Log-probabilities are those of the model, before temperature and ``top_p``. The token that ends
    an answer is counted, and belongs neither to the text nor to the log-probabilities.

    Tokenizers that clean up spaces change earlier text ("do n" becomes "don't"). So text is sent when
    the next token leaves it as it is, and the rest at the end.

    Args:
        tokenizer: decodes the tokens.
        ends: ids of tokens that end an answer.
        top: how many of the most probable tokens to list at each position; None records no
            log-probabilities.
        heard: receives each new piece of text, with the log-probabilities of its tokens.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], top: int | None, heard: Heard | None = None) -> None:
        self.tokenizer, self.ends, self.top, self.heard = tokenizer, ends, top, heard
        self.prompt_tokens, self.tokens, self.logprobs = 0, list[int](), list[dict[str, Any]]()
        self.stopped = False
        """set it from another thread to end the generation"""
        self.sent, self._listed, self._before = "", 0, ""
        self._scores = deque[torch.Tensor]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Keep the log-probabilities of the next token; ``scores`` (1, V) stay as they are."""
        if self.top is not None:
            self._scores.append(scores[0].float().log_softmax(-1).cpu())
        return scores

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token at a time.

        Raises:
            Stopped: when nobody waits for the answer.
        """
        if self.stopped:
            raise Stopped
        if not self.prompt_tokens:
            self.prompt_tokens = value.numel()
            return
        token = int(value.item())
        self.tokens.append(token)
        if token in self.ends:
            return
        if self.top is not None:
            self.logprobs.append(self._entry(token, self._scores.popleft()))
        if self.heard:
            text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
            whole = text.rstrip("\ufffd")  # half of a character waits for the other half
            kept = takewhile(lambda pair: pair[0] == pair[1], zip(self._before, whole, strict=False))
            self._send("".join(letter for letter, _ in kept))
            self._before = whole

    def end(self) -> None:
        """Called by ``generate`` after the last token."""

    def finish(self, text: str) -> None:
        """Send what is left of the whole answer ``text``.

        Raises:
            Revised: when what was sent is not how the answer begins.
        """
        if not text.startswith(self.sent):
            raise Revised("the tokenizer changed text that was sent already, so the pieces are not the answer; ask for it without `stream`")
        self._send(text)

    @property
    def ended(self) -> bool:
        """Whether the model ended its answer, and no limit did."""
        return bool(self.tokens) and self.tokens[-1] in self.ends

    def _send(self, text: str) -> None:
        fresh = text[len(self.sent) :] if text.startswith(self.sent) else ""
        listed = self.logprobs[self._listed :]
        if self.heard and (fresh or listed):
            self.heard(fresh, listed)
            self.sent, self._listed = self.sent + fresh, len(self.logprobs)

    def _entry(self, token: int, logp: torch.Tensor) -> dict[str, Any]:
        best = logp.topk(min(self.top or 0, len(logp)))
        top = [self._one(i, p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return {**self._one(token, float(logp[token])), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(text.encode())}
