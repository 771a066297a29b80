"""Which stream of a film is shown and heard, and how its pictures lie: as players do it."""

import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from gapclose.core.errors import ItemError
from gapclose.data.audio import read_audio
from gapclose.data.item_set import Framing
from gapclose.data.media import decode

av = pytest.importorskip("av", reason="films need PyAV")

from gapclose.data.audio_streams import read_track  # noqa: E402
from gapclose.data.containers import chosen  # noqa: E402
from gapclose.data.digits.videos import write_film  # noqa: E402
from gapclose.data.video import read_video  # noqa: E402

RATE = 16_000


def pictures(height: int = 32, width: int = 48, level: int = 200, count: int = 4) -> np.ndarray:
    """(count, height, width, 3): black, but for the first quarter of rows and columns."""
    made = np.zeros((count, height, width, 3), np.uint8)
    made[:, : height // 4, : width // 4] = level
    return made


def tone(pitch: int, seconds: float = 1.0, strength: float = 0.3) -> np.ndarray:
    return (strength * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def mux(path: Path, films=(), sounds=(), default=(), cover: bool = False, shape: Fraction | None = None, **how) -> Path:
    """A file with several streams; ``default`` names the places of those that are marked so (mkv)."""
    with av.open(str(path), "w", **how) as target:
        streams = []
        for frames in films:
            stream = target.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            if shape:
                stream.codec_context.sample_aspect_ratio = shape
            streams.append((stream, [av.VideoFrame.from_ndarray(f, format="rgb24") for f in frames]))
        for sound in sounds:
            stream = target.add_stream("aac", rate=RATE, layout="stereo" if sound.ndim == 2 else "mono")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.atleast_2d(sound)), format="fltp", layout=stream.layout)
            frame.sample_rate = RATE
            streams.append((stream, [frame]))
        if cover:
            jpeg = io.BytesIO()
            Image.new("RGB", (640, 640), "red").save(jpeg, "JPEG")
            target.add_attachment("cover.jpg", "image/jpeg", jpeg.getvalue())
        for place, (stream, _) in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if place in default else 0
        packets = [p for stream, frames in streams for f in (*frames, None) for p in stream.encode(f)]
        for packet in packets:
            target.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_default_stream_is_shown_and_heard(tmp_path, suffix, default):
    """Wherever it stands; of pictures and of sound."""
    path = tmp_path / f"film{suffix}"
    mux(path, [pictures(), pictures(64, 96)], [tone(440), tone(880)], default=(default, 2 + default))
    with av.open(str(path)) as container:
        assert [bool(s.disposition & 1) for s in container.streams] == [default == 0, default == 1] * 2
    assert read_video(path, Framing(frames=2)).frames.shape[1:3] == [(32, 48), (64, 96)][default]
    sound = read_track(path, RATE)[:RATE]
    assert np.abs(np.fft.rfft(sound)).argmax() / len(sound) * RATE == pytest.approx([440, 880][default], abs=2)


def test_of_streams_that_are_all_default_the_better_one_is_shown(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 96, 128, 3), dtype=np.uint8)
    for films in ([pictures(count=20), noise], [noise, pictures(count=20)]):
        path = mux(tmp_path / "film.mp4", films, default=(0, 1))
        assert read_video(path, Framing(frames=2)).frames.shape[1:3] == (96, 128)


def test_a_cover_is_no_film(tmp_path):
    """Neither beside a film nor where it is all there is to see; the sound of a song with a cover is heard from its beginning."""
    path = mux(tmp_path / "film.mkv", [pictures()], [tone(440)], default=(0, 1), cover=True)
    assert read_video(path, Framing(frames=2)).frames.shape == (2, 32, 48, 3)
    song = mux(tmp_path / "song.mkv", [], [tone(440)], cover=True)
    with pytest.raises(ItemError, match="the film has no pictures but a cover; give it as audio"):
        read_video(song, Framing(frames=2))
    assert len(read_track(song, RATE)) / RATE == pytest.approx(1, abs=0.1)


