"""The monitor's reading for vLLM, from the hidden states that vLLM itself extracts.

vLLM's *hidden state extraction* writes the residual stream of chosen layers at every token of a
prompt, and names the file in the ``kv_transfer_params`` of the response. Layer *l* is counted as
here: the output of decoder block *l*, from 1. This module names the options, reads such a file, and
adds the reading to the responses of ``vllm serve`` (its option ``--middleware``). It uses no internal
interface of vLLM.

    python -m gapclose.pipeline.vllm_monitor runs/digits/adapter/monitor    # prints the options

Not tried with a real vLLM: the tests use files and responses of the form that its documentation
describes (docs/how-to/serving.md).

Shapes: T prompt tokens, L layers of the probe, D width.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from gapclose.evaluation.monitor_file import MonitorFile
from gapclose.pipeline.monitor_results import Reading, readings_of
from gapclose.pipeline.vllm_requests import LIMIT, fault, most_bytes, whole_body
from gapclose.pipeline.vllm_storage import STORAGE, SWEPT, default_storage, private_directory, sweep

FOLDER = "GAPCLOSE_MONITOR"
"""environment variable with the directory of the monitor, for ``vllm serve``"""
CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector"
"""module of vLLM whose ``load_hidden_states`` waits for a file and reads it"""
WATCHED = "/v1/chat/completions"
"""the endpoint whose answers are read"""
HARMLESS = ("/tokenize", "/detokenize", "/ping")
"""endpoints that take a POST and generate nothing; every other POST is refused, since vLLM has many
that generate"""

Load = Callable[[str], Mapping[str, torch.Tensor]]
"""reads a file of vLLM: ``hidden_states`` (T, L, D) and ``token_ids`` (T,)"""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def engine_settings(file: MonitorFile, storage: str | Path | None = None) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` with which it extracts what the probe reads.

    Args:
        storage: directory for the files, best in memory; it is made. None:
            :func:`gapclose.pipeline.vllm_storage.default_storage`.

    Raises:
        ValueError: when others may enter the directory.
    """
    folder = private_directory(default_storage() if storage is None else Path(storage))
    layers = {"eagle_aux_hidden_state_layer_ids": sorted(file.probe.layers)}
    return {
        "enable_chunked_prefill": False,
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": layers},
        },
        "kv_transfer_config": {
            "kv_connector": "ExampleHiddenStatesConnector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(folder)},
        },
    }


def serve_options(file: MonitorFile, storage: str | Path | None = None) -> str:
    """The options of ``vllm serve``, for a shell; see :func:`engine_settings`."""
    settings = engine_settings(file, storage)
    words = ["--no-enable-chunked-prefill", "--middleware", "gapclose.pipeline.vllm_monitor.MonitorMiddleware"]
    for name in ("speculative_config", "kv_transfer_config"):
        words += [f"--{name}", json.dumps(settings[name])]
    return shlex.join(words)


def load_hidden_states(path: str) -> Mapping[str, torch.Tensor]:
    """Read a file by vLLM's own function, which waits until it is written."""
    return importlib.import_module(CONNECTOR).load_hidden_states(path)


class VllmMonitor:
    """Reads the requests of a vLLM engine that has :func:`engine_settings`.

    The base model of the engine is not checked against the monitor's, since vLLM does not give its
    weights away.
    """

    def __init__(self, file: MonitorFile, load: Load = load_hidden_states) -> None:
        self.file, self.load = file, load

    def read(self, kv_transfer_params: Mapping[str, Any] | None, prompt_tokens: int | None = None) -> Reading:
        """Read one request at the last token of its prompt, and remove its file.

        Args:
            kv_transfer_params: of the request's output.
            prompt_tokens: number of tokens of the prompt, which the file must have; None: not compared.

        Raises:
            ValueError: when there is no file, or it holds something else.
            FloatingPointError: when a residual is not finite.
        """
        path = kv_transfer_params.get("hidden_states_path") if isinstance(kv_transfer_params, Mapping) else None
        if not isinstance(path, str):
            raise ValueError(
                "vLLM names no file of hidden states (kv_transfer_params.hidden_states_path); start it with the options of serve_options"
            )
        try:
            found = self.load(path)
            tokens = len(found["token_ids"])
            if prompt_tokens is not None and prompt_tokens != tokens:
                raise ValueError(
                    f"{path} has the hidden states of {tokens} tokens, and the prompt has {prompt_tokens}; its end is not there"
                )
            residuals = self._last(found["hidden_states"], tokens, path)
        finally:
            for place in (Path(path), Path(f"{path}.lock")):
                place.unlink(missing_ok=True)
        return readings_of(self.file, residuals, [path])[0]

    def _last(self, states: torch.Tensor, tokens: int, path: str) -> dict[int, torch.Tensor]:
        """Residuals by layer (1, D) at the last prompt token. Raises: ValueError."""
        layers, width = sorted(self.file.probe.layers), len(self.file.probe.mean) // len(self.file.probe.layers)
        if not tokens or tuple(states.shape) != (tokens, len(layers), width):
            raise ValueError(
                f"{path}: hidden states of shape {list(states.shape)} for {tokens} prompt tokens; the probe reads layers {layers} of width {width}"
            )
        return {layer: states[-1:, k].float() for k, layer in enumerate(layers)}


