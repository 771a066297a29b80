"""Results of a run in sentences, for console, page and model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gapclose.metrics.judgeable import advice
from gapclose.metrics.next_steps import CALLBACK_STEPS, FAINT, FAINT_STEP, NEXT_STEPS, OTHER_TYPES_STEP
from gapclose.metrics.status import STATES
from gapclose.metrics.verdict import VERDICTS
from gapclose.probes.posterior import Point


def show(interval: dict[str, float | None] | None, digits: int = 3) -> str:
    """Format an interval as ``0.812 [0.790, 0.834]``, or as a dash if undefined."""
    if interval is None or interval["value"] is None:
        return "-"
    value, lower, upper = (None if x is None else f"{round(x, digits) + 0:.{digits}f}" for x in interval.values())  # + 0: no -0.00
    return f"{value}" if lower is None else f"{value} [{lower}, {upper}]"


def turned(interval: dict[str, float | None]) -> dict[str, float | None]:
    """Return the interval of the negated figure."""
    ends = {"value": interval["value"], "lower": interval["upper"], "upper": interval["lower"]}
    return {name: None if end is None else -end for name, end in ends.items()}


def budget_name(point: dict[str, Any]) -> str:
    """Return the loss of standard accuracy that was allowed when a setting was chosen, in
    points."""
    return "any" if point["budget"] is None else f"{100 * point['budget']:g}"


def claims(summary: dict[str, Any]) -> list[str]:
    """Return sentences on verdicts, gate, forced training, stops, rounds and prompts."""
    lines = [f"{of['word']} - {of['sentence']}" for of in summary["verdicts"].values()]
    if gate := summary["gate"]:
        words = ", ".join(f"{name} {of['word']}" for name, of in gate["verdicts"].items())
        lines.append(f"whether to train was decided on val ({gate['n_clips']} clips): {words}")
    if summary["forced"]:
        lines.append(f"forced: trained on the reading of {' and '.join(summary['forced'])} although it was not shown to be real")
    lines += [f"stopped by the guard {name}: {reason}" for name, reason in summary["stopped"].items()]
    lines += round_words(summary["rounds"])
    lines += prompt_words(summary["prompts"])
    return lines


def caveats(summary: Mapping[str, Any]) -> list[str]:
    """Return warnings about a trained run, in sentences."""
    unfinished = [f"not finished: {summary['unfinished']}"] if summary.get("unfinished") else []
    other = []
    if (of := summary.get("transfer")) and of.get("beyond_budget"):
        other = [
            f"on held-out question types the adapted model rejects {show(of['false_alarm'])} of the true premises, and standard accuracy fell by "
            f"{show(of['standard_drop'])}, beyond gap.standard_budget: do not use it on questions of types that it was not trained on"
        ]
    return [*unfinished, *unimproved_words(summary.get("unimproved")), *other, *target_words(summary.get("targets", []))]


def verdict(summary: dict[str, Any]) -> list[str]:
    """Summarise the figures in sentences."""
    reading, text = summary["reading"], summary["text_only"]["balanced"]
    lines = [
        f"reading: {show(reading['balanced'])} balanced, AUROC {show(reading['auroc'])}, from {layer_words(reading['layers'])} ({reading['family']}); "
        f"the text alone gives {show(text)}, the majority class {show(summary['majority']['balanced'])}"
    ]
    if summary["closure"] is not None:
        lines.append(
            f"closure: {show(summary['closure'])} (reading changed by {show(summary['reading_change'])}); "
            f"standard accuracy fell by {show(summary['standard_drop'])}"
            + (f", retention by {show(summary['retention_drop'])}; " if summary["retention_drop"] else "; ")
            + f"{trained_words(summary)}; "
            f"residuals under the frozen probe moved by {summary['frozen_probe_shift']:.3g}"
        )
        if beyond := summary.get("beyond_reading"):
            lines.append(f"action minus the base model's reading: {show(beyond)}")
        if summary["transfer"] and summary["transfer"]["closure"]:
            before, after, reading, closed = (show(summary["transfer"][k]) for k in ("base", "adapted", "reading", "closure"))
            lines.append(
                f"held-out question types: action {before}, after training {after}; the base model's reading {reading}; closure {closed}; "
                f"standard accuracy fell by {show(summary['transfer']['standard_drop'])}"
            )
    return [*lines, *caveats(summary), state_line(summary)]


def trained_words(summary: Mapping[str, Any]) -> str:
    """Return which model was measured last: an epoch's adapter, or a state of another training."""
    if callback := summary.get("callback"):
        return f"the model is that after step {callback['step']} of a training that GapCallback measured, epoch {summary['epoch']:g}"
    return f"the adapter is that of epoch {summary['epoch']}"


