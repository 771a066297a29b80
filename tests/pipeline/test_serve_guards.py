"""The endpoint refuses what it should not answer, before the model runs. No model is needed here."""

from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the endpoint needs FastAPI (the extra `serve`)")
pytest.importorskip("httpx", reason="Starlette's test client needs it (the extra `dev`)")

from starlette.testclient import TestClient

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
