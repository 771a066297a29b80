"""Several prompts in one run, through the real commands on the tiny model."""

import json

import numpy as np
import pytest
from comparison.collect import asked_items
from run_schemas import misfit

from gapclose.core.errors import ErrorCollector
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.config import PromptsConfig
from gapclose.data.items import Item, Option
from gapclose.data.prompt_templates import apply_template
from gapclose.evaluation.run_records import summarise
from gapclose.evaluation.summary_text import prompt_words
from gapclose.metrics.labels import Labels
from gapclose.observe.store import read_observations
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.memory_estimate import observation_bytes
from gapclose.probes.linear import FrozenProbe

OFF = ("labels", "residualise", "codelength", "blank", "layers", "interchange", "nested", "baselines")
BARE = [word for key in OFF for word in (f"--controls.{key}", "false")] + ["--controls.protocol", "null"]
MEASURED = ["paper", "binary", "binary_explained", "free", "gapclose.data.digits.prompts:check"]


def judge(answer: str, item: Item) -> str | None:
    """Takes what no option names for the last one where it holds the letter e."""
    return item.options[-1].text if "e" in answer else None


@pytest.fixture(scope="module")
def measured(tiny_config, tmp_path_factory):
    """One `gapclose measure` under six prompts; not to be changed."""
    directory = tmp_path_factory.mktemp("prompted") / "run"
    prompts = [
        "--prompts.measured",
        str(MEASURED).replace("'", ""),
        "--prompts.match",
        f"{__name__}:judge",
        "--prompts.max_new_tokens",
        "20",
    ]
    assert main(["measure", "--config", str(tiny_config), "--run_dir", str(directory), *BARE, *prompts]) == 0
    return directory


def test_every_prompt_has_its_figures(measured, digits):
    """What the record says of a prompt is what its observations say: action, both readings, answers as they were matched."""
    record = json.loads((measured / "gap.jsonl").read_text())
    assert misfit("gap", record) == ""
    assert list(record["prompts"]) == ["own", *MEASURED]
    probe = FrozenProbe.load(measured / "probes" / "frozen")
    for name in MEASURED:
        items = apply_template(digits, name, PromptsConfig(), ErrorCollector("the set")).select(purpose="gap")
        test, slug = items.select(split="test"), name.replace(":", "-").replace(".", "-")
        seen = read_observations(measured / "observations" / f"base-test-{slug}", [i.id for i in test])
        labels, found = Labels.of(test), record["prompts"][name]
        cells = labels.cells[0]

        def balanced(right, cells=cells):
            return np.mean([right[cells == c].mean() for c in np.unique(cells)])

        said = labels.option_concept[np.arange(len(test)), seen.scores.numpy().argmax(1)]
        assert found["action"]["balanced"]["value"] == pytest.approx(balanced(said == labels.concept))
        read = probe.predict_proba(probe.features(seen.residuals)).argmax(1)
        assert found["reading"]["balanced"]["value"] == pytest.approx(balanced(read == labels.concept))
        assert found["gap"]["balanced"]["value"] == pytest.approx(balanced(read == labels.concept) - balanced(said == labels.concept))
        matched = AnswerMatcher(leading=name.startswith("binary"), judge=judge)(seen.answers, test.items)
        assert found["generated"]["matched"]["value"] == pytest.approx(np.mean(matched >= 0))
        told = np.where(matched < 0, -1, labels.option_concept[np.arange(len(test)), matched])
        assert found["generated"]["balanced"]["value"] == pytest.approx(balanced(told == labels.concept))
        assert found["generated"]["exact"]["value"] <= found["generated"]["matched"]["value"]
        assert set(found["modality"]) == {"audio", "vision"} and found["within"]["reading"]["balanced"]["lower"] is not None
        limit = json.loads((measured / "observations" / f"base-test-{slug}" / "request.json").read_text())["generate"]
        assert limit == (3 if name in ("paper", "binary") else 20)


