"""The documents: links, examples, command lines, and what they must not hold."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from documented_commands import command_lines, is_placeholder, options, words
from prose import pages

from gapclose.core.errors import ErrorCollector
from gapclose.data.jsonl import read_items
from gapclose.pipeline.config import Config
from gapclose.pipeline.config_parsing import all_hints, fitted, read_given

ROOT = Path(__file__).parent.parent
GENERATED = "<!-- generated: "
"""begins the line of a page where the site has more; its anchors are checked where the site is built"""

pytestmark = pytest.mark.usefixtures("registries")


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*pages(), ROOT / "CHANGELOG.md"], ids=page_name)
def test_links_lead_somewhere_and_nothing_waits_to_be_filled_in(path):
    text = path.read_text()
    assert not re.findall(r"@\w+@|\bTODO\b|\bTBD\b|\b(?:EXAMPLE|RANDOM)_[A-Z]+\b", text)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    assert not [t for t in targets if not (path.parent / t.partition("#")[0]).exists()]
    headings = {other: {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", other.read_text(), re.M)}
                for other in pages()}  # fmt: skip
    anchors = [(path if not t.partition("#")[0] else (path.parent / t.partition("#")[0]).resolve(), t.partition("#")[2])
               for t in re.findall(r"\]\(([^)\s]+\.md#[^)\s]+|#[^)\s]+)\)", text) if not t.startswith("http")]  # fmt: skip
    assert not [(file.name, anchor) for file, anchor in anchors if anchor not in headings[file] and GENERATED not in file.read_text()]


def examples(path: Path) -> list[str]:
    """The blocks of Python in a document: fenced, or indented and with an import."""
    fenced = re.compile(r"^( *)(```+|~~~+)[ {.]*([\w-]*)[^\n]*\n(.*?)^\1\2[ \t]*$", re.S | re.M)
    text = path.read_text()
    found = [dedent(body) for _, _, language, body in fenced.findall(text) if language.lower() in ("py", "python", "python3")]
    indented = [dedent(block) for block in re.findall(r"(?<=\n\n)(?: {4}.*\n+)+", fenced.sub("", text))]
    return found + [block for block in indented if re.search(r"^(?:from [\w.]+ )?import \w", block, re.M)]


SMALL = (
    'force=True, observe={"batch_size": 16, "shard_batches": 2, "max_new_tokens": 3}, probe={"families": ["logistic"], "c": [0.01], "folds": 2}, '
    'gap={"replicates": 100}, controls={"random_weights": False}, export={"unimproved": True}, '
    'train={"epochs": 1, "global_batch_size": 24, "micro_batch_size": 12, "learning_rate": 0.01}'
)


WITH_A_RUN = ("README.md", "docs/how-to/python.md", "docs/reference/files.md")
RUN = (*WITH_A_RUN, "docs/how-to/monitor.md", "docs/how-to/extending.md", "docs/how-to/gpus.md")
"""pages whose examples are run below"""
NOT_RUN = {
    "docs/how-to/callback.md": "needs a trainer of the reader's; recipes/sft_with_gap.py is run instead",
    "docs/how-to/families.md": "needs a checkpoint of 12 GB",
    "docs/how-to/prompts.md": "a function to match answers, which stands alone",
    "docs/how-to/serving.md": "needs a server that is running",
}
"""pages whose examples are compiled only -> why"""


def test_every_example_is_run_or_says_why_not():
    shown = [page_name(path) for path in pages() if examples(path)]
    assert sorted(shown) == sorted([*RUN, *NOT_RUN])
    for name in NOT_RUN:
        for block in examples(ROOT / name):
            compile(block, name, "exec")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("```python\nimport a\n```\n", 1),
        ("1. so\n\n   ```py\n   import a\n   ```\n", 1),
        ("~~~python\nx = 1\n~~~\n\n```{.python title=x}\nx = 1\n```\n", 2),
        ("So:\n\n    from a.b import c\n\n    c()\n\nand\n\n    gapclose close\n", 1),
        ("```yaml\na: b\n```\n\n    python import.py\n", 0),
    ],
)
def test_no_form_of_an_example_is_overlooked(text, count, tmp_path):
    (tmp_path / "page.md").write_text(text)
    found = examples(tmp_path / "page.md")
    assert len(found) == count
    for block in found:
        compile(block, "page.md", "exec")


@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow) if "python" in p else p for p in WITH_A_RUN])
def test_the_examples_run(path, tiny_run, tiny_checkpoint, digits_directory, tmp_path, monkeypatch, capsys):
    """As they stand, but for the model, the run and the settings, which are the tests' own: those of the text take minutes."""
    monkeypatch.chdir(tmp_path)
    blocks, space = examples(ROOT / path), dict[str, object]()
    if any("jsonschema" in block for block in blocks):
        pytest.importorskip("jsonschema", reason="an example checks a file of a run with jsonschema (the extra `dev`)")
    assert blocks and (path != "README.md" or all(len(block.splitlines()) <= 8 for block in blocks))
    for block in blocks:
        block = block.replace('path="digits"', f'path="{tiny_checkpoint}", dtype="float32"').replace(
            "runs/digits/data-seed0", str(digits_directory)
        )
        block = block.replace('"runs/digits"', f'"{tiny_run}"').replace('"runs/digits/gap.jsonl"', f'"{tiny_run}/gap.jsonl"')
        block = re.sub(r'run_dir="(runs/memory[^"]*)".*\)\n', rf'run_dir="\1", {SMALL})\n', block)
        exec(compile(block, path, "exec"), space)
    told = capsys.readouterr().out
    assert "run.records" not in "".join(blocks) or "adapted/test" in told
    assert "run" not in space or "state" in str(space["run"].to_dict())  # type: ignore[attr-defined]


