"""Small whole media files of every format that the project reads: what the fuzzer mutates.

Every file is made by Pillow, libsndfile or PyAV, or, of formats that none of them writes, by hand. The same versions of them make the
same bytes. A sound lasts a fifth of a second, a film has four frames of 32 x 32.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from tests.fuzz.chunks import ogg_pages, with_checksum

RATE = 8_000
SIZE = (20, 12)
"""width and height of an image"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """One whole file."""

    kind: str
    """what the table of results calls it: wav, png, mp4, ..."""
    role: str
    """type of the content part that names it: image, audio or video"""
    suffix: str
    content: bytes


def all_media() -> list[Seed]:
    """Every seed; several of a kind where a format has several layouts."""
    return [*_sounds(), *_images(), *_films()]


# Sounds

SOUNDS = [  # kind, suffix, libsndfile's format, subtype, channels
    ("wav", ".wav", "WAV", "PCM_16", 1),
    ("wav", ".wav", "WAV", "PCM_24", 2),
    ("wav", ".wav", "WAV", "FLOAT", 1),
    ("wav", ".wav", "WAV", "DOUBLE", 1),
    ("wav", ".wav", "WAV", "PCM_U8", 1),
    ("wav", ".wav", "WAV", "ULAW", 1),
    ("wav", ".wav", "WAV", "IMA_ADPCM", 1),
    ("wav", ".wav", "WAV", "MS_ADPCM", 1),
    ("wav", ".wav", "WAV", "GSM610", 1),
    ("wav", ".wav", "WAVEX", "PCM_16", 2),
    ("flac", ".flac", "FLAC", "PCM_16", 1),
    ("flac", ".flac", "FLAC", "PCM_24", 2),
    ("mp3", ".mp3", "MP3", "MPEG_LAYER_III", 1),
    ("mp3", ".mp3", "MP3", "MPEG_LAYER_III", 2),
    ("ogg vorbis", ".ogg", "OGG", "VORBIS", 1),
    ("ogg vorbis", ".oga", "OGG", "VORBIS", 2),
    ("ogg opus", ".opus", "OGG", "OPUS", 1),
    ("aiff", ".aiff", "AIFF", "PCM_16", 1),
    ("aiff", ".aif", "AIFF", "FLOAT", 2),
    ("aiff", ".aifc", "AIFF", "IMA_ADPCM", 1),
    ("au", ".au", "AU", "PCM_16", 1),
    ("au", ".au", "AU", "ULAW", 2),
    ("au", ".snd", "AU", "G721_32", 1),
    ("w64", ".w64", "W64", "PCM_16", 1),
    ("w64", ".w64", "W64", "IMA_ADPCM", 1),
    ("rf64", ".rf64", "RF64", "PCM_16", 1),
    ("caf", ".caf", "CAF", "PCM_16", 1),
    ("caf", ".caf", "CAF", "ALAC_16", 1),
    ("other sounds", ".voc", "VOC", "PCM_16", 1),
    ("other sounds", ".svx", "SVX", "PCM_16", 1),
    ("other sounds", ".sph", "NIST", "PCM_16", 1),
    ("other sounds", ".sf", "IRCAM", "PCM_16", 1),
    ("other sounds", ".paf", "PAF", "PCM_16", 1),
    ("other sounds", ".pvf", "PVF", "PCM_16", 1),
    ("other sounds", ".avr", "AVR", "PCM_16", 1),
    ("other sounds", ".htk", "HTK", "PCM_16", 1),
    ("other sounds", ".mat", "MAT4", "PCM_16", 1),
    ("other sounds", ".mat", "MAT5", "PCM_16", 1),
    ("other sounds", ".sds", "SDS", "PCM_16", 1),
    ("other sounds", ".wve", "WVE", "ALAW", 1),
    ("other sounds", ".xi", "XI", "DPCM_16", 1),
]


def _tone(channels: int, rate: int = RATE, seconds: float = 0.2) -> np.ndarray:
    """(samples, channels) float32"""
    moments = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, (len(moments), channels))
    return (0.3 * np.sin(2 * np.pi * 440 * moments)[:, None] + noise).astype(np.float32)


def _sounds() -> list[Seed]:
    seeds = []
    for kind, suffix, form, subtype, channels in SOUNDS:
        buffer = io.BytesIO()
        rate = RATE if subtype != "MPEG_LAYER_III" else 16_000
        soundfile.write(buffer, _tone(channels, rate), rate, format=form, subtype=subtype)
        seeds.append(Seed(kind=kind, role="audio", suffix=suffix, content=_timeless(buffer.getvalue())))
    return seeds


def _timeless(content: bytes) -> bytes:
    """A file without the time at which it was written, which would make every run's seeds others."""
    if content[:4] == b"OggS":  # libsndfile draws the number of the stream by the clock
        return b"".join(with_checksum(page[:14] + bytes(4) + page[18:]) for page in ogg_pages(content))
    if content[:10] == b"MATLAB 5.0":
        return content[:50] + b"2026-01-01 00:00:00" + content[69:]
    if (peak := content.find(b"PEAK")) > 0:
        return content[: peak + 12] + bytes(4) + content[peak + 16 :]
    for box in (b"mvhd", b"tkhd", b"mdhd") if content[4:8] == b"ftyp" else ():
        if (place := content.find(box)) > 0:
            width = 16 if content[place + 4] else 8
            content = content[: place + 8] + bytes(width) + content[place + 8 + width :]
    return content


