"""Tables of a comparison: as Markdown, and as CSV files with a column for every number."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gapclose.core.files import write_text

NUMBER = r"-?\d+\.\d+|nan"
INTERVAL = re.compile(rf"({NUMBER}) [\[(]({NUMBER}), ({NUMBER})[\])](?:, ({NUMBER}))?")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of one variant."""

    kind: str
    """ways, differences, points or noise: tables of one kind share a CSV file"""
    variant: str
    names: Sequence[str]
    """column names"""
    rows: Sequence[Sequence[str]]
    """cells as they are read in Markdown"""

    def markdown(self) -> list[str]:
        """The lines of the table."""
        head = ["| " + " | ".join(self.names) + " |", "|" + "---|" * len(self.names)]
        return [*head, *("| " + " | ".join(row) + " |" for row in self.rows)]


def numbers_of(name: str, cell: str) -> dict[str, str]:
    """Column -> value: a cell that holds several values is taken apart.

    An interval ``0.5 [0.4, 0.6]`` becomes NAME, NAME lower and NAME upper.
    """
    if found := INTERVAL.fullmatch(cell):
        apart = {name: found[1], f"{name} lower": found[2], f"{name} upper": found[3]}
        return apart | ({f"{name}: standard accuracy": found[4]} if found[4] else {})
    if found := re.fullmatch(r"(.+) \(val chose (.+)\)", cell):
        return {name: found[1], "val chose": found[2]}
    if found := re.fullmatch(r"(\S+) \((.+)\)", cell):
        return {name: found[1], {"labels": "labelled items"}.get(name, f"{name}: seeds"): found[2]}
    if name == "as it is: balanced, standard" and cell != "-":
        return dict(zip(("as it is: balanced", "as it is: standard accuracy"), cell.split(", "), strict=True))
    if name == "reading":
        return dict(zip(("reading: AUROC", "reading: layers"), cell.split(", "), strict=True))
    return {} if cell == "-" else {name: cell}


def write_csv(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write ``STEM-KIND.csv`` for every kind of table, with the variant in the first column.

    Returns:
        The files.
    """
    paths = []
    for kind in dict.fromkeys(table.kind for table in tables):
        rows, columns = list[dict[str, str]](), {"variant": None}
        for table in (t for t in tables if t.kind == kind):
            for cells in table.rows:
                row = {"variant": table.variant}
                for name, cell in zip(table.names, cells, strict=True):
                    found = numbers_of(name, cell)
                    columns |= dict.fromkeys(found)
                    row |= found
                rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths.append(stem.with_name(f"{stem.name}-{kind}.csv"))
        write_text(paths[-1], text.getvalue())
    return paths
