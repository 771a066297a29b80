"""Search for a probe: layers x families x regularisation, by out-of-fold likelihood within ``fit``.

Candidates are compared by their likelihood given the modality that a question is about. The
question text reveals the modality; where the remaining signal is weak, a layer that encodes only
the modality would otherwise win. Every candidate has its own temperature, fitted on the same
out-of-fold logits. Folds never split a clip.

One layer (or stack of layers) is in memory at a time, and the processes of a launch can divide the
layers. docs/how-to/large-sets.md lists the memory needed besides the N x D residuals.

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
from gapclose.core.logging import get_logger, progress
from gapclose.probes.config import ProbeConfig
from gapclose.probes.cross_validation import fit_temperature, grouped_folds, out_of_fold
from gapclose.probes.linear import FrozenProbe, fit_linear, side_by_side
from gapclose.probes.logistic import held_out

logger = get_logger(__name__)

TOLERANCE = 1e-3
"""of the logistic probes while they are compared: largest relative error of their weights. That
bounds no held-out probability. Measured: at most 5e-4 off on the synthetic residuals of
``benchmarks/probes.py --layers 2 --n 1000 --width 896``, with two and with three classes, C up to 1.
The chosen probe is fitted again in float64"""
LARGE = 1_000_000
"""numbers (N x D) of a layer from which its logistic probes are searched on an accelerator; moving a
smaller one costs as much as fitting it here"""
WRONG_LABELS = 0.2
"""largest share of wrong labels, 0..1, with which :func:`possible_concepts` still recognises a
concept that no question of a modality asks about"""


def _searched(
    z: torch.Tensor,
    settings: Sequence[tuple[str, float]],
    y: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    devices: list[torch.device],
) -> Iterator[tuple[tuple[str, float], np.ndarray]]:
    """Yield (family, strength) with its out-of-fold logits (N, C) on residuals (N, D).

    The logistic probes are all fitted together, on the device of ``devices``, if one is there and
    there are :data:`LARGE` residuals. Where its memory is too small it is taken off the list.
    """
    together = [strength for family, strength in settings if family == "logistic"]
    logistic = iter(_logistic(z, y, folds, together, devices)) if together else iter(())
    alone = z.double().cpu().numpy() if len(together) < len(settings) else np.empty(0)
    del z
    for family, strength in settings:
        yield (family, strength), next(logistic) if family == "logistic" else out_of_fold(alone, y, folds, family, strength)


def _logistic(
    z: torch.Tensor,
    y: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    strengths: Sequence[float],
    devices: list[torch.device],
) -> np.ndarray:
    """Out-of-fold logits (S, N, C) of the logistic probes, in float64."""

    def fitted(where: torch.Tensor) -> np.ndarray:
        return held_out(where, torch.as_tensor(y), folds, strengths, tolerance=TOLERANCE).cpu().double().numpy()

    if devices and z.numel() >= LARGE:
        try:
            return fitted(z.to(devices[0]))
        except torch.OutOfMemoryError:  # the error holds the tensors, so what follows stands outside
            logger.info(
                f"probe.device: {devices[0]} has too little free memory for a layer of {len(z)} x {z.shape[1]}; searching on the CPU"
            )
        devices.clear()
    return fitted(z)


def possible_concepts(y: np.ndarray, modality: np.ndarray, concepts: int) -> np.ndarray:
    """Whether questions of an item's modality (row) ask about a concept (column): (N, C), bool.

    Wrong labels alone can put a concept into a modality whose questions do not ask about it. With a
    share w of wrong labels, at most :data:`WRONG_LABELS`, drawn evenly among the concepts or by
    their frequency, such a concept has w / C of the labels there, or w times its share of all
    labels. A concept is therefore treated as not asked about in a modality where both hold:

    - its labels there are at most the greater of these two numbers plus one standard deviation of
      such a count;
    - its share there is less than half of its share of all labels, since a concept that is rare
      everywhere is asked about everywhere.

    The two most frequent concepts of a modality are always possible in it, if it has two; otherwise
    no concepts could be distinguished there. Wrong labels that all name one concept are taken for
    real questions.
    """
    found, share = np.zeros((len(y), concepts), dtype=bool), np.bincount(y, minlength=concepts) / len(y)
    for name in np.unique(modality):
        there = modality == name
        count, items = np.bincount(y[there], minlength=concepts), int(there.sum())
        by_mistake = items * WRONG_LABELS * np.maximum(1 / concepts, share)
        doubtful = (count <= by_mistake + np.sqrt(by_mistake)) & (count < 0.5 * share * items)
        doubtful[np.argsort(-count, kind="stable")[:2]] = False  # of equally frequent ones the first in the set's order
        found[there] = (count > 0) & ~doubtful
    return found


def not_asked(y: np.ndarray, modality: np.ndarray, concepts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Modality -> concept -> number of labels that :func:`possible_concepts` treats as mistakes.

    For the log and the probe's file; empty where there are none.
    """
    possible, found = possible_concepts(y, modality, len(concepts)), dict[str, dict[str, int]]()
    for name in np.unique(modality):
        there = modality == name
        lost = {c: int((there & (y == k) & ~possible[:, k]).sum()) for k, c in enumerate(concepts)}
        if lost := {c: count for c, count in lost.items() if count}:
            found[str(name)] = lost
    return found


