"""Settings of the controls; the configuration's group ``controls``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gapclose.core.config_checks import Checks
from gapclose.core.registry import Registry

PROTOCOLS = ("imavb",)
ControlFunction = Callable[[Any], Any]
"""(:class:`gapclose.evaluation.controls.suite.ControlSuite`) ->
:class:`gapclose.evaluation.controls.scoring.Control`"""
CONTROLS: Registry[ControlFunction] = Registry("controls.extra", "control")
BUILT_IN = frozenset(
    ("majority", "text_only", "text_encoder", "options", "random_decoder", "random_everything", "action_confidence", "embedding",
     "residualised", "shuffled_labels", "random_label", "random_label_items")
)  # fmt: skip
"""names of the package's own controls, beside those that :func:`is_built_in` knows by their
beginning"""


def is_built_in(name: str) -> bool:
    """Whether a control of the package has this name, or may have it with other media."""
    return name in BUILT_IN or name.startswith("blank_")


def register_control(name: str, control: ControlFunction) -> ControlFunction:
    """Add a control that ``controls.extra`` can name.

    Args:
        control: takes the :class:`gapclose.evaluation.controls.suite.ControlSuite` of the test
            split, with its fit and judged items, their labels and residuals; returns a
            :class:`gapclose.evaluation.controls.scoring.Control` with readings of the judged items.

    Raises:
        ValueError: when the name is taken, also by a control of the package.
    """
    if is_built_in(name):
        raise ValueError(f"control {name!r} is one of the package's own; choose another name")
    return CONTROLS.register(name, control)


@dataclass(kw_only=True)
class ControlsConfig:
    """Controls of ``gapclose measure``. ``gapclose close`` runs only those that need no media
    (majority class, text, order and lengths) and random weights in the decoder."""

    random_weights: bool = True
    """read networks of the same shape with random weights, by the same search; verdicts require
    that the model's reading beats theirs. `gapclose close` uses random weights in the decoder
    only. Costs ``random_draws`` networks of each kind, each of which observes all fit, val and
    test items, and one reload of the checkpoint"""
    random_draws: int = 3
    """networks of each kind (random weights in the decoder, or everywhere), at least 2, because
    their spread is used"""
    layers: bool = True
    """probe every layer, logit lens, embedding layer; costs a forward of all fit and test items
    and disk space for their residuals of all layers"""
    baselines: bool = True
    """inference-time baselines (PGLA, bias shifts, the text, the probe as answerer); costs
    ``probe.folds`` + 1 small perceptrons and, if val has labels to choose settings on, its
    observation, which ``gapclose close`` reuses"""
    blank: bool = True
    """read items with blanked media; costs a forward of all fit and test items per kind of
    media, and one more for all kinds together"""
    labels: bool = True
    """shuffled labels, and a random label per clip; costs 3 x ``draws`` probe fits (the ones
    with folds over items once per fold)"""
    draws: int = 10
    """number of draws of random labels"""
    text_encoder: str | None = None
    """directory of a sentence encoder for transformers (loaded by AutoModel, token states
    averaged) as a stronger text control; null: none"""
    extra: list[str] = field(default_factory=list)
    """your own controls: registered names or ``package.module:function``; `gapclose measure`
    runs them before its own controls and compares each with the reading, but verdicts do not use
    them"""
    protocol: str | None = None
    """``imavb``: also compute the source paper's own figures, flaws included, and compare them
    with ours (arXiv 2605.13737); costs a forward of every test item, shared with ``layers``, and
    four scikit-learn logistic regressions per layer; null: none"""
    residualise: bool = True
    """read residuals without the directions that predict the question's text; costs a ridge
    regression and an SVD of the fit residuals"""
    codelength: bool = True
    """online codelength of the concepts given the residuals, and of shuffled concepts; costs
    about ten probe fits, and as many per draw"""
    interchange: bool = True
    """replace the residual of an item by its twin's; costs a forward of every test item with a
    twin"""
    nested: bool = True
    """choose layer, family and strength again inside outer folds of fit; costs one more probe
    search per fold"""
    seed: int = 0
    """seed of the random labels, in addition to the run's; it affects nothing else"""

    def __post_init__(self) -> None:
        with Checks(self, "controls") as check:
            check.number("draws", least=1)
            check.number("random_draws", least=2, why="their spread counts; controls.random_weights: false for none")
            check.number("seed", least=0)
            check.choice("protocol", PROTOCOLS, null="none")
            for name in self.extra if check.sound("extra") else ():
                if not CONTROLS.known(name):
                    check.add(f"controls.extra {name!r} is no control; register it first, or write package.module:function", "extra")
            for name, count in Counter(self.extra).items() if check.sound("extra") else ():
                if count > 1:
                    check.add(f"controls.extra names {name!r} {count} times; name it once", "extra")
            if self.text_encoder is not None and check.sound("text_encoder") and not (Path(self.text_encoder) / "config.json").is_file():
                check.add(
                    f"controls.text_encoder {self.text_encoder!r} is no directory with a config.json; save a sentence encoder there with "
                    "save_pretrained, or leave the key out",
                    "text_encoder",
                )
