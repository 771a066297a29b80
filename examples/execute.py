"""Execute the notebooks again and keep their outputs: ``make notebooks``.

    python examples/execute.py                                # all three, in place
    python examples/execute.py examples/measure_a_gap.ipynb --out /tmp/copies

Needs the extra ``notebooks``. A notebook runs in an empty directory, so no output of an earlier run is found. What is kept is small: no
warnings, no progress bars, no times.
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def kept(output: dict) -> bool:
    """Whether an output is shown: not what goes to standard error."""
    return not (output["output_type"] == "stream" and output["name"] == "stderr")


def execute(path: Path, out: Path, seconds: int) -> None:
    """Execute a notebook in an empty directory, and write it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails; nothing is written then.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": directory}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if kept(output)]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.validate(notebook)
    nbformat.write(notebook, out / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--out", type=Path, help="directory for the executed copies; default: in place")
    parser.add_argument("--seconds", type=int, default=3600, help="limit of a cell")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for path in given.notebooks:
        execute(path, path.parent if given.out is None else given.out, given.seconds)
        print(f"{path.name} executed")


if __name__ == "__main__":
    main()
