"""Train a tiny text model without and with GapCallback, in as many processes as it is launched in; the weights must be the same."""

import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from text_training import SETTINGS, text_model, trainer_of_text

from gapclose import GapCallback, load_items
from gapclose.core.distributed import engine_of
from gapclose.models.sharding import gathered


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights under any engine; all processes must call it."""
    found = {}
    for name, parameter in model.named_parameters():
        with gathered(parameter) as tensor:
            found[name] = tensor.detach().clone()
    return found


def adapted() -> torch.nn.Module:
    """The model with LoRA on its last layer."""
    torch.manual_seed(0)
    return get_peft_model(text_model()[1], LoraConfig(r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[3]))


def main(items: str, out: str, engine: str, lora: str = "") -> None:
    torch.set_num_threads(1)
    size = {"per_device_train_batch_size": 2, "use_cpu": os.environ.get("ACCELERATE_USE_CPU") == "true"}
    passages = load_items(items)
    plain = trainer_of_text(Path(out) / "plain", passages, model=adapted() if lora else None, **size)
    plain.train()
    watched = trainer_of_text(
        Path(out) / "watched", passages, GapCallback(passages, every=3, **SETTINGS), model=adapted() if lora else None, **size
    )
    watched.train()
    assert watched.args.world_size == 2 and engine_of(watched.accelerator) == engine
    trained, without = whole(watched.model), whole(plain.model)
    assert trained.keys() == without.keys()
    for name, value in without.items():
        assert torch.equal(trained[name], value), name
    if not lora:
        watched.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
