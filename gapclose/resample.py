"""Resampling by clip: statistics as arrays of R + 1 values, the estimate on the data first, then R bootstrap replicates.

Two statistics on the same :class:`Clips` are paired replicate by replicate, so differences and ratios get their intervals by plain
arithmetic.

Shapes: N items, R replicates, M clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gapclose.gap import Labels


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % percentile interval; nan where it is not defined."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, statistic: np.ndarray) -> Interval:
        value, replicates = float(statistic[0]), statistic[1:][np.isfinite(statistic[1:])]
        if not np.isfinite(value) or not len(replicates):
            return cls(value, np.nan, np.nan)
        lower, upper = np.quantile(replicates, [0.025, 0.975])
        return cls(value, float(lower), float(upper))

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, with None for what is not defined."""
        return {k: float(v) if np.isfinite(v) else None for k, v in (("value", self.value), ("lower", self.lower), ("upper", self.upper))}


class Clips:
    """Clip resampling: ``weights`` (R + 1, M) counts how often each clip is drawn; row 0 is the data themselves."""

    def __init__(self, clip: np.ndarray, replicates: int, seed: int) -> None:
        _, self.index = np.unique(clip, return_inverse=True)
        self.n = int(self.index.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(self.n, np.full(self.n, 1 / self.n), size=replicates)
        self.weights = np.concatenate([np.ones((1, self.n)), drawn])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sum over items of (N,) or (N, K) values, (R + 1, K)."""
        values = values.reshape(len(values), -1).astype(float)
        per_clip = np.zeros((self.n, values.shape[1]))
        np.add.at(per_clip, self.index, values)
        return self.weights @ per_clip

    def mean(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Mean of (N,) values over the items where ``where`` holds, (R + 1,)."""
        sums = self.sums(np.stack([values * where, where], axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[:, 0] / sums[:, 1]

    def cell_means(self, values: np.ndarray, labels: Labels) -> np.ndarray:
        """Mean of (N,) values in every cell, (R + 1, cells); nan where a replicate has no item of the cell."""
        index, names = labels.cells
        one_hot = index[:, None] == np.arange(len(names))
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums(values[:, None] * one_hot) / self.sums(one_hot)

    def balanced(self, correct: np.ndarray, labels: Labels) -> np.ndarray:
        """Mean accuracy over the cells modality x concept, (R + 1,)."""
        return np.nanmean(self.cell_means(correct, labels), axis=1)

    def _levels(self, score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted positives and negatives at every distinct score, falling, each (R + 1, levels)."""
        order = np.argsort(-score, kind="stable")
        falling = score[order]
        starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])  # not np.diff: infinite scores tie too
        weights = self.weights[:, self.index[order]]
        p = positive[order]
        return np.add.reduceat(weights * p, starts, axis=1), np.add.reduceat(weights * ~p, starts, axis=1)

    def auroc(self, score: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Area under the ROC curve, ties counted half (Mann-Whitney), (R + 1,)."""
        p, n = self._levels(score, positive)
        below = n.sum(1, keepdims=True) - n.cumsum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (p * (below + 0.5 * n)).sum(1) / (p.sum(1) * n.sum(1))

    def tpr_at(self, score: np.ndarray, positive: np.ndarray, false_alarm: np.ndarray) -> np.ndarray:
        """True-positive rate of ``score`` at the false-alarm rates (R + 1,), on the ROC with straight lines between points."""
        p, n = self._levels(score, positive)
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = p.cumsum(1) / p.sum(1, keepdims=True), n.cumsum(1) / n.sum(1, keepdims=True)
        # at a vertical step np.interp takes the last point, the highest TPR within that false-alarm rate
        rows = zip(false_alarm, fpr, tpr, strict=True)
        return np.array([np.interp(f, np.r_[0.0, x], np.r_[0.0, y]) if np.isfinite(x).all() else np.nan for f, x, y in rows])
