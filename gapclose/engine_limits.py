"""What only some engines can do, refused before anything is loaded."""

from __future__ import annotations

from gapclose.config import Config
from gapclose.objectives import BY_TRL


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
        if config.train.cache_trunk and config.model.sharded:
            found.append("train.cache_trunk is filled by a whole model, which model.sharded is to avoid; set one of them to false")
    if engine != "ddp" and config.model.quantisation is not None:
        found.append(f"model.quantisation {config.model.quantisation} is not supported under {engine}; use launch/ddp.yaml")
    if found:
        raise ValueError(f"these settings do not go with the engine {engine}:\n" + "\n".join(f"  - {fault}" for fault in found))
