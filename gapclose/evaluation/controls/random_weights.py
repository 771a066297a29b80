"""Control: readings of networks of the same shape with random weights, by the same probe search.

A probe on random features can read a conjunction of a word and a medium, so a reading that such
networks give too is not evidence of learned knowledge. ``random_decoder`` keeps the trained
embeddings and towers, ``random_everything`` keeps nothing. Every draw uses the run's own path: the
same items, candidate layers, families and strengths, chosen on ``fit`` and read on the other
splits. Source: Zhang and Bowman (2018), random encoders as a baseline for probes.

A draw costs one observation of ``fit``, ``val`` and ``test``. The checkpoint is reloaded once at
the end (if the model is sharded, also before every draw). One model is in memory at a time, and the
observations of a draw are deleted after reading.

Shapes: N items of a split, C concepts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers

from gapclose.core.distributed import run_on_main
from gapclose.core.logging import get_logger
from gapclose.core.tensor_files import read_tensors, write_tensors
from gapclose.core.version import __version__
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.context import EvaluationContext
from gapclose.evaluation.controls.scoring import Control
from gapclose.metrics.labels import Labels
from gapclose.models.loading import load_model
from gapclose.models.random_init import PARTS, draw_anew
from gapclose.probes.search import choose_probe

logger = get_logger(__name__)

Readings = dict[str, dict[str, list[np.ndarray]]]
"""kind of network -> split -> one reading (N, C) per draw"""

KINDS = {f"random_{part}": part for part in PARTS}
LABELS = {
    "random_decoder": "random weights in the decoder, trained embeddings and towers",
    "random_everything": "random weights everywhere",
}


def random_readings(run: EvaluationContext, *, thorough: bool, needed: bool = True) -> Readings:
    """Read val and test from every network, or load the stored readings of this fingerprint.

    Each network is stored once it was read, so that an interrupted control goes on, and a larger
    ``controls.random_draws`` draws only the further ones.

    Empty if ``controls.random_weights`` is off or the base model is quantised: packed weights
    cannot be drawn.

    Args:
        thorough: draw both kinds; otherwise only ``random_decoder``, which keeps more of the model
            and is harder to beat.
        needed: whether a verdict depends on them; otherwise no network is drawn, and only the kinds
            that are stored completely are returned.
    """
    config = run.config
    if not config.controls.random_weights:
        return {}
    if config.model.quantisation:
        logger.info(f"no control with random weights: the weights of a base in {config.model.quantisation} are packed, and cannot be drawn")
        return {}
    splits, kinds = _splits(run), tuple(KINDS) if thorough else ("random_decoder",)
    key, paths = _fingerprint(run, splits), {kind: run.directory / "probes" / f"{kind}.safetensors" for kind in kinds}
    draws, count = config.controls.random_draws, sum(len(items) for items in splits.values())
    found = {kind: run_on_main(lambda kind=kind: _stored(paths[kind], key)) for kind in kinds}
    missing = {kind: draws - len(found[kind]) for kind in kinds if len(found[kind]) < draws}
    if missing and not needed:
        logger.info(
            "control with random weights: no networks are drawn, because no control can change the verdict *not judgeable*. They are drawn "
            "where the thresholds gap.least_... are low enough for the model to pass"
        )
        found, missing = {kind: readings for kind, readings in found.items() if kind not in missing}, {}
    if missing:
        each = ", ".join(f"{lacking} {kind}" for kind, lacking in missing.items())
        logger.info(f"control with random weights: {sum(missing.values())} networks to draw ({each}), each observed on {count} items")
    drawn = False
    try:
        for kind, lacking in missing.items():  # random_decoder first: it keeps trained embeddings and towers
            for draw in range(draws - lacking, draws):
                # what a class does not initialise is drawn with the checkpoint's moments; a sharded model is loaded anew anyway
                if drawn and not config.model.sharded:
                    run.reload()
                name, drawn = draw_network(run, KINDS[kind], draw), True
                found[kind].append(_read(run, name, splits))
                run.on_main(lambda kind=kind: _store(paths[kind], key, found[kind]))
    except BaseException:
        if run.in_memory:  # the user's own model outlives the run
            run.reload()
        raise
    if missing:
        run.reload()
    measured = [split for split in splits if split != "fit"]
    return {kind: {split: [of[split] for of in readings[:draws]] for split in measured} for kind, readings in found.items()}


def random_controls(readings: Readings, split: str) -> list[Control]:
    """Return the controls of one split for ``measurement.json``."""
    return [
        Control(
            name=kind,
            label=f"{LABELS[kind]} ({len(of[split])} draws)",
            question="does a network that learned nothing give the same reading?",
            readings=of[split],
        )
        for kind, of in readings.items()
    ]


def _splits(run: EvaluationContext) -> dict[str, ItemSet]:
    """Return the labelled gap items of fit, val and test, without empty splits."""
    found = {}
    for split in ("fit", "val", "test"):
        items = run.items.select(split=split, purpose="gap")
        items = replace(items, items=tuple(i for i in items if i.gold is not None))
        if len(items):
            found[split] = items
    return found


def draw_network(run: EvaluationContext, part: str, draw: int) -> str:
    """Draw new weights for ``part`` of the run's model, in place; return the name of the draw.

    A sharded model is loaded completely first, because shards cannot be drawn.
    """
    name = f"random-{part}-{draw}"
    seed = int(np.random.SeedSequence([run.config.seed, PARTS.index(part), draw]).generate_state(1)[0])
    if run.config.model.sharded:
        run.loaded.model = None  # one model in memory at a time
        run.loaded.model = load_model(run.config.model).model
    draw_anew(run.loaded.model, part, seed)
    if run.config.model.sharded:
        run.place(run.loaded.model)
    run.adapter = f"{name}-of-seed-{run.config.seed}"  # identifies the weights
    return name


def _read(run: EvaluationContext, name: str, splits: dict[str, ItemSet]) -> dict[str, np.ndarray]:
    """Return split -> reading (N, C) of the probe that the run's search chooses on ``fit`` in
    the current network."""
    fit = splits["fit"]
    layers = run.config.probe.candidates(len(run.loaded.layers))
    known = Labels.of(fit)
    seen = run.observe(f"{name}-fit", fit, layers=layers, replace=True)
    probe = choose_probe(
        seen.residuals, known.concept, known.clip, fit.concepts, run.config.probe,
        layers=layers, modality=known.modality, seed=run.config.seed, spread=True, label=f"choosing the probe of {name}",
    ).probe  # fmt: skip
    found = {}
    for split, items in splits.items():
        if split != "fit":
            seen = run.observe(f"{name}-{split}", items, layers=probe.layers, replace=True)
            found[split] = probe.predict_proba(probe.features(seen.residuals))
    run.process.wait_for_everyone()
    run.on_main(lambda: [shutil.rmtree(run.directory / "observations" / f"{name}-{split}") for split in splits])
    return found


def _fingerprint(run: EvaluationContext, splits: dict[str, ItemSet]) -> str:
    """Hash everything that the readings depend on."""
    facts = {
        "items": run.items.fingerprint(),
        "splits": {split: len(items) for split, items in splits.items()},
        "model": run.loaded.fingerprint,
        **run.loaded.apart,
        "dtype": str(next(run.loaded.model.parameters()).dtype),
        "device": run.loaded.device.type,
        "probe": dataclasses.asdict(run.config.probe),
        "batch_size": run.config.observe.batch_size,
        "seed": run.config.seed,
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _store(path: Path, key: str, found: list[dict[str, np.ndarray]]) -> None:
    """Write the readings of the networks so far, split -> (N, C) each."""
    tensors = {f"{split}/{draw}": torch.tensor(reading) for draw, readings in enumerate(found) for split, reading in readings.items()}
    write_tensors(path, tensors, {"fingerprint": key})


def _stored(path: Path, key: str) -> list[dict[str, np.ndarray]]:
    """Return the readings stored under this fingerprint, split -> (N, C) of every network.

    Raises:
        ValueError: when the file is damaged.
    """
    if not path.is_file():
        return []
    tensors, header = read_tensors(path, "delete it: its networks are drawn again")
    if header.get("fingerprint") != key:
        return []
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        split, draw = name.split("/")
        found.setdefault(int(draw), {})[split] = tensor.numpy()
    return [found[draw] for draw in sorted(found)]
