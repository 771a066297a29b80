"""What a measurement tries beside the probe; the configuration's group ``controls``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gapclose.core.config_checks import Checks
from gapclose.core.registry import Registry

PROTOCOLS = ("imavb",)
ControlFunction = Callable[[Any], Any]
"""(:class:`gapclose.evaluation.controls.suite.ControlSuite`) -> :class:`gapclose.evaluation.controls.scoring.Control`"""
CONTROLS: Registry[ControlFunction] = Registry("controls.extra", "control")


def register_control(name: str, control: ControlFunction) -> ControlFunction:
    """Add a control, to be named in ``controls.extra``.

    Args:
        control: takes the :class:`gapclose.evaluation.controls.suite.ControlSuite` of the test split, which holds its fit and judged items, their
            labels and their residuals; returns a :class:`gapclose.evaluation.controls.scoring.Control` with readings of the judged items.

    Raises:
        ValueError: when the name is taken.
    """
    return CONTROLS.register(name, control)


@dataclass(kw_only=True)
class ControlsConfig:
    """What ``gapclose measure`` tries beside the probe. ``gapclose close`` keeps to the majority class, the text and random weights."""

    random_weights: bool = True
    """read networks of the same shape with random weights, by the same search, and demand that the model's reading beats theirs; `gapclose close`
    does so too, with random weights in the decoder alone. Costs ``random_draws`` networks of each kind, each of which
    observes all fit, val and test items, and one more reading of the checkpoint"""
    random_draws: int = 3
    """networks of each kind: random weights in the decoder alone, and everywhere; their spread counts, so there are at least 2"""
    layers: bool = True
    """probe every layer, logit lens, embedding layer; costs a forward of all fit and test items, and their residuals of all layers on disk"""
    baselines: bool = True
    """what can be had without training (PGLA, bias shifts, the text, the probe as answerer); costs ``probe.folds`` + 1 small perceptrons,
    and where val has labels, which then choose the settings, the observation of it that ``gapclose close`` uses again"""
    blank: bool = True
    """read with media blanked; costs a forward of all fit and test items for every kind of media, and one more for all kinds together"""
    labels: bool = True
    """shuffled labels, and a random label per clip; costs 3 x ``draws`` fits of the probe (the ungrouped one once per fold)"""
    draws: int = 10
    """how often random labels are drawn"""
    text_encoder: str | None = None
    """directory of a sentence encoder for transformers (read by AutoModel, token states averaged), a stronger text control; null: none"""
    extra: list[str] = field(default_factory=list)
    """controls of your own: registered ones, or ``package.module:function``; `gapclose measure` judges each beside the reading, and no verdict
    uses it"""
    protocol: str | None = None
    """``imavb``: also the source paper's own figures, flaws included, beside ours (arXiv 2605.13737); costs the forward of every test item
    that ``layers`` takes too, and four logistic regressions by scikit-learn a layer; null: none"""
    residualise: bool = True
    """read again without the directions that predict the wording; costs a ridge regression and an SVD of the fit residuals"""
    codelength: bool = True
    """online codelength of the concepts given the residuals, and of shuffled ones; costs about ten fits of the probe, and as many a draw"""
    interchange: bool = True
    """patch the residual of one twin into the other; costs a forward of every test item with a twin"""
    nested: bool = True
    """choose layer, family and strength again inside outer folds of fit; costs the probe's search once more for every fold"""
    seed: int = 0
    """of the random labels, besides the run's own: another one gives other draws and leaves the rest as it is"""

    def __post_init__(self) -> None:
        with Checks(self, "controls") as check:
            check.number("draws", least=1)
            check.number("random_draws", least=2, why="their spread counts; controls.random_weights: false for none")
            check.number("seed", least=0)
            check.choice("protocol", PROTOCOLS, null="none")
            for name in self.extra if check.sound("extra") else ():
                if not CONTROLS.known(name):
                    check.add(f"controls.extra {name!r} is no control; register it first, or write package.module:function", "extra")
            if self.text_encoder is not None and check.sound("text_encoder") and not (Path(self.text_encoder) / "config.json").is_file():
                check.add(
                    f"controls.text_encoder {self.text_encoder!r} is no directory with a config.json; save a sentence encoder there with "
                    "save_pretrained, or leave the key out",
                    "text_encoder",
                )
