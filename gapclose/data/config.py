"""Where the items are, who is dealt where, and how their media are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gapclose.core.config_checks import Checks
from gapclose.core.errors import ErrorCollector
from gapclose.core.imports import FUNCTION, named_function
from gapclose.core.registry import Registry
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.item_set import ItemSet

Reader = Callable[[Path, ErrorCollector], ItemSet]
"""(directory, where to add faults) -> the items in it"""
READERS: Registry[Reader] = Registry("data.format", "reader")


def register_reader(name: str, reader: Reader) -> Reader:
    """Add a reader of item sets, to be named in ``data.format``.

    Args:
        reader: takes the directory, and an :class:`gapclose.core.errors.ErrorCollector` to add faults to; returns the items. Splits, twins
            and media are checked afterwards as for every other set.

    Raises:
        ValueError: when the name is taken.
    """
    return READERS.register(name, reader)


@dataclass(kw_only=True)
class DataConfig:
    """Where the items are."""

    path: str = "digits"
    """directory with set.json and items.jsonl, in the layout of IMAVB or AVHBench, or with tables and a column map (docs/your-data.md);
    ``digits`` makes the embedded world inside the run directory"""
    format: str | None = None
    """reader of the directory: a registered one, or ``package.module:function``; null: what lies there decides"""
    columns: str | None = None
    """column map in YAML for tables; null: columns.yaml in the directory, where there is one"""
    frames: int = 8
    """taken evenly of every film; tokens, memory and time of a forward grow with it (the source paper takes 50)"""
    side: int = 448
    """longest side of a film's frame in pixels, before the model's own resizing; memory of decoded films grows with its square"""
    shares: list[float] = field(default_factory=lambda: [0.3, 0.3, 0.1, 0.3])
    """of the clips for fit, train, val and test, where the data do not say; they add up to 1; 0 leaves a split out"""
    split_seed: int = 0
    """of that dealing; other than the run's seed, so that several seeds are judged on the same test clips"""
    on_error: str = "raise"
    """what becomes of items whose media cannot be used: raise (list them all and stop) or skip (leave them out, at most 1 % of all, and
    say so in the evidence)"""
    about: str | None = None
    """of IMAVB, only the questions about vision or about audio, without the other half of the films nor the option that it was wrong: for
    models that only see or only hear; null: all"""
    shuffle_options: bool = False
    """ask every item with its options in an order of its own, drawn from ``split_seed``; the order is kept in items.json"""
    interleave: bool = False
    """give a film and its own sound track as one, frames and sound in the order of time, instead of one after the other (Qwen2.5-Omni and
    Qwen3-Omni, which saw films with sound that way in training); the same number of tokens"""
    workers: int = 2
    """threads that decode the next batch's media while the model works; 0: none; results do not depend on it"""
    cache: str | None = None
    """directory for decoded media, found by content and settings, for later stages and other runs; null: none, each stage decodes again"""
    cache_gb: float = 20.0
    """what that directory may take, in gigabytes (10^9 bytes): a film of 8 frames of 448 x 252 takes 3 MB, 50 of them 17 MB, a minute of sound
    4 MB; beyond it, what was not used for longest is removed"""
    sound: bool = True
    """of the embedded world: false gives images and the questions about them alone, which is what TRL's trainers can take"""
    degraded: float = 0.0
    """share of the clips of every split whose picture and sound are shuffled, 0..1: ink, loudness and length stay, and the shipped model
    reads nothing there; only with ``path: digits``"""

    def __post_init__(self) -> None:
        with Checks(self, "data") as check:
            check.number("degraded", least=0, most=1, why="0.3 for three clips of ten")
            check.number("split_seed", "workers", least=0)
            check.number("frames", least=1)
            check.number("side", least=16)
            check.number("cache_gb", above=0, why="data.cache null keeps nothing")
            check.choice("about", ("vision", "audio"), null="both")
            check.choice("on_error", ("raise", "skip"))
            if check.sound("shares") and (len(self.shares) != 4 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6):
                check.add(f"{check.named('shares')}; give four shares that add up to 1: of fit, train, val and test", "shares")
            if self.path != "digits":
                for name, plain in (("degraded", 0.0), ("sound", True)):
                    if getattr(self, name) != plain:
                        message = f"{check.named(name)}, which is for the embedded world alone; with data.path {self.path!r}"
                        check.add(f"{message} leave it out", name, "path")


