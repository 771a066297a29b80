"""The search for a probe: layers x families x regularisation, by out-of-fold log-likelihood within ``fit``.

Every candidate is judged by what it tells beyond the modality that a question is about: the question's words give that away, and where the
rest is faint, a layer that knows nothing else would win by it. Every candidate has a temperature of its own, fitted on the same out-of-fold
logits; folds never split a clip.

One layer (or stack of layers) is in memory at a time, and the processes of a launch can share the layers out. What that takes beside the N x D
residuals themselves: docs/scaling.md.

Shapes: N items, D width (of all layers of a probe together), C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from gapclose.core.distributed import map_across_ranks, run_on_main
from gapclose.core.logging import progress
from gapclose.probes.config import ProbeConfig
from gapclose.probes.cross_validation import fit_temperature, grouped_folds, out_of_fold
from gapclose.probes.linear import FrozenProbe, fit_linear, side_by_side
from gapclose.probes.logistic import held_out

WRONG_LABELS = 0.2
"""share of wrong labels, 0..1, up to which a concept that is not asked about in a modality is recognised (:func:`possible_concepts`)"""


def _searched(
    z: torch.Tensor, settings: Sequence[tuple[str, float]], y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[tuple[str, float], np.ndarray]]:
    """(family, strength) with its out-of-fold logits (N, C) on residuals (N, D); the logistic probes are all fitted together."""
    together = [strength for family, strength in settings if family == "logistic"]
    logistic = iter(held_out(z, torch.as_tensor(y), folds, together).double().cpu().numpy() if together else ())
    alone = z.double().cpu().numpy() if len(together) < len(settings) else np.empty(0)
    del z
    for family, strength in settings:
        yield (family, strength), next(logistic) if family == "logistic" else out_of_fold(alone, y, folds, family, strength)


def possible_concepts(y: np.ndarray, modality: np.ndarray, concepts: int) -> np.ndarray:
    """Whether a concept (column) is asked about among the items of an item's modality (row): (N, C), bool.

    Of wrong labels alone a concept occurs where nobody asks about it. With a share w of them wrong, at most :data:`WRONG_LABELS`, drawn evenly
    among the concepts or as these occur, its share of the labels there is w / C or w times its share of all labels. So a concept is taken for
    not asked about in a modality where both hold:

    - its labels there are no more than the greater of the two explains, and one standard deviation of such a count;
    - its share there is less than half of its share of all labels: what is rare everywhere is asked about everywhere.

    The two most frequent concepts of a modality are always possible in it, where it has two: nothing else can be told apart there. Wrong labels
    that all name one concept pass for a question.
    """
    found, share = np.zeros((len(y), concepts), dtype=bool), np.bincount(y, minlength=concepts) / len(y)
    for name in np.unique(modality):
        there = modality == name
        count, items = np.bincount(y[there], minlength=concepts), int(there.sum())
        by_mistake = items * WRONG_LABELS * np.maximum(1 / concepts, share)
        doubtful = (count <= by_mistake + np.sqrt(by_mistake)) & (count < 0.5 * share * items)
        doubtful[np.argsort(-count, kind="stable")[:2]] = False  # of equally frequent ones the first of the set's concepts
        found[there] = (count > 0) & ~doubtful
    return found


def not_asked(y: np.ndarray, modality: np.ndarray, concepts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Modality -> concept -> labels that :func:`possible_concepts` takes for mistakes; for the log and the probe's file, empty where there are none."""
    possible, found = possible_concepts(y, modality, len(concepts)), dict[str, dict[str, int]]()
    for name in np.unique(modality):
        there = modality == name
        lost = {c: int((there & (y == k) & ~possible[:, k]).sum()) for k, c in enumerate(concepts)}
        if lost := {c: count for c, count in lost.items() if count}:
            found[str(name)] = lost
    return found


def not_asked_words(found: Mapping[str, Mapping[str, int]]) -> str:
    """What :func:`not_asked` found, for the log; empty where that is nothing."""
    parts = [f"{name}: " + ", ".join(f"{c} ({count} items)" for c, count in of.items()) for name, of in found.items()]
    return (
        f"choosing the probe leaves out labels that are taken for mistakes, since their concept seems not to be asked about there: {'; '.join(parts)}"
        if parts
        else ""
    )


