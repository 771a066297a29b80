"""Export the adapted model with its evidence, and verify that what was written is what was measured.

``adapter/`` (PEFT, safetensors) is always written, ``merged/`` on request; both carry a model card and ``evidence.json``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gapclose.adapters import load_adapter
from gapclose.files import read_json, write_json, write_text
from gapclose.gap import STATES
from gapclose.models import LoadedModel, ModelConfig, load_model, load_processor
from gapclose.objectives import IN_WORDS, settings_in_words
from gapclose.progress import say
from gapclose.report.console import claims, show, verdict
from gapclose.report.summary import round_words

if TYPE_CHECKING:
    from gapclose.config import Config

VERIFIED_ITEMS = 64
DIFFERS = 3
"""exit status of the verifying process when an export differs from what was measured"""


def export_run(directory: Path, config: Config, loaded: LoadedModel, summary: dict[str, Any]) -> None:
    """Write ``adapter/`` (and ``merged/``) from the model as it stands, then verify them in a fresh process if asked to."""
    adapter = directory / "adapter"
    write_adapter(loaded, adapter)
    _write_evidence(adapter, directory, config, loaded, summary)
    say(f"wrote {adapter}")
    if config.export.merged:
        merged = directory / "merged"
        write_merged(loaded, config.model, merged)
        _write_evidence(merged, directory, config, loaded, summary)
        say(f"wrote {merged}")
    if config.export.verify:
        verify_in_fresh_process(directory)


def write_adapter(loaded: LoadedModel, folder: Path) -> None:
    """The adapter alone, as PEFT loads it, in place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    loaded.model.save_pretrained(str(folder))


def write_merged(loaded: LoadedModel, config: ModelConfig, folder: Path) -> None:
    """The adapted model with the adapter folded in, and its processor, as transformers loads them, in place of what was there.

    The processor is the checkpoint's, read again: one that was used may have taken up how its last batch was padded.
    """
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(loaded.model).merge_and_unload().save_pretrained(str(folder))
    load_processor(config).save_pretrained(str(folder))


def _write_evidence(folder: Path, directory: Path, config: Config, loaded: LoadedModel, summary: dict[str, Any]) -> None:
    write_json(folder / "evidence.json", summary)
    missing = left_out(directory)
    if missing["skipped"] or missing["notes"]:
        write_json(folder / "left_out.json", missing)
    write_text(folder / "README.md", model_card(summary, config, loaded, missing))


def left_out(directory: Path) -> dict[str, Any]:
    """What of its data a run did without: items whose media could not be used, with the reason, and what a reader left out on purpose."""
    path = directory / "items.json"
    found = read_json(path) if path.is_file() else {}
    return {"items": found.get("items"), "skipped": found.get("skipped", []), "notes": found.get("notes", [])}


def verify_in_fresh_process(directory: Path) -> dict[str, Any]:
    """Reload every export of a run in a new interpreter and compare it with the stored test observations.

    Raises:
        ValueError: with the process's own message, when an export differs from what was measured.
        RuntimeError: with its traceback, when that process failed in another way.
    """
    command = [sys.executable, "-W", "ignore", "-m", "gapclose.export", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=_single_process_environment())
    if result.returncode == DIFFERS:
        raise ValueError(f"{directory}: the export does not reproduce what was measured:\n{result.stderr.strip()}")
    if result.returncode:
        raise RuntimeError(f"{directory}: verifying the export failed (status {result.returncode}):\n{result.stderr.strip()}")
    verified = json.loads(result.stdout.strip().splitlines()[-1])
    write_json(directory / "adapter" / "verified.json", verified)
    for name, facts in verified.items():
        say(f"verified {name}: {facts['items']} items, largest score difference {facts['largest_difference']:.2g} nats, same answers")
    return verified


def _single_process_environment() -> dict[str, str]:
    """This process's environment without what a launcher put there, so that the child does not join the group."""
    import os

    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")
    return {k: v for k, v in os.environ.items() if k not in launcher and not k.startswith(("TORCHELASTIC_", "ACCELERATE_", "FSDP_"))}


