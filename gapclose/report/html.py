"""``report.html``: the measurements of a run as one self-contained file.

All figures come from the run directory. ``gap.jsonl`` is required; ``measurement.json``,
``config.yaml``, ``environment.json`` and the fingerprints are optional. A section without numbers
is left out. Texts of items are escaped, and the page's policy forbids scripts and network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gapclose.core.files import read_json, read_versioned, write_text
from gapclose.evaluation.run_records import layers_of, read_records, record_of, summarise
from gapclose.evaluation.summary_text import (
    about_answer,
    layer_words,
    next_steps,
    prompt_name,
    prompt_words,
    quoted,
    round_words,
    skipped_words,
    turned,
    verdict,
    verdict_step,
)
from gapclose.metrics.status import STATES
from gapclose.metrics.verdict import VERDICTS
from gapclose.report import curves, figures
from gapclose.report.baselines import best_point, setting_words, standard_budget
from gapclose.report.change import KINDS, compared, counts_line, premise_rows, ranking_rows, read_change, without_change
from gapclose.report.console import ADAPTED_COLUMNS, GAPS, PROMPT_COLUMNS, TEST_ROWS, figure
from gapclose.report.control_rows import controls
from gapclose.report.media_embed import Embedder
from gapclose.report.provenance import environment, fingerprints, settings
from gapclose.report.style import why_no_figures
from gapclose.report.templating import render

MEASUREMENT_VERSION = 1
THUMBNAILS = 4  # per item
MEDIA_BYTES = 2_000_000
"""of all media on a page, as URIs"""


def write_page(directory: Path, path: Path | None = None) -> Path:
    """Write the page of a run, by default as ``report.html`` into its directory.

    Raises:
        ValueError: when the run has not measured its base model, or its measurement.json has
            another version.
    """
    path = directory / "report.html" if path is None else path
    write_text(path, build_page(directory))
    return path


def build_page(directory: Path) -> str:
    """Return the page of one run as HTML; the same records give the same bytes."""
    summary, records, measured = summarise(directory), read_records(directory), read_measurement(directory)
    base, change = record_of(directory, "base/test"), read_change(directory, summary)
    assert base is not None
    sides, probe, budget = compared(measured, change), read_json(directory / "probes" / "frozen.json"), standard_budget(directory)
    return render(
        "report.html.j2",
        change=change,
        kinds=KINDS,
        sides=sides,
        turned_answers=counts_line(change) if change else without_change(directory, summary),
        premise_rows=premise_rows(change) if change else [],
        ranking_rows=ranking_rows(change) if change else [],
        examples={
            kind: _with_media(directory, change, items, MEDIA_BYTES // len(KINDS)) for kind, items in change.get("examples", {}).items()
        },
        budget=budget,
        best_baselines=_best_baselines(measured, budget),
        next_steps=next_steps(summary),
        after_verdict={modality: verdict_step(summary, modality) for modality in summary["verdicts"]},
        written={
            modality: [(quoted(answer), about_answer(answer)) for answer in of["examples"]]
            for modality, of in (measured.get("written") or {}).items()
        },
        name=directory.resolve().name,
        out=skipped_words(summary["n_skipped"]),
        concepts=measured.get("concepts") or probe.get("concepts"),
        s=summary,
        m=measured,
        headline=headline(summary),
        sentences=verdict(summary),
        rounds=round_words(summary["rounds"]),
        prompt_tables=_prompt_tables(summary["prompts"]),
        prompt_words=prompt_words(summary["prompts"]),
        state=STATES[summary["state"]],
        test_rows=_test_rows(summary),
        epochs=sorted((r for r in records if r["stage"].endswith("/val")), key=lambda r: r["epoch"]),
        controls=controls(summary, base, measured),
        unsaid=[] if change else _with_media(directory, measured, measured.get("known_but_unsaid") or []),
        settings=settings(directory),
        environment=environment(directory),
        fingerprints=fingerprints(directory),
        trained=summary["adapted"] and summary["adapted"] | {"gain": {"standard_accuracy": turned(summary["standard_drop"])}},
        figures=_figures(summary, records, measured, sides, probe),
        no_figures=why_no_figures(),
    )


def read_measurement(directory: Path) -> dict[str, Any]:
    """Return ``measurement.json`` of a run, or an empty dict.

    Raises:
        ValueError: when another version of gapclose wrote it.
    """
    path = directory / "measurement.json"
    remedy = "show it with the version that wrote it (environment.json), or measure again"
    return read_versioned(path, MEASUREMENT_VERSION, remedy) if path.is_file() else {}


def headline(summary: Mapping[str, Any]) -> str:
    """Return the verdict in one sentence, or in two if the model does not answer some questions."""
    reading, adapted = summary["reading"], summary["adapted"]
    sentence = (
        f"A linear probe reads the right concept at {layer_words(reading['layers'])} with a balanced accuracy of {_plain(reading['balanced'])}, "
        f"while the base model answers by it with {_plain(summary['base']['balanced'])}"
    )
    verdicts = summary["verdicts"]
    of = {word: [modality for modality, verdict in verdicts.items() if verdict["word"] == word] for word in VERDICTS}
    if silent := of["not judgeable"]:
        sentence = f"The base model does not answer {_which(silent, verdicts, 'such questions')}, so no gap is claimed there. {sentence}"
    doubted = [modality for modality, verdict in verdicts.items() if verdict["word"] not in ("real", "not judgeable")]
    if doubted:
        sentence += f"; {'' if len(doubted) == len(verdicts) else 'in ' + ' and '.join(doubted) + ' '}the gap is not shown to be real"
    if adapted:
        return f"{sentence}; after training it answers with {_plain(adapted['balanced'])}: {STATES[summary['state']]}."
    lower = summary["gap"]["balanced"]["base"]["lower"]
    if summary["state"] == "not judgeable":
        return f"{sentence}."
    return sentence + ("." if lower is None or lower > 0 else "; the interval of the gap reaches zero.")


def _which(modalities: Sequence[str], verdicts: Mapping[str, Any], everything: str) -> str:
    return everything if len(modalities) == len(verdicts) else f"questions about {' and '.join(modalities)}"


def _plain(interval: Mapping[str, Any]) -> str:
    return "unknown" if interval["value"] is None else f"{interval['value']:.2f}"


def _test_rows(summary: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (label, base, adapted) of every figure on test clips, the three gaps first."""
    adapted = summary["adapted"] or {}
    rows = [(label, summary["gap"][k]["base"], summary["gap"][k]["adapted"]) for label, k in GAPS.items()]
    rows += [(label, summary["base"][key], adapted.get(key)) for label, key in TEST_ROWS.items()]
    rows += [(f"{k} probe, balanced", summary[f"{k}_probe"]["base"], summary[f"{k}_probe"]["adapted"]) for k in ("fresh", "sentinel")]
    if summary["transfer"]:
        rows.append(("held-out question type, action", summary["transfer"]["base"], summary["transfer"]["adapted"]))
    return rows


