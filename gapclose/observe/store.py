"""Observations in memory and on disk.

Files are ``shard-*.safetensors``, each written atomically, the manifest last. Scores and answers
are small and are read at once. Residuals stay on disk; a layer is read when it is accessed.

Shapes: N items, D width, O options (padded to the longest list), K kept tokens, S shards.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gapclose.core.files import AGAIN, link_files, read_json, write_json
from gapclose.core.logging import get_logger
from gapclose.core.tensor_files import read_tensor, reading, write_tensors
from gapclose.core.versions import REMEDY, differing

logger = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Observations:
    """The observations of a set, in the order of its items."""

    ids: list[str]
    residuals: Mapping[int, torch.Tensor]
    """layer -> (N, D), in the model's dtype; stored residuals are read from disk on every access"""
    scores: torch.Tensor
    """(N, O) float32: summed log-probability of every option's tokens, in nats; -inf beyond an
    item's options"""
    answers: list[str] | None = None
    """generated text of every item, if requested"""
    top_logps: torch.Tensor | None = None
    """(N, K) float32: log-probabilities of the most probable next tokens at the answer position, if
    requested"""
    top_tokens: torch.Tensor | None = None
    """(N, K) int32: the ids of those tokens"""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, ids: Sequence[str]) -> Observations:
        """Return the observations of ``ids``, in that order.

        Raises:
            KeyError: when one was not observed.
        """
        place = {name: i for i, name in enumerate(self.ids)}
        order = torch.tensor([place[i] for i in ids], dtype=torch.long)
        return Observations(
            ids=list(ids),
            residuals=take_residuals(self.residuals, order),
            scores=self.scores[order],
            answers=[self.answers[i] for i in order] if self.answers is not None else None,
            top_logps=self.top_logps[order] if self.top_logps is not None else None,
            top_tokens=self.top_tokens[order] if self.top_tokens is not None else None,
        )


class StoredResiduals(Mapping[int, torch.Tensor]):
    """Residuals on disk: layer -> (N, D), assembled from the shards on every access and not kept."""

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], layers: Sequence[int], ends: torch.Tensor, order: torch.Tensor
    ) -> None:
        """Select stored items by their places ``order`` (N,).

        ``ends`` (S,) counts the stored items up to the end of each shard.
        """
        self._directory, self._manifest, self._layers, self._ends, self._order = directory, manifest, layers, ends, order

    def __getitem__(self, layer: int) -> torch.Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        if read_json(self._directory / "manifest.json", "fingerprint")["fingerprint"] != self._manifest["fingerprint"]:
            raise ValueError(f"{self._directory} holds another observation now than when it was opened; read it again")
        found, shard = None, torch.bucketize(self._order, self._ends, right=True)  # (N,)
        for s in shard.unique().tolist() or [0]:
            here = (shard == s).nonzero()[:, 0]
            path = shard_path(self._directory, s)
            with reading(path, remedy_of(self._manifest)), safe_open(path, framework="pt") as file:
                part = read_tensor(file, f"layer.{layer}")
            found = part.new_empty(len(shard), part.shape[1]) if found is None else found
            found[here] = part[self._order[here] - (self._ends[s] - len(part))]
        assert found is not None
        return found

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def take(self, order: torch.Tensor) -> StoredResiduals:
        """Return the residuals of the items at these places, (M,), without reading them."""
        return StoredResiduals(self._directory, self._manifest, self._layers, self._ends, self._order[order])


def take_residuals(residuals: Mapping[int, torch.Tensor], order: torch.Tensor) -> Mapping[int, torch.Tensor]:
    """Select the items at the places ``order``, (M,); residuals on disk stay there."""
    if isinstance(residuals, StoredResiduals):
        return residuals.take(order)
    return {layer: value[order] for layer, value in residuals.items()}


