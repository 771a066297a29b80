"""Fill a :class:`gapclose.observe.frozen_cache.HiddenStateCache`, if model and disk allow it.

Every process fills every W-th batch, and each file is written atomically. An interrupted fill
continues with the first missing file. If there can be no cache, the reason is logged and every step
computes the frozen layers.

Shapes: B rows, T tokens, D width of the residual stream, A axes of rotary positions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from gapclose.core.distributed import run_on_all_ranks, run_on_main
from gapclose.core.files import wait_for_file
from gapclose.core.logging import get_logger, progress
from gapclose.core.tensor_files import Damaged, read_tensors, write_tensors
from gapclose.core.versions import versions_now
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.media import MediaLoader
from gapclose.models.loading import LoadedModel
from gapclose.models.processing import media_signature
from gapclose.models.structure import unwrap
from gapclose.observe.answer_rows import Row, answer_rows, prompt_with_answers
from gapclose.observe.batching import plan_batches
from gapclose.observe.branch_trial import can_branch
from gapclose.observe.frozen_cache import HiddenStateCache
from gapclose.observe.frozen_capture import Entered, capture_hidden, first_of_each, unsupported_reason

logger = get_logger(__name__)

RESERVE = 1 << 30
"""bytes of the disk that must remain free"""
AUTO_SHARE = 0.25
"""largest share of the free disk that the caches of ``train.cache_trunk: auto`` take together"""
MARGIN = 1.1
"""factor on the size estimate, since it extrapolates from the lengths of a few items"""


def write_cache(
    loaded: LoadedModel,
    items: ItemSet,
    directory: Path,
    *,
    frozen: int,
    batch_size: int,
    layers: Sequence[int] = (),
    blank: Sequence[str] = (),
    share: float = 1.0,
    beside: ItemSet | None = None,
    refused: Callable[[str], object] | None = None,
) -> HiddenStateCache | None:
    """Store the states of ``items`` that enter decoder layer ``frozen + 1``.

    Existing files are kept.

    Args:
        directory: for this model and these items; the fingerprint is appended to its name.
            Directories of the same name with another fingerprint are removed.
        layers: layers whose residuals are stored too, none above ``frozen``.
        blank: kinds of media that are blanked.
        share: largest share of the free disk that the cache may take, together with ``beside``.
        beside: items of another cache, which is filled after this one.
        refused: is given the reason if it cannot be stored, in addition to the log.

    Returns:
        The cache, or None if it cannot be stored; the reason is logged.
    """
    state, media = PartialState(), loaded.media(items, blank=blank)
    batches = plan_batches(items.items, batch_size)
    directory = directory.with_name(f"{directory.name}-{_fingerprint(loaded, items, batch_size, frozen, layers, blank)}")
    files = [directory / f"batch-{b:05d}.safetensors" for b in range(len(batches))]

    def look_at_disk() -> str | None:
        for other in directory.parent.glob(f"{directory.name.rpartition('-')[0]}-*"):
            if other != directory:
                shutil.rmtree(other)
        more = cache_bytes(loaded, plan_batches(beside.items, batch_size), loaded.media(beside)) if beside else 0
        return does_not_fit(loaded, batches, media, directory, files, share, more)

    branching = can_branch(loaded, [item for batch in batches for item in batch], media)
    reason = (
        _first(run_on_all_ranks(lambda: unsupported_reason(loaded, batches, media, frozen, branching=branching)))
        or run_on_main(look_at_disk)
        or _first(run_on_all_ranks(lambda: _fill(loaded, batches, media, files, frozen, layers, branching)))
        or _first(run_on_all_ranks(lambda: _unseen(files)))
    )
    if reason is not None:
        if refused:
            refused(reason)
        if state.is_main_process:
            shutil.rmtree(directory, ignore_errors=True)  # a full disk would end the run
        logger.info(f"no hidden-state cache ({directory.name.rpartition('-')[0]}): {reason}; the frozen layers are computed in every step")
        return None
    size = sum(f.stat().st_size for f in files)
    logger.info(
        f"hidden-state cache of {len(items)} items ({directory.name.rpartition('-')[0]}): {size / 2**20:,.1f} MiB, decoder layers 1..{frozen}"
    )
    return HiddenStateCache(files, frozen, branching=branching)


def _first(reasons: Sequence[str | None]) -> str | None:
    """Return the first reason among the processes, or None."""
    return next((r for r in reasons if r is not None), None)


def _unseen(files: Sequence[Path]) -> str | None:
    """Return why this process does not see one of the written files, or None.

    It waits for each, since files of another node may appear late.
    """
    for file in files:
        wait_for_file(file)
        if not file.is_file():
            return f"a process does not see {file}, which another has written"
    return None


def _fingerprint(loaded: LoadedModel, items: ItemSet, batch_size: int, frozen: int, layers: Sequence[int], blank: Sequence[str]) -> str:
    dtype, versions = str(next(unwrap(loaded.model).parameters()).dtype), versions_now()
    known = [items.fingerprint(), loaded.fingerprint, loaded.apart, dtype, batch_size, frozen, sorted(layers), sorted(blank), versions]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def does_not_fit(
    loaded: LoadedModel,
    batches: Sequence[Sequence[Item]],
    media: MediaLoader,
    directory: Path,
    files: Sequence[Path],
    share: float = 1.0,
    more: int = 0,
) -> str | None:
    """Return why the disk cannot hold the states that are not stored yet, or None.

    With ``more`` bytes of another cache they may take ``share`` of what is free. Alone they must leave
    :data:`RESERVE`.
    """
    needed = cache_bytes(loaded, batches, media) - sum(f.stat().st_size for f in files if f.is_file())
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if needed + RESERVE > free:
        return f"it takes {needed / 2**30:,.2f} GiB more, and {directory} has {free / 2**30:,.2f} GiB free, of which 1 must remain"
    if needed + more > share * free:
        return (
            f"it takes {(needed + more) / 2**30:,.2f} GiB more, above {share:.0%} of the {free / 2**30:,.2f} GiB that {directory} has free"
        )
    return None


def cache_bytes(loaded: LoadedModel, batches: Sequence[Sequence[Item]], media: MediaLoader) -> int:
    """Estimate the bytes of the states of batches, from the first items of each kind of media."""
    kinds: dict[tuple[str, ...], int] = {}
    for batch in batches:
        kinds[media_signature(batch[0])] = kinds.get(media_signature(batch[0]), 0) + len(batch)
    tokens = 0.0
    for batch in first_of_each(batches):
        mask = prompt_with_answers(loaded, media, [(item, []) for item in batch])[0]["attention_mask"]
        behind = sum(len(tokens) for _, branches in answer_rows(loaded, batch, branching=True).rows for tokens in branches)
        tokens += (int(mask.sum()) + behind) / len(batch) * kinds[media_signature(batch[0])]
    return trunk_bytes(tokens * MARGIN, loaded.width, next(unwrap(loaded.model).parameters()).element_size())


def trunk_bytes(tokens: float, width: int, itemsize: int) -> int:
    """Bytes of the stored states of ``tokens`` tokens, with positions on three axes."""
    return int(tokens * (width * itemsize + 3 * 4))


def _fill(
    loaded: LoadedModel,
    batches: Sequence[Sequence[Item]],
    media: MediaLoader,
    files: Sequence[Path],
    frozen: int,
    layers: Sequence[int],
    branching: bool,
) -> str | None:
    """Write this process's share of the files; return why one could not be written, or None."""
    state = PartialState()
    mine = [b for b in range(state.process_index, len(batches), state.num_processes) if not _is_whole(files[b])]
    for n in progress(range(len(mine)), len(mine), "filling the hidden-state cache"):
        media.ahead([item for b in mine[n : n + 2] for item in batches[b]])  # decodes the next while the model runs this one
        rows = answer_rows(loaded, batches[mine[n]], branching=branching).rows
        try:
            write_states(files[mine[n]], rows, capture_hidden(loaded, rows, media, frozen, layers))
        except OSError as error:
            return f"{files[mine[n]]}: {error.strerror or error}"
    return None


