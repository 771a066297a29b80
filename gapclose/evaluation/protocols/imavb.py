"""The source paper's own figures ("Senses Wide Shut"), for comparison with its tables.

They are computed as in the paper (arXiv 2605.13737) and its code (github.com/ngquangtrung57/imavb,
``experiments/probing``), flaws included: every layer is probed on the folds on which its accuracy
is reported. The paper leaves two things open: intervals, and items without the paper's structure.
Premises are unknown here: an item is *misleading* when its right concept is an alarm, and
*standard* otherwise. :mod:`gapclose.evaluation.protocols.compare` compares these figures with ours.

Shapes: N items, D width, F features, R replicates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from gapclose.evaluation.controls.residualize import text_directions
from gapclose.metrics.bootstrap import ClipBootstrap
from gapclose.metrics.labels import Labels

FOLDS, SEED, WORDS = 4, 42, 5000
NOTHING = 1e-9  # share of the residuals' variance below which only rounding is left


class Lacking(ValueError):
    """The items do not suffice for a figure, which is skipped."""


Features = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""indices of the items to fit on and of those to judge -> features of both; only the first are
fitted on"""


# -- features, fitted anew in every fold --------------------------------------------------------


def standardised(values: np.ndarray) -> Features:
    """Standardise values (N, F) by mean and scale of the items to fit on."""

    def of(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaler = StandardScaler().fit(values[train])
        return np.asarray(scaler.transform(values[train])), np.asarray(scaler.transform(values[held]))

    return of


def words(texts: Sequence[str]) -> Features:
    """TF-IDF of at most 5,000 words of two letters or more, not standardised."""
    every = np.array(list(texts), dtype=object)

    def of(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors = TfidfVectorizer(max_features=WORDS)
        try:
            vectors.fit(every[train])
        except ValueError as error:  # no word of two letters
            raise Lacking(str(error)) from error
        return vectors.transform(every[train]).toarray(), vectors.transform(every[held]).toarray()

    return of


def without_text(residual: np.ndarray, text: Features) -> Features:
    """Residualise standardised residuals (N, D) against standardised text features.

    The result is standardised again.

    Raises:
        Lacking: when nothing is left in a fold, i.e. with as many text features as items or
            directions.
    """

    def of(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h, g = (part.astype(float) for part in standardised(residual)(train, held))
        features = np.asarray(StandardScaler().fit_transform(text(train, held)[0]))
        out = text_directions(h, features)  # (D, k)
        left, judged = h - h @ out @ out.T, g - g @ out @ out.T
        if (left**2).sum() < NOTHING * (h**2).sum():
            raise Lacking(
                f"the {features.shape[1]} text features predict everything that tells the {len(train)} items of a fold apart, so nothing is "
                "left to probe; give controls.text_encoder, which has fewer features, or more items"
            )
        scaler = StandardScaler().fit(left)
        return np.asarray(scaler.transform(left)), np.asarray(scaler.transform(judged))

    return of


# -- the probe ----------------------------------------------------------------------------------


class Held(NamedTuple):
    """Held-out predictions of one cross-validation."""

    right: np.ndarray
    """(N,) bool; False for items outside the cross-validation"""
    fold: np.ndarray
    """(N,) int, -1 for items outside the cross-validation"""


def folds(y: np.ndarray, clips: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, held) indices of the paper's four folds by clip.

    ``StratifiedGroupKFold(4, shuffle=True, random_state=42)``.

    Raises:
        Lacking: when standard (0) or misleading (1) items come from fewer clips than folds, or a
            fold has one class to train on or no item to judge.
    """
    for label, name in enumerate(("standard", "misleading")):
        count = len(np.unique(clips[y == label]))
        if count < FOLDS:
            raise Lacking(f"its {name} items are of {count} clips, and {FOLDS} folds by clip need {FOLDS} or more; add labelled clips")
    parts = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED).split(y, y, clips))
    if any(len(np.unique(y[train])) < 2 or not len(held) for train, held in parts):
        raise Lacking(f"{len(np.unique(clips))} clips of such sizes give no {FOLDS} folds with both classes; add labelled clips")
    return parts


def cross_validate(features: Features, keep: np.ndarray, misleading: np.ndarray, clips: np.ndarray) -> Held:
    """Fit the paper's probe where ``keep`` (N,) is true: logistic regression (C = 1) of misleading.

    Raises:
        Lacking: as :func:`folds` and the features do.
    """
    items, y = np.flatnonzero(keep), misleading.astype(int)
    right, fold = np.zeros(len(y), dtype=bool), np.full(len(y), -1)
    for k, (train, held) in enumerate(folds(y[items], clips[items])):
        known, unknown = features(items[train], items[held])
        model = LogisticRegression(C=1.0, solver="lbfgs", max_iter=1000, random_state=SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as in the paper, 1,000 steps
            model.fit(known, y[items[train]])
        right[items[held]] = model.predict(unknown) == y[items[held]]
        fold[items[held]] = k
    return Held(right, fold)


def fold_mean(clips: ClipBootstrap, held: Held) -> np.ndarray:
    """Compute the mean of the folds' accuracies, (R + 1,): the paper's figure, then clip
    replicates with fixed probes."""
    parts = np.stack([clips.mean(held.right, held.fold == k) for k in range(FOLDS)])
    there = np.isfinite(parts)  # a replicate may have no item of a fold
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, parts, 0).sum(0) / there.sum(0)


# -- the figures --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the protocol, for one modality or ``all`` items."""

    name: str
    scope: str
    value: np.ndarray | None
    """(R + 1,), or None with the reason in ``skipped``"""
    skipped: str | None
    standard: int
    """number of standard items"""
    misleading: int
    """number of misleading items"""


class Protocol:
    """The paper's figures on one set of items; a figure that cannot be computed is skipped with
    the reason."""

    def __init__(self, labels: Labels, clips: ClipBootstrap) -> None:
        """``clips`` resamples the clips of the items."""
        self.labels, self.clips, self.misleading = labels, clips, ~labels.standard
        self.modalities = {m: labels.modality == m for m in np.unique(labels.modality).tolist()}
        self.all = np.ones(len(labels.clip), dtype=bool)
        self.figures: list[Figure] = []
        self.layers: list[tuple[int, np.ndarray]] = []
        """(layer, accuracy (R + 1,)) of the probe of all items"""

    def _add(self, name: str, scope: str, keep: np.ndarray, compute: Callable[..., np.ndarray], *arguments: Any) -> None:
        value, skipped = None, None
        try:
            value = compute(*arguments)
        except Lacking as error:
            skipped = str(error)
        counts = {"standard": int((keep & ~self.misleading).sum()), "misleading": int((keep & self.misleading).sum())}
        self.figures.append(Figure(name=name, scope=scope, value=value, skipped=skipped, **counts))

    def _values(self, name: str, scope: str | None = None) -> list[np.ndarray]:
        """Return the values found under a name.

        Raises:
            Lacking: when there are none.
        """
        values = [f.value for f in self.figures if f.name == name and scope in (None, f.scope) and f.value is not None]
        if not values:
            raise Lacking(f"it takes the figure {name!r}, which was skipped")
        return values

    def _probe(self, features: Features, keep: np.ndarray) -> np.ndarray:
        return fold_mean(self.clips, cross_validate(features, keep, self.misleading, self.labels.clip))

    def answers(self, said: np.ndarray) -> None:
        """Add the four cells and their balanced accuracy. ``said`` (N,): option that each answer
        names, -1 for none."""
        right = said == self.labels.gold
        for name, kind, these in (("standard", "standard", ~self.misleading), ("rejection", "misleading", self.misleading)):
            for modality, mine in self.modalities.items():
                self._add(name, modality, these & mine, self._cell, right, these & mine, kind)
        self._add("balanced", "all", self.all, self._balanced)

    def _cell(self, right: np.ndarray, keep: np.ndarray, kind: str) -> np.ndarray:
        if not keep.any():
            raise Lacking(f"it has no {kind} items")
        return self.clips.mean(right, keep)

    def _balanced(self) -> np.ndarray:
        return np.mean([np.mean(self._values(name), axis=0) for name in ("standard", "rejection")], axis=0)

    def choose(self, residual_of: Callable[[int], np.ndarray], layers: Iterable[int]) -> int | None:
        """Probe all items at every layer; return the layer with the highest accuracy.

        The lowest of equals is taken.

        Args:
            residual_of: layer -> (N, D) residuals, called for one layer at a time.
        """
        self._add("global", "all", self.all, self._highest, residual_of, layers)
        return max(self.layers, key=lambda row: row[1][0])[0] if self.layers else None

    def _highest(self, residual_of: Callable[[int], np.ndarray], layers: Iterable[int]) -> np.ndarray:
        self.layers = [(layer, self._probe(standardised(residual_of(layer)), self.all)) for layer in layers]
        return max((accuracy for _, accuracy in self.layers), key=lambda accuracy: accuracy[0])

    def probes(self, z: np.ndarray) -> None:
        """Probe each modality: its misleading items against the standard ones of all modalities.
        ``z`` (N, D): the peak layer."""
        features = standardised(z)
        for modality, mine in self.modalities.items():
            keep = mine | ~self.misleading
            self._add("probe", modality, keep, self._probe, features, keep)
        for modality, mine in self.modalities.items():
            self._add("gap", modality, mine | ~self.misleading, self._difference, modality)

    def _difference(self, modality: str) -> np.ndarray:
        """Accuracy over two classes minus the rate of one, as in the paper's table."""
        return self._values("probe", modality)[0] - self._values("rejection", modality)[0]

    def skip(self, names: Sequence[str], why: str) -> None:
        """Mark figures as skipped for every modality, with the reason."""
        for name in names:
            for modality, mine in self.modalities.items():
                self._add(name, modality, mine, self._lacking, why)

    def _lacking(self, why: str) -> np.ndarray:
        raise Lacking(why)

    def within(self, name: str, features: Features) -> None:
        """Probe any features on the standard and misleading items of each modality."""
        for modality, mine in self.modalities.items():
            self._add(name, modality, mine, self._probe, features, mine)
