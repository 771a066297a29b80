"""The report page: what it holds, what it leaves out, what it lets in, and how it looks in a browser."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import chromium
import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console

from gapclose.core.files import write_json
from gapclose.evaluation.run_records import record_of, summarise
from gapclose.evaluation.summary_text import show
from gapclose.pipeline.cli import main
from gapclose.report import figures
from gapclose.report import html as page
from gapclose.report import media_embed as embed
from gapclose.report.console import print_report

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
EVIL = '<script>alert("item")</script><img src=https://example.org/x onerror=alert(1)> $x^$ {{ 7 * 7 }}'
CONCEPTS = ["standard", "false_vision", "false_audio"]


def around(value: float, by: float = 0.02) -> dict:
    return {"value": value, "lower": max(0.0, value - by), "upper": min(1.0, value + by)}


def roc(distance: float) -> dict:
    alarms = np.linspace(0, 1, 60)
    return {
        "false_alarm": alarms.tolist(),
        "hit": (alarms ** (1 / (1 + distance))).tolist(),
        "auroc": around(1 - 1 / (2 + distance)),
        "point": {"false_alarm": float(alarms[6]), "hit": float(alarms[6] ** (1 / (1 + distance)))},
    }


def measurement(items: list[dict], root: str) -> dict:
    """A measurement.json with everything in it, the numbers made up."""
    scopes, modalities = ("all", "audio", "vision"), ("audio", "vision")

    def each(value: float) -> dict:
        return {s: around(value + 0.004 * k) for k, s in enumerate(scopes)}

    return {
        "version": 1, "seed": 0, "n_clips": 260, "n_items": 1040, "split": "test", "concepts": CONCEPTS, "alarm": CONCEPTS[1:],
        "modalities": list(modalities), "probe": {"layer": 6, "n_layers": 8, "family": "logistic", "strength": 0.01},
        "cells": [
            {"modality": m, "concept": c, "n_items": 260, "n_clips": 260, "action": around(a), "option": around(a), "reading": around(r)}
            for m, c, a, r in (("audio", "standard", 1.0, 0.99), ("audio", "false_audio", 0.03, 0.98), ("vision", "standard", 0.99, 0.97),
                               ("vision", "false_vision", 0.0, 0.96))
        ],
        "roc": {s: {"reading": roc(12), "action": roc(0.1)} for s in scopes},
        "confusion": {"concepts": CONCEPTS, "said": [*CONCEPTS, "none"], "action": [[517, 2, 1, 0], [258, 0, 2, 0], [251, 0, 8, 1]],
                      "reading": [[510, 4, 6, 0], [7, 251, 2, 0], [4, 1, 255, 0]]},
        "calibration": {"bins": [{"confidence": 0.45 + k / 18, "accuracy": 0.5 + k / 19, "n": 8 * (k + 1) ** 2} for k in range(10)],
                        "ece": 0.021, "brier": 0.034},
        "verdicts": {"vision": {"word": "real", "sentence": "the gap is real: the reading beats every control"},
                     "audio": {"word": "unproven", "sentence": "the gap is not shown to be real: text alone gives as much"}},
        "controls": [
            {"name": "text_only", "label": "text only (TF-IDF, words and characters)", "guards": "reading",
             "question": "could the wording alone give it away?", "balanced": each(0.51), "auroc": each(0.52),
             "difference": {"all": around(0.45), "audio": {"value": 0.01, "lower": -0.02, "upper": 0.04}, "vision": around(0.47)},
             "chance": None, "at_chance": None},
            {"name": "shuffled", "label": "shuffled labels", "guards": "reading", "question": "does the pipeline leak labels?",
             "balanced": each(0.5), "auroc": each(0.5), "difference": None, "chance": dict.fromkeys(scopes, 0.5),
             "at_chance": {"all": True, "audio": None, "vision": False}},
            {"name": "blank_media", "label": "blank media", "guards": "action", "question": "is it what was seen and heard?",
             "balanced": each(0.5), "auroc": {}, "difference": each(0.3), "chance": dict.fromkeys(scopes, 0.5), "at_chance": dict.fromkeys(scopes, True)},
        ],
        "codelength": {"online_bits": 312.4, "uniform_bits": 1648.2, "compression": 5.28, "control_compression": 1.02},
        "layers": [
            {"layer": k, "reading": {"balanced": around(0.5 + 0.46 * min(1, k / 6) ** 2), "auroc": around(0.5 + 0.48 * min(1, k / 5))},
             "lens": None if k < 2 else {"balanced": around(0.5 + 0.05 * (k > 6)), "auroc": around(0.5 + 0.06 * k / 8)}}
            for k in range(9)
        ],
        "nested": {"balanced": around(0.977), "layers": [6, 6, 5, 6]},
        "interchange": {"layer": 6, "n_pairs": 520, "follows": around(0.62), "stays_without_patch": around(0.99),
                        "by_modality": {"audio": around(0.6), "vision": around(0.64)},
                        "sentence": "Putting in the residual of the other premise changes the answer: what is read is also used."},
        "minimum_detectable": {"all": 0.021, "audio": 0.03, "vision": 0.031},
        "known_but_unsaid": items,
        "data_root": root,
        "protocol": {
            "name": "imavb", "n_items": 1040, "n_clips": 260, "folds": 4, "peak_layer": 5, "residualised_against": "TF-IDF",
            "layers": [{"layer": k, "accuracy": around(0.5 + k / 20)} for k in range(1, 9)], "skipped": None,
            "figures": [
                {"name": "probe", "label": "probe of the modality", "correction": "Ours is the mean over cells.", "rows": [
                    {"scope": "vision", "standard": 520, "misleading": 260, "majority": 2 / 3, "paper": around(0.86), "ours": around(0.91),
                     "skipped": None},
                    {"scope": "audio", "standard": 520, "misleading": 0, "majority": None, "paper": None, "ours": None,
                     "skipped": "its misleading items are of 0 clips, and 4 folds by clip need 4 or more; add labelled clips"}]},
                {"name": "standard", "label": "standard items", "correction": "Ours asks for the concept.", "rows": [
                    {"scope": "vision", "standard": 260, "misleading": 0, "majority": None, "paper": around(0.97), "ours": around(0.98),
                     "skipped": None}]},
            ],
        },
    }  # fmt: skip


def unsaid(number: int, **other) -> dict:
    return {
        "id": f"clip-{number}/vision-false", "clip": f"clip-{number}", "modality": "vision", "media": [["image", "a.png"], ["audio", "a.wav"]],
        "text": "The image shows the digit 3. Is it odd or even?", "options": ["odd", "even", "unseen"], "said": "odd", "right": "unseen",
        "reading": {"standard": 0.01, "false_vision": 0.98, "false_audio": 0.01}, "action": {"odd": 0.81, "even": 0.15, "unseen": 0.04}, **other,
    }  # fmt: skip


@pytest.fixture
def rich_run(tiny_run, tmp_path):
    """A finished run with a full measurement.json beside it, media short and long, and texts that try to get out."""
    directory, media = tmp_path / "rich", tmp_path / "rich" / "data-seed0"
    shutil.copytree(tiny_run, directory, ignore=shutil.ignore_patterns("checkpoints", "adapter", "change.json"))
    media.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(media / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)).save(media / "large.png")
    tone = 0.3 * np.sin(np.arange(44100 * 33) / 18)
    soundfile.write(media / "a.wav", tone[:16000], 16000)
    soundfile.write(media / "long.wav", np.stack([tone, tone], axis=1), 44100)
    items = [unsaid(k) for k in range(17)]
    items.append(unsaid(17, text=EVIL + "x" * 300, said=EVIL, options=[EVIL, "unseen"], action={EVIL: 0.9, "unseen": 0.1}))
    items.append(unsaid(18, media=[["image", "large.png"]] * 6 + [["audio", "long.wav"]]))
    items.append(unsaid(19, media=[["audio", "long.wav"], ["image", "gone.png"], ["image", "a.wav"], ["video", "v.mp4"]]))
    write_json(directory / "measurement.json", measurement(items, "data-seed0"))
    return directory


class Reader(HTMLParser):
    """Checks that tags are balanced and collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [a for t, a in self.seen if t == tag]

    def ids(self) -> list[str]:
        return [a["id"] for _, a in self.seen if "id" in a]


