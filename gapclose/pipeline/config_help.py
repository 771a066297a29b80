"""``gapclose close --help``, and the page on the configuration: every key of the configuration with its type, its default and the docstring below its field.

Written from the dataclasses alone: a parser with a hundred options would take most of a second to build.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gapclose.core.config_checks import hints_of, in_words

FIRST = "where a run is written, its seed, its objective, and how it reports"
"""title of the keys outside any group"""
NARROWEST, WIDEST = 60, 110
"""columns of the text, whatever the terminal has"""


@cache
def _field_docs(file: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the docstring below the field, of every class of a source file."""
    found = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for line, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(following, ast.Expr):
                    found[node.name, line.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return found


@dataclass(frozen=True, kw_only=True)
class KeyDoc:
    """What a user reads about one key."""

    key: str
    """dotted key, such as train.epochs"""
    values: str
    """the values that it takes, in words"""
    default: str
    """its default, in YAML"""
    text: str
    """the docstring below its field; code in single backticks"""


@dataclass(frozen=True, kw_only=True)
class GroupDoc:
    """A group of the configuration."""

    name: str
    """its key; empty for the keys outside any group"""
    title: str
    """what its keys set"""
    keys: list[KeyDoc]


def document_groups(kind: Any) -> list[GroupDoc]:
    """Describe every key of a configuration, in the order of its fields.

    Args:
        kind: dataclass of the configuration. Its own keys form the first group.
    """
    groups = {f.name: f.default_factory for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.default_factory)}
    found = []
    for name, group in {"": kind, **groups}.items():
        docstring = (group.__doc__ or "").partition("\n")[0].rstrip(".").replace("``", "`")
        docs, hints, keys = _field_docs(inspect.getfile(group)), hints_of(group), list[KeyDoc]()
        for field in dataclasses.fields(group):
            if field.name in groups and group is kind:
                continue
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            key = field.name if group is kind else f"{name}.{field.name}"
            text = docs.get((group.__name__, field.name), "").replace("``", "`")
            keys.append(KeyDoc(key=key, values=in_words(hints[field.name]), default=_as_yaml(default), text=text))
        found.append(GroupDoc(name=name, title=FIRST if group is kind else f"{docstring[:1].lower()}{docstring[1:]}", keys=keys))
    return found


def format_help(kind: Any, prog: str) -> str:
    """The help of a command that takes a configuration: its options, then a section for every group, in the order of the fields.

    Args:
        kind: dataclass of the configuration. Its own keys form the first section.
        prog: the command as it is called.
    """
    lines = [f"usage: {prog} [--config FILE] [--KEY VALUE ...]", "", "options:"]
    lines += _entry("--help", "show this help and exit")
    lines += _entry("--config FILE", "YAML file with keys and groups; a key after it overrides its value, and so does a later file")
    lines += _entry("--print_config", "print the configuration that the other options make, as YAML, and exit")
    for group in document_groups(kind):
        lines += ["", f"{group.name}: {group.title}" if group.name else f"run: {group.title}"]
        for key in group.keys:
            lines += _entry(f"--{key.key}  ({key.values}; default: {key.default})", key.text)
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    """A value as a user writes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _entry(head: str, text: str) -> list[str]:
    """An option on its line, and what it means below it."""
    width = min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)
    body = textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
    return [f"  {head}", *body]
