"""``gapclose ask`` over real HTTP: inspect_ai puts the items to the shipped model, which ``gapclose serve``'s application answers for."""

import json
import math
import shutil
import socket
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gapclose import Monitor, load_model
from gapclose.data.items import Item, Option
from gapclose.data.question_text import either_prompt
from gapclose.evaluation.asked_answers import AskedAnswer, judge, option_scores
from gapclose.evaluation.monitor_file import MonitoredModel, MonitorFile
from gapclose.metrics.alarms import alarm_rates
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.gap import intervals, statistics
from gapclose.metrics.labels import Action, Labels
from gapclose.models.config import ModelConfig
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest
from gapclose.pipeline.cli import main
from gapclose.probes.linear import FrozenProbe

KEY = "secret-of-the-test"
MODEL = "openai-api/gapclose/digits"


def option(text: str) -> Option:
    return Option(text=text, concept="standard")


@pytest.mark.parametrize(
    ("options", "first", "scores"),
    [
        (["low", "high"], {"low": -0.1, " high": -3.0}, [-0.1, -3.0]),
        (["low", "high"], {"Low": math.log(0.5), "l": math.log(0.25)}, [math.log(0.75), math.log(0.25)]),  # 0.25 is left for the rest
        (["not odd", "not even"], {"not": -0.1}, None),
        (["not odd", "even"], {"not": -0.1, "even": -3.0}, [-0.1, -3.0]),
        (["A", "B"], {"A": -0.1, "a": -1.0, "B": -4.0}, [-0.1, -4.0]),
        (["low", "high"], {"I": -0.1}, None),
    ],
)
def test_scores_of_options_come_from_first_tokens(options, first, scores):
    item = Item(id="a", clip="a", split="test", modality="-", messages=[], options=[*map(option, options)])
    found = option_scores(item, first)
    assert found == scores if scores is None else np.allclose(found, scores)


