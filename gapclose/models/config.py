"""Settings of the model: its path, precision and attention."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapclose.core.config_checks import Checks

DTYPES = ("float32", "bfloat16", "float16")
"""names of the torch dtypes that a model can be loaded in"""
QUANTISED = ("8bit", "4bit")
"""kinds of quantised base models (:mod:`gapclose.models.quantization`)"""


def attention_names() -> tuple[str, ...]:
    """The attention implementations that transformers has for a forward of a complete prompt."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # only here: it takes seconds

    return ("eager", *sorted(n for n in ALL_ATTENTION_FUNCTIONS.valid_keys() if not n.startswith("paged|")))


SHIPPED = {"digits": "base", "digits-never-taught": "never_taught"}
"""name of a tiny model -> its folder in gapclose/data/digits/assets"""


@dataclass(kw_only=True)
class ModelConfig:
    """Which model to load, and how."""

    path: str = "digits"
    """checkpoint directory or hub name; ``digits`` and ``digits-never-taught`` are the tiny models
    of the package"""
    dtype: str = "auto"
    """auto (the dtype of the checkpoint), float32, bfloat16 or float16"""
    revision: str | None = None
    """branch, tag or commit of a hub name; null: its main branch"""
    quantisation: str | None = None
    """4bit or 8bit: quantise the decoder's linear modules by bitsandbytes, on a CUDA GPU; null:
    none"""
    attention: str = "sdpa"
    """attention implementation of transformers, e.g. sdpa, eager or flash_attention_2; or a kernel
    on the hub, OWNER/NAME"""
    template: dict[str, Any] | None = None
    """variables of the chat template, e.g. ``{enable_thinking: false}``; unknown names are refused"""
    trust_remote_code: bool = False
    """run code from the checkpoint; leave off unless you have read it"""
    sharded: bool = False
    """under launch/fsdp2.yaml, never hold the complete model on one GPU: the base model is observed
    in shards, and loaded again for training"""
    architecture: str | None = None
    """directory with a config.json, from which ``gapclose validate`` reads the model's sizes while
    ``path`` cannot be reached; not used elsewhere"""

    def __post_init__(self) -> None:
        with Checks(self, "model") as check:
            check.choice("dtype", ("auto", *DTYPES))
            check.choice("quantisation", QUANTISED, null="none")
            if check.sound("attention") and not self._attention_known():
                check.add(
                    f"{check.named('attention')}; choose one of {list(attention_names())}, or a kernel on the hub, OWNER/NAME", "attention"
                )
            for name, value in (self.template or {}).items() if check.sound("template") else ():
                plain = isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))
                if not str(name).isidentifier() or not plain:
                    message = f"model.template has {name!r}: {value!r}; give names of variables with a text, number, true, false or null"
                    check.add(message, "template")

    def _attention_known(self) -> bool:
        usual = self.attention in ("sdpa", "eager") or re.fullmatch(r"[\w.-]+/[\w.:@-]+", self.attention)
        return bool(usual) or self.attention in attention_names()

    @property
    def known(self) -> dict[str, Any]:
        """Arguments of every transformers loader besides the path."""
        return {"trust_remote_code": self.trust_remote_code, "revision": self.revision}

    @property
    def apart(self) -> dict[str, Any]:
        """Settings off their default that change results but not the checkpoint's fingerprint."""
        attention = {} if self.attention == "sdpa" else {"attention": self.attention}
        return {**attention, **({"template": self.template} if self.template else {})}

    @property
    def resolved_path(self) -> str:
        """The directory or hub name to load."""
        folder = SHIPPED.get(self.path)
        return self.path if folder is None else str(Path(__file__).parents[1] / "data" / "digits" / "assets" / folder)


def near_shipped(path: str) -> str:
    """Suggest a shipped model where a path nearly matches its name; else an empty text."""
    near = difflib.get_close_matches(path, SHIPPED, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
