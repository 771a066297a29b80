"""The model in `gapclose validate`, before any weight is read: sizes, adapters, tokens, memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.table import Table
from torch import nn

from gapclose.core.files import format_bytes, free_bytes, nearest
from gapclose.core.settings import AUTO
from gapclose.data.item_set import ItemSet
from gapclose.models.architecture import build_on_meta, quiet, read_architecture
from gapclose.models.loading import LoadedModel, assemble, load_processor
from gapclose.models.quantization import outside
from gapclose.models.structure import decoder, decoder_layers, output_embedding, unwrap
from gapclose.observe.frozen_writer import AUTO_SHARE, RESERVE, trunk_bytes
from gapclose.pipeline.auto_settings import costliest
from gapclose.pipeline.config import Config
from gapclose.pipeline.memory_estimate import (
    Memory,
    cached_items,
    micro_batch,
    observation_bytes,
    observed_batch,
    text_batch,
    training_step,
    weight_bytes,
)
from gapclose.pipeline.prompt_lengths import Seen, look_at, padding_words
from gapclose.pipeline.training_cache import idle
from gapclose.report.console import wide_console
from gapclose.training.lora import adapted_experts, add_lora
from gapclose.training.objectives import BY_TRL

LENGTHS = (4096, 16384)
"""prompt lengths in tokens that are assumed if items or processor are missing"""


def print_outline(config: Config, items: ItemSet | None, *, absent: str | None) -> None:
    """Print :func:`outline` as a table, and the origin and limits of its figures.

    Args:
        absent: why there is no checkpoint (``model.architecture`` then gives the sizes), or None.

    Raises:
        ValueError: as :func:`outline`, after the rows before the fault were printed.
    """
    if absent:
        print(f"no checkpoint can be read at {config.model.path} ({absent}); sizes are those of {config.model.architecture}")
    table = Table(title=f"{config.model.path}, without its weights", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    try:
        for label, value in outline(config, items, absent=absent is not None):
            table.add_row(label, value)
    finally:
        if table.row_count:
            wide_console().print(table)
            print("memory is that of one process, without what kernels and allocator take for themselves (docs/how-to/models-in-detail.md)")


def outline(config: Config, items: ItemSet | None, *, absent: bool) -> Iterator[tuple[str, str]]:
    """Yield facts about the model as (label, value).

    Args:
        items: items of the run, or None if they are missing or faulty.
        absent: whether there is no checkpoint yet, so that ``model.architecture`` gives the sizes.

    Raises:
        ValueError: when the model cannot be read or built, when it does not have the configured
            layers, or, at the end, when an item is longer than the decoder's positions.
    """
    if config.recipe == AUTO:
        yield "recipe auto", "what follows is for a faint reading: labels first, then rounds on all layers"
    config = costliest(config)
    source = config.model.architecture if absent else None
    loaded = _without_weights(config, source)
    model, layers = loaded.model, decoder_layers(loaded.model)
    candidates, towers = config.probe.candidates(len(layers)), _towers(model)
    yield "class", f"{type(model).__name__}, {_count(model.parameters())} parameters in {str(model.dtype).removeprefix('torch.')}"
    yield "decoder", f"{len(layers)} layers of width {loaded.width}, {_count(layers.parameters())} parameters"
    yield "towers", ", ".join(f"{name} {_count(m.parameters())}" for name, m in towers.items()) or "none"
    yield "probe", f"one of layers {_span(candidates)}"
    yield "options", _options(loaded, items)
    seen = look_at(loaded, items) if items is not None and loaded.processor is not None else None
    yield "tokens of an item", _tokens(loaded, seen, items)
    if seen is not None and config.objective not in BY_TRL:
        yield "padding of training rows", padding_words(seen, config.train)
    quantised = f", {config.model.quantisation} (by formula)" if config.model.quantisation else ""
    yield "weights", format_bytes(weight_bytes(model, config.model.quantisation)) + quantised
    yield from _stored(items, config, len(layers), loaded)
    yield from _cached(items, seen, config, loaded)
    yield from _observing(loaded, items, seen, config)
    yield "exporting", _exporting(loaded, config)
    if config.objective in BY_TRL:
        adapted_experts(model, config.lora, config.lora.chosen(len(layers), candidates[0]))
        yield "training", f"not estimated for objective {config.objective}, whose steps are TRL's"
    else:
        yield from _adapting(config, source, items, seen, candidates, towers)
    if seen is not None and items is not None:
        refuse_too_long(loaded, seen, items, config)


def _adapting(
    config: Config, source: str | None, items: ItemSet | None, seen: Seen | None, candidates: Sequence[int], towers: dict[str, nn.Module]
) -> Iterator[tuple[str, str]]:
    """Yield adapters and training steps.

    If adapters begin after the probe, they are those of the lowest and the highest candidate layer.
    """
    n_layers = len(decoder_layers(_without_weights(config, source).model))
    after_probe = config.lora.layers == "after_probe"
    for probe in dict.fromkeys((candidates[0], candidates[-1])) if after_probe else (candidates[-1],):
        chosen = config.lora.chosen(n_layers, probe)
        adapted = _without_weights(config, source)
        with torch.device("meta"), quiet():
            add_lora(adapted, config.lora, chosen, config.seed)
        yield f"adapters{f', probe at layer {probe}' if after_probe else ''}", _adapters(adapted, chosen, towers)
        yield from _training(adapted, items, seen, config)


def _without_weights(config: Config, source: str | None) -> LoadedModel:
    model = build_on_meta(read_architecture(config.model, source), config.model)
    try:
        processor = None if source else load_processor(config.model)
    except (OSError, ValueError, ImportError):
        processor = None
    if processor is None:
        decoder_layers(model)
        return LoadedModel(model=model, processor=None, path=config.model.path, fingerprint="")
    return assemble(model, processor, path=config.model.path, fingerprint="")


def _towers(model: Any) -> dict[str, nn.Module]:
    """Return the modules outside the language model, which encode media, by name."""
    base = unwrap(model)
    language = {id(m) for m in [*decoder(base).modules(), output_embedding(base)]}
    others = {name: base.get_submodule(name) for name in outside(base, decoder_layers(base))}
    return {n: m for n, m in others.items() if id(m) not in language and any(isinstance(x, nn.Linear | nn.Conv2d) for x in m.modules())}


def _adapters(loaded: LoadedModel, layers: Sequence[int], towers: dict[str, nn.Module]) -> str:
    """Describe adapted modules, how many are in each tower (must be 0), and trained parameters."""
    base = unwrap(loaded.model)
    adapted = [name for name, m in base.named_modules() if isinstance(m, BaseTunerLayer)]
    trained = [p for p in base.parameters() if p.requires_grad]
    hit = ", ".join(f"{sum(a.startswith(f'{name}.') for a in adapted)} in {name}" for name in towers)
    return f"{len(adapted)} modules in decoder layers {_span(layers)}{f', {hit}' if hit else ''}; {_count(trained)} trainable parameters"


def _options(loaded: LoadedModel, items: ItemSet | None) -> str:
    if items is None or loaded.processor is None:
        return _unknown(loaded)
    lengths = {o.text: len(loaded.option_tokens(o.text)) for item in items for o in item.options}
    single = [text for text, n in lengths.items() if n == 1]
    longer = [f"{text!r} is {n} tokens" for text, n in lengths.items() if n != 1]
    shown = [f"one token each: {', '.join(single[:12])}{' ...' if len(single) > 12 else ''}"] if single else []
    return "; ".join([*longer[:8], *([f"{len(longer) - 8} more of several tokens"] if len(longer) > 8 else []), *shown])


def positions(model: Any) -> int | None:
    """Return the decoder's number of positions, with RoPE scaling; None if it sets no limit."""
    text = unwrap(model).config.get_text_config()
    given, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
    stretched = (rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 0)
    return given and max(given, int(stretched))


