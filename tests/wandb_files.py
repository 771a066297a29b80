"""What an offline run of Weights & Biases was given, read back from its own file."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def stored(path: Path) -> Iterator:
    """The protobuf records of a .wandb file: a 7-byte head, then LevelDB log blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, place, body = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little for a head: padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])  # kind: 1 whole, 2 first, 3 middle, 4 last
        body += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(body)
            body = b""
            yield record


def finished(directory: Path) -> tuple[Path, list[tuple[str, Any]]]:
    """The file of a run's one offline run with its records by kind; wandb's service may write the last block after ``finish``."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):
        records = [(r.WhichOneof("record_type"), r) for r in stored(path)]
        if records and records[-1][0] == "exit":
            return path, records
        time.sleep(0.1)
    raise AssertionError(f"{path} does not end with the exit record")


def values(entries) -> dict:
    """Key -> value of the entries of a history, configuration or summary."""
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}
