"""Tables of a comparison, written twice from the same numbers: as Markdown, and as CSV files with a column for every number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from comparison.collect import Mean

from gapclose.core.files import write_text

NONE = "-"
"""in Markdown, where there is no value; a CSV file has an empty cell"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str | None
    """as it is read in Markdown; None: in the CSV file alone"""
    columns: Mapping[str, str]
    """column -> value of the CSV file"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of one variant."""

    kind: str
    """ways, differences, points or noise: tables of one kind share a CSV file"""
    variant: str
    names: Sequence[str]
    """column names in Markdown"""
    rows: list[list[str]] = field(default_factory=list)
    """cells in Markdown"""
    records: list[Mapping[str, str]] = field(default_factory=list)
    """column -> value, a row of the CSV file each"""

    def add(self, cells: Sequence[Cell]) -> None:
        """Add one row to both."""
        self.rows.append([cell.text for cell in cells if cell.text is not None])
        self.records.append({name: value for cell in cells for name, value in cell.columns.items()})

    def markdown(self) -> list[str]:
        """The lines of the table."""
        head = ["| " + " | ".join(self.names) + " |", "|" + "---|" * len(self.names)]
        return [*head, *("| " + " | ".join(row) + " |" for row in self.rows)]


def plain(name: str, value: object) -> Cell:
    """A word or a count."""
    return Cell(text=str(value), columns={name: str(value)})


def number(value: float, digits: int = 3) -> str:
    """A number with its decimals; empty where it is not defined."""
    return f"{value:.{digits}f}" if np.isfinite(value) else ""


def interval(name: str, mean: Mean) -> Cell:
    """A mean as NAME, NAME lower and NAME upper; Markdown marks the two values of two seeds by round brackets."""
    i, (left, right) = mean.interval, "()" if mean.kind == "range" else "[]"
    value, lower, upper = number(i.value), number(i.lower), number(i.upper)
    text = (value or NONE) + (f" {left}{lower}, {upper}{right}" if lower else "")
    return Cell(text=text, columns={name: value, f"{name} lower": lower, f"{name} upper": upper})


def made_from(means: Sequence[Mean], shown: bool = False) -> Cell:
    """How many seeds the means of one row have, and which kind of interval (:attr:`Mean.kind`).

    Args:
        shown: whether Markdown has a column of the seeds.

    Raises:
        ValueError: where the means of a row differ in their seeds.
    """
    seeds = {mean.seeds for mean in means}
    if len(seeds) != 1:
        raise ValueError(f"the means of one row have {sorted(seeds)} seeds; write a row for each")
    kinds = [mean.kind for mean in means if mean.kind]
    return Cell(text=str(means[0].seeds) if shown else None, columns={"seeds": str(means[0].seeds), "interval": kinds[0] if kinds else ""})


def over_seeds(name: str, values: Sequence[float | None]) -> Cell:
    """The mean of a figure that some seeds do not have, as NAME and ``NAME: seeds``, the number of those that have it."""
    there = [v for v in values if v is not None and np.isfinite(v)]
    some = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    value = number(float(np.mean(there))) if there else ""
    return Cell(text=value + some if there else NONE, columns={name: value, f"{name}: seeds": str(len(there)) if there else ""})


def total(name: str, values: Sequence[float | None]) -> Cell:
    """A sum of counts."""
    there = [v for v in values if v is not None]
    return Cell(text=f"{sum(there):.0f}" if there else NONE, columns={name: f"{sum(there):.0f}" if there else ""})


def beside(cells: Sequence[Cell], text: str = "{}, {}") -> Cell:
    """Several cells in one of Markdown; ``-`` where none of them has a value."""
    columns = {name: value for cell in cells for name, value in cell.columns.items()}
    return Cell(text=text.format(*(cell.text for cell in cells)) if any(columns.values()) else NONE, columns=columns)


def write_csv(tables: Sequence[Table], stem: Path) -> list[Path]:
    """Write ``STEM-KIND.csv`` for every kind of table, with the variant in the first column.

    Returns:
        The files.
    """
    paths = []
    for kind in dict.fromkeys(table.kind for table in tables):
        records = [{"variant": table.variant, **record} for table in tables if table.kind == kind for record in table.records]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for record in records for name in record)), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        paths.append(stem.with_name(f"{stem.name}-{kind}.csv"))
        write_text(paths[-1], text.getvalue())
    return paths
