"""Models that ``gapclose ask`` has asked, beside the runs of a comparison: their answers, without a reading and without a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gapclose.core.files import read_json
from gapclose.evaluation.summary_text import show

FILE = "asked.json"
"""what ``gapclose ask`` writes into its directory"""
ANSWERS = ("model", "by text", "by scores", "AUROC", "standard accuracy", "rejection rate", "false alarms", "clips")
"""columns of the table of answers; the first two numbers are balanced accuracies"""
ANSWERS_TITLE = "answers: balanced accuracy by the text and by the scores of the options"
OTHERS = ("auroc", "standard_accuracy", "rejection", "false_alarm")
"""the other figures of that table, as they are named in the JSON files"""


def is_asked(directory: Path) -> bool:
    """Whether a directory holds answers of ``gapclose ask`` and no run."""
    return (directory / FILE).is_file() and not (directory / "gap.jsonl").is_file()


def read_asked(directory: Path) -> dict[str, Any]:
    """Return an asked model in the place of a run: its ``state`` says why figures are missing, ``asked`` holds them.

    Raises:
        ValueError: when its file cannot be read.
    """
    path = directory / FILE
    found = read_json(path, "model", "items", "fingerprint", "split", "figures", "unanswered")
    try:
        figures = found["figures"]
        action = {name: dict(figures["action"][name]) for name in ("balanced", *OTHERS[1:])} | {"auroc": figures["action"]["auroc"]}
        told = {"by": figures["by"], "action": action, "unanswered": sum(found["unanswered"].values())}
        state = f"only asked, judged by {told['by']}: no residual stream, so no reading and no gap"
        counts = {"n_clips": int(figures["clips"]), "n_items": int(figures["items"]), "n_skipped": 0, "seed": None}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: lacks what `gapclose ask` writes ({error}); run that command again") from error
    return {
        "run": str(directory),
        "state": state,
        **counts,
        "asked": {**{key: found[key] for key in ("model", "items", "fingerprint", "split")}, **told},
    }


def answer_rows(called: Sequence[str], compared: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the answers of every model as rows of :data:`ANSWERS`; of a run those of the base and of the adapted model.

    Args:
        called: a name for each.
        compared: runs and asked models.
    """
    rows = []
    for name, of in zip(called, compared, strict=True):
        if "asked" in of:
            action, by = of["asked"]["action"], of["asked"]["by"]
            sides = [(f"{name}, only asked", [action["balanced"] if by == kind else None for kind in ("text", "scores")], action)]
        else:
            found = [(side, of[side]) for side in ("base", "adapted") if of[side] is not None]
            sides = [(f"{name}, {side}", [figures["generated_balanced"], figures["balanced"]], figures) for side, figures in found]
        for label, balanced, figures in sides:
            rows.append((label, *(show(i, 2) for i in [*balanced, *(figures[o] for o in OTHERS)]), str(of["n_clips"])))
    return rows


def _fingerprint(run: Mapping[str, Any]) -> str | None:
    path = Path(run["run"]) / "items.json"
    return read_json(path, "fingerprint")["fingerprint"] if path.is_file() else None


def doubts(called: Sequence[str], compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each asked model whose figures are of other questions than those of the runs."""
    measured, found = [of for of in compared if "asked" not in of], []
    for name, of in zip(called, compared, strict=True):
        if "asked" not in of:
            continue
        asked, numbers = of["asked"], sorted({(run["n_items"], run["n_clips"]) for run in measured})
        if asked["split"] != "test":
            found.append(f"{name} was asked the split {asked['split']!r}, and not test")
        if others := [f"{items} items of {clips} clips" for items, clips in numbers if (items, clips) != (of["n_items"], of["n_clips"])]:
            lost = f", {asked['unanswered']} requests without an answer" if asked["unanswered"] else ""
            found.append(
                f"{name} has answered {of['n_items']} items of {of['n_clips']} clips{lost}; the runs measured {' and '.join(others)}. "
                "Its figures are of other questions"
            )
        elif strangers := [run["run"] for run in measured if _fingerprint(run) not in (None, asked["fingerprint"])]:
            found.append(f"{name} was asked another item set, or with other labels or prompts, than {' and '.join(strangers)} measured")
    return found
