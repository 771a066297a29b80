"""Names from the data are printed as they are: on a terminal, in figures and in Markdown, and whatever the terminal can show."""

import io
import re
import sys
from xml.etree import ElementTree

import pytest
from rich.table import Table

from gapclose.core.logging import logger, spell_out
from gapclose.export.model_card import markdown
from gapclose.report import figures
from gapclose.report.console import wide_console
from gapclose.report.templating import breakable

NAMES = [
    "[/vision]",
    "[bold]x",
    "[link=http://a]b",
    ":smile:",
    "$x_1$",
    "a|b",
    "<b>&amp;",
    '" id="x" href="#y',
    "a_b_c",
    r"\alpha",
    "\u8996\u899a",
]


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and error in an encoding, as PYTHONIOENCODING sets them; ``()`` what was printed."""

    def set_to(encoding: str, errors: str = "strict"):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)

        def printed() -> str:
            for stream in streams.values():
                stream.flush()
            return "".join(stream.buffer.getvalue().decode(encoding) for stream in streams.values())

        return printed

    return set_to


def test_a_terminal_shows_names_as_they_are(terminal):
    """In titles, headings and cells: no tag is followed, none is missed at its end."""
    printed = terminal("utf-8")
    table = Table(title=" ".join(NAMES))
    for name in NAMES:
        table.add_column(name, overflow="fold")
    table.add_row(*NAMES)
    wide_console().print(table)
    assert all(printed().count(name) == 3 for name in NAMES), printed()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_terminal_that_takes_ascii_alone(terminal, errors):
    """By PYTHONIOENCODING, or by LC_ALL=C without UTF-8 mode: another script is spelled out, on both streams; two names stay two."""
    printed = terminal("ascii", errors)
    spell_out()
    print("error: \u8996", file=sys.stderr)
    logger.info("\u8996\u899a")
    table = Table("\u8996\u899a")
    table.add_row("\u8074\u899a")
    wide_console().print(table)
    assert printed().count(r"\u8996\u899a") == 2 and r"\u8074\u899a" in printed() and "error: \\u8996" in printed()


def test_a_figure_shows_names_as_they_are():
    """The text of the SVG is the name, no formula and no attribute; the SVG stays well-formed, and its ids lead where they led."""
    interval = {"value": 0.5, "lower": 0.4, "upper": 0.6}
    drawn = figures.points_svg("p", [(name, {"reading": interval}) for name in NAMES], "title", "accuracy")
    tree = ElementTree.fromstring(drawn)
    texts = {"".join(t.itertext()).strip() for t in tree.iter() if t.tag.endswith("text")}
    assert {n for n in NAMES if len(n) < 24} <= texts
    ids = {e.attrib["id"] for e in tree.iter() if "id" in e.attrib}
    assert ids == {m for e in tree.iter() for v in e.attrib.values() for m in re.findall(r"^#(.+)|^url\(#(.+)\)", v) for m in m if m}
    assert ids and all(i.startswith("p-") for i in ids) and NAMES[7] in tree.attrib["aria-label"]


def test_markdown_and_html_show_names_as_they_are():
    """What would be a mark is written with a backslash; words with underscores inside, intervals and percentages stay as they are."""
    assert markdown("a|b `c` *d* $x$ <b> [e](http://f) &lt; _g_\nh") == r"a\|b \`c\` \*d\* \$x\$ \<b> [e\](http://f) \&lt; \_g\_ h"
    plain = "0.97 [0.95, 0.98] (text_only), p < 0.05 & 95 % of vision/audio #3"
    assert markdown(plain) == plain
    assert breakable('<b>"') == "&lt;b&gt;&#34;"
