"""Give a pretrained language model small eyes and ears: an ordinary Qwen2.5-Omni thinker with the language model's own weights.

    python recipes/graft.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --out models/graft
    python recipes/graft.py --model models/qwen2.5-coder-0.5b-instruct --out models/graft          # a directory instead of the hub
    python recipes/graft.py --model ... --out models/graft --media table.csv                       # your own pictures and sounds

Then `gapclose close --config configs/places.yaml --model.path models/graft`.

Towers of the thinker's own classes (depth 4, width 128) learn to map each picture or sound to the embedding that the language
model has for its name. The language model is neither run nor changed: its text-only logits stay the same, which is checked. A
picture becomes one token, a sound of a second about six.

This is the first stage of LLaVA-style training (a connector to a frozen language model), on a narrow world: handwritten and
spoken digits, or the media that ``--media`` names (a CSV file with the columns path, name, split; each name one token). It is
no general perception: the towers recognise the names they were trained on. The language model is not trained to use them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from graft_model.assemble import assemble, build_processor, load_language_model, text_difference, thinker_config
from graft_model.towers import Table, TowerTrainer, digits_table, read_table, word_tokens

from gapclose.core.files import write_json
from gapclose.core.logging import configure_logging, get_logger

TEXTS = ["Where did Anna find the violin? Answer with one word.", "Name a number between one and nine."]
LEAST = 0.95
"""accuracy on held-out media below which nothing is written"""
CLOSE = 1e-4
"""share of the largest logit by which text-only logits may differ, in float32"""
logger = get_logger("graft")


def graft(
    model: str,
    out: Path,
    table: Table,
    *,
    steps: dict[str, int],
    copies: dict[str, int],
    seconds: int = 1,
    dtype: str | None = None,
    seed: int = 0,
    least: float = LEAST,
) -> dict[str, Any]:
    """Write the grafted model to ``out``.

    Args:
        steps, copies: kind of media -> optimiser steps, and distorted copies of every medium.
        seconds: the longest sound.
        dtype: of the weights written; None: that of the language model.
        least: accuracy on held-out media that is required.

    Returns:
        ``perception``: kind -> accuracy on held-out media; ``text``: the largest difference of text-only logits, and the largest logit.

    Raises:
        ValueError: when checkpoint, tokenizer or media do not fit, text-only logits differ, or perception is below ``least``.
    """
    torch.manual_seed(seed)
    language_model, tokenizer, stored = load_language_model(model)
    words = sorted({name for of in table.values() for name in of.names})
    tokens = word_tokens(tokenizer, words)
    processor = build_processor(tokenizer, seconds)
    thinker = assemble(language_model, thinker_config(language_model.config, tokenizer, seconds=seconds))
    worst, top = text_difference(thinker, processor, language_model, tokenizer, TEXTS)
    logger.info(f"text-only logits differ from the language model's by {worst:.1e} at most, of {top:.1f}")
    if worst > CLOSE * top:
        raise ValueError(f"text-only logits differ from the language model's by {worst:.1e}, more than {CLOSE:g} of the largest, {top:.1f}")
    perception = {}
    for kind in sorted({kind for kind, _ in table}):
        trainer = TowerTrainer(thinker, processor, kind, words, tokens)
        trainer.train(table[kind, "train"], steps=steps[kind], batch_size=96, copies=copies[kind], seed=seed)
        perception[kind] = trainer.accuracy(table[kind, "held_out"])
        logger.info(f"{kind}: {perception[kind]:.3f} of {len(table[kind, 'held_out'].names)} held-out media named right")
    if low := {kind: round(share, 3) for kind, share in perception.items() if share < least}:
        raise ValueError(f"perception is below {least}: {low}; raise --vision-steps or --audio-steps, or give more media")
    found = {"base": Path(model).name, "perception": perception, "text": {"difference": worst, "largest": top}, "seed": seed}
    thinker.to(stored if dtype is None else getattr(torch, dtype)).save_pretrained(out)
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
    parser.add_argument("--copies", type=int, default=16, help="distorted copies of every digit to train on (default 16); none of --media")
    parser.add_argument("--seconds", type=int, default=1, help="the longest sound (default 1)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the weights written (default: the language model's own)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    configure_logging("info")
    if given.out.exists():
        print(f"graft: {given.out} exists; name another directory, or delete it", file=sys.stderr)
        return 1
    start = time.monotonic()
    try:
        table = digits_table() if given.media is None else read_table(given.media, given.seconds)
        steps = {"vision": given.vision_steps, "audio": given.audio_steps}
        copies = dict.fromkeys(steps, given.copies if given.media is None else 0)
        graft(given.model, given.out, table, steps=steps, copies=copies, seconds=given.seconds, dtype=given.dtype, seed=given.seed)
    except (ValueError, OSError) as error:
        print(f"graft: {error}", file=sys.stderr)
        return 1
    logger.info(f"wrote {given.out} in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