def read_observations(directory: Path, ids: Sequence[str] | None = None, *, layers: Sequence[int] | None = None) -> Observations:
    """Read a finished observation in the order of ``ids`` (default: as written).

    It has the residuals of ``layers`` (default: all), each read on access
    (:class:`StoredResiduals`).

    Raises:
        ValueError: when the observation is unfinished or misses an item, or one of its files is
            damaged.
    """
    if not (directory / "manifest.json").is_file():
        raise ValueError(f"{directory}: the observation is not finished (no manifest.json); run the same command again to go on")
    manifest = read_json(directory / "manifest.json", "fingerprint", "shards")
    parts: dict[str, list[torch.Tensor]] = defaultdict(list)
    stored: dict[int, None] = {}
    names: list[str] = []
    answers: list[str] = []
    ends: list[int] = []
    for s in range(manifest["shards"]):
        path = shard_path(directory, s)
        with reading(path, remedy_of(manifest)), safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
                if not key.startswith("layer."):
                    parts[key].append(read_tensor(file, key).clone())  # else the file stays mapped
                elif layers is None or int(key.removeprefix("layer.")) in layers:
                    stored[int(key.removeprefix("layer."))] = None
            meta = file.metadata()
            names += json.loads(meta["ids"])
            answers += json.loads(meta["answers"])
        ends.append(len(names))
    width = max(p.shape[1] for p in parts["scores"])
    parts["scores"] = [pad_options(p, width) for p in parts["scores"]]
    tensors = {key: torch.cat(value) for key, value in parts.items()}
    everything = Observations(
        ids=names,
        residuals=StoredResiduals(directory, manifest, sorted(stored), torch.tensor(ends), torch.arange(len(names))),
        scores=tensors["scores"],
        answers=answers or None,
        top_logps=tensors.get("top_logps"),
        top_tokens=tensors.get("top_tokens"),
    )
    lost = sorted(set(ids or ()) - set(names))
    if lost:
        raise ValueError(f"{directory}: {len(lost)} items were never observed, e.g. {lost[:3]}; delete the directory and run again")
    return everything if ids is None else everything.take(ids)


def remedy_of(manifest: Mapping[str, Any]) -> str:
    """Return the remedy for a damaged shard; only this shard is then observed again."""
    shared = manifest.get("taken_from")
    return f"delete it, here and in {shared}, and run the same command again" if shared else AGAIN


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.safetensors"


def shards_there(directory: Path, number: int) -> set[int]:
    """Return which of the shards 0..number-1 exist."""
    return {s for s in range(number) if shard_path(directory, s).is_file()}


def pad_options(scores: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(scores, (0, width - scores.shape[1]), value=-torch.inf)


def claim_directory(directory: Path, request: dict[str, Any], replace: bool, *, versions: str = "same", finished: bool = False) -> None:
    """Claim the directory for this request, or refuse it for another request or other versions.

    Args:
        replace: delete observations of another request or other versions instead.
        versions: ``any`` continues observations of other versions; unless these are ``finished``,
            ``earlier_versions`` records them.

    Raises:
        ValueError: naming both requests or versions.
    """
    path = directory / "request.json"
    if path.is_file():
        old = read_json(path, "fingerprint")
        changed = [
            f"{k}: {old.get(k)!r} there, {request.get(k)!r} now" for k in sorted({*old, *request} - BESIDE) if old.get(k) != request.get(k)
        ]
        if old["fingerprint"] == request["fingerprint"]:
            changed = differing(old.get("versions"), request.get("versions", {}))
            if not changed:
                return
            if versions == "any":
                if not finished:
                    write_json(path, request | {"earlier_versions": [*old.get("earlier_versions", []), old.get("versions")]})
                return
            if not replace:
                raise ValueError(f"{directory}: observed under other versions: {', '.join(changed)}. {REMEDY}")
        if not replace:
            raise ValueError(
                f"{directory} holds observation {old['fingerprint']}, and this run asks for {request['fingerprint']} ({'; '.join(changed)}). "
                f"Give the run another directory (--run_dir), or delete {directory} to observe again."
            )
        logger.info(f"{directory.name}: observing again, since {'; '.join(c for c in changed if not c.startswith('fingerprint'))}")
    if directory.exists():
        shutil.rmtree(directory)
    write_json(path, request)


BESIDE = {"versions", "earlier_versions"}
"""keys of a request that do not identify it"""


def fetch_shared(directory: Path, shared: Path) -> bool:
    """Take a finished observation from another run; return whether there was one."""
    if not (shared / "manifest.json").is_file():
        return False
    link_files(sorted(shared.glob("shard-*.safetensors")), directory)
    write_json(directory / "manifest.json", read_json(shared / "manifest.json", "fingerprint", "shards") | {"taken_from": str(shared)})
    return True


def publish_shared(directory: Path, shared: Path) -> None:
    """Leave a finished observation for other runs; if two leave the same at once, either is kept."""
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
