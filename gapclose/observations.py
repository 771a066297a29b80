"""What was observed, in memory and on disk: ``shard-*.safetensors``, each written whole, the manifest last.

Shapes: N items, D width, O options (padded to the longest list), K kept tokens.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gapclose.files import link_files, read_json, write_json, write_tensors
from gapclose.progress import say


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What was observed, in the order of the items."""

    ids: list[str]
    residuals: dict[int, torch.Tensor]
    """layer -> (N, D), in the model's dtype"""
    scores: torch.Tensor
    """(N, O) float32: summed log-probability of every option's tokens, in nats; -inf where an item has fewer options"""
    answers: list[str] | None = None
    """generated text of every item, when asked for"""
    top_logps: torch.Tensor | None = None
    """(N, K) float32: the most probable next tokens' log-probabilities at the answer position, when asked for"""
    top_tokens: torch.Tensor | None = None
    """(N, K) int32: the ids of those tokens"""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, ids: Sequence[str]) -> Observations:
        """The observations of ``ids``, in that order.

        Raises:
            KeyError: when one was not observed.
        """
        place = {name: i for i, name in enumerate(self.ids)}
        order = torch.tensor([place[i] for i in ids], dtype=torch.long)
        return Observations(
            ids=list(ids),
            residuals={layer: value[order] for layer, value in self.residuals.items()},
            scores=self.scores[order],
            answers=[self.answers[i] for i in order] if self.answers is not None else None,
            top_logps=self.top_logps[order] if self.top_logps is not None else None,
            top_tokens=self.top_tokens[order] if self.top_tokens is not None else None,
        )


def read_observations(directory: Path, ids: Sequence[str] | None = None, *, layers: Sequence[int] | None = None) -> Observations:
    """Read a finished observation, in the order of ``ids`` (default: as it was written), with the residuals of ``layers`` (default: all).

    Raises:
        ValueError: when the observation is unfinished or misses an item.
    """
    if not (directory / "manifest.json").is_file():
        raise ValueError(f"{directory}: the observation is not finished (no manifest.json); run the same command again to go on")
    manifest = read_json(directory / "manifest.json")
    parts: dict[str, list[torch.Tensor]] = defaultdict(list)
    names: list[str] = []
    answers: list[str] = []
    for s in range(manifest["shards"]):
        with safe_open(shard_path(directory, s), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
                if layers is None or not key.startswith("layer.") or int(key.removeprefix("layer.")) in layers:
                    parts[key].append(file.get_tensor(key))
            meta = file.metadata()
        names += json.loads(meta["ids"])
        answers += json.loads(meta["answers"])
    width = max(p.shape[1] for p in parts["scores"])
    parts["scores"] = [pad_options(p, width) for p in parts["scores"]]
    tensors = {key: torch.cat(value) for key, value in parts.items()}
    everything = Observations(
        ids=names,
        residuals={int(k.removeprefix("layer.")): v for k, v in tensors.items() if k.startswith("layer.")},
        scores=tensors["scores"],
        answers=answers or None,
        top_logps=tensors.get("top_logps"),
        top_tokens=tensors.get("top_tokens"),
    )
    lost = sorted(set(ids or ()) - set(names))
    if lost:
        raise ValueError(f"{directory}: {len(lost)} items were never observed, e.g. {lost[:3]}; delete the directory and run again")
    return everything if ids is None else everything.take(ids)


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.safetensors"


def pad_options(scores: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(scores, (0, width - scores.shape[1]), value=-torch.inf)


def claim(directory: Path, request: dict[str, Any], replace: bool) -> None:
    """Make the directory ours, or refuse when it belongs to another request."""
    path = directory / "request.json"
    if path.is_file():
        old = read_json(path)
        if old["fingerprint"] == request["fingerprint"]:
            return
        changed = [f"{k}: {old.get(k)!r} there, {request.get(k)!r} now" for k in sorted({*old, *request}) if old.get(k) != request.get(k)]
        if not replace:
            raise ValueError(
                f"{directory} holds observation {old['fingerprint']}, and this run asks for {request['fingerprint']} ({'; '.join(changed)}). "
                f"Give the run another directory (--run_dir), or delete {directory} to observe again."
            )
        say(f"{directory.name}: observing again, since {'; '.join(c for c in changed if not c.startswith('fingerprint'))}")
    if directory.exists():
        shutil.rmtree(directory)
    write_json(path, request)


def take_shared(directory: Path, shared: Path) -> bool:
    """Take a finished observation from where another run left it; returns whether there was one."""
    if not (shared / "manifest.json").is_file():
        return False
    link_files(sorted(shared.glob("shard-*.safetensors")), directory)
    write_json(directory / "manifest.json", read_json(shared / "manifest.json") | {"taken_from": str(shared)})
    return True


def leave_shared(directory: Path, shared: Path) -> None:
    """Leave a finished observation for other runs; of two that leave the same at once, either is kept."""
    if not (shared / "manifest.json").is_file():
        link_files(sorted(directory.glob("shard-*.safetensors")), shared)
        link_files([directory / "manifest.json"], shared)


def write_shard(path: Path, results: list[dict[str, Any]]) -> None:
    width = max(r["scores"].shape[1] for r in results)
    for r in results:
        r["scores"] = pad_options(r["scores"], width)
    keys = [k for k in results[0] if k not in ("ids", "answers")]
    metadata = {k: json.dumps([x for r in results for x in r[k]], ensure_ascii=False) for k in ("ids", "answers")}
    write_tensors(path, {k: torch.cat([r[k] for r in results]) for k in keys}, metadata)
