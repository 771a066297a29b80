"""A video with its sound as one part, for families with such prompts (Qwen2.5-Omni, Qwen3-Omni).

The prompt then has frames and sound tokens in order of time. One part stands for both:
``{"type": "video", "path": ..., "sound": true}``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, content_parts


def interleave(items: ItemSet) -> ItemSet:
    """Return the set with videos and their sound tracks joined into one part.

    A sound track is joined if it directly follows the video part of the same file.
    """
    return replace(items, items=tuple(replace(i, messages=[_joined(m) for m in i.messages]) for i in items))


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    parts: list[dict[str, Any]] = []
    for part in message["content"]:
        before = parts[-1] if parts else {}
        if (part["type"], before.get("type")) == ("audio", "video") and part["path"] == before["path"]:
            parts[-1] = before | {"sound": True}
        else:
            parts.append(part)
    return {**message, "content": parts}


def is_interleaved(item: Item) -> bool:
    return any(part.get("sound") for part in content_parts(item.messages))
