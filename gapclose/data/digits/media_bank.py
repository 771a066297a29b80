"""The media of the digits set: 1,797 handwritten digits and a bank of spoken ones.

Scans are scikit-learn's ``load_digits`` (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI 1998, CC BY 4.0), 8 x 8 pixels with 17 grey levels, enlarged to 28 x 28 RGB. Splits
share no scan, but may share a writer, because writers are not recorded. Utterances come from
espeak-ng (see ``recipes/digits_speech.py``), 16 kHz mono.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image
from sklearn.datasets import load_digits

from gapclose.core.files import read_json

HERE = Path(__file__).parent / "assets"
RATE = 16_000
"""samples per second"""
SIDE = 28
"""side of a square image in pixels: four patches of 14 x 14, merged into one image token"""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLUMNS = ("onset", "samples", "digit", "voice", "speed", "pitch", "group")
BASE_SCANS = 800
"""scans for training the base model; item sets never use them"""


class Utterance(NamedTuple):
    """One spoken digit in the bank."""

    onset: int
    """first sample in the decoded bank"""
    samples: int
    digit: int
    voice: str
    speed: int
    """words per minute"""
    pitch: int
    """0 to 99, espeak's scale"""
    group: str
    """its use: ``base`` (training of the base model), ``train`` (fit and train items), ``val`` or
    ``test``"""


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (1797, 8, 8), uint8 from 0 (paper) to 16 (ink), and labels (1797,)."""
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def scan_partition() -> tuple[np.ndarray, np.ndarray]:
    """Return indices of the scans for the base model (800,) and item sets (997,), for every seed."""
    order = np.random.default_rng(20260513).permutation(len(scans()[1]))
    return np.sort(order[:BASE_SCANS]), np.sort(order[BASE_SCANS:])


def scan_image(index: int) -> Image.Image:
    """Return scan ``index`` as a 28 x 28 RGB image, white ink on black."""
    grey = Image.fromarray((scans()[0][index].astype(np.float32) / 16 * 255).astype(np.uint8))
    return grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


@cache
def utterances() -> tuple[Utterance, ...]:
    """Return the index of the speech bank, in bank order."""
    index = read_json(HERE / "speech.json")
    assert tuple(index["columns"]) == COLUMNS and index["rate"] == RATE, index["columns"]
    return tuple(Utterance(*row) for row in index["rows"])


@cache
def _speech() -> np.ndarray:
    wave, rate = soundfile.read(HERE / "speech.ogg", dtype="float32")
    assert rate == RATE, rate
    return wave


def waveform(utterance: Utterance) -> np.ndarray:
    """Return samples (utterance.samples,), float32 in [-1, 1], less than one second."""
    return _speech()[utterance.onset : utterance.onset + utterance.samples]
