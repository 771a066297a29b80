"""The command lines that README and the pages show."""

import re
import shlex
from collections.abc import Iterator

from prose import ROOT, pages

PROGRAMS = r"(?:gapclose(?= )|(?:python )?recipes/\w+\.py|(?:accelerate launch|accelerate-launch) .*?recipes/close\.py)"


def code(text: str) -> Iterator[str]:
    """Lines of fenced and indented blocks, joined where they end with a backslash, and spans of code."""
    text = re.sub(r"^( *)```python\n.*?^\1```", "", text, flags=re.S | re.M)
    blocks = "\n".join(m[2] for m in re.finditer(r"^( *)```\w*\n(.*?)^\1```", text, re.S | re.M))
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.S | re.M)
    indented = "\n".join(re.findall(r"^ {4,}.*$", text, re.M))
    for line in re.sub(r"\\\n\s*", "", f"{blocks}\n{indented}").splitlines():
        yield line.strip()
    yield from (" ".join(span.split()) for span in re.findall(r"(?<!`)`(gapclose [^`]+)`", text))


def command_lines() -> list[tuple[str, str]]:
    """(page, command line) of every command of gapclose, of a recipe and of make, each once."""
    found: dict[tuple[str, str], None] = {}
    for path in pages():
        for line in code(path.read_text(encoding="utf-8")):
            if re.match(rf"(?:[A-Z_]+=\S+ )*(?:{PROGRAMS}|make )", line):
                found[path.relative_to(ROOT).as_posix(), line] = None
    return list(found)


def words(line: str) -> list[str]:
    """The words of a command line, without settings of the environment, comments, and what a table says behind it."""
    line = re.sub(r"^(gapclose \w+|python|make) +", r"\1 ", re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line))
    line = re.split(r" {2,}", line)[0]
    found = [w for w in shlex.split(line, comments=True) if w not in ("...", ">", "&&")]
    return [w.strip("[]") if w.startswith("[-") or (w.endswith("]") and "[" not in w) else w for w in found]


def is_placeholder(word: str) -> bool:
    """Whether a reader puts something in its place: FILE, OWNER/NAME, $seed, my.yaml."""
    return bool(re.fullmatch(r"[A-Z][A-Z_/.]*(\.\w+)?|\$\w+|.*[<>$].*|my[\w-]*\.yaml", word))


def options(given: list[str]) -> list[tuple[str, str | None]]:
    """(option, value) of the words behind a command."""
    found, rest = list[tuple[str, str | None]](), list(given)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            found.append((key, value if equals else rest.pop(0) if rest and not rest[0].startswith("--") else None))
    return found
