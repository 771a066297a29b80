"""Configuration of the data: item sets, assignment of clips to splits, media, labels and prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gapclose.core.config_checks import Checks
from gapclose.core.errors import ErrorCollector
from gapclose.core.imports import FUNCTION, named_function
from gapclose.core.registry import Registry
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.generated import GENERATED
from gapclose.data.item_set import ItemSet

Reader = Callable[[Path, ErrorCollector], ItemSet]
"""(directory, collector of errors) -> the items in it"""
READERS: Registry[Reader] = Registry("data.format", "reader")


def register_reader(name: str, reader: Reader) -> Reader:
    """Add a reader of item sets under a name for ``data.format``.

    Args:
        reader: takes the directory, and an :class:`gapclose.core.errors.ErrorCollector` that
            receives errors; returns the items. Splits, twins and media are checked afterwards, as
            for every other set.

    Raises:
        ValueError: when the name is taken.
    """
    return READERS.register(name, reader)


@dataclass(kw_only=True)
class DataConfig:
    """Where the items are, and how they are read."""

    path: str = "digits"
    """directory with set.json and items.jsonl, in the layout of IMAVB or AVHBench, or with tables
    and a column map (docs/how-to/data-formats.md); ``digits``, ``people`` and ``places`` are generated in the
    run directory (docs/start/pretrained.md)"""
    clips: list[int] | None = None
    """of a generated set: number of clips for fit, train, val and test; null: the set's own"""
    format: str | None = None
    """reader of the directory: a registered name, or ``package.module:function``; null: decided by
    the files in the directory"""
    columns: str | None = None
    """column map in YAML for tables; null: columns.yaml in the directory, if there is one"""
    frames: int = 8
    """frames per video, evenly spaced; tokens, memory and time of a forward grow with them (the
    source paper uses 50)"""
    side: int = 448
    """longest side of a video frame in pixels, before the model's own resizing; memory of decoded
    videos grows with its square"""
    shares: list[float] = field(default_factory=lambda: [0.3, 0.3, 0.1, 0.3])
    """shares of the clips for fit, train, val and test, where the data name no splits; they add up
    to 1, and 0 leaves a split out"""
    split_seed: int = 0
    """seed of the assignment to splits; separate from the run's seed, so that several seeds share
    the test clips"""
    on_error: str = "raise"
    """what to do with items whose media cannot be used: raise (list them all and stop) or skip
    (leave out at most 1 % of all items, and report them in the evidence)"""
    about: str | None = None
    """of IMAVB, use only the questions about vision or about audio, without the other half of the
    videos and the option that rejects it: for models that only see or only hear; null: all"""
    shuffle_options: bool = False
    """put the options of every gap and transfer item in a random order, drawn from ``split_seed``;
    items.json records the orders"""
    interleave: bool = False
    """give a video and its own sound track as one, with frames and sound in order of time, instead
    of one after the other: for Qwen2.5-Omni and Qwen3-Omni, which were trained this way; the number
    of tokens is the same"""
    workers: int = 2
    """threads that decode the media of the next batch while the model runs; 0: none; results do not
    depend on it"""
    cache: str | None = None
    """directory for decoded media, keyed by content and settings, and shared by later stages and
    other runs; null: none, every stage decodes again"""
    cache_gb: float = 20.0
    """limit of that directory in gigabytes (10^9 bytes); beyond it, the least recently used files
    are removed. A video of 8 frames of 448 x 252 takes 3 MB, one of 50 frames 17 MB, a minute of
    audio 4 MB"""
    sound: bool = True
    """of the digits set: false keeps only images and the questions about them, which TRL's trainers
    support"""
    degraded: float = 0.0
    """share of the clips of every split whose picture and sound are shuffled, 0..1; ink, loudness
    and length stay, and the shipped model cannot read them; only with ``path: digits``"""

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
            if self.clips is not None and check.sound("clips"):
                if len(self.clips) != 4 or min(self.clips) < 0:
                    check.add(f"{check.named('clips')}; give four numbers of clips, for fit, train, val and test", "clips")
                elif self.path not in GENERATED:
                    sets = ", ".join(GENERATED)
                    message = f"{check.named('clips')}, which is for generated sets ({sets}) alone; with data.path {self.path!r}"
                    check.add(f"{message} leave it out", "clips", "path")
            if self.path != "digits":
                for name, plain in (("degraded", 0.0), ("sound", True)):
                    if getattr(self, name) != plain:
                        message = f"{check.named(name)}, which is for the embedded world alone; with data.path {self.path!r}"
                        check.add(f"{message} leave it out", name, "path")


@dataclass(kw_only=True)
class LabellingConfig:
    """Which labels of fit a run may use; all of them by default."""

    budget: int | None = None
    """most labelled gap items of fit, drawn as complete clips; the other gap items of fit are left
    out; null: all"""
    noise: float = 0.0
    """share of the labelled fit items whose gold is replaced by a random other option, 0 to below
    1. Where several options express one concept, fewer concepts than options become wrong, so
    training on gold labels suffers slightly more than the probe"""
    without: str | None = None
    """tag=value (e.g. question=alphabet): gap items of fit with it are left out, so that training
    meets such items without labels; null: none"""

    def __post_init__(self) -> None:
        with Checks(self, "labelling") as check:
            check.number("budget", least=1)
            check.number("noise", least=0, below=1, why="0.2 for one label of five")
            if self.without is not None and check.sound("without") and not all(part.strip() for part in self.without.partition("=")):
                check.add(f"{check.named('without')}; write a tag and its value, e.g. question=alphabet", "without")


WORDINGS = ("own", "paper", "binary", "binary_explained", "free")
LONG = ("binary_explained", "free")
"""prompts whose answers say more than an option"""


@dataclass(kw_only=True)
class PromptsConfig:
    """Prompts of the items, and matching of generated answers to options (docs/how-to/prompts.md)."""

    asked: str = "own"
    """prompt of the run: own (the items' messages), paper, binary, binary_explained, free, or
    ``package.module:function`` (item -> item)"""
    measured: list[str] = field(default_factory=list)
    """further prompts for measuring test before and after training; each costs a forward and the
    answers of all test gap items"""
    refit: bool = True
    """also fit a probe of the same layers, family and strength under every measured prompt; each
    costs a forward of all fit gap items"""
    binary_question: str = "Is every detail that the question states true of what is shown and played?"
    """question that the binary prompts add to an item's question; *yes* must express the concept
    that is not an alarm"""
    binary_answers: list[str] = field(default_factory=lambda: ["yes", "no"])
    """the two answers: for the concept that is not an alarm, and for the alarm"""
    match: str | None = None
    """``package.module:function`` (answer, item -> an option's text, or None) for generated answers
    that name no option; null: none"""
    max_new_tokens: int = 32
    """length limit, in tokens, of answers that say more than an option, under measured prompts
    (binary_explained, free, functions); applies if ``observe.max_new_tokens`` is lower"""

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
        """The prompt of the run, then the other measured prompts."""
        return [self.asked, *(name for name in self.measured if name != self.asked)]

    def limit(self, name: str, tokens: int) -> int:
        """Return the length limit of answers to a prompt; ``tokens``: that of the run's own prompt."""
        return max(tokens, self.max_new_tokens) if name != self.asked and (name in LONG or name not in WORDINGS) else tokens

    def matching(self, name: str) -> AnswerMatcher:
        """Return the matcher of answers to a prompt.

        Raises:
            ValueError: when the function that ``match`` names cannot be imported.
        """
        judge = None if self.match is None else named_function(self.match, "prompts.match")
        return AnswerMatcher(leading=name.startswith("binary"), judge=judge)
