"""Write the digits set as an ordinary item set: ``items.jsonl``, ``set.json`` and the media.

    python -m gapclose.data.digits.generate runs/digits-items --seed 0

A clip is one scan and one utterance, drawn independently. It has four gap questions: vision and
audio, each with a standard premise and with its ``twin``, the same words with another digit.

Text does not predict the verdict. Digits are shown and said about equally often. In fit and train,
false claims are uniform over the nine other digits. In val and test, they are a permutation of the
true ones, so that every digit is claimed truly and falsely equally often. Fit is not matched
exactly on purpose: exact matching pushes a cross-validated text baseline well *below* chance,
because the counts miss the held-out fold.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from gapclose.core.files import writing
from gapclose.data.digits import questions
from gapclose.data.digits.media_bank import NAMES, RATE, Utterance, scan_image, scan_partition, scans, utterances, waveform
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.jsonl import write_items

CLIPS = {"fit": 220, "train": 400, "val": 110, "test": 260}
VOICES = {"fit": "train", "train": "train", "val": "val", "test": "test"}
"""split -> voice group of the bank"""


class Clip(NamedTuple):
    """One scan and one utterance."""

    name: str
    split: str
    scan: int
    utterance: Utterance
    degraded: bool = False
    """whether noise replaces the picture and the sound"""

    def truth(self, modality: str) -> int:
        """Return the digit that is shown or said."""
        return int(scans()[1][self.scan]) if modality == "vision" else self.utterance.digit


def draw_clips(counts: Mapping[str, int], rng: np.random.Generator) -> dict[str, list[Clip]]:
    """Draw clips by split: scans without replacement, and utterances of the split's voices.

    All digits are said equally often.

    Raises:
        ValueError: when there are more clips than scans outside the base model's training.
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


def false_claims(truths: np.ndarray, matched: bool, rng: np.random.Generator) -> np.ndarray:
    """Return a wrong digit for every true one (N,): uniform, or with ``matched`` a permutation.

    The permutation shifts the rows, sorted by digit, by the size of the largest class, so that no
    row gets its own digit.

    Raises:
        ValueError: when one digit has more than half of the rows.
    """
    if not matched:
        return (truths + rng.integers(1, 10, len(truths))) % 10
    largest = int(np.bincount(truths).max())
    if 2 * largest > len(truths):
        raise ValueError(f"one digit is true of {largest} of {len(truths)} clips, so false claims cannot be matched; ask for more clips")
    order = rng.permutation(len(truths))
    order = order[np.argsort(truths[order], kind="stable")]
    claims = np.empty_like(truths)
    claims[order] = truths[np.roll(order, -largest)]
    return claims


def premise_items(clips: list[Clip], modality: str, kinds: tuple[str, ...], purpose: str, rng: np.random.Generator) -> Iterator[Item]:
    """Yield a standard and a false item per clip, about one modality.

    Both have the same random kind and phrasing.
    """
    unseen_split = clips[0].split in ("val", "test")
    phrasings = [p for p in questions.PREMISES[modality] if unseen_split or p != questions.HELD_OUT_PHRASING]
    truths = np.array([c.truth(modality) for c in clips])
    for clip, truth, wrong in zip(clips, truths, false_claims(truths, unseen_split, rng), strict=True):
        kind, phrasing, ask = str(rng.choice(kinds)), str(rng.choice(phrasings)), int(rng.integers(2))
        stem = f"{modality}-{'check' if kind == 'check' else purpose}"
        for claim, premise, other in ((int(truth), "true", "false"), (int(wrong), "false", "true")):
            if kind == "check":
                text, options = questions.check_text(modality, claim, phrasing, ask), questions.check_options()
                content = questions.YES.text
            else:
                text, options = questions.gap_text(kind, modality, claim, phrasing, ask), questions.gap_options(kind)
                content = questions.KINDS[kind].answer(claim)
            tags = {"question": kind, "phrasing": phrasing, "ask": str(ask), "premise": premise, "claim": str(claim)}
            tags["twin"] = f"{clip.name}/{stem}-{other}"
            gold = content if premise == "true" else questions.REJECT[modality].text
            yield _item(clip, modality, text, options, gold, purpose, f"{stem}-{premise}", tags)


def what_item(clip: Clip, modality: str, rng: np.random.Generator) -> Item:
    """Return a retention item about what is shown or said, without a premise."""
    ask = int(rng.integers(2))
    tags = {"question": "what", "ask": str(ask)}
    text, gold = questions.WHATS[modality][ask], NAMES[clip.truth(modality)]
    return _item(clip, modality, text, questions.what_options(), gold, "retain", f"{modality}-what", tags)


def _item(clip: Clip, modality: str, text: str, options: list[Option], gold: str, purpose: str, name: str, tags: dict[str, str]) -> Item:
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
        tags={**tags, "scan": str(clip.scan), "voice": clip.utterance.voice, **({"degraded": "yes"} if clip.degraded else {})},
    )


