"""Reports: what a run measured, as tables, as one JSON object and as a figure; the page has its own tests."""

import json
import shutil
from io import StringIO

import pytest
from PIL import Image
from rich.console import Console

from gapclose.evaluation.run_records import read_records, record_of, summarise
from gapclose.evaluation.summary_text import caveats, claims, next_steps, show, verdict
from gapclose.metrics.next_steps import OTHER_TYPES_STEP
from gapclose.metrics.status import STATES
from gapclose.pipeline.cli import main
from gapclose.report import console as report
from gapclose.report import figures
from gapclose.report.console import print_report

HEADINGS = ("stage", "action", "generated", "reading", "fresh", "sentinel", "retained", "closure", "state")
STAGES = ("base/val", "base/test", "epoch-1/val", "epoch-2/val", "adapted/test")
INTERVALS = (
    "base.balanced", "base.standard_accuracy", "base.generated_balanced", "adapted.balanced", "adapted.parse_strict", "adapted.retention",
    "reading.balanced", "closure", "standard_drop", "retention_drop", "reading_change", "fresh_probe.base", "fresh_probe.adapted",
    "sentinel_probe.base", "sentinel_probe.adapted", "text_only.balanced", "majority.balanced", "gap.balanced.base", "gap.matched.base",
    "gap.matched.adapted", "gap.auroc.base", "gap.auroc.adapted", "modality.vision.gap.balanced.base", "modality.audio.closure",
    "transfer.base", "transfer.adapted", "transfer.closure",
)  # fmt: skip


def deep(tree: dict, path: str):
    for key in path.split("."):
        tree = tree[key]
    return tree


def shown(capsys, *arguments: str) -> str:
    assert main(["report", *arguments]) == 0
    return capsys.readouterr().out


