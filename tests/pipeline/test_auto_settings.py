"""Keys with the value auto: what a run decides is kept, agrees with itself, and is false with a reason where it must be."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from run_schemas import misfits

from gapclose.core.auto_decisions import keep
from gapclose.core.settings import decisions
from gapclose.observe import prefix_cache
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches, observe, sharing_refusal
from gapclose.observe.frozen_writer import cache_bytes
from gapclose.observe.request import ObservationRequest, request_of
from gapclose.pipeline import training_cache
from gapclose.pipeline.auto_settings import follow_recipe, shares, stores_measured, take_over, with_decision
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import Config, parse_config, refuse_other_run, save_config
from gapclose.pipeline.training_cache import idle

SHARE, CACHE = "observe.share_prefix", "train.cache_trunk"
AUTO = ObserveConfig(batch_size=8)
AUTO_BOTH = (f"--{SHARE}", "auto", f"--{CACHE}", "auto")
"""the default; the tests' configuration turns both off"""


@pytest.fixture
def few(digits):
    """The questions of three clips."""
    fit = digits.select(split="fit", purpose="gap").items
    clips = list(dict.fromkeys(i.clip for i in fit))[:3]
    return replace(digits, items=tuple(i for i in fit if i.clip in clips))


def stored(directory, *words: str) -> Config:
    config = parse_config(["--run_dir", str(directory), *words])
    save_config(config, directory / "config.yaml")
    return config


def test_auto_is_the_default_and_runs_store_the_word(tmp_path):
    """Before and after it is decided what it comes to, and a stored configuration is read as it was."""
    config = stored(tmp_path)
    keep(tmp_path, SHARE, "it is Monday")
    keep(tmp_path, CACHE, None)
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert tree["observe"]["share_prefix"] == tree["train"]["cache_trunk"] == "auto"
    read = parse_config(["--config", str(tmp_path / "config.yaml")])
    assert read == config and (read.observe.share_prefix, read.train.cache_trunk) == ("auto", "auto")


def test_a_run_goes_on_with_what_auto_came_to(tmp_path):
    """Named or not: only the opposite of what was decided is refused."""
    stored(tmp_path)
    keep(tmp_path, SHARE, None)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["observe"]["share_prefix"] == "auto"
    for word in ("auto", "true"):
        refuse_other_run(parse_config(["--run_dir", str(tmp_path), f"--{SHARE}={word}"]), tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="observe.share_prefix: True there, False now"):
        refuse_other_run(parse_config(["--run_dir", str(tmp_path), f"--{SHARE}=false"]), tmp_path / "config.yaml")
    assert shares(AUTO, tmp_path) is True


@pytest.mark.parametrize("value", [True, False])
def test_a_run_with_an_explicit_value_goes_on_with_it(tmp_path, value):
    """Where the key is left out later, and where it is named again."""
    stored(tmp_path, f"--{SHARE}={str(value).lower()}", f"--{CACHE}={str(value).lower()}")
    config = stored(tmp_path, f"--{SHARE}={str(value).lower()}")
    config = parse_config(["--run_dir", str(tmp_path)])
    refuse_other_run(config, tmp_path / "config.yaml")
    take_over(config)
    assert config.observe.share_prefix is value


def test_a_decision_has_its_reason(loaded, few, tmp_path, capsys, monkeypatch):
    """It is made once in a run, said in a line, kept in one place, and read back."""
    monkeypatch.setattr("gapclose.observe.extract.sharing_refusal", lambda *a: "it is Monday")
    observe(loaded, few, tmp_path / "observations" / "a", AUTO, ObservationRequest(), run=tmp_path)
    monkeypatch.setattr("gapclose.observe.extract.sharing_refusal", lambda *a: pytest.fail("decided before"))
    observe(loaded, few, tmp_path / "observations" / "b", AUTO, ObservationRequest(layers=(1,)), run=tmp_path)
    assert decisions(tmp_path) == {SHARE: {"value": False, "reason": "it is Monday"}}
    assert capsys.readouterr().out.count("observe.share_prefix auto: off, since it is Monday") == 1
    assert with_decision(ObserveConfig(share_prefix=True), tmp_path).share_prefix is True
    assert stores_measured(with_decision(AUTO, tmp_path)) and not stores_measured(ObserveConfig(share_prefix=True))


