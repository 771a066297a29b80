"""`gapclose measure` examines what it measured: measurement.json through the real command on the tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_schemas import misfits
from sketches import drawn

from gapclose.data.answer_matching import parse_lenient
from gapclose.data.config import PromptsConfig
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.evaluation.config import is_built_in
from gapclose.evaluation.controls import layer_analysis as inside
from gapclose.evaluation.controls.random_weights import KINDS
from gapclose.evaluation.measurement_file import data_root
from gapclose.evaluation.measurement_parts import confusion, curve
from gapclose.metrics.labels import Action, Labels
from gapclose.observe.store import read_observations
from gapclose.pipeline.cli import main
from gapclose.probes.linear import FrozenProbe

KEYS = (
    "version", "thorough", "seed", "n_clips", "n_items", "split", "concepts", "alarm", "modalities", "probe", "cells", "roc", "confusion",
    "calibration", "verdicts", "acting", "written", "controls", "codelength", "layers", "nested", "interchange", "baselines", "minimum_detectable", "known_but_unsaid",
    "data_root", "protocol",
)  # fmt: skip
VERDICT = {"word", "sentence", "control", "difference", "p", "p_holm", "mcnemar", "random_weights"}
SCOPES = {"all", "audio", "vision"}
NAMES = [
    "majority", "text_only", "options", "action_confidence", "embedding", "residualised", "blank_image_frozen", "blank_image_refit",
    "blank_audio_frozen", "blank_audio_refit", "blank_all_frozen", "blank_all_refit", "shuffled_labels", "random_label",
    "random_label_items",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_config, tmp_path_factory):
    """The directory of one `gapclose measure` on the tiny model; not to be changed."""
    directory = tmp_path_factory.mktemp("measured") / "run"
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def whole(measured) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is no strict JSON")

    return json.loads((measured / "measurement.json").read_text(), parse_constant=refuse)


def is_interval(value) -> bool:
    return set(value) == {"value", "lower", "upper"}


def test_everything_is_there_in_its_form(measured, whole, digits):
    """Keys, counts and intervals as a report expects them."""
    assert misfits(measured) == {}
    assert tuple(whole) == KEYS and (whole["version"], whole["split"], whole["n_clips"], whole["n_items"]) == (1, "test", 24, 96)
    assert (
        whole["concepts"] == list(digits.concepts) and whole["alarm"] == list(digits.alarm) and whole["modalities"] == ["audio", "vision"]
    )
    assert whole["probe"]["n_layers"] == 5 and whole["data_root"] == str(digits.root)
    cells = [(c["modality"], c["concept"], c["n_items"], c["n_clips"]) for c in whole["cells"]]
    assert cells == [(m, c, 24, 24) for m in ("audio", "vision") for c in ("standard", f"false_{m}")]
    assert all(is_interval(c[k]) for c in whole["cells"] for k in ("action", "option", "reading"))
    assert set(whole["roc"]) == SCOPES == set(whole["minimum_detectable"])
    for sides in whole["roc"].values():
        for side in ("reading", "action"):
            rates = sides[side]["false_alarm"], sides[side]["hit"]
            assert len(rates[0]) == len(rates[1]) <= 200 and all(r[0] == 0 and r[-1] == 1 and r == sorted(r) for r in rates)
            assert is_interval(sides[side]["auroc"]) and set(sides[side]["point"]) == {"false_alarm", "hit"}
    assert np.sum(whole["confusion"]["action"]) == np.sum(whole["confusion"]["reading"]) == 96
    calibration = whole["calibration"]
    assert sum(b["n"] for b in calibration["bins"]) == 96
    distances = [b["n"] / 96 * abs(b["accuracy"] - b["confidence"]) for b in calibration["bins"]]
    assert sum(distances) == pytest.approx(calibration["ece"])
    told = next(c for c in whole["controls"] if c["name"] == "random_label_items")["selectivity"]
    assert 0 < told["p"] <= 1 and -1 <= told["value"] <= 1
    assert set(whole["verdicts"]) == {"audio", "vision"} and all(set(v) == VERDICT for v in whole["verdicts"].values())


def test_answers_of_modalities_that_are_not_judgeable_are_there(measured, whole, digits):
    """Both of the random model: generated answers of test items, as they are stored."""
    items = {i.id: i for i in digits.select(split="test", purpose="gap")}
    answers = dict(zip(items, read_observations(measured / "observations" / "base-test", list(items), layers=[]).answers, strict=True))
    assert set(whole["written"]) == {"audio", "vision"}
    for modality, of in whole["written"].items():
        assert whole["acting"][modality]["faults"] and of["n"] == 48 and 0 < of["cut_off"] <= 48 and len(of["examples"]) == 5
        for answer in of["examples"]:
            assert items[answer["id"]].modality == modality and answer["text"].removesuffix("…") == answers[answer["id"]][:80]
            assert answer["premise"] == ("true" if items[answer["id"]].concept == "standard" else "false")


def test_every_control_stands_beside_the_reading(whole):
    """In reading order, with intervals in every scope, and a word on chance where it should be at chance."""
    assert [c["name"] for c in whole["controls"]] == NAMES
    assert all(is_built_in(name) for name in (*NAMES, *KINDS, "text_encoder")) and not is_built_in("mine")
    for control in whole["controls"]:
        judged_on_fit = {"random_label_items": "out-of-fold reading of fit"}
        guards = judged_on_fit.get(control["name"]) or ("gap" if control["name"] == "action_confidence" else "reading")
        assert control["guards"] == guards and control["question"].endswith("?") and control["label"]
        for key in ("balanced", "auroc", "difference"):
            assert set(control[key]) == SCOPES and all(is_interval(i) for i in control[key].values())
        assert (control["chance"] is None) == (control["at_chance"] is None)
    by_name = {c["name"]: c for c in whole["controls"]}
    assert {n for n, c in by_name.items() if c["chance"] is None} == {
        "action_confidence", "residualised", "blank_image_frozen", "blank_image_refit", "blank_audio_frozen", "blank_audio_refit",
        "blank_all_frozen", "random_label_items",
    }  # fmt: skip
    for name in ("majority", "embedding"):  # neither sees anything that differs
        assert by_name[name]["balanced"]["all"]["value"] == 0.5 and all(by_name[name]["at_chance"].values())
    told = [chance for c in whole["controls"] if c["at_chance"] for chance in c["chance"].values()]
    assert set(told) == {0.5}


def test_the_figures_are_those_of_the_record(whole, measured):
    """Reading, action and text-only control agree with gap.jsonl, and the last lens with the action."""
    record = json.loads((measured / "gap.jsonl").read_text())
    by_name = {c["name"]: c for c in whole["controls"]}
    assert record["controls"]["text_only"] == by_name["text_only"]["balanced"]
    assert record["controls"]["majority"] == by_name["majority"]["balanced"]
    assert record["controls"]["reading_minus_text"] == by_name["text_only"]["difference"]
    for side in ("reading", "action"):
        assert whole["roc"]["all"][side]["auroc"] == record[side]["auroc"]
        assert np.mean([c[side]["value"] for c in whole["cells"]]) == pytest.approx(record[side]["balanced"]["value"])
    assert [row["layer"] for row in whole["layers"]] == [0, 1, 2, 3, 4, 5]
    assert whole["layers"][-1]["lens"]["balanced"]["value"] == pytest.approx(record["action"]["balanced"]["value"])
    assert whole["layers"][-1]["lens"]["auroc"]["value"] == pytest.approx(record["action"]["auroc"]["value"], abs=1e-3)
    at_probe = whole["layers"][whole["probe"]["layer"]]["reading"]
    assert at_probe["balanced"] == record["reading"]["balanced"]
    assert whole["interchange"]["layer"] == whole["probe"]["layer"] and whole["interchange"]["n_pairs"] == 48


def test_the_papers_figures_stand_beside_ours(whole, measured, digits):
    """From stored residuals and generated answers; what is ours there agrees with the record and the controls."""
    found, record = whole["protocol"], json.loads((measured / "gap.jsonl").read_text())
    rows = {(f["name"], r["scope"]): r for f in found["figures"] for r in f["rows"]}
    assert (found["n_items"], found["n_clips"], found["skipped"], len(found["layers"])) == (96, 24, None, 5)
    assert not [key for key, row in rows.items() if row["skipped"]] and all(is_interval(row["paper"]) for row in rows.values())
    best = max(found["layers"], key=lambda row: row["accuracy"]["value"])
    assert best["layer"] == found["peak_layer"] and best["accuracy"] == rows["global", "all"]["paper"]
    assert rows["global", "all"]["ours"] == record["reading"]["balanced"]
    assert rows["balanced", "all"]["ours"] == record["action"]["balanced"]
    items = list(digits.select(split="test", purpose="gap"))
    answers = read_observations(measured / "observations" / "base-test", [i.id for i in items], layers=[]).answers
    for modality in ("audio", "vision"):
        assert rows["probe", modality]["majority"] == pytest.approx(2 / 3)
        assert rows["gap", modality]["ours"] == record["modality"][modality]["gap"]["balanced"]
        for figure, control in (("text", "text_only"), ("residualised", "residualised")):
            assert rows[figure, modality]["ours"] == next(c for c in whole["controls"] if c["name"] == control)["balanced"][modality]
        mine = [(i, a) for i, a in zip(items, answers, strict=True) if i.modality == modality and i.concept == "standard"]
        right = np.mean([parse_lenient(a, i) == i.gold for i, a in mine])
        assert rows["standard", modality]["paper"]["value"] == pytest.approx(right)
    assert f"{rows['probe', 'audio']['paper']['value']:.3f}" in (measured / "report.html").read_text()


def judge(answer: str, item: Item) -> str | None:
    """What the test below matches answers by that name no option."""
    return item.options[1].text if "there is no" in answer.lower() else None


def test_the_papers_figures_take_answers_as_the_run_matches_them(monkeypatch):
    """By the function of the user's, and under a binary prompt by what the answer says first."""
    options = [Option(text=t, concept=c) for t, c in (("yes", "standard"), ("no", "false"))]
    items = [Item(id=str(n), clip="c", split="test", modality="v", messages=[], options=options) for n in range(4)]
    test = ItemSet(root=Path(), name="four", concepts=("standard", "false"), alarm=("false",), items=tuple(items))
    monkeypatch.setattr(inside, "_observe_layers", lambda of, part: [0, 1])
    monkeypatch.setattr(inside, "set_beside", lambda *rest, said, **more: said.tolist())

    def said(asked: str, match: str | None) -> list[int]:
        config = SimpleNamespace(prompts=PromptsConfig(asked=asked, match=match), controls=SimpleNamespace(text_encoder=None))
        seen = SimpleNamespace(answers=["yes", "No man there says yes to her.", "There is no dog.", "?"])
        return inside.protocol(SimpleNamespace(config=config, judged=test, seen=seen, judge=None, action=None), [])

    assert said("own", None) == [0, -1, -1, -1]
    assert said("binary", f"{__name__}:judge") == [0, 1, 1, -1]


