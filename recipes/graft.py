"""Give a pretrained language model small eyes and ears: an ordinary Qwen2.5-Omni thinker with the language model's own weights.

    python recipes/graft.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --out models/graft
    python recipes/graft.py --model models/qwen2.5-coder-0.5b-instruct --out models/graft          # a directory instead of the hub
    python recipes/graft.py --model ... --out models/graft --media table.csv                       # your own pictures and sounds

Then `gapclose close --config configs/places.yaml --model.path models/graft`.

Towers of the thinker's own classes (depth 4, width 128) are trained to give, for each picture or sound, the language model's
embedding of the word that names it. The language model is neither run nor changed: its text-only logits stay what they were,
which is checked. A picture becomes one token, a sound of a second about six.

This is the first stage of LLaVA-style training (a connector to a frozen language model), on a narrow world: handwritten and
spoken digits, or the media that ``--media`` names (a CSV file with the columns path, name, split; each name one token). It is
no general perception. What the model makes of the tokens is the language model's own doing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from graft_model.assemble import assemble, build_processor, load_language_model, text_difference, thinker_config
from graft_model.towers import Table, TowerTrainer, digits_table, read_table, word_tokens

from gapclose.core.files import write_json

TEXTS = ["Where did Anna find the violin? Answer with one word.", "Name a number between one and nine."]
LEAST = 0.95
"""accuracy on held-out media below which the recipe ends with an error"""


def graft(
    model: str, out: Path, table: Table, *, steps: dict[str, int], copies: dict[str, int], seconds: int, dtype: str, seed: int
) -> dict:
    """Write the grafted model to ``out``.

    Returns:
        ``perception``: kind -> accuracy on held-out media; ``text``: the largest difference of text-only logits, and the largest logit.

    Raises:
        ValueError: when checkpoint, tokenizer or media do not fit.
    """
    torch.manual_seed(seed)
    language_model, tokenizer = load_language_model(model)
    words = sorted({name for of in table.values() for name in of.names})
    tokens = word_tokens(tokenizer, words)
    processor = build_processor(tokenizer, seconds)
    thinker = assemble(language_model, thinker_config(language_model.config, tokenizer, seconds=seconds))
    perception = {}
    for kind in sorted({kind for kind, _ in table}):
        trainer = TowerTrainer(thinker, processor, kind, words, tokens)
        trainer.train(table[kind, "train"], steps=steps[kind], batch_size=96, copies=copies[kind], seed=seed)
        perception[kind] = trainer.accuracy(table[kind, "held_out"])
        print(f"{kind}: {perception[kind]:.3f} of {len(table[kind, 'held_out'].names)} held-out media named right", flush=True)
    worst, top = text_difference(thinker, processor, language_model, tokenizer, TEXTS)
    print(f"text-only logits differ from the language model's by {worst:.1e} at most, of {top:.1f}", flush=True)
    found = {"base": Path(model).name, "perception": perception, "text": {"difference": worst, "largest": top}, "seed": seed}
    thinker.to(getattr(torch, dtype)).save_pretrained(out)
    processor.save_pretrained(out)
    write_json(out / "graft.json", found)  # last: a directory with it is complete
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub name of a Qwen2 language model")
    parser.add_argument("--out", required=True, type=Path, help="directory for the grafted model")
    parser.add_argument("--media", type=Path, help="CSV file with the columns path, name, split; default: handwritten and spoken digits")
    parser.add_argument("--vision-steps", type=int, default=1000, help="optimiser steps of 96 pictures (default 1000)")
    parser.add_argument("--audio-steps", type=int, default=1600, help="optimiser steps of 96 sounds (default 1600)")
    parser.add_argument("--copies", type=int, default=16, help="distorted copies of every medium to train on (default 16)")
    parser.add_argument("--seconds", type=int, default=1, help="the longest sound (default 1)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the weights written (default bfloat16)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (given.out / "graft.json").is_file():
        print(f"{given.out} is there already")
        return 0
    start = time.monotonic()
    try:
        table = digits_table() if given.media is None else read_table(given.media)
        steps = {"vision": given.vision_steps, "audio": given.audio_steps}
        copies = dict.fromkeys(steps, given.copies)
        found = graft(given.model, given.out, table, steps=steps, copies=copies, seconds=given.seconds, dtype=given.dtype, seed=given.seed)
    except (ValueError, OSError) as error:
        print(f"graft: {error}", file=sys.stderr)
        return 1
    print(f"wrote {given.out} in {time.monotonic() - start:.0f} s")
    if low := {kind: round(share, 3) for kind, share in found["perception"].items() if share < LEAST}:
        print(f"graft: perception is below {LEAST}: {low}; raise --vision-steps or --audio-steps, or give more media", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
