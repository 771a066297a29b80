"""What the documents must not hold."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere_and_nothing_waits_to_be_filled_in(path):
    text = path.read_text()
    assert not re.findall(r"@\w+@|\bTODO\b|\bTBD\b|\b(?:EXAMPLE|RANDOM)_[A-Z]+\b", text)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    assert not [t for t in targets if not (path.parent / t.partition("#")[0]).exists()]
    headings = {other: {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", other.read_text(), re.M)}
                for other in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}  # fmt: skip
    anchors = [(path if not t.partition("#")[0] else (path.parent / t.partition("#")[0]).resolve(), t.partition("#")[2])
               for t in re.findall(r"\]\(([^)\s]+\.md#[^)\s]+|#[^)\s]+)\)", text) if not t.startswith("http")]  # fmt: skip
    assert not [(file.name, anchor) for file, anchor in anchors if anchor not in headings[file]]
