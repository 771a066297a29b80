"""Write an item set of your own: pictures, questions, twins, options and splits. A template to copy and edit.

    python recipes/make_items.py runs/shapes
    gapclose validate --data.path runs/shapes --model.path digits

A clip is a picture of two coloured shapes side by side. "What colour is the square that is left of the circle?" has a false premise
where the square is on the right; the right answer is then "error". Every question has a twin that differs in one word, *left* or *right*.
Which of the two is true is drawn for every clip, so the text alone does not tell it.

Edit the functions from `draw_scene` to `prompt`; the rest puts their results together (docs/start/own-items.md).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CONCEPTS, ALARM = ["standard", "false"], ["false"]
"""what an answer can express, and which of it objects to the question"""
OBJECTION = "error"
"""the answer to a question with a false premise"""
CLIPS = {"fit": 36, "train": 24, "val": 12, "test": 28}
COLOURS = {"red": (214, 40, 40), "green": (46, 139, 87), "blue": (38, 84, 200), "yellow": (240, 190, 30)}
SHAPES = ("circle", "square", "triangle")
SIDE = 224
"""width and height of a picture in pixels"""


def draw_scene(rng: np.random.Generator) -> dict:
    """The facts of one clip. Replace it by whatever your questions are about."""
    colours, shapes = (rng.choice([*of], size=2, replace=False).tolist() for of in (COLOURS, SHAPES))
    left, right = ({"colour": colours[n], "shape": shapes[n], "offset": rng.integers(-14, 15, size=3).tolist()} for n in range(2))
    return {"left": left, "right": right}


def draw_picture(scene: dict) -> Image.Image:
    """The picture of a clip. For pictures that you have, return ``Image.open(...)``. No two clips may have the same one."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for place, centre in (("left", 0.27), ("right", 0.73)):
        x, y, size = scene[place]["offset"]
        x, y, radius, fill = SIDE * centre + x, SIDE / 2 + y, SIDE * 0.15 + size / 2, COLOURS[scene[place]["colour"]]
        if scene[place]["shape"] == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            pen.regular_polygon((x, y, radius), {"triangle": 3, "square": 4}[scene[place]["shape"]], fill=fill)
    return picture


def questions(scene: dict, rng: np.random.Generator) -> list[dict]:
    """The questions about a clip: each once with a true premise, with its answer, and once with one detail false.

    Draw the true detail and the false one alike. A word that only false questions have gives them away.
    """
    place, other = ("left", "right") if rng.integers(2) else ("right", "left")
    thing, beside = scene[place], scene[other]["shape"]
    true, false = (f"What colour is the {thing['shape']} that is {where} of the {beside}?" for where in (place, other))
    return [{"kind": "colour", "true": true, "false": false, "answer": thing["colour"]}]


def kept(scene: dict, rng: np.random.Generator) -> list[dict]:
    """Other questions about a clip, with their answer, to which training must not change what the model says (purpose ``retain``).

    They contain no error, and name the objection as well, so that a model does not learn to object to every such prompt.
    """
    shape = str(rng.choice(SHAPES))
    return [{"kind": "shown", "true": f"Is there a {shape}?", "answer": "yes" if shape in {s["shape"] for s in scene.values()} else "no"}]


def options(kind: str) -> list[dict]:
    """The possible answers to a kind of question, with the concept that each expresses."""
    answers = ("yes", "no") if kind == "shown" else COLOURS
    return [{"text": answer, "concept": "standard"} for answer in answers] + [{"text": OBJECTION, "concept": "false"}]


def prompt(question: str, answers: list[str]) -> str:
    """What the model is asked. It names every option, so that the model knows that it may object."""
    return f"{question} Answer with one word: {', '.join(answers[:-1])}. If the question has an error, answer: {answers[-1]}."


def clip_rows(clip: str, split: str, scene: dict, rng: np.random.Generator) -> list[dict]:
    """The lines of items.jsonl about a clip (docs/how-to/data.md says what the keys mean)."""
    rows = []
    asked = [(of, premise) for of in questions(scene, rng) for premise in ("true", "false")]
    asked += [(of, "true") for of in kept(scene, rng) if split != "fit"]
    for number, (of, premise) in enumerate(asked):
        listed, twin = options(of["kind"]), number ^ 1  # the twins are 0 and 1, 2 and 3, ...
        text = prompt(of[premise], [option["text"] for option in listed])
        content = [{"type": "image", "path": f"media/{clip}.png"}, {"type": "text", "text": text}]
        row = {"id": f"{clip}/{number}", "clip": clip, "split": split, "modality": "vision", "options": listed, "stem": of[premise]}
        row |= {"messages": [{"role": "user", "content": content}], "gold": of["answer"] if premise == "true" else OBJECTION}
        tags = {"question": of["kind"], "premise": premise}
        rows.append(row | ({"tags": tags | {"twin": f"{clip}/{twin}"}} if "false" in of else {"tags": tags, "purpose": "retain"}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, nargs=4, default=[*CLIPS.values()], help="of fit, train, val and test")
    given = parser.parse_args()
    rng, rows = np.random.default_rng(given.seed), []
    (given.directory / "media").mkdir(parents=True, exist_ok=True)
    for split, count in zip(CLIPS, given.clips, strict=True):
        for number in range(count):
            clip, scene = f"{split}-{number:03d}", draw_scene(rng)
            draw_picture(scene).save(given.directory / "media" / f"{clip}.png")
            rows += clip_rows(clip, split, scene, rng)
    (given.directory / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    facts = {"name": given.directory.name, "concepts": CONCEPTS, "alarm": ALARM}
    (given.directory / "set.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(f"{len(rows)} items about {sum(given.clips)} clips in {given.directory}")


if __name__ == "__main__":
    main()