class MonitorMiddleware:
    """Adds ``gapclose: {reading, flag}`` to the chat completions of ``vllm serve``.

    The monitor is that of the directory in :data:`FOLDER`. Nothing generated goes out unread: a
    response without a reading becomes an error, and so does every other request that may generate.
    It runs before vLLM checks its key. It reads no request beyond the limit of
    :func:`gapclose.pipeline.vllm_requests.most_bytes`.

    Args:
        storage: directory in which vLLM leaves hidden states. None: that in the environment variable
            :data:`gapclose.pipeline.vllm_storage.STORAGE`, else the default.

    Raises:
        ValueError: when no monitor is named, others may enter the directory, or the limit is no size.
    """

    def __init__(self, app: Any, monitor: VllmMonitor | None = None, storage: Path | None = None) -> None:
        self.app = app
        self.monitor = monitor or VllmMonitor(_monitor_file(os.environ.get(FOLDER)))
        named = os.environ.get(STORAGE)
        self.storage = private_directory(storage or (Path(named) if named else default_storage()))
        self.most, self.begun, self.swept = most_bytes(), dict[object, float](), 0.0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "no readings over websockets"})
        elif scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and (path := _route_path(scope)) in (WATCHED, *HARMLESS):
            await (self._read if path == WATCHED else self.app)(scope, receive, send)
        else:
            await _answer(send, 403, _error(f"what {scope['path']} answers would have no reading; ask {WATCHED}", "invalid_request_error"))

    async def _read(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a chat completion with its reading, and remove what requests have left behind."""
        body = await whole_body(receive, self.most)
        if body is None:
            large = f"the request is larger than {self.most / 1e6:g} MB; send smaller media, or start vLLM with a larger {LIMIT}"
            await _answer(send, 413, _error(large, "invalid_request_error"))
            return
        if found := fault(body):
            await _answer(send, 400, _error(found, "invalid_request_error"))
            return
        me = object()
        self.begun[me] = time.time()
        try:
            head, content = await self._ask(scope, body, receive)
            if head.get("status", 0) >= 400:
                await send({**head, "type": "http.response.start"})
                await send({"type": "http.response.body", "body": content})
                return
            try:
                if head.get("status") != 200:
                    raise ValueError(f"vLLM answered with status {head['status']}" if head else "vLLM gave no answer")
                answer = await asyncio.to_thread(self._with_reading, content)
            except (ValueError, FloatingPointError, OSError, KeyError, RecursionError, SafetensorError) as error:
                await _answer(send, 500, _error(f"the answer has no reading: {error}", "server_error"))
                return
            kept = [(name, value) for name, value in head.get("headers", ()) if name.lower() not in (b"content-length", b"content-type")]
            await _answer(send, 200, answer, kept)
        finally:
            del self.begun[me]
            self._sweep()

    async def _ask(self, scope: Message, body: bytes, receive: Receive) -> tuple[Message, bytes]:
        """Start and content of vLLM's response; the start is empty where there was none."""
        rest, head, content = [{"type": "http.request", "body": body, "more_body": False}], dict[str, Any](), bytearray()

        async def again() -> Message:
            return rest.pop() if rest else await receive()

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
            elif message["type"] == "http.response.body":
                content.extend(message.get("body", b""))

        await self.app(scope, again, keep)
        return head, bytes(content)

    def _with_reading(self, content: bytes) -> dict[str, Any]:
        """The answer with its reading. Raises: as :meth:`VllmMonitor.read`."""
        answer = json.loads(content)
        if not isinstance(answer, dict):
            raise ValueError(f"vLLM's answer is {content[:40].decode(errors='replace')!r}, not an object")
        usage = answer.get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        reading = self.monitor.read(answer.pop("kv_transfer_params", None), tokens)  # removes the file in any case
        if tokens is None:
            raise ValueError("vLLM does not say how many tokens the prompt has (usage.prompt_tokens)")
        return {**answer, "gapclose": {"reading": reading.reading, "flag": reading.flag}}

    def _sweep(self) -> None:
        """Remove files that are left over, now and then."""
        if time.time() - self.swept >= SWEPT:
            self.swept = time.time()
            sweep(self.storage, min(self.begun.values(), default=None))


def _route_path(scope: Message) -> str:
    """The path by which a request is routed: without ``root_path``, as Starlette does it."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind}}


def _monitor_file(folder: str | None) -> MonitorFile:
    """Load the monitor. Raises: ValueError."""
    if not folder:
        raise ValueError(f"set the environment variable {FOLDER} to the directory of a monitor, such as runs/digits/adapter/monitor")
    return MonitorFile.load(Path(folder))


async def _answer(send: Send, status: int, value: Mapping[str, Any], more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    content = json.dumps(value).encode()
    headers = [*more, (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print the options with which `vllm serve` gives the reading of a monitor.")
    parser.add_argument("folder", type=Path, help="directory of the monitor, such as runs/digits/adapter/monitor")
    parser.add_argument(
        "--storage",
        type=Path,
        default=default_storage(),
        help=f"directory for hidden states, best in memory, which is made for you alone (default: %(default)s); name it in {STORAGE} as well",
    )
    args = parser.parse_args(arguments)
    print(serve_options(MonitorFile.load(args.folder), args.storage))


if __name__ == "__main__":
    main()
