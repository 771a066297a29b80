"""What a chat completion that vLLM answers may hold, so that the reading is that of its prompt's end.

vLLM takes many keys that change where the prompt ends, or what it holds. So only the keys in
:data:`TAKEN` pass.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gapclose.core.errors import shown

LIMIT = "GAPCLOSE_MEGABYTES"
"""environment variable with the largest request in 10^6 bytes, for ``vllm serve``"""
MEGABYTES = "20"
"""its default"""
WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
TAKEN = {
    *("model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "min_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("logit_bias", "allowed_token_ids", "bad_words", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
    *("logprobs", "top_logprobs", "skip_special_tokens", "spaces_between_special_tokens", "return_tokens_as_token_ids"),
    *WITHOUT_EFFECT,
}
"""keys that act behind the prompt alone; ``stream`` must be false and ``n`` 1"""


def fault(body: bytes) -> str | None:
    """Return why a request cannot be read beside its answer, with the remedy; None where it can."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        return "the body is not a JSON object; send one with `model` and `messages`"
    given = {key: value for key, value in request.items() if value is not None}
    if unknown := sorted(set(given) - TAKEN):
        return f"the keys {shown(unknown)} may change the prompt or its end; send no others than {sorted(TAKEN)}"
    if given.get("stream"):
        return "an answer in a stream has no reading; ask for one whole answer"
    if (given.get("n") or 1) != 1:
        return f"n is {shown(given['n'])}, and only one answer has a reading; leave it out"
    return "the last message is the assistant's, which vLLM may continue; end with a message of the user" if _continues(given) else None


def _continues(request: dict[str, Any]) -> bool:
    """Whether the last message is the assistant's: vLLM continues it for Mistral's tokenizers."""
    messages = request.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def most_bytes() -> int:
    """Return the size of the largest request. Raises: ValueError for a limit that is no size."""
    given = os.environ.get(LIMIT) or MEGABYTES
    try:
        megabytes = float(given)
    except ValueError:
        megabytes = math.nan
    if not 0 < megabytes < math.inf:
        raise ValueError(f"the environment variable {LIMIT} is {given!r}; give a number of megabytes above 0, such as {MEGABYTES}")
    return int(megabytes * 1e6)


async def whole_body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], most: int) -> bytes | None:
    """Return the body of a request, or None as soon as it has more than ``most`` bytes."""
    content, more = bytearray(), True
    while more:
        message = await receive()
        content.extend(message.get("body", b""))
        if len(content) > most:
            return None
        more = message["type"] == "http.request" and message.get("more_body", False)
    return bytes(content)
