"""Strict reading of text, JSON and YAML.

A lenient parser drops or changes some values, or crashes on them; here they are errors that name
their place.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from gapclose.core.errors import ItemError, shown

DEEPEST = 50
"""levels of nested lists and objects; items and column maps need six"""
ESCAPED = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""JSON escapes of surrogate halves, and of NUL"""
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""first bytes of a file -> name of its encoding"""


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark (BOM) at its start.

    Raises:
        ItemError: when the file has another encoding, with the line of the first invalid byte.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = MARKS.get(content[:2])
        what = f"it is {name}" if name else f"byte 0x{content[error.start]:02x}"
        raise ItemError(f"not UTF-8 ({what}, line {line}); save it again in that encoding") from error


def parse_json(text: str, remedy: str = "correct the syntax") -> Any:
    """Return the value of a JSON text.

    Args:
        remedy: for text that is not JSON.

    Raises:
        ItemError: when the text is not JSON. Also for values that :func:`json.loads` accepts or
            crashes on: a key that occurs twice in an object, NaN, infinity, numbers beyond the
            range of a float, integers of more than 4,300 digits, nesting deeper than
            :data:`DEEPEST`, surrogate halves, and NUL characters.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_not_a_number, parse_float=_finite)
    except ItemError:
        raise
    except json.JSONDecodeError as error:
        raise ItemError(f"not JSON ({error}); {remedy}") from error
    except RecursionError as error:
        raise ItemError(DEEP) from error
    except ValueError as error:  # Python converts at most 4,300 digits
        digits = re.search(r"\d{4301,}", text)
        start = f" ({digits[0][:40]}...)" if digits else ""
        raise ItemError(f"holds a whole number of more than 4,300 digits{start}; write it in quotes, or shorten it") from error
    # other texts need no check
    if ESCAPED.search(text) or text.count("[") + text.count("{") > DEEPEST:
        check_value(value)
    return value


DEEP = f"lists and objects are nested deeper than {DEEPEST} levels; write it flat"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ItemError(f"the key {shown(twice)} stands twice in one object; keep one of them")
    return found


def _not_a_number(name: str) -> Any:
    raise ItemError(f"holds {name}, which JSON does not know; write null, or leave the key out")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ItemError(f"holds the number {digits[:40]}, which is beyond the range of floats; write it in quotes, or shorten it")
    return number


def check_value(value: Any) -> None:
    """Check a parsed value.

    Raises:
        ItemError: for nesting deeper than :data:`DEEPEST`. Also for a text that UTF-8 cannot encode
            or that holds a NUL character, with its path.
    """
    for path, found in _leaves(value):
        if "\0" in found:
            raise ItemError(f"{_place(path)} holds a NUL character ({shown(found)}); remove it")
        try:
            found.encode()
        except UnicodeEncodeError as error:
            raise ItemError(
                f"{_place(path)} holds half of a surrogate pair ({shown(found[error.start])} in {shown(found)}), which is no character; "
                "write the whole pair, or remove it"
            ) from error


def _leaves(value: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yield (path, text) for every text in a value and every key; a key's path ends with ``None``."""
    waiting = deque[tuple[tuple[Any, ...], Any]]([((), value)])
    while waiting:
        path, found = waiting.popleft()
        if isinstance(found, str):
            yield path, found
        elif isinstance(found, dict | list):
            if len(path) >= DEEPEST:
                raise ItemError(DEEP)
            for name, inside in found.items() if isinstance(found, dict) else enumerate(found):
                if isinstance(name, str):
                    yield (*path, None), name
                if isinstance(inside, str | dict | list):
                    waiting.append(((*path, name), inside))


def _place(path: tuple[Any, ...]) -> str:
    """Format a path as ``messages[0].text``."""
    if not path or path[-1] is None:
        return "a key" if path else "a text"
    names = (
        f"[{name}]"
        if isinstance(name, int)
        else "." + (name if isinstance(name, str) and re.fullmatch(r"\w+", name, re.ASCII) else shown(name))
        for name in path
    )
    return "".join(names).removeprefix(".")


def parse_yaml(text: str, *, aliases: int = 0, settings: bool = False) -> Any:
    """Return the value of a YAML text, by the safe loader.

    Args:
        aliases: number of aliases that are followed.
        settings: keys are names as written (YAML reads ``off:`` as false), and numbers may have any
            form, including infinity.

    Raises:
        ItemError: when the text is not YAML. Also for values that the safe loader accepts: a key
            that occurs twice, more aliases, nesting deeper than :data:`DEEPEST`, surrogate halves,
            NUL characters, and unquoted numbers that YAML reads as others (007 is 7, 010 is 8, 1:30
            is 90).
    """
    try:
        loader = (_SettingsLoader if settings else _Loader)(text)
        loader.aliases, loader.begun = aliases, []
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ItemError(f"{f'line {mark.line + 1}: ' if mark else ''}{error.problem or error.context}") from error
    except RecursionError as error:
        raise ItemError(DEEP) from error
    except Exception as error:  # dates, !!bool x, long numbers: PyYAML raises errors of any kind
        raise ItemError(
            f"a value does not fit its tag ({(str(error).splitlines() or [type(error).__name__])[0]}); put it in quotes"
        ) from error
    check_value(value)
    return value


class _Loader(yaml.SafeLoader):
    """The safe loader with the checks of :func:`parse_yaml`."""

    depth = aliases = 0
    exact = True
    """whether unquoted numbers that YAML reads as others are refused"""
    begun: list[str | None]
    """anchors of the enclosing values"""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.aliases -= 1
            # an anchor in ``begun`` means that a value contains itself
            if self.aliases < 0 or event.anchor in self.begun:
                raise ComposerError(None, None, f"the alias *{event.anchor} is not followed; write the value out", event.start_mark)
            return super().compose_node(parent, index)
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, DEEP, event.start_mark)
        self.begun.append(event.anchor)
        node = super().compose_node(parent, index)
        self.begun.pop()
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:  # before merged keys (<<), which own keys override
            key = self.key_of(key_node)
            if key in seen:
                raise ConstructorError(None, None, f"the key {shown(key)} stands twice; keep one of them", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def key_of(self, node: Any) -> Any:
        """Return a hashable form of a mapping's key, to find duplicates."""
        if node.tag == "tag:yaml.org,2002:merge":
            return node.tag
        key = self.construct_object(node, deep=True)
        return key if isinstance(key, Hashable) else repr(key)

    def construct_number(self, node: Any) -> Any:
        whole = node.tag.endswith(":int")
        try:
            value = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
            same = str(value) == node.value if whole else math.isfinite(value) and value == float(node.value)
        except ValueError:  # thousands of digits; 1:30.5
            value, same = "another number", False
        if not same and (self.exact or isinstance(value, str)):
            raise ConstructorError(None, None, f"YAML reads {node.value[:40]} as {shown(value)}; put it in quotes", node.start_mark)
        return value


class _SettingsLoader(_Loader):
    """The loader for settings: keys are names as written, and numbers may have any form."""

    exact = False

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
        for key in names:
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


for _loader in (_Loader, _SettingsLoader):
    for _kind in ("int", "float"):
        _loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _loader.construct_number)
