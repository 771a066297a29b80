"""Every page is written in short sentences, lines and plain words."""

import pytest
from prose import ROOT, faults, pages


@pytest.mark.parametrize("path", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_reads_easily(path):
    assert faults(path) == []


def test_faults_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n" + " ".join(["word"] * 30) + ".\n\n" + "Probes bear it. " * 2 + "x" * 100 + "\n")
    found = "\n".join(faults(page))
    assert "90th percentile" not in found and "columns" in found and "word to avoid: 'bear'" in found
    page.write_text(" ".join(["word"] * 30) + ".\n")
    assert any("median sentence of 30 words" in fault for fault in faults(page))
