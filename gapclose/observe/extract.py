"""Observe items: one forward yields residuals at the answer position and the score of every option.

Observations are streamed to ``shard-*.safetensors``, each written atomically, the manifest last. An
interrupted observation continues with the first missing shard. Batches do not depend on the number
of processes, so one process and many write the same bytes.

Shapes: N items, B batch, T prompt tokens, L observed layers, D width, O options (padded to the
longest list), K kept tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from gapclose.core.auto_decisions import announce, decided, keep
from gapclose.core.distributed import run_on_all_ranks, run_on_main
from gapclose.core.files import read_json, wait_for_file, write_json
from gapclose.core.logging import get_logger, progress
from gapclose.core.settings import AUTO, SHARE_PREFIX
from gapclose.core.versions import versions_now
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.hooks import reset_rope_deltas
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.models.sharding import is_sharded, unwrap_engine
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.forward import generate, read_batch
from gapclose.observe.prefix_cache import PrefixCache, generate_from_cache
from gapclose.observe.prompt_reuse import PromptReuse
from gapclose.observe.request import ObservationRequest, request_of
from gapclose.observe.store import (
    Observations,
    claim_directory,
    fetch_shared,
    pad_options,
    publish_shared,
    read_observations,
    shard_path,
    shards_there,
    write_shard,
)

logger = get_logger(__name__)


def observe(
    loaded: LoadedModel,
    items: ItemSet,
    directory: Path,
    config: ObserveConfig,
    wanted: ObservationRequest,
    *,
    replace: bool = False,
    shared: Path | None = None,
    run: Path | None = None,
) -> Observations:
    """Observe ``items`` into ``directory``, or read what it holds under the same fingerprint.

    Every process observes every W-th shard. All return all observations, whose residuals stay on
    disk until a layer is accessed.

    Args:
        replace: delete observations of another fingerprint or other versions instead of refusing
            (for stages of a training run).
        shared: directory in which runs share observations. One of the same fingerprint and versions
            is taken from there; a new one is left there.
        run: directory of the run, whose ``auto.json`` keeps what ``observe.share_prefix: auto`` came
            to. None: ``directory`` goes on as its request says.

    Raises:
        ValueError: when the directory holds observations of another request or other versions; both
            are named.
        FloatingPointError: when a residual is not finite or a score is nan, naming the item.
    """
    if config.share_prefix == AUTO:
        config = dataclasses.replace(config, share_prefix=_decided(loaded, items, directory, config, wanted, run))
    batches = plan_batches(items.items, config.batch_size, by_clip=config.shares)
    shards = [batches[i : i + config.shard_batches] for i in range(0, len(batches), config.shard_batches)]
    request = request_of(loaded, items, config, wanted)
    request["versions"] = versions_now()
    left = shared and shared / "-".join([request["fingerprint"], *(f"{name}-{of}" for name, of in request["versions"].items())])

    def missing_shards() -> list[int] | None:
        """Return the missing shards, or None if the observation is complete."""
        there, manifest = shards_there(directory, len(shards)), directory / "manifest.json"
        claim_directory(directory, request, replace, versions=config.versions, finished=manifest.is_file() and len(there) == len(shards))
        there = shards_there(directory, len(shards))
        if left and not manifest.is_file() and fetch_shared(directory, left):
            logger.info(f"{directory.name}: taken from {left}")
            there = shards_there(directory, len(shards))
        missing = [s for s in range(len(shards)) if s not in there]
        return None if manifest.is_file() and not missing else missing

    missing = run_on_main(missing_shards)  # decided once for all: another node's view of the directory may be older
    left_to_do = "nothing is left to observe" if missing is None else f"{len(missing)} of {len(shards)} shards are left to observe"
    logger.debug(f"{directory.name}: {len(items)} items, fingerprint {request['fingerprint']}, {left_to_do}")
    if missing is not None:
        begun = time.process_time()
        mine = share_out(shards, missing, is_sharded(loaded.model))
        media = loaded.media(items, blank=wanted.blank)
        reader, answers = _reader(loaded, batches, media, config, wanted), PromptReuse(loaded, media)

        def fill() -> None:
            following, fault = iter([*(batch for s, _ in mine for batch in shards[s])][1:]), None
            for s, kept in progress(mine, len(mine), f"observing {directory.parent.name}/{directory.name}"):
                results = []
                for batch in shards[s]:
                    media.ahead([*batch, *next(following, [])])  # decoded while the model runs this one
                    try:
                        results.append(_forward(loaded, batch, media, config, wanted, reader, answers))
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
                publish_shared(directory, left)

        run_on_all_ranks(fill, joint=is_sharded(loaded.model))
        run_on_main(finish)
    wait_for_file(directory / "manifest.json")
    return read_observations(directory, [i.id for i in items])


observe_items = observe
"""public name, since ``gapclose.observe`` is this package"""


def forward_batches(
    loaded: LoadedModel, batches: Sequence[Sequence[Item]], media: MediaLoader, config: ObserveConfig, wanted: ObservationRequest
) -> Observations:
    """Observe batches in memory, without storing anything (for checks).

    Raises:
        ValueError: when ``observe.share_prefix`` is auto.
    """
    reader, answers = _reader(loaded, batches, media, config, wanted), PromptReuse(loaded, media)
    results = [_forward(loaded, batch, media, config, wanted, reader, answers) for batch in batches]
    width = max(r["scores"].shape[1] for r in results)
    return Observations(
        ids=[i for r in results for i in r["ids"]],
        residuals={layer: torch.cat([r[f"layer.{layer}"] for r in results]) for layer in wanted.layers},
        scores=torch.cat([pad_options(r["scores"], width) for r in results]),
        answers=[a for r in results for a in r["answers"]] if wanted.generate else None,
    )


def _reader(
    loaded: LoadedModel, batches: Sequence[Sequence[Item]], media: MediaLoader, config: ObserveConfig, wanted: ObservationRequest
) -> PrefixCache | None:
    """Return a prefix cache that was checked on its first clips; None if it is not requested."""
    if not config.shares or wanted.trunk is not None:
        return None
    return _checked(PrefixCache(loaded), batches, media, config, wanted)


def _checked(
    reader: PrefixCache, batches: Sequence[Sequence[Item]], media: MediaLoader, config: ObserveConfig, wanted: ObservationRequest
) -> PrefixCache:
    loaded, tried = reader.loaded, ObservationRequest(layers=wanted.layers or (len(reader.loaded.layers),))
    reader.check(batches, lambda few, by: _forward(loaded, few, media, config, tried, by))
    return reader


def sharing_refusal(loaded: LoadedModel, items: ItemSet, config: ObserveConfig, wanted: ObservationRequest) -> str | None:
    """Return why ``observe.share_prefix: auto`` comes to false for ``items``, or None if to true.

    It is true if the first clips of some combination of media have the results of whole prompts when
    their questions share a prefix. All processes get the same answer.
    """
    batches, media = plan_batches(items.items, config.batch_size, by_clip=True), loaded.media(items, blank=wanted.blank)
    if is_sharded(loaded.model):  # known without a try, in which processes would have to run equally many forwards
        return PrefixCache(loaded).refusal or "processes hold parts of the model"
    reasons = run_on_all_ranks(lambda: _checked(PrefixCache(loaded, quiet=True), batches, media, config, wanted).reason())
    return next((r for r in reasons if r is not None), None)


def _decided(
    loaded: LoadedModel, items: ItemSet, directory: Path, config: ObserveConfig, wanted: ObservationRequest, run: Path | None
) -> bool:
    """Return what ``observe.share_prefix: auto`` comes to: as before in the run or in ``directory``, else by a try."""
    path = directory / "request.json"
    before = (
        decided(run, SHARE_PREFIX) if run else run_on_main(lambda: bool(read_json(path).get("share_prefix")) if path.is_file() else None)
    )
    if before is not None:
        return before
    reason = "scores come from stored states" if wanted.trunk is not None else sharing_refusal(loaded, items, config, wanted)
    return keep(run, SHARE_PREFIX, reason) if run else announce(SHARE_PREFIX, reason)


def share_out(shards: Sequence[Sequence[Sequence[Item]]], missing: Sequence[int], run_on_all_ranks: bool) -> list[tuple[int, bool]]:
    """List the missing shards for this process, each with whether its result is kept.

    Independent processes take every W-th shard. With a sharded model (``run_on_all_ranks``) they
    run equally many batches of the same media: W shards with the same media at a time. If fewer are
    left, the remaining processes repeat the last one and drop its result.
    """
    state = PartialState()
    rank, processes = state.process_index, state.num_processes
    if not run_on_all_ranks:
        return [(s, True) for s in missing if s % processes == rank]
    alike: dict[tuple[tuple[str, ...], ...], list[int]] = defaultdict(list)
    for s in missing:
        alike[tuple(media_signature(batch[0]) for batch in shards[s])].append(s)
    rounds = [group[i : i + processes] for group in alike.values() for i in range(0, len(group), processes)]
    return [(a_round[min(rank, len(a_round) - 1)], rank < len(a_round)) for a_round in rounds]


@torch.no_grad()  # not inference_mode: parameters that an engine gathers in it cannot be trained later
def _forward(
    loaded: LoadedModel,
    batch: Sequence[Item],
    media: MediaLoader,
    config: ObserveConfig,
    wanted: ObservationRequest,
    reader: PrefixCache | None = None,
    answers: PromptReuse | None = None,
) -> dict[str, Any]:
    """Run one batch, completely or after ``reader`` has run its clips.

    Generated answers continue this forward where ``answers`` allows it. All tensors are returned on
    the CPU.
    """
    model = unwrap_engine(loaded.model)
    asked, inputs = None, dict[str, torch.Tensor]()
    reset_rope_deltas(model)
    if reader and not (wanted.patch and wanted.generate):  # the cache would hold the donors, but answers are generated without them
        longest = max(len(loaded.option_tokens(o.text)) for item in batch for o in item.options)
        asked = reader.ask(model, batch, media, room=max(longest, config.max_new_tokens if wanted.generate else 0))
    if asked:
        inputs = asked
    elif wanted.trunk is None or wanted.generate:
        inputs = {k: v.to(loaded.device) for k, v in loaded.prompts(batch, media).items()}
    cache = None
    # answers are generated without donors, and a cache would hold them
    fits = wanted.generate and not asked and not wanted.patch and wanted.trunk is None
    keep = answers is not None and fits and answers.allows(batch, inputs["attention_mask"])
    if not asked:
        reset_rope_deltas(model)  # a trial has left others
    if wanted.trunk is not None:
        logp, scores, residuals = wanted.trunk.score(loaded, batch, wanted.layers)
    else:
        logp, scores, residuals, cache = read_batch(loaded, batch, inputs, wanted, keep=keep)
    result: dict[str, Any] = {
        "ids": [i.id for i in batch],
        "scores": scores.cpu(),
        **{f"layer.{layer}": value.cpu() for layer, value in residuals.items()},
    }
    if wanted.top_tokens:
        top = logp.topk(min(wanted.top_tokens, logp.shape[-1]), dim=-1)
        result["top_logps"], result["top_tokens"] = top.values.cpu(), top.indices.int().cpu()
    result["answers"] = []
    if wanted.generate and (asked or cache is not None):
        continued = asked or {**inputs, "past_key_values": cache}
        result["answers"] = generate_from_cache(loaded, model, continued, logp, config.max_new_tokens)
    elif wanted.generate:
        result["answers"] = generate(loaded, model, inputs, config.max_new_tokens)
    for key, value in result.items():
        if key != "scores" and not key.startswith("layer."):
            continue
        bad = torch.isnan(value).any(-1) if key == "scores" else ~torch.isfinite(value).all(-1)
        if bad.any():
            raise FloatingPointError(f"item {batch[int(bad.nonzero()[0])].id!r}: {key} is not finite; try model.dtype float32 or bfloat16")
    return result
