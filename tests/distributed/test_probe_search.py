"""Two processes choose the probe that one chooses, each from its own layers, and fail together."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes

from gapclose.core.files import write_json
from gapclose.core.tensor_files import write_tensors
from gapclose.observe.store import read_observations, shard_path, write_shard
from gapclose.probes.config import ProbeConfig
from gapclose.probes.nested_cv import nested_reading
from gapclose.probes.search import choose_probe
from gapclose.training.target_rounds import choose_on_holdout

CONCEPTS, N = ("a", "b", "c"), 120
CONFIG = ProbeConfig(c=[0.01, 0.1], shrinkage=[0.5], folds=3, stack=3)
Y, CLIPS = np.arange(N) % 3, np.arange(N) // 4


class Watched(Mapping[int, torch.Tensor]):
    """Residuals that note which layers were asked for."""

    def __init__(self, residuals: Mapping[int, torch.Tensor]) -> None:
        self.residuals, self.asked = residuals, list[int]()

    def __getitem__(self, layer: int) -> torch.Tensor:
        self.asked.append(layer)
        return self.residuals[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self.residuals)

    def __len__(self) -> int:
        return len(self.residuals)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """120 items in four shards, with the concept in layers 2 and 4; a residual of layer 6 is not finite."""
    directory, draw = tmp_path_factory.mktemp("observed"), torch.Generator().manual_seed(0)
    for s, places in enumerate(torch.arange(N).split(32)):
        result: dict[str, Any] = {"ids": [str(n) for n in places.tolist()], "answers": [], "scores": torch.zeros(len(places), 2)}
        for layer in range(1, 7):
            z = torch.randn(len(places), 10, generator=draw)
            z[torch.arange(len(places)), torch.as_tensor(Y)[places]] += {2: 1.2, 4: 1.0}.get(layer, 0.0)
            z[0, 0] = torch.nan if (layer, s) == (6, 0) else z[0, 0]
            result[f"layer.{layer}"] = z.bfloat16()
        write_shard(shard_path(directory, s), [result])
    write_json(directory / "manifest.json", {"shards": 4, "fingerprint": "a"})
    return directory


def found(directory: Path) -> dict[str, Any]:
    """What the searches find, and the layers that the first of them read."""
    seen = Watched(read_observations(directory).residuals)
    given: dict[str, Any] = {"seed": 0, "spread": True}
    choice = choose_probe(seen, Y, CLIPS, CONCEPTS, CONFIG, layers=[1, 2, 3, 4, 5], **given)
    asked = list(seen.asked)
    nested = nested_reading(seen.residuals, Y, CLIPS, CONCEPTS, CONFIG, layers=[1, 2, 3], **given)
    few = {layer: seen[layer] for layer in (1, 2, 4)}
    later, table = choose_on_holdout(few, Y, few, Y, CONCEPTS, CONFIG, "", modality=np.zeros(N))
    with pytest.raises(ValueError, match="not finite"):
        choose_probe(seen, Y, CLIPS, CONCEPTS, CONFIG, layers=[1, 6], **given)
    facts = [choice.table, choice.probe.layers, choice.probe.family, table, later.layers, nested.chosen]
    arrays = [choice.reading, nested.reading, *(b.numpy() for probe in (choice.probe, later) for b in probe.buffers())]
    return {"facts": json.loads(json.dumps([asked, *facts])), "arrays": arrays}


def in_process(rank: int, directory: Path, port: int) -> None:
    """One of two ranks; leaves what it found beside the observation."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    assert PartialState(cpu=True).num_processes == 2
    mine = found(directory)
    write_json(directory / f"rank-{rank}.json", mine["facts"])
    write_tensors(directory / f"rank-{rank}.safetensors", {str(n): torch.as_tensor(a) for n, a in enumerate(mine["arrays"])})
    PartialState().destroy_process_group()


def test_two_processes_find_to_the_bit_what_one_finds_and_each_reads_its_own_layers(stored):
    """Table, probe and reading, with stacks; nested, and of a later round. What is wrong with one rank's layer is told by both."""
    alone = found(stored)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start_processes(in_process, args=(stored, port), nprocs=2, start_method="fork")
    asked, *facts = alone["facts"]
    ranks = [json.loads((stored / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for rank, (_, *told) in enumerate(ranks):
        assert told == facts
        tensors = load_file(stored / f"rank-{rank}.safetensors")
        assert len(tensors) == len(alone["arrays"])
        for n, expected in enumerate(map(torch.as_tensor, alone["arrays"])):
            assert tensors[str(n)].dtype == expected.dtype and torch.equal(tensors[str(n)], expected)
    (first, *_), (second, *_) = ranks
    assert asked[:5] == [1, 2, 3, 4, 5]
    assert first[:3] == [1, 3, 5] and second[:2] == [2, 4]
    three, chosen = next(row["layers"] for row in facts[0] if len(row["layers"]) == 3), facts[1]
    assert asked[5:] == [2, 4, *three, *chosen]
    assert first[3:] == [2, 4, *chosen] and second[2:] == three
