"""Settings of the export."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gapclose.core.config_checks import Checks


@dataclass(kw_only=True)
class ExportConfig:
    """Exports of a run, their verification and their upload."""

    merged: bool = False
    """also write the model with the adapter merged in"""
    omni: bool = False
    """also write the complete omni checkpoint (Qwen2.5-Omni, Qwen3-Omni) with the adapter merged
    into its thinker; takes as much disk space as the base"""
    push: str | None = None
    """OWNER/NAME on the hub for the verified adapter; merged and omni go to OWNER/NAME-merged and
    OWNER/NAME-omni; null uploads nothing"""
    private: bool = True
    """create private repositories, and refuse existing public ones"""
    unimproved: bool = False
    """export the best epoch of a run even if no epoch is better on val than the base model"""
    verify: bool = True
    """reload the export in a fresh process and compare scores and answers"""
    tolerance: float = 1e-3
    """largest difference of an option score, in nats, that verification accepts for the adapter.
    For merged and omni exports it is 10 times as large in float32, and 200 times in half precision,
    where merging rounds every weight again (0.2 nats by default). Their generated answers may
    differ if the two best options lay nearer than that."""

    monitor_false_alarms: float = 0.05
    """largest share of the standard items of val that the exported monitor may flag, which bounds
    its threshold"""

    def __post_init__(self) -> None:
        with Checks(self, "export") as check:
            check.number("tolerance", above=0)
            check.number("monitor_false_alarms", least=0, below=1)
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
