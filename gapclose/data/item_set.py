"""Item sets, read from a directory or made of rows in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gapclose.core.errors import ErrorCollector
from gapclose.core.hashing import content_digest
from gapclose.data.item_rows import read_item
from gapclose.data.items import Item
from gapclose.data.keys import Spellings


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """How videos are shown."""

    frames: int = 8
    """number of frames, evenly in time, from the first to the last"""
    side: int = 448
    """longest side in pixels; larger frames are scaled down"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How media are decoded; results do not depend on it."""

    workers: int = 2
    """threads that decode beside the model; 0: everything is decoded on demand"""
    cache: Path | None = None
    """directory of decoded media"""
    cache_gb: float = 20.0
    """limit of that directory, in 10^9 bytes"""


def _plain(value: Any) -> Any:
    """Convert a value of a row to a JSON type.

    Raises:
        TypeError: with the remedy, if JSON has no such type.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"holds a {type(value).__name__}; save media as files and give their paths, and write arrays as lists")


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemSet:
    """Items and their concepts. Selecting keeps the order."""

    root: Path
    name: str
    concepts: tuple[str, ...]
    alarm: tuple[str, ...]
    items: tuple[Item, ...]
    framing: Framing = Framing()
    decoding: Decoding = Decoding()
    skipped: tuple[tuple[str, str], ...] = ()
    """id and fault of every item that was left out because of its media"""
    notes: tuple[str, ...] = ()
    """decisions of the reader that the data do not state: rows left out on purpose, clips assigned
    to splits"""

    @classmethod
    def from_list(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *,
        concepts: Sequence[str],
        alarm: Sequence[str] = (),
        name: str = "items",
        root: str | Path = ".",
    ) -> ItemSet:
        """Make a set of rows in memory, with the keys of ``items.jsonl`` (docs/how-to/data.md).

        Args:
            rows: one dictionary per item: ``id``, ``clip``, ``split``, ``modality``, ``messages``,
                ``options``, and ``gold`` where known.
            concepts: everything that an option may express.
            alarm: the concepts that reject the question, such as a false premise.
            name: name of the set.
            root: directory that paths of media are relative to.

        Raises:
            ValueError: all errors of the rows at once, each with row, item and remedy.
        """
        problems, spelled, items = ErrorCollector(f"the item set {name}"), Spellings(), list[Item]()
        names = tuple(concepts)
        if len(set(names)) < 2 or len(set(names)) < len(names) or not set(alarm) < set(names):
            problems.add(
                f"concepts {list(names)} with alarm {list(alarm)}; give two or more distinct names, and as alarm some of them but not all"
            )
            problems.raise_if_any()
        splits, seen = dict[str, str](), set[str]()
        for number, row in enumerate(rows):
            try:
                line = json.dumps(dict(row), default=_plain)
            except (TypeError, ValueError) as error:
                problems.add(f"row {number}: {error}")
                continue
            item = read_item(line, f"row {number}", names, spelled, problems)
            if item is None:
                continue
            if item.id in seen:
                problems.add(f"row {number}: item id {item.id!r} was used before; give every item its own id")
            if splits.setdefault(item.clip, item.split) != item.split:
                problems.add(
                    f"row {number}: clip {item.clip!r} is in split {splits[item.clip]!r} as well; keep all questions of a clip in one split"
                )
            seen.add(item.id)
            items.append(item)
        if not items and not len(problems):
            problems.add("there are no rows")
        problems.raise_if_any()
        notes = (*spelled.taken_for_one(), *spelled.taken_for_two())
        return cls(root=Path(root), name=name, concepts=names, alarm=tuple(alarm), items=tuple(items), notes=notes)

    @classmethod
    def from_dataset(
        cls,
        dataset: Iterable[Mapping[str, Any]],
        to_row: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        concepts: Sequence[str],
        alarm: Sequence[str] = (),
        name: str = "items",
        root: str | Path = ".",
    ) -> ItemSet:
        """Make a set of a ``datasets.Dataset`` or any iterable of rows.

        Args:
            dataset: the rows.
            to_row: converts a row of the dataset to one for :meth:`from_list`.
            concepts: as in :meth:`from_list`.
            alarm: as in :meth:`from_list`.
            name: name of the set.
            root: as in :meth:`from_list`.

        Raises:
            ValueError: as :meth:`from_list`.
        """
        return cls.from_list(map(to_row, dataset), concepts=concepts, alarm=alarm, name=name, root=root)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def select(self, *, split: str | None = None, purpose: str | Sequence[str] | None = None) -> ItemSet:
        """Return the items of one split and/or one or more purposes."""
        purposes = (purpose,) if isinstance(purpose, str) else purpose
        keep = [i for i in self.items if (split is None or i.split == split) and (purposes is None or i.purpose in purposes)]
        return replace(self, items=tuple(keep))

    def holding(self, items: Sequence[Item]) -> ItemSet:
        """Return the set with these items instead of its own."""
        return replace(self, items=tuple(items))

    @property
    def where(self) -> Path:
        """Path for messages: ``items.jsonl``, or the directory of a format without that file."""
        path = self.root / "items.jsonl"
        return path if path.is_file() else self.root

    @property
    def modalities(self) -> np.ndarray:
        """(N,) str"""
        return np.array([i.modality for i in self.items])

    @property
    def partners(self) -> np.ndarray:
        """(N,) int: place of every item's twin (tag ``twin``) in this set, -1 without one."""
        place = {i.id: n for n, i in enumerate(self.items)}
        return np.array([place.get(i.tags.get("twin", ""), -1) for i in self.items], dtype=int)

    def media_keys(self) -> np.ndarray:
        """Return (N,) str, equal for items whose media are equal byte for byte.

        Items without media have the name of their clip.
        """
        digests = {path: content_digest(self.root / path).hex() for path in {p for i in self.items for _, p in i.media}}
        return np.array([" ".join(digests[p] for _, p in i.media) or i.clip for i in self.items])

    def unlabelled(self) -> ItemSet:
        """Return the items without their gold options, so that later code cannot use them."""
        return replace(self, items=tuple(replace(i, gold=None) for i in self.items))

    @property
    def orders(self) -> dict[str, list[int]]:
        """Item id -> :attr:`Item.order`, for items with shuffled options."""
        return {i.id: order for i in self.items if (order := i.order) is not None}

    def fingerprint(self, *, labels: bool = False) -> str:
        """Return a hash of the ids, prompts, options and media that a model sees, in order.

        With ``labels``, it also covers everything that measurements compare with. By default it
        does not, because labels change no observation.
        """
        digest, seen = hashlib.sha256(), set()
        if labels:
            digest.update(json.dumps([self.concepts, self.alarm]).encode())
        if any(kind == "video" for item in self.items for kind, _ in item.media):
            digest.update(json.dumps([self.framing.frames, self.framing.side]).encode())
        for item in self.items:
            row: list[Any] = [item.id, item.clip, item.messages, [o.text for o in item.options]]
            if labels:
                row += [item.split, item.purpose, item.modality, item.gold, [o.concept for o in item.options]]
            digest.update(json.dumps(row, sort_keys=True).encode())
            for _, path in item.media:
                if path not in seen:
                    seen.add(path)
                    digest.update(content_digest(self.root / path))
        return digest.hexdigest()[:16]
