"""The endpoint refuses what it should not answer, before the model runs. No model is needed here."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

pytest.importorskip("fastapi", reason="the endpoint needs FastAPI (the extra `serve`)")
pytest.importorskip("httpx", reason="Starlette's test client needs it (the extra `dev`)")

from starlette.testclient import TestClient

from gapclose.pipeline.chat_requests import read_request
from gapclose.pipeline.chat_server import Limits, chat_app
from gapclose.pipeline.monitor_results import MonitoredAnswer
from gapclose.pipeline.token_recorder import TokenRecorder

PATH, ASK = "/v1/chat/completions", {"model": "digits", "messages": [{"role": "user", "content": "Is it odd?"}]}
ANSWER = MonitoredAnswer(reading=0.25, flag=False, concepts={}, text="odd", option=None, disagrees=None)


def client(answer=lambda *_: ANSWER) -> TestClient:
    """A client of a server whose model gives one answer, or raises an error."""
    made = {"name": "digits", "limits": Limits(seconds=10, tokens=8, megabytes=1), "answer": answer}
    served = SimpleNamespace(**made, recorder=lambda request, heard: TokenRecorder(None, (), None, heard))
    return TestClient(chat_app(served), base_url="http://localhost:8000")


def test_a_stream_that_is_not_the_answer_ends_with_an_error():
    def answer(request, recorder, deadline):
        recorder.finish("do ")
        recorder.finish("do'do")

    said = client(answer).post(PATH, json={**ASK, "stream": True}).text
    assert '"content": "do "' in said and "ask for it without `stream`" in said and '"code": "500"' in said and "[DONE]" not in said


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"content-type": "text/plain"}, 415, "'text/plain'; send application/json"),
        ({"content-type": ""}, 415, "send application/json"),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200, None),
        ({"origin": "https://example.org"}, 403, "'https://example.org' is foreign to this server (localhost:8000)"),
        ({"origin": "null"}, 403, "'null' is foreign"),
        ({"origin": "http://localhost:8001"}, 403, "is foreign"),
        ({"origin": "http://localhost:8000"}, 200, None),
    ],
)
def test_other_web_pages_cannot_ask(headers, status, message):
    answer = client().post(PATH, json=ASK, headers=headers)
    assert answer.status_code == status and (message is None or message in answer.json()["error"]["message"])


TEXT = {"type": "text", "text": "a" * 100}
OPTION = {"text": "odd", "concept": "standard"}


def encoded(write) -> str:
    """A file in base64."""
    file = io.BytesIO()
    write(file)
    return base64.b64encode(file.getvalue()).decode()


def picture(width: int, height: int, form: str = "PNG") -> dict:
    """A part with a picture of one colour, which takes few bytes."""
    data = encoded(lambda file: Image.new("1" if form == "PNG" else "L", (width, height)).save(file, form))
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def sound(seconds: int) -> dict:
    """A part with a sound of 100 samples a second."""
    noise = np.random.default_rng(0).normal(0, 0.1, 100 * seconds)
    data = encoded(lambda file: soundfile.write(file, noise, 100, format="WAV", subtype="PCM_U8"))
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([picture(10_000, 6_500)] * 2, None, "130,000,000 pixels in its pictures, and 120,000,000 are taken; scale them down"),
        ([sound(2_000)] * 2, None, "4,000 seconds of sound, and 3,600 are taken; cut them"),
        ([picture(2, 2)] * 65, None, "65 pictures and sounds, and 64 are taken; send fewer"),
        ([TEXT] * 1_001, None, "1,001 content parts, and 1,000 are taken; join the texts"),
        ([{"type": "text", "text": "a" * 1_000_001}], None, "1,000,001 characters of text, and 1,000,000 are taken; shorten it"),
        ([TEXT], [{"text": "a" * 999_900, "concept": "b"}], "1,000,001 characters of text"),
        ([TEXT], [OPTION] * 101, "gapclose.options: List should have at most 100 items"),
        ([picture(2, 2, "ICO")], None, "image-0: the image cannot be decoded as one of .*; write it as PNG"),
    ],
    ids=["pixels", "seconds", "media", "parts", "characters", "option", "options", "format"],
)  # fmt: skip
def test_a_request_that_would_fill_the_memory_is_refused(tmp_path, parts, options, message):
    body = {**ASK, "messages": [{"role": "user", "content": parts}], "gapclose": {"options": options}}
    with pytest.raises(ValueError, match=message):
        read_request(json.dumps(body).encode()).conversation(tmp_path)


def test_a_large_request_within_the_limits_is_taken(tmp_path):
    parts = [picture(10_000, 5_500), picture(10_000, 5_500), sound(1_000), *[TEXT] * 900]
    request = read_request(json.dumps({**ASK, "messages": [{"role": "user", "content": parts}]}).encode())
    assert len(request.conversation(tmp_path)[0]["content"]) == 903
