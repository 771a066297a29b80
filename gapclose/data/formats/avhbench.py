"""The layout of AVHBench (arXiv 2410.18325): questions about videos, answered by yes or no.

A row has ``video_id``, ``task``, ``text`` and ``label``. Rows lie in ``json/*.json``, one file per
clip, or in lists beside the videos, which are in ``video/`` or ``videos/``. The alarm is *no*,
because models tend to agree. Caption rows do not have two answers; they are left out, with a note.
A video and its copy with another sound (``00191_swap``) are one clip. The rows do not name the
source of that sound, so its own video may be in another split; a note reports this.
"""

from __future__ import annotations

from pathlib import Path

from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.data.formats.directory import table_files
from gapclose.data.formats.imavb import check_clip, film_path
from gapclose.data.formats.tables import Row, read_into
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.keys import key
from gapclose.data.question_text import either_prompt
from gapclose.data.splits import SplitAssignment

MODALITY = {"Video-driven Audio Hallucination": "audio", "Audio-driven Video Hallucination": "vision", "AV Matching": "matching"}
"""task -> subject of the question"""
CAPTIONS = "AV Captioning"
SWAPPED = "_swap"
"""end of the id of a video with another clip's sound"""
OPTIONS = [Option(text="yes", concept="true"), Option(text="no", concept="false")]
KEYS = {"video_id", "task", "text", "label"}


def json_files(directory: Path) -> list[Path]:
    """Return one file per clip under ``json``, or the lists beside the videos."""
    inside = (
        sorted(p for p in (directory / "json").glob("*") if p.suffix.lower() == ".json" and not p.name.startswith("."))
        if (directory / "json").is_dir()
        else []
    )
    return inside or [p for files in table_files(directory).values() for p in files if p.suffix.lower() == ".json"]


def is_yes_no(directory: Path) -> bool:
    """Whether the first file of questions has the fields of this layout."""
    files = json_files(directory)
    rows = read_into(ErrorCollector(""), "", files[0]) if files else []
    return bool(rows) and set(rows[0].values) >= KEYS


def read_yes_no(directory: Path, problems: ErrorCollector, dealing: SplitAssignment) -> ItemSet:
    """Return items about a video and its sound track, with the concepts ``true`` and ``false``."""
    rows = [r for path in json_files(directory) for r in read_into(problems, path.stem, path)]
    asked = [r for r in rows if r.values.get("task") != CAPTIONS]
    notes = (
        (f"{len(rows) - len(asked)} rows of {directory} are left out: they ask for a caption ({CAPTIONS}) and have no options",)
        if len(asked) < len(rows)
        else ()
    )
    whole = [r for r in asked if _whole(r, problems)]
    split = dealing.deal(_clip(r) for r in whole)
    swapped = len({key(r.values["video_id"]) for r in whole if key(r.values["video_id"]).endswith(SWAPPED)})
    if swapped and len(set(split.values())) > 1:
        notes += (
            f"{swapped} films of {directory} carry another clip's sound ({SWAPPED}), and nothing says whose: it may be heard in two splits; "
            "leave them out, or name the clips with a columns.yaml, where that matters",
        )
    items, count = [], dict[str, int]()
    for row in whole:
        film, clip = row.values["video_id"].strip(), _clip(row)
        count[film] = count.get(film, 0) + 1
        path = film_path(directory, film, None)
        content = [
            {"type": "video", "path": path},
            {"type": "audio", "path": path},
            {"type": "text", "text": either_prompt(row.values["text"].strip(), [o.text for o in OPTIONS])},
        ]
        items.append(
            Item(
                id=f"{film}/{count[film]}",
                clip=clip,
                split=split[clip],
                modality=MODALITY[row.values["task"]],
                messages=[{"role": "user", "content": content}],
                options=list(OPTIONS),
                gold=["yes", "no"].index(row.values["label"].strip().lower()),
                stem=row.values["text"].strip(),
            )
        )
    return ItemSet(root=directory, name=directory.name, concepts=("true", "false"), alarm=("false",), items=tuple(items), notes=notes)


def _clip(row: Row) -> str:
    return key(row.values["video_id"]).removesuffix(SWAPPED)


def _whole(row: Row, problems: ErrorCollector) -> bool:
    values, before = row.values, len(problems)
    label = f"{row.place}: item {shown(values.get('video_id'))}"
    for name in ("video_id", "text"):
        if not isinstance(values.get(name), str) or not values[name].strip():
            problems.add(f"{label}: {name} is {shown(values.get(name))}; fill it in")
    if len(problems) == before:
        try:
            if not key(values["video_id"]):
                problems.add(f"{label}: video_id is {shown(values['video_id'])}; fill it in")
        except ItemError as fault:
            problems.add(f"{label}: video_id {fault}")
        check_clip(values["video_id"].strip(), label, problems)
    task = values.get("task")
    if not isinstance(task, str) or task not in MODALITY:
        problems.add(f"{label}: task {shown(task)} is not one of {[*MODALITY, CAPTIONS]}; fix it")
    if str(values.get("label")).strip().lower() not in ("yes", "no"):
        problems.add(f"{label}: label is {shown(values.get('label'))}; it must be Yes or No")
    return len(problems) == before