def verify(directory: Path) -> dict[str, Any]:
    """Load each export as a user would and compare scores and answers with the stored observations of the adapted model.

    Raises:
        ValueError: when no adapter key applies, an adapter is all zeros, a score differs beyond the tolerance, or an answer differs.
    """
    import transformers

    from gapclose.config import parse_config
    from gapclose.observations import read_observations
    from gapclose.observe import Wanted, forward_batches, plan_batches
    from gapclose.validate import prepare_items

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # what goes to stderr here is the message of the caller's error
    config = parse_config(["--config", str(directory / "config.yaml"), "--run_dir", str(directory)])
    stored = read_observations(directory / "observations" / "adapted-test")
    items = prepare_items(config, closing=False).select(split="test")
    # whole batches, cut as they were: other padding would be another computation in half precision
    known = set(stored.ids)
    chosen = [i for i in items if i.id in known]
    batches = plan_batches(chosen, config.observe.batch_size)[: max(1, VERIFIED_ITEMS // config.observe.batch_size)]
    result: dict[str, Any] = {}
    for name in ("adapter", "merged"):
        folder = directory / name
        if not folder.is_dir():
            continue
        loaded = (
            load_adapter(config.model, folder) if name == "adapter" else load_model(dataclasses.replace(config.model, path=str(folder)))
        )
        exact = loaded.model.dtype == torch.float32
        factor = 1.0 if name == "adapter" else 10.0 if exact else 200.0
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        seen = forward_batches(loaded, batches, loaded.media(items), config.observe, Wanted(generate=True))
        before = stored.take(seen.ids)
        measured = before.scores[:, : seen.scores.shape[1]]  # as wide as the longest option list of the whole split
        difference = float((seen.scores - measured)[torch.isfinite(measured)].abs().max())
        if not difference <= factor * config.export.tolerance:
            raise ValueError(
                f"{folder}: option scores differ by up to {difference:.3g} nats from those measured (tolerance {factor * config.export.tolerance:g})"
            )
        other = [i for i, a, b in zip(seen.ids, seen.answers or [], before.answers or [], strict=True) if a != b]
        if other:
            raise ValueError(f"{folder}: {len(other)} generated answers differ from those measured, e.g. of item {other[0]!r}")
        result[name] = {"items": len(seen), "largest_difference": difference}
    return result


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


def model_card(summary: dict[str, Any], config: Config, loaded: LoadedModel, missing: dict[str, Any] | None = None) -> str:
    """Markdown with the evidence: what was measured, on how many clips, by which probe, under which controls; ``missing``: :func:`left_out`."""
    adapted, base = summary["adapted"], summary["base"]
    rows = "\n".join(
        f"| {label} | {show(base[key])} | {show(adapted[key])} |"
        for label, key in (
            ("action, balanced accuracy", "balanced"),
            ("action as generated, balanced accuracy", "generated_balanced"),
            ("standard accuracy", "standard_accuracy"),
            ("false premises rejected", "rejection"),
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
    sentences = "\n".join(f"- {line}" for line in lines)
    later = [str(r["round"]) for r in summary["rounds"] if "action" in r]
    again = (
        f"; in round {' and '.join(later)} with a probe fitted again on the adapted model, whose reading has no verdict" if later else ""
    )
    return f"""---
library_name: peft
base_model: {Path(loaded.path).name if Path(loaded.path).exists() else loaded.path}
tags: [gapclose, lora]
---

# {title(summary, config)}

Trained with gapclose: {IN_WORDS[config.objective]}{again}
({settings_in_words(config.objective, config.train)};
LoRA on `{config.lora.layers}`, targets control `{config.targets.control}`, seed {config.seed}).

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


if __name__ == "__main__":
    try:
        print(json.dumps(verify(Path(sys.argv[1]))))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(DIFFERS)
