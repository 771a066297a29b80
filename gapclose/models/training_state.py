"""Observe a model in the middle of a training, and leave no trace of it there."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gapclose.models.families import NOT_CAUSAL
from gapclose.models.structure import unwrap


@contextmanager
def training_set_aside(model: Any) -> Iterator[None]:
    """Inside, the model computes as outside of a training; afterwards the training goes on as without.

    Inside, the model is in evaluation mode and computes in its own precision. Autocast is off, and
    so is the wrapper by which accelerate switches it on in every forward. Dropout and the
    recomputation of activations are off with the training mode.

    Afterwards these are as before: training mode and ``requires_grad`` of every part, the forward,
    generation settings, what :func:`gapclose.models.families.apply_family_fixes` changes, stored
    rotary offsets, and the random states of Python, numpy, and torch on the CPU and on the model's
    device.
    """
    base, modules, parameters = unwrap(model), list(model.modules()), list(model.parameters())
    modes, trained = [m.training for m in modules], [p.requires_grad for p in parameters]
    kept = [(m, name, getattr(m, name)) for m in modules for name in _changed(m) if hasattr(m, name)]
    kept.append((base, "generation_config", base.generation_config))
    # accelerate keeps the forward from before its wrapper under this name; unwrap_model would remove the wrapper for good
    wrapped = [m for m in modules if "_original_forward" in vars(m)]
    kept += [(m, "forward", m.forward) for m in wrapped]
    device = next(iter(parameters)).device
    devices = [] if device.type == "cpu" else [device]
    drawn = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        try:
            model.eval()
            base.generation_config = copy.deepcopy(base.generation_config)
            for module in wrapped:
                module.forward = module._original_forward
            with torch.autocast(device.type, enabled=False):
                yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for parameter, mode in zip(parameters, trained, strict=True):
                parameter.requires_grad_(mode)
            for module, name, value in kept:
                setattr(module, name, value)
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])


def _changed(module: Any) -> list[str]:
    """Names of the attributes of a module that observing may change."""
    return ["rope_deltas", *(["is_causal"] if type(module).__name__ in NOT_CAUSAL else [])]
