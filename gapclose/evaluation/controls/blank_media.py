"""Controls with blanked media: the same prompts with grey images and videos, silent audio, or all.

Blanked media keep their size and length, so a clip's length remains as a clue. Its content does
not.

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
    """Return the sets of media kinds to blank: each kind that the items have, then all together."""
    kinds = sorted({kind for item in items for kind, _ in item.media}, reverse=True)
    return [(kind,) for kind in kinds] + ([tuple(kinds)] if len(kinds) > 1 else [])


def blank_stage(kinds: tuple[str, ...], split: str) -> str:
    """Return the name of the observation of a split with these kinds blanked."""
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
    """Build two controls on blanked items: the frozen probe, and a probe fitted on blanked items.

    The frozen probe reads states that it was not fitted on, so its result is arbitrary. If
    everything is blanked, the fitted probe has only the text and is expected to be at chance. If
    one kind is left, the modality of that kind should stay readable.

    Args:
        everything: whether ``kinds`` are all kinds that the items have.
        fit: (M, D) the probe's features of blanked fit items, y: (M,) their concepts. items: (N, D)
            of blanked items.
        within: modalities of both, (M,) and (N,). If everything is blanked, each is fitted and read
            separately, so that a verdict can compare with it. If one kind is left, a single probe
            shows which modality needs the others.
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
