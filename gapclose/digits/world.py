"""Write the embedded world as an ordinary item set: ``items.jsonl``, ``set.json`` and the media.

    python -m gapclose.digits.world runs/digits-items --seed 0

A clip is one scan and one utterance, drawn independently. Each gap clip asks four questions: vision and audio, with a
standard and a false premise. A false premise borrows its words from the standard question of another clip of its split:
every wording (claimed digit, kind, phrasing) occurs as often true as false, so text predicts nothing. That other item is
the ``twin`` in the tags: same words, other clip, other verdict.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from gapclose.digits import questions
from gapclose.digits.bank import NAMES, RATE, Utterance, scan_image, scan_partition, scans, utterances, waveform
from gapclose.items import Item, ItemSet, Option, write_items

CLIPS = {"fit": 220, "train": 400, "val": 110, "test": 260}
VOICES = {"fit": "train", "train": "train", "val": "val", "test": "test"}
"""split -> voice group of the bank"""


class Clip(NamedTuple):
    """One scan and one utterance."""

    name: str
    split: str
    scan: int
    utterance: Utterance

    def truth(self, modality: str) -> int:
        """The digit that is shown or said."""
        return int(scans()[1][self.scan]) if modality == "vision" else self.utterance.digit


class Wording(NamedTuple):
    """Everything that the text of an item depends on."""

    kind: str
    phrasing: str
    ask: int


def draw_clips(counts: Mapping[str, int], rng: np.random.Generator) -> dict[str, list[Clip]]:
    """Clips by split: scans without replacement, digits said in equal numbers, utterances from the split's voices.

    Raises:
        ValueError: when more clips are asked for than there are scans outside the base model's training.
    """
    _, free = scan_partition()
    if sum(counts.values()) > len(free):
        raise ValueError(f"{sum(counts.values())} clips need as many scans, but only {len(free)} are kept for item sets; ask for fewer")
    order, clips = iter(rng.permutation(free)), {}
    for split, count in counts.items():
        spoken: dict[int, list[Utterance]] = {d: [] for d in range(10)}
        for utterance in utterances():
            if utterance.group == VOICES[split]:
                spoken[utterance.digit].append(utterance)
        digits = rng.permutation(np.arange(count) % 10)
        clips[split] = [
            Clip(f"{split}-{i:03d}", split, int(next(order)), spoken[d][rng.integers(len(spoken[d]))]) for i, d in enumerate(digits)
        ]
    return clips


def borrow(truths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation p (N,) with ``truths[p[i]] != truths[i]`` everywhere: whose claim each false premise borrows.

    Sorted by digit and turned by the size of the largest class, no row meets its own digit, provided that no digit has
    more than half of the rows.

    Raises:
        ValueError: when one digit has more than half of the rows.
    """
    largest = int(np.bincount(truths).max())
    if 2 * largest > len(truths):
        raise ValueError(f"{len(truths)} clips show one digit {largest} times, so false premises cannot be matched; ask for more clips")
    order = rng.permutation(len(truths))
    order = order[np.argsort(truths[order], kind="stable")]
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -largest)
    return partner


def premise_items(
    clips: list[Clip], modality: str, kinds: tuple[str, ...], purpose: str, rng: np.random.Generator, *, half: bool = False
) -> Iterator[Item]:
    """A standard and a false item per clip about one modality; with ``half``, every second clip asks the other one of the two."""
    phrasings = [p for p in questions.PREMISES[modality] if p != questions.HELD_OUT_PHRASING or clips[0].split in ("val", "test")]
    wordings = [Wording(str(rng.choice(kinds)), str(rng.choice(phrasings)), int(rng.integers(2))) for _ in clips]
    truths = np.array([c.truth(modality) for c in clips])
    partner = borrow(truths, rng)
    lender = np.argsort(partner)
    stem = f"{modality}-{'retain' if purpose == 'retain' else purpose}"
    for i, clip in enumerate(clips):
        for false in (False, True):
            source = partner[i] if false else i
            twin = clips[partner[i]].name + f"/{stem}-true" if false else clips[lender[i]].name + f"/{stem}-false"
            yield item(clip, modality, wordings[source], int(truths[source]), false, purpose, f"{stem}-{str(not false).lower()}", twin)


def item(
    clip: Clip, modality: str, wording: Wording, claim: int, false: bool, purpose: str, name: str, twin: str
) -> Item:
    """One question with a premise: of a kind, or a request to check."""
    checking = wording.kind == "check"
    if checking:
        text, options = questions.check_text(modality, claim, wording.phrasing, wording.ask), questions.check_options()
        content = questions.YES.text
    else:
        text = questions.gap_text(wording.kind, modality, claim, wording.phrasing, wording.ask)
        options, content = questions.gap_options(wording.kind), questions.KINDS[wording.kind].answer(claim)
    tags = {
        "question": wording.kind,
        "phrasing": wording.phrasing,
        "ask": str(wording.ask),
        "premise": str(not false).lower(),
        "claim": str(claim),
        "twin": twin,
        "voice": clip.utterance.voice,
    }
    gold = questions.REJECT[modality].text if false else content
    return build(clip, modality, text, options, gold, purpose, name, tags)


def build(clip: Clip, modality: str, text: str, options: list[Option], gold: str, purpose: str, name: str, tags: dict[str, str]) -> Item:
    """An item about a clip: image, audio, text."""
    content = [
        {"type": "image", "path": f"media/{clip.name}.png"},
        {"type": "audio", "path": f"media/{clip.name}.wav"},
        {"type": "text", "text": text},
    ]
    return Item(
        id=f"{clip.name}/{name}",
        clip=clip.name,
        split=clip.split,
        modality=modality,
        messages=[{"role": "user", "content": content}],
        options=options,
        gold=[o.text for o in options].index(gold),
        purpose=purpose,
        tags=tags,
    )


def what_item(clip: Clip, modality: str, ask: int) -> Item:
    """What is shown or said: a retain item without a premise."""
    tags = {"question": "what", "ask": str(ask), "voice": clip.utterance.voice}
    text, gold = questions.WHATS[modality][ask], NAMES[clip.truth(modality)]
    return build(clip, modality, text, questions.what_options(), gold, "retain", f"{modality}-what", tags)
