"""Train the towers of a graft: each medium must come out near the language model's own embedding of the word that names it.

Shapes: N media, W words, D width of the language model, K tokens of all media of a batch.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from digits_model.batches import distort_image, distort_wave
from graft_model.assemble import HOP, RATE
from PIL import Image

from gapclose.core.logging import progress
from gapclose.data.digits.media_bank import NAMES, scan_image, scan_partition, scans, utterances, waveform

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True, kw_only=True)
class NamedMedia:
    """Pictures or sounds with the words that name them."""

    media: list[Any]
    """images, or waves (samples,) float32 at 16 kHz"""
    names: list[str]

    def __post_init__(self) -> None:
        assert len(self.media) == len(self.names), (len(self.media), len(self.names))


Table = dict[tuple[str, str], NamedMedia]
"""(``vision`` or ``audio``, ``train`` or ``held_out``) -> media"""


def digits_table() -> Table:
    """Scans and voices of the digits set's base model, which no item set shows; the last fifth of the scans and one voice are held out."""
    ours, _ = scan_partition()
    labels, words, kept = scans()[1], NAMES[:10], 4 * len(scan_partition()[0]) // 5
    voices = sorted({u.voice for u in utterances() if u.group == "base"})

    def images(indices: np.ndarray) -> NamedMedia:
        return NamedMedia(media=[scan_image(int(i)) for i in indices], names=[words[labels[i]] for i in indices])

    def sounds(of: Sequence[str]) -> NamedMedia:
        chosen = [u for u in utterances() if u.group == "base" and u.voice in of]
        return NamedMedia(media=[waveform(u) for u in chosen], names=[words[u.digit] for u in chosen])

    return {
        ("vision", "train"): images(ours[:kept]), ("vision", "held_out"): images(ours[kept:]),
        ("audio", "train"): sounds(voices[:-1]), ("audio", "held_out"): sounds(voices[-1:]),
    }  # fmt: skip


SHORTEST = 3 * HOP
"""samples: a shorter sound gives no audio token"""


def read_table(path: Path, seconds: int) -> Table:
    """Media and names from a CSV file with the columns ``path`` (from the file's directory), ``name`` and ``split`` (train, held_out).

    Args:
        seconds: the longest sound.

    Raises:
        ValueError: naming every row that cannot be used.
    """
    found: dict[tuple[str, str], tuple[list[Any], list[str]]] = {}
    faults, splits = list[str](), dict[str, str]()
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != {"path", "name", "split"}:
            raise ValueError(f"{path} has the columns {reader.fieldnames}; it needs path, name and split")
        for row in reader:
            if row["split"] not in ("train", "held_out"):
                faults.append(f"line {reader.line_num}: split {row['split']!r}; write train or held_out")
                continue
            if splits.setdefault(row["path"], row["split"]) != row["split"]:
                faults.append(f"line {reader.line_num}: {row['path']} is in both splits; a medium that is trained on cannot be held out")
            file_path = path.parent / row["path"]
            kind = "audio" if file_path.suffix.lower() in SOUNDS else "vision"
            try:
                medium = _wave(file_path) if kind == "audio" else Image.open(file_path).convert("RGB")
            except (OSError, RuntimeError) as error:
                faults.append(f"line {reader.line_num}: {file_path}: {error}")
                continue
            if kind == "audio" and not SHORTEST <= len(medium) <= seconds * RATE:  # pyright: ignore[reportArgumentType]
                length = len(medium) / RATE  # pyright: ignore[reportArgumentType]
                faults.append(
                    f"line {reader.line_num}: {file_path} lasts {length:.2f} s; it must last {SHORTEST / RATE} to {seconds} s (--seconds)"
                )
            media, names = found.setdefault((kind, row["split"]), ([], []))
            media.append(medium)
            names.append(row["name"])
    for kind in sorted({kind for kind, _ in found}):
        faults += [f"no {kind} row has split {split}" for split in ("train", "held_out") if (kind, split) not in found]
        trained, judged = (set(found.get((kind, split), ([], []))[1]) for split in ("train", "held_out"))
        faults += [f"{kind}: {name!r} is held out and never trained" for name in sorted(judged - trained)]
    if faults or not found:
        raise ValueError(f"{path}:\n" + "\n".join(f"  - {fault}" for fault in faults or ["no rows"]))
    return {key: NamedMedia(media=media, names=names) for key, (media, names) in found.items()}


def _wave(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(1), rate, RATE).astype(np.float32)