def check(text: str) -> Reader:
    """What holds of every page: balanced, ids unique and found, images told, nothing from outside, no script, no machine paths."""
    read = Reader(text)
    ids = read.ids()
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)[:5]
    assert all(a.get("alt") for a in read.all("img"))
    assert all(a.get("role") == "img" and len(a["aria-label"]) > 40 for a in read.all("svg")) and read.all("script") == []
    for tag, attributes in read.seen:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith("data:") or (target[:1] == "#" and target[1:] in ids), (tag, name, target[:80])
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    assert "@import" not in text and "default-src 'none'" in text and "http-equiv" in text
    return read


def titles(read: Reader) -> list[str]:
    return [a["id"] for a in read.all("section") if "id" in a]


def test_a_page_with_everything(rich_run):
    """All sections in order, the figures with numbers of clips and seeds, the media inside, the whole under three megabytes."""
    path = page.write_page(rich_run)
    read, summary = check(path.read_text()), summarise(rich_run)
    assert path == rich_run / "report.html" and path.stat().st_size < 3_000_000
    order = [
        "cells",
        "sides",
        "epochs",
        "layers",
        "roc",
        "confusion",
        "calibration",
        "controls",
        "evidence",
        "protocol",
        "unsaid",
        "settings",
    ]
    assert titles(read) == order == [a["href"][1:] for a in read.all("a")]
    assert page.headline(summary) in read.text and summary["state"] in read.text
    assert "trained on the reading of audio and vision although it was not shown to be real" in read.text
    labels = [a["aria-label"] for a in read.all("svg")]
    assert len(labels) == 8 and all("clips, 1 seed (0)" in label for label in labels)
    for words in (
        "the gap is not shown to be real: text alone gives as much", "could the wording alone give it away?", "not at chance (0.50)",
        "at chance (0.50), as it should be; the reading beats it", "too few clips to tell it from chance (0.50)", "312 bits", "compression of 5.28", "what is read is also used",
        "0.021 (all), 0.030 (audio) and 0.031 (vision)", "layers 6, 6, 5, 6", "the first 10 of 33 s", "image not found", "image not readable",
        "video is not shown here", "and 3 more", "Their probes are fitted and judged in 4 folds",
        "very folds: 5, where ours reads layer 6", "520 + 260", "0.667", "skipped: its misleading items are of 0 clips", "train.learning_rate", "transformers", "probability of the options", "answers that parse", "items, media and labels",
    ):  # fmt: skip
        assert words in read.text, words
    assert "does not beat" not in read.text  # of a control that may read as well
    assert show(summary["closure"], 3).split()[0].replace("-", "\u2212") in read.text
    assert len(read.all("audio")) == 19 and all("controls" in a and a["aria-label"] for a in read.all("audio"))
    assert str(rich_run) not in path.read_text() and str(rich_run.parent) not in path.read_text()


