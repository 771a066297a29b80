"""Tables for a terminal of any width: no word and no number is ever broken, unless it alone is wider than the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

Row = Sequence[str] | None
"""cells, or None for a line between two groups of rows"""
TURNED = 4
"""a table of at most this many rows is turned on its side rather than split"""
LEAST = 8
"""cells of width that a column keeps beside a first column that is too wide"""


def print_table(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Row], *, words: Collection[str] = (), aside: Collection[str] = ()
) -> None:
    """Print a table that fits.

    A table that is too wide is turned on its side where it then fits; otherwise its columns are
    shared out among several tables, each with the first column.

    Args:
        words: headings of columns of text: left-aligned, and wrapped between words. Other cells,
            numbers with intervals, stay on one line.
        aside: headings of columns that come last where the table is split.
    """
    columns = list(zip(headings, *(row for row in rows if row is not None), strict=True))
    if _fits(console, [_least(column, column[0] in words) for column in columns]):
        _print(console, title, headings, rows, words)
        return
    whole = [row for row in rows if row is not None]
    if 0 < len(whole) <= TURNED:
        side = [headings[0], *(row[0] for row in whole)]
        turned = [list(column) for column in columns[1:]]
        if _fits(console, [_least([name, *(row[k] for row in turned)], k == 0) for k, name in enumerate(side)]):
            _print(console, title, side, turned, side[:1])
            return
    for number, part in enumerate(_split(console, columns, words, aside)):
        shown = [None if row is None else [row[headings.index(name)] for name in part] for row in rows]
        _print(console, title if number == 0 else "", part, shown, words)


def _least(column: Sequence[str], text: bool) -> int:
    """Return the width of a column in which nothing is broken: of its longest word, or of its longest cell."""
    heading, *cells = column
    return max((cell_len(part) for part in [*heading.split(), *(word for cell in cells for word in (cell.split() if text else [cell]))]), default=1)


def _fits(console: Console, widths: Sequence[int]) -> bool:
    return sum(widths) + 3 * len(widths) + 1 <= console.width


def _split(console: Console, columns: Sequence[Sequence[str]], words: Collection[str], aside: Collection[str]) -> list[list[str]]:
    """Share out the columns among tables that fit; return the headings of each."""
    least = {column[0]: _least(column, column[0] in words) for column in columns}
    first, *rest = least
    parts = [[first]]
    for name in sorted(rest, key=lambda heading: heading in aside):
        both = [*parts[-1], name]
        if len(both) > 2 and not _fits(console, [least[n] for n in both]):
            parts.append([first, name])
        else:
            parts[-1] = both
    return parts


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
    if sum(widths) > room:  # a name alone is too wide: it is folded
        others = LEAST * (len(widths) - 1)
        widths[0] = min(widths[0], max(LEAST, room - max(others, min(sum(widths[1:]), room // 2))))
        for k in range(1, len(widths)):
            widths[k] = min(widths[k], max(1, room - widths[0] - LEAST * (len(widths) - 2)))
    wanted = [max(map(cell_len, column)) for column in columns]
    spare = room - sum(widths)
    for k in sorted(range(len(columns)), key=lambda k: wanted[k] - widths[k]):
        more = min(wanted[k] - widths[k], spare)
        if more > 0:
            widths[k] += more
            spare -= more
    return widths
