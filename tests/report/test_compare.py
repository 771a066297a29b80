"""Several runs side by side: what sets them apart, in a table, as JSON and as a page."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from test_page import check

from gapclose.evaluation.asked_answers import AskedAnswer, judge
from gapclose.pipeline.ask import AskedModel
from gapclose.pipeline.cli import main
from gapclose.report.compare_runs import claimed, compare, names, print_comparison

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tiny_run, tmp_path):
    """Three runs: one as it is, one of another seed, objective and batch, and one that only measured."""
    directories = [tmp_path / name for name in ("plain", "gold", "measured")]
    for directory in directories:
        shutil.copytree(tiny_run / "probes", directory / "probes")
        for name in ("config.yaml", "items.json", "gap.jsonl", "measurement.json"):
            shutil.copy(tiny_run / name, directory)
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    config["seed"], config["train"]["gold"], config["train"]["micro_batch_size"] = 1, 0.5, 6
    config["targets"]["control"] = "<b>shuffled</b>"
    (directories[1] / "config.yaml").write_text(yaml.safe_dump(config))
    records = [json.loads(line) for line in (tiny_run / "gap.jsonl").read_text().splitlines()]
    (directories[1] / "gap.jsonl").write_text("".join(json.dumps(r | {"seed": 1}) + "\n" for r in records))
    base = next(r for r in records if r["stage"] == "base/test")
    (directories[2] / "gap.jsonl").write_text(json.dumps(base) + "\n")
    return directories


def test_only_settings_that_matter_and_differ_are_named(runs):
    """The seed has a column of its own; memory, tracking and directories change no number."""
    found = compare(runs)
    assert found[0]["differs"] == {"targets.control": "none", "train.gold": 0.0} == found[2]["differs"]
    assert found[1]["differs"] == {"targets.control": "<b>shuffled</b>", "train.gold": 0.5} and found[1]["seed"] == 1
    assert compare([runs[0], runs[0]])[0]["differs"] == {}


def test_auto_is_compared_by_what_it_came_to(runs):
    """The word says nothing about what was run."""

    def given(directory, value, came_to=None):
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config["observe"]["share_prefix"] = value
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        (directory / "auto.json").write_text(
            json.dumps({} if came_to is None else {"observe.share_prefix": {"value": came_to, "reason": None}})
        )

    given(runs[0], "auto", True)
    given(runs[2], True)
    assert "observe.share_prefix" not in compare([runs[0], runs[2]])[0]["differs"]
    given(runs[2], "auto", False)
    assert [r["differs"]["observe.share_prefix"] for r in compare([runs[0], runs[2]])] == [True, False]


def test_one_table_with_a_row_a_run(runs):
    """Intervals, states, clips and seeds; what was not measured is a dash; nothing is cut off at 80 columns."""
    out = StringIO()
    print_comparison(compare(runs), Console(file=out, width=200))
    rows = {cells[0]: cells for line in out.getvalue().splitlines() if len(cells := [c.strip() for c in line.split("\u2502")[1:-1]]) == 10}
    assert list(rows) == ["plain", "gold", "measured"]
    assert rows["gold"][1] == "train.gold 0.5, targets.control <b>shuffled</b>" and rows["gold"][-2:] == ["24", "1"]
    assert rows["measured"][4:8] == ["-", "-", "-", "not judgeable"] and "[" in rows["plain"][2]
    out = StringIO()
    print_comparison(compare(runs), Console(file=out, width=80))
    assert "\u2026" not in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 80


def test_claims_are_corrected_over_all_that_is_compared(runs):
    """Three runs of two modalities are up to six tests: what is real alone may not be among them; a test that runs share counts once."""
    for directory, p in zip(runs, (0.02, 0.0001, None), strict=True):
        path = directory / "measurement.json"
        measured = json.loads(path.read_text())
        for verdict in measured["verdicts"].values():
            verdict |= {"word": "real" if p else "too few clips", "p": p}
        path.write_text(json.dumps(measured))
    found = {(run, modality): (p, word) for run, modality, _, p, *_, word in claimed(compare(runs))}
    assert found["plain", "audio"] == ("0.04", "real") and found["gold", "vision"] == ("0.0004", "real")
    assert found["measured", "audio"] == ("-", "too few clips")
    path = runs[0] / "measurement.json"
    path.write_text(path.read_text().replace('"p": 0.02', '"p": 0.03'))
    assert (claimed(compare(runs))[0][3], claimed(compare(runs))[0][-1]) == ("0.06", "real alone, not among all compared")
    assert claimed(compare([runs[0]] * 3))[0][3] == "0.06" and claimed(compare(runs))[-1][4:6] == ("-", "-")
    out = StringIO()
    print_comparison(compare(runs), Console(file=out, width=200))
    assert "p corrected over 4 tests of a reading and 4 of a change (Holm)" in out.getvalue()


def test_a_list_in_json_and_a_page(runs, capsys, tmp_path):
    """`report RUN RUN --json` is a list; --html writes one self-contained file in which settings are only texts."""
    page = tmp_path / "out" / "compared.html"
    assert main(["report", *map(str, runs), "--json", f"--html={page}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["run"] for r in found] == list(map(str, runs)) and all(r["base"]["balanced"]["value"] > 0 for r in found)
    read = check(page.read_text())
    assert "<b>shuffled</b>" in read.text and "3 runs compared" in read.text and len(read.all("svg")) == 2
    assert all("24 test clips, 2 seeds (0, 1)" in a["aria-label"] for a in read.all("svg"))
    assert main(["report", *map(str, runs), "--html", str(page)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"page: {page}")


@pytest.fixture
def asked(digits, tmp_path):
    """What `gapclose ask` has written about a model that always gives the first option, by text: of all questions, and of some."""

    def write(name, number=None, fingerprint=None):
        items = digits.select(split="test", purpose="gap")
        items = replace(items, items=items.items[:number])
        figures = judge(items, [AskedAnswer(text=i.options[0].text, first=None) for i in items], {}, replicates=50, seed=0)
        rest = {
            "usage": {},
            "tokens": 32,
            "cut_off": 0,
            "log": "",
            "questions": [],
            "unanswered": {} if number is None else {"no sound": 7},
        }
        rest["fingerprint"] = fingerprint or digits.fingerprint(labels=True)
        found = AskedModel(model="openai/gpt-x", items=items.name, split="test" if number is None else "val", figures=figures, **rest)
        (tmp_path / name).mkdir()
        (tmp_path / name / "asked.json").write_text(json.dumps(found.to_dict()))
        return tmp_path / name

    return write


def test_a_model_that_was_only_asked_has_a_row_beside_a_run(runs, asked, capsys, tmp_path):
    """Its action, the reason for the dashes, and its answers beside those of base and adapted model; claims are those of the runs."""
    directory, page = asked("api"), tmp_path / "compared.html"
    assert main(["report", str(runs[0]), str(directory), "--json"]) == 0
    run, found = json.loads(capsys.readouterr().out)
    stored = json.loads((directory / "asked.json").read_text())["figures"]
    assert found["asked"]["action"]["balanced"] == stored["action"]["balanced"] and found["asked"]["model"] == "openai/gpt-x"
    assert (run["n_items"], run["n_clips"]) == (found["n_items"], found["n_clips"]) and run["differs"] == {}
    assert claimed(compare([runs[0], directory])) == claimed(compare([runs[0]]))
    out = StringIO()
    print_comparison(compare([runs[0], directory, runs[1]]), Console(file=out, width=400))
    lines = [[c.strip() for c in line.split("\u2502")[1:-1]] for line in out.getvalue().splitlines() if "\u2502" in line]
    rows = {row[0]: row[1:] for row in lines if len(row) == 11}
    assert "2 runs and 1 model only asked on test clips" in out.getvalue() and list(rows) == ["plain", "api", "gold"]
    balanced = stored["action"]["balanced"]
    heads = out.getvalue().partition("base action")[2].partition("state")[0].split("\u2503")
    assert [head.strip() for head in heads[1:-1]] == ["reading", "adapted action", "asked action", "closure", "standard drop"]
    assert rows["api"][0] == "model openai/gpt-x" and rows["api"][4].startswith(f"{balanced['value']:.2f} [")
    assert rows["api"][1:4] + rows["api"][5:7] == ["-"] * 5 and rows["api"][8:] == ["24", "-"] and rows["plain"][4] == "-"
    assert "only asked, judged by text" in rows["api"][7] and "no reading and no gap" in rows["api"][7]
    answers = {row[0]: row[1:] for row in lines if len(row) == 8}
    assert [*answers] == ["plain, base", "plain, adapted", "api, only asked", "gold, base", "gold, adapted"]
    assert answers["api, only asked"][:3] == [rows["api"][4], "-", "-"]
    assert answers["plain, base"][1] == rows["plain"][1] and answers["plain, base"][0].startswith(
        f"{run['base']['generated_balanced']['value']:.2f}"
    )
    assert "warning" not in out.getvalue()
    assert main(["report", str(runs[0]), str(directory), "--html", str(page)]) == 0
    assert "api, only asked" in capsys.readouterr().out
    read = check(page.read_text())
    assert all(word in read.text for word in ("1 run and 1 model only asked compared", "model openai/gpt-x", "api, only asked"))
    (drawn,) = [a["aria-label"] for a in read.all("svg") if "reading" in a["aria-label"]]
    assert f"api: asked action {balanced['value']:.2f}" in drawn
    assert main(["report", *map(str, runs), "--html", str(page)]) == 0
    assert "asked action" not in capsys.readouterr().out + page.read_text()


def test_an_asked_model_of_other_questions_is_warned_of(runs, asked, capsys):
    """Another split, a part of the items, as many items of another set; and what is no asked model."""
    assert main(["report", str(runs[0]), str(asked("other", fingerprint="0123"))]) == 0
    assert "warning: other was asked another item set, or with other labels or prompts" in " ".join(capsys.readouterr().out.split())
    directory = asked("some", number=8)
    assert main(["report", str(runs[0]), str(directory)]) == 0
    said = capsys.readouterr().out
    assert "warning: some was asked the split 'val', and not test" in said
    assert "some has answered 8 items of" in said and "7 requests without an answer" in said and "of other questions" in said
    assert main(["report", str(directory)]) == 2
    assert f"name a run beside it: `gapclose report RUN {directory}`" in capsys.readouterr().err
    (directory / "asked.json").write_text(
        json.dumps({"model": "m", "items": "i", "fingerprint": "f", "split": "test", "figures": {}, "unanswered": {}})
    )
    assert main(["report", str(runs[0]), str(directory)]) == 2
    assert "asked.json: lacks what `gapclose ask` writes" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_an_error_with_the_remedy(runs, capsys, tmp_path):
    """The table is printed all the same."""
    (tmp_path / "file").write_text("")
    assert main(["report", str(runs[0]), str(runs[1]), "--html", str(tmp_path / "file" / "x.html")]) == 2
    printed = capsys.readouterr()
    assert "2 runs on test clips" in printed.out and "the page cannot be written" in printed.err and "--html FILE" in printed.err


@pytest.mark.slow
def test_json_is_all_that_json_prints(runs):
    """In a process of its own: libraries that print when they are imported (as one does under WANDB_MODE=offline) are not."""
    for some in (runs[:1], runs[:2]):
        command = [sys.executable, "-m", "gapclose.pipeline.cli", "report", *map(str, some), "--json"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
        assert result.returncode == 0 and json.loads(result.stdout), result.stderr


def test_runs_of_the_same_name_are_called_by_their_whole_path():
    """The last part is enough where it tells them apart."""
    assert names(["a/one", "b/two"]) == ["one", "two"] and names(["a/run", "b/run"]) == ["a/run", "b/run"]
