"""Mix channels to mono, and refuse samples that are not finite, silent, cancelling or too many.

Shapes: n samples, C channels.
"""

from __future__ import annotations

import numpy as np

from gapclose.core.errors import ItemError

SILENT = 1e-5
"""peak below which a sound counts as silent (full scale is 1; one step of 16 bits is 3e-5)"""
LOUDEST = 1e10
"""peak above which a sound counts as damaged; floats that hold 32-bit integers reach 2e9, and
resampling turns the largest floats into infinities"""
CANCELS = 0.02
"""a mix of C channels that keeps less than CANCELS / C of their mean power has lost their content:
1 % for two channels, when they correlate below -0.98. One channel that sounds among silent ones
keeps 1 / C"""
MOST_SAMPLES = 1 << 28
"""of a mono sound: 1 GiB, or 4.6 hours at 16 kHz; decoding briefly takes twice as much"""
RATES = (100, 10_000_000)
"""lowest and highest sampling rate in Hz; beyond them, a header counts as damaged"""


class Mix:
    """Mixes blocks of samples to mono by their mean, and measures the loss."""

    def __init__(self) -> None:
        self.length, self.bad, self.channels = 0, 0, 1
        self.apart = self.together = 0.0

    def add(self, block: np.ndarray) -> np.ndarray:
        """Return (n,) float32 for (n, C).

        Raises:
            ItemError: when the sound grows beyond :data:`MOST_SAMPLES`.
        """
        self.length += len(block)
        refuse_longer(self.length)
        self.channels = max(self.channels, block.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            mono = block.mean(axis=1, dtype=np.float32)
        bad = int((~np.isfinite(block)).sum()) or int((~np.isfinite(mono)).sum())
        if bad == 0 and block.shape[1] > 1:
            self.apart += float(np.einsum("nc,nc->", block, block, dtype=np.float64)) / block.shape[1]
            self.together += float(np.einsum("n,n->", mono, mono, dtype=np.float64))
        self.bad += bad
        return mono

    def refuse(self) -> None:
        """Raise ItemError if samples were not finite or the channels cancelled."""
        if self.bad:
            raise ItemError(f"the audio has {self.bad} samples that are not finite; write it again without NaN or infinity")
        if self.together < CANCELS / self.channels * self.apart:
            raise ItemError(
                f"the {self.channels} channels of the audio cancel when they are mixed to one ({self.together / self.apart:.2%} of their power "
                "is left), so that next to nothing would be heard; write one of them alone, or turn one over"
            )


def refuse_longer(samples: int, rate: int | None = None) -> None:
    """Raise ItemError if a sound has more samples than are decoded."""
    if samples > MOST_SAMPLES:
        at = f" at {rate:,} Hz" if rate else ""
        raise ItemError(f"the audio has more than {MOST_SAMPLES:,} samples{at}, which are not held in memory; cut it")


def refuse_rate(rate: int) -> None:
    """Raise ItemError for a rate beyond :data:`RATES`, which makes resampling slow or large."""
    if not RATES[0] <= rate <= RATES[1]:
        raise ItemError(f"the header of the audio states a sampling rate of {rate:,} Hz, so it is damaged; replace it")


def refuse_levels(mono: np.ndarray) -> None:
    """Raise ItemError if (samples,) stay below :data:`SILENT`, or exceed :data:`LOUDEST`."""
    peak = max(mono.max(initial=0.0), -mono.min(initial=0.0))
    if not peak <= LOUDEST:  # also for NaN, the mean of opposite infinities
        raise ItemError(f"the audio goes up to {peak:.3g} (full scale is 1), so it is damaged; replace it")
    if peak < SILENT:
        raise ItemError("the audio is silent throughout; replace it, or, where silence is meant, give it faint noise")
