"""Train for two steps in a process of its own and print what was allocated at most, by the CPU allocator's own record.

    python tests/measured_step.py CONFIG.yaml FIRST_LAYER
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gapclose.adapters import add_lora
from gapclose.batches import Example
from gapclose.config import parse_config
from gapclose.item_files import read_items
from gapclose.models import load_model
from gapclose.outline import _look_at
from gapclose.trainer import make_trainer


def main(path: str, first: int) -> None:
    torch.set_num_threads(1)
    config = parse_config(["--config", path])
    loaded, items = load_model(config.model), read_items(Path(config.data.path))
    add_lora(loaded, config.lora, range(first, len(loaded.layers) + 1), 0)
    seen, train = _look_at(loaded, items), config.train
    counts = train.counts()
    weights = torch.full((len(seen.gap.options),), 1 / len(seen.gap.options)).numpy()
    examples = [Example(item=seen.gap, term="consistency", weights=weights)] * 2 * counts["consistency"]
    if counts["retain"]:
        vocabulary = min(train.retain_tokens, loaded.model.get_input_embeddings().weight.shape[0])
        uniform = torch.full((vocabulary,), 1 / vocabulary).log()
        known = {"base_logps": uniform, "base_tokens": torch.arange(vocabulary, dtype=torch.int32)}
        examples += [Example(item=seen.retain, term="retain", **known)] * 2 * counts["retain"]
    trainer = make_trainer(
        loaded, examples, loaded.media(items), train, Path(config.run_dir), seed=0, after_epoch=lambda epoch: True
    )  # fmt: skip
    at_rest = {t.untyped_storage().data_ptr(): t.nbytes for t in [*loaded.model.parameters(), *loaded.model.buffers()]}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    assert trainer.state.global_step == 2
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    print(json.dumps({"peak": sum(at_rest.values()) + max(itertools.accumulate(e.nbytes() for e in events))}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
