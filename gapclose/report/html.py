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

from gapclose.core.files import read_json, write_text
from gapclose.core.settings import read_settings
from gapclose.core.version import __version__
from gapclose.evaluation.run_records import (
    layer_words,
    layers_of,
    prompt_name,
    prompt_words,
    read_records,
    record_of,
    round_words,
    skipped_words,
    summarise,
)
from gapclose.evaluation.summary_text import turned, verdict
from gapclose.metrics.status import STATES
from gapclose.metrics.verdict import VERDICTS
from gapclose.report import figures
from gapclose.report.console import ADAPTED_COLUMNS, GAPS, PROMPT_COLUMNS, TEST_ROWS, figure
from gapclose.report.media_embed import Embedder
from gapclose.report.style import why_no_figures
from gapclose.report.templating import render

MEASUREMENT_VERSION = 1
THUMBNAILS = 4  # per item


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
    base = record_of(directory, "base/test")
    assert base is not None
    return render(
        "report.html.j2",
        name=directory.resolve().name,
        out=skipped_words(summary["n_skipped"]),
        concepts=measured.get("concepts") or read_json(directory / "probes" / "frozen.json").get("concepts"),
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
        unsaid=_unsaid(directory, measured),
        settings=_settings(directory),
        environment=_environment(directory),
        fingerprints=_fingerprints(directory),
        trained=summary["adapted"] and summary["adapted"] | {"gain": {"standard_accuracy": turned(summary["standard_drop"])}},
        figures=_figures(summary, records, measured),
        no_figures=why_no_figures(),
    )


def read_measurement(directory: Path) -> dict[str, Any]:
    """Return ``measurement.json`` of a run, or an empty dict.

    Raises:
        ValueError: when another version of gapclose wrote it.
    """
    path = directory / "measurement.json"
    if not path.is_file():
        return {}
    measured = read_json(path)
    if measured.get("version") != MEASUREMENT_VERSION:
        raise ValueError(
            f"{path} has version {measured.get('version')!r} and this gapclose ({__version__}) reads version {MEASUREMENT_VERSION}; "
            "show it with the version that wrote it (environment.json), or measure again"
        )
    return measured


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


