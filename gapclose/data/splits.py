"""Assign clips to splits by shares, find twins, and check both."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gapclose.core.errors import ErrorCollector
from gapclose.core.hashing import content_digest
from gapclose.data.item_set import ItemSet
from gapclose.data.items import SPLITS, Item, content_parts

OFFICIAL = {"test": "test", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
"""name of a table -> its split"""


def check_splits_filled(items: ItemSet, needs: dict[str, bool], folds: int, problems: ErrorCollector) -> None:
    """Check that every split in ``needs`` has gap items, and labels where its value is True.

    val and test measure items of every purpose, so all of theirs need a gold option; fit uses gap
    items only. Every concept must occur in gap items of at least ``folds`` clips, because probes
    are fitted in that many folds of clips. Errors go to ``problems``.
    """
    path = items.where
    remedy = "add some or change the split of others" + (" (data.shares deals clips out)" if path.is_dir() else "")
    for split, labelled in needs.items():
        chosen = items.select(split=split, purpose="gap").items
        if not chosen:
            problems.add(f"{path}: split {split!r} has no items with purpose 'gap'; {remedy}")
            continue
        if not labelled:
            continue
        looked_at = chosen if split == "fit" else items.select(split=split).items
        missing = [i.id for i in looked_at if i.gold is None]
        if missing:
            problems.add(
                f"{path}: split {split!r} needs labels, but {len(missing)} items have no gold option, "
                f"e.g. {missing[:3]}; label them or move them to split 'train'"
            )
            continue
        for concept in items.concepts:
            clips = len({i.clip for i in chosen if i.concept == concept})
            if not clips:
                problems.add(f"{path}: split {split!r} has no item whose gold expresses {concept!r}; no probe can learn or be judged on it")
            elif clips < folds:
                problems.add(
                    f"{path}: split {split!r} has items whose gold expresses {concept!r} about {clips} clips, too few for {folds} folds of "
                    "clips; add clips, lower probe.folds or, where data.shares dealt them out, give this split more"
                )


REMEDY = "give all that ask about it one clip and one split (in a table: name a column `clip`), or keep one of them"


@dataclass(frozen=True, kw_only=True)
class SplitAssignment:
    """How clips are assigned to fit, train, val and test."""

    shares: Sequence[float] = (0.3, 0.3, 0.1, 0.3)
    """shares of the clips for fit, train, val and test; they add up to 1; 0 leaves a split out"""
    seed: int = 0

    def deal(self, clips: Iterable[str]) -> dict[str, str]:
        """Return clip -> split; it depends only on the set of clip names and the seed."""
        names = sorted(set(clips))
        order = np.random.default_rng(self.seed).permutation(len(names)).tolist()
        ends = np.round(np.cumsum(self.shares) * len(names)).astype(int).tolist()
        starts = [0, *ends[:-1]]
        return {names[n]: split for split, a, b in zip(SPLITS, starts, ends, strict=True) for n in order[a:b]}


def deal_tables(
    rows: Sequence[tuple[str, str]], dealing: SplitAssignment, directory: Path, problems: ErrorCollector
) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of every (table, clip) row, and notes.

    A table named ``test`` or ``val`` (or a synonym) is that split. If there are tables ``test`` and
    ``fit``, the tables ``fit`` and ``train`` are splits, too. The clips of all other tables are
    assigned to the remaining splits by their shares. If there are no others, and no table ``fit``,
    the clips of all tables are assigned.
    """
    tables = {table for table, _ in rows}
    names = OFFICIAL | ({"fit": "fit", "train": "train"} if {"fit", "test"} <= tables else {})
    kept = {table: names[table] for table in tables if table in names}
    if kept.keys() == tables:
        if "fit" in tables:
            return [kept[table] for table, _ in rows], ()
        kept = {}  # a benchmark without a split to fit on is assigned as a whole
    rest = sorted(tables - kept.keys())
    shares = [0.0 if split in kept.values() else share for split, share in zip(SPLITS, dealing.shares, strict=True)]
    if not sum(shares):
        problems.add(
            f"{directory}: data.shares gives nothing to any split but {sorted(kept)}, which are tables of their own; raise that of fit"
        )
        return [kept.get(table, "fit") for table, _ in rows], ()
    dealt = replace(dealing, shares=[s / sum(shares) for s in shares]).deal(clip for table, clip in rows if table not in kept)
    notes = []
    if len(tables) > 1:
        alone = f"the tables {sorted(kept)} stay what they are called; " if kept else ""
        notes.append(f"{directory}: {alone}the clips of {rest} are dealt out together, by data.shares, to {sorted(set(dealt.values()))}")
    return [kept[table] if table in kept else dealt[clip] for table, clip in rows], tuple(notes)


def check_apart(items: ItemSet, problems: ErrorCollector) -> None:
    """Add duplicate ids, and clips in several splits, to ``problems``, for sets made of tables."""
    seen: dict[str, int] = {}
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for item in items:
        seen[item.id] = seen.get(item.id, 0) + 1
        splits[item.clip].setdefault(item.split, item.id)
    for ident, count in seen.items():
        if count > 1:
            problems.add(f"{items.where}: item id {ident!r} was already used ({count} times in all); give every item its own id")
    for clip, where in splits.items():
        if len(where) > 1:
            named = ", ".join(f"{split} (item {ident!r})" for split, ident in where.items())
            problems.add(f"{items.where}: clip {clip!r} is in several splits: {named}; keep all questions of a clip in one split")


