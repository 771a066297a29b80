"""What the base model's stored observations give without training: the inference-time baselines of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gapclose.baselines.comparison import compare
from gapclose.baselines.operating import Seen
from gapclose.examine.features import text_out_of_fold
from gapclose.measure import scored
from gapclose.progress import say

if TYPE_CHECKING:
    from gapclose.examine.examination import Examination


def untrained(of: Examination) -> dict[str, Any] | None:
    """The entry ``baselines`` of ``measurement.json``, or None, with a line that says so, where no concept is an alarm."""
    known, text, folds = of.known, of.run.text, of.folds
    if not known.alarm:
        say("no inference-time baselines: the item set has no alarm concepts, so there are no rejections to move")
        return None
    say("inference-time baselines")
    fit = Seen(
        scores=scored(known, of.seen_fit).scores,
        option_concept=known.option_concept,
        residual=of.z_fit,
        reading=of.run.fit_reading,
        text=text_out_of_fold([i.text for i in of.fit], known.concept, known.clip, text, known=known.modality, **folds),
    )
    test = Seen(scores=of.action.scores, option_concept=of.labels.option_concept, residual=of.z, reading=of.reading, text=text.reading)
    return compare(fit, known, test, of.labels, of.judge.clips["all"], **folds)
