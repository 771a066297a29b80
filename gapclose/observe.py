"""Observe: one forward of an item yields its residuals at the answer position and the score of every option, together.

Observations are streamed to ``shard-*.safetensors``, each written whole, the manifest last; an interrupted observation goes on
with the first missing shard. Batches are fixed by the items alone, so one process and many write the same bytes.

Shapes: N items, B batch, T prompt tokens, L observed layers, D width, O options (padded to the longest list), K kept tokens.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from gapclose.checks import Checks
from gapclose.clips import clips_together
from gapclose.engines import is_sharded
from gapclose.files import appears, read_json, write_json
from gapclose.forward import generate, read_batch, unwrap_engine
from gapclose.items import Item, ItemSet
from gapclose.media import Media
from gapclose.models import LoadedModel
from gapclose.observations import (
    Observations,
    claim,
    leave_shared,
    pad_options,
    read_observations,
    shard_path,
    shards_there,
    take_shared,
    write_shard,
)
from gapclose.progress import say, track
from gapclose.prompts import media_signature
from gapclose.shared_prefix import SharedPrefix, answer_on
from gapclose.spread import main_alone, together
from gapclose.structure import forget_offsets, unwrap
from gapclose.versions import versions_now

if TYPE_CHECKING:
    from gapclose.trunk import Trunk


@dataclass(kw_only=True)
class ObserveConfig:
    """How items are run through the model."""

    batch_size: int = 32
    """items per forward; half-precision residuals change with it by about 1e-3, so it is part of an observation's fingerprint"""
    shard_batches: int = 4
    """batches per file: what an interruption can lose"""
    max_new_tokens: int = 8
    """length limit of generated answers, in tokens"""
    shared: str | None = None
    """directory in which runs leave what they observed of the base model for one another; null: every run observes for itself"""
    versions: str = "same"
    """same: what was observed under other versions of torch, transformers or gapclose is refused, or observed again where a run replaces it;
    any: it is taken as it is"""
    share_prefix: bool = False
    """read the media once for all questions of a clip, where template and model allow it; part of an observation's fingerprint"""

    def __post_init__(self) -> None:
        with Checks(self, "observe") as check:
            check.number("batch_size", "shard_batches", "max_new_tokens", least=1)
            check.choice("versions", ("same", "any"))


@dataclass(kw_only=True)
class Wanted:
    """What to observe beyond the scores."""

    layers: Sequence[int] = ()
    generate: bool = False
    top_tokens: int = 0
    """keep this many next-token log-probabilities (0: none)"""
    blank: Sequence[str] = ()
    """kinds of media to blank (a control): image, audio, video"""
    patch: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    """decoder layer, counted from 1 -> item id -> residual (D,) that replaces its own after that layer at the answer position"""
    extra: dict[str, Any] = field(default_factory=dict)
    """more that identifies the observation, e.g. the adapter's fingerprint"""
    trunk: Trunk | None = None
    """where what is frozen is stored of all items: scores and residuals come from there, answers are generated as ever"""


