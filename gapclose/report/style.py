"""The style of figures, and their conversion to inline SVG.

Text stays text, so that it can be searched, scaled, and set in the page's typeface.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from gapclose.core.imports import MissingPackage, require
from gapclose.core.logging import get_logger

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

logger = get_logger(__name__)

INK = "#333333"
TAG = re.compile(r"<[^>]*>")
"""a tag of SVG; text between tags is a name from the data and is not changed"""
STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8.5, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "text.parse_math": False, "svg.fonttype": "none",
    "svg.hashsalt": "gapclose", "savefig.transparent": True,
}  # fmt: skip


@cache
def why_no_figures() -> str:
    """Why no figure can be drawn, and the remedy; empty where matplotlib is installed. The first call of a process logs it."""
    try:
        require("matplotlib", "figures", "drawing")
    except MissingPackage as error:
        logger.warning(f"figures are left out: {error}")
        return str(error)
    return ""


def new_figure(**settings: Any) -> Figure:
    """A matplotlib figure that no window shows."""
    from matplotlib.figure import Figure

    return Figure(**settings)


def whole_numbers(axis: Axis) -> None:
    """Put ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function draw in :data:`STYLE`, without the user's matplotlibrc.

    Names from the data are not parsed as formulas. Without matplotlib the function returns None.
    """

    @wraps(draw)
    def inside(*arguments: Any, **named: Any) -> Any:
        if why_no_figures():
            return None
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has the glyph
            return draw(*arguments, **named)

    return inside


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Return an inline ``<svg role="img">`` labelled for screen readers and sized by the page.

    Its ids are prefixed with ``name``.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg role="img" aria-label="{html.escape(label)}" {box.group()}>'
    text = opening + text[text.index(">") + 1 :]
    used = {found for tag in TAG.findall(text) for found in re.findall(r'(?:href="#|url\(#)([^")]+)', tag)}

    def own(tag: re.Match[str]) -> str:
        found = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag[0].replace("xlink:href", "href"))
        return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", found)

    return re.sub(r"\n\s*", "\n", TAG.sub(own, text)).strip()


def wrap(text: str, width: int = 24) -> str:
    """Wrap a label; lines may also break after ``_`` and ``/``."""
    return "\n".join(textwrap.wrap(re.sub(r"([_/])(?=\w)", "\\1\u200b ", text), width)).replace("\u200b ", "").replace("\u200b", "")
