"""How many steps of contrary training undo what a run learned?

    python recipes/durability.py runs/digits                          # after `make demo`: 80 seconds
    python recipes/durability.py runs/people --steps 1 2 4 8 16 32

The adapter of a finished `gapclose close` is trained on to answer as if every premise were true. The targets are what the base model answers
among the options that accept the premise, on the train items; no label is used. The rate is the run's `train.learning_rate` (or
`--learning_rate`), constant, with a new optimiser. Every step draws its items anew. After so many steps the action is measured on test, until
less than a tenth of the gain is left. RUN/durability.json has the figures of the last call, and the steps after which half of the gain in
balanced accuracy is lost: for one batch order (`--seed`).
"""

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gapclose import FrozenProbe, ItemSet, load_run, measure_gap, observe_items, parse_config
from gapclose.core.files import write_json
from gapclose.core.logging import configure_logging
from gapclose.data.prompt_templates import apply_prompt
from gapclose.metrics.labels import Labels, option_concepts
from gapclose.models.loading import LoadedModel
from gapclose.observe.request import ObservationRequest
from gapclose.observe.store import Observations
from gapclose.pipeline.config import Config
from gapclose.pipeline.items import prepare_plain
from gapclose.training.lora import load_adapter
from gapclose.training.sampler import Example
from gapclose.training.trainer import make_trainer

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LEFT = 0.1
"""share of the gain below which the training ends"""


