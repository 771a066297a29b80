"""What ``GapCallback`` checks before a training: model and engine, and the directory of its files."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from typing import Any

import transformers
from accelerate import PartialState

from gapclose.core.auto_decisions import store
from gapclose.core.distributed import engine_of
from gapclose.core.files import read_json, write_json
from gapclose.core.logging import get_logger
from gapclose.core.settings import AUTO, SHARE_PREFIX, flatten
from gapclose.evaluation.run_records import CALLBACK_MARK, read_records, write_records
from gapclose.models.sharding import is_wrapped
from gapclose.models.structure import decoder_layers, unwrap
from gapclose.pipeline.config import changed_settings
from gapclose.pipeline.measure_context import MeasureContext

logger = get_logger(__name__)

SETTINGS = ("seed", "probe", "observe", "gap", "prompts", "labelling")
"""keys of the configuration that decide the figures"""
FILES = ("auto.json", "gap.jsonl", "probes", "observations", CALLBACK_MARK)
"""what the callback writes there. The mark is removed last: a start that was killed before is recognised by it"""


def refuse_unmeasurable(model: Any, trainer: transformers.Trainer | None) -> None:
    """Refuse models that cannot be measured while they are trained.

    Raises:
        ValueError: for engines other than those of ``GapCallback``, for parallelism within a model, for
            LoRA whose initialisation changes the base model, and for a model on several devices.
    """
    if trainer is None:
        if is_wrapped(model) or PartialState().num_processes > 1:
            raise ValueError("without a transformers.Trainer GapCallback works in one process, on a model that no engine has wrapped")
    else:
        engine_of(trainer.accelerator)
        within = [kind for kind in ("tp", "cp", "sp") if getattr(trainer, f"get_{kind}_size", lambda: 1)() > 1]
        if within or getattr(model, "is_distributed_loading_by_transformers", False):
            raise ValueError(
                "GapCallback does not measure a model whose processes share one forward (tensor, context or sequence parallelism, or "
                "distributed_config of from_pretrained); train under DDP, FSDP2, ZeRO-2 or ZeRO-3"
            )
    changing = ("pissa", "olora", "corda", "loftq", "lora_ga")
    for config in getattr(model, "peft_config", {}).values():
        if str(given := getattr(config, "init_lora_weights", "")).lower().startswith(changing):
            raise ValueError(
                f"init_lora_weights={given!r} changes the base model, which GapCallback measures with adapters disabled; take another"
            )
    if len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
        raise ValueError("GapCallback does not measure a model that is spread over several devices; load it without device_map")


def only_lora(model: Any) -> bool:
    """Whether all weights that are trained are LoRA's, so that the base model can be told by its fingerprint at any step."""
    return all("lora_" in name for name, weight in model.named_parameters() if weight.requires_grad)


def lora_above(layer: int) -> str:
    """Advise where LoRA leaves the reading of decoder layer ``layer`` (counted from 1) unchanged."""
    return f"Put LoRA on the layers above it (layers_to_transform from {layer}, counted from 0)"


def refuse_metric(args: Any) -> None:
    """Refuse a figure that can choose no checkpoint.

    Raises:
        ValueError: for ``metric_for_best_model`` of excess or state.
    """
    chosen = (args.metric_for_best_model or "").removeprefix("eval_")
    if chosen in ("excess", "state"):
        raise ValueError(f"metric_for_best_model {chosen!r} chooses no checkpoint; take another headline figure, such as 'action/balanced'")


def step_that_is_left(args: Any, state: Any) -> int:
    """The optimiser step of the model after a training: of the checkpoint that was loaded, or the last one."""
    loaded = re.search(r"-(\d+)$", state.best_model_checkpoint or "") if args.load_best_model_at_end else None
    return int(loaded[1]) if loaded else state.global_step


def warn_of_training_below(model: Any, layer: int) -> None:
    """Warn where what reaches decoder layer ``layer`` (counted from 1), which the probe reads, may change."""
    if trained_below(model, layer):
        logger.warning(
            f"  the probe reads decoder layer {layer}, and the training changes weights there or below: its reading may move, and there will be "
            f"no monitor. {lora_above(layer)}"
        )


def trained_below(model: Any, layer: int) -> bool:
    """Whether decoder layer ``layer`` (counted from 1), one below it, or the input embedding is trained; towers are not looked at."""
    below = (*decoder_layers(model)[:layer], unwrap(model).get_input_embeddings())
    return any(weight.requires_grad for part in below for weight in part.parameters())


def claim_callback_directory(run: MeasureContext, base: str, resumed: int, splits: Sequence[str], *, base_known: bool) -> str:
    """Make the directory ready, and return the fingerprint of the base model. Main process only.

    Args:
        run: of the training, with its items.
        base: fingerprint of the model as it is now. resumed: optimiser steps that it has taken.
        splits: those that are observed.
        base_known: whether the base can be observed at any step, with adapters disabled, so that
            ``base`` is its fingerprint.

    Raises:
        ValueError: when the directory holds something else, or not the base model of the training
            that is resumed.
    """
    directory, items = run.directory, run.items.fingerprint(labels=True)
    now = {"items": items, "settings": {name: _plain(getattr(run.config, name)) for name in SETTINGS}}
    before = read_json(directory / CALLBACK_MARK, "base", "items", "settings") if (directory / CALLBACK_MARK).is_file() else None
    if before is None and any((directory / name).exists() for name in FILES):
        raise ValueError(f"{directory} holds a run of gapclose; give GapCallback another directory (out=...)")
    if resumed and before is None and not base_known:
        raise ValueError(
            f"the training goes on from step {resumed}, and {directory} holds no measurement of its base model; name the directory of its "
            "start (out=...), or start anew"
        )
    if resumed and before is not None:
        if changed := _changed(run, before, now):
            raise ValueError(
                f"{directory}: {' and '.join(changed)} of GapCallback are not those with which this training started; use the same, or "
                "another directory (out=...)"
            )
        if base_known and base != before["base"]:
            raise ValueError(
                f"{directory}: this training started from a base model with the hash {before['base']}, and this one has {base}; load the base of "
                "the start, or give GapCallback another directory (out=...)"
            )
        observed = directory / "observations"
        if not base_known and (missing := [s for s in splits if not (observed / f"base-{s}" / "manifest.json").is_file()]):
            raise ValueError(
                f"{observed}: the base model's observations of {', '.join(missing)} are not there, and the weights are trained already; "
                "restore them, or start anew"
            )
        for left in observed.glob("now-*"):  # of a measurement that was interrupted, after another step
            shutil.rmtree(left)
        write_records(directory, [r for r in read_records(directory) if r.get("step", 0) <= resumed and r["stage"] != "adapted/test"])
        return before["base"]
    for name in FILES:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / CALLBACK_MARK, {"base": base, **now})
    return base


def _changed(run: MeasureContext, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs from the start of the training, which keeps the ``share_prefix`` that was given there. Main process only."""
    directory, began = run.directory, flatten(before["settings"])
    changed = (["items"] if before["items"] != now["items"] else []) + (
        ["settings"] if changed_settings(began, now["settings"], directory) else []
    )
    given = began.get(SHARE_PREFIX)
    if not changed and isinstance(given, bool) and run.config.observe.share_prefix == AUTO:
        store(directory, SHARE_PREFIX, None if given else "this training began so")
    return changed


def _plain(value: Any) -> Any:
    """Return a setting as it is read back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value))
