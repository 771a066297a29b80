"""Check whether the model accepts the sizes of a set's media, before any weight is read.

The model's real processor makes the prompt of one item with one medium. The model runs on it up to
its first decoder layer, on tensors with sizes and no values (:mod:`gapclose.core.memory_meter`).
So audio that is too short for a tower's convolutions is refused before the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from gapclose.core.errors import ItemError
from gapclose.core.memory_meter import Meter
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, content_parts
from gapclose.data.media import MediaLoader
from gapclose.data.video import Video
from gapclose.models.architecture import build_on_meta, read_architecture
from gapclose.models.config import ModelConfig
from gapclose.models.families import longest_sound, part_for
from gapclose.models.loading import LoadedModel, assemble
from gapclose.models.processing import untaken
from gapclose.models.structure import decoder_layers
from gapclose.pipeline.memory_estimate import sized

Entry = tuple[str, str]
PASSES = 4
"""consecutive sizes, from the most extreme one on, that must pass to accept the rest of an order"""
RANKS: dict[str, tuple[Callable[..., float], ...]] = {
    "audio": (lambda seconds: seconds, lambda seconds: -seconds),
    "image": (lambda w, h: min(w, h) / max(w, h), lambda w, h: min(w, h), lambda w, h: -w * h),
}
"""kind -> the orders in which its sizes are tried, the most extreme first: the shortest and the
longest audio; the thinnest, the smallest and the largest images (and videos)"""
UNKNOWN = ("meta", "expected device", "data-dependent", "same device")
"""words in errors of computations that depend on values, which these tensors do not have"""


def unfit(items: ItemSet, config: ModelConfig, processor: Any, sizes: Mapping[Entry, tuple[float, ...]]) -> dict[Entry, str]:
    """Return ``(kind, path)`` -> why the model cannot take that medium, with the remedy.

    One file of each size is tried for all files of that size.

    Args:
        sizes: :attr:`gapclose.data.media.Survey.sizes` of the media to try.
    """
    users = {entry: item for item in reversed(items.items) for entry in item.media if untaken(processor, item) is None}
    tried = {entry: size for entry, size in sizes.items() if entry in users and part_for(processor, entry[0]) is not None}
    if not tried:
        return {}
    try:
        model = build_on_meta(read_architecture(config), config)
    except ValueError:  # reported when the model is loaded
        return {}
    trial, found = Trial(assemble(model, processor, path=config.path, fingerprint=""), items), dict[Entry, str]()
    for kind in ("image", "audio", "video"):
        files: dict[tuple[float, ...], list[Entry]] = {}
        for entry, size in tried.items():
            if entry[0] == kind:
                files.setdefault(size, []).append(entry)
        known: dict[tuple[float, ...], str | None] = {}
        for rank in RANKS["audio" if kind == "audio" else "image"]:
            passed = 0
            for size in sorted(files, key=lambda s, rank=rank: rank(*s)):
                if passed == PASSES:
                    break
                if size not in known:
                    entry = files[size][0]
                    known[size] = trial.fault(entry, only(users[entry], entry))
                passed = passed + 1 if known[size] is None else 0
        found |= {entry: fault for size, fault in known.items() if fault for entry in files[size]}
    return found


def only(item: Item, entry: Entry) -> Item:
    """Return the item with all its text parts and only the media part that names ``entry``."""
    kind, path = entry
    chosen = next(p for p in content_parts(item.messages) if p.get("path") == path and (p["type"] == kind or p.get("sound")))

    def kept(content: Any) -> Any:
        return content if isinstance(content, str) else [p for p in content if p["type"] == "text" or p is chosen]

    return replace(item, messages=[{**m, "content": kept(m["content"])} for m in item.messages])


class Reached(Exception):
    """The forward has reached the first decoder layer."""


class Trial:
    """Tries prompts of single media from the real processor on the model without weights.

    Args:
        loaded: model on the meta device.
    """

    def __init__(self, loaded: LoadedModel, items: ItemSet) -> None:
        self.loaded, self.framing = loaded, items.framing
        self.media = loaded.media(replace(items, decoding=replace(items.decoding, workers=0)))
        self.usual: dict[str, tuple[str, str] | None] = {}

    def fault(self, entry: Entry, item: Item) -> str | None:
        """Return why the model cannot take a medium, with the remedy, or None."""
        try:
            value = self.media.load(*entry)
        except ValueError as error:
            return str(error.__cause__ if isinstance(error.__cause__, ItemError) else error)
        found = self._try(item, self.media)
        if found is None:
            return None
        way, reason = found
        if way != "processor" and self._usual(entry[0], item) == found:  # the size is not the cause
            return None
        remedy = "make it longer, or remove the item" if entry[0] == "audio" else "scale or cut it otherwise, or remove the item"
        return f"the model cannot take {_described(value, self.loaded.sampling_rate)}: {reason}; {remedy}"

    def _usual(self, kind: str, item: Item) -> tuple[str, str] | None:
        """Return the fault of a medium of ordinary size in the same place, or None."""
        if kind not in self.usual:
            self.usual[kind] = self._try(item, Ordinary(self.loaded, self.framing.frames))
        return self.usual[kind]

    def _try(self, item: Item, media: Any) -> tuple[str, str] | None:
        """Return where a prompt fails and why, or None.

        The places are ``processor``, ``values``, ``tokens`` and ``tower``.
        """
        try:
            prompt = self.loaded.prompts([item], media)
        except Exception as error:  # processors check little and raise any error
            return "processor", f"{type(self.loaded.processor).__name__} fails ({_line(error)})"
        wild = [k for k, v in prompt.items() if isinstance(v, torch.Tensor) and v.is_floating_point() and not bool(v.isfinite().all())]
        if wild:
            return "values", f"{type(self.loaded.processor).__name__} makes values of it that are not finite ({', '.join(wild)})"
        written = self.loaded.written([item])
        if written is not None and prompt["input_ids"].shape[1] < len(written[0]):
            return "tokens", f"{type(self.loaded.processor).__name__} makes no token of it, so that the model would not notice it"
        try:
            with torch.no_grad(), up_to_decoder(self.loaded.model), Meter():
                self.loaded.model(**sized({"prompt": prompt})["prompt"])
        except (Reached, NotImplementedError):
            return None
        except Exception as error:  # towers may raise any error
            return (
                None
                if any(word in str(error) for word in UNKNOWN)
                else ("tower", f"{type(self.loaded.model).__name__} fails ({_line(error)})")
            )
        return None


class Ordinary(MediaLoader):
    """Media of ordinary size for every path: up to 3 s of noise, grey frames of 448 x 448."""

    def __init__(self, loaded: LoadedModel, frames: int) -> None:
        self.sampling_rate = loaded.sampling_rate
        samples = min(3 * self.sampling_rate, longest_sound(loaded.processor) or 3 * self.sampling_rate)
        noise = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
        film = Video(frames=np.full((frames, 448, 448, 3), 128, np.uint8), seconds=0.5)
        self.values = {"audio": noise, "image": Image.new("RGB", (448, 448), (128, 128, 128)), "video": film}

    def ahead(self, items: Sequence[Item]) -> None:
        """Decode nothing."""

    def load(self, kind: str, path: str) -> Any:
        """Return the one medium of that kind."""
        return self.values[kind]


@contextmanager
def up_to_decoder(model: Any) -> Iterator[None]:
    """Make the model raise :class:`Reached` before its first decoder layer, inside this context."""

    def stop(*_: Any) -> None:
        raise Reached

    hook = decoder_layers(model)[0].register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _described(value: Any, rate: int) -> str:
    if isinstance(value, np.ndarray):
        return f"a sound of {len(value) / rate:.4g} s"
    width, height = value.size if isinstance(value, Image.Image) else (value.frames.shape[2], value.frames.shape[1])
    return f"{'an image' if isinstance(value, Image.Image) else 'a film'} of {width} x {height} pixels"


def _line(error: Exception) -> str:
    """Return an error as one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
