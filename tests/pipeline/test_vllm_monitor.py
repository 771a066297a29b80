"""Readings for vLLM, from files and responses of the form that its documentation gives; vLLM itself is not here."""

import asyncio
import json
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gapclose.evaluation.monitor_file import MonitoredModel, MonitorFile
from gapclose.metrics.alarms import AlarmRates
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.calibration import EventBin
from gapclose.pipeline import vllm_monitor
from gapclose.pipeline.vllm_monitor import FOLDER, MonitorMiddleware, VllmMonitor
from gapclose.probes.linear import FrozenProbe

WIDTH, CONCEPTS, CHAT = 8, ("standard", "false_vision"), "/v1/chat/completions"


@pytest.fixture(scope="module")
def file() -> MonitorFile:
    """A monitor that reads layers 3 and 5, in the other order than they rise."""
    rng, none = np.random.default_rng(0), Interval(0.0, 0.0, 0.0)
    probe = FrozenProbe(
        mean=rng.normal(size=2 * WIDTH), scale=np.ones(2 * WIDTH), weight=rng.normal(size=(2, 2 * WIDTH)), bias=np.zeros(2), temperature=1.0,
        layers=[5, 3], family="logistic", strength=1.0, concepts=CONCEPTS,
    )  # fmt: skip
    rates = AlarmRates(
        items=2, clips=2, alarm_items=1, alarm_clips=1, standard_clips=1, flagged=1, hits=none, false_alarms=none, precision=none
    )
    model = MonitoredModel(
        name="base", revision=None, fingerprint="0", adapter=None, adapters_above=True, dtype="float32", template={}, prompt="own", frames=8, side=448
    )  # fmt: skip
    return MonitorFile(
        probe=probe, alarm=CONCEPTS[1:], threshold=0.5, false_alarm_rate=0.05, split="val", rates=rates, calibration=(EventBin(0.5, 0.5, 1),),
        model=model,
    )  # fmt: skip


@pytest.fixture
def request_of(tmp_path):
    """Write what vLLM writes about a request, and return its ``kv_transfer_params``."""

    def write(name: str, tokens: int, states: torch.Tensor | None = None) -> dict:
        states = torch.randn(tokens, 2, WIDTH, generator=torch.Generator().manual_seed(tokens)) if states is None else states
        path = tmp_path / f"{name}.safetensors"
        save_file({"hidden_states": states, "token_ids": torch.arange(tokens)}, path)
        path.with_name(f"{path.name}.lock").touch()
        return {"hidden_states_path": str(path)}

    return write


def wanted(file: MonitorFile, given: dict) -> float:
    """The reading, from the probe itself."""
    last = load_file(given["hidden_states_path"])["hidden_states"][-1].numpy()
    row = np.concatenate([last[1], last[0]])[None]  # layers 5, 3
    return float(file.probe.predict_proba(torch.from_numpy(row))[0, 1])


def test_every_request_is_read_at_the_end_of_its_own_prompt_and_its_file_removed(file, request_of, tmp_path):
    given = [request_of(f"r{n}", n) for n in (1, 7, 4)]
    expected, monitor = [wanted(file, g) for g in given], VllmMonitor(file, load_file)
    found = [monitor.read(g) for g in given]
    assert [f.reading for f in found] == pytest.approx(expected, abs=1e-6) and len({round(e, 4) for e in expected}) == 3
    assert [f.flag for f in found] == [e > file.threshold for e in expected]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("states", "tokens", "message"),
    [
        (torch.zeros(4, 1, WIDTH), 4, r"shape \[4, 1, 8\] for 4 prompt tokens; the probe reads layers \[3, 5\] of width 8"),
        (torch.zeros(4, 2, WIDTH), 3, r"for 3 prompt tokens"),
        (torch.full((4, 2, WIDTH), torch.nan), 4, "not finite"),
    ],
)
def test_what_is_not_the_prompts_hidden_states_is_refused(file, request_of, tmp_path, states, tokens, message):
    given = request_of("r", len(states), states)
    save_file({"hidden_states": states, "token_ids": torch.arange(tokens)}, given["hidden_states_path"])
    with pytest.raises((ValueError, FloatingPointError), match=message):
        VllmMonitor(file, load_file).read(given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="names no file of hidden states"):
        VllmMonitor(file, load_file).read(None)


