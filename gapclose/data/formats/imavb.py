"""The layout of IMAVB (arXiv 2605.13737): four tables of questions about videos.

The prompt is the paper's, and a letter answers. Each clip has questions about vision and about
audio, with a true premise (``standard_*``) and with a false one (``misleading_*``). Options A to D
are contents; E states that the visual detail is wrong, F that the audio detail is. The original
tables are all for testing, so this reader assigns clips to splits, with all questions of a clip
together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.data.formats.directory import LAYOUTS, table_names
from gapclose.data.formats.tables import Row, read_tables
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option, leaves, path_fault
from gapclose.data.keys import key, text_of
from gapclose.data.question_text import LETTERS, letters_prompt
from gapclose.data.splits import SplitAssignment
from gapclose.data.twins import tag_twins

CONCEPTS = ("standard", "false_vision", "false_audio")
EXPRESSES = {"A": "standard", "B": "standard", "C": "standard", "D": "standard", "E": "false_vision", "F": "false_audio"}
REJECTION = {"E": "The visual detail in the question is incorrect", "F": "The audio detail in the question is incorrect"}
"""texts for rows that omit these options"""
SHOWN = {"vision": ("video",), "audio": ("audio",), None: ("video", "audio")}
"""subject of the questions -> the media of a video that a model receives"""


def read_imavb(directory: Path, problems: ErrorCollector, dealing: SplitAssignment, about: str | None = None) -> ItemSet:
    """Return items of the four tables, each about a video and its sound track.

    Args:
        about: vision or audio: only the questions about it, without the other half of the video and
            the option that rejects it.
    """
    rows = [r for r in read_tables(directory, problems, only=LAYOUTS) if r.table in LAYOUTS]
    for name in sorted(set(LAYOUTS) - set(table_names(directory))):
        problems.add(f"{directory}: no table {name} (as .jsonl, .json, .csv or .parquet); IMAVB has {', '.join(LAYOUTS)}")
    whole = [r for r in rows if _whole(r, problems)]
    split = dealing.deal(key(r.values["video_id"]) for r in whole)
    films: dict[str, str] = {}
    items, counted = [], dict[tuple[str, str], int]()
    for row in whole:
        clip = key(row.values["video_id"])
        if clip not in films:
            stated = _stated(row.values.get("video"))
            films[clip] = film_path(directory, text_of(row.values["video_id"]), stated)
            if stated and leaves(stated) and not (directory / films[clip]).is_file():
                problems.add(
                    f"{row.place}: item {clip!r} of {row.table}: video is {stated!r}, which leaves {directory}; move or link the film to "
                    f"{films[clip]}"
                )
        number = counted[row.table, clip] = counted.get((row.table, clip), 0) + 1
        if about in (None, row.table.split("_")[1]):
            items.append(_item(row, clip, number, split[clip], films[clip], about))
    concepts = tuple(dict.fromkeys(_expresses(about).values()))
    return ItemSet(root=directory, name=directory.name, concepts=concepts, alarm=concepts[1:], items=tuple(tag_twins(items)))


def _expresses(about: str | None) -> dict[str, str]:
    """Return letter -> its concept, for the letters that are offered."""
    return {k: c for k, c in EXPRESSES.items() if about is None or c in ("standard", f"false_{about}")}


def film_path(directory: Path, clip: str, stated: str | None) -> str:
    """Return where a clip's video lies, relative to the directory.

    It is found by its id under ``videos`` or ``video``, else at the row's path if that is inside
    the directory.
    """
    named = [stated, f"videos/{Path(stated).name}"] if stated else []
    usual = [f"{folder}/{clip}.mp4" for folder in ("videos", "video")]
    return next((p for p in (*usual, *named) if not leaves(p) and not path_fault(p) and (directory / p).is_file()), usual[0])


def check_clip(clip: str, label: str, problems: ErrorCollector) -> None:
    """Add to ``problems`` a clip id that leads outside the data or is an impossible file name."""
    if fault := path_fault(f"videos/{clip}.mp4"):
        problems.add(f"{label}: video_id is {shown(clip)}, {fault}")
    elif leaves(f"videos/{clip}"):
        problems.add(f"{label}: video_id leads out of the data; name a film in them")


def _stated(video: Any) -> str | None:
    """Return the path of a row's video."""
    path = video.get("path") if isinstance(video, dict) else video
    return path if isinstance(path, str) and path else None


def _whole(row: Row, problems: ErrorCollector) -> bool:
    """Whether a row has everything that an item needs; errors go to ``problems``."""
    values, before = row.values, len(problems)
    label = f"{row.place}: item {shown(values.get('video_id'))} of {row.table}"
    for name in ("video_id", "question", *(f"option_{letter}" for letter in "abcd")):
        try:
            if not (key if name == "video_id" else text_of)(values.get(name)):
                problems.add(f"{label}: {name} is {shown(values.get(name))}; fill it in")
        except ItemError as fault:
            problems.add(f"{label}: {name} {fault}")
    if len(problems) == before:
        check_clip(text_of(values["video_id"]), label, problems)
    answer, (premise, modality) = values.get("correct_answer"), row.table.split("_")
    found = EXPRESSES.get(answer.strip().upper()) if isinstance(answer, str) else None
    wanted = "standard" if premise == "standard" else f"false_{modality}"
    if found is None:
        problems.add(f"{label}: correct_answer is {answer!r}; it must be a letter from A to F")
    elif found != wanted:
        problems.add(
            f"{label}: correct_answer {answer!r} means {found}, but the table's items are {wanted}; move the row or fix the letter"
        )
    return len(problems) == before


def _item(row: Row, clip: str, number: int, split: str, film: str, about: str | None) -> Item:
    (premise, modality), offered = row.table.split("_"), _expresses(about)
    texts = [text_of(row.values.get(f"option_{k.lower()}")) or REJECTION[k] for k in offered]
    content = [{"type": kind, "path": film} for kind in SHOWN[about]]
    content.append({"type": "text", "text": letters_prompt(text_of(row.values["question"]), texts)})
    named = zip(LETTERS, offered.values(), texts, strict=False)
    options = [Option(text=letter, concept=concept, meaning=text) for letter, concept, text in named]
    return Item(
        id=f"{clip}/{row.table}" + (f"-{number}" if number > 1 else ""),
        clip=clip,
        split=split,
        modality=modality,
        messages=[{"role": "user", "content": content}],
        options=options,
        gold=list(offered).index(row.values["correct_answer"].strip().upper()),
        tags={"premise": premise},
        stem=text_of(row.values["question"]),
    )
