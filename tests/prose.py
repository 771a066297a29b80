"""Counts of a page's sentences: how long they are, and which words they should not hold.

``python tests/prose.py [FILE ...]`` prints them for every page of the project or for those named, with the longest sentences.
"""

import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEDIAN, LONG, COLUMNS = 16, 28, 110
"""The most words of the median sentence and of the 90th percentile, and the most columns of a line outside tables and code."""
AVOIDED = re.compile(r"\b(mend(s|ed|ing)?|(?<!polar )bears?|borne|told|lacking|all but|the like|of it|films?|trunks?|untold)\b", re.I)
"""Words of the glossary that have a plainer one: fix, support, reported, missing, except, video, hidden-state cache."""


def pages() -> list[Path]:
    """README, CONTRIBUTING and all pages of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[str]:
    """Paragraphs, list items and cells of prose; no code, no headings, no tables, no front matter."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"^( *)(```|~~~).*?^\1\2\s*$", "\n", text, flags=re.S | re.M)
    found: list[str] = []
    current: list[str] = []
    indented_code = False
    for line in [*text.splitlines(), ""]:
        bare = line.strip()
        if not current and line.startswith("    ") and not re.match(r"\s*([-*]|\d+\.) ", line):
            indented_code = True
        elif bare and not line.startswith("    "):
            indented_code = False
        starts = re.match(r"([-*]|\d+\.) ", bare)
        skipped = indented_code or bare.startswith(("#", "|", "<", ":::", "!!!", "???", "===", "![", "$$"))
        if current and (not bare or starts or skipped):
            found.append(" ".join(current))
            current = []
        if bare and not skipped:
            current.append(bare[len(starts[0]) :] if starts else bare)
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a page; code, links' targets and emphasis are taken out, and a span of code counts as one word."""
    found = []
    for block in blocks(text):
        plain = re.sub(r"`+[^`]*`+", "CODE", block)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        plain = re.sub(r"[*_]{1,2}(\S(?:.*?\S)?)[*_]{1,2}", r"\1", plain)
        found += [s.strip() for s in re.split(r"(?<=[.!?:;])[\"')\]]*\s+(?=[\"'(]*[A-Z0-9])", plain) if len(s.split()) > 1]
    return found


def faults(path: Path) -> list[str]:
    """What the rules of prose forbid on a page, a line each; empty where nothing is wrong."""
    text = path.read_text()
    lengths = sorted(len(s.split()) for s in sentences(text))
    found = []
    if lengths and statistics.median(lengths) > MEDIAN:
        found.append(f"median sentence of {statistics.median(lengths)} words; at most {MEDIAN}")
    if lengths and lengths[int(0.9 * (len(lengths) - 1))] > LONG:
        found.append(f"90th percentile of {lengths[int(0.9 * (len(lengths) - 1))]} words; at most {LONG}")
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if (
            len(line) > COLUMNS
            and not fenced
            and not line.startswith(("|", "    "))
            and not re.fullmatch(r"\s*(- )?!?\[[^\]]*\]\(\S+\)[.,]?", line)
        ):
            found.append(f"line {number} has {len(line)} columns; at most {COLUMNS}")
    return found + [f"word to avoid: {m[0]!r} in {s[:90]!r}" for s in sentences(text) for m in AVOIDED.finditer(s)]


def main() -> None:
    """Print the counts of pages."""
    for path in [Path(p) for p in sys.argv[1:]] or pages():
        text = path.read_text()
        counted = sorted(sentences(text), key=lambda s: -len(s.split()))
        lengths = sorted(len(s.split()) for s in counted) or [0]
        print(
            f"{path}: {len(text.split())} words, {len(lengths)} sentences, median {statistics.median(lengths):g}, "
            f"90th percentile {lengths[int(0.9 * (len(lengths) - 1))]}"
        )
        for fault in faults(path):
            print(f"  {fault}")
        for sentence in [s for s in counted if len(s.split()) > LONG][:5]:
            print(f"  {len(sentence.split())} words: {sentence}")


if __name__ == "__main__":
    main()
