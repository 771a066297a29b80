"""Compare the source paper's figures with ours on the same items, and explain each correction.

The paper's are computed by :mod:`gapclose.evaluation.protocols.imavb`.

Shapes: N items, D width, F features, R replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gapclose.evaluation.controls.scoring import ControlScorer, JudgedControl
from gapclose.evaluation.protocols.imavb import FOLDS, Protocol, standardised, without_text, words
from gapclose.metrics.bootstrap import ClipBootstrap, Interval
from gapclose.metrics.labels import Action, Labels

FIGURES = {
    "standard": (
        "standard items answered rightly",
        "Ours asks which concept the answer expresses, so another content option is no false alarm; options are scored, not generated.",
    ),
    "rejection": (
        "misleading items rejected rightly",
        "Ours asks which concept the answer expresses; options are scored, not generated.",
    ),
    "balanced": (
        "answers, balanced",
        "Ours is the mean over the cells of modality and concept, with answers judged as above: the same measure as for the reading.",
    ),
    "global": (
        "probe of all items at the peak layer",
        "Ours was fitted, and its layer chosen, on other clips, so it has no bonus for being the best of many layers; it must name the "
        "concept, not only misleading or not.",
    ),
    "probe": (
        "probe of the modality at the peak layer, with standard items of all modalities",
        "Ours is the mean over the modality's cells: always saying standard earns the majority class there, and no more than chance here.",
    ),
    "gap": (
        "gap as the paper shows it: accuracy of that probe minus rejection",
        "Ours judges both sides by the same balanced accuracy: an accuracy over two classes beside the rate of one compares two operating "
        "points, and credits the probe alone with the standard items.",
    ),
    "text": (
        "text alone (TF-IDF of words)",
        "Ours sees words, pairs of words and single characters, the better by cross-validation on other clips.",
    ),
    "encoder": (
        "text alone (sentence encoder)",
        "Ours has its strength chosen by cross-validation on other clips, and must name the concept.",
    ),
    "own": (
        "probe of the modality's own items alone",
        "The same as the probe above without the other modality's standard items: what the next figure is to be compared with.",
    ),
    "residualised": (
        "the same without what predicts the text ({})",
        "Ours takes out what the better of words and characters predicts, fitted on other clips.",
    ),
}
"""name -> (label, effect of the correction), in the order of the report"""
ACCURACIES = ("global", "probe", "text", "encoder", "own", "residualised")
"""figures that are shown with the accuracy of the majority class"""


def set_beside(
    judge: ControlScorer,
    action: Action,
    entries: Sequence[JudgedControl],
    *,
    texts: Sequence[str],
    said: np.ndarray,
    residual_of: Callable[[int], np.ndarray],
    layers: Iterable[int],
    encoded: np.ndarray | None = None,
) -> dict[str, Any]:
    """Build the entry ``protocol`` of ``measurement.json``.

    Args:
        judge: scorer of the reading of the N items. action: their scored answers. entries: our
            controls, as by ``ControlScorer.entry``.
        texts: (N,) questions. said: (N,) index of the option that each generated answer names, -1
            for none.
        residual_of: layer -> (N, D) residuals, called for one layer at a time.
        encoded: (N, F) states of a sentence encoder. Without it, residuals are residualised against
            TF-IDF features.
    """
    labels, clips = judge.labels, judge.clips["all"]
    found: dict[str, Any] = {"name": "imavb", "n_items": len(labels.clip), "n_clips": clips.n, "folds": FOLDS, "peak_layer": None}
    against = "TF-IDF" if encoded is None else "sentence encoder"
    found |= {"residualised_against": against, "layers": [], "figures": [], "skipped": None}
    if not (~labels.standard).any():
        return found | {"skipped": "no item has an alarm as its right concept, so none is misleading"}
    protocol, text = Protocol(labels, clips), words(texts)
    protocol.answers(said)
    found["peak_layer"] = protocol.choose(residual_of, layers)
    if found["peak_layer"] is not None:
        z = residual_of(found["peak_layer"])
        protocol.probes(z)
        protocol.within("own", standardised(z))
        protocol.within("residualised", without_text(z, text if encoded is None else lambda train, held: (encoded[train], encoded[held])))
    else:
        protocol.skip(("probe", "gap", "own", "residualised"), "it takes the peak layer of the figure 'global', which was skipped")
    protocol.within("text", text)
    if encoded is not None:
        protocol.within("encoder", standardised(encoded))
    found["layers"] = [{"layer": layer, "accuracy": Interval.of(value).to_dict()} for layer, value in protocol.layers]
    mine = ours(judge, action, entries)
    for name, (label, correction) in FIGURES.items():
        rows = [
            {
                "scope": f.scope,
                "standard": f.standard,
                "misleading": f.misleading,
                "majority": max(f.standard, f.misleading) / (f.standard + f.misleading) if name in ACCURACIES else None,
                "paper": None if f.value is None else Interval.of(f.value).to_dict(),
                "ours": None if (own := mine.get((name, f.scope))) is None else own.to_dict(),
                "skipped": f.skipped,
            }
            for f in protocol.figures
            if f.name == name
        ]
        found["figures"] += [{"name": name, "label": label.format(against), "correction": correction, "rows": rows}] if rows else []
    return found


def ours(judge: ControlScorer, action: Action, entries: Sequence[JudgedControl]) -> dict[tuple[str, str], Interval]:
    """Return (figure, scope) -> our interval of the corresponding figure, where there is one."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for scope, _, labels, clips in judge.scopes():
        keep = judge.keep[scope]
        right = action.concept(judge.labels)[keep] == labels.concept
        answered, reading = clips.balanced(right, labels), judge.reading[scope].balanced
        if scope == "all":
            found["balanced", scope], found["global", scope] = answered, reading
            continue
        found |= {(name, scope): value for name, value in half_means(clips, labels, right).items()}
        found |= {("probe", scope): reading, ("own", scope): reading, ("gap", scope): reading - answered}
    intervals = {key: Interval.of(value) for key, value in found.items()}
    controls = {"text_only": "text", "text_encoder": "encoder", "residualised": "residualised"}
    for entry in entries:
        if entry.name in controls:
            intervals |= {(controls[entry.name], scope): value for scope, value in entry.balanced.items()}
    return intervals


def half_means(clips: ClipBootstrap, labels: Labels, right: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the mean accuracy over the cells without an alarm (``standard``) and with one
    (``rejection``), each (R + 1,); a half without cells is left out."""
    cells = clips.cell_means(right, labels)
    alarmed = np.isin([name.rsplit("/", 1)[1] for name in labels.cells[1]], labels.alarm)
    halves = {"standard": ~alarmed, "rejection": alarmed}
    return {name: cells[:, these].mean(1) for name, these in halves.items() if these.any()}
