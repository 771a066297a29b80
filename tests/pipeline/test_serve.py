"""``gapclose serve`` over real HTTP, asked by OpenAI's own client: the model's answers, with the monitor's reading."""

import base64
import socket
import sys
import threading

import numpy as np
import pytest
import torch

from gapclose import Monitor
from gapclose.models.config import ModelConfig
from gapclose.pipeline.cli import main
from gapclose.training.lora import load_adapter

pytest.importorskip("fastapi", reason="the endpoint needs FastAPI (the extra `serve`)")
httpx = pytest.importorskip("httpx", reason="OpenAI's client brings it (the extra `dev`)")
uvicorn = pytest.importorskip("uvicorn", reason="the endpoint needs uvicorn (the extra `serve`)")
openai = pytest.importorskip("openai", reason="the endpoint is asked with OpenAI's client (the extra `dev`)")

KEY = "a key of the test"
SAY = [{"role": "user", "content": "Is it odd?"}]


@pytest.fixture(scope="module")
def address(tiny_run):
    """The URL of the command, which runs in a thread of this process."""
    servers, started = [], threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            servers.append((self, sockets[0].getsockname()[1]))
            started.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", Server)
        patch.setenv("GAPCLOSE_API_KEY", KEY)
        limits = ["--tokens", "8", "--megabytes", "0.5"]
        thread = threading.Thread(target=main, args=(["serve", str(tiny_run), "--port", "0", *limits],), daemon=True)
        thread.start()
        assert started.wait(120)
        server, port = servers[0]
        yield f"http://127.0.0.1:{port}/v1"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=address, api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def question(digits):
    """A question about a picture and a sound, as an item has it and as OpenAI has it; with its options."""
    item = next(i for i in digits if {kind for kind, _ in i.media} == {"image", "audio"} and i.purpose == "gap")

    def part(of):
        if of["type"] == "text":
            return of
        data = base64.b64encode((digits.root / of["path"]).read_bytes()).decode()
        if of["type"] == "image":
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    messages = [{**m, "content": m["content"] if isinstance(m["content"], str) else [*map(part, m["content"])]} for m in item.messages]
    return item, messages


