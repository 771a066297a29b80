"""Verify that what was written is what was measured: every export is loaded again, in a fresh process, as a user would load it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gapclose.adapters import load_adapter
from gapclose.export.omni import compare_parts
from gapclose.files import write_json
from gapclose.models import load_model
from gapclose.observations import Observations, read_observations
from gapclose.progress import say

VERIFIED_ITEMS = 64
DIFFERS = 3
"""exit status of the verifying process when an export differs from what was measured"""


def verify_in_fresh_process(directory: Path) -> dict[str, Any]:
    """Reload every export of a run in a new interpreter and compare it with the stored test observations.

    Raises:
        ValueError: with the process's own message, when an export differs from what was measured.
        RuntimeError: with its traceback, when that process failed in another way.
    """
    say("verifying what was exported, in a fresh process")
    command = [sys.executable, "-W", "ignore", "-m", "gapclose.export", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=_single_process_environment())
    if result.returncode == DIFFERS:
        raise ValueError(f"{directory}: the export does not reproduce what was measured:\n{result.stderr.strip()}")
    if result.returncode:
        raise RuntimeError(
            f"{directory}: verifying the export failed (status {result.returncode}):\n{result.stderr.strip()}\nThe training is whole, and "
            f"nothing of it is lost; `gapclose export --config {directory / 'config.yaml'} --run_dir {directory}` writes and verifies again"
        )
    verified = json.loads(result.stdout.strip().splitlines()[-1])
    write_json(directory / "adapter" / "verified.json", verified)
    for name, facts in verified.items():
        answers = f"{facts['flipped']} other answers, each between options as near as that" if facts["flipped"] else "same answers"
        say(f"verified {name}: {facts['items']} items, largest score difference {facts['largest_difference']:.2g} nats, {answers}")
    return verified


def _single_process_environment() -> dict[str, str]:
    """This process's environment without what a launcher put there, so that the child does not join the group."""
    import os

    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")
    return {k: v for k, v in os.environ.items() if k not in launcher and not k.startswith(("TORCHELASTIC_", "ACCELERATE_", "FSDP_"))}


def verify(directory: Path) -> dict[str, Any]:
    """Load each export as a user would and compare scores and answers with the stored observations of the adapted model.

    Of the omni export its thinker is loaded; every tensor of the other parts must have the base checkpoint's bytes.

    Raises:
        ValueError: when no adapter key applies, an adapter is all zeros, a score differs beyond the tolerance, an answer differs (of a merged
            model, one whose two best options lay further apart than the tolerance), or another part of an omni model does.
        RuntimeError: when what was measured cannot be read.
    """
    import transformers

    from gapclose.config import parse_config
    from gapclose.observe import Wanted, forward_batches, plan_batches
    from gapclose.validate import prepare_items

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # what goes to stderr here is the message of the caller's error
    config = parse_config(["--config", str(directory / "config.yaml"), "--run_dir", str(directory)])
    try:
        stored = read_observations(directory / "observations" / "adapted-test")
    except ValueError as error:  # a damaged record is no export that differs
        raise RuntimeError(f"what was measured cannot be read: {error}") from error
    items = prepare_items(config, closing=False).select(split="test")
    # whole batches, cut as they were: other padding would be another computation in half precision
    known = set(stored.ids)
    chosen = [i for i in items if i.id in known]
    batches = plan_batches(chosen, config.observe.batch_size, by_clip=config.observe.share_prefix)
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
        seen = forward_batches(loaded, batches, loaded.media(items), config.observe, Wanted(generate=True))
        before = stored.take(seen.ids)
        measured = before.scores[:, : seen.scores.shape[1]]  # as wide as the longest option list of the whole split
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
    """Item id -> how far apart its two best options were, in nats, for every item that is answered otherwise than before."""
    best = before.scores.topk(2, dim=1).values if before.scores.shape[1] > 1 else before.scores.new_full((len(before), 2), torch.inf)
    margins = (best[:, 0] - best[:, 1]).tolist()
    answers = zip(seen.ids, seen.answers or [], before.answers or [], margins, strict=True)
    return {ident: margin for ident, now, then, margin in answers if now != then}
