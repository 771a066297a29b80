"""Controls of one split: the base model's observations, the probe's reading, and most controls.

Shapes: M fit items, N judged items, D width, L decoder layers, C concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from gapclose.core.logging import progress
from gapclose.evaluation.context import EvaluationContext
from gapclose.evaluation.controls.blank_media import blank_controls, blank_sets, blank_stage
from gapclose.evaluation.controls.features import Chosen, action_features, feature_reading, majority, option_features
from gapclose.evaluation.controls.random_labels import clip_labels, concept_shares, shuffled
from gapclose.evaluation.controls.residualize import residualise
from gapclose.evaluation.controls.scoring import Control, ControlScorer, JudgedControl
from gapclose.evaluation.controls.sentence_encoder import encode
from gapclose.evaluation.measurement import scored
from gapclose.metrics.labels import Labels
from gapclose.metrics.significance import selectivity
from gapclose.observe.store import Observations, read_observations
from gapclose.probes.refit import refit_within


class ControlSuite:
    """The base model's fit items and judged items, their observations, and the controls on them.

    docs/how-to/extending.md lists the attributes that a user's control may use.
    """

    def __init__(self, run: EvaluationContext, split: str, text: Chosen) -> None:
        """The probes of ``run`` are fitted and its base model is measured on ``split``.

        Args:
            text: text-only reading of the judged items.
        """
        self.run, self.config, self.probe, self.split = run, run.config, run.probe, split
        self.fit, self.judged = (run.items.select(split=name, purpose="gap") for name in ("fit", split))
        self.known, self.labels, self.text = Labels.of(self.fit), Labels.of(self.judged), text
        self.seen_fit = self.stored("base-fit", self.fit, self.probe.layers)
        self.seen = self.stored(f"base-{split}", self.judged, self.probe.layers)
        self.z_fit, self.z = (self.probe.features(seen.residuals).double().numpy() for seen in (self.seen_fit, self.seen))
        self.reading = self.probe.predict_proba(self.probe.features(self.seen.residuals))  # (N, C)
        self.action = scored(self.labels, self.seen)
        self.judge = self.judge_of(self.labels, self.reading)
        self.within = (self.known.modality, self.labels.modality)
        self.folds = {"folds": self.config.probe.folds, "seed": self.config.seed}

    def judge_of(self, labels: Labels, reading: np.ndarray) -> ControlScorer:
        return ControlScorer(labels, reading, self.config.gap.replicates, self.config.seed, self.config.gap.detectable)

    def stored(self, stage: str, items: Any, layers: Sequence[int]) -> Observations:
        return read_observations(self.run.directory / "observations" / stage, [i.id for i in items], layers=layers)

    def rng(self, purpose: int) -> np.random.Generator:
        """Return random numbers of their own for each purpose, by the seeds of run and controls.

        Purposes 0 to 99 belong to the package; controls of users take 100 and above.
        """
        return np.random.default_rng([self.config.seed, self.config.controls.seed, purpose])

    # -- controls ---------------------------------------------------------------------------------------------------------------

    def wording_controls(self) -> list[Control]:
        """Return controls that need no forward: majority class, text, sentence encoder, order
        and lengths."""
        known = self.known
        found = [
            Control(
                name="majority",
                label="majority class",
                question="is it more than the most frequent answer?",
                readings=[majority(known.concept, len(self.judged), len(known.concepts))],
                at_chance=True,
            ),
            Control(
                name="text_only",
                label=f"text only (TF-IDF of {self.text.maker}, the better of words and characters)",
                question="could the wording alone give it away?",
                readings=[self.text.reading],
                at_chance=True,
            ),
        ]
        if self.config.controls.text_encoder:
            read = partial(encode, self.config.controls.text_encoder, batch_size=self.config.observe.batch_size)
            fit, items = (read([i.text for i in part]) for part in (self.fit, self.judged))
            found.append(
                Control(
                    name="text_encoder",
                    label="text only (sentence encoder)",
                    question="could a language model tell from the wording alone?",
                    readings=[self._feature_reading(fit, items)],
                    at_chance=True,
                )
            )
        places = max(len(i.options) for i in self.fit)
        count = {t: len(self.run.loaded.option_tokens(t)) for part in (self.fit, self.judged) for i in part for t in texts_of(i)}
        fit, items = (option_features(part.items, part.concepts, places, count.__getitem__) for part in (self.fit, self.judged))
        found.append(
            Control(
                name="options",
                label="order and lengths of options and question",
                question="could the order of the options or the length of the texts give it away?",
                readings=[self._feature_reading(fit, items)],
                at_chance=True,
            )
        )
        return found

    def _feature_reading(self, fit: np.ndarray, items: np.ndarray) -> np.ndarray:
        return feature_reading(fit, self.known.concept, self.known.clip, items, within=self.within, **self.folds)

    def confidence(self) -> Control:
        """Use the model's own option scores as features."""
        sides = ((self.seen_fit, self.known), (self.seen, self.labels))
        fit, items = (action_features(scored(of, seen).scores, of.option_concept, len(of.concepts)) for seen, of in sides)
        return Control(
            name="action_confidence",
            label="the model's own option scores as features",
            guards="gap",
            question="do the model's own scores tell already what the probe reads?",
            readings=[self._feature_reading(fit, items)],
        )

    def label_controls(self) -> list[JudgedControl]:
        """Fit the probe on meaningless labels; in the last control on fit alone, where folds may
        split clips."""
        known, labels, draws = self.known, self.labels, self.config.controls.draws
        rng, groups = self.rng(0), (self.z, labels.modality)
        mixed = [shuffled(known.concept, known.modality, rng) for _ in range(draws)]
        shares, rng = concept_shares(known.concept, known.modality, len(known.concepts)), self.rng(1)
        # one draw for both splits, by what a clip shows and plays: one that leaked from fit to test would have one label in both
        media, modality = (np.concatenate(p) for p in ((self.fit.media_keys(), self.judged.media_keys()), self.within))
        both = [clip_labels(media, modality, shares, rng) for _ in range(draws)]
        drawn, truth = [y[: len(known.clip)] for y in both], [y[len(known.clip) :] for y in both]
        aimless, across = ([refit_within(self.probe, self.z_fit, y, known.modality, *groups) for y in ys] for ys in (mixed, drawn))
        folds = StratifiedKFold(self.config.probe.folds, shuffle=True, random_state=self.config.seed)
        inside = []
        for y in progress(drawn, draws, "random labels across folds over items"):
            reading = np.zeros((len(y), len(known.concepts)))
            for train, held in folds.split(self.z_fit, known.concept):
                part = (known.modality[train], self.z_fit[held], known.modality[held])
                reading[held] = refit_within(self.probe, self.z_fit[train], y[train], *part)
            inside.append(reading)
        fit_judge = self.judge_of(known, self.run.fit_reading)
        entries = [
            self.judge.entry(
                Control(
                    name="shuffled_labels",
                    label=f"labels shuffled within the modality ({draws} draws)",
                    question="does fitting and judging by itself lean to one side?",
                    readings=aimless,
                    at_chance=True,
                )
            ),
            self.judge.entry(
                Control(
                    name="random_label",
                    label=f"a random label per clip, judged on clips never seen ({draws} draws)",
                    question="do clips leak from fit to test?",
                    readings=across,
                    concepts=truth,
                    at_chance=True,
                )
            ),
        ]
        capacity = Control(
            name="random_label_items",
            guards="out-of-fold reading of fit",
            label=f"a random label per clip, folds over items of fit ({draws} draws); difference to the out-of-fold reading of fit",
            question="could the probe have learnt the clips by heart (selectivity, Hewitt & Liang 2019)?",
            readings=inside,
            concepts=drawn,
        )
        right = self.run.fit_reading.argmax(1) == known.concept
        by_chance = np.stack([reading.argmax(1) == concept for reading, concept in zip(inside, drawn, strict=True)])
        found = selectivity(right, by_chance, known.clip, replicates=self.config.gap.replicates, seed=self.config.seed)
        return [*entries, replace(fit_judge.entry(capacity), selectivity=found)]

    def residualised(self) -> Control:
        """Fit the probe on residuals without the directions that predict the text."""
        left = residualise(self.z_fit, [i.text for i in self.fit], self.z, self.text.maker)
        reading = refit_within(self.probe, left.fit, self.known.concept, self.known.modality, left.items, self.labels.modality)
        return Control(
            name="residualised",
            label=f"residuals without the {left.removed} of {self.z.shape[1]} directions that predict the text",
            question="is anything read beyond the wording?",
            readings=[reading],
        )

    def blanked(self) -> list[Control]:
        """Read items with blanked media."""
        found, sets = [], blank_sets([*self.fit, *self.judged])
        for kinds in sets:
            fit, test = (
                self.probe.features(self.run.observe(blank_stage(kinds, part), items, layers=self.probe.layers, blank=kinds).residuals)
                for part, items in (("fit", self.fit), ("test", self.judged))
            )
            found += blank_controls(kinds, kinds == sets[-1], self.probe, fit, self.known.concept, test, self.within)
        return found


def texts_of(item: Any) -> list[str]:
    """Return the question and the options of an item."""
    return [item.text, *(o.text for o in item.options)]
