"""Render numbers and texts as HTML with the package's templates. Text from elsewhere is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup, escape

from gapclose.core.version import __version__
from gapclose.evaluation.run_records import layers_of
from gapclose.evaluation.summary_text import layer_words


def render(template: str, **values: Any) -> str:
    """Fill one of the package's templates; everything that is not marked as HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gapclose.report", "templates"),
        autoescape=True,  # for every name: select_autoescape would skip .j2
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": interval,
        "number": number,
        "breakable": breakable,
        "layers": layers,
        "stacks": stacks,
        "coded": coded,
    }
    return environment.get_template(template).render(version=__version__, **values)


def interval(value: Any, digits: int = 3) -> Markup:
    """Format ``0.988 [0.979, 0.996]`` with the interval set lighter, or ``not measured``."""
    if not isinstance(value, Mapping) or value.get("value") is None:
        return Markup('<span class="none">not measured</span>')
    text = Markup('<span class="n">{}</span>').format(number(value["value"], digits))
    if value.get("lower") is not None and value.get("upper") is not None:
        text += Markup(' <span class="ci">[{}, {}]</span>').format(number(value["lower"], digits), number(value["upper"], digits))
    return Markup("<span>{}</span>").format(text)


def number(value: Any, digits: int = 3) -> str:
    """Format a number with a true minus sign and thousands separators, or ``not measured``."""
    if not isinstance(value, int | float):
        return "not measured"
    text = f"{value:,}" if isinstance(value, int) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before zeros
    return text.replace("-", "\u2212")


def layers(facts: Mapping[str, Any]) -> str:
    """Name the layers that a probe reads or a patch replaced."""
    return layer_words(layers_of(facts))


def stacks(nested: Mapping[str, Any]) -> str:
    """List the layers that the probe of every outer fold reads: ``6, 5+6, 6``."""
    return ", ".join("+".join(map(str, layers)) for layers in nested.get("stacks") or [[layer] for layer in nested["layers"]])


def breakable(value: Any) -> Markup:
    """Escape text, and allow line breaks after ``_``, ``/`` and ``.``."""
    return Markup(re.sub(r"([_/.])(?=\w)", r"\1<wbr>", str(escape(value))))


def coded(value: str) -> Markup:
    """Escape text, and set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(value))))
