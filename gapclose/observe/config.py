"""Settings of observation."""

from __future__ import annotations

from dataclasses import dataclass

from gapclose.core.config_checks import Checks
from gapclose.core.settings import AUTO


@dataclass(kw_only=True)
class ObserveConfig:
    """How items are run through the model."""

    batch_size: int = 32
    """items per forward; it changes half-precision residuals by about 1e-3, so it is part of an
    observation's fingerprint"""
    max_new_tokens: int = 8
    """length limit of generated answers, in tokens"""
    share_prefix: bool | str = AUTO
    """run what the prompts of a clip's questions have in common (its media, a passage) once, where
    template and model allow it. auto: true if a first try with the first clips gives the results of
    whole prompts, else false; ``auto.json`` of the run keeps the decision. What it comes to is part
    of an observation's fingerprint"""
    shared: str | None = None
    """directory in which runs share their observations of the base model; null: every run observes
    for itself"""
    versions: str = "same"
    """same: observations of other versions of torch, transformers or gapclose are refused, or made
    again where a run replaces them; any: they are used as they are"""
    shard_batches: int = 4
    """batches per file, which is the most that an interruption can lose"""

    @property
    def shares(self) -> bool:
        """``share_prefix`` of a configuration in which it is decided.

        Raises:
            ValueError: for auto, which only :func:`gapclose.observe.extract.observe` decides.
        """
        if self.share_prefix == AUTO:
            raise ValueError("observe.share_prefix is auto, and nothing is stored here by which it could be decided; give true or false")
        return bool(self.share_prefix)

    def __post_init__(self) -> None:
        with Checks(self, "observe") as check:
            check.number("batch_size", "shard_batches", "max_new_tokens", least=1)
            check.choice("versions", ("same", "any"))
            check.choice("share_prefix", (AUTO, True, False))