def lengths(model: Any) -> list[int]:
    """Return those of :data:`LENGTHS` that fit the decoder, else its number of positions."""
    most = positions(model)
    return [n for n in LENGTHS if most is None or n <= most] or [most or LENGTHS[0]]


def refuse_too_long(loaded: LoadedModel, seen: Seen, items: ItemSet, config: Config) -> None:
    """Raises: ValueError when the longest prompt plus an answer exceeds the decoder's positions."""
    most = positions(loaded.model)
    answer = max(len(loaded.option_tokens(o.text)) for item in items for o in item.options)
    answer = max(answer, config.observe.max_new_tokens)
    if most is not None and max(seen.tokens) + answer > most:
        raise ValueError(
            f"the longest prompt that was looked at has {max(seen.tokens):,} tokens, an answer up to {answer}, and the decoder of "
            f"{config.model.path} has {most:,} positions; show less of a clip (data.frames, data.side, shorter sounds), or take another model"
        )


def _exporting(loaded: LoadedModel, config: Config) -> str:
    """Describe the memory of exporting: the model, and a second copy that is merged or verified."""
    weights = weight_bytes(loaded.model, config.model.quantisation)
    if config.model.quantisation:
        return (
            f"{format_bytes(2 * weights)} on the GPU: the model, and beside it the one that is verified"
            if config.export.verify
            else "as trained"
        )
    if not (config.export.verify or config.export.merged):
        return f"{format_bytes(weights)} of main memory"
    return f"{format_bytes(2 * weights)} of main memory: the model, and beside it the one that is folded or verified; its GPU is empty until then"


