"""Read a configuration from YAML files and the command line, and build its dataclasses.

Each value is parsed separately. All faults are collected: unknown keys, values of a wrong type, and
faults that a group reports.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from gapclose.core.config_checks import Complaint, Faults, hints_of, in_words
from gapclose.core.errors import ErrorCollector, ItemError, shown
from gapclose.core.files import near_sibling
from gapclose.core.parsing import parse_yaml, read_text
from gapclose.core.settings import WHOLE_KEYS

COMMAND_LINE = "command line"
ALIASES = 20
"""YAML aliases allowed in a configuration: nested aliases multiply when a value is written out"""


@dataclass(frozen=True, kw_only=True)
class Given:
    """One value as the user wrote it."""

    key: str
    """dotted key"""
    value: Any
    where: str
    """the file, or ``command line``, where every value is a string"""


def all_hints(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> type of a configuration's keys; a group's type is its dataclass."""
    found: dict[str, Any] = {}
    for name, hint in hints_of(kind).items():
        found[prefix + name] = hint
        if dataclasses.is_dataclass(hint):
            found |= all_hints(hint, f"{prefix}{name}.")
    return found


def read_given(arguments: Sequence[str], hints: dict[str, Any], problems: ErrorCollector) -> list[Given]:
    """Return the values of files and command line in order; add unknown keys to ``problems``."""
    found, words, place = list[Given](), list(arguments), 0

    def check(key: str, where: str) -> bool:
        if key in hints or key.startswith(tuple(f"{whole}." for whole in WHOLE_KEYS)):
            return True
        last = {k.rpartition(".")[2]: k for k in sorted(hints)}
        near = difflib.get_close_matches(key, hints, n=1) or difflib.get_close_matches(key.rpartition(".")[2], last, n=1)
        hint = f"; did you mean {last.get(near[0], near[0])!r}?" if near else "; `gapclose close --help` lists all keys"
        problems.add(f"{where}: unknown key {key!r}{hint}")
        return False

    while place < len(words):
        word, place = words[place], place + 1
        if not word.startswith("--"):
            problems.add(f"{COMMAND_LINE}: {word!r} belongs to no key; write --key VALUE")
            continue
        key, equals, value = word[2:].partition("=")
        lacking = not equals and (place == len(words) or words[place].startswith("--"))
        if not equals and not lacking:
            value, place = words[place], place + 1
        if key == "config":
            if lacking or not value:
                problems.add(f"{COMMAND_LINE}: --config needs a file")
            else:
                found += [given for given in _of_file(Path(value), hints, problems) if check(given.key, given.where)]
        elif not check(key, COMMAND_LINE):
            pass
        elif dataclasses.is_dataclass(hints.get(key)):
            first = next(iter(hints_of(hints[key])))
            problems.add(f"{COMMAND_LINE}: {key} is {value!r}; it is a group: give its keys, such as --{key}.{first}")
        elif lacking and key != "force":
            problems.add(f"{COMMAND_LINE}: --{key} has no value; it must be {_words(hints, key)}")
        else:
            found.append(Given(key=key, value="true" if lacking else value, where=COMMAND_LINE))
    return found


def _words(hints: dict[str, Any], key: str) -> str:
    return in_words(hints[key]) if key in hints else "a value"


def _of_file(path: Path, hints: dict[str, Any], problems: ErrorCollector) -> list[Given]:
    """Return the values of a YAML file; an unknown group is returned as one value."""
    if not path.is_file():
        problems.add(f"{path}: no such configuration file{near_sibling(path)}")
        return []
    try:
        tree = parse_yaml(read_text(path), aliases=ALIASES, settings=True) or {}
    except (OSError, ItemError) as error:
        problems.add(f"{path}: not YAML ({error})")
        return []
    if not isinstance(tree, dict):
        problems.add(f"{path}: holds {type(tree).__name__}, not keys and values")
        return []
    if {"run", "budgets", "objectives"} <= set(tree):
        problems.add(f"{path}: compares many runs; `python recipes/compare.py --config {path}` reads it")
        return []

    def walk(node: dict, prefix: str) -> Iterator[Given]:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if not dataclasses.is_dataclass(hints.get(key)):
                yield Given(key=key, value=value, where=str(path))
            elif isinstance(value, dict):
                yield from walk(value, key + ".")
            else:
                problems.add(f"{path}: {key} is {value!r}; it is a group: write its keys below it, or leave it out")

    return list(walk(tree, ""))


def fitted(given: Given, hint: Any) -> Any:
    """Convert a value to its type.

    Values of the command line are parsed as YAML, and so are strings where a number is required.

    Raises:
        ValueError: naming the key, the value and the required type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        if given.where == COMMAND_LINE:
            return parser.parse_args([f"--value={given.value}"]).value
        return parser.parse_object({"value": given.value}).value
    except (ArgumentError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{given.key} is {shown(given.value)}; it must be {in_words(hint)}") from error


def build(kind: Any, given: Sequence[Given], hints: dict[str, Any], problems: ErrorCollector) -> Any:
    """Build the configuration, and add its faults to ``problems``.

    A key or group at fault gets its default, so that other faults are found too. A fault of several
    keys is left out if one of them has a fault of its own. Returns None if the outermost group
    refuses its values.
    """
    values, where, bad = dict[str, Any](), dict[str, str](), set[str]()
    for one in given:
        key, _, name = next(((w, "", one.key[len(w) + 1 :]) for w in WHOLE_KEYS if one.key.startswith(f"{w}.")), (one.key, "", ""))
        where[key] = one.where
        try:
            found = fitted(one, hints[key]) if not name else (values.get(key) or {}) | {name: parse_yaml(one.value, settings=True)}
        except ValueError as error:
            problems.add(f"{one.where}: {error}")
            bad.add(key)
            continue
        values[key] = found

    def take(faults: Sequence[Complaint]) -> None:
        for fault in faults:
            if not fault.keys & bad:
                places = sorted({where[key] for key in fault.keys if key in where})
                problems.add(f"{' and '.join(places)}: {fault.message}" if places else fault.message)
        bad.update(*(fault.keys for fault in faults if len(fault.keys) == 1))

    def make(kind: Any, prefix: str) -> Any:
        own = dict[str, Any]()
        for name, hint in hints_of(kind).items():
            key = prefix + name
            if dataclasses.is_dataclass(hint):
                own[name] = make(hint, key + ".")
            elif key in values and key not in bad:
                own[name] = values[key]
        own = {name: value for name, value in own.items() if value is not None or not dataclasses.is_dataclass(hints.get(prefix + name))}
        try:
            return kind(**own)
        except Faults as error:
            take(error.found)
            bad.update(key for key in hints if key.startswith(prefix))  # skip faults between this group and others
            return None

    return make(kind, "")