def check_media_apart(items: ItemSet, broken: Collection[tuple[str, str]], problems: ErrorCollector) -> None:
    """Add media files, and questions without media, that two splits share to ``problems``.

    Files are compared byte for byte, questions word for word with their options. Two kinds of
    shared files pass: files that every item carries, which reveal no other split; and copies under
    two names in fit and train, which are not measured. Items there that show and play exactly the
    same are refused, because the probe would predict what it was fitted on. So are copies of
    questions without media, which have nothing else.

    Args:
        broken: ``(kind, path)`` of unreadable files, which other checks report.
    """
    digests: dict[str, bytes] = {}
    users: dict[bytes, dict[str, tuple[Item, str]]] = defaultdict(dict)
    carried: Counter[bytes] = Counter()
    for item in items:
        paths = {path for kind, path in item.media if (kind, path) not in broken}
        for path in sorted(paths - set(digests)):
            digests[path] = content_digest(items.root / path)
        for path in sorted(paths):
            users[digests[path]].setdefault(item.split, (item, path))
        carried.update({digests[path] for path in paths})
    wholes: dict[frozenset[bytes], dict[str, Item]] = defaultdict(dict)
    for item in items:
        if item.split in ("fit", "train") and not any(entry in broken for entry in item.media):
            shown = frozenset(d for d in (digests[path] for _, path in item.media) if carried[d] < len(items))
            wholes[shown].setdefault(item.split, item)
    for shown, where in wholes.items():
        names = [{path for _, path in item.media if digests[path] in shown} for item in where.values()]
        if shown and len(where) == 2 and len({item.clip for item in where.values()}) == 2 and names[0].isdisjoint(names[1]):
            named = ", ".join(
                f"{split} (item {item.id!r}: {', '.join(dict.fromkeys(p for _, p in item.media))})" for split, item in where.items()
            )
            problems.add(f"{items.where}: the same media are in fit and in train, and nothing else beside them: {named}; {REMEDY}")
    for digest, where in users.items():
        copies = set(where) == {"fit", "train"} and len({path for _, path in where.values()}) == 2
        if len(where) < 2 or len({item.clip for item, _ in where.values()}) == 1 or copies or carried[digest] == len(items):
            continue
        named = ", ".join(f"{split} (item {item.id!r}: {path})" for split, (item, path) in where.items())
        problems.add(f"{items.where}: the same media file is in several splits: {named}; {REMEDY}")
    _check_questions_apart(items, problems)


def check_clips_apart(items: ItemSet, broken: Collection[tuple[str, str]], problems: ErrorCollector) -> tuple[str, ...]:
    """Add labelled splits in which different clips show and play the same bytes to ``problems``.

    Folds, intervals and verdicts count clips: 60 recordings under 240 names would count as 240. The
    comparison covers everything that an item shows and plays together, except files that every item
    carries; without media, it covers words and options. In ``train``, whose clips are never
    counted, duplicates become a note. Return the notes.

    Args:
        broken: ``(kind, path)`` of unreadable files, which other checks report.
    """
    carried: Counter[bytes] = Counter()
    shown: list[frozenset[bytes]] = []
    for item in items:
        there = item.media if not any(entry in broken for entry in item.media) else []
        shown.append(frozenset(content_digest(items.root / path) for _, path in there))
        carried.update(shown[-1])
    everywhere = {digest for digest, count in carried.items() if count == len(items)}
    # False where all items ask one question without media
    silent = len({_words(i) for i in items if not i.media}) > 1 or any(i.media for i in items)
    clips: dict[tuple[str, object], dict[str, Item]] = defaultdict(dict)
    for item, digests in zip(items, shown, strict=True):
        whole: object = digests - everywhere or (_words(item) if silent and not item.media else None)
        if whole is not None:
            clips[item.split, whole].setdefault(item.clip, item)
    notes = []
    for split in SPLITS:
        again = [users for (of, _), users in clips.items() if of == split and len(users) > 1]
        if not again:
            continue
        names = {i.clip for i in items if i.split == split}
        alike = {clip for users in again for clip in users}
        first = list(again[0].values())
        files = ", ".join(dict.fromkeys(p for i in first[:2] for _, p in i.media)) or "no media, and the same words"
        told = (
            f"{items.where}: split {split!r}: of {len(names)} clips, {len(alike)} show and play just what another one does, e.g. "
            f"{' and '.join(repr(i.clip) for i in first[:3])} (items {', '.join(repr(i.id) for i in first[:3])}: {files})"
        )
        if split == "train":
            notes.append(told)
        else:
            problems.add(
                f"{told}; folds, intervals and verdicts count clips, so give all questions about the same media one clip (in a table: name a "
                "column with columns: {clip: ...}), or keep one of them"
            )
    return tuple(notes)


def _check_questions_apart(items: ItemSet, problems: ErrorCollector) -> None:
    """As :func:`check_media_apart`, for items without media; one question for all items passes."""
    asked: dict[str, dict[str, Item]] = defaultdict(dict)
    for item in items:
        if not item.media:
            asked[_words(item)].setdefault(item.split, item)
    if len(asked) == 1 and not any(item.media for item in items):
        return
    for where in asked.values():
        if len(where) > 1 and len({item.clip for item in where.values()}) > 1:
            named = ", ".join(f"{split} (item {item.id!r})" for split, item in where.items())
            problems.add(f"{items.where}: the same question without media is in several splits: {named}; {REMEDY}")


def _words(item: Item) -> str:
    """Return the texts of an item without media, and its options in a fixed order."""
    said = [[message["role"], *(part["text"] for part in content_parts([message]))] for message in item.messages]
    return json.dumps([said, sorted([o.text, o.words] for o in item.options)])


def by_clip(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the items grouped by clip, so that media are decoded once; clips keep their order."""
    place = {clip: n for n, clip in enumerate(dict.fromkeys(i.clip for i in items))}
    return tuple(sorted(items, key=lambda i: place[i.clip]))
