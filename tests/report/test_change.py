"""What training changed: change.json, its tables and examples, on the page and in the terminal."""

import json
import shutil
from collections import Counter
from io import StringIO

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from test_page import check, titles

from gapclose.core.files import read_json, write_json
from gapclose.evaluation.examples import varied
from gapclose.evaluation.run_records import record_of, summarise
from gapclose.report.change import KINDS, counts_line
from gapclose.report.console import print_report
from gapclose.report.example_figure import MARGIN, draw_example, draw_image, first_example
from gapclose.report.html import build_page


@pytest.fixture
def change(tiny_run) -> dict:
    return read_json(tiny_run / "change.json")


@pytest.fixture
def run(tiny_run, tmp_path):
    """The finished run, to be changed."""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "adapter", "observations"))
    return tmp_path / "run"


def test_its_figures_are_those_of_the_records(tiny_run, change):
    """Rates of both models, by scope, from the counts; areas and accuracies as gap.jsonl has them."""
    for side, stage in (("base", "base/test"), ("adapted", "adapted/test")):
        record, of = record_of(tiny_run, stage), change[side]
        for scope, counts in of["premises"].items():
            action = (record if scope == "all" else record["modality"][scope])["action"]
            false, true = counts["false_accepted"] + counts["false_rejected"], counts["true_accepted"] + counts["true_rejected"]
            assert counts["false_rejected"] / false == pytest.approx(action["rejection"]["value"])
            assert counts["true_rejected"] / true == pytest.approx(action["false_alarm"]["value"])
            assert of["roc"][scope]["action"]["auroc"]["value"] == pytest.approx(action["auroc"]["value"])
        assert np.mean([c["action"]["value"] for c in of["cells"]]) == pytest.approx(record["action"]["balanced"]["value"])
        assert np.sum(of["confusion"]["action"]) == record["n_items"] == sum(b["n"] for b in of["calibration"]["action"]["bins"])
    right = [np.trace(np.array(change[side]["confusion"]["action"])[:, :-1]) for side in ("base", "adapted")]
    counts = change["counts"]
    assert right == [counts["still_right"] + counts["lost"], counts["still_right"] + counts["gained"]]
    assert sum(counts.values()) == change["n_items"] and change["epoch"] == summarise(tiny_run)["epoch"]


def test_a_reading_that_training_moved_stands_beside_that_of_the_base(run, change):
    """In tables, curves and calibration; where adapters lie above the probe it is the same, and stands there once."""
    name = "What the probe reads of the adapted model"
    assert name not in build_page(run)
    counts = change["adapted"]["confusion"]["reading"]
    counts[0][0], counts[0][1] = counts[0][0] - 1, counts[0][1] + 1
    write_json(run / "change.json", change)
    page = build_page(run)
    assert name in page and page.count("adapted reading") >= 2


def test_examples_are_what_they_are_called(change, digits):
    """Answers of both models, right by concept as everywhere; at most three of one question, and each item once."""
    concept = {i.id: {o.text: o.concept for o in i.options} for i in digits}
    assert set(change["examples"]) == set(KINDS)
    for kind, wanted in (("gained", (False, True)), ("lost", (True, False)), ("still_wrong", (False, False))):
        shown = change["examples"][kind]
        assert len(shown) <= min(9, change["counts"][kind]) and (shown or not change["counts"][kind])
        for item in shown:
            of = concept[item["id"]]
            assert tuple(of[item[side]["said"]] == of[item["right"]] for side in ("base", "adapted")) == wanted
            assert 0 < item["base"]["probability"] <= 1 and sum(item["reading"].values()) == pytest.approx(1)
            assert all((digits.root / path).is_file() for _, path in item["media"])
        assert len({item["id"] for item in shown}) == len(shown)
        assert max(Counter(item["text"] for item in shown).values(), default=0) <= 3
    assert sum(map(len, change["examples"].values())) > 9


