"""Sets of items: read from a directory, or made of rows in memory."""

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
    """How films are shown."""

    frames: int = 8
    """taken evenly in time, from the first to the last"""
    side: int = 448
    """longest side in pixels; larger pictures are scaled down"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How media are decoded; it changes no result."""

    workers: int = 2
    """threads that decode beside the model; 0: none, everything is decoded when it is asked for"""
    cache: Path | None = None
    """directory of decoded media"""
    cache_gb: float = 20.0
    """what that may take, in 10^9 bytes"""


def _plain(value: Any) -> Any:
    """A value of a row as JSON has it. Raises: TypeError, with the remedy, for what JSON does not have."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"holds a {type(value).__name__}; save media as files and give their paths, and write arrays as lists")


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemSet:
    """Items with the concepts they are about. Selecting keeps the order."""

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
    """what a reader did that the data do not say, in words: rows left out on purpose, clips dealt out"""

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
        """Items from rows in memory: dictionaries with the keys of a line of ``items.jsonl`` (docs/your-data.md).

        Args:
            rows: one per item: ``id``, ``clip``, ``split``, ``modality``, ``messages``, ``options``, and where known ``gold``.
            concepts: everything that an option may express.
            alarm: the concepts that object to the question, such as a false premise.
            root: directory that the paths of media start from.

        Raises:
            ValueError: everything that is wrong with the rows, all at once, each with row, item and remedy.
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
        """Items from a ``datasets.Dataset`` or any iterable of rows.

        Args:
            to_row: makes of a row of the dataset one that :meth:`from_list` takes.
            concepts, alarm, name, root: as of :meth:`from_list`.

        Raises:
            ValueError: as :meth:`from_list`.
        """
        return cls.from_list(map(to_row, dataset), concepts=concepts, alarm=alarm, name=name, root=root)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def select(self, *, split: str | None = None, purpose: str | Sequence[str] | None = None) -> ItemSet:
        """The items of one split and/or one or more purposes."""
        purposes = (purpose,) if isinstance(purpose, str) else purpose
        keep = [i for i in self.items if (split is None or i.split == split) and (purposes is None or i.purpose in purposes)]
        return replace(self, items=tuple(keep))

    def holding(self, items: Sequence[Item]) -> ItemSet:
        """The set with these items in place of its own."""
        return replace(self, items=tuple(items))

    @property
    def where(self) -> Path:
        """What to name in a complaint: the file with the items, or the directory where another format keeps them in several."""
        path = self.root / "items.jsonl"
        return path if path.is_file() else self.root

    @property
    def modalities(self) -> np.ndarray:
        """(N,) str"""
        return np.array([i.modality for i in self.items])

    def media_keys(self) -> np.ndarray:
        """(N,) str, what an item shows and plays: equal where the media are equal byte for byte; an item without media has its clip's name."""
        digests = {path: content_digest(self.root / path).hex() for path in {p for i in self.items for _, p in i.media}}
        return np.array([" ".join(digests[p] for _, p in i.media) or i.clip for i in self.items])

    def unlabelled(self) -> ItemSet:
        """The same items without their gold options, so that code downstream cannot look."""
        return replace(self, items=tuple(replace(i, gold=None) for i in self.items))

    @property
    def orders(self) -> dict[str, list[int]]:
        """Item id -> :attr:`Item.order`, of the items whose options were shuffled."""
        return {i.id: order for i in self.items if (order := i.order) is not None}

    def fingerprint(self, *, labels: bool = False) -> str:
        """Hash of everything a model is shown or asked, in order, media included; with ``labels``, of all that a measurement is judged by.

        Labels are left out by default: they change no observation.
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
