"""Read ``gap.jsonl``, the authoritative record of a run, and summarise it as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gapclose.core.files import read_json, write_text
from gapclose.core.settings import read_settings
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.config import GapConfig
from gapclose.metrics.status import beyond

CALLBACK_MARK = "callback.json"
"""file that tells a directory of :class:`gapclose.GapCallback` from that of a run"""
CALLBACK_FOLDER = "gapclose"
"""its directory in the trainer's ``output_dir``, unless it is given another"""


def read_records(directory: Path) -> list[dict[str, Any]]:
    """Return every measurement of a run, oldest first; empty before the first one.

    Raises:
        ValueError: naming every line that is no record. A run writes the complete file at once, so
            a truncated file was damaged later.
    """
    path, found, problems = directory / "gap.jsonl", list[dict[str, Any]](), list[str]()
    if not path.is_file():
        return []
    for number, line in enumerate(lines := path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not JSON ({error})")
            continue
        lacking = [key for key in ("stage", "epoch", "state") if not isinstance(record, dict) or key not in record]
        if lacking:
            problems.append(f"line {number} is no record (it has no {', '.join(lacking)})")
        else:
            found.append(record)
    if problems or not lines:
        what = ("that line" if len(problems) == 1 else "those lines") if found else "it"
        raise ValueError(
            f"{path}: {'; '.join(problems) or 'empty'}. Put a copy of the file in its place, or delete {what} and run the same command again: "
            "what is gone is measured again, of an epoch by training it again"
        )
    return found


def write_records(directory: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``gap.jsonl`` anew, with these records in this order."""
    write_text(directory / "gap.jsonl", "".join(json.dumps(r, allow_nan=False) + "\n" for r in records))


HEADLINES = {
    "gap/balanced": "gap.balanced",
    "gap/matched": "gap.matched",
    "gap/auroc": "gap.auroc",
    "action/balanced": "action.balanced",
    "action/auroc": "action.auroc",
    "action/generated": "generated.balanced_lenient",
    "reading/balanced": "reading.balanced",
    "reading/auroc": "reading.auroc",
    "reading/fresh": "fresh_probe.balanced",
    "standard_accuracy": "action.standard_accuracy",
    "rejection_rate": "action.rejection",
    "false_alarms": "action.false_alarm",
    "parse_rate": "generated.parse_lenient",
    "retention": "retention",
    "closure": "change.closure",
    "excess": "consistency.excess",
    "frozen_probe_shift": "frozen_probe_shift",
    "state": "state",
}
"""name in a tracker -> dotted name in a record"""


def headlines(record: Mapping[str, Any]) -> dict[str, float | str]:
    """Return the figures of a record that a tracker shows, by :data:`HEADLINES`.

    Of an interval it is the estimate. A figure that the record does not have, or that is not
    defined, is left out.
    """
    found = dict[str, float | str]()
    for name, place in HEADLINES.items():
        value: Any = record
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        value = value.get("value") if isinstance(value, Mapping) else value
        if value is not None:
            found[name] = value
    return found


def record_of(directory: Path, stage: str) -> dict[str, Any] | None:
    """Return the record of one stage, or None."""
    return next((r for r in read_records(directory) if r["stage"] == stage), None)


def val_record_after(directory: Path, step: int) -> dict[str, Any] | None:
    """Return the latest record of ``val`` after an optimiser step of a training that a callback measures, or None."""
    found = [r for r in read_records(directory) if r["stage"].endswith("/val") and r.get("step") == step]
    return found[-1] if found else None


def summarise(directory: Path) -> dict[str, Any]:
    """Summarise the test figures of a run as one JSON object, with None for missing measurements.

    Raises:
        ValueError: when the base model was not measured on test, or a record has missing keys.
    """
    try:
        return _summary(directory)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory / 'gap.jsonl'}: a record lacks what every run writes ({error}); put a copy of the file in its place, or delete it and run "
            "the same command again"
        ) from error


def _training(directory: Path) -> dict[str, Any] | None:
    """Return what the adapters were trained on, by the settings of the run; None without them."""
    settings = {
        "objective": "objective",
        "layers": "lora.layers",
        "first": "targets.first",
        "rounds": "targets.rounds",
        "twins": "targets.twins",
    }
    given = read_settings(directory)
    return {name: given[key] for name, key in settings.items()} if set(settings.values()) <= set(given) else None


def _beyond_budget(drop: Mapping[str, Any] | None, directory: Path) -> bool:
    """Whether standard accuracy is shown to have fallen by more than the run allows."""
    if drop is None or None in drop.values():
        return False
    allowed = read_settings(directory).get("gap.standard_budget", GapConfig().standard_budget)
    return beyond(Interval(**drop), allowed)


def _summary(directory: Path) -> dict[str, Any]:
    base, adapted = record_of(directory, "base/test"), record_of(directory, "adapted/test")
    if base is None:
        raise ValueError(
            f"{directory}: no measurement of the base model on test in gap.jsonl; run `gapclose measure` or `gapclose close` first"
            f"{near_run(directory)}"
        )
    controls, change = base["controls"], (adapted or {}).get("change", {})
    probe = read_json(directory / "probes" / "frozen.json", "layer", "family")
    summary: dict[str, Any] = {
        "base": _side(base),
        "adapted": _side(adapted),
        "reading": {**base["reading"], "layer": probe["layer"], "layers": layers_of(probe), "family": probe["family"]},
        "closure": change.get("closure"),
        "closure_auroc": change.get("closure_auroc"),
        "auroc_gain": change.get("auroc_gain"),
        "standard_drop": change.get("standard_drop"),
        "retention_drop": change.get("retention_drop"),
        "reading_change": change.get("reading_change"),
        "beyond_reading": change.get("beyond_reading"),
        "frozen_probe_shift": (adapted or {}).get("frozen_probe_shift"),
        "fresh_probe": _both(base, adapted, "fresh_probe", "balanced"),
        "sentinel_probe": _both(base, adapted, "sentinel_probe", "balanced"),
        "text_only": {"balanced": controls["text_only"]["all"]},
        "majority": {"balanced": controls["majority"]["all"]},
        "reading_minus_text": controls["reading_minus_text"],
        "verdicts": read_verdicts(directory),
        "gate": read_gate(directory),
        "acting": base.get("acting"),
        "forced": (adapted or {}).get("forced", []),
        "stopped": (adapted or {}).get("stopped", {}),
        "guards_off": (adapted or {}).get("guards_off"),
        "unimproved": (adapted or {}).get("unimproved"),
        "unfinished": (adapted or {}).get("unfinished"),
        "training": _training(directory) if adapted else None,
        "targets": (adapted or {}).get("targets", []),
        "rounds": read_json(directory / "rounds.json", kind=list) if (directory / "rounds.json").is_file() else [],
        "gap": {kind: _both(base, adapted, "gap", kind) for kind in ("balanced", "matched", "auroc")},
        "modality": {name: _modality(name, base, adapted) for name in base["modality"]},
        "transfer": None,
        "callback": {"step": (adapted or {}).get("step")} if (directory / CALLBACK_MARK).is_file() else None,
        "prompts": _prompts(base, adapted),
        "state": (adapted or base)["state"],
        "epoch": (adapted or base)["epoch"],
        "n_clips": base["n_clips"],
        "n_items": base["n_items"],
        "n_skipped": base.get("n_skipped", 0),
        "seed": base["seed"],
    }
    if "transfer" in base:
        inside = change.get("transfer")
        closures = (inside["closure"]["value"], change["closure"]["value"]) if inside else (None, None)
        summary["transfer"] = {
            "base": base["transfer"]["action"]["balanced"],
            "adapted": adapted["transfer"]["action"]["balanced"] if adapted else None,
            "reading": base["transfer"]["reading"]["balanced"],
            "closure": inside["closure"] if inside else None,
            "share_of_closure": closures[0] / closures[1] if closures[0] is not None and closures[1] else None,
            "standard_drop": inside["standard_drop"] if inside else None,
            "false_alarm": adapted["transfer"]["action"]["false_alarm"] if adapted else None,
            "beyond_budget": _beyond_budget(inside["standard_drop"] if inside else None, directory),
        }
    return summary


def near_run(directory: Path) -> str:
    """Return ``; did you mean PATH?`` where GapCallback wrote into its default directory below this one; else empty."""
    below = directory / CALLBACK_FOLDER
    return f"; did you mean {str(below)!r}?" if (below / CALLBACK_MARK).is_file() else ""


def read_verdicts(directory: Path) -> dict[str, dict[str, Any]]:
    """Return each modality's verdict (word, sentence, figures) from measurement.json; empty
    before it is written."""
    path = directory / "measurement.json"
    return read_json(path).get("verdicts") or {} if path.is_file() else {}


def read_gate(directory: Path) -> dict[str, Any] | None:
    """Return gate.json, the verdicts on val that decide whether to train; None for runs without
    training."""
    path = directory / "gate.json"
    return read_json(path) if path.is_file() else None


def layers_of(facts: Mapping[str, Any] | None) -> list[int]:
    """Return the layers of a probe or patch, rising; older files have only ``layer``. Empty if
    unknown."""
    facts = facts or {}
    return facts.get("layers") or ([facts["layer"]] if "layer" in facts else [])


def _side(record: dict[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    kept = ("balanced", "option_balanced", "standard_accuracy", "rejection", "false_alarm", "auroc", "dprime", "criterion")
    return {
        **{k: record["action"][k] for k in kept},
        "option_mass": record["action"].get("option_mass"),
        "generated_balanced": record["generated"]["balanced_lenient"],
        "parse_strict": record["generated"]["parse_strict"],
        "parse_lenient": record["generated"]["parse_lenient"],
        "retention": record.get("retention"),
    }


def _modality(name: str, base: dict[str, Any], adapted: dict[str, Any] | None) -> dict[str, Any]:
    before, after = base["modality"][name], adapted["modality"][name] if adapted else None
    return {
        "base": before["action"]["balanced"],
        "adapted": after["action"]["balanced"] if after else None,
        "reading": before["reading"]["balanced"],
        "rejection": {"base": before["action"]["rejection"], "adapted": after["action"]["rejection"] if after else None},
        "gap": {kind: _both(before, after, "gap", kind) for kind in ("balanced", "matched", "auroc")},
        "closure": adapted["change"]["by_modality"][name]["closure"] if adapted else None,
        "significance": adapted["change"]["significance"][name] if adapted else None,
    }


def _prompts(base: dict[str, Any], adapted: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the records of every measured prompt, the run's own first; empty if there is no
    other."""
    after = (adapted or {}).get("prompts", {})
    return {name: {"base": of, "adapted": after.get(name)} for name, of in base.get("prompts", {}).items()}


def _both(base: dict[str, Any], adapted: dict[str, Any] | None, group: str, name: str) -> dict[str, Any]:
    return {"base": base[group][name], "adapted": adapted[group][name] if adapted else None}
