"""The rooms of the package: one direction of imports, no circle, no module outside a room."""

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp", reason="import-linter, of the extra `dev`, looks at imports")

ROOT = Path(__file__).parent.parent
ROOMS = ("core", "data", "models", "observe", "probes", "metrics", "evaluation", "training", "export", "report", "pipeline")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("gapclose", exclude_type_checking_imports=False)


def test_the_contracts_hold():
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0 and "2 kept, 0 broken" in found.stdout, found.stdout


def test_there_is_no_circle(graph):
    """Imports under ``TYPE_CHECKING`` included; the root's are those of its lazy exports."""
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules if m != "gapclose"}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names it


def test_every_module_is_in_a_room(graph):
    """Except that of ``python -m gapclose``, which is above all."""
    assert {m.split(".")[1] for m in graph.modules if "." in m} == {*ROOMS, "__main__"}