def next_steps(summary: Mapping[str, Any]) -> list[str]:
    """Return the next step for the state of a run, and one for every verdict that is not ``real``.

    Where no reading is real, the first verdict comes before a state that builds on the reading. A
    faint reading asks for another training than a strong one, which begins with labels: only a
    reading that the text explains forbids it. After *not judgeable* it follows from the faults.
    """
    of_state = (CALLBACK_STEPS if summary.get("callback") else NEXT_STEPS)["trained" if summary["adapted"] else "measured"][
        summary["state"]
    ]
    if summary["state"] == "not judgeable":
        of_state = acting_step(summary) or of_state
    auroc = summary["reading"]["auroc"]["value"]
    untrained = not (summary["adapted"] or summary.get("callback"))
    faint = untrained and summary["state"] in ("open", "no gap") and auroc is not None and auroc < FAINT
    labels = (summary.get("training") or {}).get("first") == "labels"
    if faint:
        of_state = FAINT_STEP
    doubted = {name: of["word"] for name, of in summary["verdicts"].items() if of["word"] in VERDICTS and of["word"] != "real"}
    steps = {word: NEXT_STEPS["verdict"][word] for word in doubted.values()}
    if "not judgeable" in steps:
        silent = [name for name, word in doubted.items() if word == "not judgeable"]
        steps["not judgeable"] = acting_step(summary, silent) or steps["not judgeable"]
    builds_on_reading = faint or summary["state"] in ("open", "closed", "learned")
    begins_with_labels = labels or (faint and "explained by text" not in steps)
    if builds_on_reading and not begins_with_labels and steps and len(doubted) == len(summary["verdicts"]):
        return list(steps.values())
    harmed = [OTHER_TYPES_STEP] if (summary.get("transfer") or {}).get("beyond_budget") else []
    return list(dict.fromkeys([*harmed, of_state, *steps.values()]))


def verdict_step(summary: Mapping[str, Any], modality: str) -> str | None:
    """Return the next step after the verdict on one modality; None for a word of another version."""
    word = summary["verdicts"][modality]["word"]
    fitting = acting_step(summary, [modality]) if word == "not judgeable" else ""
    return fitting or NEXT_STEPS["verdict"].get(word)


def acting_step(summary: Mapping[str, Any], modalities: Sequence[str] | None = None) -> str:
    """Return what to change where the base model does not answer such questions, by its faults.

    Empty where none is recorded.

    Args:
        modalities: default: all.
    """
    acting = summary.get("acting") or {}
    return advice(of["faults"] for name, of in acting.items() if (name != "all" if modalities is None else name in modalities))


def written_words(written: Mapping[str, Any]) -> list[str]:
    """Describe the examples of a modality under ``written`` in measurement.json, one line each."""
    return [f"{quoted(of)} ({about_answer(of)})" for of in written["examples"]]


def quoted(answer: Mapping[str, Any]) -> str:
    """Return a generated answer in quotes; line breaks and invisible characters as escapes."""
    return repr(answer["text"])


def about_answer(answer: Mapping[str, Any]) -> str:
    """Return the item of a generated answer, its premise, and the option that it was matched to."""
    premise = f", {answer['premise']} premise" if answer["premise"] else ""
    option = "names no option" if answer["option"] is None else f"taken for {answer['option']!r}"
    return f"{answer['id']}{premise}; {option}"


