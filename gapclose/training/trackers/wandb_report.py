"""A saved report of Weights & Biases: the headline figures per epoch over the runs of a project, and their evidence."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapclose.core.errors import in_one_line
from gapclose.core.files import write_text
from gapclose.core.imports import MissingPackage, require
from gapclose.training.trackers.figures import TEST_FIGURES
from gapclose.training.trackers.wandb_service import mode, service, why_unreached

EPOCHS = ("gap/balanced", "action/balanced", "reading/balanced", "closure", "standard_accuracy", "retention")
"""headline figures that the report draws over the epochs of ``val``"""
SIDES = ("base", "adapted")
COLUMNS = (
    "run:displayName", "summary:state", "summary:best/epoch", *(f"summary:best/{name}" for name in EPOCHS),
    *(f"summary:test/{side}/{name}" for name in TEST_FIGURES for side in SIDES if (side, name) != ("base", "closure")),
)  # fmt: skip
"""columns of its table of runs, as the run's summary names them"""
CHECKS = "controls"
"""the logged table of verdicts and controls"""
WORDS = """Figures of a run of gapclose. The *gap* is the probe's reading minus the model's action, both as balanced accuracies.
*Closure* is the gain of the action as a share of the base model's gap. Epoch 0 is the base model. Training and the choice of
an epoch use `val`; `test` is measured for the base model and for the chosen epoch."""


def build(project: str, entity: str, runs: Sequence[str], *, by_group: bool, title: str | None) -> Any:
    """Return the report, as ``wandb_workspaces`` holds it.

    Args:
        project: whose runs it shows.
        entity: owner of the project. With an empty name nothing is looked up, and the run set belongs to the
            report's own project.
        runs: names of runs; empty for all runs of the project.
        by_group: draw the mean of each group, instead of a line per run.
        title: null: names the project.

    Raises:
        MissingPackage: when ``wandb_workspaces`` is not installed.
        ValueError: when there is no such project.
    """
    service()
    wr = require("wandb_workspaces.reports.v2", "wandb-report", "gapclose wandb-report")

    def grid(panels: Sequence[Any], **columns: Any) -> Any:
        shown = wr.Runset(
            entity=entity, project=project if entity else "", name="groups" if by_group else "runs", groupby=["group"] if by_group else [],
            filters=f"Metric('Name') in {[*runs]!r}" if runs else "", **columns,
        )  # fmt: skip
        return wr.PanelGrid(runsets=[shown], panels=[*panels])

    lines = [wr.LinePlot(title=name, x="epoch", y=[name], layout=wr.Layout(w=8, h=7)) for name in EPOCHS]
    bars = [
        wr.BarPlot(title=f"{name} on test", metrics=[f"test/{side}/{name}" for side in SIDES], layout=wr.Layout(w=8, h=7))
        for name in TEST_FIGURES
        if name != "closure"
    ]
    checks = wr.WeavePanelSummaryTable(table_name=CHECKS, layout=wr.Layout(w=24, h=12))
    table = {"visible_columns": [*COLUMNS], "column_order": [*COLUMNS], "lock_columns": True}
    blocks = [
        wr.MarkdownBlock(text=WORDS),
        *(wr.H2(text="Per epoch, on val"), grid(lines)),
        *(wr.H2(text="On test, base model and chosen epoch"), grid(bars, **table)),
        *(wr.H2(text="Evidence: verdicts and controls"), grid([checks])),
    ]
    about = "Gap, action, reading, closure and evidence; written by gapclose wandb-report."
    return wr.Report(
        project=project, entity=entity, title=title or f"gapclose: {project}"[:128], description=about, blocks=blocks, width="fluid"
    )


def write_report(report: Any, path: Path) -> None:
    """Write the report's specification as JSON, without a network."""
    model = report._to_model()  # what Report.save sends; the public `_spec` of 0.4.13 raises
    found = {"project": report.project, "title": report.title, "description": report.description}
    found |= {"entity": report.entity} if report.entity else {}
    write_text(
        path, json.dumps(found | {"spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))}, indent=1) + "\n"
    )


def save_report(project: str, entity: str | None, runs: Sequence[str], *, by_group: bool, title: str | None) -> str:
    """Save the report in the service and return its address.

    Raises:
        ValueError: when the service cannot be reached or refuses.
    """
    remedy = "; --out FILE writes the report's specification without the service"
    if (found := mode()) != "online":
        raise ValueError(f"WANDB_MODE is {found}, and a report is saved online{remedy}")
    if reason := why_unreached():
        raise ValueError(f"{reason}{remedy}")
    try:
        owner = entity or os.environ.get("WANDB_ENTITY") or service().Api().default_entity
        return build(project, owner, runs, by_group=by_group, title=title).save().url
    except MissingPackage:
        raise
    except Exception as error:  # client, library and service raise errors of many kinds
        raise ValueError(f"the report of {project} was not saved: {in_one_line(error)}{remedy}") from error