def _prompt_tables(prompts: Mapping[str, Any]) -> list[tuple[dict[str, Any], str, list[str]]]:
    """Return (prompt -> heading -> interval, caption, headings), also of any adapted model."""
    sides = [("base", "base model", PROMPT_COLUMNS)]
    if prompts and all(of["adapted"] for of in prompts.values()):
        sides.append(("adapted", "adapted model, trained under the first", ADAPTED_COLUMNS))
    return [
        (
            {prompt_name(name): {k: figure(of[side], path) for k, path in columns.items()} for name, of in prompts.items()},
            caption,
            list(columns),
        )
        for side, caption, columns in sides
    ]


def _figures(
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Any],
    compared: Mapping[str, Any],
    probe: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw every figure that has numbers, by section."""
    drawn: dict[str, Any] = {}
    title = f"{_counts(summary)}, 95 % intervals"
    parts = {
        "all": {
            "base": summary["base"]["balanced"],
            "adapted": (summary["adapted"] or {}).get("balanced"),
            "reading": summary["reading"]["balanced"],
        }
    }
    parts = parts | summary["modality"] if len(summary["modality"]) > 1 else parts
    sides = [(scope, {"reading": p["reading"], "base action": p["base"], "adapted action": p["adapted"]}) for scope, p in parts.items()]
    drawn["sides"] = figures.points_svg("sides", sides, title, "balanced accuracy")
    drawn["epochs"] = figures.epochs_svg(records, summary["text_only"]["balanced"])
    counts = _counts({**(measured if measured.get("n_clips") else summary), "n_skipped": summary["n_skipped"]})
    title = f"{counts}, 95 % intervals"
    if cells := compared["cells"]:
        rows = [
            (f"{c['modality']} / {c['concept']}", {"reading": c["reading"], "base action": c["action"], "adapted action": c.get("adapted")})
            for c in cells
        ]
        drawn["cells"] = figures.points_svg("cells", rows, title, "accuracy")
    if measured.get("layers"):
        drawn["layers"] = figures.layers_svg(measured["layers"], layers_of(measured.get("probe")), title)
    elif summary["adapted"] and measured:
        drawn["search"] = curves.search_svg(
            probe.get("chosen_from") or [], layers_of(probe), f"{probe.get('n_fit')} items of fit, out of fold"
        )
    for k, (scope, sides) in enumerate(compared["roc"].items()):
        drawn.setdefault("roc", []).append(curves.roc_svg(scope, sides, f"roc{k}", f"{scope}: {counts}"))
    if compared["calibration"]:
        drawn["calibration"] = curves.calibration_svg({name: of["bins"] for name, of in compared["calibration"].items()}, counts)
    joined = {k: "".join(filter(None, v)) if isinstance(v, list) else v for k, v in drawn.items()}
    return {k: Markup(v) for k, v in joined.items() if v}


def _counts(of: Mapping[str, Any]) -> str:
    return f"{of.get('n_clips')} test clips, 1 seed ({of.get('seed')}){skipped_words(of.get('n_skipped', 0))}"


def _with_media(
    directory: Path, source: Mapping[str, Any], items: Sequence[Mapping[str, Any]], budget: int = MEDIA_BYTES
) -> list[dict[str, Any]]:
    """Return items for the page, with embedded media and what is read of them.

    Args:
        source: the file that they are of, which says what their paths are relative to.
    """
    root = Path(source.get("data_root") or ".")
    if not root.is_absolute() and (directory / root).is_dir():
        root = directory / root
    embedder, shown = Embedder(root, budget), list[dict[str, Any]]()
    for item in items:
        media = item.get("media") or []
        shown.append(
            {
                **item,
                "embedded": [embedder.embed(kind, path) for kind, path in media[:THUMBNAILS]],
                "more": max(0, len(media) - THUMBNAILS),
                "reads": sorted((item.get("reading") or {}).items(), key=lambda pair: -pair[1])[:2],
                "sure": (item.get("action") or {}).get(item.get("said")),
            }
        )
    return shown


def _best_baselines(measured: Mapping[str, Any], budget: float) -> list[tuple[str, dict[str, Any], str]]:
    """Return (label, point, setting in words) of every inference-time method that has a setting within the budget."""
    methods = (measured.get("baselines") or {}).get("methods", [])
    return [(of["label"], point, setting_words(point)) for of in methods if (point := best_point(of, budget))]
