"""The command ``gapclose ask``: the action of a model behind an API. It has no reading, and so no gap."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gapclose.core.errors import ItemError
from gapclose.core.files import near_sibling, write_text
from gapclose.core.imports import require
from gapclose.core.results import Result
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item
from gapclose.data.load import load_items
from gapclose.data.option_shuffle import reordered
from gapclose.evaluation.asked_answers import AskedFigures, judge
from gapclose.evaluation.summary_text import show
from gapclose.metrics.config import GapConfig
from gapclose.pipeline.items import run_items
from gapclose.pipeline.run_model import run_config
from gapclose.report.asked_models import FILE
from gapclose.report.console import print_sentence, wide_console
from gapclose.report.tables import print_table

NO_GAP = "This model was only asked. Its residual stream was not seen, so there is no reading and no gap."
AGAIN = " (options reversed)"
"""marks the second time that a question is asked"""
CHARACTERS = 4
"""of text for one token, roughly"""


@dataclass(frozen=True, kw_only=True)
class AskedModel(Result):
    """The answers of a model that was asked."""

    model: str
    items: str
    fingerprint: str
    """of the whole set, with labels, as a run has it in its ``items.json``"""
    split: str
    figures: AskedFigures
    unanswered: dict[str, int]
    """reason -> number of requests"""
    tokens: int
    """the most that an answer may have"""
    cut_off: int
    """answers that reached it before any text"""
    usage: dict[str, Any]
    """tokens by model, and dollars where a price is known"""
    log: str
    """inspect's log"""
    questions: list[dict[str, Any]]
    """id, concept, answer, and answer to the reverse order"""
    note: str = NO_GAP