def boxes(data: bytes) -> list[bytes]:
    """The boxes that an mp4 file, or the inside of one of its boxes, consists of."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def test_a_cover_that_is_listed_before_the_film_is_passed_over(tmp_path):
    """FFmpeg lists it where the file has it; here the user data of an mp4 file stand before its tracks."""
    path, jpeg = tmp_path / "film.mp4", io.BytesIO()
    Image.new("RGB", (640, 640), "red").save(jpeg, "JPEG")
    with av.open(str(path), "w") as target:
        film, cover = target.add_stream("libx264", rate=10), target.add_stream("mjpeg", rate=1)
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 640, 640, "yuvj420p", av.stream.Disposition.attached_pic
        frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in pictures()]
        packets = [p for f in (*frames, None) for p in film.encode(f)]
        picture = av.Packet(jpeg.getvalue())
        picture.stream, picture.pts, picture.dts = cover, 0, 0
        for packet in (picture, *packets):
            target.mux(packet)
    parts = boxes(path.read_bytes())
    (moov,) = (n for n, box in enumerate(parts) if box[4:8] == b"moov")
    inside = boxes(parts[moov][8:])
    inside.sort(key=lambda box: [b"mvhd", b"udta"].index(box[4:8]) if box[4:8] in (b"mvhd", b"udta") else 2)
    parts[moov] = parts[moov][:8] + b"".join(inside)
    path.write_bytes(b"".join(parts))
    with av.open(str(path)) as container:
        assert [s.width for s in container.streams.video] == [640, 48]
    assert read_video(path, Framing(frames=2)).frames.shape == (2, 32, 48, 3)


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_where_ffmpeg_prefers_the_cover_the_default_or_the_largest_film_is_chosen(marked):
    def stream(index, disposition, width):
        return SimpleNamespace(index=index, disposition=disposition, width=width, height=10)

    class Streams(list):
        video = property(lambda self: self)

        def best(self, kind, related=None):
            return self[0]

    films = [stream(0, 1024 | 1, 900), stream(1, int(marked == 1), 10), stream(2, int(marked == 2), 20)]
    assert chosen(SimpleNamespace(streams=Streams(films)), "video").index == (marked or 2)


def test_a_title_in_another_encoding_costs_no_film(tmp_path):
    path = mux(tmp_path / "film.avi", [pictures()])
    with av.open(str(path)) as source, av.open(str(tmp_path / "titled.mp4"), "w") as target:
        target.metadata["title"] = "Zwölf Boxkämpfer"
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    data = (tmp_path / "titled.mp4").read_bytes()
    (tmp_path / "titled.mp4").write_bytes(data.replace("ö".encode(), b"\xf6o").replace("ä".encode(), b"\xe4e"))
    assert read_video(tmp_path / "titled.mp4", Framing(frames=2)).frames.shape == (2, 32, 48, 3)


def displayed(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write the matrix (a, b, 0; c, d, 0; 0, 0, 1) into an mp4's track header, as cameras do."""
    data = path.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    assert data[place : place + 4] == one.to_bytes(4, "big")
    numbers = [a * one, b * one, 0, c * one, d * one]
    path.write_bytes(data[:place] + b"".join(n.to_bytes(4, "big", signed=True) for n in numbers) + data[place + 20 :])


