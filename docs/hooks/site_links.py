"""Hooks of mkdocs: fill in the generated parts of the reference, and turn links that leave docs/ into code.

The pages are read in a browser of the repository as well: a link to a file outside docs/ works there, and the site has no such file.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from site_reference import PARTS

MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.M)
FENCE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2 *$)", re.M | re.S)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return links_inside(MARK.sub(lambda mark: PARTS[mark[1]](), markdown), page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for every page: roles of docstrings become plain code, and intervals do not break at a line's end."""
    html = re.sub(r"(-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\]", r"\1&nbsp;[\2,&nbsp;\3]", html)
    return re.sub(r":(?:func|class|meth|mod|data):<code>~?([^<]+)</code>", r"<code>\1</code>", html)


def links_inside(markdown: str, page: str) -> str:
    """Replace links to files outside docs/ by their text and the file's path as code, and shorten those to other pages.

    Args:
        page: path of the page below docs/, with slashes.
    """

    def replace(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[2]))
        if path.startswith("docs/"):
            return f"[{link[1]}]({posixpath.relpath(path, posixpath.dirname(f'docs/{page}'))}{link[3] or ''})"
        text = link[1].strip("`")
        return f"`{path}`" if text in path else f"{link[1]} (`{path}`)"

    pieces = FENCE.split(markdown)  # text, fenced block, its fence, text, ...
    return "".join(LINK.sub(replace, piece) if n % 3 == 0 else piece for n, piece in enumerate(pieces) if n % 3 != 2)
