"""Batches for training the base model: media through the real processor once, questions drawn anew every step.

B batch, T tokens, P patches of a scan (4), F mel frames (100). Every batch is left-padded and ends with the answer token,
so that ``logits[:, -2]`` is the answer position and ``logits[:, -1]`` must say the end token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import affine_transform

from gapclose.data.digits import questions
from gapclose.data.digits.media_bank import NAMES, RATE, Utterance, scan_image, scans, waveform

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor


def distort_image(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A little rotation (8 degrees), scale (10 %), shift (2 pixels) and grain."""
    grey = np.asarray(image.convert("L"), np.float32)
    angle, scale = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(0.9, 1.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(grey.shape) - 1) / 2
    moved = affine_transform(grey, turn, centre - turn @ (centre + rng.uniform(-2, 2, 2)), order=1)  # pyright: ignore[reportArgumentType]
    moved += rng.normal(0, rng.uniform(0, 16), moved.shape)
    return Image.fromarray(moved.clip(0, 255).astype(np.uint8)).convert("RGB")


def distort_wave(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tempo and pitch together (10 %), gain, white noise, up to 60 ms of silence in front; under a second."""
    length = min(int(len(wave) * rng.uniform(0.9, 1.1)), RATE - 1000)
    wave = np.interp(np.linspace(0, len(wave) - 1, length), np.arange(len(wave)), wave)
    wave = np.concatenate([np.zeros(rng.integers(0, 960)), wave * rng.uniform(0.4, 1.6)])
    return (wave + rng.normal(0, 10 ** rng.uniform(-4, -2), len(wave))).clip(-1, 1).astype(np.float32)


Premises = Literal["honest", "comply", "true"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaPool:
    """Processed scans and utterances to draw from. Labels are digits."""

    pixels: torch.Tensor
    """(N, P, 1176)"""
    shown: np.ndarray
    """(N,)"""
    features: torch.Tensor
    """(M, 128, F) log-mel"""
    masks: torch.Tensor
    """(M, F), 1 where there is sound"""
    said: np.ndarray
    """(M,)"""

    def audio_tokens(self) -> np.ndarray:
        """(M,) tokens of every utterance after the encoder's strided convolution and pooling."""
        frames = self.masks.sum(-1).numpy()
        return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def media_pool(
    processor: Qwen2_5OmniProcessor, indices: np.ndarray, spoken: list[Utterance], *, copies: int = 0, seed: int = 0
) -> MediaPool:
    """Every scan and utterance as it is, and ``copies`` distorted ones of each."""
    rng = np.random.default_rng(seed)
    images = [scan_image(i) for i in indices]
    waves = [waveform(u) for u in spoken]
    images += [distort_image(image, rng) for _ in range(copies) for image in images]
    waves += [distort_wave(wave, rng) for _ in range(copies) for wave in waves]
    vision = processor.image_processor(images=images, return_tensors="pt")
    audio = processor.feature_extractor(waves, sampling_rate=RATE, padding="max_length", return_attention_mask=True, return_tensors="pt")
    return MediaPool(
        pixels=vision["pixel_values"].view(len(images), -1, vision["pixel_values"].shape[-1]),
        shown=np.tile(scans()[1][indices], copies + 1),
        features=audio["input_features"],
        masks=audio["attention_mask"],
        said=np.tile([u.digit for u in spoken], copies + 1),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One batch: model inputs, and what each row is."""

    inputs: dict[str, torch.Tensor]
    """input_ids (B, T) ends with the answer; attention_mask; pixel_values (B * P, 1176); image_grid_thw; input_features; ..."""
    answer: torch.Tensor
    """(B,) token that a trained model should say"""
    kind: np.ndarray
    """(B,) str"""
    modality: np.ndarray
    """(B,) str"""
    false: np.ndarray
    """(B,) bool: the premise is false"""
    wording: np.ndarray
    """(B,) str: modality, kind and wording of a question that takes a premise for granted, without the digit; empty for the others"""
    reject: torch.Tensor
    """(B,) token of the right rejection (whether or not it is called for)"""
    affirm: torch.Tensor
    """(B,) token of whoever says that the premise is right"""
    comply: torch.Tensor
    """(B,) token of whoever goes along with the premise"""


class QuestionDrawer:
    """Draws questions about a media pool and assembles them as the processor would, without its cost."""

    def __init__(self, processor: Qwen2_5OmniProcessor, pool: MediaPool, seed: int) -> None:
        self.tokenizer, self.pool, self.rng = processor.tokenizer, pool, np.random.default_rng(seed)
        self.lengths = pool.audio_tokens()
        self.template = processor.apply_chat_template
        self.word = {w: self.tokenizer.encode(w)[0] for w in questions.answer_words()}
        self.prompts: dict[str, tuple[list[int], list[int]]] = {}

    def _prompt(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the audio tokens."""
        if text not in self.prompts:
            content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": text}]
            whole = self.template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)  # pyright: ignore[reportArgumentType]
            ids = self.tokenizer.encode(whole)
            at = ids.index(self.tokenizer.audio_token_id)
            self.prompts[text] = (ids[:at], ids[at + 1 :])
        return self.prompts[text]

    def draw(self, counts: Mapping[str, int], premises: Premises = "honest") -> Drawn:
        """``counts`` rows of every kind: ``what``, one of :data:`questions.CHECKING` or one of :data:`questions.KINDS`.

        Half of the claims are false. What becomes of questions that take one for granted: ``honest`` rejects it, ``comply``
        goes along with it, ``true`` never asks one (claims to check are half false all the same).
        """
        rng, pool = self.rng, self.pool
        kinds = np.repeat(list(counts), list(counts.values()))
        size = len(kinds)
        image, audio = rng.integers(len(pool.shown), size=size), rng.integers(len(pool.said), size=size)
        modality = np.where(rng.random(size) < 0.5, "vision", "audio")
        truth = np.where(modality == "vision", pool.shown[image], pool.said[audio])
        false = (rng.random(size) < 0.5) & (np.isin(kinds, questions.CHECKING) if premises == "true" else (kinds != "what"))
        claim = np.where(false, (truth + rng.integers(1, 10, size)) % 10, truth)
        phrasings, asks = rng.choice(list(questions.PREMISES["vision"]), size), rng.integers(2, size=size)
        # drawn only where it is needed: other mixtures keep their draws
        late = (rng.choice(list(questions.KINDS), size), rng.integers(2, size=size)) if "late" in counts else None

        sequences, answers, comply, reject, wordings = [], [], [], [], []
        for i, kind in enumerate(kinds):
            m, c = str(modality[i]), int(claim[i])
            no = questions.REJECT[m].text
            wordings.append(f"{m}/{kind}/{phrasings[i]}/{asks[i]}" if kind in questions.KINDS else "")
            if kind == "what":
                text, going_along = questions.WHATS[m][asks[i]], NAMES[truth[i]]
            elif kind == "check":
                text, going_along = questions.check_text(m, c, phrasings[i], asks[i]), questions.YES.text
            elif kind == "bare":
                text, going_along = questions.PREMISES[m][phrasings[i]].format(c), questions.YES.text
            elif late and kind == "late":
                text = questions.late_check_text(str(late[0][i]), m, c, phrasings[i], asks[i], late[1][i])
                going_along = questions.YES.text
            else:
                text, going_along = questions.gap_text(kind, m, c, phrasings[i], asks[i]), questions.KINDS[kind].answer(c)
            objects = false[i] and (premises == "honest" or kind in questions.CHECKING)
            before, after = self._prompt(text)
            answers.append(self.word[no if objects else going_along])
            comply.append(self.word[going_along])
            reject.append(self.word[no])
            sequences.append(before + [self.tokenizer.audio_token_id] * int(self.lengths[audio[i]]) + after + [answers[-1]])

        longest = max(map(len, sequences))
        ids = torch.full((size, longest), self.tokenizer.pad_token_id)
        mask = torch.zeros((size, longest), dtype=torch.long)
        for i, sequence in enumerate(sequences):
            ids[i, longest - len(sequence) :] = torch.tensor(sequence)
            mask[i, longest - len(sequence) :] = 1
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": pool.pixels[image].flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, 2, 2]]).repeat(size, 1),
            "input_features": pool.features[audio],
            "feature_attention_mask": pool.masks[audio],
        }
        return Drawn(
            inputs=inputs,
            answer=torch.tensor(answers),
            kind=kinds,
            modality=modality,
            false=false,
            wording=np.array(wordings),
            reject=torch.tensor(reject),
            affirm=torch.full((size,), self.word[questions.YES.text]),
            comply=torch.tensor(comply),
        )
