"""Media: every kind of broken file is named before a model loads; whole ones decode once."""

import io
import re
import struct
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from gapclose.core.errors import ErrorCollector
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import MediaLoader, faults, report_faults
from gapclose.models.input_checks import too_long

RATE = 16_000


def wav(path, samples, **how):
    soundfile.write(path, np.asarray(samples, dtype="float32"), RATE, **how)


def cut(path, share):
    """Keep only the first ``share`` of a file's bytes."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def truncated_wav(path):
    wav(path, np.zeros(800))
    cut(path, 0.5)


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * RATE))


def half(path, **how):
    wav(path, noise(2), **how)
    cut(path, 0.5)


def broken_image(path):
    Image.new("RGB", (32, 32)).save(path)
    cut(path, 0.7)


def deep_colour_png(path):
    """Two pixels of 16 bits a channel, which Pillow can open and not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, pixels = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0), struct.pack(">B6H", 0, 200, 200, 200, 1200, 1200, 1200)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def deep_colour_tiff(path):
    """The same in a TIFF: nine numbers of a directory, then three of bits, then the pixels."""
    tags = [
        (256, 3, 1, 2),
        (257, 3, 1, 1),
        (258, 3, 3, 122),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 128),
        (277, 3, 1, 3),
        (278, 3, 1, 1),
    ]
    entries = [struct.pack("<HHII", *tag) for tag in (*tags, (279, 4, 1, 12))]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<3H", 16, 16, 16) + struct.pack("<6H", *[200] * 3, *[1200] * 3)
    )


def several(path, form):
    pictures = [Image.new("RGB", (8, 8), (n, 9, 9)) for n in (0, 200)]
    pictures[0].save(path, form, save_all=True, append_images=pictures[1:])


FAULTS = {
    "missing.png": (None, ["no such image file", "restore it or remove the item"]),
    "missing.wav": (None, ["no such audio file"]),
    "empty.wav": (lambda p: p.write_bytes(b""), ["the audio file is empty", "replace it"]),
    "empty.png": (lambda p: p.write_bytes(b""), ["the image file is empty"]),
    "cut.wav": (truncated_wav, ["truncated", "promises 822 bytes more", "copy it again"]),
    "nan.wav": (lambda p: wav(p, [0, np.nan, np.inf, 0], subtype="FLOAT"), ["2 samples that are not finite", "without NaN"]),
    "silent.wav": (lambda p: wav(p, []), ["the audio has no samples"]),
    "text.wav": (lambda p: p.write_text("no sound at all, but long enough"), ["the audio cannot be decoded"]),
    "cut.png": (broken_image, ["the image cannot be decoded", "replace it"]),
    "text.png": (lambda p: p.write_text("no image"), ["the image cannot be decoded"]),
    "deep.png": (
        lambda p: Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(p),
        ["more than 8 bits a channel", "write it as 8 bits"],
    ),
    "deep-colour.png": (deep_colour_png, ["more than 8 bits a channel (16, in PNG)", "write it as 8 bits"]),
    "deep-colour.tif.png": (deep_colour_tiff, ["more than 8 bits a channel (16, in TIFF)", "write it as 8 bits"]),
    "pages.tif.png": (lambda p: several(p, "TIFF"), ["the file holds 2 pictures", "only the first would be shown"]),
    "moving.gif.png": (lambda p: several(p, "GIF"), ["the file holds 2 pictures", "make a film"]),
    "moving.webp.png": (lambda p: several(p, "WEBP"), ["the file holds 2 pictures"]),
    "moving.png": (lambda p: several(p, "PNG"), ["the file holds 2 pictures"]),
    "cut.mp3": (lambda p: half(p, format="MP3"), ["the audio is truncated", "s of 2.0 s are there", "copy it again"]),
    "cut.ogg": (lambda p: half(p, format="OGG"), ["the audio is truncated", "it ends within a page", "copy it again"]),
    "cut.aiff": (lambda p: half(p, format="AIFF"), ["the audio is truncated", "bytes more than the file holds"]),
    "cut.w64": (lambda p: half(p, format="W64"), ["the audio is truncated", "bytes more than the file holds"]),
    "cut.au": (lambda p: half(p, format="AU"), ["the audio is truncated", "bytes more than the file holds"]),
    "cut.rf64": (lambda p: half(p, format="RF64"), ["the audio is truncated", "bytes more than the file holds"]),
    "cut.flac": (lambda p: half(p, format="FLAC"), ["the audio cannot be decoded"]),
    "mute.wav": (lambda p: wav(p, np.zeros(800)), ["the audio is silent throughout", "faint noise"]),
}


