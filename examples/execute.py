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


def tidied(outputs: list[dict]) -> list[dict]:
    """The outputs to keep: standard output in one piece, no standard error, one form of a table or picture."""
    found: list[dict] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stdout" and found and found[-1]["output_type"] == "stream":
                found[-1]["text"] += output["text"]
            elif output["name"] == "stdout":
                found.append(output)
            continue
        if len(output.get("data", {})) > 1:
            output["data"].pop("text/plain", None)
            if "image/png" in output["data"]:
                output["data"].pop("image/jpeg", None)
        output.get("metadata", {}).clear()
        found.append(output)
    return found


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave in a notebook what does not depend on the machine or the time of its execution."""
    for number, cell in enumerate(notebook.cells):
        cell["id"], cell["metadata"] = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = tidied(cell.outputs)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.validate(notebook)


def execute(path: Path, out: Path, seconds: int) -> None:
    """Execute a notebook in an empty directory, and write it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails; nothing is written then.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": directory}}).execute()
    tidy(notebook)
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
