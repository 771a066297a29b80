"""Weights & Biases: mode, reachability, and what its client wrote. Every wait here has a time limit."""

from __future__ import annotations

import json
import netrc
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gapclose.core.errors import in_one_line
from gapclose.core.imports import require

MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""value of WANDB_MODE -> mode"""
SECONDS = 10.0
"""time limit for any answer of the service"""
START_SECONDS, FINISH_SECONDS = 30.0, 600.0
"""time limits for opening a run, and for uploading the rest at its end"""

BLOCK, WHOLE, LAST = 32768, 1, 4
"""block size of a run's own file in bytes, and the kinds of piece that end a record"""


def service() -> Any:
    """Import ``wandb``, after removing empty WANDB_... variables: an empty WANDB_MODE is an
    error there.

    Raises:
        MissingPackage: when it is not installed.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]
    return require("wandb", "wandb", "tracking wandb")


def mode() -> str:
    """Return online, offline or disabled.

    Raises:
        ValueError: for settings that wandb refuses, such as an unknown WANDB_MODE.
    """
    wandb, given = service(), os.environ.get("WANDB_MODE", "online")
    if given not in MODES:
        raise ValueError(f"WANDB_MODE is {given!r}; choose one of {list(MODES)}")
    return MODES[wandb.setup().settings.mode]


def why_unreached() -> str | None:
    """Explain within :data:`SECONDS` why nothing can be sent; None if it can, or when offline or
    disabled."""
    try:
        if mode() != "online":
            return None
        settings = service().setup().settings
        if not _has_key(settings):
            return f"there is no API key for {settings.base_url}; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
        reason = within(lambda: _answers(settings), SECONDS)
    except Exception as error:  # any error of settings or network: the caller only warns
        reason = in_one_line(error)
    return reason and f"Weights & Biases cannot be reached: {reason}"


def _has_key(settings: Any) -> bool:
    """Return whether wandb finds a key itself; otherwise it would wait for one on a terminal."""
    if settings.api_key or os.environ.get("WANDB_API_KEY") or settings.identity_token_file:
        return True
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in files):
        if path.is_file() and netrc.netrc(path).authenticators(urlsplit(settings.base_url).hostname or ""):
            return True
    return False


def _answers(settings: Any) -> None:
    """Request any response. Raises: requests.RequestException if there is none."""
    import requests

    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = {scheme: proxy for scheme, proxy in given.items() if proxy}
    requests.head(settings.base_url, timeout=SECONDS, proxies=proxies or None, verify=not settings.insecure_disable_ssl)


def within(job: Callable[[], None], seconds: float) -> str | None:
    """Run ``job`` for at most ``seconds``; return why it failed, or None. A job that hangs (in a
    name server, for example) is abandoned."""
    found: list[str | None] = []

    def run() -> None:
        try:
            job()
            found.append(None)
        except Exception as error:
            found.append(in_one_line(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer within {seconds:g} s"


def records_written(directory: Path, run_id: str) -> Iterator[Any]:
    """Yield the protobuf records of a run's own files, in order: those that reached the disk, uploaded or not.

    The client keeps them in ``wandb/*-ID/run-ID.wandb``: a head of 7 bytes, then log blocks of
    32 KiB in LevelDB's format. Each piece has its own head (checksum, length, kind). A last piece
    that was cut off by a kill is left out.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for path in sorted(directory.glob(f"wandb/*-{run_id}/run-{run_id}.wandb")):
        data, place, body = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = BLOCK - place % BLOCK
            if left < 7:  # padding, too short for a head
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            body += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (WHOLE, LAST) and place <= len(data):
                record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
                try:
                    record.ParseFromString(body)
                except DecodeError:
                    break
                body = b""
                yield record


def row_of(record: Any) -> dict[str, Any]:
    """Return the logged values of a record; empty unless it is a row of the history."""
    if record.WhichOneof("record_type") != "history":
        return {}
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in record.history.item}
