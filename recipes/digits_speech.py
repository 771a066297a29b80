"""Make the bank of spoken digits that `gapclose.data.digits` ships (once; the bank is kept, because espeak-ng is not repeatable).

    pip install espeakng-loader
    python recipes/digits_speech.py                       # writes gapclose/data/digits/assets/speech.ogg and speech.json
    python recipes/digits_speech.py --out /tmp/bank       # elsewhere, to listen first

The speech is synthetic: espeak-ng's formant voices through its C interface (speak_lib.h), 22.05 kHz mono resampled to
16 kHz, trimmed, brought to one peak level and kept as Ogg Vorbis. Voices are dealt to groups here and nowhere else, so
that no voice of one group is ever heard in another.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile
from rich.progress import track
from scipy.signal import resample_poly

from gapclose.core.files import write_json
from gapclose.data.digits.media_bank import COLUMNS, NAMES, RATE

# group -> (voices, speeds in words a minute, pitches 0-99). A voice is an accent, or an accent + a speaker variant.
GROUPS = {
    "base": (
        (
            "gmw/en-US", "gmw/en", "gmw/en-GB-x-gbclan", "gmw/en-US+m1", "gmw/en+m2", "gmw/en-US+m5", "gmw/en+f1",
            "gmw/en-US+f2", "gmw/en-GB-scotland+m7", "gmw/en-GB-x-gbcwmd", "gmw/en-US+f5", "gmw/en-GB-x-rp+Annie",
        ),
        (145, 190),
        (32, 60),
    ),
    "train": (("gmw/en-029", "gmw/en-US+m3", "gmw/en-GB-x-gbclan+Alicia", "gmw/en-GB-scotland+Andrea"), (140, 170, 200), (35, 60)),
    "val": (("gmw/en+m6", "gmw/en-GB-x-rp+f3"), (140, 170, 200), (35, 60)),
    "test": (("gmw/en-US+f4", "gmw/en-GB-x-rp+m8", "gmw/en-GB-scotland", "gmw/en+Gene"), (140, 170, 200), (35, 60)),
}  # fmt: skip

# Numbers of speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS, POS_CHARACTER, CHARS_UTF8, RATE_PARAMETER, PITCH_PARAMETER = 2, 1, 1, 1, 3


class Espeak:
    """espeak-ng as a function from text to a 16 kHz waveform."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        self.blocks: list[np.ndarray] = []
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def collect(samples, count, _events):
            if samples and count > 0:
                self.blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self.callback = prototype(collect)  # kept alive: the library holds only a pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def __call__(self, text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}; its voices are file names under {espeakng_loader.get_data_path()}")
        self.library.espeak_SetParameter(RATE_PARAMETER, speed, 0)
        self.library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
        self.blocks.clear()
        raw = text.encode() + b"\0"
        size, zero = ctypes.c_size_t(len(raw)), ctypes.c_uint(0)
        self.library.espeak_Synth(raw, size, zero, POS_CHARACTER, zero, ctypes.c_uint(CHARS_UTF8), None, None)
        self.library.espeak_Synchronize()
        wave = np.concatenate(self.blocks).astype(np.float32) / 32768
        return tidy(resample_poly(wave, RATE // 50, self.rate // 50).astype(np.float32))


def tidy(wave: np.ndarray, peak: float = 0.5, floor: float = 0.02, margin: int = 320, longest: int = RATE - 800) -> np.ndarray:
    """Cut silence below ``floor`` of the peak (keeping ``margin`` samples), bound the length, set the peak level."""
    loud = np.flatnonzero(np.abs(wave) > floor * np.abs(wave).max())
    wave = wave[max(0, loud[0] - margin) : loud[-1] + margin][:longest].copy()
    fade = np.linspace(0, 1, margin // 2, dtype=np.float32)
    wave[: len(fade)] *= fade
    wave[-len(fade) :] *= fade[::-1]
    return wave * (peak / np.abs(wave).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "gapclose" / "data" / "digits" / "assets")
    parser.add_argument("--quality", type=float, default=0.85, help="libsndfile compression level, 0 (best) to 1 (smallest)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    speak, gap = Espeak(), np.zeros(480, np.float32)  # silence between utterances, so that the codec smears none into the next
    plan = [
        (digit, voice, speed, pitch, group)
        for group, (voices, speeds, pitches) in GROUPS.items()
        for voice, speed, pitch, digit in itertools.product(voices, speeds, pitches, range(10))
    ]
    rows, waves, onset = [], [], 0
    for digit, voice, speed, pitch, group in track(plan, description="speaking"):
        wave = speak(NAMES[digit], voice, speed, pitch)
        rows.append([onset, len(wave), digit, voice, speed, pitch, group])
        waves += [wave, gap]
        onset += len(wave) + len(gap)

    temporary = args.out / f".speech.{os.getpid()}.ogg"
    with soundfile.SoundFile(temporary, "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=args.quality) as file:
        for block in np.array_split(np.concatenate(waves), onset // RATE + 1):  # one large write overflows libvorbis' stack
            file.write(block)
    temporary.replace(args.out / "speech.ogg")
    write_json(args.out / "speech.json", {"rate": RATE, "columns": list(COLUMNS), "rows": rows})
    size = (args.out / "speech.ogg").stat().st_size
    print(f"{len(rows)} utterances, {onset / RATE:.0f} s, {size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
