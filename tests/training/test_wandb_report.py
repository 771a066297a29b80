"""The report of Weights & Biases, as the specification that would be sent, and the sweep file as the agent reads it."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.training.trackers.figures import EPOCH_FIGURES, TEST_FIGURES
from gapclose.training.trackers.wandb_report import CHECKS, COLUMNS, EPOCHS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error."""

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def specification(path: Path, *more: str) -> dict:
    """What ``--out`` writes about the project `mine`."""
    pytest.importorskip("wandb_workspaces", reason="reports are made by wandb-workspaces (the extra `wandb-report`)")
    assert main(["wandb-report", "--project", "mine", "--out", str(path), *more]) == 0
    return json.loads(path.read_text())


def test_the_report_draws_the_headline_figures_over_epochs(tmp_path, no_network, capsys):
    """One line chart each, test as bars, the table of runs with state and figures, and the logged table of verdicts and controls."""
    found = specification(tmp_path / "made" / "report.json")
    assert "nothing was sent" in capsys.readouterr().out
    assert (found["project"], found["title"]) == ("mine", "gapclose: mine") and "entity" not in found
    grids = [block["metadata"] for block in found["spec"]["blocks"] if block["type"] == "panel-grid"]
    panels = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
    lines = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    assert [line["metrics"] for line in lines] == [[name] for name in EPOCHS] and {line["xAxis"] for line in lines} == {"epoch"}
    bars = [metric for p in panels if p["viewType"] == "Bar Chart" for metric in p["config"]["metrics"]]
    assert "test/base/gap/balanced" in bars and "test/adapted/action/balanced" in bars
    feeds = [grid["runSets"][0]["runFeed"] for grid in grids]
    assert feeds[1]["columnOrder"] == [*COLUMNS] and {"summary:state", "summary:best/closure"} <= set(COLUMNS)
    assert f'"{CHECKS}"' in json.dumps([p["config"] for p in panels if p["viewType"] == "Weave"])
    assert all(grid["runSets"][0]["filters"]["filters"] == grid["runSets"][0]["grouping"] == [] for grid in grids)


def test_the_report_takes_some_runs_and_groups_their_seeds(tmp_path, no_network):
    given = ["digits-0", 'it\'s "1"']
    found = specification(tmp_path / "report.json", "--runs", *given, "--by_group", "--title", "Two seeds")
    sets = [of for block in found["spec"]["blocks"] if block["type"] == "panel-grid" for of in block["metadata"]["runSets"]]
    assert found["title"] == "Two seeds" and len(sets) == 3
    for of in sets:
        (chosen,) = of["filters"]["filters"]
        assert (chosen["key"]["name"], chosen["op"], chosen["value"]) == ("displayName", "IN", given)
        assert of["grouping"] == [{"section": "run", "name": "group"}]


def test_its_names_are_those_of_the_tracker():
    assert set(EPOCHS) <= set(EPOCH_FIGURES)
    summary = {column.removeprefix("summary:") for column in COLUMNS if column.startswith("summary:best/")}
    assert summary == {"best/epoch", *(f"best/{name}" for name in EPOCHS)}
    assert {f"summary:test/adapted/{name}" for name in TEST_FIGURES} <= set(COLUMNS)


def test_what_cannot_be_saved_says_what_can(tmp_path, monkeypatch, capsys):
    """Offline, without the package, and into a place that is a file."""
    assert main(["wandb-report", "--project", "mine"]) == 2  # the tests' WANDB_MODE
    assert "WANDB_MODE is offline" in (said := capsys.readouterr().err) and "--out FILE" in said
    assert main(["wandb-report", "--project", ""]) == 2
    assert "--project has 0 characters" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["wandb-report", "--project", "mine", "--out", str(tmp_path / "file" / "x")]) == 2
    assert 'pip install "gapclose[wandb-report]"' in capsys.readouterr().err
    monkeypatch.undo()


def test_saved_it_is_sent_to_the_projects_owner(monkeypatch, capsys):
    """By a stand-in of the service: the project is looked up, the report is sent once, and its address is printed."""
    interface = pytest.importorskip("wandb_workspaces.reports.v2.interface", reason="the extra `wandb-report`")
    sent, api = [], SimpleNamespace(projects=lambda owner: [SimpleNamespace(name="mine")], default_entity="me")

    def answer(api, query, variables):
        if "projectName" in variables and "spec" not in variables:
            return {"project": {"internalId": "7"} if variables["projectName"] == "mine" else None}
        sent.append(variables)
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": "Vm", "name": "n", "displayName": variables["displayName"], "description": "", "project": project}
        return {"upsertView": {"view": view | {"spec": variables["spec"], "createdAt": None, "updatedAt": None}}}

    monkeypatch.setattr(interface, "execute_graphql", answer)
    monkeypatch.setattr(interface, "_get_api", lambda: api)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    monkeypatch.setattr("gapclose.training.trackers.wandb_report.mode", lambda: "online")
    monkeypatch.setattr("gapclose.training.trackers.wandb_report.why_unreached", lambda: None)
    assert main(["wandb-report", "--project", "mine", "--entity", "us"]) == 0
    assert "report: https://wandb.example/us/mine/reports/" in capsys.readouterr().out
    (one,) = sent
    grids = [block for block in json.loads(one["spec"])["blocks"] if block["type"] == "panel-grid"]
    assert {grid["metadata"]["runSets"][0]["project"]["entityName"] for grid in grids} == {"us"} and one["entityName"] == "us"
    assert main(["wandb-report", "--project", "other", "--entity", "us"]) == 2 and len(sent) == 1
    assert "the report of other was not saved" in (said := capsys.readouterr().err) and "'us/other' not found" in said


def test_the_sweep_file_gives_arguments_that_the_command_line_reads(tmp_path, monkeypatch):
    """As the agent does: `${args}` becomes --KEY=VALUE for every parameter, and the shell names the directory after the run."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils", reason="the agent of Weights & Biases builds the arguments")
    sweep = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
    assert sweep["metric"]["name"].removeprefix("best/") in EPOCH_FIGURES and sweep["metric"]["goal"] == "maximize"
    chosen = {"train.learning_rate": 5e-05, "lora.r": 8, "train.epochs": 2}
    assert set(chosen) == set(sweep["parameters"])
    given = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})["args"]
    assert given == ["--train.learning_rate=5e-05", "--lora.r=8", "--train.epochs=2"]
    command = [word for part in sweep["command"] for word in (given if part == "${args}" else [part])]
    program = tmp_path / "gapclose"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "WANDB_RUN_ID": "abc"}
    words = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert words[0] == "close"
    monkeypatch.chdir(ROOT)
    config = parse_config(words[1:])
    assert (config.train.learning_rate, config.lora.r, config.train.epochs) == (5e-05, 8, 2)
    assert (config.run_dir, config.tracking) == ("runs/sweep/abc", "wandb")