def ask(args: argparse.Namespace) -> None:
    """Ask a model every question of an item set, in both orders of options, and judge its answers.

    Args:
        args: of :func:`gapclose.pipeline.command_arguments.ask_arguments`.

    Raises:
        ValueError: for arguments, items or a model that cannot be used.
    """
    for module in ("inspect_ai", "openai"):
        require(module, "api", "gapclose ask")
    from gapclose.pipeline.ask_provider import ask_questions

    if (args.out / "gap.jsonl").is_file():
        raise ValueError(f"--out {args.out} holds a run; give the answers a directory of their own")
    whole = _questions(args)
    items = whole.select(split=args.split, purpose="gap")
    items = replace(items, items=tuple(i for i in items if i.gold is not None)[: args.limit])
    if not len(items):
        raise ValueError(f"{whole.root}: there is no labelled question of split {args.split!r}")
    other = {i.id: turned for i in items if (turned := _reversed(i))}
    questions = [*((i.id, i) for i in items), *((ident + AGAIN, i) for ident, i in other.items())]
    _print_size([i for _, i in questions], args.tokens, args.price)
    args.out.mkdir(parents=True, exist_ok=True)
    asked = ask_questions(
        questions, items.root, model=args.model, folder=args.out, max_tokens=args.tokens, connections=args.connections,
        logprobs=not args.without_logprobs, cache=args.cache, price=args.price,
    )  # fmt: skip
    kept = replace(items, items=tuple(i for i in items if i.id in asked.answers))
    unanswered = Counter(asked.faults.values())
    if not len(kept):
        raise ValueError(
            f"{args.model} answered none of {len(questions)} questions: {unanswered.most_common(1)[0][0]}; inspect's log: {asked.log}"
        )
    second = {
        ident: (turned, asked.answers[ident + AGAIN])
        for ident, turned in other.items()
        if ident in asked.answers and ident + AGAIN in asked.answers
    }
    defaults = GapConfig()
    found = AskedModel(
        model=args.model,
        items=items.name,
        fingerprint=whole.fingerprint(labels=True),
        split=args.split,
        figures=judge(kept, [asked.answers[i.id] for i in kept], second, replicates=defaults.replicates, seed=0),
        unanswered=dict(unanswered),
        tokens=args.tokens,
        cut_off=asked.cut_off,
        usage=dict(asked.usage),
        log=asked.log,
        questions=[
            {
                "id": i.id,
                "concept": i.concept,
                "answer": asked.answers[i.id].text,
                "reversed": second[i.id][1].text if i.id in second else None,
            }
            for i in kept
        ],
    )
    path = args.out / FILE
    write_text(path, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
    print_asked(found)
    print(f"answers: {path}; beside a run: gapclose report RUN {args.out}")


def _questions(args: argparse.Namespace) -> ItemSet:
    """The items of ``--run`` as the run asks them, or those of ``--items`` as they stand there."""
    if args.run is not None:
        return run_items(run_config(args.run))
    if not args.items.is_dir():
        raise ValueError(f"{args.items}: no such item set{near_sibling(args.items)}")
    return load_items(args.items)


def _reversed(item: Item) -> Item | None:
    """The item with its options in the reverse order; None where its text does not list them, or cannot be written anew."""
    try:
        turned = reordered(item, range(len(item.options))[::-1], shown=True)
    except ItemError:
        return None
    return turned if turned.messages != item.messages else None


def _print_size(items: Sequence[Item], tokens: int, price: Sequence[float] | None) -> None:
    """Print what is about to be asked, and what its text and its answers cost at most."""
    media, text = Counter(kind for item in items for kind, _ in item.media), sum(len(i.text) for i in items) // CHARACTERS
    words = ", ".join(f"{count} of {kind}" for kind, count in sorted(media.items())) or "none"
    print(f"{len(items)} requests: about {text:,} tokens of text, media: {words}; answers of at most {tokens} tokens", flush=True)
    if price is not None:
        sent, written = price[0] * text / 1e6, price[1] * tokens * len(items) / 1e6
        print(f"about ${sent:.4f} for the text, at most ${written:.4f} for the answers; what media cost, the provider counts", flush=True)


def print_asked(found: AskedModel) -> None:
    """Print figures, unanswered questions and usage, in 80 columns."""
    console, of = wide_console(), found.figures
    title = f"{found.model}: {of.items} items, {of.clips} clips, 95 % clip-bootstrap intervals"
    names = {
        "balanced": "action, balanced", "option_balanced": "options right, balanced", "standard_accuracy": "standard accuracy",
        "rejection": "rejection rate", "false_alarm": "false alarms", "auroc": "AUROC", "dprime": "d'", "criterion": "criterion",
    }  # fmt: skip
    rows = [(shown, show(of.action[name])) for name, shown in names.items()]
    rows += [("answers that match an option", show(of.parse_rate)), (f"flips in the reverse order, of {of.compared}", show(of.flips))]
    print_table(console, title, ["figure", "value"], rows, words=["figure"])
    print(f"judged by the {of.by} of the {'options' if of.by == 'scores' else 'answers'}")
    if of.compared < of.reordered:
        print_sentence(
            console,
            f"Of {of.reordered} questions asked in both orders, {of.reordered - of.compared} have an answer that names no option; no flip is counted there.",
        )
    if found.cut_off:
        print_sentence(
            console,
            f"{found.cut_off} answers ended at the limit of {found.tokens} tokens (--tokens) before a word was written. They count as answers that "
            "name no option. A model that reasons first needs a higher limit.",
        )
    if found.unanswered:
        print_table(
            console,
            "requests without an answer",
            ["number", "reason"],
            [(str(n), why) for why, n in found.unanswered.items()],
            words=["reason"],
        )
    for name, used in found.usage.items():
        cost = f", ${used['total_cost']:.4f}" if used.get("total_cost") is not None else ", no price known"
        sent = sum(used.get(key) or 0 for key in ("input_tokens", "input_tokens_cache_read", "input_tokens_cache_write"))
        print(f"{name}: {sent:,} tokens in, {used.get('output_tokens', 0):,} out{cost}")
    print_sentence(console, found.note)
