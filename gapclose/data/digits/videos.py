"""Write the digits set as videos, in the layout of the public IMAVB data set.

    python -m gapclose.data.digits.videos runs/digits-films --clips 60 --seed 0

There are four files of questions, and ``videos/``. A clip lasts under a second: a scan that moves
by a pixel or two, and a spoken digit. It has four questions, about the picture and about the sound,
each with a true premise and with its twin, the same words with another digit. Needs the extra
``media`` (PyAV).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from gapclose.core.files import write_text
from gapclose.data.digits import questions
from gapclose.data.digits.generate import Clip, draw_clips, false_claims, media
from gapclose.data.digits.media_bank import NAMES, RATE, scan_partition

FRAMES = 10
"""frames per second"""
LETTERS = "abcd"
REJECTIONS = {"e": "The visual detail in the question is incorrect", "f": "The audio detail in the question is incorrect"}


def write_film(path: Path, pictures: np.ndarray, sound: np.ndarray | None, *, rate: int = RATE, frames_a_second: int = FRAMES) -> None:
    """Encode (F, H, W, 3) uint8 pictures as H.264, (samples,) float32 sound as AAC; H and W even."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=frames_a_second, options={"crf": "18", "threads": "1"})
        video.height, video.width, video.pix_fmt = *pictures.shape[1:3], "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="mono") if sound is not None else None
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def wander(picture: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (count, H, W, 3): copies of the picture (H, W, 3), each moved by up to two pixels."""
    moves = rng.integers(-2, 3, (count, 2)).tolist()
    return np.stack([np.roll(picture, (down, right), (0, 1)) for down, right in moves])


def rows(clips: list[Clip], rng: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    """Return file name -> its rows, one per clip: the number after the digit that is claimed."""
    found: dict[str, list[dict[str, Any]]] = {}
    phrasings = list(questions.PREMISES["vision"])
    for modality in questions.MODALITIES:
        truths = np.array([c.truth(modality) for c in clips])
        for clip, truth, wrong in zip(clips, truths.tolist(), false_claims(truths, False, rng).tolist(), strict=True):
            others = [n for n in range(1, 11) if n not in (truth + 1, wrong + 1)]
            offered = rng.permutation([truth + 1, wrong + 1, *rng.choice(others, 2, replace=False)]).tolist()
            options = {f"option_{letter}": NAMES[n] for letter, n in zip(LETTERS, offered, strict=True)}
            options |= {f"option_{letter}": text for letter, text in REJECTIONS.items()}
            phrasing = str(rng.choice(phrasings))
            for name, claim in (("standard", truth), ("misleading", wrong)):
                right = "EF"[modality == "audio"] if claim != truth else LETTERS[offered.index(truth + 1)].upper()
                found.setdefault(f"{name}_{modality}", []).append(
                    {
                        "video_id": clip.name,
                        "video": f"videos/{clip.name}.mp4",
                        "question": questions.gap_text("next", modality, claim, phrasing, 0),
                        **options,
                        "correct_answer": right,
                    }
                )
    return found


def write(directory: str | Path, *, clips: int = 60, seed: int = 0) -> None:
    """Write ``videos/*.mp4`` and four files of questions, with the voices of the ``train`` group.

    Raises:
        ValueError: when there are fewer scans than clips.
    """
    directory, rng = Path(directory), np.random.default_rng(seed)
    (drawn,) = draw_clips({"train": clips}, rng).values()
    for clip in drawn:
        picture, sound = media(clip)
        count = max(2, round(len(sound) / RATE * FRAMES))
        write_film(directory / "videos" / f"{clip.name}.mp4", wander(np.asarray(picture), count, rng), sound)
    for name, lines in rows(drawn, rng).items():
        write_text(directory / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("directory", type=Path)
    parser.add_argument("--clips", type=int, default=60, help=f"at most {len(scan_partition()[1])}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.directory, clips=args.clips, seed=args.seed)
    print(f"{4 * args.clips} questions about {args.clips} films in {args.directory}")


if __name__ == "__main__":
    main()
