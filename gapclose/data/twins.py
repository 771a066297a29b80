"""Twins: two questions about one clip that differ in the claim alone, so that the premise of exactly one is true."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item

ALIKE = 0.7
"""share of words, in order, from which two questions about the same media count as twins"""


def tag_twins(items: Sequence[Item]) -> list[Item]:
    """Return the items with the twin's id as tag ``twin`` on both items of a pair.

    A pair is the only two items of a clip and modality, with different gold concepts.
    """
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.clip, item.modality].append(item)
    twin = {}
    for group in groups.values():
        if len(group) == 2 and None not in (a := {i.concept for i in group}) and len(a) == 2:
            twin |= {group[0].id: group[1].id, group[1].id: group[0].id}
    return [replace(i, tags={**i.tags, "twin": twin[i.id]}) if i.id in twin else i for i in items]


def find_twins(items: Sequence[Item]) -> list[Item]:
    """As :func:`tag_twins`, for sets that do not name twins.

    Two questions about the same media and modality, with different gold concepts, are a pair if
    each is the other's most similar one (at least :data:`ALIKE`).
    """
    groups: dict[tuple, list[Item]] = defaultdict(list)
    for item in items:
        if item.concept is not None:
            groups[item.clip, item.modality, tuple(item.media)].append(item)
    nearest: dict[str, str] = {}
    for group in groups.values():
        for item in group:
            others = [(_alike(item, o), o.id) for o in group if o.concept != item.concept and o.text != item.text]
            likeness, other = max(others, default=(0.0, ""))
            if likeness >= ALIKE:
                nearest[item.id] = other
    twin = {a: b for a, b in nearest.items() if nearest.get(b) == a}
    return [replace(i, tags={**i.tags, "twin": twin[i.id]}) if i.id in twin else i for i in items]


def _alike(one: Item, other: Item) -> float:
    return SequenceMatcher(None, *(((i.stem or i.text).split()) for i in (one, other)), autojunk=False).ratio()


def check_twins(items: ItemSet, problems: ErrorCollector) -> None:
    """Add to ``problems`` every twin that is missing, about another clip, or names another item."""
    by_id = {i.id: i for i in items}
    for item in items:
        name = item.tags.get("twin")
        other = by_id.get(name or "")
        if name is None:
            continue
        if other is None:
            fault = "is no item of the set"
        elif other.clip != item.clip:
            fault = f"is about another clip, {other.clip!r}"
        elif other.tags.get("twin") != item.id:
            fault = f"names {other.tags.get('twin')!r} as its own"
        else:
            continue
        problems.add(
            f"{items.where}: item {item.id!r}: its twin {name!r} {fault}; twins are two items of one clip, each named by the other"
        )


def check_twins_differ(items: ItemSet, problems: ErrorCollector) -> None:
    """Add to ``problems`` what ``targets.twins`` cannot build on.

    Namely labelled twins with one right concept, and gap items of train or val without a twin: one
    operating point, chosen on val, serves all readings of train, so they must be alike.
    """
    gap, place = items.select(purpose="gap"), f"{items.where}: targets.twins is true"
    for split in ("train", "val"):
        of = items.select(split=split, purpose="gap")
        if alone := [i.id for i, n in zip(of, of.partners.tolist(), strict=True) if n < 0]:
            problems.add(
                f"{place}, and {len(alone)} of {len(of)} gap items of split {split!r} have no twin (tag `twin`), e.g. {alone[0]!r}; "
                "give each one, or leave targets.twins false"
            )
    pairs = [(i, gap.items[n]) for i, n in zip(gap, gap.partners.tolist(), strict=True) if n >= 0]
    for a, b in pairs:
        if a.id < b.id and a.gold is not None and b.gold is not None and a.concept == b.concept:
            problems.add(
                f"{place}, and item {a.id!r} and its twin {b.id!r} have one right concept, {a.concept!r}; correct the labels or the tags"
            )
