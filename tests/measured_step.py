"""What the estimate of memory is measured against, in a process of its own, by the CPU allocator's own record: two training steps with
adapters from a layer on, or, of layer 0, the observation of a batch with generated answers.

python tests/measured_step.py CONFIG.yaml FIRST_LAYER
"""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gapclose.data.jsonl import read_items
from gapclose.models.architecture import build_on_meta, read_architecture
from gapclose.models.loading import assemble, load_model, load_processor
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.memory_estimate import micro_batch, text_batch
from gapclose.pipeline.prompt_lengths import look_at
from gapclose.training.lora import add_lora
from gapclose.training.sampler import Example
from gapclose.training.trainer import make_trainer

SETTINGS = {"train.global_batch_size": 24, "train.micro_batch_size": 12, "train.epochs": 1, "train.logging_steps": 1}


def configured(path, data, tmp_path, **more):
    """A configuration and the file that holds it."""
    values = {"model.path": path, "model.dtype": "float32", "data.path": data, "run_dir": tmp_path / "run", **SETTINGS, **more}
    arguments = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    config = parse_config(arguments)
    file = tmp_path / "config.yaml"
    tree: dict = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[name or key] = value if isinstance(value, int | float | bool) else str(value)
    file.write_text(json.dumps(tree))
    return config, file


def without_weights(config, first, items=None):
    """The model on meta with adapters from a layer on, and the micro-batch of its longest items, or one of text."""
    model = build_on_meta(read_architecture(config.model), config.model)
    loaded = assemble(model, load_processor(config.model), path="", fingerprint="")
    with torch.device("meta"):
        add_lora(loaded, config.lora, range(first, len(loaded.layers) + 1), 0)
    if items is None:
        return loaded, [text_batch(8, 40)]
    seen = look_at(loaded, items)
    return loaded, micro_batch(loaded, seen.gap, seen.retain, items, config)


def measured(file, first):
    """Peak of allocated bytes in a process of its own."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "measured_step.py"), str(file), str(first)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])["peak"]


def main(path: str, first: int) -> None:
    torch.set_num_threads(1)
    config = parse_config(["--config", path])
    loaded, items = load_model(config.model), read_items(Path(config.data.path))
    if first == 0:
        how = replace(config.observe, share_prefix=False)  # the estimate is of whole prompts
        batch, wanted = [look_at(loaded, items).gap] * config.observe.batch_size, ObservationRequest(generate=True)
        forward_batches(loaded, [batch[:1]], loaded.media(items), how, wanted)  # what is made once and kept
        print(json.dumps({"peak": peak(loaded, lambda: forward_batches(loaded, [batch], loaded.media(items), how, wanted))}))
        return
    add_lora(loaded, config.lora, range(first, len(loaded.layers) + 1), 0)
    seen, train = look_at(loaded, items), config.train
    counts = train.counts()
    weights = torch.full((len(seen.gap.options),), 1 / len(seen.gap.options)).numpy()
    examples = [Example(item=seen.gap, term="consistency", weights=weights)] * 2 * counts["consistency"]
    if counts["retain"]:
        vocabulary = min(train.retain_tokens, loaded.model.get_input_embeddings().weight.shape[0])
        uniform = torch.full((vocabulary,), 1 / vocabulary).log()
        known = {"base_logps": uniform, "base_tokens": torch.arange(vocabulary, dtype=torch.int32)}
        examples += [Example(item=seen.retain, term="retain", **known)] * 2 * counts["retain"]
    trainer = make_trainer(
        loaded, examples, loaded.media(items), train, Path(config.run_dir),
        n_train=2 * (counts["consistency"] + counts["gold"]), seed=0, after_epoch=lambda epoch: True,
    )  # fmt: skip
    print(json.dumps({"peak": peak(loaded, trainer.train)}))
    assert trainer.state.global_step == 2


def peak(loaded, job):
    """Bytes of the model and of all that ``job`` holds at once beside it."""
    at_rest = {t.untyped_storage().data_ptr(): t.nbytes for t in [*loaded.model.parameters(), *loaded.model.buffers()]}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        job()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return sum(at_rest.values()) + max(itertools.accumulate(e.nbytes() for e in events))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