def test_baselines_stand_beside_the_same_base_model(whole, measured):
    """Whatever they change, they start from the action that was measured, on the same clips."""
    record = json.loads((measured / "gap.jsonl").read_text().splitlines()[0])["action"]
    found = whole["baselines"]
    assert {k: v for k, v in found["base"].items() if k != "choice"} == {k: v for k, v in record.items() if k != "option_mass"}
    assert (found["chosen_on"], found["n_choice"]) == ("val", 96) and {len(m["points"]) for m in found["methods"]} == {4}


def test_what_is_known_and_unsaid_is_shown_surest_first(whole, digits):
    """With media that exist under the data root, and distributions that sum to one."""
    shown, by_id = whole["known_but_unsaid"], {i.id: i for i in digits}
    assert 0 < len(shown) <= 20
    sure = []
    for row in shown:
        item = by_id[row["id"]]
        assert row["text"] == item.text and row["right"] == item.options[item.gold].text and row["said"] in row["options"]
        assert row["said"] != row["right"] and all((digits.root / path).is_file() for _, path in row["media"])
        assert sum(row["reading"].values()) == pytest.approx(1) and sum(row["action"].values()) == pytest.approx(1)
        assert max(row["reading"], key=row["reading"].get) == item.concept
        sure.append(row["reading"][item.concept])
    assert sure == sorted(sure, reverse=True)