def observe(
    loaded: LoadedModel,
    items: ItemSet,
    directory: Path,
    config: ObserveConfig,
    wanted: Wanted,
    *,
    replace: bool = False,
    shared: Path | None = None,
) -> Observations:
    """Observe ``items`` into ``directory``, or read back what is already there under the same fingerprint.

    Every process of a launch takes every W-th shard; all of them return all observations, whose residuals stay on disk until a layer is asked
    for.

    Args:
        replace: throw away what is there under another fingerprint or other versions instead of refusing (for stages that belong to a
            training run).
        shared: take what another run left here under the same fingerprint and the same versions, or leave it here.

    Raises:
        ValueError: when the directory holds observations of something else, or by other versions; both are named.
        FloatingPointError: when a residual or score is not finite, naming the item.
    """
    batches = plan_batches(items.items, config.batch_size, by_clip=config.share_prefix)
    shards = [batches[i : i + config.shard_batches] for i in range(0, len(batches), config.shard_batches)]
    request = _request(loaded, items, config, wanted)
    request["versions"] = versions_now()
    left = shared and shared / "-".join([request["fingerprint"], *(f"{name}-{of}" for name, of in request["versions"].items())])

    def missing_shards() -> list[int] | None:
        """None of a finished observation; of one that has lost a shard since, that one."""
        there, manifest = shards_there(directory, len(shards)), directory / "manifest.json"
        claim(directory, request, replace, versions=config.versions, finished=manifest.is_file() and len(there) == len(shards))
        there = shards_there(directory, len(shards))
        if left and not manifest.is_file() and take_shared(directory, left):
            say(f"{directory.name}: taken from {left}")
            there = shards_there(directory, len(shards))
        missing = [s for s in range(len(shards)) if s not in there]
        return None if manifest.is_file() and not missing else missing

    missing = main_alone(missing_shards)  # one answer for all: another node's view of the directory may be older
    if missing is not None:
        begun = time.process_time()
        mine = share_out(shards, missing, is_sharded(loaded.model))
        media = loaded.media(items, blank=wanted.blank)
        reader = _reader(loaded, batches, media, config, wanted)

        def fill() -> None:
            following, fault = iter([*(batch for s, _ in mine for batch in shards[s])][1:]), None
            for s, kept in track(mine, len(mine), f"observing {directory.parent.name}/{directory.name}"):
                results = []
                for batch in shards[s]:
                    media.ahead([*batch, *next(following, [])])  # decoded while the model works on this one
                    try:
                        results.append(_forward(loaded, batch, media, config, wanted, reader))
                    except FloatingPointError as error:
                        if not is_sharded(loaded.model):
                            raise
                        fault = fault or error  # the other processes go on with forwards that need this one
                if kept and not fault:
                    write_shard(shard_path(directory, s), results)
            if fault:
                raise fault

        def finish() -> None:
            found = {"shards": len(shards), "n_items": len(items), "cpu_seconds": round(time.process_time() - begun, 1)}
            asked = read_json(directory / "request.json", "fingerprint")
            write_json(directory / "manifest.json", asked | found | ({"option_order": items.orders} if items.orders else {}))
            if left and "earlier_versions" not in asked:
                leave_shared(directory, left)

        together(fill, joint=is_sharded(loaded.model))
        main_alone(finish)
    appears(directory / "manifest.json")
    return read_observations(directory, [i.id for i in items])


def forward_batches(
    loaded: LoadedModel, batches: Sequence[Sequence[Item]], media: Media, config: ObserveConfig, wanted: Wanted
) -> Observations:
    """Observe batches in memory, for checks; nothing is stored."""
    reader = _reader(loaded, batches, media, config, wanted)
    results = [_forward(loaded, batch, media, config, wanted, reader) for batch in batches]
    width = max(r["scores"].shape[1] for r in results)
    return Observations(
        ids=[i for r in results for i in r["ids"]],
        residuals={layer: torch.cat([r[f"layer.{layer}"] for r in results]) for layer in wanted.layers},
        scores=torch.cat([pad_options(r["scores"], width) for r in results]),
        answers=[a for r in results for a in r["answers"]] if wanted.generate else None,
    )


def plan_batches(items: Sequence[Item], size: int, *, by_clip: bool = False) -> list[list[Item]]:
    """Cut items into batches that carry the same kinds of media, keeping the order within a kind, or (``by_clip``) questions about the
    same media together."""
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        groups[media_signature(item)].append(item)
    if by_clip:
        return [batch for group in groups.values() for batch in clips_together(group, size)]
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _reader(
    loaded: LoadedModel, batches: Sequence[Sequence[Item]], media: Media, config: ObserveConfig, wanted: Wanted
) -> SharedPrefix | None:
    """What reads clips once for all of their questions, tried on the first of them; None where it is not asked for."""
    if not config.share_prefix or wanted.trunk is not None:
        return None
    reader, tried = SharedPrefix(loaded), Wanted(layers=wanted.layers or (len(loaded.layers),))
    reader.check(batches, lambda few, by: _forward(loaded, few, media, config, tried, by))
    return reader