def score(logits: np.ndarray, y: np.ndarray, possible: np.ndarray) -> dict[str, float]:
    """How well logits (N, C) tell the concepts ``y``.

    Args:
        possible: (N, C), :func:`possible_concepts`.

    Returns:
        ``log_likelihood`` in nats at the best ``temperature`` (of the probe's reading), ``given_modality`` (the same among the possible concepts
        alone, at the temperature that is best for it, over the items whose label is possible: what probes are chosen by) and ``accuracy``.
    """
    temperature, counts = fit_temperature(logits, y), possible[np.arange(len(y)), y]
    narrowed, named = np.where(possible, logits, -np.inf)[counts], y[counts]
    return {
        "log_likelihood": _log_likelihood(logits / temperature, y),
        "given_modality": _log_likelihood(narrowed / fit_temperature(narrowed, named), named),
        "temperature": temperature,
        "accuracy": float((logits.argmax(1) == y).mean()),
    }


def _log_likelihood(logits: np.ndarray, y: np.ndarray) -> float:
    return float(log_softmax(logits, axis=1)[np.arange(len(y)), y].mean())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The outcome of the cross-validated search."""

    probe: FrozenProbe
    reading: np.ndarray
    """(N, C) out-of-fold r(c|x) of the chosen setting on the fit items"""
    table: list[dict[str, Any]]
    """one row per (layers, family, strength) with its out-of-fold :func:`score`; ``layer`` is the highest"""
    not_asked: dict[str, dict[str, int]] = field(default_factory=dict)
    """:func:`not_asked` of the fit items"""


def choose_probe(
    residuals: Mapping[int, torch.Tensor],
    y: np.ndarray,
    clips: np.ndarray,
    concepts: Sequence[str],
    config: ProbeConfig,
    *,
    layers: Sequence[int],
    modality: np.ndarray | None = None,
    settings: Sequence[tuple[str, float]] | None = None,
    seed: int,
    label: str = "choosing the probe",
    spread: bool = False,
) -> Choice:
    """Search layers x families x regularisation by grouped cross-validation, then fit the best on everything.

    With ``config.stack`` above 1, the two layers that are best by themselves are then tried side by side, the three best, and so on, in
    the same folds and with all families and strengths. Of equals the fewest layers are kept, then the lowest, then the family and the strength
    that the configuration names first.

    Args:
        residuals: layer -> (N, D); the logistic family is searched on their device.
        y: concept index per item, (N,); every concept must occur.
        clips: group per item, (N,).
        layers: candidates; there are no stacks of more than these.
        modality: what an item's question is about, (N,); None: the same for all.
        spread: all processes of the launch call this alike. Each then searches every W-th layer or stack, the main one fits what is chosen,
            and all return what one process would, to the bit where it has as many threads.

    Raises:
        ValueError: when a concept has no item or too few clips.
    """
    absent = [c for i, c in enumerate(concepts) if i not in set(y.tolist())]
    if absent:
        raise ValueError(f"no labelled item expresses {absent}; a probe for {list(concepts)} needs some of each")
    folds, settings = grouped_folds(y, clips, config.folds, seed), settings or config.settings()
    modality = np.zeros(len(y)) if modality is None else modality
    possible = possible_concepts(y, modality, len(concepts))

    def rows(stack: tuple[int, ...]) -> list[dict[str, Any]]:
        searched = _searched(side_by_side(residuals, stack), settings, y, folds)
        return [
            {"layer": stack[-1], "layers": list(stack), "family": family, "strength": strength, **score(logits, y, possible)}
            for (family, strength), logits in searched
        ]

    def search(stacks: Sequence[tuple[int, ...]], label: str) -> list[dict[str, Any]]:
        found = map_across_ranks(stacks, rows, label) if spread else [rows(stack) for stack in progress(stacks, len(stacks), label)]
        return [row for of in found for row in of]

    table = search([(layer,) for layer in layers], label)
    best = {layer: max(r["given_modality"] for r in table if r["layer"] == layer) for layer in layers}
    ranked = sorted(layers, key=lambda layer: -best[layer])
    stacks = [tuple(sorted(ranked[:k])) for k in range(2, min(config.stack, len(layers)) + 1)]
    table += search(stacks, f"{label}, layers side by side") if stacks else []

    def fitted() -> Choice:
        row = max(table, key=lambda r: r["given_modality"])  # the first of equals
        z = side_by_side(residuals, row["layers"]).double().cpu().numpy()
        logits = out_of_fold(z, y, folds, row["family"], row["strength"])  # as a fresh probe is read later, in double precision
        row.update(score(logits, y, possible))
        log_reading = log_softmax(logits / row["temperature"], axis=1)
        mean, scale, weight, bias = fit_linear(z, y, row["family"], row["strength"])
        probe = FrozenProbe(
            mean=mean, scale=scale, weight=weight, bias=bias, concepts=concepts,
            **{k: row[k] for k in ("temperature", "layers", "family", "strength")},
        )  # fmt: skip
        return Choice(probe=probe, reading=np.exp(log_reading), table=table, not_asked=not_asked(y, modality, concepts))

    return run_on_main(fitted) if spread else fitted()
