"""Items that were left out because of their media are counted in every table, and what is read again is read as the run read it."""

import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from comparison.collect import items_of, skipped
from comparison.tables import _table
from rich.console import Console

from gapclose.core.settings import read_settings
from gapclose.evaluation.run_records import read_records, summarise
from gapclose.evaluation.summary_text import skipped_words
from gapclose.report.compare_runs import compare, print_comparison, write_comparison
from gapclose.report.console import print_report
from gapclose.report.html import build_page


@pytest.fixture
def short_run(tiny_run, tmp_path) -> Path:
    """The run as it would be if three of its items had been left out."""
    directory = Path(shutil.copytree(tiny_run, tmp_path / "short", ignore=shutil.ignore_patterns("checkpoints", "adapter")))
    lines = [json.dumps(r | {"n_skipped": 3}) for r in read_records(directory)]
    (directory / "gap.jsonl").write_text("".join(line + "\n" for line in lines))
    return directory


def printed(show, *arguments) -> str:
    console = Console(file=StringIO(), width=200)
    show(*arguments, console)
    return " ".join(console.file.getvalue().split())


def test_a_count_in_words():
    assert (skipped_words(0), skipped_words(1), skipped_words(3)) == ("", ", 1 item left out", ", 3 items left out")


def test_every_table_of_a_run_says_it(short_run, tiny_run):
    """Titles in the terminal, the page's head, its table and its figures; nothing of it where nothing was left out."""
    assert summarise(short_run)["n_skipped"] == 3 and summarise(tiny_run)["n_skipped"] == 0
    text, page = printed(print_report, short_run), build_page(short_run)
    assert text.count("3 items left out") >= 3 and "96 items, 3 items left out, 1 seed" in text
    assert "96 items, 3 items left out" in page and "figure on test clips, 3 items left out" in page
    assert "left out" not in printed(print_report, tiny_run) and "left out" not in build_page(tiny_run)


def test_a_comparison_says_it_run_by_run(short_run, tiny_run, tmp_path):
    """A column where a run left items out, and the sum in the titles."""
    found = compare([tiny_run, short_run])
    text = printed(print_comparison, found)
    assert text.count("3 items left out") == 2 and "left out" in text.split("seed")[0]
    write_comparison(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'data-label="items left out">0<' in page and 'data-label="items left out">3<' in page
    assert "left out" not in printed(print_comparison, compare([tiny_run, tiny_run]))


def test_a_table_of_objectives_says_it_seed_by_seed():
    """A column of counts in the order of the seeds."""

    def seed(count: int) -> dict:
        same = np.full(3, 0.5)
        told = {"also": None, "alternative": None, "more": {}, "base_instead": False, "probe": {"layer": 1, "labels": 48, "auroc": 0.5}}
        return {"balanced": same, "standard": same, "rejection": same, **told, "skipped": count}

    found = {("plain", 48, "gold"): {0: seed(0), 1: seed(3)}}
    head, _, row = _table(found, "plain", None).markdown()
    assert head.endswith("| items left out |") and row.endswith("| 0 + 3 |")
    assert "left out" not in _table({("plain", 48, "gold"): {0: seed(0)}}, "plain", None).markdown()[0]


def test_items_are_read_again_as_the_run_read_them(short_run, digits):
    """Without those that it left out, whose observations there are none of."""
    bound = json.loads((short_run / "items.json").read_text())
    gone = digits.select(split="test", purpose="gap").items[5].id
    (short_run / "items.json").write_text(json.dumps(bound | {"skipped": [{"item": gone, "fault": "a.wav: empty"}]}))
    found = items_of(short_run, "test")
    assert [i.id for i in found] == [i.id for i in digits.select(split="test", purpose="gap") if i.id != gone]
    assert skipped(short_run) == 3


def test_items_of_another_layout_are_read_too(short_run, tmp_path):
    """Films in four tables, dealt out as the run's configuration says."""
    pytest.importorskip("av")
    from gapclose.data.digits import videos as films

    films.write(tmp_path / "films", clips=8)
    settings = yaml.safe_load((short_run / "config.yaml").read_text())
    settings["data"] |= {"path": str(tmp_path / "films"), "shares": [0.5, 0, 0, 0.5]}
    (short_run / "config.yaml").write_text(yaml.safe_dump(settings))
    (short_run / "items.json").write_text(json.dumps({"root": str(tmp_path / "films"), "skipped": []}))
    found = items_of(short_run, "test")
    assert len(found) == 16 and len({i.clip for i in found}) == 4 and found.framing.frames == read_settings(short_run)["data.frames"]