def split_items(clips: list[Clip], rng: np.random.Generator) -> list[Item]:
    """Return all items of one split, clip by clip.

    Every clip has four gap items. Outside ``fit``, it has three retention items: a true and a false
    claim to check, about vision in one half of the clips and about audio in the other, and a *what*
    item about the other modality. In val and test, it also has a standard and a false transfer
    item, about the modality of its claims to check.
    """
    items = [i for m in questions.MODALITIES for i in premise_items(clips, m, questions.IN_DOMAIN, "gap", rng)]
    for offset, modality in enumerate(questions.MODALITIES):
        half = clips[offset::2]
        if clips[0].split != "fit":
            items += premise_items(half, modality, ("check",), "retain", rng)
            items += [what_item(c, modality, rng) for c in clips[1 - offset :: 2]]
        if clips[0].split in ("val", "test"):
            items += premise_items(half, modality, (questions.TRANSFER,), "transfer", rng)
    order = {c.name: k for k, c in enumerate(clips)}
    return sorted(items, key=lambda i: order[i.clip])


def degrade(clips: list[Clip], share: float, rng: np.random.Generator) -> list[Clip]:
    """Return the clips, of which a random ``share`` is marked as degraded."""
    lost = set(rng.permutation(len(clips))[: round(share * len(clips))].tolist())
    return [c._replace(degraded=n in lost) for n, c in enumerate(clips)]


def media(clip: Clip) -> tuple[Image.Image, np.ndarray]:
    """Return picture and sound of a clip.

    A degraded clip has noise of the same brightness, loudness and length.
    """
    picture, sound = scan_image(clip.scan), waveform(clip.utterance)
    if not clip.degraded:
        return picture, sound
    rng = np.random.default_rng([clip.scan, clip.utterance.onset])
    grey = rng.permutation(np.asarray(picture.convert("L")).ravel()).reshape(picture.size[::-1])
    return Image.fromarray(grey).convert("RGB"), rng.permutation(sound)


def draw(seed: int = 0, clips: Mapping[str, int] | None = None, degraded: float = 0.0) -> tuple[list[Clip], tuple[Item, ...]]:
    """Return the clips and items of one seed, without writing them.

    ``clips``, ``degraded``: as in :func:`write`.
    """
    rng, other = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    by_split = {s: degrade(c, degraded, other) for s, c in draw_clips(CLIPS if clips is None else clips, rng).items()}
    items = tuple(i for split in by_split.values() for i in split_items(split, rng))
    return [c for split in by_split.values() for c in split], items


def without_sound(item: Item) -> Item:
    """Return the question about the image alone, without the option that rejects the audio.

    That option is always the last one.
    """
    content = [part for part in item.messages[0]["content"] if part["type"] != "audio"]
    options = [o for o in item.options if o != questions.REJECT["audio"]]
    return replace(item, messages=[{"role": "user", "content": content}], options=options)


def wav_bytes(wave: np.ndarray) -> bytes:
    """Return a sound as the bytes of a wav file; libsndfile would not report a full disk."""
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write(
    directory: str | Path,
    seed: int = 0,
    *,
    clips: Mapping[str, int] | None = None,
    degraded: float = 0.0,
    sound: bool = True,
    name: str = "digits",
) -> ItemSet:
    """Write the item set and its media; the same arguments give the same bytes.

    Args:
        clips: split -> number of clips, instead of :data:`CLIPS`; splits may be left out. Even
            numbers keep the four cells equal in every purpose. val and test need a few dozen, so
            that their claims can be matched.
        degraded: share of every split's clips whose picture and sound are noise. Their items are
            tagged and keep their gold options, which the media do not show.
        sound: False leaves only images and the questions about them.

    Raises:
        ValueError: when there are not enough scans, or too few clips to match the claims.
    """
    directory = Path(directory)
    drawn, items = draw(seed, clips, degraded)
    with writing(directory):
        (directory / "media").mkdir(parents=True, exist_ok=True)
    absent = () if sound else (questions.REJECT["audio"].concept,)
    if not sound:
        items = tuple(without_sound(i) for i in items if i.modality == "vision")
    with writing(directory):
        for clip in drawn:
            picture, wave = media(clip)
            picture.save(directory / "media" / f"{clip.name}.png")
            if sound:
                (directory / "media" / f"{clip.name}.wav").write_bytes(wav_bytes(wave))
    concepts, alarm = (tuple(c for c in known if c not in absent) for known in (questions.CONCEPTS, questions.ALARM))
    made = ItemSet(root=directory, name=name, concepts=concepts, alarm=alarm, items=items)
    write_items(made, directory)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = write(args.directory, args.seed)
    print(f"{len(made)} items about {len({i.clip for i in made})} clips in {args.directory}")


if __name__ == "__main__":
    main()
