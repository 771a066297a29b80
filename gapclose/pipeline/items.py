"""Read the items of a run, check them against the model, and prepare them for a job."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gapclose.core.errors import ErrorCollector
from gapclose.core.imports import MissingPackage
from gapclose.core.logging import get_logger
from gapclose.data.answer_matching import check_told_apart
from gapclose.data.config import WORDINGS, DataConfig, PromptsConfig
from gapclose.data.generated import GENERATED, MEDIA, write_generated
from gapclose.data.item_set import ItemSet
from gapclose.data.label_budget import relabel
from gapclose.data.load import in_order, read_data
from gapclose.data.media import drop_faulty, report_faults, survey
from gapclose.data.prompt_templates import apply_prompt, apply_template
from gapclose.data.splits import check_clips_apart, check_media_apart, check_splits_filled
from gapclose.data.twins import check_twins, check_twins_differ
from gapclose.models.chat_template import left_out_of_prompts
from gapclose.models.config import SHIPPED, ModelConfig
from gapclose.models.families import part_for
from gapclose.models.input_checks import check_kinds, check_options, too_long
from gapclose.models.known_checkpoints import GRAFT
from gapclose.models.loading import load_processor
from gapclose.pipeline.config import Config
from gapclose.pipeline.media_fit import unfit
from gapclose.training.objectives import BY_TRL, needs_reading, require_trl
from gapclose.training.trl.dataset import check_supported_media

logger = get_logger(__name__)

MEASURE_SPLITS = {"fit": True, "test": True}
CLOSE_SPLITS = {"fit": True, "train": False, "val": True, "test": True}


@dataclass(frozen=True, kw_only=True)
class Given:
    """Items and model in memory that replace ``data.path`` and ``model.path``."""

    items: ItemSet
    model: Any
    """a transformers model"""
    processor: Any
    """its processor, or the tokenizer of a text-only model"""


def read_checked_items(
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
    given: Given | None = None,
) -> ItemSet:
    """Read an item set and check items, media, options and splits; apply no prompt template yet.

    Args:
        splits: the splits that a job needs, and whether each must be labelled.
        max_new_tokens: length limit of generated answers, which every option must fit.
        folds: number of folds over clips in which probes are fitted.
        retain: whether the train split must hold retention items.
        objective: training objective of the train items, or None.
        prompts: prompts that must work for the items; None: their own.
        without_model: skip the checks that need the model's processor.
        given: items and processor in memory, instead of ``directory`` and ``model``.

    Raises:
        ValueError: naming all problems of all checks.
    """
    problems, prompts = ErrorCollector(f"the item set {given.items.name if given else directory}"), prompts or PromptsConfig()
    plain = given.items if given else read_data(directory, data, problems)
    items = in_order(plain, data, prompts, problems)
    if not len(problems):  # otherwise another fault may be why a twin is missing
        check_twins(items, problems)
    check_prompts(prompts, model, problems)
    asked = {name: apply_template(items, name, prompts, problems) for name in prompts.names}
    for name, worded in asked.items():
        check_told_apart(worded, problems, None if name == prompts.asked else name)
    seen = survey(items)
    found = seen.faults
    check_media_apart(plain, found, problems)  # shuffled options would hide a repeated question
    items = replace(items, notes=(*items.notes, *check_clips_apart(plain, found, problems)))
    try:
        processor = None if without_model else given.processor if given else load_processor(model)
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
        if len(problems) == before and not given:  # with problems no prompt can be made; a model in memory reports its own
            found |= unfit(items, model, processor, {entry: size for entry, size in seen.sizes.items() if entry not in found})
    if data.on_error == "skip":
        items = drop_faulty(items, found, problems)
    else:
        report_faults(items, found, problems)
    check_splits_filled(items, splits, folds, problems)
    if retain and not items.select(split="train", purpose="retain").items:
        problems.add(
            f"{items.where}: split 'train' has no items with purpose 'retain'; add some or set train.retain to 0 (tables, IMAVB and AVHBench have none)"
        )
    if objective is not None and needs_reading(objective):
        check_expressible(items, problems)
    behind = None if processor is None else left_out_of_prompts(processor)
    if objective in BY_TRL:
        try:
            require_trl(objective)
        except MissingPackage as error:
            problems.add(str(error))
        check_supported_media(asked[prompts.asked], objective, BY_TRL[objective], problems)
        if behind:
            problems.add(f"objective {objective}: TRL makes its own prompts, and {behind}")
    problems.raise_if_any()
    for line in (*items.notes, *([behind] if behind else []), *(f"left out: item {ident!r}: {fault}" for ident, fault in items.skipped)):
        logger.info(line)
    return items


def check_expressible(items: ItemSet, problems: ErrorCollector) -> None:
    """Add to ``problems`` train items whose options all express one concept.

    No answer to them could show a reading.
    """
    lone = [i for i in items.select(split="train", purpose="gap") if len({o.concept for o in i.options}) < 2]
    if lone:
        problems.add(
            f"{items.where}: the options of {len(lone)} train items express one concept alone, e.g. {lone[0].id!r}: {lone[0].options[0].concept!r}; "
            "give them an option for another concept, or leave them out"
        )


def check_prompts(prompts: PromptsConfig, model: ModelConfig, problems: ErrorCollector) -> None:
    """Add to ``problems`` a matching function that cannot be loaded.

    Also add prompts on which a shipped model was not trained.
    """
    try:
        prompts.matching("own")
    except ValueError as error:
        problems.add(str(error))
    foreign = [name for name in prompts.names if name in WORDINGS and name != "own"]
    if model.path in SHIPPED and foreign:
        problems.add(
            f"prompts {foreign}: the model {model.path!r} knows the words of its own questions and no others; ask it in own, "
            "gapclose.data.digits.prompts:check or gapclose.data.digits.prompts:rephrased"
        )


def is_for_closing(config: Config) -> bool:
    """Whether a set is empty or has train items; any other set can only be measured."""
    if config.data.path in GENERATED:
        return True
    items = read_data(Path(config.data.path), config.data, ErrorCollector("the item set"))
    return not items.items or any(i.split == "train" for i in items)


def generated_directory(config: Config) -> Path:
    """Where a run keeps the set that is made for it: other settings of the set have another directory."""
    data = config.data
    kind = ("" if data.sound else "-images") + (f"-degraded{data.degraded:g}" if data.degraded else "")
    kind += "" if data.clips is None else "-clips" + "-".join(map(str, data.clips))
    return Path(config.run_dir) / f"data-seed{config.seed}{kind}"


def make_generated(data: DataConfig, directory: Path, seed: int) -> None:
    """Write the set that ``data.path`` names, unless it is there; what an interrupted start left is written again."""
    if (directory / "set.json").is_file():
        return
    shutil.rmtree(directory, ignore_errors=True)
    options = {"degraded": data.degraded, "sound": data.sound} if data.path == "digits" else {}
    write_generated(data.path, directory, seed, clips=data.clips, **options)


def refuse_without_media(config: Config) -> None:
    """Refuse a model that cannot take the media of a generated set, before the set is made.

    Raises:
        ValueError: naming the kinds of media.
    """
    processor = load_processor(config.model)
    kinds = [kind for kind in MEDIA[config.data.path] if kind != "audio" or config.data.sound]
    if missing := [kind for kind in kinds if part_for(processor, kind) is None]:
        example = f"; `python recipes/graft.py --model {config.model.path} --out {GRAFT}` adds both to a Qwen2 language model"
        raise ValueError(
            f"model.path {config.model.path!r} takes no {' and no '.join(missing)}, and the questions of data.path {config.data.path!r} "
            f"have {' and '.join(kinds)}; choose a model that takes them{example if len(missing) == len(kinds) == 2 else ''}"
        )


def prepare_items(config: Config, *, closing: bool, without_model: bool = False) -> ItemSet:
    """Return the items of :func:`prepare_plain` under the run's own prompt template."""
    return apply_prompt(prepare_plain(config, closing=closing, without_model=without_model), config.prompts.asked, config.prompts)


