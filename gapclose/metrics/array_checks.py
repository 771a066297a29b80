"""Convert and check the arrays that a user passes; every fault is a sentence with the row and the remedy.

Shapes: N items, C concepts, O options, K columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp

SUM_TOLERANCE = 1e-3
"""largest accepted difference between an item's probability sum and one; half precision causes such
differences"""
PADDING = (-100, -1)
"""values used as padding in token labels"""

Array = Any
"""numpy array, torch tensor, or nested lists of numbers"""


def numbers(name: str, value: Array, faults: list[str]) -> np.ndarray:
    """Convert an array, a tensor or nested lists to (N, K) float64."""
    if hasattr(value, "detach"):  # a torch tensor, which may be half precision or on a GPU
        value = value.detach().cpu().double().numpy()
    array = np.asarray(value, dtype=float)
    if array.ndim != 2 or 0 in array.shape:
        faults.append(
            f"{name} has shape {array.shape}; it must be two-dimensional: items x {'options' if name == 'scores' else 'concepts'}"
        )
        return np.zeros((0, 1))
    return array


def whole_numbers(name: str, value: Array, faults: list[str]) -> np.ndarray:
    """Convert to (N,) int."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        faults.append(f"{name} has shape {array.shape} and type {array.dtype}; it must be one whole number for every item")
        return np.zeros(0, dtype=int)
    return array.astype(int)


def names(value: Array) -> np.ndarray:
    """Convert to (N,) names or numbers; in object arrays None and nan become an empty text."""
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    if array.dtype == object:
        return np.array(["" if v is None or v != v else str(v) for v in array.tolist()])
    return array


def nameless(values: np.ndarray) -> list[int]:
    """Return the rows without a name: nan or an empty text."""
    kind = values.dtype.kind
    absent = np.isnan(values) if kind == "f" else values == "" if kind == "U" else np.zeros(len(values), dtype=bool)
    return np.flatnonzero(absent).tolist()


def probability_faults(name: str, array: np.ndarray) -> list[str]:
    """Return the faults of (N, C) probabilities."""
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
        logs = " They look like log-probabilities; pass their exponentials" if np.nanmax(array) <= 0 else ""
        return [f"{name} has values that are not finite, first in row {row}.{logs}"]
    if (array <= 0).all() and np.allclose(np.asarray(logsumexp(array, axis=1)), 0, atol=SUM_TOLERANCE):
        return [f"{name} holds log-probabilities; pass their exponentials"]
    if (array < 0).any() or (array > 1 + SUM_TOLERANCE).any():
        row = int(np.flatnonzero(((array < 0) | (array > 1 + SUM_TOLERANCE)).any(1))[0])
        return [f"{name} must lie between 0 and 1; row {row} is {array[row].round(4).tolist()}. Apply a softmax to logits"]
    off = np.abs(array.sum(1) - 1)
    if (off > SUM_TOLERANCE).any():
        row = int(off.argmax())
        return [f"{name} must sum to one over the concepts; row {row} sums to {array[row].sum():.4g}"]
    return []


def score_faults(array: np.ndarray) -> list[str]:
    """Return the faults of (N, O) scores."""
    bad = np.isnan(array) | np.isposinf(array)
    if bad.any():
        return [f"scores has values that are nan or infinite, first in row {int(np.flatnonzero(bad.any(1))[0])}"]
    empty = np.isneginf(array).all(1)
    return [f"scores has no finite value in row {int(np.flatnonzero(empty)[0])}; every item needs an option"] if empty.any() else []


def label_faults(concept: np.ndarray, c: int) -> list[str]:
    """Return the faults of (N,) labels."""
    padded = np.isin(concept, PADDING)
    if padded.any():
        where = f"{concept[padded][0]} in {padded.sum()} rows, first in row {int(np.flatnonzero(padded)[0])}"
        return [f"labels has {where}: that is padding, or an item without a label; leave such items out"]
    bad = (concept < 0) | (concept >= c)
    return (
        [f"labels must lie in 0..{c - 1}, the columns of readings; row {int(np.flatnonzero(bad)[0])} is {concept[bad][0]}"]
        if bad.any()
        else []
    )


def concepts_of_options(option_concept: Array | None, scores: np.ndarray, c: int, faults: list[str]) -> np.ndarray:
    """(N, O) concept of every option, -1 where an item has no such option."""
    if option_concept is None:
        if scores.shape[1] != c:
            faults.append(
                f"scores has {scores.shape[1]} options and readings {c} concepts; pass option_concept, the concept of every option"
            )
            return np.zeros_like(scores, dtype=int)
        found = np.broadcast_to(np.arange(c), scores.shape)
    else:
        found = np.asarray(option_concept)
        if found.shape not in (scores.shape, scores.shape[1:]) or found.dtype.kind not in "iu":
            faults.append(f"option_concept has shape {found.shape}; it must be {scores.shape[1:]} or {scores.shape}, whole numbers")
            return np.zeros_like(scores, dtype=int)
        if found.min() < -1 or found.max() >= c:
            faults.append(f"option_concept must lie in -1..{c - 1}; it holds {found.min()} to {found.max()}")
        found = np.broadcast_to(found, scores.shape)
    return np.where(np.isneginf(scores), -1, found)


def right_options(gold: Array | None, concept: np.ndarray, table: np.ndarray, faults: list[str]) -> np.ndarray:
    """(N,) index of the right option."""
    if gold is not None:
        found = whole_numbers("gold", gold, faults)
        if len(found) != len(concept) or (found < 0).any() or (found >= table.shape[1]).any():
            faults.append(f"gold must hold one index of an option, 0..{table.shape[1] - 1}, for each of {len(concept)} items")
            return np.zeros(len(concept), dtype=int)
        wrong = np.flatnonzero(table[np.arange(len(concept)), found] != concept)
        if len(wrong):
            faults.append(
                f"gold of row {wrong[0]} is option {found[wrong[0]]}, which does not express the right concept {concept[wrong[0]]}"
            )
        return found
    fitting = table == concept[:, None]
    if (fitting.sum(1) == 0).any():
        row = int(np.flatnonzero(fitting.sum(1) == 0)[0])
        faults.append(f"no option of row {row} expresses its right concept {concept[row]}; leave the item out, or correct option_concept")
    elif (fitting.sum(1) > 1).any():
        row = int(np.flatnonzero(fitting.sum(1) > 1)[0])
        faults.append(f"several options of row {row} express its right concept; pass gold, the index of the right option")
    return fitting.argmax(1)
