"""The verdict on a modality: a word, and a sentence with the reason.

The rules follow a skeptic's questions. Does the model answer such questions at all? Is the reading
above chance? Does the question text alone do as well? Does a network with random weights? If
nothing is shown: were there enough clips to show it?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gapclose.metrics.bootstrap import Interval, finite
from gapclose.metrics.config import GapConfig
from gapclose.metrics.judgeable import ADVICE, ActionQuality
from gapclose.metrics.power import clips_needed, minimum_detectable
from gapclose.metrics.significance import holm
from gapclose.metrics.verdict_evidence import VerdictEvidence

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
