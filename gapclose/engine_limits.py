"""What only some engines can do, refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable

from gapclose.config import Config
from gapclose.items import Item
from gapclose.objectives import BY_TRL
from gapclose.prompts import media_signature


def refuse_under_engine(config: Config, engine: str, processes: int, *, closing: bool) -> None:
    """Refuse, before anything is loaded, what only some engines can do.

    Raises:
        ValueError: naming every setting that does not go with ``engine``, and what to do.
    """
    found = []
    if config.model.sharded and (engine != "fsdp2" or processes < 2):
        found.append(f"model.sharded needs several processes under launch/fsdp2.yaml; this is {engine} on {processes}")
    if closing and engine != "ddp":
        if config.targets.rounds > 1:
            found.append(
                f"targets.rounds is {config.targets.rounds}: an engine cannot be started twice on one model; set 1, or use launch/ddp.yaml"
            )
        if config.objective in BY_TRL:
            found.append(f"objective {config.objective} is trained by TRL, which is not tried under {engine}; use launch/ddp.yaml")
        if config.train.cache_trunk:
            found.append(f"train.cache_trunk is not tried under {engine}; set it to false, or use launch/ddp.yaml")
    if engine != "ddp" and config.model.quantisation is not None:
        found.append(f"model.quantisation {config.model.quantisation} is not supported under {engine}; use launch/ddp.yaml")
    if found:
        raise ValueError(f"these settings do not go with the engine {engine}:\n" + "\n".join(f"  - {fault}" for fault in found))


def refuse_mixed_media(items: Iterable[Item], engine: str) -> None:
    """Refuse items of several kinds of media where training on them is not known to end: ZeRO-3 with several forwards to a backward pass.

    Raises:
        ValueError: naming the kinds, with one item of each.
    """
    kinds = {media_signature(item): item.id for item in items} if engine == "zero3" else {}
    if len(kinds) > 1:
        listed = "\n".join(f"  - {' and '.join(kind) or 'text alone'}, e.g. item {name!r}" for kind, name in kinds.items())
        raise ValueError(f"items of {len(kinds)} kinds of media are not supported under zero3; use launch/fsdp2.yaml:\n{listed}")