def _is_whole(file: Path) -> bool:
    """Whether this file is stored and undamaged; a damaged one is computed again."""
    if not file.is_file():
        return False
    try:
        read_tensors(file)
    except Damaged as error:
        logger.warning(f"  {f'{error}'.partition(';')[0]}; computing it again")
        return False
    return True


def write_states(path: Path, rows: Sequence[Row], entered: Entered) -> None:
    """Write one batch: prompts without padding, each followed by its branches."""
    places, cuts, firsts = list[list[Any]](), list[tuple[int, slice]](), list[int]()
    for b, (item, branches) in enumerate(rows):
        if not places or places[-1][0] != item.id:
            tokens = int(entered.mask[b, : entered.length].sum())
            places.append([item.id, tokens, []])
            firsts.append(b)
            cuts.append((b, slice(entered.length - tokens, entered.length)))
        column = entered.length
        for branch in branches:
            places[-1][2].append(branch)
            cuts.append((b, slice(column, column + len(branch))))
            column += len(branch)
    tensors = {"hidden": torch.cat([entered.hidden[b, cut] for b, cut in cuts])}  # (T, D)
    if entered.positions is not None:
        grid = entered.positions if entered.positions.dim() == 3 else entered.positions[None]
        tensors["positions"] = torch.cat([grid[:, b, cut].T for b, cut in cuts]).int()  # (T, A)
    tensors |= {f"layer.{layer}": value[firsts] for layer, value in entered.residuals.items()}
    grid_axes = entered.positions is not None and entered.positions.dim() == 3
    write_tensors(path, tensors, {"items": json.dumps(places), "grid": json.dumps(grid_axes)})
