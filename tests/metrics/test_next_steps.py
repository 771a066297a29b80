"""The next step: one for every state and verdict, in terminal, page and documents."""

import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from gapclose.core.files import read_json, write_json
from gapclose.evaluation.summary_text import next_steps, verdict_step
from gapclose.metrics.judgeable import OPTION_MASS, REMEDIES, SKILL
from gapclose.metrics.next_steps import CALLBACK_STEPS, FAINT, FAINT_SETTINGS, FAINT_STEP, NEXT_STEPS
from gapclose.metrics.status import STATES
from gapclose.metrics.verdict import VERDICTS
from gapclose.pipeline.config import Config, parse_config
from gapclose.report.console import print_report
from gapclose.report.html import build_page

ROOT = Path(__file__).parents[2]
STEPS = {(kind, word): step for kind, steps in NEXT_STEPS.items() for word, step in steps.items()} | {("measured", "faint"): FAINT_STEP}


def test_no_state_and_no_verdict_is_without_one():
    """A base model has three states (gapclose.evaluation.record); a trained one has the others."""
    assert set(NEXT_STEPS["measured"]) == {"open", "no gap", "not judgeable"}
    assert set(NEXT_STEPS["trained"]) == set(STATES) - {"not judgeable"}
    assert set(NEXT_STEPS["verdict"]) == set(VERDICTS)
    assert {kind: set(steps) for kind, steps in CALLBACK_STEPS.items()} == {kind: set(NEXT_STEPS[kind]) for kind in ("measured", "trained")}


def test_a_training_that_the_callback_measured_has_steps_without_settings_of_a_run():
    for state, step in CALLBACK_STEPS["trained"].items():
        assert next_steps(summary(state) | {"callback": {"step": 4}}) == [step]
        assert step.endswith(".") and len(step) <= 130 and "run_dir" not in step and "lora." not in step and "train." not in step


@pytest.mark.parametrize("place", STEPS, ids=" ".join)
def test_a_step_is_one_line_and_names_keys_that_there_are(place):
    step, config = STEPS[place], Config()
    assert step.endswith(".") and "\n" not in step and len(step) <= 130
    for key in re.findall(r"`([a-z]+\.[a-z_]+)(?:: \w+)?`", step):
        group, _, name = key.partition(".")
        assert hasattr(getattr(config, group), name), key
    for name in re.findall(r"`(seed|run_dir)`", step):
        assert hasattr(config, name)


def test_the_documents_have_the_same_words():
    """docs/understand/verdicts.md has a row for every state and verdict: the word, its rule, the next step."""
    text = (ROOT / "docs" / "understand" / "verdicts.md").read_text()
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    for kind, heading in {
        "measured": "States of a base model",
        "trained": "States after training",
        "verdict": "Verdicts on a reading",
    }.items():
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in sections[heading].splitlines() if line.startswith("| `")]
        assert {word.strip("`"): step for word, _, step in rows} == dict(NEXT_STEPS[kind])