def run_items(config: Config, other: Path | None = None) -> ItemSet:
    """Return the items of a finished run under its own prompt template, without a look at their media.

    Args:
        other: directory of another item set, which is read with the run's settings (splits, order of
            options, prompt).

    Raises:
        ValueError: naming every problem of the set.
    """
    directory = other or Path(config.data.path)
    if other is None and config.data.path in GENERATED:
        directory = generated_directory(config)
        make_generated(config.data, directory, config.seed)
    problems = ErrorCollector(f"the item set {directory}")
    items = in_order(read_data(directory, config.data, problems), config.data, config.prompts, problems)
    problems.raise_if_any()
    return apply_prompt(items, config.prompts.asked, config.prompts)


def prepare_plain(
    config: Config,
    *,
    closing: bool,
    alone: Callable[[Callable[[], None]], None] = lambda write: write(),
    without_model: bool = False,
    given: Given | None = None,
    splits: dict[str, bool] | None = None,
) -> ItemSet:
    """Read, check and relabel the items of a run, without a prompt template.

    A set that ``data.path`` names as generated is written first.

    Args:
        alone: runs a function in one process of a launch while the others wait.
        without_model: skip the checks that need the model's processor.
        given: items and processor that are already in memory.
        splits: split -> whether it must be labelled; None: what measuring or closing needs.

    Raises:
        ValueError: naming every problem of the set.
    """
    directory = Path(config.data.path)
    if config.data.path in GENERATED and not given:
        directory = generated_directory(config)
        if not without_model:
            refuse_without_media(config)
        alone(lambda: make_generated(config.data, directory, config.seed))
    splits = splits or (CLOSE_SPLITS if closing else MEASURE_SPLITS)
    retain = closing and config.train.retain > 0
    limits: dict[str, Any] = {
        "without_model": without_model,
        "given": given,
        "max_new_tokens": config.observe.max_new_tokens,
        "folds": config.probe.folds,
    }
    objective = config.objective if closing else None
    loaded = read_checked_items(
        directory, config.data, config.model, splits, **limits, retain=retain, objective=objective, prompts=config.prompts
    )
    items = relabel(loaded, config.labelling, config.seed)
    problems = ErrorCollector(f"the item set {directory} with the labels that `labelling` leaves")
    check_splits_filled(items, splits, config.probe.folds, problems)
    if closing:
        if config.targets.twins:
            check_twins_differ(loaded, problems)
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


def check_trainable(config: Config, problems: ErrorCollector) -> None:
    """Add to ``problems`` a ``model.dtype`` that cannot be trained."""
    if config.model.dtype == "float16":
        problems.add("model.dtype float16 cannot be trained without a loss scaler; choose bfloat16 or float32")
