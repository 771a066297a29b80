"""Train a tiny text model without and with GapCallback, in as many processes as it is launched in; the weights must be the same."""

import sys
from pathlib import Path

import torch
from text_training import SETTINGS, trainer_of_text

from gapclose import GapCallback, load_items


def main(items: str, out: str) -> None:
    torch.set_num_threads(1)
    passages, size = load_items(items), {"per_device_train_batch_size": 2}
    plain = trainer_of_text(Path(out) / "plain", passages, **size)
    plain.train()
    watched = trainer_of_text(Path(out) / "watched", passages, GapCallback(passages, every=3, **SETTINGS), **size)
    watched.train()
    assert watched.args.world_size == 2 and watched.model_wrapped is not watched.model
    for name, value in plain.model.state_dict().items():
        assert torch.equal(watched.model.state_dict()[name], value), name
    watched.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