def test_the_documents_have_what_to_change_where_a_model_does_not_act():
    text = (ROOT / "docs" / "understand" / "verdicts.md").read_text()
    part = text.partition("### What to change where it does not\n")[2].partition("\n## ")[0]
    steps = [line.strip("|").split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")][1:]
    assert steps == list(REMEDIES.values())


def test_the_settings_for_a_faint_reading_are_those_of_a_configuration_and_of_the_documents():
    words = [word for key, value in FAINT_SETTINGS.items() for word in (f"--{key}", str(value))]
    config = parse_config(words)
    assert (config.lora.layers, config.targets.first, config.targets.rounds, config.train.gold) == ("all", "labels", 4, 1.0)
    assert "--recipe auto" in FAINT_STEP and parse_config([*words, "--recipe", "auto"]).targets == config.targets
    page = " ".join((ROOT / "docs" / "understand" / "rounds.md").read_text().split())
    assert all(f"`{key}` {value}" in page for key, value in FAINT_SETTINGS.items())
    assert "--recipe auto" in (ROOT / "docs" / "understand" / "verdicts.md").read_text()


def summary(state: str, *words: str, adapted: bool = True, auroc: float = 0.95) -> dict:
    return {
        "reading": {"auroc": {"value": auroc}},
        "state": state,
        "adapted": {} if not adapted else {"balanced": 1},
        "verdicts": {str(n): {"word": w} for n, w in enumerate(words)},
    }


def test_doubt_comes_before_success():
    """Of a closed gap whose reading is not shown, the next step is about the reading; of one that failed, about the failure first."""
    trained, verdict = NEXT_STEPS["trained"], NEXT_STEPS["verdict"]
    assert next_steps(summary("closed", "real", "real")) == [trained["closed"]]
    assert next_steps(summary("closed", "too few clips", "too few clips")) == [verdict["too few clips"]]
    assert next_steps(summary("closed", "real", "explained by text")) == [trained["closed"], verdict["explained by text"]]
    assert next_steps(summary("collapsed", "not readable")) == [trained["collapsed"], verdict["not readable"]]
    assert next_steps(summary("open", "real", adapted=False)) == [NEXT_STEPS["measured"]["open"]]
    assert next_steps(summary("open", "real", adapted=False, auroc=FAINT - 0.01)) == [FAINT_STEP]
    assert next_steps(summary("open", "too few clips", adapted=False, auroc=FAINT - 0.01)) == [FAINT_STEP, verdict["too few clips"]]
    assert next_steps(summary("no gap", "not readable", adapted=False, auroc=FAINT - 0.01)) == [FAINT_STEP, verdict["not readable"]]
    by_text = summary("no gap", "explained by text", adapted=False, auroc=FAINT - 0.01)
    assert next_steps(by_text) == [verdict["explained by text"]]
    after_labels = summary("learned", "explained by text") | {"training": {"first": "labels"}}
    assert next_steps(after_labels) == [trained["learned"], verdict["explained by text"]]
    assert next_steps(summary("open", "real", auroc=FAINT - 0.01)) == [trained["open"]]
    assert next_steps(summary("not judgeable", "not judgeable", adapted=False)) == [NEXT_STEPS["measured"]["not judgeable"]]


def test_the_step_after_not_judgeable_follows_from_the_faults():
    """Of each modality on the page, of all together where no modality is judgeable; older records without faults keep the general step."""
    mass, skill = "the options hold 3 % (gap.least_option_mass)", "30 % are right (gap.least_standard_skill)"
    acting = {"all": {"faults": [mass, skill]}, "0": {"faults": [mass]}, "1": {"faults": [skill]}}
    both = summary("not judgeable", "not judgeable", "not judgeable", adapted=False) | {"acting": acting}
    assert next_steps(both) == [f"{REMEDIES[OPTION_MASS]} {REMEDIES[SKILL]} Then measure again."]
    assert next_steps(both | {"verdicts": {}}) == next_steps(both)
    assert verdict_step(both, "0") == f"{REMEDIES[OPTION_MASS]} Then measure again."
    one = summary("no gap", "not judgeable", "real", adapted=False) | {"acting": acting | {"1": {"faults": []}}}
    assert next_steps(one) == [NEXT_STEPS["measured"]["no gap"], verdict_step(one, "0")]
    assert verdict_step(one, "1") == NEXT_STEPS["verdict"]["real"]
    assert verdict_step(both | {"acting": None}, "0") == NEXT_STEPS["verdict"]["not judgeable"]
    assert verdict_step(summary("open", "new word"), "0") is None


@pytest.mark.parametrize("state", NEXT_STEPS["trained"])
def test_page_and_terminal_say_state_and_step(tiny_run, tmp_path, capsys, state):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("checkpoints", "adapter", "observations", "change.json"))
    lines = (run / "gap.jsonl").read_text().splitlines()
    lines[-1] = re.sub(r'"state": "[^"]*"', f'"state": "{state}"', lines[-1])
    (run / "gap.jsonl").write_text("\n".join(lines) + "\n")
    measured = read_json(run / "measurement.json")
    for of in measured["verdicts"].values():
        of["word"] = "real"
    write_json(run / "measurement.json", measured)
    print_report(run, Console(width=200))
    step = NEXT_STEPS["trained"][state]
    assert f"next: {step}" in capsys.readouterr().out
    page = build_page(run)
    head = unescape(re.sub("<[^>]+>", "", page[page.index("<h1") : page.index('<p class="headline"')]))
    assert state in head and step.replace("`", "") in head and STATES[state].capitalize() in head
