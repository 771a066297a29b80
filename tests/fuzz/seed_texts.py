"""Small whole data sets and configurations of every layout that the project reads, and the values that replace theirs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.fuzz.mutate import damaged

CLIPS = ("p01", "p02", "p03", "p04")
FILMED = (*CLIPS, "p01_swap")
PICTURE = "a.png"
"""image that lies beside every set"""
COLUMNS = """\
name: breath
concepts: [normal, crackle]
alarm: [crackle]
columns: {id: number, clip: patient, gold: label, split: part, question: asked}
modality: audio
options: {clear: normal, crackles: crackle}
gold_values: {0: clear, 1: crackles}
tags: [site]
"""
SHORT_COLUMNS = """\
concepts: [normal, crackle]
columns: {clip: patient, gold: label}
question: What is heard?
modality: audio
letters: true
option_columns: {first: normal, second: crackle}
"""
CONFIGURATION = """\
run_dir: runs/mine
seed: 3
data: {path: my-set, shares: [0.5, 0, 0, 0.5], frames: 8, on_error: skip}
model: {path: digits, dtype: float32}
observe: {max_new_tokens: 8, batch_size: 4}
probe: {folds: 4}
prompts:
  measured: [binary, free]
train: {epochs: 3, global_batch_size: 24, micro_batch_size: 8, learning_rate: 2.0e-4, retain: 0}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSeed:
    """A directory of files, of which one is mutated."""

    kind: str
    """what the table of results calls it"""
    files: dict[str, bytes]
    target: str
    """the file that is mutated"""
    role: str = "set"
    """as of :class:`tests.fuzz.inputs.Input`"""


def all_texts() -> list[TextSeed]:
    """Every seed; ``configuration`` is one file for ``parse_config``, all others are directories for ``read_set``."""
    own = {"items.jsonl": _lines(_items()), "set.json": json.dumps(_header(), indent=1).encode()}
    rows = _rows()
    map_, short = {"columns.yaml": COLUMNS.encode()}, {"columns.yaml": SHORT_COLUMNS.encode()}
    imavb = {f"{name}.jsonl": _lines(rows) for name, rows in _imavb().items()}
    saved = [
        ("csv", "all.csv", _csv),
        ("json lines", "all.jsonl", _lines),
        ("json", "all.json", _json),
        ("parquet", "all.parquet", _parquet),
    ]
    seeds = [
        TextSeed(kind="items.jsonl", files=own, target="items.jsonl"),
        TextSeed(kind="items.jsonl", files=own, target="items.jsonl"),
        TextSeed(kind="items.jsonl", files=own, target="items.jsonl"),
        TextSeed(kind="set.json", files=own, target="set.json"),
        TextSeed(kind="column map", files={**map_, "all.csv": _csv(rows)}, target="columns.yaml"),
        TextSeed(kind="column map", files={**short, "all.csv": _csv(rows)}, target="columns.yaml"),
        TextSeed(kind="json", files={"json/1.json": _json(_yes_no())}, target="json/1.json", role="films"),
        TextSeed(kind="json lines", files=imavb, target="standard_vision.jsonl", role="films"),
        TextSeed(kind="configuration", files={"my.yaml": CONFIGURATION.encode()}, target="my.yaml", role="configuration"),
    ]
    for kind, name, write in saved:
        seeds += [TextSeed(kind=kind, files={**which, name: write(rows)}, target=name) for which in (map_, short)]
    return seeds


def _header() -> dict[str, Any]:
    return {"name": "premises", "concepts": ["standard", "false_vision"], "alarm": ["false_vision"]}


def _items() -> list[dict[str, Any]]:
    options = [{"text": "odd", "concept": "standard"}, {"text": "unseen", "concept": "false_vision", "meaning": "not in the picture"}]
    return [
        {
            "id": f"{clip}/{n}", "clip": clip, "split": ("fit", "test")[int(clip[-1]) % 2], "modality": "vision",
            "messages": [{"role": "user", "content": [{"type": "image", "path": PICTURE}, {"type": "text", "text": f"Is {clip}{n} odd?"}]}],
            "options": options, "gold": gold, "purpose": "gap", "tags": {"question": "parity", "twin": f"{clip}/{1 - n}"}, "stem": "odd?",
        }
        for clip in CLIPS for n, gold in enumerate(("odd", "unseen"))
    ]  # fmt: skip


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "number": f"{clip}-{label}", "patient": clip, "label": label, "part": ("fit", "test")[int(clip[-1]) % 2], "site": "lung",
            "asked": f"Is {clip} clear, {label}?", "first": "clear", "second": "crackles",
        }
        for clip in CLIPS for label in ("clear", "crackles")
    ]  # fmt: skip


def _imavb() -> dict[str, list[dict[str, Any]]]:
    answers = {"standard_vision": "A", "misleading_vision": "E", "standard_audio": "B", "misleading_audio": "F"}
    return {
        name: [
            {"video_id": clip, "question": f"What does {name[0]} do in {clip}?", "correct_answer": answer, "video": f"videos/{clip}.mp4"}
            | {f"option_{letter}": f"{letter} it is" for letter in "abcd"}
            for clip in CLIPS
        ]
        for name, answer in answers.items()
    }