def test_the_verdict_in_one_sentence(tiny_run):
    """Doubt is told, by modality where it is about one only; a base that was only measured claims no training."""
    summary, words = summarise(tiny_run), {True: {"word": "real"}, False: {"word": "unproven"}}

    def told(verdicts, **change):
        return page.headline(summary | {"verdicts": verdicts} | change)

    assert "not shown" not in told({})
    assert "; in audio the gap is not shown to be real" in told({"vision": words[True], "audio": words[False]})
    assert "; the gap is not shown to be real; after training it answers with" in told({"vision": words[False]})
    before = told({}, adapted=None, gap={"balanced": {"base": {"value": 0.01, "lower": -0.01, "upper": 0.03}}})
    assert before.endswith("; the interval of the gap reaches zero.") and "training" not in before


def test_no_gap_in_the_headline_of_a_model_that_does_not_act(tiny_run, tmp_path):
    """A dash with the reason; the number stays in the table. Other states show it."""
    shutil.copytree(tiny_run / "probes", tmp_path / "probes")
    record = record_of(tiny_run, "base/test")
    for state, claimed in (("not judgeable", False), ("no gap", True)):
        (tmp_path / "gap.jsonl").write_text(json.dumps(record | {"state": state}) + "\n")
        text = page.build_page(tmp_path)
        check(text)
        tiles, table = text[text.index('<dl class="tiles">') : text.index("</dl>")], text[text.index('id="sides"') :]
        gap = summarise(tmp_path)["gap"]["balanced"]["base"]["value"]
        shown = f"{round(gap, 3) + 0:.3f}".replace("-", "\u2212")
        tile = tiles[tiles.index("Gap, balanced") :].partition("</div>")[0]
        assert (shown in tile) == claimed and shown in table.partition("</table>")[0]
        assert ("not claimed: the model does not answer such questions" in tile) == (not claimed)
        assert ("the interval of the gap" in page.headline(summarise(tmp_path))) == (claimed and gap_reaches_zero(record))