def test_a_second_start_runs_no_forward_and_writes_the_same(measured, tiny_config, monkeypatch, tmp_path, whole):
    """All observations are stored; the same seeds give the same numbers."""
    directory = tmp_path / "again"
    shutil.copytree(measured, directory)
    (directory / "measurement.json").unlink()
    monkeypatch.setattr("gapclose.observe.extract._forward", lambda *rest: pytest.fail("a forward was run again"))
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(directory)]) == 0
    assert json.loads((directory / "measurement.json").read_text()) == whole


def test_observations_of_controls_differ_as_they_should(measured, digits):
    """Each kind blanked alone changes residuals; a patch leaves the scores of another item."""
    stages = {p.name for p in (measured / "observations").iterdir()}
    blanks = {f"blank-{kinds}-{part}" for kinds in ("image", "audio", "image-audio") for part in ("fit", "test")}
    assert stages == {"base-fit", "base-test", "base-val", "layers-fit", "layers-test", "interchange-test", *blanks}
    ids = [i.id for i in digits.select(split="test", purpose="gap")]
    stored = measured / "observations"
    scores = {s: read_observations(stored / s, ids, layers=[]).scores[:, :4] for s in stages if s.endswith("-test")}
    names = sorted(n for n in scores if n != "layers-test")
    for a in names:
        for b in names:
            assert a == b or (scores[a] - scores[b]).abs().max() > 1e-5, (a, b)
    assert (scores["layers-test"] - scores["base-test"]).abs().max() < 1e-5