def test_answers_and_readings_are_those_of_the_monitor(client, tiny_run, tiny_checkpoint, digits, question):
    item, messages = question
    loaded = load_adapter(ModelConfig(path=str(tiny_checkpoint), dtype="float32"), tiny_run / "adapter")
    options = [{"text": o.text, "concept": o.concept} for o in item.options]
    monitor, ask = Monitor.from_pretrained(tiny_run), {"model": client.models.list().data[0].id, "messages": messages, "max_tokens": 4}
    wanted = monitor.generate(loaded.model, loaded.processor, item.messages, options=options, max_new_tokens=4, root=digits.root)[0]
    read = monitor.check(loaded.model, loaded.processor, item.messages, root=digits.root)[0]
    found = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3, extra_body={"gapclose": {"options": options}})
    choice, said = found.choices[0], found.choices[0].gapclose
    assert choice.message.content == wanted.text and (said["flag"], said["disagrees"]) == (wanted.flag, wanted.disagrees)
    assert abs(said["reading"] - wanted.reading) < 1e-6 and abs(said["reading"] - read.reading) < 1e-5
    tokens = choice.logprobs.content
    assert len(tokens) == found.usage.completion_tokens - (choice.finish_reason == "stop") and all(len(t.top_logprobs) == 3 for t in tokens)
    assert all(t.logprob == t.top_logprobs[0].logprob for t in tokens), "greedy"
    inputs = loaded.prompts([item], loaded.media(digits))
    assert found.usage.prompt_tokens == inputs["input_ids"].numel()
    with torch.no_grad():
        first = loaded.model(**inputs).logits[0, -1].float().log_softmax(-1)
    assert np.allclose([t.logprob for t in tokens[0].top_logprobs], first.topk(3).values.numpy(), atol=1e-4)
    bare = client.chat.completions.create(**ask, stop=None).choices[0]
    assert bare.message.content == wanted.text and bare.gapclose["disagrees"] is None and bare.logprobs is None


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}])
def test_a_stream_says_what_one_answer_says(client, tiny_run, question, sampling):
    ask = {"model": tiny_run.name, "messages": question[1], "logprobs": True, "top_logprobs": 2, **sampling}
    whole = client.chat.completions.create(**ask)
    chunks = [*client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})]
    pieces, (end, usage) = [c.choices[0] for c in chunks[:-2]], chunks[-2:]
    assert "".join(p.delta.content for p in pieces) == whole.choices[0].message.content and len(pieces) > 1
    assert [t for p in pieces for t in p.logprobs.content] == whole.choices[0].logprobs.content
    assert end.choices[0].gapclose == whole.choices[0].gapclose and end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.usage == whole.usage and pieces[0].delta.role == "assistant"


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ({"model": "gpt-4o"}, 404, "this server has"),
        ({"image": "https://example.org/a.png"}, 400, "messages.0.content.1.image_url.* is not fetched"),
        ({"image": "file:///etc/hosts"}, 400, "is not fetched"),
        ({"image": "data:image/png;base64,@@"}, 400, "base64 is damaged"),
        ({"image": "data:image/png;base64,AAAA"}, 400, "^(?!.*/tmp).*image-0: .*the image cannot be decoded"),
        ({"audio": base64.b64encode(b"#EXTM3U\nhttp://x/").decode()}, 400, "by its first bytes"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "path": "/etc/hosts"}]}]}, 400, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
        ({"messages": []}, 400, "messages"),
        ({"max_tokens": 9}, 400, "8 tokens at most"),
        ({"n": 2}, 400, "n: "),
        ({"seed": 2**64}, 400, "seed: "),
        ({"messages": [{"role": "user", "content": "odd " * 100_000}]}, 400, "its prompt has .* tokens, and the model has 512 positions"),
        ({"messages": [{"role": "user", "content": "a<|im_end|>"}]}, 400, "a special token of the model"),
        ({"stop": ["a"]}, 400, "stop: "),
        ({"extra_body": {"gapclose": {"options": [{"text": "a", "concept": "odd"}]}}}, 400, "at least two"),
        ({"messages": [{"role": "user", "content": "a" * 500_000}]}, 413, "larger than 0.5 MB"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_refused_with_a_reason(client, tiny_run, given, status, message, stream):
    given, parts = dict(given), [{"type": "text", "text": "Is it odd?"}]
    if "image" in given:
        parts.append({"type": "image_url", "image_url": {"url": given.pop("image")}})
    if "audio" in given:
        parts.append({"type": "input_audio", "input_audio": {"data": given.pop("audio"), "format": "mp3"}})
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.chat.completions.create(
            **{"model": tiny_run.name, "messages": [{"role": "user", "content": parts}], "stream": stream, **given}
        )
    assert caught.value.status_code == status


def test_only_the_key_opens_it(address, tiny_run):
    with pytest.raises(openai.AuthenticationError, match="GAPCLOSE_API_KEY"):
        openai.OpenAI(base_url=address, api_key="another", max_retries=0).chat.completions.create(model=tiny_run.name, messages=SAY)
    assert [
        httpx.get(f"{address}/models", headers=h).status_code for h in ({}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY}"})
    ] == [401, 401, 200]
    health = address.replace("/v1", "/health")
    assert httpx.get(health).json() == {"status": "ok"}
    assert httpx.get(health, headers={"Host": "example.org"}).status_code == 400, "a name that was rebound to this machine"
    assert httpx.get(f"{address}/no").json()["error"]["type"] == "invalid_request_error"


def test_a_body_of_no_stated_length_is_cut_off_too(address):
    blocks = (b"a" * 100_000 for _ in range(6))
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    assert httpx.post(f"{address}/chat/completions", content=blocks, headers=headers).status_code == 413


def test_answers_at_once_wait_for_each_other(client, tiny_run):
    """Readings of a model that two threads ran at once would mix."""
    asked = [[{"role": "user", "content": f"Is it {n}?"}] for n in range(4)]
    alone = [client.chat.completions.create(model=tiny_run.name, messages=m).choices[0] for m in asked]
    found = dict[int, object]()

    def ask(n):
        found[n] = client.chat.completions.create(model=tiny_run.name, messages=asked[n]).choices[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    assert [found[n] for n in range(4)] == alone and len({c.gapclose["reading"] for c in alone}) > 1


def test_an_answer_that_nobody_waits_for_is_given_up(address, tiny_run, monkeypatch):
    """The model's thread learns of it, whether the client wanted a stream or not."""
    from gapclose.pipeline.chat_server import ServedModel
    from gapclose.pipeline.token_recorder import Stopped

    for stream in (False, True):
        left = threading.Event()

        def answer(self, request, recorder, deadline, left=left):
            recorder.finish("a")
            while not recorder.stopped:
                left.wait(0.01)
            left.set()
            raise Stopped

        monkeypatch.setattr(ServedModel, "answer", answer)
        ask, headers = {"model": tiny_run.name, "messages": SAY, "stream": stream}, {"Authorization": f"Bearer {KEY}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/chat/completions", json=ask, headers=headers, timeout=httpx.Timeout(60, read=1))
        assert left.wait(60)


def test_a_request_that_waited_too_long_and_a_failure_have_a_status(client, tiny_run, monkeypatch):
    from gapclose.pipeline.chat_server import ServedModel

    ask, known = {"model": tiny_run.name, "messages": SAY}, ServedModel.answer
    monkeypatch.setattr(ServedModel, "answer", lambda self, request, recorder, deadline: known(self, request, recorder, 0.0))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="other answers took the 120 s") as caught:
            client.chat.completions.create(**ask, stream=stream)
        assert caught.value.status_code == 503

    def fail(self, request, recorder, deadline):
        recorder.finish("begun")
        raise RuntimeError("a detail of the machine")

    monkeypatch.setattr(ServedModel, "answer", fail)
    with pytest.raises(openai.InternalServerError, match="the answer failed; the server's log") as caught:
        client.chat.completions.create(**ask)
    assert caught.value.status_code == 500
    pieces = client.chat.completions.create(**ask, stream=True)
    assert next(pieces).choices[0].delta.content == "begun"
    with pytest.raises(openai.APIError, match="^(?!.*detail).*the answer failed"):
        next(pieces)


def test_an_address_of_ipv6_is_answered(tiny_run, monkeypatch):
    """Clients write it in brackets in the header ``Host``."""
    from starlette.testclient import TestClient

    monkeypatch.delenv("GAPCLOSE_API_KEY", raising=False)
    monkeypatch.setattr("gapclose.pipeline.serve._bind", lambda host, port: socket.socket())
    apps = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: apps.append(self.config.app))
    for host in ("::1", "0:0:0:0:0:0:0:1"):
        assert main(["serve", str(tiny_run), "--host", host]) == 0
        clients = [TestClient(apps[-1], base_url=f"http://{name}:8000") for name in ("[::1]", "[::2]", "localhost")]
        assert [client.get("/health").status_code for client in clients] == [200, 400, 200]


def test_what_cannot_be_served_is_refused_before_the_model_loads(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("GAPCLOSE_API_KEY", raising=False)
    monkeypatch.setattr("gapclose.pipeline.serve.load_run_model", lambda *_, **__: pytest.fail("loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, message in (
            ([str(tmp_path)], "no run there"),
            ([str(tiny_run), "--host", "0.0.0.0"], "set a key in the environment variable GAPCLOSE_API_KEY"),
            ([str(tiny_run), "--port", port], f"127.0.0.1:{port} cannot be used"),
            ([str(tiny_run), "--seconds", "0"], "--seconds is 0.0; it must be above 0"),
            (["--run", str(tiny_run)], "unrecognized arguments: --run"),
        ):
            assert main(["serve", *arguments]) == 2 and message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(tiny_run)]) == 2 and 'pip install "gapclose[serve]"' in capsys.readouterr().err
