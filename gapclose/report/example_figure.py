"""Draw one test question with the base model's answer, the probe's reading, and the adapted model's answer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapclose.core.files import read_versioned, write_in_place
from gapclose.evaluation.change_file import VERSION
from gapclose.report.figures import ACTION, READING, SENTINEL
from gapclose.report.media_embed import UNREADABLE, first_seconds, small_image
from gapclose.report.style import INK, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, LINE = 7.2, 0.2
"""inches: the figure's width, the height of a line of text"""
HEIGHT, BESIDE = {"image": 1.6, "audio": 0.5}, {"image": 0.3, "audio": 0.45}
"""inches: the height of a medium, and of its title and axis"""
TALL = 2.6
"""inches: what the media of an item take at most beside their titles and axes; more of them are drawn smaller"""
ANSWERS = 0.22
"""share of the width between the names of the answers and the answers"""
TINY, MARGIN = 64, 0.12
"""pixels below which a picture is tiny, and the margin that it gets, as a share of its size"""
SHOWN = 4
"""media of an item that are drawn"""
WRONG, RIGHT = ACTION, SENTINEL


def first_example(change: Mapping[str, Any], root: Path) -> Mapping[str, Any] | None:
    """Return the first item whose right option training brought; an item about an image before others, None without any."""
    gained = [e for e in change["examples"]["gained"] if e["adapted"]["said"] == e["right"]]
    about_images = [
        e for e in gained if e["modality"] in ("vision", "image") and any(k == "image" and (root / p).is_file() for k, p in e["media"])
    ]
    return next(iter([*about_images, *gained]), None)


def answer_rows(example: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (who, what, colour) of the three lines below the question."""
    concept = max(example["base_reading"], key=example["base_reading"].__getitem__)
    rows = []
    for who, answer in (("base model answers", example["base"]), ("after training", example["adapted"])):
        right = answer["said"] == example["right"]
        rows.append((who, f"{answer['said']} {'✓' if right else '✗'}, probability {answer['probability']:.2f}", RIGHT if right else WRONG))
    reading = (f"{concept}, probability {example['base_reading'][concept]:.2f}", READING)
    return [rows[0], ("frozen probe reads", *reading), rows[1]]


def wrapped(text: str, room: float, size: float, weight: str) -> list[str]:
    """Break a text into lines of at most ``room`` inches at ``size`` points; longer words are broken too."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font, widths = FontProperties(weight=weight), dict[str, float]()

    def width(word: str) -> float:
        if word not in widths:
            widths[word] = float(TextPath((0, 0), f"|{word}|", size=size, prop=font).get_extents().width) / 72
        return widths[word]

    bars, lines, left = width(""), [""], room
    space = width(" ") - bars
    for word in text.split():
        for piece in [word] if width(word) - bars <= room else textwrap.wrap(word, 12):
            needed = width(piece) - bars + (space if lines[-1] else 0)
            if needed > left:
                lines.append("")
                left, needed = room, width(piece) - bars
            lines[-1] += f" {piece}" if lines[-1] else piece
            left -= needed
    return lines if lines[0] else []


@styled
def draw_example(directory: Path) -> Path | None:
    """Draw the first example that training made right to ``figures/example.png`` of a closed run.

    Returns:
        The file; None where no answer became right.
    """
    path = directory / "change.json"
    change = read_versioned(path, VERSION, "run `gapclose close` again, which writes it anew and trains nothing")
    root = directory / change["data_root"]
    example = first_example(change, root)
    if example is None:
        return None
    media = [(kind, root / file) for kind, file in example["media"] if kind in ("image", "audio") and (root / file).is_file()][:SHOWN]
    left = 0.3 if media else 0.03
    room = (0.97 - left) * WIDTH
    question = [line for part in example["text"].splitlines() for line in wrapped(part, room, 10.5, "bold") or [""]]
    options = wrapped(f"options: {', '.join(example['options'])}; right: {example['right']}", room, 8.5, "normal")
    rows = [(who, wrapped(what, room - ANSWERS * WIDTH, 10.5, "bold"), colour) for who, what, colour in answer_rows(example)]
    needed = sum(HEIGHT[kind] for kind, _ in media)
    smaller = min(1, TALL / max(needed, 1))
    lines = len(question) + len(options) + sum(len(what) - 1 for _, what, _ in rows)
    height = max(LINE * lines * 1.1 + 1.45, needed * smaller + sum(BESIDE[kind] for kind, _ in media) + 0.3)
    figure: Figure = new_figure(figsize=(WIDTH, height))
    top = height
    for kind, file in media:
        panel = HEIGHT[kind] * smaller
        top -= panel + BESIDE[kind]
        axes = figure.add_axes((0.03, (top + BESIDE[kind] - 0.25) / height, 0.22, panel / height))
        try:
            (draw_image if kind == "image" else draw_audio)(axes, file)
        except UNREADABLE as error:
            axes.set_axis_off()
            axes.text(0.5, 0.5, f"{kind} not drawn\n({type(error).__name__})", fontsize=8, ha="center", va="center")
    _write(figure, left, height, question, options, rows)
    out = directory / "figures" / "example.png"
    write_in_place(out, lambda p: figure.savefig(p, format="png", dpi=150, transparent=False))
    return out


def _write(
    figure: Figure, left: float, height: float, question: Sequence[str], options: Sequence[str], rows: Sequence[tuple[str, list[str], str]]
) -> None:
    """Write question, options and answers, from the top down."""
    y = height - 0.3
    for line in question:
        figure.text(left, y / height, line, fontsize=10.5, weight="bold", va="center")
        y -= LINE * 1.1
    for line in options:
        figure.text(left, y / height, line, fontsize=8.5, color="#777777", va="center")
        y -= LINE * 1.1
    y -= 0.2
    for who, what, colour in rows:
        figure.text(left, y / height, who, fontsize=10, color=INK, va="center")
        for n, line in enumerate(what):
            figure.text(left + ANSWERS, (y - n * LINE * 1.1) / height, line, fontsize=10.5, weight="bold", color=colour, va="center")
        y -= 0.31 + (len(what) - 1) * LINE * 1.1


def draw_image(axes: Axes, path: Path) -> None:
    """Draw a picture; a tiny one keeps sharp pixels, and gets a margin of its edge's colour: a shape that touches the edge is hard to read."""
    image = np.asarray(small_image(path))  # (rows, columns, 3)
    rows, columns, _ = image.shape
    tiny = max(rows, columns) < TINY
    axes.imshow(image, interpolation="nearest" if tiny else "antialiased")
    axes.set(xticks=[], yticks=[])
    if tiny:
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])  # (P, 3)
        margin = MARGIN * max(rows, columns)
        axes.set(xlim=(-0.5 - margin, columns - 0.5 + margin), ylim=(rows - 0.5 + margin, -0.5 - margin))
        axes.set_facecolor(tuple(np.median(edge, axis=0) / 255))
    axes.set_title("image", fontsize=8)


def draw_audio(axes: Axes, path: Path) -> None:
    """Draw the wave of the first seconds of a recording."""
    samples, rate, _ = first_seconds(path)
    axes.plot(np.arange(len(samples)) / rate, samples, color=INK, linewidth=0.4)
    axes.set(yticks=[])
    axes.tick_params(labelsize=7)
    axes.set_title("audio (seconds)", fontsize=8)