def complaint(capsys, *arguments: str) -> str:
    assert main(["report", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


@pytest.fixture
def measured_run(tiny_run, tmp_path):
    """What `gapclose measure` leaves: the same run before it trained."""
    directory = tmp_path / "measured"
    shutil.copytree(tiny_run / "probes", directory / "probes")
    (directory / "gap.jsonl").write_text(json.dumps(record_of(tiny_run, "base/test")) + "\n")
    return directory


@pytest.fixture(autouse=True)
def _width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def test_tables_and_verdict(capsys, tiny_run):
    """Every stage, the test figures with intervals, both modalities, and sentences; nothing is cut off where there is no terminal."""
    text = shown(capsys, str(tiny_run))
    assert "…" not in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert next(line for line in text.splitlines() if "stage" in line and line.startswith("┃")).replace("┃", " ").split() == list(HEADINGS)
    assert [r[0] for r in rows if r[0] in STAGES] == list(STAGES)
    summary = summarise(tiny_run)
    cells = {r[0]: r[1:] for r in rows if len(r) == 3}
    for label, key in (
        ("action, balanced", "balanced"),
        ("standard accuracy", "standard_accuracy"),
        ("probability of the options", "option_mass"),
        ("answers that parse (lenient)", "parse_lenient"),
    ):
        assert cells[label] == [show(summary[side][key]) for side in ("base", "adapted")]
    assert cells["gap, AUROC"] == [show(summary["gap"]["auroc"][side]) for side in ("base", "adapted")]
    assert "24 clips, 96 items, 1 seed (0), 95 % clip-bootstrap intervals" in text
    parts = {
        r[0]: [r[1], *(after[1] for after in rows[k + 1 : k + 2] if not after[0])]
        for k, r in enumerate(rows)
        if r[0] in ("audio", "vision")
    }
    assert {name: " ".join(words) for name, words in parts.items()} == {"audio": "not judgeable", "vision": "not judgeable"}
    for line in verdict(summary):
        assert line in " ".join(text.split())
    silent = "; ".join(f"{of}: the model does not answer such questions" for of in ("audio", "vision"))
    state = f"state: {summary['state']} ({STATES[summary['state']]}); {silent}"
    assert text.splitlines()[-2:] == [state, f"page: {tiny_run / 'report.html'}"]


def test_narrow_terminals_fold_and_cut_nothing(tiny_run):
    """At 80 columns tables are narrower, never abbreviated; sentences are left to the terminal, so that they can be searched."""
    out = StringIO()
    print_report(tiny_run, Console(file=out, width=80))
    tables = [line for line in out.getvalue().splitlines() if line[:1] in "┏┃┡│├└"]
    assert "…" not in out.getvalue() and len(tables) > 10 and max(map(len, tables)) <= 80


def test_width_follows_terminal_and_columns(monkeypatch):
    """160 columns into a file; what COLUMNS says where it is set."""
    assert report.wide_console().width == 160
    monkeypatch.setenv("COLUMNS", "100")
    assert report.wide_console().width == 100


def test_one_json_object(capsys, tiny_run):
    """Every figure of the run as {value, lower, upper} with the value inside, and the facts it hangs on."""
    summary = json.loads(shown(capsys, str(tiny_run), "--json"))
    for path in INTERVALS:
        interval = deep(summary, path)
        assert set(interval) == {"value", "lower", "upper"}, path
        if interval["lower"] is not None:
            assert interval["lower"] <= interval["upper"] and isinstance(interval["value"], float), path
    assert deep(summary, "base.balanced.value") is not None and summary["state"] in STATES
    assert (summary["n_clips"], summary["n_items"], summary["seed"]) == (24, 96, 0)
    assert summary["frozen_probe_shift"] == 0.0  # LoRA sits after the probe's layer
    assert summary["epoch"] in (1, 2) and set(summary["verdicts"]) == {"audio", "vision"}
    base, adapted = record_of(tiny_run, "base/test"), record_of(tiny_run, "adapted/test")
    assert summary["base"]["balanced"] == base["action"]["balanced"] and summary["adapted"]["balanced"] == adapted["action"]["balanced"]
    gap = summary["reading"]["balanced"]["value"] - summary["base"]["balanced"]["value"]
    assert summary["gap"]["balanced"]["base"]["value"] == pytest.approx(gap)
    gained = summary["adapted"]["balanced"]["value"] - summary["base"]["balanced"]["value"]
    assert summary["closure"]["value"] == pytest.approx(gained / gap)


def test_a_run_that_only_measured(capsys, measured_run):
    """What was not measured is null in JSON and a dash in the table; no closure is claimed."""
    summary = json.loads(shown(capsys, str(measured_run), "--json"))
    for path in (
        "adapted",
        "closure",
        "standard_drop",
        "retention_drop",
        "frozen_probe_shift",
        "fresh_probe.adapted",
        "gap.matched.adapted",
    ):
        assert deep(summary, path) is None, path
    assert summary["state"] == "not judgeable" and summary["epoch"] == 0 and summary["base"]["balanced"]["value"] > 0
    text = shown(capsys, str(measured_run))
    assert "closure:" not in text and "state: not judgeable" in text and "-" in [c.strip() for c in text.split("│")]


def test_a_missing_run_is_an_error_with_the_remedy(capsys, tmp_path):
    """So are no run at all, a second one that is missing, and options that are unknown or incomplete."""
    message = complaint(capsys, str(tmp_path))
    assert f"{tmp_path}: no measurement of the base model on test" in message
    assert "run `gapclose measure` or `gapclose close` first" in message
    assert f"no such run directory: {tmp_path / 'nowhere'}; name what `run_dir` was" in complaint(capsys, str(tmp_path / "nowhere"))
    for arguments in (
        (),
        ("a", "--yaml"),
        ("a", "--html"),
        ("a", "--html", "--json"),
        ("a", "--html="),
        ("a", "--html=--json"),
        ("",),
        ("a", "--js"),
    ):
        assert "usage: gapclose report [-h] [--json] [--html FILE] [--all] RUN [RUN ...]" in complaint(capsys, *arguments)
    assert "--yaml" in complaint(capsys, "a", "--yaml")
    message = complaint(capsys, "here", "there")
    assert "no such run directory: here, there;" in message


def test_undefined_figures_do_not_stop_a_report(capsys, tiny_run, measured_run):
    """A base whose gap is exactly zero has no closure; it is shown as a dash."""
    adapted, nothing = record_of(tiny_run, "adapted/test"), {"value": None, "lower": None, "upper": None}
    adapted["change"]["transfer"]["closure"] = adapted["change"]["closure_auroc"] = nothing
    adapted["change"]["by_modality"]["vision"]["closure"] = nothing
    with (measured_run / "gap.jsonl").open("a") as handle:
        handle.write(json.dumps(adapted) + "\n")
    summary = summarise(measured_run)
    assert summary["transfer"]["share_of_closure"] is None
    before, after, reading = (show(summary["transfer"][k]) for k in ("base", "adapted", "reading"))
    (line,) = [line for line in verdict(summary) if line.startswith("held-out")]
    assert line == f"held-out question types: action {before}, after training {after}; the base model's reading {reading}; closure -; " + (
        f"standard accuracy fell by {show(summary['transfer']['standard_drop'])}"
    )
    assert len({before, after, reading}) == 3


@pytest.mark.parametrize(("drop", "told"), [((0.4, 0.3, 0.5), True), ((0.4, -0.1, 0.8), False), ((0.01, 0.005, 0.02), False)])
def test_harm_to_other_question_types_is_told(tiny_run, measured_run, drop, told):
    """Shown to be above zero, and beyond the run's budget."""
    adapted = record_of(tiny_run, "adapted/test")
    adapted["change"]["transfer"]["standard_drop"] = dict(zip(("value", "lower", "upper"), drop, strict=True))
    with (measured_run / "gap.jsonl").open("a") as handle:
        handle.write(json.dumps(adapted) + "\n")
    found = [line for line in caveats(summarise(measured_run)) if "on held-out question types the adapted model rejects" in line]
    assert [f"fell by {drop[0]:.3f}" in line for line in found] == [True] * told
    assert (OTHER_TYPES_STEP in next_steps(summarise(measured_run))) is told


def test_show():
    """Numbers for people."""
    whole = {"value": 0.81249, "lower": 0.79, "upper": 0.834}
    assert show(whole) == "0.812 [0.790, 0.834]" and show(whole, 1) == "0.8 [0.8, 0.8]"
    assert show(whole | {"lower": None}) == "0.812"
    assert show(None) == show(whole | {"value": None}) == "-"


def test_what_may_be_claimed_is_what_the_measurement_says(tiny_run, capsys):
    """One meaning of real: word and reason of measurement.json, in the tables and below them; a forced training is told."""
    verdicts = json.loads((tiny_run / "measurement.json").read_text())["verdicts"]
    lines = claims(summarise(tiny_run))
    assert lines[:2] == [f"{v['word']} - {v['sentence']}" for v in verdicts.values()] and verdicts["audio"]["word"] == "not judgeable"
    assert lines[2] == "whether to train was decided on val (24 clips): audio not judgeable, vision not judgeable"
    assert lines[3] == "forced: trained on the reading of audio and vision although it was not shown to be real"
    print_report(tiny_run)
    assert capsys.readouterr().out.count("not judgeable - ") == 2


def test_the_figure_is_a_png(tiny_run):
    """It is drawn from gap.jsonl alone, and redrawn whole."""
    path = tiny_run / "figures" / "epochs.png"
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 800
        assert len(set(image.convert("RGB").resize((90, 60)).get_flattened_data())) > 10  # lines were drawn
    assert {p.name for p in path.parent.iterdir()} <= {"epochs.png", "example.png"}


def test_no_figure_without_epochs(tmp_path, measured_run):
    """A measurement on test alone has nothing to draw."""
    assert figures.draw_epochs(measured_run) is None and figures.draw_epochs(tmp_path) is None
    assert read_records(tmp_path) == [] and record_of(tmp_path, "base/test") is None
