"""Tables for a terminal of any width: no word and no number is ever broken, unless it alone is wider than the terminal."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

Row = Sequence[str] | None
"""cells, or None for a line between two groups of rows"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TURNED = 4
"""a table of at most this many rows is turned on its side rather than split"""


def visible(text: str) -> str:
    """Return a text with its control characters spelled out, which would act on the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Row],
    *,
    words: Collection[str] = (),
    aside: Collection[str] = (),
    keys: int = 1,
) -> None:
    """Print a table that fits.

    A table that is too wide is turned on its side where it then fits; otherwise its columns are
    shared out among several tables, each with the first columns.

    Args:
        words: headings of columns of text: left-aligned, and wrapped between words. Other cells,
            numbers with intervals, stay on one line.
        aside: headings of columns that stand in tables of their own, the last ones, where it is split.
        keys: number of first columns, which tell the rows apart.
    """
    headings, rows = [*map(visible, headings)], [None if row is None else [*map(visible, row)] for row in rows]
    columns = list(zip(headings, *(row for row in rows if row is not None), strict=True))
    if _fits(console, [_least(column, column[0] in words) for column in columns]):
        _print(console, title, headings, rows, words)
        return
    whole = [row for row in rows if row is not None]
    if keys == 1 and 0 < len(whole) <= TURNED:
        side = [headings[0], *(row[0] for row in whole)]
        turned = [list(column) for column in columns[1:]]
        if _fits(console, [_least([name, *(row[k] for row in turned)], k == 0) for k, name in enumerate(side)]):
            _print(console, title, side, turned, side[:1])
            return
    for number, part in enumerate(_split(console, columns, words, aside, keys)):
        shown = [None if row is None else [row[k] for k in part] for row in rows]
        _print(console, title if number == 0 else "", [headings[k] for k in part], shown, words)


def _least(column: Sequence[str], text: bool) -> int:
    """Return the width of a column in which nothing is broken: of its longest word, or of its longest cell."""
    heading, *cells = column
    return max(
        (cell_len(part) for part in [*heading.split(), *(word for cell in cells for word in (cell.split() if text else [cell]))]), default=1
    )


def _fits(console: Console, widths: Sequence[int]) -> bool:
    return sum(widths) + 3 * len(widths) + 1 <= console.width


def _split(
    console: Console, columns: Sequence[Sequence[str]], words: Collection[str], aside: Collection[str], keys: int
) -> list[list[int]]:
    """Share out the columns among tables that fit; return the places of the columns of each."""
    least = [_least(column, column[0] in words) for column in columns]
    first, rest = list(range(keys)), range(keys, len(columns))
    parts = list[list[int]]()
    for places in ([k for k in rest if columns[k][0] not in aside], [k for k in rest if columns[k][0] in aside]):
        part = first
        for k in places:
            if len(part) > keys and not _fits(console, [least[n] for n in [*part, k]]):
                parts.append(part)
                part = first
            part = [*part, k]
        parts += [part] if len(part) > keys else []
    return parts or [first]


def _print(console: Console, title: str, headings: Sequence[str], rows: Sequence[Row], words: Collection[str]) -> None:
    columns = list(zip(headings, *(row for row in rows if row is not None), strict=True))
    widths = _widths(console, columns, words)
    table = Table(title=title or None)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, justify="left" if heading in words else "right", width=width, overflow="fold")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    console.print(table)


def _widths(console: Console, columns: Sequence[Sequence[str]], words: Collection[str]) -> list[int]:
    """Return a width for every column: as wide as its cells where there is room, and never less than it needs."""
    room = console.width - 3 * len(columns) - 1
    widths = [_least(column, column[0] in words) for column in columns]
    while (over := sum(widths) - room) > 0 and max(widths) > 1:  # a name alone is too wide, and is folded
        widest = widths.index(max(widths))
        widths[widest] -= min(over, max(1, widths[widest] - sorted(widths)[-2])) if len(widths) > 1 else over
    wanted = [max(map(cell_len, column)) for column in columns]
    spare = room - sum(widths)
    for k in sorted(range(len(columns)), key=lambda k: (columns[k][0] not in words, wanted[k] - widths[k])):
        more = min(wanted[k] - widths[k], spare)
        if more > 0:
            widths[k] += more
            spare -= more
    return widths
