"""LoRA adapters: where they are added, loading, and a fingerprint."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from gapclose.core.tensor_files import refuse_damaged
from gapclose.models.config import ModelConfig
from gapclose.models.loading import LoadedModel, load_model
from gapclose.models.structure import expert_names, linear_names, unwrap
from gapclose.training.adapter_io import adapter_tensors
from gapclose.training.config import LoraConfig


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside, PEFT does not warn that it reads a name which transformers 5.23 deprecates.

    Remove when PEFT reads ``is_activation_checkpointing``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield


def adapted_experts(model: Any, config: LoraConfig, layers: Sequence[int]) -> list[str]:
    """Return the full names of the fused experts in decoder layers ``layers`` that get adapters.

    Raises:
        ValueError: for dropout or DoRA together with fused experts, because PEFT supports them only
            for modules.
    """
    experts = expert_names(model, layers) if config.experts else []
    if experts and (config.dropout or config.use_dora):
        name, value = ("dropout", config.dropout) if config.dropout else ("use_dora", config.use_dora)
        raise ValueError(
            f"lora.{name} is {value}, and this model has fused experts ({experts[0]} ...), which take neither dropout nor DoRA; "
            "set both off, or lora.experts to false"
        )
    return experts


def add_lora(loaded: LoadedModel, config: LoraConfig, layers: Sequence[int], seed: int) -> None:
    """Wrap ``loaded.model`` by PEFT, with adapters only in the given decoder layers.

    Every linear module and all fused experts of these layers get one.

    Raises:
        ValueError: as :func:`adapted_experts` and :func:`refuse_misplaced`.
    """
    experts, modules = adapted_experts(loaded.model, config, layers), linear_names(loaded.model, layers)
    transformers.set_seed(seed)
    settings = peft.LoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, use_rslora=config.use_rslora, use_dora=config.use_dora,
        target_modules=modules, target_parameters=experts or None, task_type="CAUSAL_LM",
        exclude_modules=_same_end(loaded.model, modules) or None,
    )  # fmt: skip
    with quiet_peft():
        loaded.model = peft.get_peft_model(loaded.model, settings)
    refuse_misplaced(loaded.model, modules, experts)


def _same_end(model: Any, modules: Sequence[str]) -> list[str]:
    """Return other modules whose full names end like one of ``modules``; PEFT, which matches by
    suffix, would adapt them too."""
    wanted, found = set(modules), list[str]()
    for name, _ in unwrap(model).named_modules():
        parts = name.split(".")
        if name not in wanted and any(".".join(parts[n:]) in wanted for n in range(1, len(parts))):
            found.append(name)
    return found


def refuse_misplaced(model: Any, modules: Sequence[str], experts: Sequence[str]) -> None:
    """Check that PEFT adapted only ``modules`` and the parameters ``experts`` (full names).

    Raises:
        ValueError: naming unexpected and missing adapters.
    """
    base = unwrap(model)
    adapted = {name.removesuffix(".base_layer") for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    wanted = {*modules, *(name.rpartition(".")[0] for name in experts)}
    parameters = set(model.base_model.targeted_parameter_names)
    stray = sorted((adapted - wanted) | (parameters - set(experts)))
    bare = sorted((wanted - adapted) | (set(experts) - parameters))
    if stray or bare:
        found = [f"{len(stray)} outside the decoder layers asked for got an adapter ({', '.join(stray[:3])})"] if stray else []
        found += [f"{len(bare)} inside got none ({', '.join(bare[:3])})"] if bare else []
        raise ValueError(
            f"{type(base).__name__}: of its modules {' and '.join(found)}, since PEFT matches names by their ends; choose other lora.layers, "
            "set lora.experts to false if these are experts, or report the model"
        )


def enable_checkpointing(loaded: LoadedModel) -> None:
    """Recompute activations in the backward pass, which still stops below the first adapted layer.

    ``TrainingArguments`` is not used for this: transformers then makes the embeddings' output
    require a gradient, for re-entrant checkpoints, and the backward pass recomputes every layer
    down to the embedding. Remove when transformers does this only for re-entrant checkpoints.
    """
    model = unwrap(loaded.model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()


def load_adapter(config: ModelConfig, folder: Path) -> LoadedModel:
    """Load the base model with the adapter of ``folder``.

    Raises:
        ValueError: when a file is damaged, keys are missing or unexpected, tensors differ after
            loading, or every ``lora_B`` is zero, so that the adapter does nothing.
    """
    refuse_damaged(folder, f"delete {folder} and run `gapclose close` of this run again, which trains that epoch again")
    loaded = load_model(config)
    with quiet_peft():
        loaded.model = peft.PeftModel.from_pretrained(loaded.model, str(folder))
    written = load_file(folder / "adapter_model.safetensors")
    applied = peft.get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    missing = sorted(set(written) ^ set(applied))
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} adapter keys were not applied, e.g. {missing[:3]}; was it trained on another model class?"
        )
    differing = [k for k in written if not torch.equal(written[k].float(), applied[k].float().cpu())]
    if differing:
        raise ValueError(f"{folder}: {len(differing)} adapter tensors differ after loading, e.g. {differing[:3]}")
    if not any(v.abs().max() > 0 for k, v in applied.items() if "lora_B" in k):
        raise ValueError(f"{folder}: every lora_B is zero; the adapter changes nothing (was there more than one optimiser step?)")
    loaded.model.eval()
    return loaded


def adapter_changed(model: Any) -> bool:
    """Return whether training changed an adapter weight that starts at zero; False without such
    weights."""
    return any(bool(t.any()) for name, t in adapter_tensors(model).items() if "lora_B" in name or "lora_embedding_B" in name)


def adapter_fingerprint(model: Any) -> str:
    """Hash the adapter weights in ``model``, so that each adapter's observations are kept apart."""
    digest = hashlib.sha256()
    for name, tensor in adapter_tensors(model).items():
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()[:16]