def gap_reaches_zero(record: dict) -> bool:
    lower = record["gap"]["balanced"]["lower"]
    return lower is not None and lower <= 0


def test_answers_stand_beside_the_verdict_that_there_is_none(tiny_run, tmp_path, capsys):
    """In quotes, escaped, with the question's id, of the modality; in the terminal as well. Older runs have none."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "adapter"))
    run = tmp_path / "run"
    measured = json.loads((run / "measurement.json").read_text())
    answer = {"id": "clip-7/a", "premise": "false", "text": " <b>I</b>\n think\x1b", "option": None}
    measured["written"] = {"audio": {"n": 48, "cut_off": 2, "examples": [answer, answer | {"premise": None, "option": "even"}]}}
    write_json(run / "measurement.json", measured)
    text = page.build_page(run)
    check(text)
    points = text[text.index('<ul class="points">') : text.index("<nav")]
    assert "<code>&#39; &lt;b&gt;I&lt;/b&gt;\\n think\\x1b&#39;</code>" in points and points.count('<ul class="wrote">') == 1
    said = re.sub("<[^>]+>", "", points)
    assert "clip-7/a, false premise; names no option" in said and "clip-7/a; taken for &#39;even&#39;" in said
    print_report(run, Console(width=300))
    told = capsys.readouterr().out
    assert "audio: the base model wrote ' <b>I</b>\\n think\\x1b' (clip-7/a, false premise; names no option)" in told
    del measured["written"]
    write_json(run / "measurement.json", measured)
    assert '<ul class="wrote">' not in page.build_page(run)


def test_the_same_records_give_the_same_bytes(rich_run):
    """No time, no random ids: a page can be compared and cached."""
    assert page.build_page(rich_run) == page.build_page(rich_run)


def test_texts_of_items_are_only_texts(rich_run):
    """Markup, formulas and template code in a question, an option or a concept are shown, never run."""
    measured = json.loads((rich_run / "measurement.json").read_text())
    measured["cells"][0]["concept"] = measured["confusion"]["concepts"][0] = measured["confusion"]["said"][0] = EVIL
    measured["roc"] = {EVIL: measured["roc"]["all"]}
    write_json(rich_run / "measurement.json", measured)
    text = page.build_page(rich_run)
    read = check(text)
    assert "<script" not in text and "alert(1)" in read.text and "{{ 7 * 7 }}" in read.text and "&lt;script&gt;" in text


def test_a_run_without_a_measurement(tiny_run, tmp_path):
    """Sections without numbers are left out; the two controls that gap.jsonl records stay."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "adapter", "measurement.json", "change.json"))
    read = check(page.write_page(tmp_path / "run").read_text())
    assert titles(read) == ["sides", "epochs", "controls", "settings"] == [a["href"][1:] for a in read.all("a")]
    assert len(read.all("svg")) == 2 and "majority class" in read.text and "text only" in read.text


