"""Tables and artifacts of a run in Weights & Biases, made from the files in its directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gapclose.core.files import read_json
from gapclose.training.trackers.names import artifact_name
from gapclose.training.trackers.wandb_service import service

MOST = 50
"""largest number of rows of the table of examples"""
EXAMPLE_COLUMNS = ("kind", "modality", "question", "gold", "base", "adapted", "reading")
MEDIA = {"image": "Image", "audio": "Audio", "video": "Video"}
"""kind of media -> class of wandb"""
PLAYED = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".m4a"),
    "video": (".mp4", ".webm", ".ogg", ".gif"),
}
"""kind of media -> file types that a browser shows"""
CHECK_COLUMNS = ("kind", "name", "modality", "outcome", "value", "lower", "upper", "p", "sentence")


def chosen_examples(change: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return at most :data:`MOST` examples of ``change.json`` with their kind; the kinds have equal shares."""
    found = change["examples"]
    turns = [(kind, items[n]) for n in range(MOST) for kind, items in found.items() if n < len(items)]
    return sorted(turns[:MOST], key=lambda turn: [*found].index(turn[0]))


def example_row(kind: str, item: Mapping[str, Any]) -> list[Any]:
    """Return an example as a row of :data:`EXAMPLE_COLUMNS`; an answer is the text where it is no option."""
    answers = [item[side]["written"] or item[side]["said"] for side in ("base", "adapted")]
    concept = max(item["reading"], key=item["reading"].__getitem__)
    return [kind, item["modality"], item["text"], item["right"], *answers, f"{concept} ({item['reading'][concept]:.2f})"]


def media_of(item: Mapping[str, Any], root: Path) -> dict[str, Path]:
    """Return kind -> file of an example's media: of each kind the first file that a browser shows."""
    files = dict[str, Path]()
    for kind, path in item["media"]:
        if Path(path).suffix.lower() in PLAYED.get(kind, ()) and (root / path).is_file():
            files.setdefault(kind, root / path)
    return files


def example_table(directory: Path, *, media: bool) -> Any:
    """Return the table of examples before and after training, or None without ``change.json``.

    Args:
        media: add a column for each kind of media, with the files, which are uploaded.
    """
    if not (directory / "change.json").is_file():
        return None
    wandb, change = service(), read_json(directory / "change.json", "examples")
    examples = chosen_examples(change)
    files = [media_of(item, directory / change["data_root"]) if media else {} for _, item in examples]
    kinds = [kind for kind in MEDIA if any(kind in of for of in files)]
    rows = [
        [*example_row(*one), *(getattr(wandb, MEDIA[kind])(str(of[kind])) if kind in of else None for kind in kinds)]
        for one, of in zip(examples, files, strict=True)
    ]
    return wandb.Table(columns=[*EXAMPLE_COLUMNS, *kinds], data=rows)


def check_rows(directory: Path) -> list[list[Any]]:
    """Return the verdicts on val and test and the controls of the reading, as rows of :data:`CHECK_COLUMNS`.

    The value of a verdict is the difference to its best control. That of a control is the reading's
    balanced accuracy minus the control's.
    """
    rows = list[list[Any]]()
    for name in ("gate", "measurement"):
        if not (directory / f"{name}.json").is_file():
            continue
        found = read_json(directory / f"{name}.json", "verdicts")
        for modality, verdict in found["verdicts"].items():
            p = verdict.get("p_holm")
            rows.append(["verdict", found["split"], modality, verdict["word"], *_ends(verdict.get("difference")), p, verdict["sentence"]])
        for control in found.get("controls") or []:
            for modality, difference in (control.get("difference") or {}).items():
                at_chance = (control.get("at_chance") or {}).get(modality)
                outcome = "" if at_chance is None else "at chance" if at_chance else "off chance"
                rows.append(["control", control["name"], modality, outcome, *_ends(difference), None, control["question"]])
    return rows


def _ends(interval: Any) -> list[float | None]:
    return [interval.get(end) for end in ("value", "lower", "upper")] if isinstance(interval, Mapping) else [None, None, None]


def check_table(rows: Sequence[Sequence[Any]]) -> Any:
    """Return the table of verdicts and controls."""
    return service().Table(columns=[*CHECK_COLUMNS], data=[[*row] for row in rows])


def items_artifact(directory: Path, name: str, *, upload: bool) -> Any:
    """Return the artifact of the run's items: their number and fingerprint, without the items themselves.

    Args:
        name: of the item set.
        upload: add the item file, if the item set has one; media are never added.
    """
    bound = read_json(directory / "items.json", "fingerprint")
    facts = {"name": name, "fingerprint": bound["fingerprint"], "items": bound.get("items")}
    artifact = service().Artifact(artifact_name(Path(name), "items"), type="dataset", metadata=facts)
    with artifact.new_file("fingerprint.json") as file:  # a new version needs a changed file: metadata alone makes none
        file.write(json.dumps(facts, indent=1))
    if upload and (path := Path(bound.get("root") or "") / "items.jsonl").is_file():
        artifact.add_file(str(path), name="items.jsonl")
    return artifact


def adapter_artifact(directory: Path, adapter: Path, summary: Mapping[str, Any]) -> Any:
    """Return the artifact of the exported adapter and its frozen probe, with what the run has shown as metadata."""
    artifact = service().Artifact(artifact_name(directory), type="model", metadata=evidence(directory, summary))
    artifact.add_dir(str(adapter))
    for path in sorted((directory / "probes").glob("frozen.*")):
        artifact.add_file(str(path), name=f"probes/{path.name}")
    return artifact


def evidence(directory: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state, closure, verdicts and hashes of a finished run, as metadata of its adapter."""
    hashed = {"adapter": "adapter/adapter_model.safetensors", "probe": "probes/frozen.safetensors"}
    hashes = {name: sha256(directory / path) for name, path in hashed.items() if (directory / path).is_file()}
    if (directory / "items.json").is_file():
        hashes["items"] = read_json(directory / "items.json", "fingerprint")["fingerprint"]
    return {
        **{key: summary.get(key) for key in ("state", "closure", "epoch", "seed")},
        "verdicts": {name: of["word"] for name, of in (summary.get("verdicts") or {}).items()},
        "stopped": summary.get("stopped") or {},
        "hashes": hashes,
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
