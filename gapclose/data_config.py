"""Where the items are, who is dealt where, and how their media are shown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class DataConfig:
    """Where the items are."""

    path: str = "digits"
    """directory with set.json and items.jsonl, in the layout of IMAVB or AVHBench, or with tables and a column map (docs/your-data.md);
    ``digits`` makes the embedded world inside the run directory"""
    columns: str | None = None
    """column map in YAML for tables; null: columns.yaml in the directory, where there is one"""
    shares: list[float] = field(default_factory=lambda: [0.3, 0.3, 0.1, 0.3])
    """of the clips for fit, train, val and test, where the data do not say; they add up to 1; 0 leaves a split out"""
    split_seed: int = 0
    """of that dealing; other than the run's seed, so that several seeds are judged on the same test clips"""
    shuffle_options: bool = False
    """ask every item with its options in an order of its own, drawn from ``split_seed``; the order is kept in items.json"""
    about: str | None = None
    """of IMAVB, only the questions about vision or about audio, without the other half of the films nor the option that it was wrong: for
    models that only see or only hear; null: all"""
    frames: int = 8
    """taken evenly of every film; tokens, memory and time of a forward grow with it (the source paper takes 50)"""
    side: int = 448
    """longest side of a film's frame in pixels, before the model's own resizing; memory of decoded films grows with its square"""
    workers: int = 2
    """threads that decode the next batch's media while the model works; 0: none; results do not depend on it"""
    cache: str | None = None
    """directory for decoded media, found by content and settings, for later stages and other runs; null: none, each stage decodes again"""
    cache_gb: float = 20.0
    """what that directory may take, in gigabytes (10^9 bytes): a film of 8 frames of 448 x 252 takes 3 MB, 50 of them 17 MB, a minute of sound
    4 MB; beyond it, what was not used for longest is removed"""
    interleave: bool = False
    """give a film and its own sound track as one, frames and sound in the order of time, instead of one after the other (Qwen2.5-Omni and
    Qwen3-Omni, which saw films with sound that way in training); the same number of tokens"""
    on_error: str = "raise"
    """what becomes of items whose media cannot be used: raise (list them all and stop) or skip (leave them out, at most 1 % of all, and
    say so in the evidence)"""
    degraded: float = 0.0
    """share of the clips of every split whose picture and sound are shuffled, 0..1: ink, loudness and length stay, and the shipped model
    reads nothing there; only with ``path: digits``"""
    sound: bool = True
    """of the embedded world: false gives images and the questions about them alone, which is what TRL's trainers can take"""

    def __post_init__(self) -> None:
        if not 0 <= self.degraded <= 1:
            raise ValueError(f"data.degraded is {self.degraded}; it must lie in 0..1 (0.3 for three clips of ten)")
        if self.degraded and self.path != "digits":
            raise ValueError(f"data.degraded is for the embedded world alone; with data.path {self.path!r} it must be 0")
        if len(self.shares) != 4 or not min(self.shares) >= 0 or not abs(sum(self.shares) - 1) <= 1e-6:  # also NaN
            raise ValueError(f"data.shares is {self.shares}; give four shares that add up to 1: of fit, train, val and test")
        if self.split_seed < 0:
            raise ValueError(f"data.split_seed is {self.split_seed}; it must not be negative")
        for name, least in (("frames", 1), ("side", 16), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.cache_gb > 0:
            raise ValueError(f"data.cache_gb is {self.cache_gb}; it must be above 0 (data.cache null keeps nothing)")
        if self.about not in (None, "vision", "audio"):
            raise ValueError(f"data.about is {self.about!r}; choose vision or audio, or null for both")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"data.on_error is {self.on_error!r}; choose raise or skip")