OFF = [f"--controls.{key}=false" for key in ("labels", "residualise", "codelength", "blank", "layers", "interchange")]
OFF += ["--controls.protocol=null"]


def test_switches_leave_parts_out(measured, tiny_config, tmp_path):
    """What is off is not computed and not observed; the rest stays as it was."""
    directory = tmp_path / "less"
    shutil.copytree(
        measured, directory, ignore=shutil.ignore_patterns("blank-*", "layers-*", "interchange-*", "base-val", "measurement.json")
    )
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(directory), *OFF, "--controls.baselines=false"]) == 0
    less = json.loads((directory / "measurement.json").read_text())
    assert [c["name"] for c in less["controls"]] == NAMES[:4]
    assert less["codelength"] is less["interchange"] is less["protocol"] is less["baselines"] is None and less["layers"] == []
    assert {p.name for p in (directory / "observations").iterdir()} == {"base-fit", "base-test"}


@pytest.mark.slow
def test_methods_without_training_choose_on_fit_where_val_has_no_labels(digits, tiny_config, tmp_path):
    """Nor is val observed then."""
    from gapclose.data.jsonl import write_items

    kept = tuple(replace(i, gold=None) if i.split == "val" else i for i in digits if i.purpose == "gap")
    shutil.copytree(digits.root / "media", tmp_path / "set" / "media")
    write_items(replace(digits, items=kept), tmp_path / "set")
    arguments = ["--config", str(tiny_config), "--data.path", str(tmp_path / "set"), "--run_dir", str(tmp_path / "run")]
    assert main(["measure", *arguments, *OFF, "--controls.nested=false"]) == 0
    found = json.loads((tmp_path / "run" / "measurement.json").read_text())["baselines"]
    assert (found["chosen_on"], found["n_choice"]) == ("fit", 96)
    assert {p.name for p in (tmp_path / "run" / "observations").iterdir()} == {"base-fit", "base-test"}


