"""Weights & Biases as a service: its mode, whether it can be reached, and names as it takes them. Nothing here ever waits longer than a bound."""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gapclose.core.imports import require

LONGEST, NOT_IN_PROJECTS = 128, "/\\#?%:"
"""characters of a name that the service takes, and those that a project's may not have"""
MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""values of WANDB_MODE, and what they are"""
SECONDS = 10.0
"""for the service to answer at all"""
START_SECONDS, FINISH_SECONDS = 30.0, 600.0
"""for a run to be opened there, and for what is left to be uploaded at its end"""

BLOCK, WHOLE, LAST = 32768, 1, 4
"""size of a block of a run's own file in bytes, and the kinds of piece that end a record"""


def service() -> Any:
    """The module ``wandb``. A variable WANDB_... that is empty counts as one that is not set: an empty WANDB_MODE is an error there.

    Raises:
        MissingPackage: when it is not installed.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]
    return require("wandb", "wandb", "tracking wandb")


def mode() -> str:
    """online, offline or disabled.

    Raises:
        ValueError: for settings that wandb refuses, such as an unknown WANDB_MODE.
    """
    wandb, given = service(), os.environ.get("WANDB_MODE", "online")
    if given not in MODES:
        raise ValueError(f"WANDB_MODE is {given!r}; choose one of {list(MODES)}")
    return MODES[wandb.setup().settings.mode]


def why_unreached() -> str | None:
    """Why nothing can be sent, found within :data:`SECONDS`; None where it can, or where nothing is to be sent (offline, disabled)."""
    try:
        if mode() != "online":
            return None
        settings = service().setup().settings
        if not _has_key(settings):
            return f"there is no API key for {settings.base_url}; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
        reason = within(lambda: _answers(settings), SECONDS)
    except Exception as error:  # whatever its settings or the network do: the caller only warns
        reason = in_one_line(error)
    return reason and f"Weights & Biases cannot be reached: {reason}"


def _has_key(settings: Any) -> bool:
    """Whether wandb finds a key by itself; else it would ask for one, and wait, on a terminal."""
    if settings.api_key or os.environ.get("WANDB_API_KEY") or settings.identity_token_file:
        return True
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in files):
        if path.is_file() and netrc.netrc(path).authenticators(urlsplit(settings.base_url).hostname or ""):
            return True
    return False


def _answers(settings: Any) -> None:
    """Ask for any answer at all. Raises: requests.RequestException where none comes."""
    import requests

    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = {scheme: proxy for scheme, proxy in given.items() if proxy}
    requests.head(settings.base_url, timeout=SECONDS, proxies=proxies or None, verify=not settings.insecure_disable_ssl)


def within(job: Callable[[], None], seconds: float) -> str | None:
    """Run ``job`` for at most so many seconds; why it failed, or None. One that hangs, in a name server for example, is left behind."""
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


def in_one_line(error: Exception) -> str:
    """An error's message without its line breaks, and not at any length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def run_name(directory: Path) -> str:
    """The name of a run directory, as far as a run's may be long."""
    return _printable(directory)[:LONGEST]


def artifact_name(directory: Path) -> str:
    """``NAME-adapter`` with the run directory's name, as an artifact may be called.

    Every character but letters and digits of ASCII, ``-``, ``_`` and ``.`` becomes ``-``. A name that is changed so, or cut, ends in six digits
    of the SHA-256 of what it was, so that two directories have two artifacts.
    """
    name, most = _printable(directory), LONGEST - len("-adapter")
    fit = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    if fit != name or len(fit) > most:
        fit = f"{fit[: most - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return f"{fit}-adapter"


def _printable(directory: Path) -> str:
    """The name, without what is no text; ``run`` for a root directory."""
    name = directory.resolve().name or "run"
    return "".join(c if c.isprintable() else "-" for c in name.encode("utf-8", "replace").decode())


def rows_written(directory: Path, run_id: str) -> list[dict[str, Any]]:
    """The rows that a run's own files hold, in order: what reached the disk before a process was killed, uploaded or not.

    The client keeps every row in ``wandb/*-ID/run-ID.wandb``: a head of 7 bytes, then log blocks of 32 KiB as LevelDB has them, each piece with a
    head of its own (checksum, length, kind), protobuf records inside. A last piece that a kill cut off is left out.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in sorted(directory.glob(f"wandb/*-{run_id}/run-{run_id}.wandb")):
        data, place, body = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            left = BLOCK - place % BLOCK
            if left < 7:  # too little for a head: padding
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
                if record.WhichOneof("record_type") == "history":
                    rows.append({e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in record.history.item})
    return rows
