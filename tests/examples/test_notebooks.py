"""The notebooks of ``examples/``: what they hold, and (slow) that they run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SIZE = 300_000
"""bytes of a notebook at most"""
PLACES = re.compile(r"/(?:home|root|tmp|work|Users|usr|opt|mnt|private)/|[A-Z]:\\\\|file://")
"""paths of the machine that executed it"""


def text_of(value: str | list[str]) -> str:
    return "".join(value)


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["close_a_gap", "measure_a_gap", "your_own_loop"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_whole_small_and_compiles(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < SIZE and notebook["nbformat"] == 4 and notebook["cells"][0]["cell_type"] == "markdown"
    for cell in code_cells(notebook):
        compile(text_of(cell["source"]), f"{path.name} {cell['id']}", "exec")
    nbformat = pytest.importorskip("nbformat", reason="the format is checked with the extra `notebooks`")
    nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_there_and_show_nothing_of_the_machine(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} & kinds and any(output["output_type"] == "stream" for output in outputs)
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not PLACES.search("\n".join(text_of(cell["source"]) for cell in notebook["cells"]))
    shown = "\n".join(
        text_of(value)
        for o in outputs
        for kind, value in {"text": o.get("text", ""), **o.get("data", {})}.items()
        if not kind.startswith("image/")
    )
    assert not PLACES.search(shown) and not re.search(r"Warning|it/s\]|%\|", shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_uses_public_names(path):
    """Of gapclose itself, and the maker of the shipped world, as the recipes do."""
    source = "\n".join(text_of(cell["source"]) for cell in code_cells(json.loads(path.read_text(encoding="utf-8"))))
    assert set(re.findall(r"^from (gapclose\S*) import", source, re.M)) == {"gapclose", "gapclose.data.generated"}


@pytest.mark.slow
def test_the_notebooks_run(tmp_path):
    pytest.importorskip("nbclient", reason="notebooks are executed with the extra `notebooks`")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "execute.py"), "--out", str(tmp_path)], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for path in NOTEBOOKS:
        before, after = (json.loads(p.read_text(encoding="utf-8")) for p in (path, tmp_path / path.name))
        assert [cell["source"] for cell in before["cells"]] == [cell["source"] for cell in after["cells"]]
        kinds = [[[o["output_type"] for o in cell["outputs"]] for cell in code_cells(notebook)] for notebook in (before, after)]
        assert kinds[0] == kinds[1]
