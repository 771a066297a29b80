"""Films: which frames are shown, how they sound, and what is said of those that cannot be used."""

import shutil
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import Framing, ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import MediaLoader, decode, faults, report_faults
from gapclose.models.input_checks import too_long

av = pytest.importorskip("av", reason="films need PyAV")

from gapclose.data.audio_streams import read_track  # noqa: E402
from gapclose.data.containers import SUFFIXES  # noqa: E402
from gapclose.data.digits.videos import write_film  # noqa: E402
from gapclose.data.video import Video, read_video  # noqa: E402
from gapclose.models.video_inputs import set_video_times, video_inputs  # noqa: E402

RATE = 16_000


def ramp(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """(count, height, width, 3): ever brighter."""
    return np.full((count, height, width, 3), 0, np.uint8) + np.linspace(0, 250, count).astype(np.uint8)[:, None, None, None]


def tone(seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def whole(path, count=20, seconds=2.0):
    write_film(path, ramp(count), None if seconds is None else tone(seconds))


def index_first(path):
    """The same film with its index in front, as films are for the web: a truncated one can still be opened."""
    other = path.with_name("moved.mp4")
    with av.open(str(path)) as source, av.open(str(other), "w", options={"movflags": "faststart"}) as target:
        copies = {s: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream]
                target.mux(packet)
    shutil.move(other, path)


def cut(path, share):
    whole(path, 60, 6.0)
    index_first(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone()[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def spoilt(path):
    """Bytes of the pictures overwritten, the index whole."""
    whole(path, 60, None)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    data[start + 720 : start + 1520] = bytes(800)
    path.write_bytes(bytes(data))


FAULTS = {
    "missing film": ("video", None, ["no such video file", "restore it or remove the item"]),
    "empty film": ("video", lambda p: p.write_bytes(b""), ["the video file is empty", "replace it"]),
    "no film": ("video", lambda p: p.write_bytes(b"0" * 99), ["the film cannot be decoded", "replace it"]),
    "text": ("video", lambda p: p.write_text("a film, they said"), ["the film cannot be decoded"]),
    "truncated, index lost": ("video", lambda p: (whole(p), p.write_bytes(p.read_bytes()[:2000])), ["the film cannot be decoded"]),
    "truncated, index in front": ("video", lambda p: cut(p, 0.6), ["the film is truncated", "copy it again"]),
    "corrupt pictures": ("video", spoilt, ["the film c", "replace it"]),
    "sound without pictures": ("video", sound_only, ["the film has no pictures", "give it as audio"]),
    "pictures without sound": ("audio", lambda p: whole(p, 10, None), ["the film has no sound track", "leave its audio part out"]),
    "silent track": ("audio", lambda p: write_film(p, ramp(10), np.zeros(RATE, np.float32)), ["silent throughout", "replace it"]),
    "truncated track": ("audio", lambda p: cut(p, 0.6), ["the film cannot be decoded", "replace it"]),
    "missing track": ("audio", None, ["no such audio file"]),
}


def about(root, kind: str, path: str) -> ItemSet:
    options = [Option(text="a", concept="x"), Option(text="b", concept="y")]
    content = [{"type": kind, "path": path}]
    common = {"clip": "c", "split": "fit", "modality": "v", "options": options, "messages": [{"role": "user", "content": content}]}
    return ItemSet(root=root, name="m", concepts=("x", "y"), alarm=(), items=tuple(Item(id=i, **common) for i in ("first", "second")))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_film_that_cannot_be_used_is_named_with_item_and_remedy(tmp_path, fault):
    """One message per file, naming the first item; loading the file says the same."""
    kind, make, says = FAULTS[fault]
    if make:
        make(tmp_path / "film.mp4")
    items, problems = about(tmp_path, kind, "film.mp4"), ErrorCollector("the set")
    report_faults(items, faults(items), problems)
    (message,) = problems.messages
    assert message.startswith(f"{tmp_path / 'film.mp4'}: item 'first': ") and all(part in message for part in says), message
    with pytest.raises(ValueError, match=says[0]):
        MediaLoader(tmp_path, RATE).load(kind, "film.mp4")


def test_a_film_that_is_not_there_is_told_once(tmp_path):
    """Its frames and its sound track are two parts of an item, and one file."""
    both = ({"type": "video", "path": "film.mp4"}, {"type": "audio", "path": "film.mp4"})
    items, problems = about(tmp_path, "video", "film.mp4"), ErrorCollector("the set")
    items = replace(items, items=tuple(replace(i, messages=[{"role": "user", "content": list(both)}]) for i in items))
    report_faults(items, faults(items), problems)
    assert len(problems) == 1


def test_damaged_films_never_escape_as_tracebacks(tmp_path):
    """Cut anywhere or with flipped bytes, a film and its sound either decode or are reported."""
    rng = np.random.default_rng(0)
    whole(tmp_path / "whole.mp4")
    data, found = np.frombuffer((tmp_path / "whole.mp4").read_bytes(), np.uint8), 0
    for trial in range(60):
        damaged = data[: rng.integers(1, len(data))].copy() if trial % 2 else data.copy()
        damaged[rng.integers(0, len(damaged), 20)] ^= 255
        (tmp_path / "film.mp4").write_bytes(damaged.tobytes())
        found += len([e for kind in ("video", "audio") for e in faults(about(tmp_path, kind, "film.mp4"))])
    assert found > 60


def test_frames_are_taken_evenly_whatever_the_key_frames(tmp_path):
    """First and last are among them; jumping between key frames gives what decoding from the beginning gives."""
    write_film(tmp_path / "long.mp4", ramp(600), None)  # longer than a group of pictures
    film = read_video(tmp_path / "long.mp4", Framing(frames=5))
    assert film.frames.shape == (5, 32, 48, 3) and film.frames.dtype == np.uint8
    assert np.allclose(film.frames.mean((1, 2, 3)), [0, 62.5, 125, 187.5, 250], atol=4)
    assert film.seconds == pytest.approx(59.9 / 4, rel=0.01)
    all_of_it = read_video(tmp_path / "long.mp4", Framing(frames=600))
    assert np.array_equal(film.frames[[0, 4]], all_of_it.frames[[0, 599]])


def numbered(path, count: int, codec: str, height: int = 32, width: int = 96) -> None:
    """Frames, ten a second, whose columns of eight pixels spell their number in bits."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 1_000_000
        for number in range(count):
            bits = np.repeat(number >> np.arange(width // 8) & 1, 8) * np.uint8(255)
            picture = np.broadcast_to(bits[None, :, None], (height, width, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def numbers(film: Video) -> list[int]:
    bits = film.frames.mean((1, 3)).reshape(len(film.frames), -1, 8).mean(2) > 128
    return (bits << np.arange(bits.shape[1])).sum(1).tolist()


CODECS = dict.fromkeys((".mp4", ".m4v", ".mov", ".mkv", ".avi", ".ts", ".flv", ".3gp"), "libx264")
CODECS |= {".mpg": "mpeg2video", ".mpeg": "mpeg2video", ".webm": "libvpx", ".wmv": "wmv2"}


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("count", [400, 60])
def test_the_frames_are_the_wanted_ones_in_every_container(tmp_path, suffix, count):
    """To the very frame, also where jumps land anywhere (.ts, .mpg), or frames carry wrong times (H.264 in .avi)."""
    path = tmp_path / f"film{suffix}"
    numbered(path, count, CODECS[suffix])
    film = read_video(path, Framing(frames=6))
    assert numbers(film) == np.linspace(0, count - 1, 6).round().astype(int).tolist()
    assert film.seconds == pytest.approx((count - 1) / 10 / 5, rel=0.01)


def test_every_suffix_of_films_was_tried():
    assert set(CODECS) == set(SUFFIXES) - {".m4a", ".aac"}


def test_a_jump_that_lands_too_late_is_noticed(tmp_path, monkeypatch):
    """In whatever container: then the film is decoded from its start."""
    monkeypatch.setattr("gapclose.data.video.UNINDEXED", ())
    numbered(tmp_path / "film.ts", 400, "libx264")
    assert numbers(read_video(tmp_path / "film.ts", Framing(frames=4))) == [0, 133, 266, 399]


def test_a_stream_that_was_cut_within_a_group_of_pictures_begins_with_its_first_key_frame(tmp_path):
    """As recordings from the air do; what comes before it shows nothing."""
    numbered(tmp_path / "film.ts", 400, "libx264")
    with av.open(str(tmp_path / "film.ts")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    keys = [round(10 * (p.pts - packets[0].pts) * p.time_base) for p in packets if p.is_keyframe]
    data = (tmp_path / "film.ts").read_bytes()
    (tmp_path / "film.ts").write_bytes(data[188 * (len(data) // 188 // 3) :])
    first, last = numbers(read_video(tmp_path / "film.ts", Framing(frames=2)))
    assert first == min(k for k in keys if k > 400 / 3) and last == 399


def later(path, seconds: float, suffix: str):
    """The same film with its sound so much later, as one that was cut by copying."""
    other = path.with_suffix(suffix)
    with av.open(str(path)) as source, av.open(str(other), "w") as target:
        copies = {s: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                shift = round(seconds / packet.time_base) if packet.stream.type == "audio" else 0
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copies[packet.stream]
                target.mux(packet)
    return other


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".ts"])
@pytest.mark.parametrize("seconds", [1.5, -0.5])
def test_the_sound_keeps_its_place_beside_the_pictures(tmp_path, suffix, seconds):
    """Silence before a track that starts later; what sounds before the first picture is left out."""
    whole(tmp_path / "film.mp4", 20, 2.0)
    plain, moved = read_track(tmp_path / "film.mp4", RATE), read_track(later(tmp_path / "film.mp4", seconds, suffix), RATE)
    shift = round(seconds * RATE)
    assert abs(len(moved) - len(plain) - shift) < 0.1 * RATE
    expected = np.pad(plain, (max(0, shift), 0))[max(0, -shift) :]
    length = min(len(expected), len(moved))
    assert np.allclose(moved[:length], expected[:length], atol=0.02)


@pytest.mark.parametrize("recorded", ["whole.webm", "live.webm"])
def test_a_sound_whose_header_has_no_length_is_as_long_as_it_is(tmp_path, recorded):
    """As browsers write what they record."""
    options = {"live": "1"} if recorded.startswith("live") else {}
    with av.open(str(tmp_path / recorded), "w", options=options) as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.repeat(tone(3.0), 3)[None], format="flt", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / recorded)) as container:
        assert (container.duration is None) == recorded.startswith("live")
    items = about(tmp_path, "audio", recorded)
    for hears, refused in ((2, True), (4, False)):
        processor = SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=RATE, n_samples=hears * RATE))
        assert bool(too_long(items, processor)) == refused


def test_a_film_of_few_frames_is_no_cut_one(tmp_path):
    """The last of ten frames, one a second, is shown from the ninth to the tenth second."""
    write_film(tmp_path / "slow.mp4", ramp(10), None, frames_a_second=1)
    film = read_video(tmp_path / "slow.mp4", Framing(frames=10))
    assert np.allclose(film.frames.mean((1, 2, 3)), np.linspace(0, 250, 10), atol=4) and film.seconds == pytest.approx(1)


@pytest.mark.parametrize(("start", "shown"), [(3.1, (31, 99)), (0.0, (0, 68))])
def test_what_an_edit_list_hides_is_not_shown(tmp_path, start, shown):
    """Cutting tools leave the frames in the file, and a note from when to when it plays."""
    path = tmp_path / "film.mp4"
    write_film(path, ramp(100), None)
    data = path.read_bytes()
    place = data.index(b"elst") + 12
    played, first = (int.from_bytes(data[n : n + 4], "big") for n in (place, place + 4))
    scale = data.index(b"mdhd") + 16
    ticks = int.from_bytes(data[scale : scale + 4], "big")
    note = (played - 3100).to_bytes(4, "big") + (first + round(start * ticks)).to_bytes(4, "big")
    path.write_bytes(data[:place] + note + data[place + 8 :])
    film = read_video(path, Framing(frames=2))
    assert np.allclose(film.frames.mean((1, 2, 3)), [n / 99 * 250 for n in shown], atol=4)


def test_frames_are_even_in_time_where_the_rate_varies(tmp_path):
    """Of forty frames in two seconds and five in the next eight, half are not taken from the first two seconds."""
    write_film(tmp_path / "film.mp4", ramp(45), None)
    times = [*range(0, 80, 2), *range(80, 400, 64)]  # fortieths of a second
    with av.open(str(tmp_path / "film.mp4")) as source, av.open(str(tmp_path / "uneven.mkv"), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux(video=0) if p.size]
        order = {pts: n for n, pts in enumerate(sorted(p.pts for p in packets))}
        for packet in packets:
            packet.pts, packet.dts, packet.time_base, packet.stream = times[order[packet.pts]], None, Fraction(1, 40), copy
            target.mux(packet)
    film = read_video(tmp_path / "uneven.mkv", Framing(frames=5))
    expected = [times.index(min(times, key=lambda t: abs(t - even))) for even in np.linspace(0, times[-1], 5)]
    assert np.allclose(film.frames.mean((1, 2, 3)), [n / 44 * 250 for n in expected], atol=4)
    assert film.seconds == pytest.approx(times[-1] / 40 / 4, rel=0.01)


def test_short_films_repeat_frames_and_large_ones_are_scaled_down(tmp_path):
    """Every film gives as many frames; no side is longer than asked for, and the shape of the picture stays."""
    write_film(tmp_path / "short.mp4", ramp(2, 64, 128), None)
    film = read_video(tmp_path / "short.mp4", Framing(frames=4, side=64))
    assert film.frames.shape == (4, 32, 64, 3)
    assert np.array_equal(film.frames[0], film.frames[1]) and np.array_equal(film.frames[2], film.frames[3])


def test_a_film_that_is_to_be_turned_is_turned(tmp_path):
    """Telephones store upright films lying down, with a note how to turn them: here by a quarter, clockwise."""
    pictures = ramp(4)
    pictures[:, :16] = 255  # bright above
    write_film(tmp_path / "film.mp4", pictures, None)
    data = (tmp_path / "film.mp4").read_bytes()
    place, one = data.index(b"tkhd") + 4 + 40, (1 << 16).to_bytes(4, "big")
    turned = bytes(4) + one + bytes(4) + (-(1 << 16)).to_bytes(4, "big", signed=True) + bytes(4) * 2
    assert data[place : place + 4] == one
    (tmp_path / "film.mp4").write_bytes(data[:place] + turned + data[place + 24 :])
    film = read_video(tmp_path / "film.mp4", Framing(frames=1))
    assert film.frames.shape == (1, 48, 32, 3)
    assert film.frames[0, :, 20:].mean() > 240 and film.frames[0, :, :12].mean() < 20  # what was above is on the right


def test_the_sound_track_is_mono_at_the_asked_rate(tmp_path):
    """A tone keeps its pitch and strength at another rate; an audio part may name a film."""
    whole(tmp_path / "film.mp4", 20, 2.0)
    sound = read_track(tmp_path / "film.mp4", 8000)
    assert sound.dtype == np.float32 and len(sound) / 8000 == pytest.approx(2.0, abs=0.15)
    spectrum = np.abs(np.fft.rfft(sound[4000:12000]))
    assert spectrum.argmax() == 440 and np.abs(sound[4000:12000]).max() == pytest.approx(0.3, abs=0.05)
    assert np.array_equal(decode("audio", tmp_path / "film.mp4", 8000, Framing()), sound)


def test_a_track_longer_than_the_model_hears_is_named(tmp_path):
    whole(tmp_path / "film.mp4", 20, 2.0)
    extractor = SimpleNamespace(sampling_rate=RATE, n_samples=RATE)
    (fault,) = too_long(about(tmp_path, "audio", "film.mp4"), SimpleNamespace(feature_extractor=extractor)).values()
    assert "lasts 2.0 s" in fault or "lasts 2.1 s" in fault
    assert not too_long(about(tmp_path, "video", "film.mp4"), SimpleNamespace(feature_extractor=extractor))


def test_blank_films_are_grey_and_silent_in_the_same_shape(tmp_path):
    """Pictures and sound are blanked apart from each other, and pace and length stay."""
    whole(tmp_path / "film.mp4")
    sight = {blank: MediaLoader(tmp_path, RATE, blank=blank) for blank in ((), ("video",), ("audio",), ("video", "audio"))}
    plain, blind, deaf, both = (m.load("video", "film.mp4") for m in sight.values())
    assert (blind.frames == 128).all() and blind.frames.shape == plain.frames.shape and blind.seconds == plain.seconds
    assert np.array_equal(deaf.frames, plain.frames) and np.array_equal(both.frames, blind.frames)
    plain, blind, deaf, both = (m.load("audio", "film.mp4") for m in sight.values())
    assert not deaf.any() and deaf.shape == plain.shape and np.array_equal(blind, plain) and not both.any()


def test_the_cache_is_bounded_by_bytes(tmp_path):
    """Decoded once while it fits; the oldest leaves when it does not."""
    for name in "abc":
        whole(tmp_path / f"{name}.mp4", 4, None)
    size = 8 * 32 * 48 * 3
    media = MediaLoader(tmp_path, RATE, most_bytes=2 * size)
    a = media.load("video", "a.mp4")
    media.load("video", "b.mp4")
    assert media.load("video", "a.mp4") is a
    b = media.load("video", "b.mp4")
    media.load("video", "c.mp4")
    assert media.load("video", "b.mp4") is b and media.load("video", "a.mp4") is not a


def test_other_framing_is_another_item_set(tmp_path):
    """What a model is shown is part of the fingerprint, where there are films."""
    whole(tmp_path / "film.mp4")
    film, sound = about(tmp_path, "video", "film.mp4"), about(tmp_path, "audio", "film.mp4")
    other = Framing(frames=4)
    assert film.fingerprint() != replace(film, framing=other).fingerprint()
    assert sound.fingerprint() == replace(sound, framing=other).fingerprint()


def test_a_processor_is_told_the_pace():
    """Seconds between frames reach the metadata, and stand in for a rate that is stated for all films alike."""
    films = [Video(frames=ramp(4), seconds=s) for s in (0.5, 2.0)]
    facts = video_inputs(films)["videos_kwargs"]["video_metadata"]
    assert [f.fps for f in facts] == [2.0, 0.5] and facts[1].timestamps == [0, 2, 4, 6]
    inputs = {"video_second_per_grid": [1.0, 1.0]}
    set_video_times(inputs, films, SimpleNamespace(video_processor=SimpleNamespace(temporal_patch_size=2)))
    assert inputs["video_second_per_grid"].tolist() == [1.0, 4.0]


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"film")
    (fault,) = faults(about(tmp_path, "video", "film.mp4")).values()
    assert "pip install av" in fault
