"""What one process of two cannot observe ends both, in the same words, and leaves no manifest over what is missing."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import nn
from torch.multiprocessing.spawn import start_processes

from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.observe import extract as module
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import observe
from gapclose.observe.request import ObservationRequest

BATCHES = 6


def items() -> ItemSet:
    options = [Option(text="A", concept="a")]
    one = [Item(id=str(n), clip="-", split="-", modality="-", messages=[], options=options) for n in range(BATCHES)]
    return ItemSet(root=Path(), name="-", concepts=("a",), alarm=(), items=tuple(one))


def child(rank: int, port: int, directory: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true"
    )
    PartialState._reset_state()
    PartialState(cpu=True)
    bad = {"3"}  # the second batch of rank 1

    def forward(loaded: Any, batch: Any, *rest: Any) -> dict[str, Any]:
        if batch[0].id in bad:
            raise FloatingPointError(f"item {batch[0].id!r}: scores is not finite")
        return {"ids": [i.id for i in batch], "answers": [], "scores": torch.zeros(1, 1), "layer.1": torch.full((1, 2), float(batch[0].id))}

    module._forward, module.request_of = forward, lambda *_: {"fingerprint": "a"}
    loaded: Any = SimpleNamespace(model=nn.Linear(1, 1), media=lambda items, blank: SimpleNamespace(ahead=lambda batch: None))
    asked = (
        loaded,
        items(),
        Path(directory) / "o",
        ObserveConfig(batch_size=1, shard_batches=1, share_prefix=False),
        ObservationRequest(layers=(1,)),
    )
    with pytest.raises(FloatingPointError, match=r"^item '3': scores is not finite$"):
        observe(*asked)
    assert not (asked[2] / "manifest.json").exists()
    bad.clear()
    found = observe(*asked)
    assert found.residuals[1][:, 0].tolist() == list(range(BATCHES))
    torch.distributed.destroy_process_group()


def test_a_residual_that_is_not_finite_in_one_process_ends_both_and_the_next_start_goes_on(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start_processes(child, (port, str(tmp_path)), nprocs=2, start_method="fork")