def _figures(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> dict[str, Any]:
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
    if measured.get("cells"):
        cells = [(f"{c['modality']} / {c['concept']}", {"reading": c["reading"], "base action": c["action"]}) for c in measured["cells"]]
        drawn["cells"] = figures.points_svg("cells", cells, title, "accuracy")
    if measured.get("layers"):
        drawn["layers"] = figures.layers_svg(measured["layers"], layers_of(measured.get("probe")), title)
    for k, (scope, curves) in enumerate((measured.get("roc") or {}).items()):
        drawn.setdefault("roc", []).append(figures.roc_svg(scope, curves, f"roc{k}", f"{scope}: {counts}"))
    if (measured.get("calibration") or {}).get("bins"):
        drawn["calibration"] = figures.calibration_svg(measured["calibration"]["bins"], counts)
    joined = {k: "".join(filter(None, v)) if isinstance(v, list) else v for k, v in drawn.items()}
    return {k: Markup(v) for k, v in joined.items() if v}


def _counts(of: Mapping[str, Any]) -> str:
    return f"{of.get('n_clips')} test clips, 1 seed ({of.get('seed')}){skipped_words(of.get('n_skipped', 0))}"


def controls(summary: Mapping[str, Any], base: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every control with a row per scope: guarded figure, own figure, difference, meaning.

    Without measurement.json, these are the two controls in ``gap.jsonl``.
    """
    given = measured.get("controls")
    if given is None:
        known = base["controls"]
        given = [
            {"name": "text_only", "label": "text only", "question": "could the wording alone give it away?", "guards": "reading",
             "balanced": known["text_only"], "difference": known["reading_minus_text"]},
            {"name": "majority", "label": "majority class", "question": "is it more than always naming the commonest concept?",
             "guards": "reading", "balanced": known["majority"]},
        ]  # fmt: skip
    shown = []
    for control in given:
        rows = []
        for scope in sorted(control["balanced"], key=lambda s: (s != "all", s)):
            difference, chance = ((control.get(key) or {}).get(scope) for key in ("difference", "chance"))
            rows.append(
                {
                    "scope": scope,
                    "guarded": _guarded(summary, control["guards"], scope),
                    "balanced": control["balanced"][scope],
                    "auroc": (control.get("auroc") or {}).get(scope),
                    "difference": difference,
                    "meaning": _meaning(difference, chance, (control.get("at_chance") or {}).get(scope)),
                }
            )
        shown.append({**control, "rows": rows})
    return shown


def _guarded(summary: Mapping[str, Any], guards: str, scope: str) -> Any:
    """Return the balanced accuracy that a control guards, of reading or action, or None."""
    if guards not in ("reading", "action"):
        return None
    part = summary["modality"].get(scope)
    if scope == "all":
        return summary["reading" if guards == "reading" else "base"]["balanced"]
    return part["reading" if guards == "reading" else "base"] if part else None


def _meaning(difference: Any, chance: float | None, at_chance: bool | None) -> tuple[bool, str] | None:
    """Return (whether the result is as expected, description), or None if nothing is claimed."""
    good, words = True, []
    if chance is not None and chance < 1:
        good = at_chance is not False
        told = {True: "at chance ({}), as it should be", False: "not at chance ({})", None: "too few clips to tell it from chance ({})"}
        words.append(told[at_chance].format(f"{chance:.2f}"))
    if difference is not None and difference["lower"] is not None:
        beaten = difference["lower"] > 0
        good = good and beaten
        if chance is None and not beaten:  # no fault: e.g. residuals without the wording may read as well
            return None
        words.append("the reading beats it" if beaten else "the reading does not beat it")
    return (good, "; ".join(words)) if words else None


def _unsaid(directory: Path, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return items with a right, most certain reading and a wrong answer, with embedded media."""
    root = Path(measured.get("data_root") or ".")
    if not root.is_absolute() and (directory / root).is_dir():
        root = directory / root
    embedder, shown = Embedder(root), []
    for item in measured.get("known_but_unsaid") or []:
        media = item.get("media") or []
        shown.append(
            {
                **item,
                "embedded": [embedder.embed(kind, path) for kind, path in media[:THUMBNAILS]],
                "more": max(0, len(media) - THUMBNAILS),
                "reads": sorted((item.get("reading") or {}).items(), key=lambda pair: -pair[1])[:2],
                "sure": (item.get("action") or {}).get(item["said"]),
            }
        )
    return shown


def _rows(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten a nested dict to (dotted key, value); an interval is one value."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and set(value) != {"value", "lower", "upper"}
        rows += _rows(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return rows


def _settings(directory: Path) -> list[tuple[str, str]]:
    """Return every setting of a run.

    Absolute paths are cut to their last part, because pages are shared.
    """
    return [(key, _shown(value)) for key, value in read_settings(directory).items() if key != "run_dir"]


def _shown(value: Any) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return f"…/{Path(value).name}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _environment(directory: Path) -> list[tuple[str, str]]:
    """Return versions, device, seed and code revision, and the different ones of earlier starts."""
    path = directory / "environment.json"
    tree = read_json(path) if path.is_file() else {}
    several = (tree, *tree.pop("earlier", []))
    now, *starts = ({key.removeprefix("versions."): _shown(value) for key, value in _rows(one)} for one in several)
    others = [", ".join(f"{key} {value}" for key, value in start.items() if now.get(key) != value) for start in starts]
    return [*now.items(), *(("an earlier start", words) for words in others)]


def _fingerprints(directory: Path) -> list[tuple[str, str]]:
    """Return the fingerprints of items, model and adapter."""
    found = []
    if (directory / "items.json").is_file():
        found.append(("items, media and labels", read_json(directory / "items.json")["fingerprint"]))
    for stage, label in (("base-test", "base model"), ("adapted-test", "adapted model")):
        path = directory / "observations" / stage / "manifest.json"
        if path.is_file():
            manifest = read_json(path)
            found += [(f"{label}, {key}", manifest[key]) for key in ("model", "adapter", "fingerprint") if manifest.get(key)]
    return found