def check_media(items: ItemSet, problems: ErrorCollector) -> None:
    report_faults(items, faults(items), problems)


def check_lengths(items: ItemSet, processor: SimpleNamespace, problems: ErrorCollector) -> None:
    report_faults(items, too_long(items, processor), problems)


def kind_of(name: str) -> str:
    return {"png": "image", "mp4": "video"}.get(name.split(".")[-1], "audio")


def item(ident: str, *names: str) -> Item:
    content = [{"type": kind_of(n), "path": n} for n in names]
    options = [Option(text="a", concept="x"), Option(text="b", concept="y")]
    return Item(id=ident, clip=ident, split="fit", modality="v", messages=[{"role": "user", "content": content}], options=options)


def as_set(root, *items: Item) -> ItemSet:
    return ItemSet(root=root, name="m", concepts=("x", "y"), alarm=(), items=items)


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_file_is_named_with_its_item_and_remedy(tmp_path, name):
    """One message per file however many items use it, naming the first; loading the file says the same."""
    make, says = FAULTS[name]
    if make:
        make(tmp_path / name)
    problems = ErrorCollector("the set")
    check_media(as_set(tmp_path, item("first", name), item("second", name)), problems)
    assert len(problems) == 1
    for part in (str(tmp_path / name), "item 'first'", *says):
        assert part in problems.messages[0], problems.messages
    with pytest.raises(ValueError, match=re.escape(says[0])):
        MediaLoader(tmp_path, RATE).load(kind_of(name), name)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow comments on damaged TIFF tags
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_images_never_escape_as_tracebacks(tmp_path, form):
    """Cut anywhere or with flipped bytes, an image either decodes or is reported."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, form)
    whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    names = []
    for trial in range(60):
        damaged = whole[: rng.integers(1, len(whole))].copy() if trial % 2 else whole.copy()
        damaged[rng.integers(0, len(damaged), 4)] ^= 255
        names.append(f"{trial}.png")
        (tmp_path / names[-1]).write_bytes(damaged.tobytes())
    problems = ErrorCollector("the set")
    check_media(as_set(tmp_path, *(item(n, n) for n in names)), problems)
    assert problems.messages and all("cannot be decoded" in m for m in problems.messages)


def test_whole_files_pass_and_decode(tmp_path):
    """Stereo is mixed, sound is resampled, grey images become RGB."""
    Image.new("L", (6, 4), 200).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.full((8000, 2), [0.5, 0.1]), 8000, subtype="FLOAT")
    items = as_set(tmp_path, item("a", "a.png", "a.wav"))
    problems = ErrorCollector("the set")
    check_media(items, problems)
    assert not problems.messages
    media = MediaLoader(tmp_path, RATE)
    image, sound = media.load("image", "a.png"), media.load("audio", "a.wav")
    assert image.mode == "RGB" and image.size == (6, 4) and image.getpixel((0, 0)) == (200, 200, 200)
    assert sound.shape == (16000,) and sound.dtype == np.float32
    assert np.allclose(sound[4000:-4000], 0.3, atol=1e-3)
    assert media.load("audio", "a.wav") is sound


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "AU", "RF64", "CAF"])
def test_whole_sounds_of_every_format_pass(tmp_path, form):
    name = f"whole.{form.lower()}"
    wav(tmp_path / name, noise(2), format=form)
    assert not faults(as_set(tmp_path, item("a", name)))
    assert len(MediaLoader(tmp_path, RATE).load("audio", name)) == pytest.approx(2 * RATE, rel=0.05)


def test_images_are_upright_and_clear_ones_lie_on_white(tmp_path):
    """A telephone's note how to turn a picture is followed; what shines through is white, not whatever colour was stored there."""
    plain = Image.new("RGB", (6, 4), (0, 0, 255))
    note = Image.Exif()
    note[0x0112] = 6  # to be turned by a quarter
    plain.save(tmp_path / "turned.png", exif=note)
    half_clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    half_clear.paste((0, 0, 0, 255), (0, 0, 3, 4))
    half_clear.save(tmp_path / "clear.png")
    palette = plain.convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    media = MediaLoader(tmp_path, RATE)
    assert media.load("image", "turned.png").size == (4, 6)
    clear = media.load("image", "clear.png")
    assert clear.mode == "RGB" and (clear.getpixel((0, 0)), clear.getpixel((5, 0))) == ((0, 0, 0), (255, 255, 255))
    assert media.load("image", "palette.png").getpixel((0, 0)) == (255, 255, 255)


