"""An OpenAI-compatible endpoint for one model with its monitor. One answer is written at a time.

Only :mod:`gapclose.pipeline.serve` imports this module: it needs the extra ``serve``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gapclose.core.logging import get_logger
from gapclose.models.loading import LoadedModel
from gapclose.models.structure import unwrap
from gapclose.pipeline.chat_requests import ChatRequest, read_request
from gapclose.pipeline.monitor import Monitor
from gapclose.pipeline.monitor_results import MonitoredAnswer
from gapclose.pipeline.token_recorder import Revised, Stopped, TokenRecorder

logger = get_logger(__name__)


class Refused(ValueError):
    """The request is at fault."""


class Busy(RuntimeError):
    """The model had no time for this request."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take."""

    seconds: float
    """from the arrival of the request to the last token"""
    tokens: int
    """length limit of an answer, and its default"""
    megabytes: float
    """of the request, media included"""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model with its monitor."""

    name: str
    loaded: LoadedModel
    monitor: Monitor
    limits: Limits

    def recorder(self, request: ChatRequest, heard: Any) -> TokenRecorder:
        """A recorder for the answer of a request."""
        ends = unwrap(self.loaded.model).generation_config.eos_token_id
        top = request.top_logprobs or 0 if request.logprobs else None
        return TokenRecorder(self.loaded.tokenizer, {ends} if isinstance(ends, int) else {*(ends or ())}, top, heard)

    def answer(self, request: ChatRequest, recorder: TokenRecorder, deadline: float) -> MonitoredAnswer:
        """Answer a request, until ``deadline`` (monotonic seconds) at most.

        Raises:
            Refused: when the conversation cannot be put to the model.
            Busy: when the deadline has passed.
            Stopped: when nobody waits any more.
        """
        left = deadline - time.monotonic()
        if recorder.stopped:
            raise Stopped
        if left <= 0:
            raise Busy(f"other answers took the {self.limits.seconds:g} s of this request; ask again later")
        if request.seed is not None:
            torch.manual_seed(request.seed)
        with TemporaryDirectory(prefix="gapclose-") as folder:
            try:
                answer = self.monitor.generate(
                    self.loaded.model,
                    self.loaded.processor,
                    request.conversation(Path(folder)),
                    options=request.gapclose.options,
                    max_new_tokens=request.limit(self.limits.tokens),
                    root=folder,
                    streamer=recorder,
                    logits_processor=[recorder],
                    max_time=left,
                    **request.sampling(),
                )[0]
            except ValueError as error:
                raise Refused(str(error).replace(f"{folder}/", "")) from error
        recorder.finish(answer.text)
        return answer


def chat_app(served: ServedModel, *, key: str | None = None, hosts: list[str] | None = None) -> FastAPI:
    """Make the application.

    Args:
        key: bearer key that requests to ``/v1`` must show; None: none.
        hosts: names in the header ``Host`` that are answered; None: every name. A server for this
            machine alone thus refuses web pages that rebind their name to it.
    """
    app = FastAPI(title="gapclose", docs_url=None, redoc_url=None, openapi_url=None)
    worker = ThreadPoolExecutor(1, "model")
    created, limits = int(time.time()), served.limits
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    def authorised(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if key and not (hmac.compare_digest(given.strip().encode(), key.encode()) and scheme.lower() == "bearer"):
            raise HTTPException(401, "the key is wrong or missing; send the server's GAPCLOSE_API_KEY as a bearer token")

    guards = [Depends(from_here), Depends(authorised)]

    @app.exception_handler(AnyHTTPException)
    async def told(request: Request, error: AnyHTTPException) -> Response:
        return JSONResponse(fault(error.status_code, str(error.detail)), error.status_code)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", dependencies=guards)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": served.name, "object": "model", "created": created, "owned_by": "gapclose"}]}

    @app.post("/v1/chat/completions", dependencies=guards)
    async def complete(request: Request) -> Response:
        deadline, loop = time.monotonic() + limits.seconds, asyncio.get_running_loop()
        asked = await read(request, limits)
        if asked.model != served.name:
            raise HTTPException(404, f"there is no model {asked.model!r}; this server has {served.name!r}")
        if asked.limit(limits.tokens) > limits.tokens:
            raise HTTPException(
                400, f"an answer may have {limits.tokens} tokens at most; ask for fewer, or start the server with more (--tokens)"
            )
        events = asyncio.Queue[tuple[str, list[dict[str, Any]]] | None]()
        heard = (lambda *piece: loop.call_soon_threadsafe(events.put_nowait, piece)) if asked.stream else None
        recorder = served.recorder(asked, heard)
        work = loop.run_in_executor(worker, served.answer, asked, recorder, deadline)
        reply = Reply(asked, recorder)
        if not asked.stream:
            gone = asyncio.ensure_future(request.receive())  # after the body: that the client has gone
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                recorder.stopped = not work.done()
                return JSONResponse(reply.whole(await caught(work)))
            finally:
                recorder.stopped = True
                gone.cancel()

        def finished(_: asyncio.Future[MonitoredAnswer]) -> None:
            events.put_nowait(None)
            if not work.cancelled():
                work.exception()  # seen, also where the client has gone

        work.add_done_callback(finished)
        try:
            first = await events.get()
            if first is None:
                await caught(work)  # an error before the first piece has a status of its own
        except BaseException:
            recorder.stopped = True
            raise

        async def stream() -> AsyncIterator[str]:
            piece = first
            try:
                while piece is not None:
                    yield event(reply.piece(*piece))
                    piece = await events.get()
                for last in reply.last(await caught(work)):
                    yield event(last)
                yield "data: [DONE]\n\n"
            except HTTPException as error:
                yield event(fault(error.status_code, str(error.detail)))
            finally:
                recorder.stopped = True

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    return app


async def from_here(request: Request) -> None:
    """Refuse the pages of other sites, which a browser lets ask this server. Raises: HTTPException."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise HTTPException(403, f"the page of {origin!r} is foreign to this server ({host}); ask from a program, not from a web page")


