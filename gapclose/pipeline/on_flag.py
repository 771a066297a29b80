"""What to do with an answer that the monitor flags: ask again with a hint, abstain, or escalate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapclose.pipeline.monitor_results import MonitoredAnswer

Messages = Sequence[dict[str, Any]]
OnFlag = str | Callable[[Messages, "MonitoredAnswer"], str | None]
"""a name of :data:`BUILT_IN`, or a function of the messages and the flagged answer that returns
another text, or None to keep the answer"""
BUILT_IN = ("ask_again", "abstain", "escalate")
HINT = "First check whether everything that the question says is true of what you were given. If it is not, say so."
"""appended to the last user message by ``ask_again``"""
ABSTENTION = "I do not answer this, because a premise of the question seems to be false."
"""answer of ``abstain``"""


def check_on_flag(on_flag: OnFlag | None, escalate: Callable[[Messages], str] | None) -> None:
    """Refuse a handler that does not exist, or ``escalate`` without its function.

    Raises:
        ValueError: naming what is missing.
    """
    if isinstance(on_flag, str) and on_flag not in BUILT_IN:
        raise ValueError(f"on_flag is {on_flag!r}; choose one of {list(BUILT_IN)}, or give a function of messages and answer")
    if (on_flag == "escalate") != (escalate is not None):
        raise ValueError('on_flag "escalate" and the argument escalate, a function of the messages, go together; give both or neither')


def other_texts(
    on_flag: OnFlag,
    escalate: Callable[[Messages], str] | None,
    flagged: Sequence[tuple[Messages, MonitoredAnswer]],
    ask: Callable[[list[Messages]], list[str]],
) -> list[str | None]:
    """Return the texts that replace flagged answers; None where an answer stays.

    Args:
        ask: asks the model, without the monitor.
    """
    if on_flag == "ask_again":
        return list(ask([with_hint(messages) for messages, _ in flagged]))
    if on_flag == "abstain":
        return [ABSTENTION for _ in flagged]
    if on_flag == "escalate":
        assert escalate is not None
        return [escalate(messages) for messages, _ in flagged]
    assert not isinstance(on_flag, str)
    return [on_flag(messages, answer) for messages, answer in flagged]


def with_hint(messages: Messages) -> Messages:
    """Return the messages with :data:`HINT` at the end of the last user message."""
    last = max((n for n, m in enumerate(messages) if m["role"] == "user"), default=len(messages) - 1)
    content = messages[last]["content"]
    hinted = f"{content}\n{HINT}" if isinstance(content, str) else [*content, {"type": "text", "text": HINT}]
    return [{**m, "content": hinted} if n == last else m for n, m in enumerate(messages)]