def test_what_other_prompts_store_is_foretold(measured, digits):
    """Their observations on disk, of test and, for the probes that are fitted again, of fit, but for the length of shards' headers."""
    config, stored = parse_config(["--config", str(measured / "config.yaml")]), 0
    names = [name.replace(":", "-").replace(".", "-") for name in MEASURED]
    for stage in (measured / "observations").iterdir():
        if stage.name.endswith(tuple(f"-{name}" for name in names)):
            seen = read_observations(stage)
            stored += sum(t.nbytes for t in [*seen.residuals.values(), seen.scores])
    sizes, found = {"n_layers": 5, "width": 48, "itemsize": 4}, observation_bytes
    with_them = found(digits, config, **sizes)
    config.prompts.measured = []
    alone = found(digits, config, **sizes)
    assert with_them["measure"] - alone["measure"] == pytest.approx(stored, rel=0.1)
    assert with_them["close"] - alone["close"] > with_them["measure"] - alone["measure"]


def test_the_run_s_own_prompt_stands_first_with_its_own_figures(measured):
    record = json.loads((measured / "gap.jsonl").read_text())
    own = record["prompts"]["own"]
    for side, key in (("action", "balanced"), ("action", "auroc"), ("reading", "balanced"), ("gap", "balanced"), ("gap", "matched")):
        assert own[side][key] == record[side][key]
    assert own["within"]["reading"] == {k: own["reading"][k] for k in ("balanced", "auroc")}
    assert own["generated"]["balanced"] == record["generated"]["balanced_lenient"]
    assert own["gap_difference"]["value"] == 0 and own["modality"]["audio"]["gap"] == {
        k: record["modality"]["audio"]["gap"][k] for k in ("balanced", "matched", "auroc")
    }


def test_reports_show_every_prompt(measured, capsys):
    """Console and page, with a sentence; a run under one prompt has neither."""
    assert main(["report", str(measured)]) == 0
    shown, page = capsys.readouterr().out, (measured / "report.html").read_text()
    assert "test under several prompts" in shown and "Prompt by prompt" in page and "adapted model, trained" not in page
    for name in ("own", "paper", "binary", "binary_explained", "free", "check"):
        assert f" {name} " in shown and f">{name.replace('_', '_<wbr>')}<" in page
    sentence = prompt_words(summarise(measured)["prompts"])[0]
    assert sentence.startswith("prompts: the gap is shown under ") and sentence in " ".join(shown.split())
    assert prompt_words({}) == []


@pytest.mark.slow
def test_a_run_may_be_asked_in_another_prompt(tiny_config, digits, tmp_path):
    """Then its probe, record and items are of that prompt; the data's own is one of the others; the reports read the same items back."""
    command = ["measure", "--config", str(tiny_config), "--run_dir", str(tmp_path), *BARE, "--prompts.asked", "paper"]
    assert main([*command, "--prompts.measured", "[own]", "--prompts.refit", "false", "--data.shuffle_options", "true"]) == 0
    record = json.loads((tmp_path / "gap.jsonl").read_text())
    assert list(record["prompts"]) == ["paper", "own"] and "within" not in record["prompts"]["own"]
    items, known = asked_items(tmp_path), json.loads((tmp_path / "items.json").read_text())
    assert items.fingerprint(labels=True) == known["fingerprint"] != digits.fingerprint(labels=True)
    gap = digits.select(purpose=("gap", "transfer")).items
    assert known["option_order"] == items.orders and set(items.orders) == {i.id for i in gap}
    stored = json.loads((tmp_path / "observations" / "base-fit" / "manifest.json").read_text())["option_order"]
    assert stored and all(items.orders[i] == order for i, order in stored.items())
    by_id = {i.id: i for i in items}
    for item in gap[:50]:
        asked = by_id[item.id]
        assert [o.meaning for o in asked.options] == [item.options[k].text for k in asked.order] and asked.text.endswith(
            "choices directly."
        )


