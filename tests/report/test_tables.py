"""Tables in a terminal of 80 columns: nothing is cut off, and no word or number is broken."""

import re
import shutil
from io import StringIO

import pytest
from rich.console import Console
from test_untrained import BASELINES

from gapclose.core.files import read_json, write_json
from gapclose.evaluation.run_records import summarise
from gapclose.report.compare_runs import compare, print_comparison
from gapclose.report.console import print_prompts, print_report, print_sentence
from gapclose.report.tables import print_table

BORDER = re.compile("[┏┓┗┛┡┩├┤┼│┃━─┳╇┴└┘┬╈╋]+")


def printed(show, width: int) -> str:
    out = StringIO()
    show(Console(file=out, width=width))
    return out.getvalue()


def words(text: str) -> set[str]:
    """What stands between borders and spaces, in tables alone."""
    return {word for line in text.splitlines() if line[:1] in "┏┃┡│├└" for word in BORDER.sub(" ", line).split()}


def intervals(text: str) -> set[str]:
    return set(re.findall(r"-?[0-9.]+ \[-?[0-9.]+, -?[0-9.]+\]", text))


@pytest.fixture
def shown(tiny_run, tmp_path):
    """Name -> what prints tables on a console: of a run with inference-time methods, of its prompts, of eleven runs."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "adapter", "observations"))
    write_json(tmp_path / "run" / "measurement.json", read_json(tiny_run / "measurement.json") | {"baselines": BASELINES})
    runs = compare([tmp_path / "run"] * 11)
    for n, run in enumerate(runs):
        run |= {
            "run": f"runs/consistency-and-gold-seed-{n}",
            "seed": n,
            "differs": {"train.gold": 0.25 * (n % 3), "targets.control": "none"},
        }
    side = {"action": summarise(tiny_run)["base"], "reading": {"balanced": BASELINES["base"]["balanced"]}}
    prompts = {name: {"base": side, "adapted": None} for name in ("own", "binary", "package.module:question", "again", "more")}
    return {
        "report": lambda console: print_report(tmp_path / "run", console),
        "all": lambda console: print_report(tmp_path / "run", console, everything=True),
        "prompts": lambda console: print_prompts(prompts, console),
        "comparison": lambda console: print_comparison(runs, console),
    }


@pytest.mark.parametrize("name", ["report", "all", "prompts", "comparison"])
def test_eighty_columns_break_no_word(shown, name):
    """Every word and every interval is one that a wide terminal shows, too, and none is lost."""
    wide, narrow = printed(shown[name], 400), printed(shown[name], 80)
    tables = [line for line in narrow.splitlines() if line[:1] in "┏┃┡│├└"]
    assert len(tables) > 5 and max(map(len, tables)) <= 80 and "…" not in narrow
    assert words(narrow) == words(wide)
    assert intervals(narrow) == intervals(wide) and len(intervals(wide)) > 1


def test_a_few_rows_are_turned_on_their_side_and_many_are_shared_out():
    """The first columns stand in every part, those aside in the last one."""
    headings, row = ["name", *(f"figure {k}" for k in range(6))], ["0.50 [0.40, 0.60]"] * 6
    turned = printed(lambda console: print_table(console, "t", headings, [["a", *row], ["b", *row]], words=("name",)), 80)
    assert len(turned.split("┏")) == 2 and turned.count("│ figure ") == 6
    rows = [[f"run {n}", *row] for n in range(9)]
    split = printed(lambda console: print_table(console, "t", headings, rows, words=("name",), aside=("figure 0",)), 80)
    parts = split.split("┏")[1:]
    assert len(parts) == 3 and all(part.count("run ") == 9 for part in parts) and "figure 0" in parts[-1] and "figure 0" not in parts[0]


def test_columns_may_have_the_same_name():
    """Names of concepts are the user's."""
    text = printed(
        lambda console: print_table(console, "t", ["clips", *["clips"] * 30], [[f"{n}-{k}" for k in range(31)] for n in range(6)]), 80
    )
    assert all(f"{n}-{k} " in text for n in range(6) for k in range(31))


def test_a_name_that_is_wider_than_the_terminal_is_folded():
    """Nothing of it is lost, and the number beside it stays whole."""
    name, other = "x" * 150, "y" * 90
    text = printed(
        lambda console: print_table(console, "t", ("run", "b", other), [[name, "0.50 [0.40, 0.60]", "z"]] * 5, words=("run",)), 60
    )
    assert text.count("x") >= 5 * 150 and text.count("y") == 90 and "0.50 [0.40, 0.60]" in text
    assert max(map(len, text.splitlines())) <= 60


def test_settings_that_most_runs_share_are_not_repeated(shown):
    """In eleven runs a setting is named where it differs from what more than half of them have."""
    text = printed(shown["comparison"], 200)
    assert "targets.control" not in text and text.count("train.gold 0.0") == 4 and text.count("train.gold 0.5") == 3


def test_control_characters_of_items_do_not_act_on_the_terminal():
    """``ESC [ 2 J`` would clear it."""
    shown = printed(lambda console: print_table(console, "t", ["a", "b"], [("\x1b[2J", "1"), None, ("naïve", "\x9b31m")], words=["a"]), 80)
    assert "\x1b" not in shown and "\x9b" not in shown and "\\x1b[2J" in shown and "\\x9b31m" in shown and "naïve" in shown
    assert "\\x1b]0;" in printed(lambda console: print_sentence(console, "title \x1b]0;x\x07"), 80)
