"""The verdict on a modality: a word, and a sentence with the reason.

The rules follow a skeptic's questions. Does the model answer such questions at all? Is the reading
above chance? Does the question text alone do as well? Does a network with random weights? If
nothing is shown: were there enough clips to show it?

Pure functions of arrays.

Shapes: N items, M clips, C concepts, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from gapclose.metrics.bootstrap import ClipBootstrap, Interval, finite
from gapclose.metrics.config import GapConfig
from gapclose.metrics.gap import reading_auroc
from gapclose.metrics.judgeable import ADVICE, ActionQuality
from gapclose.metrics.labels import Labels
from gapclose.metrics.power import balance, clips_needed, minimum_detectable, paired_error
from gapclose.metrics.significance import holm, mcnemar, sign_flip

VERDICTS = {
    "not judgeable": "the model does not answer such questions, so it has no action to compare with",
    "real": "the reading beats the best of the controls tried, beyond chance",
    "readable without training": "networks of the same shape with random weights are read above chance, and the reading is not shown to beat them",
    "explained by text": "the reading is above chance, and ahead of the best control by less than matters",
    "not readable": "the reading is above chance by less than matters",
    "too few clips": "nothing is shown either way",
}


LEAST_CLIPS = 6
"""fewest clips of every concept for any claim; with five, no test by clip reaches a two-sided p of
0.05 (2 / 2^5)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Untrained:
    """The reading compared with networks of the same shape with random weights."""

    kind: str
    """kind of network that gives the best balanced accuracy"""
    draws: int
    accuracy: Interval
    """balanced accuracy, mean over draws; the interval includes the uncertainty of a mean over so
    few draws"""
    chance: float
    """balanced accuracy of guessing among the concepts of the modality"""
    difference: Interval
    """reading - mean over draws, paired by clip; the interval includes the variation between
    networks"""
    p: float
    """two-sided: the larger p of two tests, by sign flips of clips, and of the reading as one more
    draw of such a network; nan for a single concept"""

    @property
    def readable(self) -> bool:
        """Whether a probe reads such networks above chance."""
        return self.accuracy.lower > self.chance

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {"balanced": self.accuracy.to_dict(), "chance": self.chance, "difference": self.difference.to_dict()}
        return {"kind": self.kind, "draws": self.draws, **figures, "p": finite(self.p)}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictEvidence:
    """The evidence for the verdict on one modality."""

    n_clips: int
    rarest: int
    """clips of the rarest concept of the modality; 0 where the AUROC is undefined, e.g. with a
    single concept"""
    auroc: Interval
    """of the reading; 0.5 is chance"""
    auroc_error: float
    """standard error of the AUROC; nan for one clip"""
    reading: Interval
    """balanced accuracy"""
    control: str
    """name of the best control"""
    control_accuracy: Interval
    """balanced accuracy of the best control"""
    difference: Interval
    """reading - control, paired by clip"""
    p: float
    """two-sided p of the difference, by sign flips of clips; not corrected; nan where the AUROC is
    undefined"""
    mcnemar: float
    """exact McNemar p of the same comparison, for reference only: it assumes independent items, so
    it is too small where a clip has several"""
    error: float
    """standard error of the difference by clip; nan for one clip"""
    untrained: Untrained | None = None
    """None where no network with random weights was measured"""

    @property
    def p_of_both(self) -> float:
        """p that the reading beats both the best control and the networks with random weights.

        The larger of the two p-values (an intersection-union test).
        """
        return self.p if self.untrained is None else float(np.maximum(self.p, self.untrained.p))

    @property
    def detectable_auroc(self) -> float:
        """AUROC above 0.5 that this number of clips detects with power 0.8."""
        return minimum_detectable(self.auroc_error, self.n_clips)

    @property
    def detectable(self) -> float:
        """Difference that this number of clips detects with power 0.8."""
        return minimum_detectable(self.error, self.n_clips)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A word of :data:`VERDICTS` with its reason."""

    word: str
    why: str
    p: float
    """:attr:`VerdictEvidence.p_of_both`, Holm-corrected over the modalities; nan where it could not
    be tested"""
    proof: VerdictEvidence

    def to_dict(self) -> dict[str, Any]:
        """For JSON: word, sentence, and the figures that they rest on."""
        proof = self.proof
        return {
            "word": self.word,
            "sentence": self.why,
            "control": proof.control,
            "difference": proof.difference.to_dict(),
            "p": finite(proof.p_of_both),
            "p_holm": finite(self.p),
            "mcnemar": finite(proof.mcnemar),
            "random_weights": None if proof.untrained is None else proof.untrained.to_dict(),
        }


def collect_evidence(
    labels: Labels,
    reading: np.ndarray,
    controls: Mapping[str, np.ndarray],
    config: GapConfig,
    *,
    seed: int,
    untrained: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> dict[str, VerdictEvidence]:
    """Collect the evidence on every modality.

    The control with the best balanced accuracy on these same items is used, which favours the
    control. Include the majority class: a text-only reading below it is too easy to beat.

    Args:
        reading: (N, C) out of fold, or from a probe fitted on other clips.
        controls: name -> (N, C) readings of the same items, at least one.
        untrained: kind of network with random weights -> two or more draws (N, C) of the same
            items.

    Raises:
        ValueError: when there is no control, or shapes differ.
    """
    if not controls:
        raise ValueError("no control to compare the reading with; pass at least the text-only reading and the majority class")
    untrained = untrained or {}
    sizes = {"reading": reading.shape, **{name: control.shape for name, control in controls.items()}}
    sizes |= {f"{kind}, draw {k}": draw.shape for kind, draws in untrained.items() for k, draw in enumerate(draws)}
    wrong = {name: size for name, size in sizes.items() if size != (len(labels.clip), len(labels.concepts))}
    if wrong:
        raise ValueError(f"readings of shape {wrong}; they must be ({len(labels.clip)}, {len(labels.concepts)}): items x concepts")
    found = {}
    for name in sorted(set(labels.modality.tolist())):
        keep = labels.modality == name
        proof = _proof(labels, reading, controls, keep, config, seed)
        found[name] = replace(proof, untrained=_untrained(labels, reading, untrained, keep, config, seed)) if untrained else proof
    return found


def _proof(
    labels: Labels, reading: np.ndarray, controls: Mapping[str, np.ndarray], keep: np.ndarray, config: GapConfig, seed: int
) -> VerdictEvidence:
    part = labels.take(keep)
    clips, (cell, cells) = ClipBootstrap(part.clip, config.replicates, seed), part.cells
    right = reading[keep].argmax(1) == part.concept
    others = {name: control[keep].argmax(1) == part.concept for name, control in controls.items()}
    accuracy = {name: clips.balanced(r, part) for name, r in others.items()}
    best = max(accuracy, key=lambda name: accuracy[name][0])
    balanced = clips.balanced(right, part)
    difference = right.astype(float) - others[best]
    area, area_error = _auroc(clips, part, reading[keep])
    p = sign_flip(difference * balance(cell), part.clip, replicates=config.replicates, seed=seed)
    return VerdictEvidence(
        n_clips=clips.n,
        rarest=min(len(np.unique(part.clip[cell == k])) for k in range(len(cells))) if np.isfinite(area[0]) else 0,
        auroc=Interval.of(area),
        auroc_error=area_error,
        reading=Interval.of(balanced),
        control=best,
        control_accuracy=Interval.of(accuracy[best]),
        difference=Interval.of(balanced - accuracy[best]),
        p=p if np.isfinite(area[0]) else float("nan"),
        mcnemar=mcnemar(right, others[best]),
        error=paired_error(difference, part.clip, cell),
    )


def _untrained(
    labels: Labels, reading: np.ndarray, untrained: Mapping[str, Sequence[np.ndarray]], keep: np.ndarray, config: GapConfig, seed: int
) -> Untrained:
    """Compare the reading with the kind of random network that a probe reads best.

    The kind is chosen on these same items, which favours the networks. The reading beats them only
    where it would beat one more draw. With a standard deviation s of the K draws, that comparison
    has the error ``s sqrt(1 + 1/K)`` and K - 1 degrees of freedom (the prediction interval of
    Student's t).
    """
    part = labels.take(keep)
    clips, (cell, cells) = ClipBootstrap(part.clip, config.replicates, seed), part.cells
    rights = {kind: np.stack([draw[keep].argmax(1) == part.concept for draw in draws]) for kind, draws in untrained.items()}  # (K, N)
    balanced = {kind: np.stack([clips.balanced(r, part) for r in right]) for kind, right in rights.items()}  # (K, R + 1)
    kind = max(balanced, key=lambda k: balanced[k][:, 0].mean())
    right, draws, of_draws = reading[keep].argmax(1) == part.concept, len(rights[kind]), balanced[kind]
    accuracy, spread = of_draws.mean(0), float(of_draws[:, 0].std(ddof=1))
    difference = clips.balanced(right, part) - accuracy
    noise = np.random.default_rng(seed).standard_t(draws - 1, size=len(difference) - 1)
    error, of_mean = spread * np.sqrt(1 + 1 / draws), spread / np.sqrt(draws)
    paired = right - rights[kind].mean(0)
    p = sign_flip(paired * balance(cell), part.clip, replicates=config.replicates, seed=seed)
    if error > 0:
        p = max(p, float(2 * student.sf(abs(difference[0]) / error, draws - 1)))
        difference[1:] += error * noise
        accuracy[1:] = (accuracy[1:] + of_mean * noise).clip(0, 1)
    return Untrained(
        kind=kind,
        draws=draws,
        accuracy=Interval.of(accuracy),
        chance=1 / len(cells),
        difference=Interval.of(difference),
        p=p if len(cells) > 1 else float("nan"),
    )


def _auroc(clips: ClipBootstrap, labels: Labels, reading: np.ndarray) -> tuple[np.ndarray, float]:
    """AUROC of the reading (R + 1,) and its standard error.

    The AUROC is averaged over detections as in :func:`gapclose.metrics.gap.detection`. The error is
    at least that of a chance reading on independent items, ``sqrt((P + N + 1) / (12 P N))`` (Mann &
    Whitney 1947).
    """
    area, floors = reading_auroc(clips, labels, reading), []
    for positives in labels.detections:
        p = int(np.isin(labels.concept, positives).sum())
        n = len(labels.concept) - p
        if p and n:
            floors.append(np.sqrt((p + n + 1) / (12 * p * n)))
    if not floors:
        return area, float("nan")
    spread = float(np.nanstd(area[1:])) if np.isfinite(area[1:]).any() else float("nan")
    return area, max(spread, float(np.mean(floors)))


def decide(
    proofs: Mapping[str, VerdictEvidence], config: GapConfig, *, alpha: float = 0.05, acting: Mapping[str, ActionQuality] | None = None
) -> dict[str, Verdict]:
    """Decide the verdict on every modality, with p-values corrected over the modalities.

    - ``not judgeable``: the model fails a check of :mod:`gapclose.metrics.judgeable`.
    - ``real``: the interval of the AUROC lies above chance; the intervals of the differences to the
      best control and to networks with random weights lie above zero; the corrected p is at most
      ``alpha``.
    - ``explained by text``: the AUROC is above chance. The interval of the difference to the best
      control reaches zero and excludes ``gap.detectable``, which so many clips would have detected;
      or it is at most zero throughout.
    - ``readable without training``: the AUROC is above chance, networks with random weights are
      shown to be read above chance too, and the reading is not shown to beat them. This verdict
      claims that such networks are readable, not that the reading is no better.
    - ``not readable``: the interval of the AUROC includes chance and excludes ``gap.detectable``
      above it, which so many clips would have detected.
    - ``too few clips``: anything else, and every modality with a concept in fewer than
      :data:`LEAST_CLIPS` clips. An undetected difference never counts as absent: an interval that
      contains both zero and ``gap.detectable`` shows nothing.

    Args:
        acting: modality -> whether the model answers its questions; None: not checked.
    """
    corrected = holm({name: proof.p_of_both for name, proof in proofs.items()})
    faults = {name: of.faults for name, of in (acting or {}).items()}
    return {
        name: _verdict(name, proof, corrected[name], len(proofs), config, alpha, faults.get(name, ())) for name, proof in proofs.items()
    }


def _verdict(name: str, proof: VerdictEvidence, p: float, family: int, config: GapConfig, alpha: float, faults: Sequence[str]) -> Verdict:
    readable, random = proof.auroc.lower > 0.5, proof.untrained
    beyond_random = random is None or random.difference.lower > 0
    beats = proof.difference.lower > 0 and beyond_random and p <= alpha
    read = f"{name}: AUROC of the reading {_told(proof.auroc)} on {proof.n_clips} clips"
    versus = (
        f"balanced accuracy {proof.reading.value:.3f} against {proof.control_accuracy.value:.3f} of the best control ({proof.control}),"
        f" a difference of {_told(proof.difference)}"
    )
    learned = (
        f", and against {_told(random.accuracy)} of networks with random weights ({random.kind}, {random.draws} draws), a difference of "
        f"{_told(random.difference)}"
        if random
        else ""
    )
    tested = f", p = {p:.3g}" + (f" corrected for {family} modalities" if family > 1 else "")
    if faults:
        word, why = "not judgeable", f"{name}: the model does not answer such questions: {'; '.join(faults)}. {ADVICE}."
    elif proof.rarest < LEAST_CLIPS:
        word, why = (
            "too few clips",
            f"{read}, but its rarest concept occurs in {proof.rarest} of them; nothing is claimed below {LEAST_CLIPS}.",
        )
    elif readable and beats:
        word, why = "real", f"{read}; {versus}{learned}{tested}."
    elif readable and proof.difference.upper <= 0:
        word, why = "explained by text", f"{read}, above chance; but {versus}{tested}: the control is no worse."
    elif readable and proof.difference.lower <= 0 and max(proof.difference.upper, proof.detectable) <= config.detectable:
        word, why = (
            "explained by text",
            f"{read}, above chance; but {versus}{tested}: {config.detectable:.3f} (gap.detectable) is excluded.",
        )
    elif readable and random and random.readable and not beyond_random:
        word, why = (
            "readable without training",
            f"{read}, above chance; but networks with random weights ({random.kind}, {random.draws} draws) are read at {_told(random.accuracy)}, "
            f"and the lead of the reading, {_told(random.difference)}, is not shown: training need not have put it there.",
        )
    elif readable:
        needs = _needs(proof.error, proof.n_clips, config.detectable)
        if not beyond_random:
            needs += " More networks (controls.random_draws) narrow the difference to those with random weights."
        word, why = "too few clips", f"{read}, above chance; but {versus}{learned}{tested}. {needs}"
    elif max(proof.auroc.upper - 0.5, proof.detectable_auroc) <= config.detectable:
        word, why = "not readable", f"{read}, which does not exclude chance, and excludes {0.5 + config.detectable:.3f} (gap.detectable)."
    else:
        needs = _needs(proof.auroc_error, proof.n_clips, config.detectable)
        word, why = "too few clips", f"{read}, which does not exclude chance. {needs}"
    return Verdict(word=word, why=why, p=p, proof=proof)


def not_established(modalities: Sequence[str], verdicts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the modalities without the verdict ``real``, each with the reason.

    Args:
        verdicts: as in measurement.json, a word and a sentence per modality.
    """
    missing = {"word": "not measured", "sentence": "no labelled val item has this modality."}
    found = {name: verdicts.get(name, missing) for name in modalities}
    return {name: f"{v['word']}. {v['sentence']}" for name, v in found.items() if v["word"] != "real"}


def _needs(error: float, clips: int, wanted: float) -> str:
    found, needed = minimum_detectable(error, clips), clips_needed(error, clips, wanted)
    if found <= wanted:
        return (
            f"So many clips find a difference of {found:.3f} or more, but here one of {wanted:.3f} (gap.detectable) is not excluded either."
        )
    return f"So many clips find a difference of {found:.3f} or more; one of {wanted:.3f} (gap.detectable) takes about {needed}."


def _told(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.lower:.3f}, {interval.upper:.3f}]"