def test_blank_media_keep_size_and_length(tmp_path):
    """The control shows grey and plays silence of the same size."""
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "a.png")
    wav(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 100))
    blank = MediaLoader(tmp_path, RATE, blank=("image", "audio"))
    assert set(blank.load("image", "a.png").get_flattened_data()) == {(128, 128, 128)} and blank.load("image", "a.png").size == (6, 4)
    assert not blank.load("audio", "a.wav").any() and blank.load("audio", "a.wav").shape == (100,)
    deaf = MediaLoader(tmp_path, RATE, blank=("audio",))
    assert deaf.load("image", "a.png").getpixel((0, 0)) == (9, 9, 9) and not deaf.load("audio", "a.wav").any()
    assert MediaLoader(tmp_path, RATE, blank=("image",)).load("audio", "a.wav").any()


def test_the_cache_forgets_the_oldest(tmp_path):
    """At most ``limit`` files are kept, the least recently used leaving first."""
    for name in "abc":
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    media = MediaLoader(tmp_path, RATE, limit=2)
    a, b = media.load("image", "a.png"), media.load("image", "b.png")
    assert media.load("image", "a.png") is a
    media.load("image", "c.png")
    assert media.load("image", "a.png") is a and media.load("image", "b.png") is not b


def test_digits_media_are_whole(digits):
    """The embedded world passes its own check, and one missing file in it is found."""
    problems = ErrorCollector("the set")
    check_media(digits.select(split="test"), problems)
    assert not problems.messages
    lost = replace(digits.items[0], messages=[{"role": "user", "content": [{"type": "audio", "path": "media/lost.wav"}]}])
    check_media(replace(digits, items=(lost,)), problems)
    assert len(problems) == 1


def test_a_sound_longer_than_the_model_hears_is_named(tmp_path):
    """With both lengths; once a file; a model without such a limit, or without ears, takes all."""
    wav(tmp_path / "long.wav", noise(2))
    wav(tmp_path / "short.wav", noise(1))
    sounds = [{"type": "audio", "path": name} for name in ("long.wav", "short.wav", "lost.wav")]
    options = [Option(text=t, concept=t) for t in ("a", "b")]
    common = {"split": "test", "modality": "m", "clip": "c", "options": options}
    made = [Item(id=i, messages=[{"role": "user", "content": sounds}], **common) for i in ("one", "two")]
    items = ItemSet(root=tmp_path, name="n", concepts=("a", "b"), alarm=(), items=tuple(made))
    for extractor in (None, SimpleNamespace(sampling_rate=RATE), SimpleNamespace(sampling_rate=RATE, n_samples=3 * RATE)):
        problems = ErrorCollector("sounds")
        check_lengths(items, SimpleNamespace(feature_extractor=extractor), problems)
        assert not problems.messages
    check_lengths(items, SimpleNamespace(feature_extractor=SimpleNamespace(sampling_rate=RATE, n_samples=RATE)), problems)
    (message,) = problems.messages
    assert message.startswith(f"{tmp_path / 'long.wav'}: item 'one': the audio lasts 2.0 s, and this model hears the first 1.0 s only")
