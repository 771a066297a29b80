"""The files of a monitor: a frozen probe with its threshold, calibration and model.

``monitor.safetensors`` and ``monitor.json`` are those of :meth:`FrozenProbe.save`; the JSON file has
the facts of :class:`MonitorFile` beside the probe's.

Shapes: N items, C concepts, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gapclose.core.files import read_versioned
from gapclose.core.results import Result
from gapclose.data.item_set import Framing
from gapclose.metrics.alarms import AlarmRates
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.calibration import EventBin
from gapclose.probes.linear import FrozenProbe
from gapclose.probes.posterior import at_least

NAME = "monitor"
"""name of the folder of an export, and of the files in it"""
VERSION = 1
POSITION = "last token of the prompt, behind which the answer begins"
"""where a prompt's residual is read: all prompts are padded on the left"""


def false_premise(concepts: np.ndarray, names: Sequence[str], alarm: Sequence[str]) -> np.ndarray:
    """Probability (N,) of all alarm concepts together, from probabilities of the concepts (N, C)."""
    return concepts[:, np.isin(names, alarm)].sum(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitoredModel(Result):
    """The model that a monitor was calibrated for."""

    name: str
    """hub name of the base model, or the last part of its directory"""
    revision: str | None
    fingerprint: str
    """hash of the base model (:mod:`gapclose.models.checkpoint`)"""
    adapter: str | None
    """hash of the adapter that the probe reads through; None: the probe reads the base model's own
    residuals"""
    adapters_above: bool
    """whether all adapters of the run lie above the probe's layer; then the monitor also serves the
    adapted model"""
    dtype: str
    template: Mapping[str, Any]
    """variables of the chat template"""
    prompt: str
    """name of the prompt template of the questions"""
    frames: int
    """frames of a video"""
    side: int
    """longest side of a frame in pixels"""

    @property
    def framing(self) -> Framing:
        return Framing(frames=self.frames, side=self.side)


@dataclass(frozen=True, kw_only=True)
class MonitorFile:
    """A frozen probe, ready to watch a model."""

    probe: FrozenProbe
    alarm: tuple[str, ...]
    """concepts that mean a false premise"""
    threshold: float
    """readings above it are flagged, 0..1"""
    false_alarm_rate: float
    """largest share of standard items that the threshold was allowed to flag"""
    split: str
    """the split that chose the threshold"""
    rates: AlarmRates
    """hits and false alarms there; the threshold was chosen on the same items"""
    calibration: tuple[EventBin, ...]
    """predicted and observed frequency of false premises there"""
    model: MonitoredModel

    def __post_init__(self) -> None:
        if lost := sorted(set(self.alarm) - set(self.probe.concepts)) or ([] if self.alarm else ["none is named"]):
            raise ValueError(f"the alarm concepts are not the probe's, {list(self.probe.concepts)}: {', '.join(lost)}")

    def concepts(self, residuals: Mapping[int, torch.Tensor]) -> np.ndarray:
        """Probabilities of the concepts (N, C), from residuals by layer (N, D)."""
        return self.probe.predict_proba(self.probe.features(residuals))

    def reading(self, concepts: np.ndarray) -> np.ndarray:
        """Probability (N,) that the premise is false, from probabilities of the concepts (N, C)."""
        return false_premise(concepts, self.probe.concepts, self.alarm)

    @property
    def hits_at_least(self) -> float:
        """One-sided 95 % lower bound of the share of false premises that are flagged, 0..1.

        Counted as if all items of a clip were one (:func:`gapclose.probes.posterior.at_least`). The
        threshold was chosen on the same items, so the bound fails somewhat more often than in 5 %.
        """
        return float(at_least(np.array(self.rates.hits.value), self.rates.alarm_items, self.rates.alarm_clips))

    @property
    def false_alarms_at_most(self) -> float:
        """One-sided 95 % upper bound of the share of true premises that are flagged, 0..1."""
        quiet = np.array(1 - self.rates.false_alarms.value)
        return float(1 - at_least(quiet, self.rates.items - self.rates.alarm_items, self.rates.standard_clips))

    def promise(self) -> str:
        """Return a sentence on hits and false alarms for clips like those of the split."""
        rates = self.rates
        return (
            f"There it flags {100 * rates.hits.value:.1f} % of the false premises (at least {100 * self.hits_at_least:.1f} %) and "
            f"{100 * rates.false_alarms.value:.1f} % of the true ones (at most {100 * self.false_alarms_at_most:.1f} %; one-sided 95 % bounds)."
        )

    def facts(self) -> dict[str, Any]:
        """What ``monitor.json`` holds beside the probe's own facts."""
        named = " or ".join(self.alarm)
        return {
            "version": VERSION,
            "position": POSITION,
            "temperature": float(self.probe.temperature),
            "alarm": list(self.alarm),
            "meaning": f"the reading is the probability that a premise of the question is false ({named}); above the threshold it is flagged",
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "split": self.split,
            "rates": self.rates.to_dict(),
            "hits_at_least": self.hits_at_least,
            "false_alarms_at_most": self.false_alarms_at_most,
            "calibration": [b._asdict() for b in self.calibration],
            "model": self.model.to_dict(),
        }

    def save(self, folder: Path) -> None:
        """Write ``folder``/monitor.safetensors and ``folder``/monitor.json."""
        self.probe.save(folder / NAME, self.facts())

    @classmethod
    def load(cls, folder: Path) -> MonitorFile:
        """Read the files of :meth:`save`.

        Raises:
            ValueError: when a file is missing, damaged, or of a later version.
        """
        path = folder / f"{NAME}.json"
        keys = ("alarm", "threshold", "false_alarm_rate", "split", "rates", "calibration", "model")
        facts = read_versioned(path, VERSION, "install the version that wrote it", *keys)
        probe = FrozenProbe.load(folder / NAME)
        try:
            counts: dict[str, Any] = {f.name: facts["rates"][f.name] for f in fields(AlarmRates)}
            counts |= {k: Interval.from_dict(v) for k, v in counts.items() if isinstance(v, dict)}
            return cls(
                probe=probe,
                alarm=tuple(facts["alarm"]),
                **{k: facts[k] for k in ("threshold", "false_alarm_rate", "split")},
                rates=AlarmRates(**counts),
                calibration=tuple(EventBin(**b) for b in facts["calibration"]),
                model=MonitoredModel(**facts["model"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the file of a monitor ({error}); write it again with `gapclose export`") from error
