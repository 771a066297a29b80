"""The model card of an export: its measurements in words and figures, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from gapclose.core.files import read_json
from gapclose.evaluation.monitor_file import MonitorFile
from gapclose.evaluation.summary_text import claims, round_words, show, verdict
from gapclose.export.context import ExportSettings
from gapclose.export.peft import checkpoint_name
from gapclose.export.vllm import Served
from gapclose.metrics.status import STATES
from gapclose.models.architecture import auto_class
from gapclose.models.config import SHIPPED
from gapclose.models.loading import LoadedModel
from gapclose.models.quantization import quantised_settings
from gapclose.models.structure import decoder_layers, unwrap
from gapclose.training.objectives import settings_in_words, training_in_words

MADE = {
    "adapter": "Adapter",
    "merged": "Model with the adapter folded in",
    "omni": "Whole omni model with the adapter folded into its thinker",
}
"""kind of export -> its name on the card"""


def left_out(directory: Path) -> dict[str, Any]:
    """Return the data that a run left out: items with unusable media and why, and a reader's notes.

    Paths are relative to the data's directory, so that an export does not reveal its location.
    """
    path = directory / "items.json"
    found = read_json(path) if path.is_file() else {}
    root = f"{found.get('root', '')}/"

    def within(text: str) -> str:
        return text if root in ("/", "./") else text.replace(root, "")

    skipped = [{**entry, "fault": within(entry["fault"])} for entry in found.get("skipped", [])]
    return {"items": found.get("items"), "skipped": skipped, "notes": [within(note) for note in found.get("notes", [])]}


def title(summary: dict[str, Any], config: ExportSettings, kind: str = "adapter") -> str:
    """Return the card's title, which claims no more than was measured."""
    if config.targets.control != "none":
        return f"A control (targets.control: {config.targets.control}), not meant for use"
    if (
        summary["state"] == "closed"
        and not (summary["stopped"] or summary["unimproved"])
        and summary["verdicts"]
        and all(v["word"] == "real" for v in summary["verdicts"].values())
    ):
        return f"{MADE[kind]} that lets {'the model' if kind == 'adapter' else 'it'} act on what it represents"
    comma = "" if kind == "adapter" else ","
    return f"{MADE[kind]}{comma} of a run that ended in state `{summary['state']}`: {STATES[summary['state']]}"