@pytest.mark.slow
def test_a_stacked_probe_is_examined_by_all_that_it_reads(measured, tiny_config, digits, tmp_path, capsys, monkeypatch):
    """The reading is of both layers side by side, the patch replaces both, and every report names both."""
    # of a random model both layers tell the modality better than one, and nothing else: let that count
    monkeypatch.setattr("gapclose.probes.search.possible_concepts", lambda y, modality, concepts: np.ones((len(y), concepts), dtype=bool))
    directory, fresh = tmp_path / "stacked", ("base-*", "blank-*", "interchange-*", "measurement.json", "gap.jsonl", "config.yaml")
    shutil.copytree(measured, directory, ignore=shutil.ignore_patterns(*fresh))
    off = ["--controls.protocol", "null"]
    off += [w for key in ("labels", "residualise", "codelength", "baselines") for w in (f"--controls.{key}", "false")]
    stack = ["--probe.layers", "[2, 3]", "--probe.stack", "2"]
    with drawn():
        assert main(["measure", "--config", str(tiny_config), "--run_dir", str(directory), *off, *stack]) == 0
    found = json.loads((directory / "measurement.json").read_text())
    assert found["probe"]["layers"] == found["interchange"]["layers"] == [2, 3] and found["probe"]["layer"] == 3
    assert [layers[-1] for layers in found["nested"]["stacks"]] == found["nested"]["layers"]
    patched = json.loads((directory / "observations" / "interchange-test" / "request.json").read_text())["patch"]
    assert patched[::2] == [2, 3] and patched[1] != patched[3]
    probe, ids = FrozenProbe.load(directory / "probes" / "frozen"), [i.id for i in digits.select(split="test", purpose="gap")]
    seen = read_observations(directory / "observations" / "base-test", ids, layers=[2, 3]).residuals
    read = np.bincount(probe.predict_proba(torch.cat([seen[2], seen[3]], dim=1)).argmax(1), minlength=3)
    assert np.array(found["confusion"]["reading"])[:, :3].sum(0).tolist() == read.tolist()
    page, told = (directory / "report.html").read_text(), capsys.readouterr().out
    assert "probe: layers 2, 3 of 5" in told and "from layers 2, 3 (" in told and "the probe's layers (2, 3)" in unescape(page)
    for words in ("concept at layers 2, 3 with", "sits at layers 2, 3 of 5", "Layers 2, 3, 48 pairs", "residuals after layers 2, 3 taken"):
        assert words in page, words


def test_closing_writes_a_short_one_and_keeps_a_full_one(tiny_run, measured, tiny_config, tmp_path, monkeypatch):
    """`gapclose close` adds no forward for controls, repeats none of `gapclose measure`, and does not replace what that found out."""
    short = json.loads((tiny_run / "measurement.json").read_text())
    assert tuple(short) == KEYS and [c["name"] for c in short["controls"]] == NAMES[:3] and short["layers"] == []
    assert not short["thorough"]
    assert not [p for p in (tiny_run / "observations").iterdir() if p.name.startswith(("blank", "layers", "interchange"))]
    from gapclose.pipeline.config import parse_config
    from gapclose.pipeline.context import RunContext

    directory = tmp_path / "both"
    shutil.copytree(measured, directory)
    before = (directory / "measurement.json").read_bytes()
    run = RunContext(parse_config(["--config", str(tiny_config), "--run_dir", str(directory)]), closing=False)
    run.fit_probes()
    monkeypatch.setattr("gapclose.observe.extract._forward", lambda *rest: pytest.fail("a forward was run again"))
    run.measure_base(["val", "test"])
    run.examine(thorough=False)
    assert (directory / "measurement.json").read_bytes() == before


