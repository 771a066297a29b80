"""A reader, a control, an objective and a probe family from outside the package, by name and as ``package.module:function``."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from documented_commands import command_lines, words

from gapclose import FrozenProbe, register_control, register_objective, register_probe_family, register_reader
from gapclose.core.registry import Registry
from gapclose.data.jsonl import read_items
from gapclose.evaluation.config import CONTROLS, ControlsConfig
from gapclose.evaluation.controls.run_controls import extra_control
from gapclose.evaluation.controls.scoring import Control
from gapclose.pipeline.cli import main

pytestmark = pytest.mark.usefixtures("registries")

PAGE = "docs/how-to/extending.md"
TEXT = (Path(__file__).parents[2] / PAGE).read_text()
SEEN: list[set[str]] = []
"""the public attributes of every suite that :func:`coin` met"""


def read_under_another_name(directory, problems):
    """A reader: the project's own format in files of another name."""
    inner = directory / "inner"
    if not inner.is_dir():
        problems.add(f"{directory}: no directory `inner`")
        problems.raise_if_any()
    return read_items(inner, problems)


def coin(suite):
    """A control: a fixed reading for all items."""
    SEEN.append({name for name in vars(suite) if not name.startswith("_")})
    return Control(name="coin", label="a coin", question="does a coin do as well?", readings=[np.full((len(suite.judged), 3), 1 / 3)])


def stranger(suite):
    """A control that names one concept for all items, which one of the two modalities does not have."""
    last = np.tile(np.eye(len(suite.labels.concepts))[-1], (len(suite.judged), 1))
    return Control(name="stranger", label="a stranger", question="is it audio?", readings=[last], at_chance=True)


def unlike_its_name(suite):
    """A control that has the name of one of the package's."""
    return dataclasses.replace(coin(suite), name="random_decoder")


def likeliest(targets, items):
    """An objective: the whole weight on the best option of the target by Jeffrey's rule."""
    return np.eye(targets.target.shape[1])[targets.target.argmax(1)]


def nearest_mean(z, y, strength):
    """A probe family: nearest class mean, scaled by the strength."""
    means = np.stack([z[y == c].mean(0) for c in range(y.max() + 1)])
    return strength * means, -0.5 * strength * (means**2).sum(1)


def test_one_of_each_takes_part_in_a_run(digits_directory, tiny_config, tmp_path, capsys):
    """By their names where they were registered, by module and function where not; closing says that it runs no such control."""
    register_reader("renamed", read_under_another_name)
    register_probe_family("nearest_mean", nearest_mean)
    data = tmp_path / "data"
    data.mkdir()
    (data / "inner").symlink_to(digits_directory)
    own = [
        "--data.path",
        str(data),
        "--data.format",
        "renamed",
        "--objective",
        "test_extending:likeliest",
        "--controls.extra",
        "[test_extending:coin]",
    ]
    run = ["--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), "--train.epochs", "1", "--export.verify", "false"]
    assert main(["close", *run, *own, "--probe.families", "[nearest_mean]", "--probe.strengths", "[0.5]"]) == 0
    assert "controls.extra ['test_extending:coin']: not run by `gapclose close`" in capsys.readouterr().out
    assert FrozenProbe.load(tmp_path / "run" / "probes" / "frozen").family == "nearest_mean"
    assert "targets of test_extending:likeliest" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    off = [f"--controls.{name}=false" for name in ("layers", "blank", "nested", "codelength", "labels", "interchange", "baselines")]
    assert main(["measure", *run[:2], "--run_dir", str(tmp_path / "run"), *own[:4], *own[4:], "--probe.families", "[nearest_mean]",
                 "--probe.strengths", "[0.5]", "--train.epochs", "1", "--export.verify", "false", *off]) == 0  # fmt: skip
    controls = json.loads((tmp_path / "run" / "measurement.json").read_text())["controls"]
    assert [c["label"] for c in controls if c["name"] == "coin"] == ["a coin"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (("--data.format", "nowhere"), "data.format 'nowhere' is no reader"),
        (("--objective", "consistancy"), "objective is 'consistancy'; choose one of"),
        (("--controls.extra", "[nothing]"), "controls.extra 'nothing' is no control"),
        (("--probe.families", "[forest]"), "probe.families is ['forest']; choose some of"),
        (("--objective", "nowhere_at_all:f"), "objective 'nowhere_at_all:f' cannot be imported"),
        (("--probe.families", "[nowhere_at_all:f]"), "probe.families 'nowhere_at_all:f' cannot be imported"),
        (("--controls.extra", "[nowhere_at_all:f]"), "controls.extra 'nowhere_at_all:f' cannot be imported"),
    ],
)
def test_what_is_not_there_is_refused_by_validate(tiny_config, tmp_path, capsys, setting, says):
    assert main(["validate", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), *setting]) == 2
    assert says in capsys.readouterr().err