def test_a_run_that_only_measured_its_base(tiny_run, tmp_path):
    """One record and a probe are enough; nothing is claimed about a training."""
    shutil.copytree(tiny_run / "probes", tmp_path / "probes")
    (tmp_path / "gap.jsonl").write_text(json.dumps(record_of(tiny_run, "base/test")) + "\n")
    read = check(page.write_page(tmp_path).read_text())
    assert titles(read) == ["sides", "controls", "settings"] and "adapted" not in read.text and "after training" not in read.text
    assert figures.draw_epochs(tmp_path) is None


@pytest.mark.parametrize("value", [None, {}], ids=["null", "empty"])
def test_a_key_that_was_not_measured(rich_run, value):
    """Every other key of measurement.json is null or empty, then the others, then all: the page holds, without what hangs on them."""
    whole = json.loads((rich_run / "measurement.json").read_text()) | {"known_but_unsaid": []}
    keys = [k for k in whole if k not in ("version", "data_root")]
    for gone in (keys[::2], keys[1::2], keys):
        write_json(rich_run / "measurement.json", whole | dict.fromkeys(gone, value))
        found = titles(check(page.build_page(rich_run)))
        assert {"sides", "epochs", "settings"} <= set(found) and not set(gone) & set(found) - {"controls"}


def test_numbers_that_are_unknown(rich_run):
    """An interval without a value says so, in the text and in the figures, and none reads as zero."""

    def forget(tree):
        if isinstance(tree, dict):
            return {"value": None, "lower": None, "upper": None} if "lower" in tree else {k: forget(v) for k, v in tree.items()}
        return [forget(v) for v in tree] if isinstance(tree, list) else tree

    whole = json.loads((rich_run / "measurement.json").read_text())
    write_json(rich_run / "measurement.json", forget(whole))
    read = check(page.build_page(rich_run))
    assert "cells" in titles(read) and "not measured" in read.text and not re.search(r"\bnan\b", read.text)


def test_a_measurement_of_another_version_is_refused(rich_run):
    """The message names both versions and the way out."""
    write_json(rich_run / "measurement.json", {"version": 2})
    with pytest.raises(ValueError, match="has version 2 and this gapclose .* reads version 1; show it with the version that wrote it"):
        page.build_page(rich_run)


def test_many_concepts_and_long_names(rich_run):
    """Ten concepts without alarms, one with a very long name, still make a page."""
    measured = json.loads((rich_run / "measurement.json").read_text())
    names = [*map(str, range(9)), "a_very_long_concept_name_that_nobody_would_choose/but_somebody_did"]
    counts = np.eye(10, dtype=int) * 26
    measured |= {
        "concepts": names,
        "alarm": [],
        "confusion": {"concepts": names, "said": names, "action": counts.tolist(), "reading": counts.tolist()},
    }
    measured["cells"] = [{**measured["cells"][0], "concept": c} for c in names]
    write_json(rich_run / "measurement.json", measured)
    assert "nobody_would_choose" in check(page.build_page(rich_run)).text


def test_media_stop_at_the_budget(rich_run):
    """What does not fit any more is left out and says so; what is smaller may still fit."""
    embedder = embed.Embedder(rich_run / "data-seed0", budget=60_000)
    first, second = embedder.embed("audio", "a.wav"), embedder.embed("audio", "a.wav")
    assert first.uri and first.seconds == 1.0 and first.note is None
    assert second.uri is None and second.note == "audio left out: this page holds at most 0.1 MB of media"
    assert embedder.embed("image", "a.png").tiny