def test_examples_vary():
    """Groups take turns, a question comes three times at most, a clip again only where nothing else is left; a seed gives one choice."""
    numbers, group = np.arange(200), ["rare" if n % 50 == 0 else "common" for n in range(200)]
    question, clip = [n % 7 for n in range(200)], [n // 2 for n in range(200)]

    def drawn(candidates, **changes):
        about = {"group": group, "question": question, "clip": clip, "seed": 3}
        return varied(np.asarray(candidates), **(about | changes))

    first = drawn(numbers)
    assert len(first) == 9 and first != sorted(first)
    assert first == drawn(numbers) != drawn(numbers, seed=4)
    assert [group[n] for n in first[:8]].count("rare") == 4 and len({clip[n] for n in first}) == 9
    assert len(drawn(numbers, question=[0] * 200)) == 3
    assert len(drawn([0, 1, 2, 3])) == 4 and len({clip[n] for n in drawn([0, 1, 2, 3])[:2]}) == 2
    assert drawn([]) == []


def test_the_page_shows_both_models(run, change):
    """What changed comes first; cells, curves, confusion and calibration have the adapted model beside the base; examples replace the unsaid."""
    page = build_page(run)
    read = check(page)
    shown = titles(read)
    assert shown[:2] == ["change", "cells"] and shown[-2:] == ["examples", "settings"] and "unsaid" not in shown
    assert shown == list(dict.fromkeys(a["href"][1:] for a in read.all("a")))
    labels = {a["aria-label"].split(".")[0]: a["aria-label"] for a in read.all("svg")}
    for name in ("ROC, all", "Calibration"):
        assert all(f"{kind}: " in labels[name] for kind in ("reading", "base action", "adapted action")), labels[name]
    assert sum("adapted action" in label for label in labels.values()) >= 5
    for words in (
        "What the base model says",
        "What the adapted model says",
        "What the probe reads",
        counts_line(change)[1:],
        *KINDS.values(),
    ):
        assert words in read.text, words
    counts = change["adapted"]["premises"]["all"]
    table = page[page.index("Answers by premise") :].partition("</table>")[0]
    assert all(f">{n}<small>" in table for n in counts.values()) and table.count("<tbody>") == len(change["base"]["premises"])
    assert page.count("<dt>before</dt>") == page.count("<dt>after</dt>") == sum(map(len, change["examples"].values()))
    assert f"(seed {change['seed']})" in read.text and "certainty plays no part" in read.text


def test_the_layers_that_the_search_tried_are_shown(run):
    """`close` stores no profile of test, and says how to have it; where there is one, it is shown instead."""
    read = check(build_page(run))
    assert "search" in titles(read) and "layers" not in titles(read) and "gapclose measure with the same configuration" in read.text
    assert any(a["aria-label"].startswith("Accuracy of the best probe of every layer") for a in read.all("svg"))
    measured = read_json(run / "measurement.json")
    sides = {"balanced": {"value": 0.5, "lower": 0.4, "upper": 0.6}, "auroc": {"value": 0.5, "lower": 0.4, "upper": 0.6}}
    write_json(run / "measurement.json", measured | {"layers": [{"layer": k, "reading": sides, "lens": None} for k in range(3)]})
    assert "layers" in (now := titles(check(build_page(run)))) and "search" not in now


def printed(run, width: int = 160) -> str:
    out = StringIO()
    print_report(run, Console(file=out, width=width))
    return out.getvalue()


def test_the_terminal_shows_both_models(run, change):
    text = printed(run)
    rows = {cells[0]: cells[1:] for line in text.splitlines() if len(cells := [c.strip() for c in line.split("│")[1:-1]]) > 1}
    counts = [change[side]["premises"]["vision"][f"false_{answer}"] for side in ("base", "adapted") for answer in ("accepted", "rejected")]
    assert [int(cell.split()[0]) for cell in rows["false (vision)"]] == counts
    assert rows["action, calibration error"] == [f"{change[side]['calibration']['action']['ece']:.3f}" for side in ("base", "adapted")]
    assert counts_line(change) in text


def test_a_run_without_the_file_says_so(run):
    """An older one, or one that was cut off; the page has what it had, and the terminal, too."""
    (run / "change.json").unlink()
    read = check(build_page(run))
    assert "change" not in titles(read) and "examples" not in titles(read) and "cells" in titles(read)
    assert "no change.json" in read.text and "gapclose close with the same configuration writes it" in read.text
    assert "answers by premise" not in printed(run)


def test_a_file_of_another_epoch_or_version_is_not_shown(run, change):
    """An epoch that is not the run's any more is left out; another form is an error that names the remedy."""
    write_json(run / "change.json", change | {"epoch": change["epoch"] + 1})
    assert "change" not in titles(check(build_page(run)))
    write_json(run / "change.json", change | {"version": 2})
    with pytest.raises(
        ValueError, match="change.json has version 2 and this gapclose .* reads version 1; delete it, or run `gapclose close` again"
    ):
        build_page(run)


def test_sets_without_alarms_have_no_table_of_premises(run, change):
    """Everything else stays."""
    for side in ("base", "adapted"):
        change[side] |= {"premises": {}, "roc": {}}
    write_json(run / "change.json", change | {"alarm": []})
    read = check(build_page(run))
    assert {"change", "examples", "confusion"} <= set(titles(read)) and "Answers by premise" not in read.text
    assert "answers by premise" not in (text := printed(run)) and "action, calibration error" in text


def test_texts_of_examples_are_only_texts(run, change):
    """Markup in a question or an answer is shown, never run."""
    evil = "<script>alert(1)</script>{{ 7 * 7 }}"
    kind = max(change["examples"], key=lambda k: len(change["examples"][k]))
    change["examples"][kind][0] |= {"text": evil, "right": evil, "base": {"said": evil, "probability": 0.5, "written": evil}}
    write_json(run / "change.json", json.loads(json.dumps(change)))
    page = build_page(run)
    assert "<script" not in page and evil in check(page).text


def drawn(run, change):
    """Texts of the figure of one question, and whether the file is a picture."""
    write_json(run / "change.json", change)
    texts = list[str]()

    class Written(Figure):
        def text(self, x, y, s, **look):
            texts.append(s)
            return super().text(x, y, s, **look)

    made = list[Figure]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapclose.report.example_figure.new_figure", lambda **settings: made.append(Written(**settings)) or made[-1])
        path = draw_example(run)
    for text in made[0].texts:  # nothing is cut off
        box = text.get_window_extent(FigureCanvasAgg(made[0]).get_renderer())
        assert box.x1 < made[0].bbox.x1 and box.y0 > 0 and box.y1 < made[0].bbox.y1, text.get_text()
    with Image.open(path) as image:
        assert image.width == 1080 and len(set(image.convert("RGB").resize((90, 60)).get_flattened_data())) > 10
    return texts


def test_the_figure_of_one_question_shows_both_answers_and_the_reading(run, change):
    """A question about an image is drawn before others; damaged media are named in their place."""
    assert (run / "figures" / "example.png").is_file()  # the run wrote it
    gained = change["examples"]["gained"]
    of = next(e for e in gained if e["modality"] == "vision" and e["adapted"]["said"] == e["right"])
    texts = drawn(run, change)
    assert " ".join(texts).startswith(of["text"]) and f"right: {of['right']}" in " ".join(texts)
    assert texts[-5].startswith(f"{of['base']['said']} ✗") and texts[-1].startswith(f"{of['adapted']['said']} ✓")
    assert texts[-4:-1:2] == ["frozen probe reads", "after training"] and texts[-3].startswith(
        max(of["base_reading"], key=of["base_reading"].get)
    )
    (run / "broken.png").write_bytes(b"no image")
    broken = of | {"media": [["image", str(run / "broken.png")], ["video", "media/film.mp4"]]}
    assert drawn(run, change | {"examples": change["examples"] | {"gained": [broken]}}) == texts


@pytest.mark.parametrize(("size", "margin"), [((28, 20), MARGIN * 28), ((100, 70), 0)])
def test_a_tiny_picture_has_a_margin_of_its_edges_colour(size, margin, tmp_path):
    """Its pixels stay as they are; a larger picture fills its panel."""
    Image.new("RGB", size, (51, 0, 0)).save(tmp_path / "a.png")
    axes = Figure().subplots()
    draw_image(axes, tmp_path / "a.png")
    assert axes.get_xlim() == pytest.approx((-0.5 - margin, size[0] - 0.5 + margin))
    assert axes.get_ylim() == pytest.approx((size[1] - 0.5 + margin, -0.5 - margin))
    assert axes.get_facecolor() == (pytest.approx((0.2, 0, 0, 1)) if margin else (1, 1, 1, 1))


def test_an_answer_of_the_right_concept_in_other_words_is_not_drawn(run, change):
    """An option that accepts the premise and names a wrong colour is right by its concept alone."""
    of = change["examples"]["gained"][0]
    other = of | {
        "id": "other",
        "modality": "vision",
        "adapted": of["adapted"] | {"said": next(o for o in of["options"] if o != of["right"])},
    }
    assert first_example(change | {"examples": {"gained": [other, of]}}, run) == of
    assert first_example(change | {"examples": {"gained": [other]}}, run) is None


def test_without_an_answer_that_became_right_there_is_no_such_figure(run, change):
    """A question without media takes the whole width."""
    write_json(run / "change.json", change | {"examples": change["examples"] | {"gained": []}})
    assert draw_example(run) is None
    alone = change["examples"]["gained"][0] | {"media": [], "text": "Maria saw a blue hat. " * 8 + "\n\nWhere was it?"}
    texts = drawn(run, change | {"examples": change["examples"] | {"gained": [alone]}})
    assert texts[:5][-2:] == ["", "Where was it?"] and len(texts[0]) > 62
    sentence = "The premise is wrong: the lamp that stands on the table was black, and not white"
    spoken = change["examples"]["gained"][0] | {"base": {"said": sentence, "probability": 0.9, "written": sentence}}
    assert " ".join(drawn(run, change | {"examples": change["examples"] | {"gained": [spoken]}})).count("black, and not white") == 1
    many = alone | {"text": "WHERE DID MARGARET WASH THE WIDE WOOLLEN COAT? " * 4, "options": [*alone["options"], *"abcdefgh" * 8]}
    drawn(run, change | {"examples": change["examples"] | {"gained": [many]}})
