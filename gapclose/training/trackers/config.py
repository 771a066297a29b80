"""Settings of the trackers."""

from __future__ import annotations

from dataclasses import dataclass, field

from gapclose.core.config_checks import Checks
from gapclose.training.trackers.names import LONGEST, NOT_IN_PROJECTS

TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
"""names that ``tracking`` may hold"""
UPLOADS = ("examples", "media", "items")
"""what Weights & Biases may be given of the user's data"""


@dataclass(kw_only=True)
class TrackingConfig:
    """Names of a run in its trackers, and what Weights & Biases is given of the data."""

    project: str = "gapclose"
    """project (of MLflow: experiment), at most 128 characters without any of / \\ # ? % :"""
    name: str | None = None
    """run name, at most 128 characters; null: the name of the run directory"""
    group: str | None = None
    """group of runs, at most 128 characters; null: the same for all seeds of data, model, objective and control"""
    upload: list[str] = field(default_factory=list)
    """data that Weights & Biases gets, by default none: examples (questions and answers before and
    after), media (of those examples), items (the item file, without media)"""

    def __post_init__(self) -> None:
        with Checks(self, "wandb") as check:
            check.choice("upload", UPLOADS)
            if check.sound("upload") and "media" in self.upload and "examples" not in self.upload:
                check.add(f"{check.named('upload')}; media are those of the examples, so name examples too", "upload")
            for name in ("project", "name", "group"):
                if check.sound(name) and len(getattr(self, name) or "") > LONGEST:
                    check.add(f"{check.named(name)}; Weights & Biases takes at most {LONGEST} characters", name)
            if check.sound("project") and (wrong := sorted(set(self.project) & set(NOT_IN_PROJECTS))):
                message = f"{check.named('project')}; Weights & Biases takes no {' '.join(wrong)} in it"
                check.add(f"{message} (an owner is named by WANDB_ENTITY, not here)" if "/" in wrong else message, "project")
