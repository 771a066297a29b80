"""Tables, warnings and notes of `gapclose validate` about items and configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from gapclose.data.item_set import ItemSet
from gapclose.data.prompt_templates import apply_prompt
from gapclose.data.question_text import unnamed_options
from gapclose.evaluation.controls.text_leak import Leak
from gapclose.evaluation.summary_text import show
from gapclose.metrics.verdict import LEAST_CLIPS
from gapclose.models.architecture import dtype_of, read_architecture
from gapclose.models.config import SHIPPED
from gapclose.models.quantization import refuse_quantisation
from gapclose.pipeline.config import Config
from gapclose.report.console import wide_console
from gapclose.report.tables import print_table

LEAST_RESTRAINED = 0.1
"""share of the retention items of train that :func:`no_objection_kept` wants"""
EMULATED = (
    "the model computes in bfloat16, and this processor has no instructions for it (avx512_bf16, amx_bf16): they are emulated, and a forward of "
    "a large model takes minutes; give --model.dtype float32, which takes twice the memory"
)


def print_leak(leaks: list[Leak]) -> list[str]:
    """Print a row per modality; return a warning for each one whose text predicts the concept."""
    if not leaks:
        return []
    title = "what the text alone gives away: TF-IDF and logistic regression, out of fold by clip, labelled gap items"
    rows = [[of.modality, str(of.n_clips), str(of.n_items), show(of.balanced.to_dict()), f"{of.chance:.3f}"] for of in leaks]
    print_table(wide_console(), title, ("modality", "clips", "items", "text alone, balanced", "chance"), rows, words=("modality",))
    return [
        f"the text alone gives the right concept of {leak.modality} away: {show(leak.balanced.to_dict())} balanced, chance {leak.chance:.3f}; a "
        "reading must beat that to be called real. Look for words that true and false questions do not share, or ask each question in both"
        for leak in leaks
        if leak.above
    ]


def unnamed(items: ItemSet, plain: ItemSet, config: Config) -> list[str]:
    """Return warnings about options that prompts do not name; notes for a shipped model on digits.

    Args:
        items: items under the run's own prompt template.
        plain: the same items without a prompt template.
    """
    found, prompts = list[str](), config.prompts
    for name in prompts.names:
        worded = items if name == prompts.asked else apply_prompt(plain.select(split="test", purpose="gap"), name, prompts)
        found += unnamed_options([i for i in worded if i.purpose != "retain"], name)
    if config.model.path in SHIPPED and items.name == "digits":
        return [f"note: {line}; the shipped models were trained to answer so" for line in found]
    remedy = "list the options in the prompt, choose prompts.asked paper, or give the items a `stem`"
    return [f"warning: {line}; a model that was not trained to answer so cannot know that it may: {remedy}" for line in found]


def warnings_for(items: ItemSet) -> list[str]:
    """Return warnings about valid items that leave a measurement without figures or a verdict."""
    found, test = [], items.select(split="test", purpose="gap")
    if not items.alarm:
        found.append("no concept is an alarm (`alarm`): rejections, false alarms and operating points are not measured, only the concept")
    for modality in sorted(set(test.modalities.tolist())):
        concepts = {c: len({i.clip for i in test if i.modality == modality and i.concept == c}) for c in items.concepts}
        few = {c: n for c, n in concepts.items() if 0 < n < LEAST_CLIPS}
        if few:
            found.append(f"test has {few} clips of these concepts in {modality}; below {LEAST_CLIPS} the verdict is `too few clips`")
    return found


def no_objection_kept(items: ItemSet) -> list[str]:
    """Return a warning where fewer than a tenth of the retention items of train could be answered, wrongly, by objecting.

    Without such items a model may object to every prompt with that instruction: on *people* it objected to questions of all types
    that were not trained on (docs/start/pretrained.md). The words of the options count, and the items are without a prompt template.
    """
    train, kept = items.select(split="train", purpose="gap"), items.select(split="train", purpose="retain")
    objecting = sorted({o.text for i in train for o in i.options if o.concept in items.alarm})
    restrained = [i for i in kept if i.concept not in items.alarm and any(o.text in objecting for o in i.options)]
    if not objecting or len(restrained) >= LEAST_RESTRAINED * len(kept):
        return []
    return [
        f"{len(restrained)} of {len(kept)} retention items of train have an objecting option ({', '.join(objecting[:4])}) that is not right: a "
        "model may learn to object to every question of another type; add questions without a false premise, with the same words on how to "
        "object and the same option (docs/how-to/data.md)"
    ]


def missing_on_this_machine(config: Config) -> list[str]:
    """Return the requirements that this machine does not meet; the run may use another one."""
    from gapclose.export.hub import check_push

    checks: list[Callable[[], object]] = [lambda: refuse_quantisation(config.model.quantisation)]
    checks += [check_push] if config.export.push else []
    found = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            found.append(f"this machine cannot run it: {error}")
    return found


def slow_precision(config: Config) -> list[str]:
    """Return a warning where the model would compute in bfloat16 on a processor that emulates it."""
    if torch.cuda.is_available() or has_bfloat16() is not False:
        return []
    try:
        dtype = dtype_of(read_architecture(config.model, config.model.architecture), config.model)
    except ValueError:
        return []
    return [EMULATED] if dtype == torch.bfloat16 else []


def has_bfloat16(file: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor computes in bfloat16; None where that cannot be told."""
    if not file.is_file():
        return None
    words = set(file.read_text(encoding="utf-8", errors="replace").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})  # Intel and AMD; Arm


def print_histogram(items: ItemSet) -> None:
    """Print clips, items, labelled items and items per concept by split, purpose and modality."""
    out = f" ({len(items.skipped)} left out)" if items.skipped else ""
    title = f"{items.name}: {len(items)} items{out}, {len({i.clip for i in items})} clips, alarm concepts {list(items.alarm)}"
    words, rows = ("split", "purpose", "modality"), []
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
        rows.append([split, purpose, modality, *map(str, counts)])
    print_table(wide_console(), title, (*words, "clips", "items", "labelled", *items.concepts), rows, words=words, keys=len(words))