def test_the_options_name_the_probes_layers_and_the_middleware(file, tmp_path, capsys):
    file.save(tmp_path / "monitor")
    vllm_monitor.main([str(tmp_path / "monitor"), "--storage", "/dev/shm/here"])
    words = shlex.split(capsys.readouterr().out)
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "--no-enable-chunked-prefill"
    assert options["--middleware"] == f"{MonitorMiddleware.__module__}.{MonitorMiddleware.__name__}"
    settings, speculative = vllm_monitor.engine_settings(file, "/dev/shm/here"), json.loads(options["--speculative_config"])
    assert speculative == settings["speculative_config"] and speculative["method"] == "extract_hidden_states"
    assert speculative["draft_model_config"]["hf_config"] == {"eagle_aux_hidden_state_layer_ids": [3, 5]}
    transfer = json.loads(options["--kv_transfer_config"])
    assert transfer == settings["kv_transfer_config"] and transfer["kv_connector_extra_config"] == {"shared_storage_path": "/dev/shm/here"}


def ask(middleware, body, path: str = CHAT) -> tuple[int, dict, dict]:
    """Status, headers and JSON of a request, whose body comes in two pieces."""
    raw, sent = json.dumps(body).encode(), []
    pieces = [{"type": "http.request", "body": raw[:5], "more_body": True}, {"type": "http.request", "body": raw[5:]}]

    async def receive():
        return pieces.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(middleware({"type": "http", "method": "POST", "path": path}, receive, send))
    content = b"".join(m["body"] for m in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(content)


def served(answer: dict, status: int = 200):
    """An application that answers as vLLM does, and keeps the bodies that reach it."""
    seen = []

    async def app(scope, receive, send):
        message = await receive()
        seen.append(message["body"])
        content = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), (b"x-request-id", b"7")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content[:3], "more_body": True})
        await send({"type": "http.response.body", "body": content[3:]})

    app.seen = seen
    return app


def test_a_completion_gets_its_reading(file, request_of):
    given = request_of("r", 5)
    expected, app = wanted(file, given), served({"choices": [{"message": {"content": "low"}}], "kv_transfer_params": given})
    status, headers, answer = ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), {"messages": []})
    assert status == 200 and answer["choices"] == [{"message": {"content": "low"}}] and "kv_transfer_params" not in answer
    assert answer["gapclose"] == {"reading": pytest.approx(expected, abs=1e-6), "flag": expected > file.threshold}
    assert headers[b"x-request-id"] == b"7" and int(headers[b"content-length"]) == len(json.dumps(answer))
    assert app.seen == [b'{"messages": []}']


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stream": True}, "in a stream"),
        ({"n": 2}, "with n above 1"),
        ({"kv_transfer_params": {"include_output_tokens": True}}, "with kv_transfer_params of the client's own"),
    ],
)
def test_what_could_not_be_read_is_refused_before_it_is_answered(file, body, message):
    app = served({})
    status, _, answer = ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), body)
    assert status == 400 and message in answer["error"]["message"] and app.seen == []


def test_no_answer_goes_out_unread_and_vllms_own_errors_pass(file, tmp_path):
    monitor = VllmMonitor(file, load_file)
    status, _, answer = ask(MonitorMiddleware(served({"choices": []}), monitor), {"stream": False, "n": 1})
    assert status == 500 and "names no file of hidden states" in answer["error"]["message"]
    gone = {"kv_transfer_params": {"hidden_states_path": str(tmp_path / "gone.safetensors")}}
    assert ask(MonitorMiddleware(served(gone), monitor), {})[0] == 500
    refusal = {"error": {"message": "no such model"}}
    assert ask(MonitorMiddleware(served(refusal, 404), monitor), {})[::2] == (404, refusal)
    assert ask(MonitorMiddleware(served({"data": []}), monitor), {"stream": True}, "/v1/embeddings")[::2] == (200, {"data": []})


def test_the_middleware_takes_its_monitor_from_the_environment(file, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(ValueError, match="set the environment variable GAPCLOSE_MONITOR"):
        MonitorMiddleware(served({}))
    file.save(tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert MonitorMiddleware(served({})).monitor.file.probe.layers == (5, 3)
