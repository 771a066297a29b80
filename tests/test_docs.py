"""What the documents must not hold."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("registries")


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"],
    ids=lambda p: p.name,
)
def test_links_lead_somewhere_and_nothing_waits_to_be_filled_in(path):
    text = path.read_text()
    assert not re.findall(r"@\w+@|\bTODO\b|\bTBD\b|\b(?:EXAMPLE|RANDOM)_[A-Z]+\b", text)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    assert not [t for t in targets if not (path.parent / t.partition("#")[0]).exists()]
    headings = {other: {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", other.read_text(), re.M)}
                for other in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}  # fmt: skip
    anchors = [(path if not t.partition("#")[0] else (path.parent / t.partition("#")[0]).resolve(), t.partition("#")[2])
               for t in re.findall(r"\]\(([^)\s]+\.md#[^)\s]+|#[^)\s]+)\)", text) if not t.startswith("http")]  # fmt: skip
    assert not [(file.name, anchor) for file, anchor in anchors if anchor not in headings[file]]


def examples(path: Path) -> list[str]:
    """The blocks of Python in a document."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)


SMALL = (
    'force=True, observe={"batch_size": 16, "shard_batches": 2, "max_new_tokens": 3}, probe={"families": ["logistic"], "c": [0.01], "folds": 2}, '
    'gap={"replicates": 100}, controls={"random_weights": False}, export={"unimproved": True}, '
    'train={"epochs": 1, "global_batch_size": 24, "micro_batch_size": 12, "learning_rate": 0.01}'
)


@pytest.mark.parametrize("path", ["README.md", "docs/how-to/python.md"])
def test_the_examples_run(path, tiny_run, tiny_checkpoint, digits_directory, tmp_path, monkeypatch, capsys):
    """As they stand, but for the model, the run and the settings, which are the tests' own: those of the text take minutes."""
    monkeypatch.chdir(tmp_path)
    blocks, space = examples(ROOT / path), dict[str, object]()
    if path == "docs/how-to/python.md":
        pytest.importorskip("jsonschema", reason="an example checks a file of a run with jsonschema (the extra `dev`)")
    assert len(blocks) == {"README.md": 3, "docs/how-to/python.md": 4}[path] and (
        path != "README.md" or all(len(block.splitlines()) <= 8 for block in blocks)
    )
    for block in blocks:
        block = block.replace('path="digits"', f'path="{tiny_checkpoint}", dtype="float32"').replace(
            "runs/digits/data-seed0", str(digits_directory)
        )
        block = block.replace('"runs/digits"', f'"{tiny_run}"').replace('"runs/digits/gap.jsonl"', f'"{tiny_run}/gap.jsonl"')
        block = re.sub(r'run_dir="(runs/memory[^"]*)".*\)\n', rf'run_dir="\1", {SMALL})\n', block)
        exec(compile(block, path, "exec"), space)
    assert "adapted/test" in capsys.readouterr().out if path.startswith("docs") else "state" in str(space["run"].to_dict())  # type: ignore[attr-defined]


def test_the_examples_of_the_monitor_run(tiny_run, tiny_checkpoint, digits_directory, monkeypatch, capsys):
    """As they stand, but for the model and the run."""
    space = dict[str, object]()
    for block in examples(ROOT / "docs" / "how-to" / "monitor.md"):
        block = block.replace('path="digits"', f'path="{tiny_checkpoint}", dtype="float32"').replace(
            "runs/digits/data-seed0", str(digits_directory)
        )
        exec(compile(block.replace('"runs/digits"', f'"{tiny_run}"'), "monitor.md", "exec"), space)
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("block", examples(ROOT / "docs" / "how-to" / "extending.md"), ids=["reader", "control", "objective", "probe family"])
def test_extensions_register(block):
    exec(compile(block, "extending.md", "exec"), {})
