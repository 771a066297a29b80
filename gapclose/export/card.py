"""The model card: what was measured, in words and figures, beside what it was measured of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapclose.export.serving import Served
from gapclose.export.write import base_name
from gapclose.files import read_json
from gapclose.gap import STATES
from gapclose.models import LoadedModel
from gapclose.objectives import IN_WORDS, settings_in_words
from gapclose.report.console import claims, show, verdict
from gapclose.report.summary import round_words
from gapclose.structure import unwrap

if TYPE_CHECKING:
    from gapclose.config import Config


def left_out(directory: Path) -> dict[str, Any]:
    """What of its data a run did without: items whose media could not be used, with the reason, and what a reader left out on purpose.

    Files are named as they lie in the data's directory; where that is, is nobody's business who is given the adapter.
    """
    path = directory / "items.json"
    found = read_json(path) if path.is_file() else {}
    root = f"{found.get('root', '')}/"

    def within(text: str) -> str:
        return text if root in ("/", "./") else text.replace(root, "")

    skipped = [{**entry, "fault": within(entry["fault"])} for entry in found.get("skipped", [])]
    return {"items": found.get("items"), "skipped": skipped, "notes": [within(note) for note in found.get("notes", [])]}


def title(summary: dict[str, Any], config: Config) -> str:
    """What the card may call the adapter: no more than was measured."""
    if config.targets.control != "none":
        return f"A control (targets.control: {config.targets.control}), not meant for use"
    if (
        summary["state"] == "closed"
        and not summary["stopped"]
        and summary["verdicts"]
        and all(v["word"] == "real" for v in summary["verdicts"].values())
    ):
        return "Adapter that lets the model act on what it represents"
    return f"Adapter of a run that ended in state `{summary['state']}`: {STATES[summary['state']]}"


def loading(kind: str, loaded: LoadedModel, config: Config) -> str:
    """How an export is loaded, by the class that was measured."""
    if kind == "omni":
        return "As the checkpoint that it was made of: every part but the decoder is that one's."
    name, how = type(unwrap(loaded.model)).__name__, f'.from_pretrained("{{}}", dtype="{config.model.dtype}")'
    lines = [f"from transformers import {name}", "", f"model = {name}{how.format(kind)}.eval()   # this directory, or its name on the hub"]
    if kind == "adapter":
        lines = [
            "from peft import PeftModel", *lines[:2], f"base = {name}{how.format(base_name(loaded))}",
            'model = PeftModel.from_pretrained(base, "adapter").eval()   # this directory, or its name on the hub',
        ]  # fmt: skip
    return "\n".join(["```python", *lines, "```"])


def model_card(
    summary: dict[str, Any],
    config: Config,
    loaded: LoadedModel,
    missing: dict[str, Any] | None = None,
    served: Served | None = None,
    *,
    kind: str = "adapter",
) -> str:
    """Markdown with the evidence: what was measured, on how many clips, by which probe, under which controls.

    Args:
        missing: :func:`left_out`.
        kind: of export that it lies in: adapter, merged or omni.
    """
    adapted, base = summary["adapted"], summary["base"]
    rows = "\n".join(
        f"| {label} | {show(base[key])} | {show(adapted[key])} |"
        for label, key in (
            ("action, balanced accuracy", "balanced"),
            ("action as generated, balanced accuracy", "generated_balanced"),
            ("standard accuracy", "standard_accuracy"),
            ("rejection rate", "rejection"),
            ("false alarms", "false_alarm"),
            ("action, AUROC", "auroc"),
            ("retention", "retention"),
        )
    )
    lines = [*claims(summary), *verdict(summary), *round_words(summary["rounds"])]
    if missing and missing["skipped"]:
        lines.append(
            f"{len(missing['skipped'])} items beside the {missing['items']} were left out, their media cannot be used (`left_out.json`)"
        )
    lines += missing["notes"] if missing else []
    lines += [served.sentence()] if served else []
    sentences = "\n".join(f"- {line}" for line in lines)
    later = [str(r["round"]) for r in summary["rounds"] if "action" in r]
    again = (
        f"; in round {' and '.join(later)} with a probe fitted again on the adapted model, whose reading has no verdict" if later else ""
    )
    return f"""---
library_name: peft
base_model: {base_name(loaded)}
tags: [gapclose, lora]
---

# {title(summary, config)}

Trained with gapclose: {IN_WORDS[config.objective]}{again}
({settings_in_words(config.objective, config.train)};
LoRA on `{config.lora.layers}`, targets control `{config.targets.control}`, seed {config.seed}).

## Loading

{loading(kind, loaded, config)}

## Evidence

Test: {summary["n_clips"]} clips, {summary["n_items"]} items, one seed, 95 % clip-bootstrap intervals. Epoch {summary["epoch"]} was chosen on validation clips;
test clips were used once.

| figure | base | adapted |
|---|---|---|
{rows}

{sentences}

All figures with intervals: `evidence.json`. Every setting: `config.yaml` of the run. Frozen probe: `probes/frozen.json`.

## Limits

The figures hold for the questions and clips they were measured on. A reading is evidence about these concepts in this model, not about others.
"""