def test_the_first_clips_decide(loaded, few, monkeypatch, capsys):
    """On where they agree; off for single questions, other results, and what cannot be continued."""
    asked = ObservationRequest(layers=(2,))
    assert sharing_refusal(loaded, few, AUTO, asked) is None
    single = replace(few, items=tuple({i.clip: i for i in few}.values()))
    none = "no clip has several questions behind the same media"
    assert sharing_refusal(loaded, single, AUTO, asked) == none
    turned = [replace(i, messages=[{"role": "user", "content": i.messages[0]["content"][::-1]}]) for i in few]
    assert sharing_refusal(loaded, replace(few, items=tuple(turned)), AUTO, asked) == none
    real = prefix_cache.continuation_positions
    monkeypatch.setattr(prefix_cache, "continuation_positions", lambda *a, **k: real(*a, **k) + 3)
    assert "gave other" in (sharing_refusal(loaded, few, AUTO, asked) or "")
    assert "share_prefix" not in capsys.readouterr().out


def test_an_observation_keeps_what_it_began_with(loaded, few, tmp_path):
    """Outside of runs: a directory that was begun with whole prompts goes on so, a new one shares."""
    asked = ObservationRequest(layers=(2,))
    for name, begun in (("whole", False), ("shared", True)):
        first = observe(loaded, few, tmp_path / name, replace(AUTO, share_prefix=begun), asked)
        again = observe(loaded, few, tmp_path / name, AUTO, asked)
        assert (first.scores == again.scores).all()
    observe(loaded, few, tmp_path / "new", AUTO, asked)
    assert json.loads((tmp_path / "new" / "request.json").read_text())["share_prefix"] is True


def test_what_decides_nothing_refuses_auto(loaded, few, tmp_path):
    """It would otherwise mean true, without a try."""
    with pytest.raises(ValueError, match="observe.share_prefix is auto"):
        forward_batches(loaded, [list(few)], loaded.media(few), AUTO, ObservationRequest())
    with pytest.raises(ValueError, match="observe.share_prefix is auto"):
        request_of(loaded, few, AUTO, ObservationRequest())


@pytest.mark.parametrize(("share", "stored"), [(1.0, ["train", "val"]), (0.99, [])])
def test_both_caches_share_one_quarter(monkeypatch, loaded, few, tmp_path, share, stored):
    """The bound holds for the sum, once; what follows the decision is bound by the disk alone."""
    config = Config()
    config.observe = replace(AUTO, share_prefix=False)
    run = SimpleNamespace(
        config=config, directory=tmp_path, items=few, loaded=loaded, measured_layers=[2], measured_items=lambda split: few
    )
    each = cache_bytes(loaded, plan_batches(few.items, 8), loaded.media(few))
    free = shutil._ntuple_diskusage(2**40, 0, 2**40)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    monkeypatch.setattr(training_cache, "AUTO_SHARE", share * 2 * each / free.free)
    found = training_cache.training_caches(run, list(few), frozen=2, blank=())
    assert list(found) == stored and all(found.values()) and decisions(tmp_path)[CACHE]["value"] is bool(stored)
    monkeypatch.setattr(training_cache, "AUTO_SHARE", 0.0)
    assert list(training_cache.training_caches(run, list(few), frozen=2, blank=())) == stored, "as it was decided"


def test_a_cache_that_cannot_pay_is_off():
    config = Config()
    assert idle(config) is None
    config.train.epochs = 1
    assert "one epoch" in (idle(config) or "")
    config.targets.rounds = 2
    assert idle(config) is None
    config.model.sharded = True
    assert "model.sharded" in (idle(config) or "")


