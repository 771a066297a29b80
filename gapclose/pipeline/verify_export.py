"""The process that verifies a run's exports: ``python -m gapclose.pipeline.verify_export RUN``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from gapclose.export.omni import compare_parts
from gapclose.export.verify import DIFFERS
from gapclose.models.loading import load_model
from gapclose.observe.store import Observations, read_observations
from gapclose.training.lora import load_adapter

VERIFIED_ITEMS = 64


def verify(directory: Path) -> dict[str, Any]:
    """Load each export as a user would, and compare scores and answers with stored observations.

    Of the omni export only the thinker is loaded. Every tensor of the other parts must have the
    bytes of the base checkpoint.

    Raises:
        ValueError: when no adapter key applies, an adapter is all zeros, a score differs beyond the
            tolerance, an answer differs, or another part of an omni model differs. Answers of
            merged and omni exports may differ if the two best options lay nearer than the
            tolerance.
        RuntimeError: when the stored observations cannot be read.
    """
    import transformers

    from gapclose.observe.batching import plan_batches
    from gapclose.observe.extract import forward_batches
    from gapclose.observe.request import ObservationRequest
    from gapclose.pipeline.auto_settings import with_decision
    from gapclose.pipeline.config import parse_config
    from gapclose.pipeline.items import prepare_items

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # stderr becomes the message of the caller's error
    config = parse_config(["--config", str(directory / "config.yaml"), "--run_dir", str(directory)])
    try:
        stored = read_observations(directory / "observations" / "adapted-test")
    except ValueError as error:  # a damaged record does not mean that the export differs
        raise RuntimeError(f"what was measured cannot be read: {error}") from error
    items = prepare_items(config, closing=False).select(split="test")
    # the batches of the measurement: other padding changes results in half precision
    known = set(stored.ids)
    chosen = [i for i in items if i.id in known]
    how = with_decision(config.observe, directory)
    batches = plan_batches(chosen, how.batch_size, by_clip=how.shares)
    batches = batches[: max(1, VERIFIED_ITEMS // config.observe.batch_size)]
    result: dict[str, Any] = {}
    for name in ("adapter", "merged", "omni"):
        folder = directory / name
        if not folder.is_dir():
            continue
        loaded = (
            load_adapter(config.model, folder) if name == "adapter" else load_model(dataclasses.replace(config.model, path=str(folder)))
        )
        exact = loaded.model.dtype == torch.float32
        tolerance = config.export.tolerance * (1.0 if name == "adapter" else 10.0 if exact else 200.0)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        seen = forward_batches(loaded, batches, loaded.media(items), how, ObservationRequest(generate=True))
        before = stored.take(seen.ids)
        measured = before.scores[:, : seen.scores.shape[1]]  # stored scores are as wide as the split's longest option list
        difference = float((seen.scores - measured)[torch.isfinite(measured)].abs().max())
        if not difference <= tolerance:
            raise ValueError(f"{folder}: option scores differ by up to {difference:.3g} nats from those measured (tolerance {tolerance:g})")
        other = other_answers(seen, before)
        decided = [i for i, margin in other.items() if name == "adapter" or margin >= tolerance]
        if decided:
            raise ValueError(f"{folder}: {len(decided)} generated answers differ from those measured, e.g. of item {decided[0]!r}")
        result[name] = {"items": len(seen), "largest_difference": difference, "flipped": len(other)}
        if name == "omni":
            result[name] |= compare_parts(config.model, folder)
    return result


def other_answers(seen: Observations, before: Observations) -> dict[str, float]:
    """Return item id -> margin of its two best options before, in nats, if its answer changed."""
    best = before.scores.topk(2, dim=1).values if before.scores.shape[1] > 1 else before.scores.new_full((len(before), 2), torch.inf)
    margins = (best[:, 0] - best[:, 1]).tolist()
    answers = zip(seen.ids, seen.answers or [], before.answers or [], margins, strict=True)
    return {ident: margin for ident, now, then, margin in answers if now != then}


if __name__ == "__main__":
    try:
        print(json.dumps(verify(Path(sys.argv[1]))))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(DIFFERS)
