"""Everything that can be known to be wrong before a model loads, told at once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from gapclose.answers import check_told_apart
from gapclose.baselines.trl_items import check_taken
from gapclose.chat import left_out_of_prompts
from gapclose.config import Config
from gapclose.data_config import DataConfig
from gapclose.errors import Problems
from gapclose.files import read_json, write_json
from gapclose.interleave import interleave
from gapclose.item_files import check_splits_filled
from gapclose.items import Decoding, Framing, ItemSet
from gapclose.labelling import relabel
from gapclose.media import survey, tell, too_long, without
from gapclose.media_fit import unfit
from gapclose.models import SHIPPED, ModelConfig, load_processor
from gapclose.objectives import BY_TRL, needs_reading
from gapclose.option_order import shuffle_options
from gapclose.progress import say
from gapclose.prompts import check_kinds, check_options
from gapclose.quantise import refuse_quantisation
from gapclose.readers import read_set
from gapclose.readers.splits import Dealing, check_clips_apart, check_media_apart, check_twins
from gapclose.report.console import add_columns, wide_console
from gapclose.stems import unnamed_options
from gapclose.verdict import LEAST_CLIPS
from gapclose.wordings import WORDINGS, PromptsConfig, reword

MEASURE_SPLITS = {"fit": True, "test": True}
CLOSE_SPLITS = {"fit": True, "train": False, "val": True, "test": True}


def read_data(directory: Path, data: DataConfig, problems: Problems) -> ItemSet:
    """The items in ``directory``, whatever its layout, framed as the configuration says."""
    items = read_set(directory, problems, Dealing(shares=data.shares, seed=data.split_seed), columns=data.columns, about=data.about)
    items = interleave(items) if data.interleave else items
    decoding = Decoding(workers=data.workers, cache=Path(data.cache) if data.cache else None, cache_gb=data.cache_gb)
    return replace(items, framing=Framing(frames=data.frames, side=data.side), decoding=decoding)


def load_items(
    directory: Path,
    data: DataConfig,
    model: ModelConfig,
    splits: dict[str, bool],
    *,
    max_new_tokens: int,
    folds: int,
    retain: bool = False,
    objective: str | None = None,
    prompts: PromptsConfig | None = None,
    without_model: bool = False,
) -> ItemSet:
    """Read an item set and check items, media, options and splits; the items are not yet in the words of a prompt.

    Args:
        splits: the splits a job needs, and whether each must be labelled.
        max_new_tokens: length limit of generated answers, which every option must fit.
        folds: of clips, in which probes are fitted.
        retain: whether the train split must hold retain items.
        objective: what the train items are for, or None.
        prompts: the prompts that the items must be askable in; None: their own.
        without_model: leave out what only the model's processor can tell, which is not there.

    Raises:
        ValueError: all problems of all checks together.
    """
    problems, prompts = Problems(f"the item set {directory}"), prompts or PromptsConfig()
    plain = read_data(directory, data, problems)
    items = in_order(plain, data, prompts, problems)
    if not len(problems):  # else a twin may be missing for no fault of its own
        check_twins(items, problems)
    check_prompts(prompts, model, problems)
    asked = {name: reword(items, name, prompts, problems) for name in prompts.names}
    for name, worded in asked.items():
        check_told_apart(worded, problems, None if name == prompts.asked else name)
    seen = survey(items)
    found = seen.faults
    check_media_apart(plain, found, problems)  # shuffled options would hide a question that is asked twice
    items = replace(items, notes=(*items.notes, *check_clips_apart(plain, found, problems)))
    try:
        processor = None if without_model else load_processor(model)
    except ValueError as error:
        problems.add(str(error))
        processor = None
    if processor is not None:
        for name, worded in asked.items():
            limit = prompts.limit(name, max_new_tokens)
            key = "observe.max_new_tokens" if limit == max_new_tokens else "prompts.max_new_tokens"
            check_options(worded, processor, limit, problems, key=key, prompt=None if name == prompts.asked else name)
        before = len(problems)
        check_kinds(items, processor, problems)
        found = too_long(items, processor, seen.sizes) | found
        if len(problems) == before:  # else no prompt can be made
            found |= unfit(items, model, processor, {entry: size for entry, size in seen.sizes.items() if entry not in found})
    if data.on_error == "skip":
        items = without(items, found, problems)
    else:
        tell(items, found, problems)
    check_splits_filled(items, splits, folds, problems)
    if retain and not items.select(split="train", purpose="retain").items:
        problems.add(
            f"{items.where}: split 'train' has no items with purpose 'retain'; add some or set train.retain to 0 (tables, IMAVB and AVHBench have none)"
        )
    if objective is not None and needs_reading(objective):
        check_expressible(items, problems)
    behind = None if processor is None else left_out_of_prompts(processor)
    if objective in BY_TRL:
        check_taken(asked[prompts.asked], objective, BY_TRL[objective], problems)
        if behind:
            problems.add(f"objective {objective}: TRL makes its own prompts, and {behind}")
    problems.raise_if_any()
    for line in (*items.notes, *([behind] if behind else []), *(f"left out: item {ident!r}: {fault}" for ident, fault in items.skipped)):
        say(line)
    return items


def check_expressible(items: ItemSet, problems: Problems) -> None:
    """Add train items whose options all express one concept: whatever is read of them, no answer could tell."""
    lone = [i for i in items.select(split="train", purpose="gap") if len({o.concept for o in i.options}) < 2]
    if lone:
        problems.add(
            f"{items.where}: the options of {len(lone)} train items express one concept alone, e.g. {lone[0].id!r}: {lone[0].options[0].concept!r}; "
            "give them an option for another concept, or leave them out"
        )


def in_order(items: ItemSet, data: DataConfig, prompts: PromptsConfig, problems: Problems) -> ItemSet:
    """The items with their options in the order that the configuration asks for."""
    if not data.shuffle_options:
        return items
    shown = any(name not in WORDINGS or name == "own" for name in prompts.names)
    return shuffle_options(items, data.split_seed, problems, shown=shown)


def check_prompts(prompts: PromptsConfig, model: ModelConfig, problems: Problems) -> None:
    """Add to ``problems`` a matching function that cannot be had, and prompts in words that a shipped model never saw."""
    try:
        prompts.matching("own")
    except ValueError as error:
        problems.add(str(error))
    foreign = [name for name in prompts.names if name in WORDINGS and name != "own"]
    if model.path in SHIPPED and foreign:
        problems.add(
            f"prompts {foreign}: the model {model.path!r} knows the words of its own questions and no others; ask it in own, "
            "gapclose.digits.wordings:check or gapclose.digits.wordings:rephrased"
        )


def ask(items: ItemSet, name: str, prompts: PromptsConfig) -> ItemSet:
    """The items in the words of a prompt.

    Raises:
        ValueError: when an item cannot be asked so.
    """
    problems = Problems(f"the item set {items.root} in the prompt {name!r}")
    worded = reword(items, name, prompts, problems)
    problems.raise_if_any()
    return worded


def is_for_closing(config: Config) -> bool:
    """Whether a set has items to train on or to validate with; without either it is there to be measured."""
    if config.data.path == "digits":
        return True
    items = read_data(Path(config.data.path), config.data, Problems("the item set"))
    return not items.items or any(i.split in ("train", "val") for i in items)


def prepare_items(config: Config, *, closing: bool, without_model: bool = False) -> ItemSet:
    """The items of a run in the words of its own prompt; as :func:`prepare_plain`, otherwise."""
    return ask(prepare_plain(config, closing=closing, without_model=without_model), config.prompts.asked, config.prompts)


def prepare_plain(
    config: Config, *, closing: bool, alone: Callable[[Callable[[], None]], None] = lambda write: write(), without_model: bool = False
) -> ItemSet:
    """Make the embedded world when it is asked for, then read and check the items, which stay in the data's own words.

    Args:
        alone: has one process of a launch write while the others wait.
        without_model: leave out what only the model's processor can tell, which is not there.

    Raises:
        ValueError: with every problem of the set.
    """
    directory = Path(config.data.path)
    if config.data.path == "digits":
        from gapclose.digits.world import write

        kind = ("" if config.data.sound else "-images") + (f"-degraded{config.data.degraded:g}" if config.data.degraded else "")
        directory = Path(config.run_dir) / f"data-seed{config.seed}{kind}"

        def make() -> None:
            if not (directory / "set.json").is_file():
                shutil.rmtree(directory, ignore_errors=True)
                write(directory, seed=config.seed, degraded=config.data.degraded, sound=config.data.sound)

        alone(make)
    splits = CLOSE_SPLITS if closing else MEASURE_SPLITS
    retain = closing and config.train.retain > 0
    limits: dict[str, Any] = {"without_model": without_model, "max_new_tokens": config.observe.max_new_tokens, "folds": config.probe.folds}
    objective = config.objective if closing else None
    loaded = load_items(directory, config.data, config.model, splits, **limits, retain=retain, objective=objective, prompts=config.prompts)
    items = relabel(loaded, config.labelling, config.seed)
    problems = Problems(f"the item set {directory} with the labels that `labelling` leaves")
    check_splits_filled(items, splits, config.probe.folds, problems)
    if closing:
        check_trainable(config, problems)
        if config.objective == "grpo" and (n := len(items.select(split="train", purpose="gap"))) < (
            asked := config.grpo.prompts(config.train)
        ):
            problems.add(
                f"objective grpo asks {asked} prompts a step, and split 'train' has {n} gap items; lower train.global_batch_size, or raise "
                "grpo.num_generations"
            )
    problems.raise_if_any()
    return items


def check_trainable(config: Config, problems: Problems) -> None:
    """Add to ``problems`` a precision that cannot be trained in."""
    if config.model.dtype == "float16":
        problems.add("model.dtype float16 cannot be trained without a loss scaler; choose bfloat16 or float32")


def refuse_other_items(items: ItemSet, path: Path) -> str:
    """Check that the run whose items are remembered at ``path``, if any, is about these; returns their fingerprint.

    Raises:
        ValueError: when the run was started on others; its checkpoints and records would not fit.
    """
    now = items.fingerprint(labels=True)
    if path.is_file() and (before := read_json(path, "fingerprint")["fingerprint"]) != now:
        raise ValueError(
            f"{path.parent} holds a run on items {before}, and {items.root} now holds {now}: items, media or labels have changed. "
            "Give this run another directory (--run_dir), or delete that one."
        )
    return now


def bind_items(items: ItemSet, path: Path) -> None:
    """Remember which items, media and labels a run is about, unless :func:`refuse_other_items` refuses."""
    found = {"root": str(items.root), "fingerprint": refuse_other_items(items, path)}
    left_out = {"skipped": [{"item": i, "fault": fault} for i, fault in items.skipped], "notes": list(items.notes)}
    orders = {"option_order": items.orders} if items.orders else {}
    write_json(path, {**found, "items": len(items), **left_out, **orders})


def unnamed(items: ItemSet, plain: ItemSet, config: Config) -> list[str]:
    """A line for the options that prompts do not name: a warning, but of a shipped model with the set it was trained on, a note.

    Args:
        items: in the words of the run's own prompt. plain: the same in the data's own.
    """
    found, prompts = list[str](), config.prompts
    for name in prompts.names:
        worded = items if name == prompts.asked else ask(plain.select(split="test", purpose="gap"), name, prompts)
        found += unnamed_options([i for i in worded if i.purpose != "retain"], name)
    if config.model.path in SHIPPED and items.name == "digits":
        return [f"note: {line}; the shipped models were trained to answer so" for line in found]
    remedy = "list the options in the prompt, choose prompts.asked paper, or give the items a `stem`"
    return [f"warning: {line}; a model that was not trained to answer so cannot know that it may: {remedy}" for line in found]


def doubts(items: ItemSet) -> list[str]:
    """What is no mistake, and yet will leave a measurement without a verdict."""
    found, test = [], items.select(split="test", purpose="gap")
    if not items.alarm:
        found.append("no concept is an alarm (`alarm`): rejections, false alarms and operating points are not measured, only the concept")
    for modality in sorted(set(test.modalities.tolist())):
        concepts = {c: len({i.clip for i in test if i.modality == modality and i.concept == c}) for c in items.concepts}
        few = {c: n for c, n in concepts.items() if 0 < n < LEAST_CLIPS}
        if few:
            found.append(f"test has {few} clips of these concepts in {modality}; below {LEAST_CLIPS} the verdict is `too few clips`")
    return found


def lacking_here(config: Config) -> list[str]:
    """What a run with this configuration needs and this machine lacks; a configuration may be checked where it will not run."""
    from gapclose.export.push import check_push

    checks: list[Callable[[], object]] = [lambda: refuse_quantisation(config.model.quantisation)]
    checks += [check_push] if config.export.push else []
    found = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            found.append(f"this machine cannot run it: {error}")
    return found


def print_histogram(items: ItemSet) -> None:
    """A table of splits x purposes: clips, items, labelled items, and items per concept."""
    out = f" ({len(items.skipped)} left out)" if items.skipped else ""
    title = f"{items.name}: {len(items)} items{out}, {len({i.clip for i in items})} clips, alarm concepts {list(items.alarm)}"
    table = Table(title=title)
    words = ("split", "purpose", "modality")
    add_columns(table, (*words, "clips", "items", "labelled", *items.concepts), words)
    groups = Counter((i.split, i.purpose, i.modality) for i in items)
    for split, purpose, modality in sorted(groups):
        members = [i for i in items if (i.split, i.purpose, i.modality) == (split, purpose, modality)]
        concepts = Counter(i.concept for i in members if i.concept)
        counts = (
            len({i.clip for i in members}),
            len(members),
            sum(i.gold is not None for i in members),
            *(concepts[c] for c in items.concepts),
        )
        table.add_row(split, purpose, modality, *map(str, counts))
    wide_console().print(table)