@pytest.mark.slow
def test_closing_is_measured_under_the_other_prompts_as_well(quick_config, tmp_path, capsys):
    """What training under one prompt did to another: from the base model before, and from the adapter after."""
    command = ["close", "--config", str(quick_config), "--run_dir", str(tmp_path), "--train.epochs", "1", "--export.verify", "false"]
    assert main([*command, "--prompts.measured", "[gapclose.data.digits.prompts:check]", "--prompts.refit", "false"]) == 0
    base, adapted = (r for r in map(json.loads, (tmp_path / "gap.jsonl").read_text().splitlines()) if r["stage"].endswith("/test"))
    name = "gapclose.data.digits.prompts:check"
    before, after = base["prompts"][name], adapted["prompts"][name]
    gain = after["action"]["balanced"]["value"] - before["action"]["balanced"]["value"]
    assert after["change"]["action_gain"]["value"] == pytest.approx(gain) and "change" not in before
    assert adapted["prompts"]["own"]["change"]["action_gain"] == adapted["change"]["action_gain"]
    assert after["reading"] == before["reading"]  # LoRA sits after the probe
    requests = [
        json.loads((tmp_path / "observations" / f"{s}-test-gapclose-data-digits-prompts-check" / "request.json").read_text())
        for s in ("base", "adapted")
    ]
    assert requests[0]["adapter"] == "" != requests[1]["adapter"]
    assert "adapted model, trained under the first" in (tmp_path / "report.html").read_text()
    assert "trained under the first" in capsys.readouterr().out


@pytest.mark.usefixtures("no_outline")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompts.measured", "[paper, free]"), "prompts ['paper', 'free']: the model 'digits' knows the words of its own questions"),
        (("--prompts.match", "nowhere_at_all:f"), "prompts.match 'nowhere_at_all:f' cannot be imported"),
        (("--prompts.measured", "[nowhere_at_all:f]"), "the prompt 'nowhere_at_all:f' cannot be imported"),
        (("--prompts.asked", "paperback"), "prompts.asked 'paperback' is no prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_loads(digits_directory, tmp_path, capsys, arguments, says):
    assert main(["validate", "--data.path", str(digits_directory), "--model.path", "digits", *arguments]) == 2
    message = capsys.readouterr().err
    assert says in message and message.startswith("error:") and "Traceback" not in message


MATCHES = [  # options, answer, leading, index
    (("yes", "no"), "No.", True, 1),
    (("yes", "no"), "No, the man says yes to her.", True, 1),
    (("yes", "no"), "No, the man says yes to her.", False, 1),
    (("yes", "no"), "I would say no", True, 1),
    (("yes", "no"), "nothing", True, None),
    (("a car", "a car and a dog"), "A car and a dog stand there.", True, 1),
    (("a car", "a car and a dog"), "There is a car.", False, 0),
]


@pytest.mark.parametrize(("options", "answer", "leading", "index"), MATCHES)
def test_answers_that_begin_with_their_option(options, answer, leading, index):
    item = Item(id="i", clip="c", split="test", modality="v", messages=[], options=[Option(text=t, concept="x") for t in options])
    assert AnswerMatcher(leading=leading)([answer], [item]).tolist() == [-1 if index is None else index]


def test_a_judge_is_asked_last_and_must_name_an_option():
    item = Item(id="i", clip="c", split="test", modality="v", messages=[], options=[Option(text=t, concept="x") for t in ("red", "blue")])
    asked = []

    def scarlet(answer, item):
        asked.append(answer)
        return {"scarlet": "red", "green": "green", "?": 1 / len(item.options)}.get(answer)

    match = AnswerMatcher(judge=scarlet)
    assert match(["blue", "Blue!", "scarlet", "navy"], [item] * 4).tolist() == [1, 1, 0, -1] and asked == ["scarlet", "navy"]
    with pytest.raises(ValueError, match=r"took the answer 'green' to item 'i' for 'green'; it must give one of \['red', 'blue'\]"):
        match(["green"], [item])
    with pytest.raises(ValueError, match="prompts.match failed on the answer '' to item 'i' \\(ZeroDivisionError"):
        AnswerMatcher(judge=lambda *_: 1 / 0)([""], [item])