def _yes_no() -> list[dict[str, Any]]:
    return [
        {"video_id": clip, "task": "AV Matching", "text": f"Does {clip} match {label}?", "label": label}
        for clip in FILMED
        for label in ("Yes", "No")
    ]


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _json(rows: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps(rows).encode()


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


# What values are replaced by

LONG = "QUJD" * 30_000
LAUGHS = "[&a [x, x, x, x, x, x, x, x, x], &b [*a, *a, *a, *a, *a, *a, *a, *a, *a], &c [*b, *b, *b, *b, *b, *b, *b, *b, *b], "
LAUGHS += "&d [*c, *c, *c, *c, *c, *c, *c, *c, *c], &e [*d, *d, *d, *d, *d, *d, *d, *d, *d], &f [*e, *e, *e, *e, *e, *e, *e, *e, *e], "
LAUGHS += "&g [*f, *f, *f, *f, *f, *f, *f, *f, *f], &h [*g, *g, *g, *g, *g, *g, *g, *g, *g], &i [*h, *h, *h, *h, *h, *h, *h, *h, *h]]"
"""aliases of aliases: small as a file, 9 ** 9 words when it is written out"""
EVERYWHERE = (
    '""', "''", "0", "1", "-1", "null", "true", "false", "[]", "{}", "1.0", "1e400", "-1e400", "NaN", "Infinity", "-0.0", "1e-320", "9" * 400,
    "9" * 5_000, '"\\ud800"', '"\\u0000"', '"a\\nb"', '"\\u2028"', '"\\u202e"', '"\\u001b[31m"', '"[bold]x[/nope]"', '"{x}"', '"%s"', f'"{LONG}"', '"../a.png"',
    '"/etc/passwd"', '"."', f'"{PICTURE}"', '"p01"', '"p01/0"', '"fit"', '"train"', '"odd"', '"standard"', '" "', "[null]", '{"a": {"b": 1}}', '[["x"]]',
    '["x", "x"]', '{"": ""}', '"\\u0065\\u0301"', "[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, "2024-01-01", "\ufeff", "\x00", "\x1b", "'", '"', ",",
)  # fmt: skip
YAML = (
    "yes", "no", "off", "~", "? x", "- x", "!!python/object/apply:os.getcwd []", "!!binary aGVsbG8=", "!!set {a, b}", "!!timestamp 2024-13-45", "2024-13-45",
    "2001-12-14t21:59:43.10-25:00", "&x [*x]", "*nowhere", "<<", "{<<: 1}", LAUGHS, "0x1F", "0o17", "1_000", "12:30:45", "1" * 5_000, "%YAML 9", "---", "...",
    "|\n  x", "!", "!x y", "{? {a: 1} : b}", "{[1, 2]: 3}", ".inf", ".nan", "\t", "@", "`", "!!int x", "!!float x", "!!bool x", "!!omap x", "!!pairs [a]",
)  # fmt: skip
TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[\w./-]+')
ENCODINGS = ("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp1252")


def damaged_text(rng: Random, seed: TextSeed, others: Sequence[bytes]) -> bytes:
    """The target of ``seed`` after one or more damages: values replaced, lines or bytes mutated, another encoding."""
    content = seed.files[seed.target]
    if seed.kind == "parquet":
        return damaged(rng, content, others)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        draw = rng.random()
        if draw < 0.6:
            content = _replace_value(rng, content, yaml=seed.target.endswith(".yaml"))
        elif draw < 0.75:
            content = _move_lines(rng, content)
        elif draw < 0.8:
            content = _encode(rng, content)
        else:
            content = damaged(rng, content, others)
    return content


def _replace_value(rng: Random, content: bytes, *, yaml: bool) -> bytes:
    """A word, number or string replaced by a value that nobody expects, or by another one of the file."""
    found = list(TOKEN.finditer(content))
    if not found:
        return content
    match, draw = rng.choice(found), rng.random()
    if draw < 0.15:
        value = rng.choice(found)[0]
    elif draw < 0.2:
        value = match[0] + rng.choice(found)[0]
    else:
        value = rng.choice(EVERYWHERE + YAML * 2 if yaml else EVERYWHERE).encode("utf-8", "surrogatepass")
    return content[: match.start()] + value + content[match.end() :]


def _move_lines(rng: Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(5)
    if how == 0:
        del lines[place]
    elif how == 1:
        lines.insert(other, lines[place])
    elif how == 2:
        lines[place] += lines[other]
    elif how == 3:
        lines[place] = b"  " + lines[place]
    else:
        return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b" ")))
    return b"\n".join(lines)


def _encode(rng: Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace") + rng.choice(("", "é", "\u4f60"))
    return text.encode(rng.choice(ENCODINGS), "replace")
