"""Settings of the export."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gapclose.core.config_checks import Checks


@dataclass(kw_only=True)
class ExportConfig:
    """What a run leaves behind for others."""

    merged: bool = False
    """also write the model with the adapter merged in"""
    omni: bool = False
    """also write the whole omni checkpoint (Qwen2.5-Omni, Qwen3-Omni) with the adapter folded into its thinker; takes as much disk as the base"""
    push: str | None = None
    """OWNER/NAME on the hub: upload what was verified there (merged and omni as OWNER/NAME-merged and -omni); null uploads nothing"""
    private: bool = True
    """create repositories that only their owner can read"""
    unimproved: bool = False
    """export the best epoch of a run even where none does better on val than the base model"""
    verify: bool = True
    """reload the export in a fresh process and compare scores and answers"""
    tolerance: float = 1e-3
    """largest difference of an option score, in nats, that --verify accepts for the adapter; for the merged model ten times as much in
    float32, and in half precision, where merging rounds every weight again, 200 times as much (0.2 nats by default); there a generated
    answer may differ, too, where the two best options lay nearer than that"""

    def __post_init__(self) -> None:
        with Checks(self, "export") as check:
            check.number("tolerance", above=0)
            if self.push is None or not check.sound("push"):
                return
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
                check.add(f"{check.named('push')}; write OWNER/NAME", "push")
                return
            from huggingface_hub.errors import HFValidationError  # only here: it takes a third of a second
            from huggingface_hub.utils import validate_repo_id

            for kind in ("", *(f"-{kind}" for kind in ("merged", "omni") if getattr(self, kind) is True)):
                try:
                    validate_repo_id(f"{self.push}{kind}")
                except HFValidationError as error:
                    check.add(f"{check.named('push')}, which the hub refuses: {error}", "push")
                    break
            if self.verify is False:
                message = "export.push uploads what was verified, and export.verify is false; set it true, or leave export.push out"
                check.add(message, "push", "verify")