def header(kind: str, base: str) -> str:
    """Return the card's metadata for the hub; the base model only if its name is OWNER/NAME."""
    lines = [f"library_name: {'peft' if kind == 'adapter' else 'transformers'}"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        lines.append(f"base_model: {base}")
    lines += ["tags: [gapclose, lora]"] if kind == "adapter" else ["base_model_relation: finetune", "tags: [gapclose]"]
    return "\n".join(["---", *lines, "---"])


def base_named(config: ExportSettings) -> str:
    """Return the base as ``model.path`` has it; in an upload a local directory is named by its last part alone."""
    return checkpoint_name(config.model.path) if config.export.push else config.model.path


def _to_replace(config: ExportSettings) -> list[str]:
    """Return the sentence for a base that others, or transformers, do not find under its name; empty for a hub name."""
    path, named = config.model.path, base_named(config)
    if path in SHIPPED:
        return [
            f"`{path}` ships with gapclose: replace it by `ModelConfig(path={json.dumps(path)}).resolved_path`, of `gapclose.models.config`."
        ]
    if Path(path).exists():
        return [f"`{named}` is a directory of the machine that trained: replace it by your own copy, or by the base's name on the hub."]
    return []


def loading(kind: str, loaded: LoadedModel, config: ExportSettings) -> str:
    """Return how to load an export, with the class and the settings of the measurement."""
    asked = [f"Asked with {_told(config.model.template, '`')} in the chat template."] if config.model.template else []
    if kind == "omni":
        return "\n\n".join(["As the checkpoint that it was made of: every part but the decoder is that one's.", *asked])
    name = _class_name(loaded)
    here = "this directory, or its name on the hub"
    if kind == "merged":
        how = _loaded_with(kind, config)
        code = [f"from transformers import {name}", "", f'model = {name}.from_pretrained("merged", {_told(how)}).eval()   # {here}']
        return "\n\n".join([*asked, _block(code)])
    if config.model.quantisation is not None:
        asked.insert(0, f"The base was quantised ({config.model.quantisation}, by bitsandbytes), and is loaded so here.")
    imports, code = _adapter_code(name, loaded, config)
    return "\n\n".join([*asked, *_to_replace(config), _block([*imports, "", *code])])


def _class_name(loaded: LoadedModel) -> str:
    """The class of transformers that loads the model."""
    model = unwrap(loaded.model)
    name = type(model).__name__
    return name if hasattr(transformers, name) else auto_class(model.config).__name__  # else a class in the checkpoint's own code


def _adapter_code(name: str, loaded: LoadedModel, config: ExportSettings, *beside: str) -> tuple[list[str], list[str]]:
    """Return imports and code that load the base, of class ``name``, with the adapter.

    Args:
        beside: further names to import from transformers.
    """
    named = _told(_loaded_with("adapter", config))
    imports, code = ["from peft import PeftModel"], list[str]()
    if config.model.quantisation is not None:
        imports.insert(0, "import torch")
        beside = (*beside, "BitsAndBytesConfig")
        settings = quantised_settings(config.model.quantisation, unwrap(loaded.model), decoder_layers(unwrap(loaded.model)))
        code.append(f"quantised = BitsAndBytesConfig({_told(settings)})")
        named += ", quantization_config=quantised"
    imports.append(f"from transformers import {', '.join([*sorted(beside), name])}")
    code += [
        f"base = {name}.from_pretrained({json.dumps(base_named(config))}, {named})",
        'model = PeftModel.from_pretrained(base, "adapter").eval()   # this directory, or its name on the hub',
    ]
    return imports, code


def _loaded_with(kind: str, config: ExportSettings) -> dict[str, Any]:
    """Arguments of ``from_pretrained``."""
    how: dict[str, Any] = {"dtype": config.model.dtype}
    if kind == "adapter" and config.model.revision is not None:
        how["revision"] = config.model.revision
    if config.model.trust_remote_code:
        how["trust_remote_code"] = True
    return how


def _block(code: Sequence[str]) -> str:
    return "\n".join(["```python", *code, "```"])


def watching(monitor: MonitorFile, loaded: LoadedModel, config: ExportSettings) -> str:
    """Return the section on the monitor, with code that uses it."""
    rates, named = monitor.rates, " or ".join(f"`{a}`" for a in monitor.alarm)
    imports, code = _adapter_code(_class_name(loaded), loaded, config, "AutoProcessor")
    how = {key: value for key, value in _loaded_with("adapter", config).items() if key != "dtype"}
    given = "".join(f", {of}" for of in [_told(how)] if of)
    code += [
        f"processor = AutoProcessor.from_pretrained({json.dumps(base_named(config))}{given})",
        'monitor = Monitor.from_pretrained("adapter")   # this directory, or its name on the hub',
        'question = [{"type": "text", "text": "What is it?"}]   # media are parts such as {"type": "image", "path": "scan.png"}',
        'for answer in monitor.generate(model, processor, [{"role": "user", "content": question}], max_new_tokens=8):',
        "    print(answer.text, answer.reading, answer.flag)",
    ]
    serves = "It serves the base model as well" if monitor.model.adapters_above else "It serves this adapter alone"
    return f"""## Monitor

`monitor/` holds the frozen probe. Its reading is the probability that a premise of the question is false ({named}).
Readings above {monitor.threshold:.3g} are flagged. That threshold was chosen on {monitor.split} ({rates.items} items, {rates.clips} clips) for at most
{100 * monitor.false_alarm_rate:g} % false alarms. {monitor.promise()}
{serves}.

{_block(["from gapclose import Monitor", *imports, "", *code])}

"""


def _told(settings: dict[str, Any], mark: str = "") -> str:
    """Write keyword arguments as Python code."""
    written = {name: json.dumps(v) if isinstance(v, str | list) else str(v) for name, v in settings.items()}
    return ", ".join(f"{mark}{name}={value}{mark}" for name, value in written.items())


def model_card(
    summary: dict[str, Any],
    config: ExportSettings,
    loaded: LoadedModel,
    missing: dict[str, Any] | None = None,
    served: Served | None = None,
    monitor: MonitorFile | None = None,
    *,
    kind: str = "adapter",
) -> str:
    """Return the card as Markdown, with the evidence: figures, number of clips, probe and controls.

    Args:
        missing: result of :func:`left_out`.
        served: judgement on vLLM.
        monitor: what the export holds in ``monitor/``.
        kind: kind of the export: adapter, merged or omni.
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
            ("probability of the options", "option_mass"),
            ("generated answers that match an option", "parse_lenient"),
            ("retention", "retention"),
        )
    )
    lines = [markdown(line) for line in (*claims(summary), *verdict(summary), *round_words(summary["rounds"]))]
    if missing and missing["skipped"]:
        lines.append(
            f"{len(missing['skipped'])} items beside the {missing['items']} were left out, their media cannot be used (`left_out.json`)"
        )
    lines += [markdown(note) for note in missing["notes"]] if missing else []
    lines += [served.sentence()] if served else []
    sentences = "\n".join(f"- {line}" for line in lines)
    rounds = range(1, (summary["epoch"] - 1) // config.train.epochs + 2)
    revision = f", revision `{config.model.revision}`" if config.model.revision else ""
    return f"""{header(kind, base_named(config))}

# {title(summary, config, kind)}

Trained with gapclose: {training_in_words(config.objective, config.targets, rounds)}
({settings_in_words(config.objective, config.train)};
LoRA on `{config.lora.layers}`, targets control `{config.targets.control}`, seed {config.seed}).
Base model: `{base_named(config)}`{revision}.

## Loading

{loading(kind, loaded, config)}

{watching(monitor, loaded, config) if monitor else ""}## Evidence

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


MARKDOWN = re.compile(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|\](?=\()|\](?=\[)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![\w:])@(?=\w)")
"""characters that Markdown or the hub would interpret, where they would"""


def markdown(text: str) -> str:
    """Escape a text with names from the data as one line of Markdown."""
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
