"""Controls without media: the same prompts, with pictures and films grey, sounds silent, or all of them.

Blanked media keep their size and length, so a clip can still be told by how long it is; nothing of what it shows or says is left.

Shapes: M fit items, N items, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from gapclose.data.items import Item
from gapclose.evaluation.controls.scoring import Control
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.refit import refit, refit_within

OFF = {"image": "vision off", "audio": "audio off", "video": "video off"}


def blank_sets(items: Iterable[Item]) -> list[tuple[str, ...]]:
    """Which kinds of media to blank, in turn: each one that the items carry, then all of them together."""
    kinds = sorted({kind for item in items for kind, _ in item.media}, reverse=True)
    return [(kind,) for kind in kinds] + ([tuple(kinds)] if len(kinds) > 1 else [])


def blank_stage(kinds: tuple[str, ...], split: str) -> str:
    """Name of the observation of a split with these kinds blanked."""
    return f"blank-{'-'.join(kinds)}-{split}"


def blank_controls(
    kinds: tuple[str, ...],
    everything: bool,
    probe: FrozenProbe,
    fit: torch.Tensor,
    y: np.ndarray,
    items: torch.Tensor,
    within: tuple[np.ndarray, np.ndarray],
) -> list[Control]:
    """What the frozen probe reads on blanked items, and what a probe fitted on blanked items does.

    The frozen one meets states that it was not fitted on, and may say anything. The fitted one has the text and nothing else where
    everything is blank, so there it should be at chance; where one kind is left, the modality of that kind should stay readable.

    Args:
        everything: whether ``kinds`` are all kinds that the items carry.
        fit: (M, D) what the probe sees of blanked fit items, y: (M,) their concepts. items: (N, D) of blanked items.
        within: modalities of both, (M,) and (N,). Where everything is blank, each is fitted and read by itself, so that a verdict may
            compare with it; where one kind is left, one probe shows which modality needs the others.
    """
    name = "all" if everything else "-".join(kinds)
    what = "all media off" if everything else ", ".join(OFF[kind] for kind in kinds)
    z_fit, z = fit.double().numpy(), items.double().numpy()
    re_read = refit_within(probe, z_fit, y, within[0], z, within[1]) if everything else refit(probe, z_fit, y, z)
    return [
        Control(
            name=f"blank_{name}_frozen",
            label=f"{what}, the frozen probe",
            question="does the probe say the same when there is nothing to see or hear?",
            readings=[probe.predict_proba(items)],
        ),
        Control(
            name=f"blank_{name}_refit",
            label=f"{what}, a probe fitted on such items",
            question="can it be read without the media?" if everything else "which modality needs the media that are off?",
            readings=[re_read],
            at_chance=everything,
        ),
    ]