# Images


def _picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    colours = np.stack([columns * 255 // width, rows * 255 // height, (rows * columns) % 256, 255 - columns * 6], axis=-1).astype(np.uint8)
    return Image.fromarray(colours, "RGBA").convert(mode)


IMAGES: list[tuple[str, str, str, str, dict[str, Any]]] = [  # kind, suffix, Pillow's format, mode, how it is saved
    ("png", ".png", "PNG", "RGB", {}),
    ("png", ".png", "PNG", "RGBA", {}),
    ("png", ".png", "PNG", "P", {"transparency": 3}),
    ("png", ".png", "PNG", "1", {}),
    ("png", ".png", "PNG", "LA", {"dpi": (72, 72)}),
    ("png", ".png", "PNG", "I;16", {}),
    ("jpeg", ".jpg", "JPEG", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    ("jpeg", ".jpeg", "JPEG", "L", {"progressive": True}),
    ("jpeg", ".jpg", "JPEG", "CMYK", {"subsampling": 0}),
    ("jpeg", ".jpg", "MPO", "RGB", {"save_all": True, "append_images": 1}),
    ("gif", ".gif", "GIF", "P", {}),
    ("gif", ".gif", "GIF", "RGBA", {}),
    ("gif", ".gif", "GIF", "P", {"save_all": True, "append_images": 1}),
    ("webp", ".webp", "WEBP", "RGB", {"quality": 60}),
    ("webp", ".webp", "WEBP", "RGBA", {"lossless": True}),
    ("webp", ".webp", "WEBP", "RGB", {"save_all": True, "append_images": 1}),
    ("bmp", ".bmp", "BMP", "RGB", {}),
    ("bmp", ".bmp", "BMP", "P", {}),
    ("bmp", ".dib", "DIB", "1", {}),
    ("tiff", ".tif", "TIFF", "RGB", {}),
    ("tiff", ".tiff", "TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("tiff", ".tif", "TIFF", "L", {"compression": "tiff_adobe_deflate"}),
    ("tiff", ".tif", "TIFF", "RGB", {"compression": "jpeg"}),
    ("tiff", ".tif", "TIFF", "1", {"compression": "group4"}),
    ("tiff", ".tif", "TIFF", "RGBA", {"compression": "packbits"}),
    ("tiff", ".tif", "TIFF", "RGB", {"save_all": True, "append_images": 1}),
    ("avif", ".avif", "AVIF", "RGB", {"speed": 10, "max_threads": 1}),
    ("avif", ".avif", "AVIF", "RGBA", {"speed": 10, "max_threads": 1}),
    ("avif", ".avif", "AVIF", "RGB", {"speed": 10, "max_threads": 1, "save_all": True, "append_images": 1}),
    ("jpeg2000", ".jp2", "JPEG2000", "RGB", {}),
    ("jpeg2000", ".j2k", "JPEG2000", "L", {"no_jp2": True}),
    ("jpeg2000", ".jpx", "JPEG2000", "RGBA", {"irreversible": True, "num_resolutions": 2}),
    ("ppm", ".ppm", "PPM", "RGB", {}),
    ("ppm", ".pgm", "PPM", "L", {}),
    ("ppm", ".pbm", "PPM", "1", {}),
    ("tga", ".tga", "TGA", "RGB", {"compression": "tga_rle"}),
    ("tga", ".tga", "TGA", "RGBA", {}),
    ("tga", ".tga", "TGA", "P", {}),
    ("dds", ".dds", "DDS", "RGBA", {}),
    ("dds", ".dds", "DDS", "RGB", {}),
    ("dds", ".dds", "DDS", "RGBA", {"pixel_format": "DXT5"}),
    ("ico", ".ico", "ICO", "RGBA", {"sizes": [(16, 16), (32, 32)]}),
    ("ico", ".ico", "ICO", "RGBA", {"sizes": [(16, 16)], "bitmap_format": "bmp"}),
    ("other images", ".pcx", "PCX", "RGB", {}),
    ("other images", ".pcx", "PCX", "1", {}),
    ("other images", ".sgi", "SGI", "RGB", {}),
    ("other images", ".im", "IM", "RGB", {}),
    ("other images", ".msp", "MSP", "1", {}),
    ("other images", ".xbm", "XBM", "1", {}),
    ("other images", ".blp", "BLP", "P", {}),
    ("other images", ".qoi", "QOI", "RGBA", {}),
    ("other images", ".spi", "SPIDER", "F", {}),
    ("other images", ".eps", "EPS", "RGB", {}),
]


def _images() -> list[Seed]:
    seeds = []
    for kind, suffix, form, mode, how in IMAGES:
        buffer, options = io.BytesIO(), dict(how)
        if options.pop("append_images", 0):
            options["append_images"] = [_picture(mode).rotate(180)]
        size = (16, 16) if form == "ICO" else SIZE
        _picture(mode, size).save(buffer, form, **options)
        seeds.append(Seed(kind=kind, role="image", suffix=suffix, content=_timeless(buffer.getvalue())))
    return seeds + [Seed(kind="other images", role="image", suffix=suffix, content=make()) for suffix, make in BY_HAND.items()]


def _icns() -> bytes:
    picture = io.BytesIO()
    _picture("RGBA", (16, 16)).save(picture, "PNG")
    return b"icns" + struct.pack(">I4sI", 16 + len(picture.getvalue()), b"icp4", 8 + len(picture.getvalue())) + picture.getvalue()


def _interlaced_gif() -> bytes:
    buffer = io.BytesIO()
    _picture("P").save(buffer, "GIF", interlace=1)
    return buffer.getvalue()


def _psd() -> bytes:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIZE[1], SIZE[0], 8, 3)
    return head + struct.pack(">III", 0, 0, 0) + bytes(2) + np.asarray(_picture()).transpose(2, 0, 1).tobytes()


def _sun() -> bytes:
    return struct.pack(">8I", 0x59A66A95, *SIZE, 24, 3 * SIZE[0] * SIZE[1], 1, 0, 0) + np.asarray(_picture())[:, :, ::-1].tobytes()


def _fits() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
    cards += [f"NAXIS{n + 1}  = {side:20d}" for n, side in enumerate(SIZE)] + ["END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + np.asarray(_picture("L")).tobytes().ljust(2880, b"\0")


def _fli() -> bytes:
    """One picture of FLC: a palette, then lines as they are."""
    palette = struct.pack("<IHHBB", 6 + 4 + 768, 4, 1, 0, 0) + bytes(range(256)) * 3
    pixels = np.asarray(_picture("L")).tobytes()
    copied = struct.pack("<IH", 6 + len(pixels), 16) + pixels
    frame = struct.pack("<IHH8x", 16 + len(palette) + len(copied), 0xF1FA, 2) + palette + copied
    head = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF12, 1, *SIZE, 8, 3, 70)
    return head.ljust(80, b"\0") + struct.pack("<II", 128, 128 + len(frame)) + bytes(40) + frame


def _xpm() -> bytes:
    lines = [f'"{SIZE[0]} {SIZE[1]} 2 1",', '"a c #ff0000",', '"b c #0000ff",', *[f'"{"ab" * (SIZE[0] // 2)}",'] * SIZE[1]]
    return ("/* XPM */\nstatic char *x[] = {\n" + "\n".join(lines) + "\n};\n").encode()


def _gbr() -> bytes:
    return struct.pack(">7I", 33, 2, *SIZE, 4, 0x47494D50, 10) + b"name\0" + np.asarray(_picture("RGBA")).tobytes()


def _cur() -> bytes:
    icon = io.BytesIO()
    _picture("RGBA", (16, 16)).save(icon, "ICO", sizes=[(16, 16)], bitmap_format="bmp")
    return b"\0\0\2\0" + icon.getvalue()[4:]


def _plain_ppm() -> bytes:
    numbers = " ".join(map(str, np.asarray(_picture()).ravel().tolist()))
    return f"P3\n# as text\n{SIZE[0]} {SIZE[1]}\n255\n{numbers}\n".encode()


def _pfm() -> bytes:
    return f"Pf\n{SIZE[0]} {SIZE[1]}\n-1.0\n".encode() + np.asarray(_picture("F")).tobytes()


BY_HAND: dict[str, Callable[[], bytes]] = {
    ".icns": _icns,
    ".psd": _psd,
    ".ras": _sun,
    ".fits": _fits,
    ".flc": _fli,
    ".xpm": _xpm,
    ".gbr": _gbr,
    ".cur": _cur,
    ".gif": _interlaced_gif,
    ".ppm": _plain_ppm,
    ".pfm": _pfm,
}

# Films

FILMS = [  # kind, suffix, container, codec of the pictures, their format, codec of the sound, rate
    ("mp4", ".mp4", "mp4", "libx264", "yuv420p", "aac", 16_000),
    ("mp4", ".mp4", "mp4", "mpeg4", "yuv420p", None, 0),
    ("mp4", ".mov", "mov", "mjpeg", "yuvj420p", "pcm_s16le", 16_000),
    ("mp4", ".m4a", "ipod", None, "", "alac", 16_000),
    ("mp4", ".3gp", "3gp", "libx264", "yuv420p", None, 0),
    ("mkv", ".mkv", "matroska", "ffv1", "yuv420p", "flac", 16_000),
    ("mkv", ".mkv", "matroska", "libx264", "yuv420p", "libopus", 16_000),
    ("avi", ".avi", "avi", "mjpeg", "yuvj420p", "pcm_s16le", 16_000),
    ("avi", ".avi", "avi", "mpeg4", "yuv420p", "libmp3lame", 16_000),
    ("webm", ".webm", "webm", "libvpx-vp9", "yuv420p", "libopus", 16_000),
    ("webm", ".webm", "webm", "libvpx", "yuv420p", None, 0),
    ("ts", ".ts", "mpegts", "mpeg2video", "yuv420p", "mp2", 16_000),
    ("ts", ".ts", "mpegts", "libx264", "yuv420p", "aac", 16_000),
    ("other films", ".mpg", "mpeg", "mpeg1video", "yuv420p", "mp2", 44_100),
    ("other films", ".flv", "flv", "flv", "yuv420p", "libmp3lame", 22_050),
    ("other films", ".wmv", "asf", "wmv2", "yuv420p", "wmav2", 44_100),
    ("other films", ".aac", "adts", None, "", "aac", 16_000),
]
FRAMES = 4


def _films() -> list[Seed]:
    seeds = []
    for kind, suffix, form, pictures, pixels, sound, rate in FILMS:
        content = _film(form, pictures, pixels, sound, rate)
        roles = (["video"] if pictures else []) + (["audio"] if sound else [])
        seeds += [Seed(kind=kind, role=role, suffix=suffix, content=content) for role in roles]
    return seeds


def _film(form: str, pictures: str | None, pixels: str, sound: str | None, rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form, options={"fflags": "+bitexact"}) as container:
        shown = heard = None
        if pictures:
            shown = container.add_stream(pictures, rate=25, options={"flags": "+bitexact", "threads": "1", "cpu-used": "8"})
            shown.width = shown.height = 32
            shown.pix_fmt = pixels
        if sound:
            options = {"flags": "+bitexact", "strict": "experimental"}
            heard = container.add_stream(sound, rate=rate, layout="mono", bit_rate=48_000, options=options)
        if shown:
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(np.asarray(_picture("RGB", (32, 32)).rotate(90 * number)), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(shown.encode(frame.reformat(format=pixels)))
            container.mux(shown.encode())
        if heard:
            frame = av.AudioFrame.from_ndarray(_tone(1, rate).T, format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return buffer.getvalue()