@dataclass(kw_only=True)
class LabellingConfig:
    """Which labels of fit a run may use; all of them by default."""

    budget: int | None = None
    """gap items of fit that are labelled, whole clips as they are drawn; the rest of fit is left out; null: all"""
    noise: float = 0.0
    """share of the labelled fit items whose gold is replaced by any other of their options, 0..1; where several options express one
    concept, fewer concepts than options are wrong, so labels as gold suffer a little more than the probe"""
    without: str | None = None
    """tag=value (e.g. question=alphabet): fit items with it are left out, so that training meets such items without labels; null: none"""

    def __post_init__(self) -> None:
        with Checks(self, "labelling") as check:
            check.number("budget", least=1)
            check.number("noise", least=0, below=1, why="0.2 for one label of five")
            if self.without is not None and check.sound("without") and not all(part.strip() for part in self.without.partition("=")):
                check.add(f"{check.named('without')}; write a tag and its value, e.g. question=alphabet", "without")


WORDINGS = ("own", "paper", "binary", "binary_explained", "free")
LONG = ("binary_explained", "free")
"""wordings whose answers say more than an option"""


@dataclass(kw_only=True)
class PromptsConfig:
    """How items are asked, and how generated answers are matched to options (docs/your-data.md)."""

    asked: str = "own"
    """prompt of the whole run: own (the items' messages), paper, binary, binary_explained, free, or ``package.module:function`` (item -> item)"""
    measured: list[str] = field(default_factory=list)
    """prompts under which test is measured as well, before training and after it; each costs a forward and the answers of all test gap items"""
    refit: bool = True
    """also fit a probe of the same layers, family and strength under every measured prompt; costs a forward of all fit gap items for each"""
    binary_question: str = "Is every detail that the question states true of what is shown and played?"
    """what the binary prompts ask after an item's question; its *yes* must express the concept that is no alarm"""
    binary_answers: list[str] = field(default_factory=lambda: ["yes", "no"])
    """the two answers: of the concept that is no alarm, and of the alarm"""
    match: str | None = None
    """``package.module:function`` (answer, item -> an option's text, or None) for generated answers that name no option by themselves"""
    max_new_tokens: int = 32
    """length limit of answers under measured prompts that say more than an option (binary_explained, free, functions), where
    ``observe.max_new_tokens`` is less"""

    def __post_init__(self) -> None:
        with Checks(self, "prompts") as check:
            for key, names in (("asked", [self.asked]), ("measured", self.measured)):
                for name in names if check.sound(key) else ():
                    if name not in WORDINGS and not FUNCTION.fullmatch(name):
                        check.add(f"prompts.{key} {name!r} is no prompt; choose one of {list(WORDINGS)}, or package.module:function", key)
            if check.sound("asked", "measured"):
                called = [name.rpartition(":")[2] for name in self.names]
                if len(set(called)) < len(called) or len(set(self.measured)) < len(self.measured):
                    message = f"prompts.measured {self.measured} has two prompts of one name; name each once, and functions differently"
                    check.add(message, "measured")
            if self.match is not None and check.sound("match") and not FUNCTION.fullmatch(self.match):
                check.add(f"prompts.match {self.match!r} is no function; write package.module:function, or null", "match")
            if check.sound("binary_answers") and (len(self.binary_answers) != 2 or len({a.strip() for a in self.binary_answers}) != 2):
                check.add(f"{check.named('binary_answers')}; give two texts that differ, e.g. ['yes', 'no']", "binary_answers")
            check.number("max_new_tokens", least=1)

    @property
    def names(self) -> list[str]:
        """The prompt of the run, then the others that are measured."""
        return [self.asked, *(name for name in self.measured if name != self.asked)]

    def limit(self, name: str, tokens: int) -> int:
        """Length limit of generated answers, given that of the run's own prompt."""
        return max(tokens, self.max_new_tokens) if name != self.asked and (name in LONG or name not in WORDINGS) else tokens

    def matching(self, name: str) -> AnswerMatcher:
        """How answers to a prompt are matched to options.

        Raises:
            ValueError: when ``match`` names no function that can be imported.
        """
        judge = None if self.match is None else named_function(self.match, "prompts.match")
        return AnswerMatcher(leading=name.startswith("binary"), judge=judge)