def _unknown(loaded: LoadedModel) -> str:
    return f"not known without the {'processor' if loaded.processor is None else 'items'}"


def _tokens(loaded: LoadedModel, seen: Seen | None, items: ItemSet | None) -> str:
    if seen is None or items is None:
        return _unknown(loaded)
    films = any(kind == "video" for item in items for kind, _ in item.media)
    shown = f"; {items.framing.frames} frames of a film" if films else ""
    spread = f"{min(seen.tokens):,} to {max(seen.tokens):,}, median {statistics.median(seen.tokens):,.0f}"
    return f"{spread} ({len(seen.tokens)} items looked at){shown}"


def _stored(items: ItemSet | None, config: Config, n_layers: int, loaded: LoadedModel) -> Iterator[tuple[str, str]]:
    size = loaded.model.dtype.itemsize
    if items is None:
        layers = len({*config.probe.candidates(n_layers), n_layers})
        each = layers * loaded.width * size
        yield (
            "observations on disk",
            f"{format_bytes(each)} an item of fit ({layers} layers), {format_bytes(2 * loaded.width * size)} another each time",
        )
        return
    found = observation_bytes(items, config, n_layers=n_layers, width=loaded.width, itemsize=size)
    free, each = free_bytes(Path(config.run_dir)), ", ".join(f"{format_bytes(n)} by {job}" for job, n in found.items())
    short = ", which is too little" if found["measure"] > free else ""
    yield "observations on disk", f"{each}; {format_bytes(free)} free at {nearest(Path(config.run_dir))}{short}"


def _cached(items: ItemSet | None, seen: Seen | None, config: Config, loaded: LoadedModel) -> Iterator[tuple[str, str]]:
    """Yield the disk space of the hidden-state cache (``train.cache_trunk``), even if it is off.

    There is none for TRL's objectives, and none if adapters begin at the first layer.
    """
    if config.lora.layers == "all" or config.objective in BY_TRL:
        return
    label, size = "hidden-state cache on disk", (loaded.width, loaded.model.dtype.itemsize)
    auto = config.train.cache_trunk == AUTO
    why = idle(config) if auto else None
    asked = f" (train.cache_trunk auto: off, since {why})" if why else "" if config.train.cache_trunk else " (train.cache_trunk is off)"
    if items is None or seen is None:
        yield label, f"{format_bytes(trunk_bytes(1000, *size))} for a thousand tokens{asked}"
        return
    needed = trunk_bytes(cached_items(items, config) * statistics.mean(seen.tokens), *size)
    free = free_bytes(Path(config.run_dir))
    short = ": it would be left off" if needed + RESERVE > free or (auto and needed > AUTO_SHARE * free) else ""
    yield (
        label,
        f"{format_bytes(needed)} at most, while training{asked}; {format_bytes(free)} free at {nearest(Path(config.run_dir))}{short}",
    )


def _observing(loaded: LoadedModel, items: ItemSet | None, seen: Seen | None, config: Config) -> Iterator[tuple[str, str]]:
    size, batches, longer = config.observe.batch_size, dict[str, dict[str, torch.Tensor]](), 0
    if seen is not None and items is not None:
        batches["the longest item"] = loaded.prompts([seen.gap] * size, loaded.media(items))
        longer = sum(len(loaded.option_tokens(o.text)) > 1 for o in seen.gap.options)
    else:
        batches = {f"{n:,} tokens of text": text_batch(size, n)["prompt"] for n in lengths(loaded.model)}
    for what, prompt in batches.items():
        needed = observed_batch(loaded, prompt, config.model.quantisation, longer=longer)
        yield f"observing, {size} x {what}", "not known: the model looks at values" if needed is None else format_bytes(needed)


def _training(loaded: LoadedModel, items: ItemSet | None, seen: Seen | None, config: Config) -> Iterator[tuple[str, str]]:
    size = config.train.micro_batch_size
    if seen is not None and items is not None:
        yield (
            f"  training step, {size} x the longest item",
            _memory(training_step(loaded, micro_batch(loaded, seen.gap, seen.retain, items, config), config)),
        )
        return
    for length in lengths(loaded.model):
        found = training_step(loaded, [text_batch(size, length)], config)
        yield f"  training step, {size} x {length:,} tokens of text", _memory(found)


def _memory(found: Memory) -> str:
    parts = f"weights {format_bytes(found.weights)}, adapters with gradients and AdamW {format_bytes(found.adapters)}"
    return f"{format_bytes(found.peak)}: {parts}, activations {format_bytes(found.activations)}{' by formula' if found.by_formula else ''}"


def _span(layers: Sequence[int]) -> str:
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}..{layers[-1]}" if whole else ", ".join(map(str, layers))


def _count(parameters: Any) -> str:
    n = sum(p.numel() for p in {id(p): p for p in parameters}.values())
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"