def contrary(items: ItemSet, scores: np.ndarray) -> list[Example]:
    """Return the items with targets that accept every premise.

    Args:
        scores: (N, O) the base model's scores of the options, in nats.

    Raises:
        ValueError: when an item has no option that accepts its premise.
    """
    concept = option_concepts(items.items, items.concepts)
    accepts = (concept >= 0) & ~np.isin(concept, [items.concepts.index(name) for name in items.alarm])
    if lost := [item.id for item, row in zip(items, accepts, strict=True) if not row.any()]:
        raise ValueError(f"{len(lost)} train items have no option that accepts the premise, e.g. {lost[:3]}")
    kept = np.where(accepts, scores[:, : concept.shape[1]], -np.inf)
    weights = np.exp(kept - kept.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return [Example(item=i, term="consistency", weights=w[: len(i.options)]) for i, w in zip(items, weights, strict=True)]


def half_life(steps: list[int], action: list[float], base: float) -> float | None:
    """Return the steps after which half of the gain over ``base`` is lost, interpolated linearly;
    None if it never was.

    Args:
        steps: numbers of steps, the first 0. action: balanced accuracy after so many.
    """
    half = (action[0] + base) / 2
    for n in range(1, len(steps)):
        if action[n] <= half:
            return steps[n - 1] + (steps[n] - steps[n - 1]) * (action[n - 1] - half) / (action[n - 1] - action[n])
    return None


def option_scores(loaded: LoadedModel, items: ItemSet, config: Config, layers: Sequence[int] = ()) -> Observations:
    """Observe items under the model as it is now, and keep nothing on disk."""
    with tempfile.TemporaryDirectory() as directory:
        seen = observe_items(loaded, items, Path(directory) / "seen", config.observe, ObservationRequest(layers=tuple(layers)))
        return dataclasses.replace(seen, residuals={layer: seen.residuals[layer] for layer in layers})


def figures(loaded: LoadedModel, items: ItemSet, config: Config, probe: FrozenProbe) -> dict[str, Any]:
    """Measure the action on labelled items, with clip-bootstrap intervals."""
    labels = Labels.of(items)
    seen = option_scores(loaded, items, config, probe.layers)
    reading, scores = probe.predict_proba(probe.features(seen.residuals)), seen.scores.double().numpy()
    found = measure_gap(
        reading, scores, labels.concept, clips=labels.clip, modality=labels.modality, option_concept=labels.option_concept, gold=labels.gold,
        alarm=[items.concepts.index(name) for name in items.alarm], replicates=config.gap.replicates, seed=config.seed,
    )  # fmt: skip
    return {name: getattr(found, name).to_dict() for name in ("action", "action_auroc", "standard_accuracy", "false_alarm")}


def durability(run: Path, steps: list[int], *, seed: int, clips: int | None, learning_rate: float | None = None) -> dict[str, Any]:
    """Train contrarily and measure; see the module.

    Args:
        clips: of test, at most so many; None: all. learning_rate: None: that of the run.

    Raises:
        ValueError: for a run that is not finished, exported no adapter or gained nothing on test, or
            whose items are gone.
    """
    result = load_run(run)
    if result.adapted is None or not (run / "adapter" / "adapter_model.safetensors").is_file():
        raise ValueError(f"{run}: there is no exported adapter; finish `gapclose close` of this run first (--export.unimproved true)")
    if result.adapted.action.value <= result.base.action.value:
        raise ValueError(
            f"{run}: on test the action is {result.adapted.action.value:.3f} and that of the base model {result.base.action.value:.3f}, so there "
            "is no gain to undo"
        )
    config = parse_config(["--config", str(run / "config.yaml")])
    items = apply_prompt(prepare_plain(config, closing=True), config.prompts.asked, config.prompts)
    train, test = items.select(split="train", purpose="gap").unlabelled(), items.select(split="test", purpose="gap")
    if clips is not None:
        kept = sorted({i.clip for i in test})[:clips]
        test = test.holding([i for i in test if i.clip in kept])
    loaded = load_adapter(config.model, run / "adapter")
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    with loaded.model.disable_adapter():
        examples = contrary(train, option_scores(loaded, train, config).scores.double().numpy())
        base = figures(loaded, test, config, result.probe)
    # one step an epoch, so that the model can be measured after any of them
    per_step = config.train.global_batch_size - config.train.counts()["retain"]
    how = dataclasses.replace(
        config.train, learning_rate=learning_rate or config.train.learning_rate, lr_scheduler_type="constant", warmup=0.0,
        consistency=1.0, gold=0.0, retain=0.0, epochs=max(steps), patience=None,
        global_batch_size=per_step, micro_batch_size=math.gcd(config.train.micro_batch_size, per_step), save_steps=0,
    )  # fmt: skip
    rows = [{"steps": 0, **figures(loaded, test, config, result.probe)}]
    below = base["action"]["value"]
    print(f"before: action {rows[0]['action']['value']:.3f} on {len(test)} items; base model {below:.3f}", flush=True)

    def after(step: int) -> bool:
        if step not in steps:
            return False
        loaded.model.eval()
        rows.append({"steps": step, **figures(loaded, test, config, result.probe)})
        action = rows[-1]["action"]["value"]
        print(f"{step} steps: action {action:.3f}, AUROC {rows[-1]['action_auroc']['value']:.3f}", flush=True)
        return action - below < LEFT * (rows[0]["action"]["value"] - below)

    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(
            loaded, examples, loaded.media(items), how, Path(directory), n_train=per_step, seed=seed, after_epoch=after, branch_trial=False
        )
        trainer.train()
    half = half_life([r["steps"] for r in rows], [r["action"]["value"] for r in rows], below)
    sizes = {"n_items": len(test), "n_clips": len({i.clip for i in test}), "items_a_step": per_step}
    return {"base": base, "learning_rate": how.learning_rate, "seed": seed, **sizes, "half_life": half, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished `gapclose close`")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="measure after so many steps")
    parser.add_argument("--clips", type=int, help="of test, at most so many")
    parser.add_argument("--learning_rate", type=float, help="of the contrary training (default: that of the run)")
    parser.add_argument("--seed", type=int, default=0, help="of the batch order")
    given = parser.parse_args()
    configure_logging("info")
    if min(*given.steps, 1 if given.clips is None else given.clips) < 1:
        print(f"error: --steps {given.steps}, --clips {given.clips}: give numbers that are 1 or more", file=sys.stderr)
        return 2
    if given.learning_rate is not None and not given.learning_rate > 0:
        print(f"error: --learning_rate is {given.learning_rate}; it must be above 0", file=sys.stderr)
        return 2
    try:
        found = durability(given.run, sorted(set(given.steps)), seed=given.seed, clips=given.clips, learning_rate=given.learning_rate)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(given.run / "durability.json", found)
    half = found["half_life"]
    print(
        f"half of the gain is lost after {half:.1f} steps"
        if half is not None
        else f"more than half of the gain is left after {found['rows'][-1]['steps']} steps"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