def test_without_its_packages_the_command_names_the_extra(digits_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    assert main(["ask", "--model", MODEL, "--items", str(digits_directory), "--out", str(tmp_path)]) == 2
    assert 'pip install "gapclose[api]"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def shipped():
    return load_model(ModelConfig(path="digits", dtype="float32"))


@pytest.fixture(scope="module")
def served(shipped, digits):
    """The shipped model behind an application, with a monitor of random weights; its address is in the environment."""
    for package, extra in (("inspect_ai", "api"), ("openai", "api"), ("fastapi", "serve"), ("uvicorn", "serve")):
        pytest.importorskip(package, reason=f"a server is asked by inspect_ai (the extra `{extra}`)")
    import uvicorn

    from gapclose.pipeline.chat_server import Limits, ServedModel, chat_app

    rng, width, alarm = np.random.default_rng(0), shipped.width, np.arange(4) < 2
    probe = FrozenProbe(
        mean=np.zeros(width), scale=np.ones(width), weight=rng.normal(size=(3, width)), bias=np.zeros(3), temperature=1.0, layers=[2],
        family="lda", strength=0.1, concepts=digits.concepts,
    )  # fmt: skip
    model = MonitoredModel(
        name="digits", revision=None, fingerprint=shipped.fingerprint, adapter=None, adapters_above=True, dtype="float32", template={},
        prompt="own", frames=8, side=448,
    )  # fmt: skip
    file = MonitorFile(
        probe=probe, alarm=digits.alarm, threshold=0.5, false_alarm_rate=0.05, split="val", calibration=(), model=model,
        rates=alarm_rates(alarm, alarm, np.arange(4).astype(str), replicates=2, seed=0),
    )  # fmt: skip
    known = ServedModel(name="digits", loaded=shipped, monitor=Monitor(file), limits=Limits(seconds=120, tokens=32, megabytes=1))
    server = uvicorn.Server(uvicorn.Config(chat_app(known, key=KEY), log_level="warning"))
    with socket.socket() as bound, pytest.MonkeyPatch.context() as patch:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        patch.setenv("GAPCLOSE_API_KEY", KEY)
        patch.setenv("GAPCLOSE_BASE_URL", f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
        yield
        server.should_exit = True
        thread.join(30)


def test_a_served_models_action_is_that_of_its_measurement(served, shipped, digits, digits_directory, tmp_path, capsys):
    """With picture and sound, by log-probabilities; the key is written nowhere."""
    command = ["ask", "--model", MODEL, "--items", str(digits_directory), "--out", str(tmp_path), "--limit", "24", "--price", "2.5", "10"]
    assert main(command) == 0
    found, said = json.loads((tmp_path / "asked.json").read_text()), capsys.readouterr().out
    items = [i for i in digits if i.split == "test" and i.purpose == "gap"][:24]
    kept = digits.select(split="test", purpose="gap")
    labels, everything = Labels.of(kept).take(np.arange(len(kept)) < 24), np.ones((24, 3)) / 3
    seen = forward_batches(
        shipped,
        [items],
        shipped.media(digits),
        ObserveConfig(max_new_tokens=4, share_prefix=False),
        ObservationRequest(layers=(2,), generate=True),
    )
    scores = seen.scores.double().numpy()
    wanted = statistics(ClipBootstrap(labels.clip, 1000, 0), labels, Action(chosen=scores.argmax(1), scores=scores), everything)
    wanted = intervals({name: of for name, of in wanted.items() if name.startswith("action.")})["action"]
    action = found["figures"]["action"]
    assert {n: of["value"] for n, of in action.items() if n != "auroc"} == pytest.approx(
        {n: of["value"] for n, of in wanted.items() if n != "auroc"}
    )
    assert abs(action["auroc"]["value"] - wanted["auroc"]["value"]) < 0.05, "tokens below the twenty first ones rank as equals"
    assert [q["answer"] for q in found["questions"]] == seen.answers and found["figures"]["by"] == "scores"
    used, most = found["usage"][MODEL], 24 * 32 * 10 / 1e6
    assert used["total_cost"] == pytest.approx(used["input_tokens"] * 2.5e-6 + used["output_tokens"] * 1e-5) and used["input_tokens"] > 0
    assert f"at most ${most:.4f} for the answers" in said and f"${used['total_cost']:.4f}" in said
    assert found["unanswered"] == {} and "no reading and no gap" in said and "24 of audio, 24 of image" in said
    (log,) = (tmp_path / "log").iterdir()
    with zipfile.ZipFile(log) as entries:
        written = b"".join(map(entries.read, entries.namelist()))
    assert b"gapclose" in written and KEY.encode() not in written + (tmp_path / "asked.json").read_bytes()


def test_questions_are_asked_in_both_orders_and_what_a_provider_refuses_is_counted(served, digits_directory, tmp_path, monkeypatch, capsys):
    """Of eight questions, half list their options, and one of each half comes without its sound."""
    from gapclose.pipeline.chat_requests import Sound
    from gapclose.pipeline.chat_server import Refused, ServedModel

    folder = Path(shutil.copytree(digits_directory, tmp_path / "set"))
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["split"] == "test" and r["purpose"] == "gap"][:8]
    for n, row in enumerate(rows):
        parts = row["messages"][0]["content"]
        if n % 4 == 0:
            parts[:] = [p for p in parts if p["type"] != "audio"]
        if n < 4:
            row["stem"] = parts[-1]["text"]
            parts[-1]["text"] = either_prompt(row["stem"], [o["text"] for o in row["options"]])
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    known, asked = ServedModel.answer, list[str]()

    def deaf(self, request, recorder, deadline):
        if any(isinstance(p, Sound) for m in request.messages for p in m.content):
            raise Refused("this model takes no sound")
        asked.append(request.messages[0].content[-1].text)
        return known(self, request, recorder, deadline)

    monkeypatch.setattr(ServedModel, "answer", deaf)
    command = ["ask", "--model", MODEL, "--items", str(folder), "--without_logprobs"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    found, said = json.loads((tmp_path / "out" / "asked.json").read_text()), capsys.readouterr().out
    assert sum(found["unanswered"].values()) == 12 - 3 and all("takes no sound" in why for why in found["unanswered"])
    assert (found["figures"]["items"], found["figures"]["reordered"], found["figures"]["by"]) == (2, 1, "text")
    assert found["figures"]["action"]["auroc"] is None and found["figures"]["compared"] <= 1
    given, turned, without = sorted(
        (text.partition(" Answer with ")[2].rstrip(".") for text in asked), key=lambda listed: (not listed, listed)
    )
    assert given.split(" or ") == turned.split(" or ")[::-1] and len(given.split(" or ")) == 4 and not without
    assert "takes no sound" in said
    monkeypatch.setattr(ServedModel, "answer", lambda self, *_: (_ for _ in ()).throw(Refused("this model answers nothing")))
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "answered none of 12 questions" in (err := capsys.readouterr().err) and "this model answers nothing" in err


def test_a_missing_key_is_named_without_markup(digits_directory, tmp_path, monkeypatch, capsys):
    pytest.importorskip("inspect_ai", reason="questions are put by inspect_ai (the extra `api`)")
    for name in ("OPENAI_API_KEY", "AZUREAI_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    asked = ["ask", "--model", "openai/gpt-4o", "--items", str(digits_directory), "--out", str(tmp_path), "--limit", "1"]
    assert main(asked) == 2
    assert "No OPENAI_API_KEY, " in (message := capsys.readouterr().err) and "[" not in message and "ERROR" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "no"], "no: no such item set"),
        (["--out", "{run}"], "holds a run; give the answers a directory of their own"),
        (["--split", "none"], "no labelled question of split 'none'"),
        (["--price", "1", "-1"], "prices are at least 0"),
        (["--limit", "0"], "--limit is 0; it must be above 0"),
        (["--model", "nobody/x", "--limit", "1"], "nobody/x: "),
    ],
)
def test_wrong_arguments_are_refused_by_name(digits_directory, tmp_path, arguments, message, capsys):
    pytest.importorskip("inspect_ai", reason="questions are put by inspect_ai (the extra `api`)")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "gap.jsonl").write_text("")
    arguments = [a.format(run=tmp_path / "run") for a in arguments]
    assert main(["ask", "--model", MODEL, "--items", str(digits_directory), "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def named(text: str) -> AskedAnswer:
    return AskedAnswer(text=text, first=None)


def test_a_flip_needs_an_option_in_both_answers(digits):
    """Four questions in both orders: the same option, another one, and twice none on one side; the fifth is asked once."""
    items = [i for i in digits.select(split="test", purpose="gap") if i.gold is not None][:5]
    given = [named(i.options[0].text) for i in items]
    other = [items[0].options[0].text, items[1].options[1].text, ""]
    turned = {i.id: (i, named(text)) for i, text in zip(items, [*other, items[3].options[0].text], strict=False)}
    given[3] = named("I cannot tell.")
    found = judge(replace(digits, items=tuple(items)), given, turned, replicates=20, seed=0)
    assert (found.reordered, found.compared, found.flips["value"]) == (4, 2, 0.5)


def test_of_letters_the_meaning_counts(digits):
    """In the reverse order the letters keep their places: who always says A names another option, who keeps to one content does not."""
    plain = [i for i in digits.select(split="test", purpose="gap") if i.gold is not None and i.gold < 2][:2]
    items = [replace(i, options=[replace(o, text="AB"[k], meaning=o.text) for k, o in enumerate(i.options[:2])]) for i in plain]
    turned = [replace(i, options=[replace(o, meaning=i.options[1 - k].meaning) for k, o in enumerate(i.options)]) for i in items]
    given, other = [named("A"), named("A")], [named("A"), named("B")]
    pairs = {i.id: pair for i, pair in zip(items, zip(turned, other, strict=True), strict=True)}
    found = judge(replace(digits, items=tuple(items)), given, pairs, replicates=20, seed=0)
    assert (found.compared, found.flips["value"]) == (2, 0.5)


def logged(replies) -> SimpleNamespace:
    """What inspect returns for questions with these answers and stop reasons."""
    from inspect_ai.model import ModelOutput

    outputs = [ModelOutput.from_content("nobody/x", text, stop_reason=reason) for text, reason in replies]
    samples = [SimpleNamespace(id=f"q{n}", error=None, output=output) for n, output in enumerate(outputs)]
    return SimpleNamespace(status="success", samples=samples, stats=SimpleNamespace(model_usage={}), location="log")


def test_a_filtered_answer_is_no_answer_and_one_cut_off_is_counted(tmp_path, monkeypatch):
    inspect_ai = pytest.importorskip("inspect_ai", reason="questions are put by inspect_ai (the extra `api`)")
    from gapclose.pipeline.ask_provider import ask_questions

    replies = [("", "content_filter"), ("", "max_tokens"), ("low", "stop"), ("so lo", "max_tokens")]
    monkeypatch.setattr(inspect_ai, "eval", lambda *_, **__: [logged(replies)])
    given = {"model": "nobody/x", "folder": tmp_path, "max_tokens": 4, "connections": 1, "logprobs": False, "cache": False, "price": None}
    item = Item(id="a", clip="a", split="test", modality="-", messages=[{"role": "user", "content": "?"}], options=[])
    asked = ask_questions([("q0", item)], tmp_path, **given)
    assert {name: a.text for name, a in asked.answers.items()} == {"q1": "", "q2": "low", "q3": "so lo"} and asked.cut_off == 1
    assert asked.faults == {"q0": "the provider's filter withheld the answer"}
    film = replace(item, messages=[{"role": "user", "content": [{"type": "video", "path": "a.mkv"}]}])
    asked = ask_questions([("q0", film)], tmp_path, **given)
    assert "has no form that providers take" in asked.faults["q0"] and not asked.answers, "nothing to send is no fault of inspect's"


def test_an_interruption_names_the_log(digits_directory, tmp_path, monkeypatch, capsys):
    """inspect handles the interruption itself and returns without a log."""
    inspect_ai = pytest.importorskip("inspect_ai", reason="questions are put by inspect_ai (the extra `api`)")
    monkeypatch.setattr(inspect_ai, "eval", lambda *_, **__: [])
    command = ["ask", "--model", "mockllm/model", "--items", str(digits_directory), "--out", str(tmp_path), "--limit", "1"]
    assert main(command) == 130
    assert str(tmp_path / "log") in (said := capsys.readouterr().err) and "--cache" in said


def test_the_questions_of_a_run_are_asked_in_its_words(served, tiny_run, tmp_path, capsys):
    """``--run`` asks what the run asked: the same items, labels and prompt."""
    command = ["ask", "--model", MODEL, "--run", str(tiny_run), "--out", str(tmp_path), "--limit", "4", "--tokens", "1"]
    assert main(command) == 0
    found = json.loads((tmp_path / "asked.json").read_text())
    assert found["fingerprint"] == json.loads((tiny_run / "items.json").read_text())["fingerprint"] and found["figures"]["items"] == 4
    assert main([*command, "--items", str(tmp_path)]) == 2 and "not allowed with argument" in capsys.readouterr().err