@pytest.mark.parametrize(
    "matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)]
)
def test_a_film_is_turned_and_mirrored_as_its_matrix_says(tmp_path, matrix):
    """All eight ways: the bright corner, at (-1, -1) from the centre, goes where ISO/IEC 14496-12 sends it."""
    write_film(tmp_path / "film.mp4", pictures(), None)
    displayed(tmp_path / "film.mp4", *matrix)
    a, b, c, d = matrix
    frame = read_video(tmp_path / "film.mp4", Framing(frames=1)).frames[0].mean(2)
    assert frame.shape == ((48, 32) if a == 0 else (32, 48))
    right, below = -a - c > 0, -b - d > 0
    corner = frame[:: -1 if below else 1, :: -1 if right else 1]
    height, width = frame.shape
    assert (
        corner[: height // 4 - 2, : width // 4 - 2].min() > 150 and corner[height // 2 :].max() < 50 and corner[:, width // 2 :].max() < 50
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize(("shape", "shown"), [(Fraction(2), (32, 96)), (Fraction(1, 2), (64, 48)), (Fraction(4, 3), (32, 64))])
def test_pixels_that_are_not_square_are_shown_as_meant(tmp_path, suffix, shape, shown):
    """Never smaller than they are stored, and within the longest side."""
    path = mux(tmp_path / f"film{suffix}", [pictures()], shape=shape)
    assert read_video(path, Framing(frames=2)).frames.shape[1:3] == shown
    assert max(read_video(path, Framing(frames=2, side=40)).frames.shape[1:3]) == 40


def test_pixels_that_are_not_square_are_turned_with_the_picture(tmp_path):
    path = mux(tmp_path / "film.mp4", [pictures()], shape=Fraction(2))
    displayed(path, 0, 1, -1, 0)
    assert read_video(path, Framing(frames=1)).frames.shape[1:3] == (96, 32)


def test_a_film_whose_sound_goes_on_longer_is_no_cut_one(tmp_path):
    """In mkv only the whole file states a length."""
    path = mux(tmp_path / "film.mkv", [pictures(count=10)], [tone(440, 4.0)], default=(0, 1))
    assert read_video(path, Framing(frames=2)).seconds == pytest.approx(0.9, abs=0.1)


def test_a_track_whose_channels_cancel_is_told(tmp_path):
    """As in a sound file."""
    path = mux(tmp_path / "film.mp4", [pictures()], [np.stack([tone(440), -tone(440)])])
    with pytest.raises(ItemError, match="2 channels of the audio cancel"):
        decode("audio", path, RATE, Framing())
    path = mux(tmp_path / "film.mp4", [pictures()], [np.stack([tone(440), tone(880)])])
    assert len(decode("audio", path, RATE, Framing())) > 0


LOUD = np.stack([tone(440, strength=0.4), tone(440, strength=0.4)], 1)
SURROUND = np.stack([tone(pitch, strength=0.5) for pitch in (220, 330, 440, 60, 550, 660)], 1)
ONE_OF_SIX = SURROUND * np.array([0, 0, 0, 1, 0, 0], np.float32)
"""the channel for low frequencies, which FFmpeg's own mix leaves out"""


def filmed(path: Path, samples: np.ndarray) -> Path:
    """A film whose sound track holds the samples (n, C) as they are."""
    layout = {2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w") as target:
        film, track = target.add_stream("libx264", rate=10), target.add_stream("pcm_s16le", rate=RATE, layout=layout)
        film.height, film.width, film.pix_fmt = 32, 48, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in pictures(count=10)]
        packed = np.round(samples * 32767).astype(np.int16).reshape(1, -1)
        sound = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        sound.sample_rate = RATE
        for stream, parts in ((film, frames), (track, [sound])):
            for part in (*parts, None):
                for packet in stream.encode(part):
                    target.mux(packet)
    return path


@pytest.mark.parametrize("asked", [RATE, 11_025])
@pytest.mark.parametrize("samples", [LOUD, SURROUND, ONE_OF_SIX], ids=["stereo", "5.1", "one channel of 5.1"])
def test_a_sound_has_one_level_in_every_container(tmp_path, samples, asked):
    """The mean of its channels, sample by sample: as a wav, as a flac, and as the sound track of a film."""
    found = {}
    for name in ("sound.wav", "sound.flac"):
        soundfile.write(tmp_path / name, samples, RATE, subtype="PCM_16")
        found[name], _ = read_audio(tmp_path / name, asked)
    for name in ("film.mkv", "film.mov"):
        found[name], _ = read_audio(filmed(tmp_path / name, samples), asked)
    inner = slice(asked // 10, -asked // 10)
    expected = samples.mean(1).std()
    for name, sound in found.items():
        assert sound.dtype == np.float32 and len(sound) == asked, name
        assert sound[inner].std() == pytest.approx(expected, rel=0.01), name
        assert np.abs(sound - found["sound.wav"])[inner].max() < 1e-3, name


def test_a_track_that_changes_its_rate_on_the_way_keeps_its_pace(tmp_path):
    """As a broadcast does: every part is as long, and sounds as high, as it is."""
    data = b""
    for rate in (16_000, 32_000, 8_000):
        with av.open(str(tmp_path / "part"), "w", format="adts") as target:
            stream = target.add_stream("aac", rate=rate, layout="mono")
            seconds = np.arange(2 * rate, dtype=np.float32) / rate
            frame = av.AudioFrame.from_ndarray(0.3 * np.sin(2 * np.pi * 440 * seconds)[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for packet in (*stream.encode(frame), *stream.encode(None)):
                target.mux(packet)
        data += (tmp_path / "part").read_bytes()
    (tmp_path / "sound.aac").write_bytes(data)
    sound = read_track(tmp_path / "sound.aac", RATE)
    assert len(sound) / RATE == pytest.approx(6, abs=0.4)
    for begin in (0.5, 2.7, 4.9):
        part = sound[int(begin * RATE) : int((begin + 1) * RATE)]
        assert np.abs(np.fft.rfft(part)).argmax() == 440


def test_pictures_too_large_to_be_held_are_refused(tmp_path, monkeypatch):
    path = mux(tmp_path / "film.mp4", [pictures()])
    monkeypatch.setattr("gapclose.data.video.MOST_PIXELS", 32 * 48 - 1)
    with pytest.raises(ItemError, match="pictures of 48 x 32 pixels, more than 1,535; scale it down"):
        read_video(path, Framing(frames=1))