def not_asked_words(found: Mapping[str, Mapping[str, int]]) -> str:
    """Return the log message on :func:`not_asked`; empty where nothing was found."""
    parts = [f"{name}: " + ", ".join(f"{c} ({count} items)" for c, count in of.items()) for name, of in found.items()]
    return (
        f"choosing the probe leaves out labels that are taken for mistakes, since their concept seems not to be asked about there: {'; '.join(parts)}"
        if parts
        else ""
    )


def score(logits: np.ndarray, y: np.ndarray, possible: np.ndarray) -> dict[str, float]:
    """Score logits (N, C) against the concepts ``y``.

    Args:
        possible: (N, C), :func:`possible_concepts`.

    Returns:
        ``log_likelihood`` in nats at the best ``temperature`` (that of the probe's reading);
        ``given_modality``, by which probes are chosen: the same among the possible concepts alone,
        at its own best temperature, over the items whose label is possible; and ``accuracy``.
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
    """one row per (layers, family, strength) with its out-of-fold :func:`score`; ``layer`` is the
    highest"""
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
    device: torch.device | None = None,
    spread: bool = False,
) -> Choice:
    """Search layers x families x regularisation by cross-validation, then fit the best.

    With ``config.stack`` above 1, the two best single layers are then tried concatenated, the three
    best, and so on, in the same folds and with all families and strengths. Of equals the one with
    the fewest layers is kept, then the lowest layers, then the family and the strength named first
    in the configuration.

    Args:
        residuals: layer -> (N, D).
        y: concept index per item, (N,); every concept must occur.
        clips: group per item, (N,); no fold splits one.
        layers: candidates; a stack has at most as many layers.
        modality: the modality that an item's question is about, (N,); None: the same for all.
        settings: (family, strength) pairs; default those of ``config``.
        device: where the logistic family is searched, one layer at a time, in float32 (in float64 if
            the residuals are); None: where the residuals are. Small layers stay there too
            (:data:`LARGE`). Other families and the last fit are computed on the CPU in float64.
        spread: search across ranks; all processes of the launch make the same call. Each searches
            every W-th layer or stack, the main one fits the chosen probe, and all return the result
            of a single process, bit for bit if that has as many threads.

    Raises:
        ValueError: when a concept has no item or too few clips.
    """
    absent = [c for i, c in enumerate(concepts) if i not in set(y.tolist())]
    if absent:
        raise ValueError(f"no labelled item expresses {absent}; a probe for {list(concepts)} needs some of each")
    folds, settings = grouped_folds(y, clips, config.folds, seed), settings or config.settings()
    devices = [] if device is None else [device]
    modality = np.zeros(len(y)) if modality is None else modality
    possible = possible_concepts(y, modality, len(concepts))

    def rows(stack: tuple[int, ...]) -> list[dict[str, Any]]:
        searched = _searched(side_by_side(residuals, stack), settings, y, folds, devices)
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
        logits = out_of_fold(z, y, folds, row["family"], row["strength"])  # in double precision, as fresh probes are fitted later
        row.update(score(logits, y, possible))
        log_reading = log_softmax(logits / row["temperature"], axis=1)
        mean, scale, weight, bias = fit_linear(z, y, row["family"], row["strength"])
        probe = FrozenProbe(
            mean=mean, scale=scale, weight=weight, bias=bias, concepts=concepts,
            **{k: row[k] for k in ("temperature", "layers", "family", "strength")},
        )  # fmt: skip
        return Choice(probe=probe, reading=np.exp(log_reading), table=table, not_asked=not_asked(y, modality, concepts))

    return run_on_main(fitted) if spread else fitted()