ABOUT_READING = {
    "real": "the reading is real",
    "readable without training": "the reading needs no training",
    "explained by text": "the text explains the reading",
    "not readable": "nothing is read",
    "too few clips": "too few clips to judge the reading",
    "not judgeable": "the model does not answer such questions",
}
"""word of a verdict -> its statement about a modality"""


def state_line(summary: dict[str, Any]) -> str:
    """Return the state of the run and each modality's verdict: on its reading and, if that is
    real, on the base model's gap."""
    parts = [f"state: {summary['state']} ({STATES[summary['state']]})"]
    for name, of in summary["verdicts"].items():
        gap = summary["modality"][name]["gap"]["balanced"]["base"]
        shown = gap["lower"] is not None and gap["lower"] > 0
        of_gap = f", and the base model's gap of {show(gap)} is {'shown' if shown else 'not shown'}" if of["word"] == "real" else ""
        parts.append(f"{name}: {ABOUT_READING.get(of['word'], of['word'])}{of_gap}")
    return "; ".join(parts)


def round_words(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Describe every later round of targets in ``rounds.json``, one sentence each."""
    found = []
    for of in rounds:
        gain, balanced, agrees = of["gain"], of["balanced"], of["sentinel_agrees"]
        words = (
            f"round {of['round']}: on val a probe of the adapted model ({layer_words(of['layers'])}, {of['family']}) reads {gain['value']:+.3f} "
            f"[{gain['lower']:+.3f}, {gain['upper']:+.3f}] nats an item better than the best one before, balanced {balanced['before']:.3f} -> "
            f"{balanced['now']:.3f}; of the train items {100 * of['changed']:.1f} % are read otherwise, and the base model's sentinel agrees on "
            f"{agrees['before']:.3f} -> {agrees['now']:.3f}"
        )
        if not of["helps"]:
            words += "; no better reading"
        elif not of.get("shown", True):
            words += "; within chance"
        if of.get("ended", not of["helps"]):
            words += ", so training ended"
        elif "action" in of:
            words += f"; the action on val after it {of['action']['before']['value']:.3f} -> {of['action']['now']['value']:.3f}"
        found.append(words)
    return found


def unimproved_words(found: Mapping[str, Any] | None) -> list[str]:
    """State that no epoch is better than the base model; empty if one is."""
    return [f"not better than the base model: {found['why']}"] if found else []


def target_words(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings about each round's targets: an operating point beyond its budget,
    inexpressible readings."""
    found = []
    for of in targets:
        said = [Point.of(of).words()]
        if of["not_expressible"]:
            said.append(
                f"{of['not_expressible']} train items have no option for what is read of them, and are not trained on; give every concept an option"
            )
        later = f"round {of['round']}: " if of["round"] > 1 else ""
        found += [later + words for words in said if words]
    return found


def skipped_words(count: int, prefix: str = ", ") -> str:
    """Return ``, 3 items left out`` for items with unusable media, over all splits; empty for 0."""
    return f"{prefix}{count} item{'s' * (count != 1)} left out" if count else ""


def layer_words(layers: Sequence[int]) -> str:
    """Return ``layer 6``, or ``layers 5, 6``."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def prompt_words(prompts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """State under which prompts the base model has a gap; empty if only one was measured.

    Uses the probe that was fitted under each prompt itself, if there is one.
    """
    if not prompts:
        return []
    gaps = {name: of["base"].get("within", of["base"])["gap"]["balanced"] for name, of in prompts.items()}
    above = {name: (gap["lower"] or 0) > 0 for name, gap in gaps.items()}
    shown, rest = ([prompt_name(name) for name, there in above.items() if there == wanted] for wanted in (True, False))
    words = f"prompts: the gap is shown under {len(shown)} of {len(prompts)}"
    return [words + (f" ({', '.join(shown)})" if shown else "") + (f", not under {', '.join(rest)}" if rest else "")]


def prompt_name(name: str) -> str:
    """Return the name of a prompt for tables; for a function, without its module."""
    return name.rpartition(":")[2]
