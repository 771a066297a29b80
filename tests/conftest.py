"""Fixtures: a tiny random-weight omni model of the real class, and a small item set of real scans and real speech."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", OMP_NUM_THREADS="1", HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg",
)  # fmt: skip
os.environ.pop("COLUMNS", None)  # tables are as wide as into a file, whoever runs the tests

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from digits_model import tiny_model
from sketches import drawn, sketched

from gapclose.core.logging import configure_logging
from gapclose.data.config import READERS
from gapclose.data.digits import generate as world
from gapclose.data.item_set import ItemSet
from gapclose.data.jsonl import read_items
from gapclose.evaluation.config import CONTROLS
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_model
from gapclose.pipeline.cli import main
from gapclose.pipeline.media_fit import unfit
from gapclose.probes.config import PROBE_FAMILIES
from gapclose.training.objectives import CUSTOM

CLIPS = {"fit": 24, "train": 24, "val": 24, "test": 24}
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logged_as_by_the_command_line() -> None:
    """What a test calls logs as under ``gapclose``, at the level info, whatever the test before it has set."""
    configure_logging("info")


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_drawn() -> Iterator[None]:
    """To draw its figures takes a third of a run on the tiny model; tests of the report have them drawn."""
    with sketched():
        yield


@pytest.fixture(autouse=True, scope="session")
def _sizes_are_tried_once() -> Iterator[None]:
    """Sizes of media that a model has been found to take are not tried by the next command again; tests of the trial call it themselves."""
    fitting = set()

    def tried_once(items, config, processor, sizes):
        asked = (repr(config), type(processor), frozenset((kind, size) for (kind, _), size in sizes.items()))
        found = {} if asked in fitting else unfit(items, config, processor, sizes)
        if not found:
            fitting.add(asked)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapclose.pipeline.items.unfit", tried_once)
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """An ordinary checkpoint directory of a random-weight Qwen2.5-Omni thinker with 5 decoder layers of width 48."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = tiny_model.build_tokenizer()
    tiny_model.build_model(tokenizer, width=48, layers=5, tower=32).save_pretrained(directory)
    tiny_model.build_processor(tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture
def loaded(tiny_checkpoint) -> LoadedModel:
    """The tiny model, loaded by the code path of every other model; fresh for each test."""
    return load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    every = (CONTROLS, CUSTOM, PROBE_FAMILIES, READERS)
    before = [dict(registry.added) for registry in every]
    yield
    for registry, added in zip(every, before, strict=True):
        registry.added.clear()
        registry.added.update(added)


@pytest.fixture
def no_outline(monkeypatch) -> None:
    """``gapclose validate`` does not outline the model, for tests that look at what it says of the items."""
    monkeypatch.setattr("gapclose.pipeline.model_summary.print_outline", lambda *_, **__: None)


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory) -> Path:
    """A small digits item set on disk; tests that change it copy it first."""
    directory = tmp_path_factory.mktemp("digits")
    world.write(directory, seed=0, clips=CLIPS)
    return directory


@pytest.fixture(scope="session")
def digits(digits_directory) -> ItemSet:
    return read_items(digits_directory)


@pytest.fixture(scope="session")
def tiny_config(tiny_checkpoint, digits_directory, tmp_path_factory) -> Path:
    """A YAML configuration that runs the whole loop on the tiny model in seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"""
data: {{path: {digits_directory}}}
model: {{path: {tiny_checkpoint}, dtype: float32}}
observe: {{batch_size: 32, shard_batches: 1, max_new_tokens: 3, share_prefix: false}}  # tests of `auto` take it up
probe: {{families: [logistic, mean_difference], c: [0.01], folds: 2}}
gap: {{replicates: 100}}
force: true  # of a random model nothing is real
export: {{unimproved: true, verify: false}}  # nor has it to improve; tests of the fresh process turn it on
controls: {{draws: 2, protocol: imavb, random_weights: false}}  # tests of that control turn it on
targets: {{gate: 0.8}}
train: {{epochs: 2, global_batch_size: 24, micro_batch_size: 12, learning_rate: 0.01, logging_steps: 1, cache_trunk: false}}
"""
    )
    return path


@pytest.fixture(scope="session")
def quick_config(tiny_config, tmp_path_factory) -> Path:
    """The same, for runs that may take the observations of the base model that other tests' runs have left."""
    path, left = tmp_path_factory.mktemp("config") / "quick.yaml", tmp_path_factory.mktemp("left")
    path.write_text(tiny_config.read_text().replace("observe: {", f"observe: {{shared: {left}, "))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> Path:
    """The directory of one finished ``gapclose close`` on the tiny model; tests that change it copy it first."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    with drawn():
        assert main(["close", "--config", str(tiny_config), "--run_dir", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def close_command(tiny_config) -> Callable[..., list[str]]:
    """``(run_dir, *launcher)`` -> the command line of ``recipes/close.py``: small shards, a learning rate that forgives rounding."""

    def command(directory: Path, *launcher: str) -> list[str]:
        small = {"observe.batch_size": 16, "observe.shard_batches": 1, "observe.max_new_tokens": 1}
        settings = {**small, "train.learning_rate": 0.001, "run_dir": directory}
        options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        return [*(launcher or [sys.executable]), str(ROOT / "recipes" / "close.py"), "--config", str(tiny_config), *options]

    return command


@pytest.fixture(scope="session")
def closed_run(close_command, tmp_path_factory) -> Path:
    """The directory of one finished ``python recipes/close.py``, what it printed beside it in ``stdout``; not to be changed."""
    directory = tmp_path_factory.mktemp("runs") / "closed"
    on_cpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # what two CPU processes are compared with
    result = subprocess.run(close_command(directory), cwd=ROOT, env=on_cpu, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (directory / "stdout").write_text(result.stdout)
    return directory


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    """A random BERT of width 32 with a vocabulary of characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("encoder")
    vocabulary = {t: n for n, t in enumerate(["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz0123456789.?"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(directory)
    return str(directory)