def test_a_run_by_default(tiny_config, tmp_path):
    """Both are on where the tiny model allows them, and its configuration has the word; the stored states are gone at the end."""
    tiny_run = tmp_path / "run"
    assert main(["close", "--config", str(tiny_config), "--run_dir", str(tiny_run), *AUTO_BOTH]) == 0
    assert misfits(tiny_run) == {}
    found, tree = decisions(tiny_run), yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert tree["observe"]["share_prefix"] == tree["train"]["cache_trunk"] == "auto"
    assert found == {key: {"value": True, "reason": None} for key in (SHARE, CACHE)}
    request = json.loads((tiny_run / "observations" / "base-val" / "request.json").read_text())
    assert request["share_prefix"] is True and not (tiny_run / "trunk").exists()


@pytest.mark.slow
def test_a_small_disk_leaves_the_cache_out(tiny_config, tmp_path, monkeypatch, capsys):
    """A quarter of what is free is the bound of auto; the run goes on without, and so does its second start."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("gapclose.pipeline.training_cache.AUTO_SHARE", 0.0)
    assert usage.free > 2**31
    command = ["close", "--config", str(tiny_config), "--run_dir", str(tmp_path / "run"), "--train.epochs", "2", *AUTO_BOTH]
    assert main(command) == 0
    assert "train.cache_trunk auto: off, since it takes" in capsys.readouterr().out
    assert decisions(tmp_path / "run")[CACHE]["value"] is False
    assert main(command) == 0


class Reached(Exception):
    """Training would begin now."""


@pytest.mark.parametrize(
    ("auroc", "state", "faint"),
    [(0.849, "open", True), (0.6, "no gap", True), (None, "open", False), (0.85, "open", False), (0.5, "not judgeable", False)],
)
def test_a_recipe_is_chosen_by_the_reading_of_val(tmp_path, auroc, state, faint, capsys):
    """It stands in config.yaml, says why, and the same command goes on with it; another recipe does not."""
    config = stored(tmp_path, "--recipe", "auto")
    plain = parse_config(["--run_dir", str(tmp_path), "--recipe", "auto"])
    record = {"stage": "base/val", "epoch": 0, "state": state, "reading": {"auroc": {"value": auroc}}}
    (tmp_path / "gap.jsonl").write_text(json.dumps(record) + "\n")
    follow_recipe(config, tmp_path)
    assert (config == plain) is not faint and ("is faint on val" in capsys.readouterr().out) is faint
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config
    refuse_other_run(plain, tmp_path / "config.yaml")
    take_over(plain)
    assert plain == config and (config.targets.first, config.train.gold) == (("labels", 1.0) if faint else ("readings", 0.0))
    with pytest.raises(ValueError, match="recipe: 'auto' there, 'given' now"):
        refuse_other_run(parse_config(["--run_dir", str(tmp_path)]), tmp_path / "config.yaml")


def test_a_recipe_is_followed_before_anything_is_trained(quick_config, tmp_path, monkeypatch):
    """By the command, after the gate, which a faint reading need not pass."""
    seen = list[tuple[Config, bool]]()

    def stage(run):
        seen.append((run.config, (run.directory / "gate.json").is_file()))
        raise Reached

    faint = {"state": "open", "reading": {"auroc": {"value": 0.6}}}  # a random model is not judgeable
    monkeypatch.setattr("gapclose.pipeline.auto_settings.record_of", lambda *of: faint)
    monkeypatch.setattr("gapclose.pipeline.run.AlignStage", stage)
    for _ in range(2):
        with pytest.raises(Reached):
            main(["close", "--config", str(quick_config), "--run_dir", str(tmp_path / "run"), "--recipe", "auto"])
    (first, gated), (again, _) = seen
    assert gated and first.targets.first == "labels" and first.lora.layers == "all" and again == first
