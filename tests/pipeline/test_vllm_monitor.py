"""Readings for vLLM, from files and responses of the form that its documentation gives; vLLM itself is not here."""

import asyncio
import json
import os
import shlex
import time

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
from gapclose.pipeline.vllm_requests import LIMIT
from gapclose.pipeline.vllm_storage import KEPT, STORAGE, private_directory
from gapclose.probes.linear import FrozenProbe

MOVING = {
    "add_generation_prompt": False, "continue_final_message": True, "truncate_prompt_tokens": 4, "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"enable_thinking": False}, "echo": True, "documents": [{"text": "a"}], "add_special_tokens": True,
    "mm_processor_kwargs": {"max_pixels": 9}, "media_io_kwargs": {"video": {"num_frames": 1}}, "tools": [{"type": "function"}],
    "reasoning_effort": "low", "use_beam_search": True, "kv_transfer_params": {"include_output_tokens": True}, "request_id": "1", "new": 1,
}  # fmt: skip
"""keys that move the end of the prompt, change what it holds, or are not known"""
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


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    """The files of vLLM are in the test's directory."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv(STORAGE, str(tmp_path))


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
    storage = str(tmp_path / "here")
    vllm_monitor.main([str(tmp_path / "monitor"), "--storage", storage])
    words = shlex.split(capsys.readouterr().out)
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "--no-enable-chunked-prefill"
    assert options["--middleware"] == f"{MonitorMiddleware.__module__}.{MonitorMiddleware.__name__}"
    settings, speculative = vllm_monitor.engine_settings(file, storage), json.loads(options["--speculative_config"])
    assert speculative == settings["speculative_config"] and speculative["method"] == "extract_hidden_states"
    assert speculative["draft_model_config"]["hf_config"] == {"eagle_aux_hidden_state_layer_ids": [3, 5]}
    transfer = json.loads(options["--kv_transfer_config"])
    assert transfer == settings["kv_transfer_config"] and transfer["kv_connector_extra_config"] == {"shared_storage_path": storage}


def ask(middleware, body, path: str = CHAT, **scope) -> tuple[int, dict, dict]:
    """Status, headers and JSON of a request, whose body comes in two pieces."""
    raw, sent = json.dumps(body).encode(), []
    pieces = [{"type": "http.request", "body": raw[:5], "more_body": True}, {"type": "http.request", "body": raw[5:]}]

    async def receive():
        return pieces.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(middleware({"type": "http", "method": "POST", "path": path, **scope}, receive, send))
    content = b"".join(m["body"] for m in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(content)


def served(answer, status: int = 200):
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


def completion(given: dict, tokens: int) -> dict:
    return {"choices": [{"message": {"content": "low"}}], "usage": {"prompt_tokens": tokens}, "kv_transfer_params": given}


def test_a_completion_gets_its_reading(file, request_of):
    given = request_of("r", 5)
    expected, app = wanted(file, given), served(completion(given, 5))
    status, headers, answer = ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), {"messages": []})
    assert status == 200 and answer["choices"] == [{"message": {"content": "low"}}] and "kv_transfer_params" not in answer
    assert answer["gapclose"] == {"reading": pytest.approx(expected, abs=1e-6), "flag": expected > file.threshold}
    assert headers[b"x-request-id"] == b"7" and int(headers[b"content-length"]) == len(json.dumps(answer))
    assert app.seen == [b'{"messages": []}']


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stream": True}, "in a stream"),
        ({"n": 2}, "n is 2"),
        ({"messages": [{"role": "user", "content": "Is"}, {"role": "assistant", "content": "It"}]}, "the last message is the assistant's"),
        ([], "not a JSON object"),
        *(({"messages": [], key: value}, f"['{key}'] may change the prompt or its end") for key, value in MOVING.items()),
    ],
)
def test_what_could_not_be_read_is_refused_before_it_is_answered(file, body, message):
    app = served({})
    status, _, answer = ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), body)
    assert status == 400 and message in answer["error"]["message"] and app.seen == []


def test_keys_that_act_behind_the_prompt_pass(file, request_of):
    """And every key whose value is null."""
    body = {"model": "base", "messages": [], "temperature": 0.5, "stop": ["."], "n": 1, "stream": False} | dict.fromkeys(MOVING)
    app = served(completion(request_of("r", 5), 5))
    assert ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), body)[0] == 200 and json.loads(app.seen[0]) == body


def test_a_large_request_is_not_read_to_its_end(file, request_of, monkeypatch):
    body = {"messages": [{"role": "user", "content": "a" * 2_000}]}
    monkeypatch.setenv(LIMIT, "0.001")
    app = served(completion(request_of("r", 5), 5))
    status, _, answer = ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), body)
    assert status == 413 and app.seen == []
    assert "larger than 0.001 MB; send smaller media, or start vLLM with a larger GAPCLOSE_MEGABYTES" in answer["error"]["message"]
    monkeypatch.setenv(LIMIT, "0.003")
    assert ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), body)[0] == 200
    for given in ("0", "-1", "nan", "inf", "20 MB"):
        monkeypatch.setenv(LIMIT, given)
        with pytest.raises(ValueError, match=f"GAPCLOSE_MEGABYTES is '{given}'; give a number of megabytes above 0"):
            MonitorMiddleware(served({}), VllmMonitor(file))


def test_no_answer_goes_out_unread_and_vllms_own_errors_pass(file, tmp_path):
    monitor = VllmMonitor(file, load_file)
    status, _, answer = ask(MonitorMiddleware(served({"choices": []}), monitor), {"stream": False, "n": 1})
    assert status == 500 and "names no file of hidden states" in answer["error"]["message"]
    gone = {"kv_transfer_params": {"hidden_states_path": str(tmp_path / "gone.safetensors")}}
    assert ask(MonitorMiddleware(served(gone), monitor), {})[0] == 500
    refusal = {"error": {"message": "no such model"}}
    assert ask(MonitorMiddleware(served(refusal, 404), monitor), {})[::2] == (404, refusal)


@pytest.mark.parametrize(("answer", "status"), [(None, 200), ([], 200), ({"kv_transfer_params": ["x"]}, 200), ({}, 204), ({}, 307)])
def test_an_answer_of_another_form_is_a_clean_error(file, answer, status):
    found, _, said = ask(MonitorMiddleware(served(answer, status), VllmMonitor(file, load_file)), {})
    assert found == 500 and said["error"]["message"].startswith("the answer has no reading: ")


def test_no_answer_at_all_is_a_clean_error(file):
    async def silent(scope, receive, send):
        await receive()

    assert ask(MonitorMiddleware(silent, VllmMonitor(file, load_file)), {})[::2] == (
        500,
        {"error": {"message": "the answer has no reading: vLLM gave no answer", "type": "server_error"}},
    )


def test_the_prompt_must_have_as_many_tokens_as_the_file(file, request_of, tmp_path):
    """A cached beginning or a cut prompt would otherwise be read at another token."""
    for tokens, message in ((6, "hidden states of 5 tokens, and the prompt has 6"), (None, "usage.prompt_tokens")):
        answer = completion(request_of("r", 5), tokens)
        status, _, said = ask(MonitorMiddleware(served(answer), VllmMonitor(file, load_file)), {})
        assert status == 500 and message in said["error"]["message"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [CHAT, f"/api{CHAT}"])
def test_a_root_path_hides_no_completion(file, request_of, path):
    app = served(completion(request_of("r", 5), 5))
    status, _, answer = ask(MonitorMiddleware(app, VllmMonitor(file, load_file)), {}, path, root_path="/api")
    assert status == 200 and set(answer["gapclose"]) == {"reading", "flag"}


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/invocations", "/v1/responses", "/v1/messages", "/inference/v1/generate", f"{CHAT}/", f"/api{CHAT}"]
)
def test_what_else_may_generate_is_refused(file, path):
    app = served({"text": "unread"})
    middleware = MonitorMiddleware(app, VllmMonitor(file, load_file))
    status, _, answer = ask(middleware, {}, path)
    assert status == 403 and f"what {path} answers would have no reading" in answer["error"]["message"] and app.seen == []
    assert ask(middleware, {}, path, method="PUT")[0] == 403


def test_what_generates_nothing_passes(file):
    app = served({"tokens": [1]})
    middleware = MonitorMiddleware(app, VllmMonitor(file, load_file))
    assert ask(middleware, {}, "/tokenize")[::2] == ask(middleware, {}, "/v1/models", method="GET")[::2] == (200, {"tokens": [1]})
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    asyncio.run(middleware({"type": "websocket", "path": "/v1/realtime"}, receive, send))
    assert sent == ["websocket.close"] and len(app.seen) == 2


def test_starlette_routes_as_the_middleware_reads(file, request_of):
    applications, routing = pytest.importorskip("starlette.applications"), pytest.importorskip("starlette.routing")
    from starlette.responses import JSONResponse
    from starlette.testclient import TestClient

    answers = [completion(request_of(f"r{n}", 5), 5) for n in range(2)]

    async def chat(request):
        return JSONResponse(answers.pop())

    app = applications.Starlette(routes=[routing.Route(CHAT, chat, methods=["POST"])])
    app.add_middleware(MonitorMiddleware, monitor=VllmMonitor(file, load_file))
    client = TestClient(app, root_path="/api")
    for path in (CHAT, f"/api{CHAT}"):
        assert set(client.post(path, json={}).json()["gapclose"]) == {"reading", "flag"}
    assert not answers and client.post("/v1/completions", json={}).status_code == 403


def test_files_of_failed_and_aborted_requests_do_not_stay(file, request_of, tmp_path):
    """Old ones are removed after the next request, however it ends; those of requests in progress are not."""
    gone = time.time() - KEPT - 5

    def left(name: str) -> list[str]:
        request_of(name, 3)
        for path in tmp_path.iterdir():
            os.utime(path, (gone, gone))
        (tmp_path / "notes.txt").touch()
        os.utime(tmp_path / "notes.txt", (gone, gone))
        request_of("new", 3)
        return ["new.safetensors", "new.safetensors.lock", "notes.txt"]

    async def broken(scope, receive, send):
        raise ConnectionError("aborted")

    remaining = left("a")
    with pytest.raises(ConnectionError):
        ask(MonitorMiddleware(broken, VllmMonitor(file, load_file)), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == remaining
    left("b")
    middleware = MonitorMiddleware(served({"error": {}}, 400), VllmMonitor(file, load_file))
    middleware.begun["another"] = gone - 60
    assert ask(middleware, {})[0] == 400 and (tmp_path / "b.safetensors").exists()
    middleware.begun.clear()
    middleware.swept = 0.0
    assert ask(middleware, {})[0] == 400 and sorted(p.name for p in tmp_path.iterdir()) == remaining


def test_hidden_states_lie_where_only_their_user_can_enter(file, tmp_path, monkeypatch):
    made = private_directory(tmp_path / "made")
    assert made.stat().st_mode & 0o777 == 0o700 and private_directory(made) == made
    made.chmod(0o755)
    for start in (lambda: vllm_monitor.engine_settings(file, made), lambda: MonitorMiddleware(served({}), VllmMonitor(file), made)):
        with pytest.raises(ValueError, match=r"made has mode 0755, so that others may read"):
            start()
    made.chmod(0o700)
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(ValueError, match="link: no directory"):
        private_directory(tmp_path / "link")
    with pytest.raises(ValueError, match="does not exist"):
        private_directory(tmp_path / "no" / "where")
    monkeypatch.setattr(os, "getuid", lambda: made.stat().st_uid + 1)
    with pytest.raises(ValueError, match="belongs to user"):
        private_directory(made)


def test_the_middleware_takes_its_monitor_from_the_environment(file, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(ValueError, match="set the environment variable GAPCLOSE_MONITOR"):
        MonitorMiddleware(served({}))
    file.save(tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert MonitorMiddleware(served({})).monitor.file.probe.layers == (5, 3)