def word_tokens(tokenizer: Any, words: Sequence[str]) -> torch.Tensor:
    """(W,) the token of each word as it stands within a sentence.

    Raises:
        ValueError: naming words that are several tokens.
    """
    tokens = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in words]
    if long := [word for word, ids in zip(words, tokens, strict=True) if len(ids) != 1]:
        raise ValueError(f"the names {long} are several tokens; a medium is trained to give the embedding of one")
    return torch.tensor([ids[0] for ids in tokens])


class TowerTrainer:
    """Trains one tower of a thinker on named media. The language model is never run: targets are rows of its embedding.

    The loss is cross-entropy over squared distances to the words' rows, plus the squared distance to the right one, both in
    units of the rows' mean distance from their centre.
    """

    def __init__(self, thinker: Any, processor: Any, kind: str, words: Sequence[str], tokens: torch.Tensor) -> None:
        self.kind, self.words = kind, list(words)
        self.processor, self.thinker = processor, thinker
        self.tower = thinker.model.visual if kind == "vision" else thinker.model.audio_tower
        rows = thinker.get_input_embeddings().weight.detach()[tokens].float()  # (W, D)
        self.rows, self.centre = rows, rows.mean(0)
        self.scale = (rows - self.centre).norm(dim=1).mean()

    def inputs(self, media: Sequence[Any]) -> list[dict[str, torch.Tensor]]:
        """What the tower takes, medium by medium."""
        if self.kind == "vision":
            made = self.processor.image_processor(images=list(media), return_tensors="pt")
            sizes = made["image_grid_thw"].prod(1).tolist()
            return [{"pixels": p, "grid": g[None]} for p, g in zip(made["pixel_values"].split(sizes), made["image_grid_thw"], strict=True)]
        made = self.processor.feature_extractor(
            list(media), sampling_rate=RATE, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return [{"features": f[:, m.bool()]} for f, m in zip(made["input_features"], made["attention_mask"], strict=True)]

    def outputs(self, batch: Sequence[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, D) the tokens of the media of a batch, and (K,) which of the media each belongs to."""
        if self.kind == "vision":
            grid = torch.cat([b["grid"] for b in batch])
            out = self.tower(torch.cat([b["pixels"] for b in batch]), grid_thw=grid).pooler_output
            return out, torch.arange(len(batch)).repeat_interleave(grid.prod(1) // 4)
        lengths = torch.tensor([b["features"].shape[1] for b in batch])
        out = self.tower(torch.cat([b["features"] for b in batch], dim=1), feature_lens=lengths).last_hidden_state
        return out, torch.arange(len(batch)).repeat_interleave(((lengths - 1) // 2 + 1 - 2) // 2 + 1)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """(K, W) from the squared distances to the words' rows."""
        return -4 * (torch.cdist(tokens, self.rows) / self.scale) ** 2

    def loss(self, batch: Sequence[dict[str, torch.Tensor]], word: torch.Tensor) -> torch.Tensor:
        tokens, medium = self.outputs(batch)
        near = ((tokens - self.rows[word[medium]]) / self.scale).pow(2).sum(1).mean()
        return F.cross_entropy(self.logits(tokens), word[medium]) + near

    def train(self, given: NamedMedia, *, steps: int, batch_size: int, copies: int, rate: float = 1e-3, seed: int = 0) -> None:
        """AdamW with one cycle over the media and ``copies`` distorted ones of each."""
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        distort: Callable[[Any, np.random.Generator], Any] = distort_image if self.kind == "vision" else distort_wave
        media = [*given.media, *(distort(m, rng) for _ in range(copies) for m in given.media)]
        word = self._labels(given.names).repeat(copies + 1)
        inputs = [entry for n in range(0, len(media), 512) for entry in self.inputs(media[n : n + 512])]
        with torch.no_grad():  # outputs start at the centre of the rows
            (self.tower.merger.mlp[-1] if self.kind == "vision" else self.tower.proj).bias.copy_(self.centre)
        optimizer = torch.optim.AdamW(self.tower.parameters(), rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        self.tower.train()
        for _ in progress(range(steps), steps, f"training the {self.kind} tower"):
            chosen = torch.randint(len(inputs), (batch_size,), generator=generator)
            loss = self.loss([inputs[i] for i in chosen], word[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.tower.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        self.tower.eval()

    @torch.no_grad()
    def accuracy(self, given: NamedMedia) -> float:
        """Share of the media whose tokens together are nearest to the right word."""
        word, right = self._labels(given.names), 0
        for n in range(0, len(word), 256):
            tokens, medium = self.outputs(self.inputs(given.media[n : n + 256]))
            total = torch.zeros(min(256, len(word) - n), len(self.words)).index_add_(0, medium, self.logits(tokens))
            right += int((total.argmax(1) == word[n : n + 256]).sum())
        return right / len(word)

    def _labels(self, names: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.words.index(name) for name in names])