def test_the_examples_of_the_monitor_run(tiny_run, tiny_checkpoint, digits_directory, monkeypatch, capsys):
    """As they stand, but for the model and the run."""
    space = dict[str, object]()
    for block in examples(ROOT / "docs" / "how-to" / "monitor.md"):
        block = block.replace('path="digits"', f'path="{tiny_checkpoint}", dtype="float32"').replace(
            "runs/digits/data-seed0", str(digits_directory)
        )
        exec(compile(block.replace('"runs/digits"', f'"{tiny_run}"'), "monitor.md", "exec"), space)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_smaller_set_of_a_smoke_run_can_be_read(digits_directory, tmp_path, monkeypatch):
    """As it stands, but for the number of clips, of which the tests' own set has fewer: whole clips, of every split."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_directory, "my-set")
    shutil.copytree(digits_directory, "smoke", ignore=shutil.ignore_patterns("items.jsonl"))
    (block,) = examples(ROOT / "docs" / "how-to" / "gpus.md")
    exec(compile(block.replace("< 20", "< 3"), "gpus.md", "exec"), {})
    every, few = read_items(tmp_path / "my-set"), read_items(tmp_path / "smoke")
    clips = {split: {i.clip for i in few if i.split == split} for split in {i.split for i in every}}
    assert {len(of) for of in clips.values()} == {3}
    assert [i.id for i in few] == [i.id for i in every if i.clip in clips[i.split]]


@pytest.mark.parametrize(
    "block", examples(ROOT / "docs" / "how-to" / "extending.md"), ids=["reader", "control", "objective", "probe family"]
)
def test_extensions_register(block):
    exec(compile(block, "extending.md", "exec"), {})


HINTS = all_hints(Config)
COMMANDS = command_lines()
SHOWN = {name: [line for page, line in COMMANDS if page == name] for name in dict.fromkeys(page for page, _ in COMMANDS)}


def faults_of_settings(given: list[str]) -> list[str]:
    """What is wrong with words that name a configuration file and keys; values that the reader fills in are not looked at."""
    problems, known = ErrorCollector("a command line"), list[str]()
    for key, value in options(given):
        if key in ("print_config", "help"):
            continue
        if key == "config" and value is not None and is_placeholder(value):
            continue
        known += [f"--{key}", *([value] if value is not None else [])]
    found = read_given(known, HINTS, problems)
    for one in found:
        if one.where == "command line" and one.key in HINTS and not is_placeholder(str(one.value)):
            try:
                fitted(one, HINTS[one.key])
            except ValueError as error:
                problems.add(str(error))
    return problems.messages


@pytest.fixture(scope="module")
def help_of():
    """``command`` -> what ``gapclose COMMAND --help`` prints."""
    shown: dict[str, str] = {}

    def call(command: str) -> str:
        if command not in shown:
            arguments = [sys.executable, "-m", "gapclose.pipeline.cli", command, "--help"]
            shown[command] = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        return shown[command]

    return call


def faults_of(line: str, help_of) -> list[str]:
    """What is wrong with a command line: files, options, keys or values that do not exist."""
    first, *rest = words(line)
    if first == "make":
        targets = re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
        return [] if rest[0] in targets else [f"no target {rest[0]}"]
    if recipe := next((w for w in [first, *rest] if w.startswith("recipes/")), None):
        if not (ROOT / recipe).is_file():
            return [f"no file {recipe}"]
        given = [first, *rest][[first, *rest].index(recipe) + 1 :]
        launcher = [w for w in rest if w.startswith("launch/") and not (ROOT / w).is_file()]
        if recipe == "recipes/close.py":
            return launcher + faults_of_settings(given)
        source = (ROOT / recipe).read_text()
        return [f"{recipe} has no option --{key}" for key, _ in options(given) if f'"--{key}"' not in source]
    command, *given = rest
    if is_placeholder(command):
        return []
    if command in ("validate", "measure", "close", "export"):
        return faults_of_settings(given)
    if command in ("monitor", "serve", "ask", "report", "wandb-report"):
        return [f"gapclose {command} has no option --{key}" for key, _ in options(given) if f"--{key}" not in help_of(command)]
    return [] if command in ("--version", "--help") else [f"no command {command}"]


@pytest.mark.parametrize("page", SHOWN)
def test_command_lines_name_what_exists(page, help_of, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {line: faults_of(line, help_of) for line in SHOWN[page]}
    assert {line: faults for line, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "line",
    [
        "gapclose close --config configs/none.yaml",
        "gapclose close --config configs/digits.yaml --train.epoch 3",
        "gapclose close --train.epochs some",
        "gapclose shut --config configs/digits.yaml",
        "gapclose report runs/digits --page x.html",
        "python recipes/compare.py --fast",
        "accelerate launch --config_file launch/none.yaml recipes/close.py --config configs/digits.yaml",
        "make nothing",
    ],
)
def test_a_command_line_with_a_fault_is_noticed(line, help_of, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert faults_of(line, help_of)
