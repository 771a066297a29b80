"""Sounds are decoded to their end, whatever their headers state: whole ones with wrong headers pass, cut ones are refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gapclose.core.errors import ItemError
from gapclose.data.audio import read_audio
from gapclose.data.audio_headers import Corrected

RATE = 16_000
N = RATE
"""samples of every sound here"""
SOUND = np.random.default_rng(0).uniform(-0.5, 0.5, N).astype(np.float32)


def written(path: Path, form: str, samples: np.ndarray = SOUND) -> bytearray:
    soundfile.write(path, samples, RATE, format=form)
    return bytearray(path.read_bytes())


def decoded(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return read_audio(path, None)[0]


def put(data: bytearray, name: bytes, behind: int, *sizes: tuple[str, int]) -> None:
    """Write numbers behind the first place where ``name`` stands."""
    place = data.index(name) + behind
    for form, value in sizes:
        data[place : place + struct.calcsize(form)] = struct.pack(form, value)
        place += struct.calcsize(form)


WHOLE: dict[str, tuple[str, Callable[[bytearray], None]]] = {
    "closed abruptly": ("WAV", lambda d: (put(d, b"RIFF", 4, ("<I", 0)), put(d, b"data", 4, ("<I", 0)))),
    "length 0, file length right": ("WAV", lambda d: put(d, b"data", 4, ("<I", 0))),
    "FFmpeg into a pipe": ("WAV", lambda d: (put(d, b"RIFF", 4, ("<I", 2**32 - 1)), put(d, b"data", 4, ("<I", 2**32 - 1)))),
    "SoX into a pipe": ("WAV", lambda d: (put(d, b"RIFF", 4, ("<I", 0x7FFFF024)), put(d, b"data", 4, ("<I", 0x7FFFF000)))),
    "arecord into a pipe": ("WAV", lambda d: (put(d, b"RIFF", 4, ("<I", 0x80000024)), put(d, b"data", 4, ("<I", 0x80000000)))),
    "16 bytes too many": ("WAV", lambda d: put(d, b"data", 4, ("<I", 2 * N + 16))),
    "a third too many, file length right": ("WAV", lambda d: put(d, b"data", 4, ("<I", 3 * N))),
    "half of it": ("WAV", lambda d: (put(d, b"RIFF", 4, ("<I", N + 36)), put(d, b"data", 4, ("<I", N)))),
    "RF64 without lengths": ("RF64", lambda d: put(d, b"ds64", 8, ("<Q", 0), ("<Q", 0), ("<Q", 0))),
    "RF64 with -1": ("RF64", lambda d: put(d, b"ds64", 8, *[("<Q", 2**64 - 1)] * 3)),
    "half of RF64": ("RF64", lambda d: put(d, b"ds64", 8, ("<Q", N), ("<Q", N), ("<Q", N // 2))),
    "Wave64 without lengths": ("W64", lambda d: (put(d, b"riff", 16, ("<Q", 0)), put(d, b"data\xf3", 16, ("<Q", 0)))),
    "Wave64 with -1": ("W64", lambda d: put(d, b"data\xf3", 16, ("<Q", 2**64 - 1))),
    "half of Wave64": ("W64", lambda d: put(d, b"data\xf3", 16, ("<Q", N + 24))),
    "AIFF without lengths": (
        "AIFF",
        lambda d: (put(d, b"FORM", 4, (">I", 0)), put(d, b"COMM", 10, (">I", 0)), put(d, b"SSND", 4, (">I", 0))),
    ),
    "AIFF without frames": ("AIFF", lambda d: put(d, b"COMM", 10, (">I", 0))),
    "half of AIFF": ("AIFF", lambda d: put(d, b"SSND", 4, (">I", N + 8))),
    "AU of unknown length": ("AU", lambda d: put(d, b".snd", 8, (">I", 2**32 - 1))),
    "AU of length 0": ("AU", lambda d: put(d, b".snd", 8, (">I", 0))),
    "half of AU": ("AU", lambda d: put(d, b".snd", 8, (">I", N))),
    "CAF of unknown length": ("CAF", lambda d: put(d, b"data", 4, (">q", -1))),
    "half of CAF": ("CAF", lambda d: put(d, b"data", 4, (">q", N + 4))),
}
"""what is wrong with a header -> format of a whole file, and what spoils its lengths"""


@pytest.mark.parametrize("header", WHOLE)
def test_a_whole_sound_with_a_wrong_header_is_decoded_to_its_last_sample(tmp_path, header):
    form, spoil = WHOLE[header]
    data = written(tmp_path / "sound", form)
    expected = decoded(tmp_path / "sound", data)
    assert len(expected) == N
    spoil(data)
    assert np.array_equal(decoded(tmp_path / "sound", data), expected)


@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.98])
def test_a_cut_sound_is_refused_and_both_doubts_are_named(tmp_path, form, share):
    """The message says how to fix the header of a complete file."""
    data = written(tmp_path / "sound", form)
    with pytest.raises(
        ItemError, match=r"truncated, or its header is wrong: it promises \d+ bytes more .*copy it again, or, where it is whole"
    ):
        decoded(tmp_path / "sound", data[: int(share * len(data))])


@pytest.mark.parametrize(("form", "note"), [("WAV", b"LIST\x04\0\0\0INFO"), ("AIFF", b"ANNO\0\0\0\x04abcd"), ("WAV", b"TAG" + bytes(125))])
def test_notes_behind_the_samples_are_not_heard(tmp_path, form, note):
    """Chunks, and an ID3 tag, which is none; also behind no samples at all."""
    data = written(tmp_path / "sound", form)
    assert len(decoded(tmp_path / "sound", bytes(data) + note)) == N
    if note[:3] != b"TAG":
        nothing = written(tmp_path / "sound", form, SOUND[:0])
        with pytest.raises(ItemError, match="has no samples"):
            decoded(tmp_path / "sound", bytes(nothing) + note)


def flac(total: int, path: Path) -> bytearray:
    """A flac file of the sound that states ``total`` samples."""
    data = written(path, "FLAC")
    word = int.from_bytes(data[18:26], "big")
    data[18:26] = (word >> 36 << 36 | total).to_bytes(8, "big")
    return data


@pytest.mark.parametrize("total", [0, N // 2])
def test_a_flac_without_its_length_or_with_too_small_a_one_is_decoded(tmp_path, total):
    pytest.importorskip("av", reason="flac needs PyAV")
    expected = decoded(tmp_path / "sound", flac(N, tmp_path / "sound"))
    assert np.array_equal(decoded(tmp_path / "sound", flac(total, tmp_path / "sound")), expected) and len(expected) == N


def test_an_absurd_length_costs_no_memory(tmp_path):
    """A header that promises months is told; what it promises is not allocated."""
    pytest.importorskip("av", reason="flac needs PyAV")
    with pytest.raises(ItemError, match=r"header is wrong: 1\.0 s of 4294967\.3 s are there"):
        decoded(tmp_path / "sound", flac(2**36 - 1, tmp_path / "sound"))


def mp3_frames(data: bytes) -> list[bytes]:
    """The frames of an mp3 file of MPEG 2 layer III (16 kHz), whose first one may be a header."""
    rates, frames, place = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160), [], 0
    while place + 4 <= len(data):
        assert data[place] == 0xFF and data[place + 1] & 0xFE == 0xF2, data[place : place + 4]
        size = 72_000 * rates[data[place + 2] >> 4] // RATE + (data[place + 2] >> 1 & 1)
        frames.append(bytes(data[place : place + size]))
        place += size
    return frames


def test_an_mp3_of_varying_bit_rate_without_a_header_is_decoded_to_its_end(tmp_path):
    """libsndfile would divide the size of the file by the first bit rate, and stop after a part of it (its issue 1001)."""
    pytest.importorskip("av", reason="mp3 needs PyAV")
    parts = []
    for name, level, sound in (("loud", 0.0, SOUND), ("quiet", 0.9, np.tile(SOUND * 1e-3, 4))):
        soundfile.write(tmp_path / name, sound, RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=level)
        frames = mp3_frames((tmp_path / name).read_bytes())
        parts.append([f for f in frames if b"Xing" not in f and b"Info" not in f])
    loud, quiet = (b"".join(frames) for frames in parts)
    assert len(parts[0][-1]) > 2 * len(parts[1][-1])
    length = len(decoded(tmp_path / "sound", loud + quiet))
    assert length / RATE == pytest.approx(5, abs=0.3)
    assert soundfile.info(tmp_path / "sound").duration < 3  # what was heard before
    assert len(decoded(tmp_path / "sound.mp3", bytes(100) + loud + quiet)) == length  # known by its name alone
    # the other way round that length is too long, as FFmpeg's own is, and the sound is no cut one
    assert len(decoded(tmp_path / "sound", quiet + loud)) / RATE == pytest.approx(5, abs=0.3)
    assert soundfile.info(tmp_path / "sound").duration > 6


def test_what_stands_before_and_between_the_frames_of_an_mp3_is_no_sound(tmp_path):
    """A large cover in front is not counted as music that is missing; junk within is passed over, as players do."""
    pytest.importorskip("av", reason="mp3 needs PyAV")
    plain = bytes(written(tmp_path / "sound", "MP3", np.tile(SOUND, 3)))
    frames = [f for f in mp3_frames(plain) if b"Xing" not in f and b"Info" not in f]
    size = 200_000
    tag = b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    assert len(decoded(tmp_path / "sound", tag + b"".join(frames))) / RATE == pytest.approx(3, abs=0.2)
    assert len(decoded(tmp_path / "sound", plain[:6000] + bytes(500) + plain[6000:])) / RATE == pytest.approx(3, abs=0.2)


def adts(path: Path, sound: np.ndarray, rate: int) -> bytes:
    """A bare AAC stream of a bit rate, which no header precedes."""
    import av

    with av.open(str(path), "w", format="adts") as target:
        stream = target.add_stream("aac", rate=RATE, layout="mono")
        stream.bit_rate = rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
        frame.sample_rate = RATE
        target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("name", ["sound.aac", "sound.wav"])
def test_a_bare_aac_stream_whose_bit_rate_rises_is_no_cut_one(tmp_path, name):
    """FFmpeg guesses its length from its size and its first frames, where it seems to last much longer."""
    av = pytest.importorskip("av", reason="aac needs PyAV")
    quiet, loud = (adts(tmp_path / "part", sound, rate) for sound, rate in ((SOUND * 1e-4, 8_000), (np.tile(SOUND, 4), 96_000)))
    (tmp_path / name).write_bytes(quiet + loud)
    with av.open(str(tmp_path / name)) as container:
        assert container.duration / 1e6 > 5.8
    assert len(read_audio(tmp_path / name, RATE)[0]) / RATE == pytest.approx(5, abs=0.3)


def test_several_ogg_streams_one_after_another_are_all_heard(tmp_path):
    """As live recordings hold them."""
    pytest.importorskip("av", reason="chained ogg needs PyAV")
    data = bytes(written(tmp_path / "sound", "OGG"))
    assert len(decoded(tmp_path / "sound", data + data)) / RATE == pytest.approx(2, abs=0.05)


def test_an_ogg_whose_last_page_is_whole_is_no_cut_one(tmp_path):
    """A recorder that was switched off marks no page as the last; a copy that was cut ends within a page."""
    data = written(tmp_path / "sound", "OGG")
    last = data.rfind(b"OggS")
    data[last + 5] &= ~4
    data[last + 22 : last + 26] = bytes(4)
    data[last + 22 : last + 26] = struct.pack("<I", ogg_sum(bytes(data[last:])))
    assert len(decoded(tmp_path / "sound", data)) == pytest.approx(N, abs=256)
    with pytest.raises(ItemError, match="ends within a page"):
        decoded(tmp_path / "sound", data[:-1])


def ogg_sum(page: bytes) -> int:
    """The checksum of an Ogg page (RFC 3533)."""
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found >> 31 else 0)) & 0xFFFFFFFF
    return found


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_channels_that_cancel_are_told(tmp_path, form):
    """One channel turned over, up to the rounding of its samples; unlike channels, and one among silent ones, pass."""
    pytest.importorskip("av", reason="flac needs PyAV")
    other = np.random.default_rng(1).uniform(-0.5, 0.5, N).astype(np.float32)
    for channels, heard in (
        ([SOUND, -SOUND + 3e-5], False),
        ([SOUND, -SOUND * 0.95], False),
        ([SOUND, -SOUND * 0.5], True),
        ([SOUND, other], True),
        ([SOUND, *[0 * SOUND] * 7], True),
    ):
        soundfile.write(tmp_path / "sound", np.stack(channels, 1), RATE, format=form)
        if heard:
            assert len(read_audio(tmp_path / "sound", None)[0]) == N
        else:
            with pytest.raises(ItemError, match="2 channels of the audio cancel .*write one of them alone, or turn one over"):
                read_audio(tmp_path / "sound", None)


def test_the_format_is_known_by_its_content(tmp_path):
    """Whatever the name says."""
    for form, name in (("FLAC", "a.wav"), ("WAV", "b.mp3"), ("OGG", "c.flac"), ("MP3", "d.wav"), ("WAV", "e.m4a")):
        if form in ("FLAC", "MP3") or name.endswith("m4a"):
            pytest.importorskip("av", reason=f"{form} needs PyAV")
        written(tmp_path / name, form)
        assert len(read_audio(tmp_path / name, None)[0]) == pytest.approx(N, abs=1200), name


def test_what_libsndfile_does_not_know_goes_to_pyav(tmp_path):
    """AAC named as wav; a text is no sound to either, and both rates are right."""
    av = pytest.importorskip("av", reason="needs PyAV")
    for container in ("mp4", "adts", "matroska"):
        with av.open(str(tmp_path / "sound.wav"), "w", format=container) as target:
            stream = target.add_stream("aac", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(SOUND[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            target.mux(stream.encode(frame))
            target.mux(stream.encode())
        assert len(read_audio(tmp_path / "sound.wav", 8_000)[0]) == pytest.approx(N / 2, abs=1500), container
    (tmp_path / "sound.wav").write_text("no sound at all, but long enough to look at")
    with pytest.raises(ItemError, match="cannot be decoded .*Format not recognised"):
        read_audio(tmp_path / "sound.wav", None)


@pytest.mark.parametrize(
    ("rate", "says"), [(192_000, "too short: 1 samples at 192,000 Hz leave none"), (2_130_722_432, "sampling rate of 2,130,722,432 Hz")]
)
def test_a_sound_of_which_nothing_is_left_is_told(tmp_path, rate, says):
    data = written(tmp_path / "sound", "WAV", SOUND[:1])
    put(data, b"fmt ", 12, ("<I", rate), ("<I", min(2 * rate, 2**32 - 1)))
    (tmp_path / "sound").write_bytes(data)
    for known in (RATE, None):
        with pytest.raises(ItemError, match=says):
            read_audio(tmp_path / "sound", known)


def test_a_sound_too_loud_to_be_mixed_is_told(tmp_path):
    """Finite samples whose sum is not."""
    soundfile.write(tmp_path / "sound", np.full((N, 2), 3e38), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(ItemError, match="16000 samples that are not finite"):
        read_audio(tmp_path / "sound", None)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_beyond_any_scale_is_told(tmp_path, channels):
    """Resampled, its largest samples would be infinite, though those of the file are not."""
    soundfile.write(tmp_path / "sound", np.full((N, channels), 1e38), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(ItemError, match="goes up to 1e\\+38 .full scale is 1., so it is damaged; replace it"):
        read_audio(tmp_path / "sound", None)


def test_samples_that_a_header_states_and_nobody_delivers_are_not_made_up(tmp_path):
    """The last page of this ogg states 0.4 s more than there are, which rounding may explain; memory that was taken for them is no sound."""
    data = bytes(written(tmp_path / "sound", "OGG"))
    last = data.rindex(b"OggS")
    page = data[last : last + 6] + struct.pack("<Q", N + 6_400) + data[last + 14 : last + 22] + bytes(4) + data[last + 26 :]
    found = decoded(tmp_path / "sound", data[:last] + page[:22] + struct.pack("<I", ogg_sum(page)) + page[26:])
    assert N <= len(found) < N + 1_000 and np.abs(found).max() < 2


@pytest.mark.parametrize("name", ["sound.au", "SOUND.SND"])
def test_an_au_without_its_header_is_no_noise(tmp_path, name):
    """libsndfile takes it for raw u-law."""
    with pytest.raises(ItemError, match="no header, which a .* file begins with, so it is damaged"):
        decoded(tmp_path / name, written(tmp_path / "sound", "AU")[24:])


def test_a_seek_before_the_start_stays_where_it_is(tmp_path):
    """soundfile would print what a file raises to it, as a traceback."""
    (tmp_path / "sound").write_bytes(b"abc")
    with Corrected(tmp_path / "sound", {}) as file:
        assert (file.seek(2), file.seek(-9, 1), file.read()) == (2, 2, b"c")


def test_a_sampling_rate_that_none_has_is_told_before_resampling(tmp_path):
    """PyAV reads the sound of what is named as a film; from 500 MHz its resampler takes minutes."""
    data = written(tmp_path / "sound", "WAV")
    put(data, b"fmt ", 12, ("<I", 536_878_912), ("<I", 1_073_757_824))
    (tmp_path / "sound.mp4").write_bytes(data)
    with pytest.raises(ItemError, match="sampling rate of 536,878,912 Hz, so it is damaged"):
        read_audio(tmp_path / "sound.mp4", RATE)


def test_longer_sounds_than_memory_holds_are_refused_while_they_are_decoded(tmp_path, monkeypatch):
    """Also where only resampling makes them long."""
    monkeypatch.setattr("gapclose.data.audio_mixing.MOST_SAMPLES", N - 1)
    written(tmp_path / "sound", "WAV")
    with pytest.raises(ItemError, match="more than 15,999 samples, which are not held in memory; cut it"):
        read_audio(tmp_path / "sound", None)
    written(tmp_path / "sound", "WAV", SOUND[: N - 1])
    with pytest.raises(ItemError, match="more than 15,999 samples at 48,000 Hz"):
        read_audio(tmp_path / "sound", 48_000)


def test_without_pyav_a_compressed_sound_names_the_remedy(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    written(tmp_path / "sound", "FLAC")
    with pytest.raises(ItemError, match="this audio needs PyAV; `pip install av`"):
        read_audio(tmp_path / "sound", None)
    written(tmp_path / "sound", "WAV")
    assert len(read_audio(tmp_path / "sound", None)[0]) == N
