"""Resampling by clip: a statistic is an array of R + 1 values, the estimate, then R replicates.

Two statistics on the same :class:`ClipBootstrap` are paired replicate by replicate, so intervals of
differences and ratios need only plain arithmetic. Replicates are taken in blocks to bound memory:
besides the weights (4 bytes x R x M), a ROC curve needs some tens of MB.

Shapes: N items, M clips, R replicates, L distinct scores, r replicates of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

if TYPE_CHECKING:
    from gapclose.metrics.labels import Labels


BLOCK = 2**17
"""elements (L x r) of one block of a ROC curve: 1 MB in float64, about the size of a processor's
cache"""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % percentile interval; nan where undefined.

    The ends are the (R + 1) p-th smallest replicates (Davison & Hinkley 1997, 5.2); other quantiles
    are too narrow for small R. With few clips, percentile intervals still cover the truth less
    often than 95 %.
    """

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, statistic: np.ndarray) -> Interval:
        value, replicates = float(statistic[0]), statistic[1:][np.isfinite(statistic[1:])]
        if not np.isfinite(value) or not len(replicates):
            return cls(value, np.nan, np.nan)
        lower, upper = np.quantile(replicates, [0.025, 0.975], method="weibull")
        return cls(value, float(lower), float(upper))

    @classmethod
    def from_dict(cls, ends: Mapping[str, float | None]) -> Interval:
        """From what :meth:`to_dict` gave, with nan for None."""
        known = (ends[key] for key in ("value", "lower", "upper"))
        return cls(*(np.nan if end is None else float(end) for end in known))

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, with None for what is not defined."""
        return {"value": finite(self.value), "lower": finite(self.lower), "upper": finite(self.upper)}


def finite(value: float) -> float | None:
    """A number for JSON; None for nan and infinity."""
    return float(value) if np.isfinite(value) else None


class ClipBootstrap:
    """Resampling of clips.

    ``weights`` (R + 1, M) counts how often each clip is drawn; row 0 is the data. One clip cannot
    be resampled: it has no replicates, and every interval is undefined rather than of width zero.
    """

    def __init__(self, clip: np.ndarray, replicates: int, seed: int) -> None:
        _, self.index = np.unique(clip, return_inverse=True)
        self.n = int(self.index.max()) + 1
        replicates = replicates if self.n > 1 else 0
        self.weights = np.ones((replicates + 1, self.n), dtype=np.int32)
        rng, even = np.random.default_rng(seed), np.full(self.n, 1 / self.n)
        for rows in blocks(1, replicates + 1, self.n):
            self.weights[rows] = rng.multinomial(self.n, even, size=rows.stop - rows.start)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sum over items of (N,) or (N, K) values, (R + 1, K)."""
        values = values.reshape(len(values), -1).astype(float)
        per_clip = np.stack([np.bincount(self.index, weights=column, minlength=self.n) for column in values.T], axis=1)
        return np.concatenate([self.weights[rows].astype(float) @ per_clip for rows in blocks(0, len(self.weights), self.n)])

    def mean(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Mean of (N,) values over the items where ``where`` holds, (R + 1,)."""
        sums = self.sums(np.stack([values * where, where], axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[:, 0] / sums[:, 1]

    def cell_means(self, values: np.ndarray, labels: Labels) -> np.ndarray:
        """Mean of (N,) values in every cell, (R + 1, cells); nan for a cell without items."""
        index, names = labels.cells
        one_hot = index[:, None] == np.arange(len(names))
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums(values[:, None] * one_hot) / self.sums(one_hot)

    def balanced(self, correct: np.ndarray, labels: Labels) -> np.ndarray:
        """Mean accuracy over the cells modality x concept, (R + 1,)."""
        return np.nanmean(self.cell_means(correct, labels), axis=1)

    def _levels(self, score: np.ndarray, positive: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield blocks of replicates: rows, weighted positives and weighted negatives.

        Positives and negatives are per distinct score, in falling order, each (L, r).
        """
        distinct, level = np.unique(-score, return_inverse=True)  # equal infinities are one level
        shape = (len(distinct), self.n)
        parts = [csr_array((np.ones(keep.sum()), (level[keep], self.index[keep])), shape) for keep in (positive, ~positive)]
        for rows in blocks(0, len(self.weights), len(distinct)):
            drawn = self.weights[rows].T.astype(float)  # (M, r)
            yield rows, parts[0] @ drawn, parts[1] @ drawn

    def auroc(self, score: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Area under the ROC curve (R + 1,), ties counted half (Mann-Whitney).

        nan where a score is nan or a class has no item.
        """
        area = np.full(len(self.weights), np.nan)
        if np.isnan(score).any():
            return area
        with np.errstate(invalid="ignore", divide="ignore"):
            for rows, p, n in self._levels(score, positive):
                above = n.cumsum(0)
                below = above[-1] - above
                area[rows] = np.einsum("lr,lr->r", p, below + 0.5 * n) / (p.sum(0) * above[-1])
        return area

    def tpr_at(self, score: np.ndarray, positive: np.ndarray, false_alarm: np.ndarray) -> np.ndarray:
        """True-positive rate of ``score`` at the false-alarm rates (R + 1,).

        The ROC is interpolated linearly. At a vertical step the highest point counts: the best rate
        within those false alarms. nan as in :meth:`auroc`.
        """
        found = np.full(len(self.weights), np.nan)
        if np.isnan(score).any():
            return found
        with np.errstate(invalid="ignore", divide="ignore"):
            for rows, p, n in self._levels(score, positive):
                # a first row of zeros is the corner where nothing alarms
                tpr, fpr = (np.concatenate([np.zeros((1, k.shape[1])), k.cumsum(0) / k.sum(0)]) for k in (p, n))
                rate = false_alarm[rows]
                last = (fpr <= rate).sum(0) - 1  # the last point within the rate, (r,)
                next_, column = np.minimum(last + 1, len(fpr) - 1), np.arange(len(last))
                step, rise = fpr[next_, column] - fpr[last, column], tpr[next_, column] - tpr[last, column]
                share = np.where(step > 0, (rate - fpr[last, column]) / step, 0.0)
                found[rows] = np.where(np.isfinite(rate + fpr[-1]), tpr[last, column] + rise * share, np.nan)
        return found


def blocks(start: int, stop: int, width: int) -> Iterator[slice]:
    """Yield slices of the rows from ``start`` to ``stop``, of at most :data:`BLOCK` elements.

    A slice has rows x ``width`` elements, and at least one row.
    """
    rows = max(1, BLOCK // width)
    for first in range(start, stop, rows):
        yield slice(first, min(first + rows, stop))