EVEN = [np.full((4, 2), 0.5)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"readings": [np.ones((4, 1))]}, "shape"),
        ({"readings": [np.ones((4, 2))]}, "sum to one"),
        ({"readings": [np.tile([1.5, -0.5], (4, 1))]}, "must be probabilities"),
        ({"readings": [np.full((4, 2), np.nan)]}, "must be probabilities"),
        ({"readings": []}, "has no readings"),
        ({"name": "text_only"}, "named 'text_only'"),
        ({"name": "shuffled_labels"}, "named 'shuffled_labels'"),
        ({"name": "random_decoder"}, "named 'random_decoder'"),
        ({"name": "blank_video_refit"}, "named 'blank_video_refit'"),
        ({"name": "there"}, "named 'there'"),
        ({"concepts": []}, r"an array of shape \(4,\) for each reading"),
        ({"concepts": [np.array([0, 1, 2, 0])]}, "of indices below 2"),
    ],
)
def test_a_control_must_be_probabilities_under_a_name_of_its_own(given, says):
    made = Control(**{"name": "mine", "label": "", "question": "", "readings": EVEN} | given)
    CONTROLS.added["made_by_a_test"] = lambda suite: made
    with pytest.raises(ValueError, match=says):
        extra_control("made_by_a_test", SimpleNamespace(reading=EVEN[0]), ["there"])


def test_a_control_that_is_in_order_is_taken():
    made = Control(name="mine", label="", question="", readings=EVEN, concepts=[np.array([0, 1, 1, 0])])
    CONTROLS.added["made_by_a_test"] = lambda suite: made
    found = extra_control("made_by_a_test", SimpleNamespace(reading=EVEN[0]), ["there"])
    assert found.name == "mine" and np.array_equal(found.readings, EVEN) and np.array_equal(found.concepts, made.concepts)


def test_a_fault_of_a_control_shows_before_the_other_controls_run(tiny_config, tmp_path, capsys, monkeypatch):
    """Each of them may take minutes."""
    for name in ("random_readings", "layers"):
        monkeypatch.setattr(f"gapclose.evaluation.controls.run_controls.{name}", lambda *_, **__: pytest.fail("another control has run"))
    run = ["measure", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run")]
    assert main([*run, "--controls.extra", "[test_extending:unlike_its_name]"]) == 2
    assert "is named 'random_decoder', as another control is" in capsys.readouterr().err


def test_what_is_named_twice_is_refused_with_the_configuration():
    with pytest.raises(ValueError, match=r"controls.extra names 'a:b' 2 times; name it once"):
        ControlsConfig(extra=["a:b", "c:d", "a:b"])


def test_the_control_of_the_page_runs_as_its_command_says(tiny_config, tmp_path, monkeypatch, capsys):
    """As it stands, on the tiny model: both readings are there, at no more than chance, and a second start observes nothing."""
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M) if "def refitted" in b]
    (tmp_path / "other_detail.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    (line,) = [line for page, line in command_lines() if page == PAGE and "other_detail:" in line]
    given = [w for w in words(line)[2:] if w.startswith("--controls.") and "=" in w]
    run = ["measure", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), *given]
    extra = ["--controls.extra", "[other_detail:frozen, other_detail:refitted, test_extending:stranger, test_extending:coin]"]
    SEEN.clear()
    assert "[other_detail:frozen, other_detail:refitted]" in line and main([*run, *extra]) == 0
    found = {c["name"]: c for c in json.loads((tmp_path / "run" / "measurement.json").read_text())["controls"]}
    own = ["other_detail_frozen", "other_detail_refit"]
    assert list(found) == ["majority", "text_only", "options", "action_confidence", *own, "stranger", "coin"]
    for name in own:
        assert found[name]["chance"] == {"all": 0.5, "audio": 0.5, "vision": 0.5} and found[name]["balanced"]["all"]["value"] < 0.65
    assert found["stranger"]["at_chance"] == {"all": True, "audio": True, "vision": True}
    assert "'test_extending:stranger': 50.0% of its readings name a concept that their item's modality" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "run" / "observations").iterdir()} >= {"other-detail-fit", "other-detail-test"}
    monkeypatch.setattr("gapclose.observe.extract._forward", lambda *_: pytest.fail("a forward was run again"))
    assert main([*run, *extra]) == 0
    assert SEEN[0] == {name for name in rows_of("Attributes of `ControlSuite`") if name not in METHODS}


METHODS = {"judge_of", "rng", "stored"}


def rows_of(heading: str) -> set[str]:
    """The names in the first column of a table of the page."""
    table = TEXT.split(f"### {heading}")[1].split("\n\n")[1]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {name for cell in first for name in re.findall(r"`(\w+)", cell)}


def test_the_page_lists_every_field_of_a_control():
    assert rows_of("Fields of `Control`") == {f.name for f in dataclasses.fields(Control)}


def test_names_are_taken_once():
    register_control("coin_of_a_test", coin)
    assert register_control("coin_of_a_test", coin) is coin and "coin_of_a_test" in CONTROLS.names
    with pytest.raises(ValueError, match="is there already"):
        register_control("coin_of_a_test", likeliest)
    with pytest.raises(ValueError, match="'embedding' is one of the package's own"):
        register_control("embedding", coin)
    with pytest.raises(ValueError, match="is there already"):
        register_objective("gold", likeliest)
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        register_objective("a name", likeliest)
    with pytest.raises(ValueError, match="did you mean 'logistic'"):
        Registry("probe.families", "probe family", ["logistic"]).get("logistik")