def share_out(shards: Sequence[Sequence[Sequence[Item]]], missing: Sequence[int], together: bool) -> list[tuple[int, bool]]:
    """What this process observes of the missing shards, and whether it keeps it.

    Every W-th one, where processes work by themselves. Where the model is sharded they go ``together`` through equally many batches of the same
    media: W shards that are alike at a time, of which the last is repeated for the processes that are left over, and dropped there.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    if not together:
        return [(s, True) for s in missing if s % processes == rank]
    alike: dict[tuple[tuple[str, ...], ...], list[int]] = defaultdict(list)
    for s in missing:
        alike[tuple(media_signature(batch[0]) for batch in shards[s])].append(s)
    rounds = [group[i : i + processes] for group in alike.values() for i in range(0, len(group), processes)]
    return [(a_round[min(rank, len(a_round) - 1)], rank < len(a_round)) for a_round in rounds]


def _request(loaded: LoadedModel, items: ItemSet, config: ObserveConfig, wanted: Wanted) -> dict[str, Any]:
    request = {
        "items": items.fingerprint(),
        "model": loaded.fingerprint,
        **loaded.apart,
        "dtype": str(next(unwrap(loaded.model).parameters()).dtype),
        "device": loaded.device.type,
        "batch_size": config.batch_size,
        "shard_batches": config.shard_batches,
        "layers": sorted(wanted.layers),
        "generate": config.max_new_tokens if wanted.generate else 0,
        "top_tokens": wanted.top_tokens,
        "blank": sorted(set(wanted.blank) & {kind for item in items for kind, _ in item.media}),
        "patch": [x for layer, of in sorted(wanted.patch.items()) for x in (layer, _digest([of[i.id] for i in items]))] or None,
        **({"share_prefix": True} if config.share_prefix else {}),
        **({"trunk": wanted.trunk.frozen} if wanted.trunk else {}),
        **wanted.extra,
    }
    request["fingerprint"] = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    return request


def _digest(residuals: Sequence[torch.Tensor]) -> str:
    return hashlib.sha256(torch.stack(list(residuals)).float().numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()  # not inference_mode: what an engine gathers there could not be trained with afterwards
def _forward(
    loaded: LoadedModel,
    batch: Sequence[Item],
    media: Media,
    config: ObserveConfig,
    wanted: Wanted,
    reader: SharedPrefix | None = None,
) -> dict[str, Any]:
    """Run one batch, whole or behind what ``reader`` has read of its clips; every tensor comes back on the CPU."""
    model = unwrap_engine(loaded.model)
    asked, inputs = None, dict[str, torch.Tensor]()
    forget_offsets(model)
    if reader and not (wanted.patch and wanted.generate):  # the cache holds the donors, and answers are the model's own
        longest = max(len(loaded.option_tokens(o.text)) for item in batch for o in item.options)
        asked = reader.ask(model, batch, media, room=max(longest, config.max_new_tokens if wanted.generate else 0))
    if asked:
        inputs = asked
    elif wanted.trunk is None or wanted.generate:
        inputs = {k: v.to(loaded.device) for k, v in loaded.prompts(batch, media).items()}
    if wanted.trunk is not None:
        logp, scores, residuals = wanted.trunk.score(loaded, batch, wanted.layers)
    else:
        logp, scores, residuals = read_batch(loaded, batch, inputs, wanted)
    result: dict[str, Any] = {
        "ids": [i.id for i in batch],
        "scores": scores.cpu(),
        **{f"layer.{layer}": value.cpu() for layer, value in residuals.items()},
    }
    if wanted.top_tokens:
        top = logp.topk(min(wanted.top_tokens, logp.shape[-1]), dim=-1)
        result["top_logps"], result["top_tokens"] = top.values.cpu(), top.indices.int().cpu()
    result["answers"] = []
    if wanted.generate and asked:
        result["answers"] = answer_on(loaded, model, asked, logp, config.max_new_tokens)
    elif wanted.generate:
        result["answers"] = generate(loaded, model, inputs, config.max_new_tokens)
    for key, value in result.items():
        if key != "scores" and not key.startswith("layer."):
            continue
        bad = torch.isnan(value).any(-1) if key == "scores" else ~torch.isfinite(value).all(-1)
        if bad.any():
            raise FloatingPointError(f"item {batch[int(bad.nonzero()[0])].id!r}: {key} is not finite; try model.dtype float32 or bfloat16")
    return result
