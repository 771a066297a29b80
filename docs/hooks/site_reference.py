"""The generated parts of the reference, as Markdown: configuration, command line, Python API, files of a run, changelog.

Every function reads the package or the project's files, so that the pages follow the code.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCHEMAS = ("pipeline", "data")
"""folders of gapclose that hold JSON schemas"""
API = {
    "Measure and close": ["measure_gap", "GapMeasurement", "Interval", "measure", "close", "GapCallback", "load_run", "RunResult"],
    "Watch a model": ["Monitor"],
    "Items": ["load_items", "ItemSet", "Item", "Option"],
    "Models": ["ModelConfig", "load_model", "LoadedModel"],
    "Parts of a run": ["observe_items", "Observations", "ProbeConfig", "choose_probe", "FrozenProbe", "build_targets", "GapTrainer"],
    "Configuration": ["Config", "parse_config"],
    "Extensions": ["register_control", "register_objective", "register_probe_family", "register_reader"],
}
"""heading -> public names below it"""


def plain(text: str) -> str:
    """Text of the package as Markdown: what looks like markup is escaped, pages that it names are linked."""
    pieces = re.split(r"(`[^`]+`)", text)
    for n in range(0, len(pieces), 2):
        pieces[n] = re.sub(r"([*<\[\]])", r"\\\1", pieces[n])
        pieces[n] = re.sub(r"docs/([\w/-]+)\.md", lambda m: f"[{m[1].rpartition('/')[2]}](../{m[1]}.md)", pieces[n])
    return "".join(pieces)


def configuration() -> str:
    """Every key of the configuration, a section for each group."""
    from gapclose.pipeline.config import Config
    from gapclose.pipeline.config_help import document_groups

    lines = []
    for group in document_groups(Config):
        lines += ["", f"## {group.name or 'run'}", "", f"{plain(group.title[:1].upper() + group.title[1:])}.", ""]
        for key in group.keys:
            lines += [
                f'<a id="{key.key}"></a>`{key.key}` <small>{plain(key.values)}; default: `{key.default}`</small>',
                f":   {plain(key.text)}",
                "",
            ]
    return "\n".join(lines)


def command_help(*words: str) -> str:
    """What ``gapclose WORDS`` prints."""
    from gapclose.pipeline.cli import main

    before, printed = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(list(words))
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if before is None else {"COLUMNS": before}
    return printed.getvalue().strip()


def command_line() -> str:
    """The usage of every command, and the first lines of every recipe."""
    lines = ["## gapclose", "", "```text", command_help("--help"), "```"]
    for command in ("monitor", "serve", "ask", "wandb-report"):
        lines += ["", f"## gapclose {command}", "", "```text", command_help(command, "--help"), "```"]
    lines += ["", "## Recipes", "", "Scripts of the repository, which are not part of the package.", ""]
    for path in sorted((ROOT / "recipes").glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines += [f"### {path.name}", "", "```text", docstring.strip(), "```", ""]
    return "\n".join(lines)


def python() -> str:
    """Directives of mkdocstrings for every public name, those without a heading above at the end."""
    import gapclose

    named = {name for names in API.values() for name in names}
    rest = [name for name in gapclose.__all__ if name not in named and name != "__version__"]
    lines = []
    for heading, names in {**API, **({"More": rest} if rest else {})}.items():
        lines += [f"## {heading}", ""] + [f"::: gapclose.{name}\n" for name in names]
    return "\n".join(lines)


def files() -> str:
    """Every key of every JSON schema."""
    lines = []
    for room in SCHEMAS:
        for path in sorted((ROOT / "gapclose" / room / "schemas").glob("*.json")):
            schema = json.loads(path.read_text(encoding="utf-8"))
            title = schema["title"].removeprefix("gapclose ")
            lines += ["", f"### {room}/schemas/{path.name}", "", f'??? note "{title.replace(chr(34), "")}"', ""]
            body = [*_entries(schema)]
            for name, part in schema.get("$defs", {}).items():
                body += ["", f"**{name}**" + (f": {plain(part['description'])}" if "description" in part else ""), "", *_entries(part)]
            lines += [f"    {line}" if line else "" for line in body]
    return "\n".join(lines)


def _entries(schema: Mapping[str, Any]) -> list[str]:
    found = [
        line for key, part in _keys(schema, "") for line in (f"`{key}` <small>{plain(_values(part))}</small>", f":   {_text(part)}", "")
    ]
    return found or [plain(_values(schema)), ""]


def _text(part: Mapping[str, Any]) -> str:
    return plain(part.get("description", "")) or "&#8203;"


def _keys(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dotted keys and their schemas; ``[]`` is an item of a list, ``NAME`` any key."""
    inner: list[tuple[str, Any]] = [(f"{prefix}{'.' if prefix else ''}{n}", s) for n, s in schema.get("properties", {}).items()]
    if isinstance(schema.get("additionalProperties"), dict):
        inner.append((f"{prefix}{'.' if prefix else ''}NAME", schema["additionalProperties"]))
    if isinstance(schema.get("items"), dict) and (prefix or "properties" in schema["items"] or "$ref" in schema["items"]):
        item = schema["items"]
        if "properties" in item or "additionalProperties" in item:
            yield from _keys(item, f"{prefix}[]")
        elif not prefix:
            inner.append(("[]", item))
    for key, part in inner:
        yield key, part
        yield from _keys(part, key)


def _values(part: Mapping[str, Any]) -> str:
    """The values that a schema allows, in words."""
    if "$ref" in part:
        return part["$ref"].rpartition("/")[2]
    if "const" in part:
        return f"always {json.dumps(part['const'])}"
    if "enum" in part:
        return "one of " + ", ".join(json.dumps(value) for value in part["enum"])
    for several in ("anyOf", "oneOf"):
        if several in part:
            return " or ".join(dict.fromkeys(_values(one) for one in part[several]))
    kinds = part.get("type", "object" if "properties" in part else "any value")
    words = " or ".join(kinds) if isinstance(kinds, list) else kinds
    if "array" in words and isinstance(part.get("items"), dict):
        words = words.replace("array", f"list of {_values(part['items'])}")
    limits = [
        f"{word} {part[key]}"
        for key, word in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if key in part
    ]
    return ", ".join([words, *limits])


def changelog() -> str:
    """CHANGELOG.md without its title; its links lead from docs/reference."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", r"](../../\1)", text)


PARTS = {"configuration": configuration, "command-line": command_line, "python": python, "files": files, "changelog": changelog}
"""name in ``<!-- generated: NAME -->`` -> what stands in its place"""
