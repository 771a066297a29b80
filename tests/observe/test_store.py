"""What is read of stored observations, and when."""

import json

import pytest
import torch
from safetensors import safe_open

from gapclose.core.files import write_json
from gapclose.observe import store as observations
from gapclose.observe.store import read_observations, shard_path, take_residuals, write_shard

LAYERS, WIDTH, N = (1, 3, 12), 5, 23


@pytest.fixture
def written(tmp_path):
    """The directory of 23 items in four shards, and what was written: layer -> (N, D)."""
    whole = {layer: torch.randn(N, WIDTH).bfloat16() for layer in LAYERS}
    for s, places in enumerate(torch.arange(N).split(7)):
        few = {f"layer.{layer}": z[places] for layer, z in whole.items()}
        said = [f"say {n}" for n in places.tolist()]
        scores = torch.stack([places.float()] * (2 + s % 2), 1)
        write_shard(shard_path(tmp_path, s), [{"ids": [f"i{n}" for n in places.tolist()], "answers": said, "scores": scores, **few}])
    write_json(tmp_path / "manifest.json", {"shards": 4, "fingerprint": "a"})
    return tmp_path, whole


@pytest.fixture
def tensors_read(monkeypatch):
    """(shard, key) of every tensor that is read from a file."""
    read = []

    class Noted:
        def __init__(self, path, framework):
            self.path, self.file = path, safe_open(path, framework=framework)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key):
            read.append((int(self.path.stem[-5:]), key))
            return self.file.get_tensor(key)

    monkeypatch.setattr(observations, "safe_open", Noted)
    return read


def test_a_layer_is_what_was_written_in_the_order_asked_for(written):
    """As written, in another order, a part, a part of a part, an item twice, and none."""
    directory, whole = written
    seen = read_observations(directory)
    assert list(seen.residuals) == list(LAYERS) and len(seen.residuals) == 3
    assert all(torch.equal(seen.residuals[layer], z) and seen.residuals[layer].dtype == torch.bfloat16 for layer, z in whole.items())
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    mixed = read_observations(directory, [f"i{n}" for n in order.tolist()])
    few = mixed.take([mixed.ids[n] for n in (20, 3, 3, 8)])
    for layer, z in whole.items():
        assert torch.equal(mixed.residuals[layer], z[order])
        assert torch.equal(few.residuals[layer], z[order][[20, 3, 3, 8]])
        assert torch.equal(few.take(few.ids[2:]).residuals[layer], z[order][[3, 8]])
        assert few.take([]).residuals[layer].shape == (0, WIDTH)
        assert torch.equal(take_residuals(mixed.residuals, torch.tensor([5, 1]))[layer], z[order][[5, 1]])
        assert torch.equal(take_residuals(whole, torch.tensor([5, 1]))[layer], z[[5, 1]])
    assert few.scores[:, 0].tolist() == order[[20, 3, 3, 8]].tolist() and few.answers == [f"say {int(order[n])}" for n in (20, 3, 3, 8)]


def test_one_layer_is_read_at_a_time_from_the_shards_that_hold_the_items(written, tensors_read):
    directory, _ = written
    seen = read_observations(directory, layers=[3, 12])
    assert set(seen.residuals) == {3, 12} and 3 in seen.residuals and 1 not in seen.residuals
    assert {key for _, key in tensors_read} == {"scores"}
    tensors_read.clear()
    part = seen.take(["i22", "i0", "i1"])
    assert not tensors_read
    part.residuals[12]
    assert tensors_read == [(0, "layer.12"), (3, "layer.12")]
    with pytest.raises(KeyError):
        seen.residuals[1]


def test_residuals_of_another_observation_are_not_taken_for_these(written):
    directory, _ = written
    seen = read_observations(directory)
    write_json(directory / "manifest.json", json.loads((directory / "manifest.json").read_text()) | {"fingerprint": "b"})
    with pytest.raises(ValueError, match="holds another observation now"):
        seen.residuals[1]
