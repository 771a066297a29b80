"""One data set or configuration through the project's own readers, as ``validate`` reads them before it loads a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gapclose.core.errors import ErrorCollector
from gapclose.data.formats import read_set
from gapclose.data.item_set import ItemSet
from gapclose.data.jsonl import read_items, write_items
from gapclose.data.media import faults, report_faults
from gapclose.data.splits import SplitAssignment, check_media_apart, check_splits_filled
from gapclose.data.twins import check_twins
from gapclose.pipeline.config import Config, known_keys, parse_config, save_config
from tests.fuzz.check_media import Unexpected

NEEDED = {"fit": True, "test": True}
KEYS = tuple(known_keys())
"""a refusal of a value names its key, which may stand in a file or on the command line"""
LONGEST_LINE = 4_000
"""characters of a line of a refusal: whoever reads it wants the start of a value, not all of it"""


def check_set(directory: Path, *, decode: bool = True) -> bool:
    """Whether the set is read; False where it is refused.

    Args:
        decode: also decode the media of its items.

    Raises:
        Unexpected: when a refusal does not name a file of the set, or a set that was read is not the same when it is written and read again.
        Exception: whatever else escapes; every one is a finding.
    """
    problems = ErrorCollector(f"the item set {directory}")
    try:
        items = read_set(directory, problems, SplitAssignment(shares=(0.5, 0.0, 0.0, 0.5)))
        if not len(problems):
            check_twins(items, problems)
        found = faults(items) if decode else {e: "no such file" for i in items for e in i.media if not (items.root / e[1]).is_file()}
        check_media_apart(items, found, problems)
        report_faults(items, found, problems)
        check_splits_filled(items, NEEDED, 2, problems)
        problems.raise_if_any()
    except ValueError as error:
        _check_message(str(error), str(directory))
        return False
    items.fingerprint(labels=True)
    "\n".join(items.notes).encode("utf-8")
    _check_written_again(items, directory / "again")
    return True


def _check_written_again(items: ItemSet, directory: Path) -> None:
    write_items(items, directory)
    again = read_items(directory)
    for before, after in zip(items, again, strict=True):
        if before != after:
            raise Unexpected(f"an item is another one after it was written and read again: {before} {after}")


def check_configuration(path: Path) -> bool:
    """Whether the configuration is read; False where it is refused. Raises: as :func:`check_set`."""
    try:
        config = parse_config(["--config", str(path)])
    except ValueError as error:
        named = next((key for key in KEYS if str(error).startswith((f"{key} ", f"{key},"))), str(path))
        _check_message(str(error), named)
        return False
    saved = path.with_name("saved.yaml")
    save_config(config, saved)
    again = parse_config(["--config", str(saved)])
    if repr(_plain(config)) != repr(_plain(again)):
        raise Unexpected(f"the configuration is another one after it was saved and read again: {_plain(config)} {_plain(again)}")
    return True


def _plain(config: Config) -> dict:
    return dataclasses.asdict(config)


def _check_message(message: str, place: str) -> None:
    if place not in message:
        raise Unexpected(f"the refusal does not name the file: {message[:300]}")
    try:
        message.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unexpected(f"the refusal cannot be printed: {error}") from error
    longest = max(map(len, message.splitlines()))
    if longest > LONGEST_LINE:
        raise Unexpected(f"the refusal has a line of {longest} characters: {message[:300]}")
