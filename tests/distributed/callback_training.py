"""Train a tiny text model without and with GapCallback, in as many processes as it is launched in; the weights must be the same."""

import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from text_training import SETTINGS, text_model, trainer_of_text
from torch.distributed.fsdp import FSDPModule

from gapclose import GapCallback, load_items
from gapclose.core.distributed import engine_of
from gapclose.models.sharding import gathered, is_sharded
from gapclose.models.structure import decoder_layers
from gapclose.training.adapter_io import save_adapter


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
    watch = GapCallback(passages, every=3, **SETTINGS)
    watched = trainer_of_text(Path(out) / "watched", passages, watch, model=adapted() if lora else None, **size)
    watched.train()
    assert watched.args.world_size == 2 and engine_of(watched.accelerator) == engine
    assert is_sharded(watched.model) == (engine in ("fsdp2", "zero3"))
    if engine == "fsdp2":  # as it is used: every layer is gathered by itself
        assert all(isinstance(layer, FSDPModule) for layer in decoder_layers(watched.model))
    trained, without = whole(watched.model), whole(plain.model)
    assert trained.keys() == without.keys()
    for name, value in without.items():
        assert torch.equal(trained[name], value), name
    if lora:
        save_adapter(watched.model, Path(out) / "watched" / "adapter")
        if watched.is_world_process_zero():
            watch.monitor().save(Path(out) / "monitor")
    else:
        watched.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