def test_long_sounds_are_cut_and_large_images_shrunk(rich_run):
    """Ten seconds of 33 in mono at 16 kHz, and at most 192 pixels."""

    def decoded(uri: str) -> io.BytesIO:
        return io.BytesIO(base64.b64decode(uri.partition(",")[2]))

    uri, seconds = embed.player(rich_run / "data-seed0" / "long.wav")
    samples, rate = soundfile.read(decoded(uri))
    assert (
        uri.startswith("data:audio/mpeg")
        and rate == 16000
        and seconds == pytest.approx(33)
        and len(samples) == pytest.approx(160_000, rel=0.02)
    )
    uri, side = embed.thumbnail(rich_run / "data-seed0" / "large.png")
    with Image.open(decoded(uri)) as image:
        assert image.size == (192, 108) and image.format == "JPEG" and side == 192


def test_close_and_report_write_the_page(tiny_run, capsys, tmp_path):
    """The run wrote it; `report` writes it again and says where, or why it could not; --json prints nothing else."""
    check((tiny_run / "report.html").read_text())
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("checkpoints", "adapter"))
    (run / "report.html").unlink()
    assert main(["report", str(run), "--json"]) == 0 and json.loads(capsys.readouterr().out) and not (run / "report.html").exists()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"page: {run / 'report.html'}") and (run / "report.html").is_file()
    assert main(["report", str(run), "--html", str(tmp_path / "elsewhere.html")]) == 0
    assert (tmp_path / "elsewhere.html").read_text() == (run / "report.html").read_text()


@pytest.mark.browser
@pytest.mark.skipif(
    chromium.BINARY is None, reason="no chromium here: how the page looks and plays was NOT tested (apt-get install chromium)"
)
def test_the_page_in_a_browser(rich_run, tmp_path):
    """At 375 and 1280 pixels: nothing sticks out sideways, nothing is fetched, the console is silent, every sound and image loads."""
    path = page.write_page(rich_run)
    with chromium.Chromium(tmp_path / "profile") as browser:
        for width in (375, 1280):
            browser.open(path, width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= browser.evaluate("innerWidth") == width
            inside = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, thead')).map(e => e.getBoundingClientRect())"
            assert browser.evaluate(f"Math.max(...{inside}.map(r => r.right))") <= width
            size = "e => parseFloat(getComputedStyle(e).fontSize)"
            others = browser.evaluate(
                f"Math.max(...[...document.querySelectorAll('body *')].filter(e => !e.closest('svg, h1')).map({size}))"
            )
            assert browser.evaluate(f"({size})(document.querySelector('h1.state'))") > 1.3 * others  # the state is the largest thing
            assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            loaded = (
                "Promise.all([...document.querySelectorAll('audio')].map(a => new Promise(done => {"
                " if (a.readyState > 0 || a.error) return done(); a.onloadedmetadata = a.onerror = done; })))"
                ".then(() => [...document.querySelectorAll('audio')].map(a => a.error ? -1 : a.duration))"
            )
            durations = browser.evaluate(loaded)
            assert len(durations) == 19 and min(durations) >= 0.99 and max(durations) == pytest.approx(10, abs=0.2)
        look = "['body', 'figure svg text'].map(e => getComputedStyle(document.querySelector(e))).map((s, k) => k ? s.fill : s.backgroundColor)"
        light = browser.evaluate(look)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert light == ["rgb(255, 255, 255)", "rgb(51, 51, 51)"] and browser.evaluate(look) == ["rgb(21, 23, 26)", "rgb(228, 230, 232)"]
        browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert browser.evaluate(look)[1] == light[1]
        assert browser.requested() == [] and browser.complaints() == []
        assert len(browser.evaluate("document.body.innerText")) > 5000