async def read(request: Request, limits: Limits) -> ChatRequest:
    """Read and parse the body, no further than the limit. Raises: HTTPException."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":  # a browser asks first before it sends this to another site
        raise HTTPException(415, f"the content type of the request is {kind!r}; send application/json")
    most, body = int(limits.megabytes * 1e6), bytearray()
    large = HTTPException(
        413, f"the request is larger than {limits.megabytes:g} MB; send smaller media, or start the server with more (--megabytes)"
    )
    if (stated := request.headers.get("content-length", "0")).isdecimal() and int(stated) > most:
        raise large
    try:
        async with asyncio.timeout(limits.seconds):
            async for block in request.stream():
                body += block
                if len(body) > most:
                    raise large
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not arrive within {limits.seconds:g} s") from error
    try:
        return read_request(bytes(body))
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


async def caught(work: asyncio.Future[MonitoredAnswer]) -> MonitoredAnswer:
    """The answer. Raises: HTTPException with the status for an error of the model's thread."""
    try:
        return await work
    except Refused as error:
        raise HTTPException(400, str(error)) from error
    except (Busy, Stopped) as error:
        raise HTTPException(503, str(error) or "the request was given up") from error
    except Revised as error:
        raise HTTPException(500, str(error)) from error
    except Exception as error:
        logger.exception("an answer failed")
        raise HTTPException(500, "the answer failed; the server's log has the reason") from error


def fault(status: int, message: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def event(data: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


class Reply:
    """The bodies of one answer in OpenAI's form, with ``gapclose`` in its choice."""

    def __init__(self, request: ChatRequest, recorder: TokenRecorder) -> None:
        self.request, self.recorder, self.begun = request, recorder, False
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}

    def whole(self, answer: MonitoredAnswer) -> dict[str, Any]:
        """The answer as one body."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(self.recorder.logprobs), **self._end(answer)}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def piece(self, text: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        """A piece of a stream."""
        role = {} if self.begun else {"role": "assistant"}
        self.begun = True
        return self._chunk([{"index": 0, "delta": {**role, "content": text}, "logprobs": self._logprobs(tokens), "finish_reason": None}])

    def last(self, answer: MonitoredAnswer) -> list[dict[str, Any]]:
        """The end of a stream: reading and reason, and usage where the request asks for it."""
        role = {} if self.begun else {"role": "assistant", "content": ""}
        chunks = [self._chunk([{"index": 0, "delta": role, "logprobs": None, **self._end(answer)}])]
        if self.request.stream_options and self.request.stream_options.include_usage:
            chunks.append({**self._chunk([]), "usage": self._usage()})
        return chunks

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk", "choices": choices}

    def _end(self, answer: MonitoredAnswer) -> dict[str, Any]:
        reading = {"reading": answer.reading, "flag": answer.flag, "disagrees": answer.disagrees}
        return {"finish_reason": "stop" if self.recorder.ended else "length", "gapclose": reading}

    def _logprobs(self, tokens: list[dict[str, Any]]) -> dict[str, Any] | None:
        return None if self.recorder.top is None else {"content": tokens, "refusal": None}

    def _usage(self) -> dict[str, int]:
        asked, said = self.recorder.prompt_tokens, len(self.recorder.tokens)
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
