"""Images as RGB through Pillow: upright, on white, and checked for faults."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from gapclose.core.errors import ItemError
from gapclose.data.containers import undecodable

DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow modes with more than 8 bits a channel; a plain conversion to RGB would clip nearly all
values"""
BITS_PER_SAMPLE = 258
"""TIFF tag; Pillow opens 16-bit colours as 8-bit ones"""
ONE_PICTURE = ("JPEG", "MPO", "ICO", "CUR", "ICNS", "PSD")
"""formats whose further frames are previews, other sizes, or layers of the first frame"""
MOST_PIXELS = 120_000_000
"""of an image: 460 MiB in Pillow's memory, and up to four times as much while it is rotated and
composited"""


def read_image(path: Path) -> Image.Image:
    """Return an RGB image, rotated as its EXIF data ask; transparency is composited on white.

    Raises:
        ItemError: with the fault of the file and the remedy.
    """
    try:
        with Image.open(path) as image:
            _refuse(image, path)
            ImageOps.exif_transpose(image, in_place=True)
            if not image.has_transparency_data:
                return image.convert("RGB")
            clear = image.convert("RGBA")
            white = Image.new("RGBA", clear.size, "white")
            white.alpha_composite(clear)
            return white.convert("RGB")
    except ItemError:
        raise
    except Exception as error:  # damaged files make Pillow raise errors of any kind
        raise undecodable("image", error) from error


def _refuse(image: Image.Image, path: Path) -> None:
    """Raise ItemError if an opened image would not be shown as intended."""
    if image.format == "EPS":
        raise ItemError("an EPS is a program, which Ghostscript would run; write the picture as PNG")
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ItemError(f"the image has {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}; scale it down or cut it")
    if image.mode in DEEP or (bits := _bits(image, path)) > 8:
        what = f"Pillow's mode {image.mode}" if image.mode in DEEP else f"{bits}, in {image.format}"
        raise ItemError(
            f"the image has more than 8 bits a channel ({what}), which would be cut off; write it as 8 bits, windowed as you want it seen"
        )
    if image.format not in ONE_PICTURE and (count := getattr(image, "n_frames", 1)) > 1:
        raise ItemError(f"the file holds {count} pictures, and only the first would be shown; give each a file of its own, or make a film")


def _bits(image: Image.Image, path: Path) -> int:
    """Return the bits per channel in the file of an opened image."""
    if image.format == "PNG":
        with path.open("rb") as handle:
            return handle.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))  # pyright: ignore[reportAttributeAccessIssue]
    return 8