def test_sets_without_twins_say_so(digits, tiny_config, encoder, tmp_path, capsys):
    """No interchange, and a line that tells what is missing; one modality, no alarms and a sentence encoder are measured as well."""
    from gapclose.data.jsonl import write_items

    def plain(item: Item) -> Item:
        options = [Option(text=o.text, concept="go" if o.concept == "standard" else "stop") for o in item.options]
        return Item(
            id=item.id, clip=item.clip, split=item.split, modality="premise", messages=item.messages, options=options, gold=item.gold
        )

    kept = [plain(i) for i in digits if i.purpose == "gap" and i.split in ("fit", "test")]
    items = ItemSet(root=tmp_path / "set", name="plain", concepts=("go", "stop"), alarm=(), items=tuple(kept))
    shutil.copytree(digits.root / "media", tmp_path / "set" / "media")
    write_items(items, tmp_path / "set")
    arguments = ["--config", str(tiny_config), "--data.path", str(tmp_path / "set"), "--run_dir", str(tmp_path / "run")]
    assert main(["measure", *arguments, "--controls.blank", "false", "--controls.text_encoder", encoder]) == 0
    said = capsys.readouterr().out
    assert "no interchange: no test item has a twin" in said and "no inference-time baselines: the item set has no alarm concepts" in said
    found = json.loads((tmp_path / "run" / "measurement.json").read_text())
    assert [c["name"] for c in found["controls"]][:3] == ["majority", "text_only", "text_encoder"]
    assert found["protocol"]["figures"] == [] and found["protocol"]["skipped"].startswith("no item has an alarm")
    assert found["interchange"] is None and found["baselines"] is None and found["roc"] == {} and set(found["verdicts"]) == {"premise"}
    assert all(set(c["balanced"]) == {"all", "premise"} for c in found["controls"])


def test_curves_are_thinned_and_end_where_they_should():
    """Ties are one step; infinite scores too."""
    score = np.array([np.inf, np.inf, 1.0, 0.0, -np.inf, -np.inf])
    false_alarm, hit = curve(score, np.array([True, False, True, False, False, True]))
    np.testing.assert_allclose(hit, [0, 1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(false_alarm, [0, 1 / 3, 1 / 3, 2 / 3, 1])
    rng = np.random.default_rng(0)
    false_alarm, hit = curve(rng.normal(size=5000), rng.random(5000) < 0.5)
    assert len(hit) == 200 and (false_alarm[-1], hit[-1]) == (1, 1)


def test_no_concept_has_a_column_of_its_own():
    """The last one."""
    labels = Labels(
        clip=np.arange(3), modality=np.array(["a"] * 3), concept=np.array([0, 1, 1]), gold=np.array([0, 1, 1]),
        option_concept=np.tile([0, 1], (3, 1)), concepts=("x", "y"), alarm=(),
    )  # fmt: skip
    action = Action(chosen=np.array([1, -1, 1]), scores=np.zeros((3, 2)))
    found = confusion(labels, action, np.eye(2)[[0, 0, 1]])
    assert found.action == [[0, 1, 0], [0, 1, 1]] and found.reading == [[1, 0, 0], [1, 1, 0]] and found.said == ["x", "y", "none"]


def test_media_are_found_from_the_run_or_from_anywhere(tmp_path):
    """A set that the run made itself is named relative to it."""
    assert data_root(tmp_path / "run" / "data-seed0", tmp_path / "run") == "data-seed0"
    assert data_root(tmp_path / "elsewhere", tmp_path / "run") == str(tmp_path / "elsewhere")
