"""Images: shown as they are meant in every format, and no decoder's error escapes."""

import numpy as np
import pytest
from PIL import Image

from gapclose.core.errors import ErrorCollector, ItemError
from gapclose.data.images import read_image
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import MediaLoader, drop_faulty, faults, report_faults, survey


def picture() -> Image.Image:
    """Six by four squares, no two sides alike."""
    small = np.zeros((4, 6, 3), np.uint8)
    small[0, :2] = (250, 0, 0)
    small[3, 5] = (0, 0, 250)
    return Image.fromarray(small).resize((60, 40), Image.Resampling.NEAREST)


TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
"""EXIF orientation -> how Pillow turns a picture upright (EXIF 2.32, tag 0x0112)"""


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_followed_in_every_format(tmp_path, form, orientation):
    note = Image.Exif()
    note[0x0112] = orientation
    picture().save(tmp_path / "image", form, exif=note)
    upright = picture().transpose(Image.Transpose[TURNS[orientation]])
    shown = read_image(tmp_path / "image")
    assert shown.size == upright.size and np.abs(np.asarray(shown, int) - np.asarray(upright, int)).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_8_bits_is_shown(tmp_path, mode):
    """In colours where there are some, else in grey."""
    form = {"PA": "TIFF", "LA": "PNG", "RGBA": "PNG", "P": "PNG", "1": "PNG"}.get(mode, "TIFF")
    try:
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "image", form)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow writes no {mode}")
    shown = read_image(tmp_path / "image")
    assert shown.mode == "RGB" and np.asarray(shown).min() > 240


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_several_pictures_in_one_file_are_told(tmp_path, form):
    others = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    picture().resize((32, 32)).save(tmp_path / "image", form, save_all=True, append_images=others)
    with pytest.raises(ItemError, match="the file holds 3 pictures, and only the first would be shown"):
        read_image(tmp_path / "image")


def test_previews_and_sizes_of_one_picture_are_no_other_pictures(tmp_path):
    """A camera's JPEG with a second view (MPO), and icons in several sizes, of which the largest is shown."""
    picture().save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[picture().resize((6, 4))])
    assert read_image(tmp_path / "camera.jpg").size == (60, 40)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "icon.ico", sizes=[(16, 16), (64, 64), (32, 32)])
    assert read_image(tmp_path / "icon.ico").size == (64, 64)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_is_a_program_is_refused(tmp_path):
    """Pillow would have Ghostscript run it, where that is installed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn.eps")
    with pytest.raises(ItemError, match="an EPS is a program, which Ghostscript would run; write the picture as PNG"):
        read_image(tmp_path / "drawn.eps")


def test_absurd_sizes_allocate_nothing(tmp_path):
    """A header alone, of more pixels than are decoded."""
    for side in (12_000, 100_000):
        (tmp_path / "image.ppm").write_bytes(f"P6 {side} {side} 255\n".encode())
        with pytest.raises(ItemError, match="pixels"):
            read_image(tmp_path / "image.ppm")


def set_of(root, kind: str, *names: str) -> ItemSet:
    options = [Option(text=t, concept=t) for t in "ab"]
    common = {"split": "fit", "modality": "v", "options": options}
    items = [Item(id=n, clip=n, messages=[{"role": "user", "content": [{"type": kind, "path": n}]}], **common) for n in names]
    return ItemSet(root=root, name="n", concepts=("a", "b"), alarm=(), items=tuple(items))


ERRORS = [
    MemoryError(),
    RuntimeError("no such item"),
    NotImplementedError("flags 1"),
    OverflowError("too large"),
    EOFError(),
    ZeroDivisionError("by zero"),
]
ERRORS += [
    KeyError("key"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    SyntaxError("broken PNG"),
    AssertionError(),
    OSError(5, "Input/output error"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(("kind", "decoder"), [("image", "read_image"), ("audio", "read_audio"), ("video", "read_video")])
def test_whatever_a_decoder_raises_is_one_line_with_file_and_item(tmp_path, monkeypatch, kind, decoder, error):
    """When a set is checked as when a file is loaded, and `data.on_error skip` leaves the item out."""

    def fail(*_):
        raise error

    monkeypatch.setattr(f"gapclose.data.media.{decoder}", fail)
    for n in range(101):
        (tmp_path / str(n)).write_bytes(b"media")
    items, problems = set_of(tmp_path, kind, "0"), ErrorCollector("the set")
    report_faults(items, faults(items), problems)
    (message,) = problems.messages
    noun = "film" if kind == "video" else kind
    assert message.startswith(f"{tmp_path / '0'}: item '0': the {noun} cannot be decoded (") and message.endswith("replace it")
    assert "\n" not in message and "()" not in message
    many = set_of(tmp_path, kind, *map(str, range(101)))
    left = drop_faulty(many, {(kind, "7"): faults(items)[kind, "0"]}, problems)
    assert len(left) == 100 and left.skipped[0][0] == "7" and len(problems) == 1
    media = MediaLoader(tmp_path, 16_000)
    media.ahead(items)
    with pytest.raises(ValueError, match=f"item '0': the {noun} cannot be decoded"):
        media.load(kind, "0")


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0byte"])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path, name):
    """Such as a picture in base64 where its path should stand."""
    items = set_of(tmp_path, "image", name)
    (fault,) = faults(items).values()
    assert fault == "no such image file; restore it or remove the item"
    problems = ErrorCollector("the set")
    report_faults(items, {("image", name): fault}, problems)
    assert len(problems) == 1


def test_a_survey_knows_sizes_and_lengths(tmp_path):
    """As decoded, not as a header states them."""
    import soundfile

    picture().save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 12_000), 8_000)
    items = set_of(tmp_path, "image", "a.png").items + set_of(tmp_path, "audio", "a.wav").items
    found = survey(ItemSet(root=tmp_path, name="n", concepts=("a", "b"), alarm=(), items=items))
    assert found.faults == {} and found.sizes == {("image", "a.png"): (60, 40), ("audio", "a.wav"): (1.5,)}
