"""What is checked before a model loads: every fault of a set in one message, and nothing else done."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from gapclose.core.errors import ErrorCollector
from gapclose.data.generated import people
from gapclose.data.generated.general import OBJECTION
from gapclose.data.item_set import ItemSet
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.items import check_expressible, prepare_items
from gapclose.pipeline.run_dir import bind_items
from gapclose.pipeline.validate import no_objection_kept

CONTENT, LIE = {"text": "odd", "concept": "standard"}, {"text": "unseen", "concept": "false"}


def row(ident: str, split: str, *media: str, **changes) -> dict:
    """One item about the clip of its own id, right but for ``changes``."""
    kinds = {"png": "image", "wav": "audio", "mp4": "video"}
    content = [{"type": kinds[m.split(".")[1]], "path": m} for m in media] + [{"type": "text", "text": "Is it odd?"}]
    plain = {"id": ident, "clip": f"clip-{ident}", "split": split, "modality": "vision", "options": [CONTENT, LIE], "gold": "odd"}
    return plain | {"messages": [{"role": "user", "content": content}]} | changes


def test_a_model_without_media_is_refused_before_a_generated_set_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gapclose.pipeline.items.load_processor", lambda config: SimpleNamespace())
    config, run = Path(__file__).parents[2] / "configs" / "places.yaml", tmp_path / "run"
    with pytest.raises(
        ValueError, match="'digits' takes no image and no audio, and the questions of data.path 'places' have image and audio"
    ):
        prepare_items(parse_config(["--config", str(config), "--model.path", "digits", "--run_dir", str(run)]), closing=True)
    assert not run.exists()


@pytest.fixture
def faulty(tmp_path):
    """A set with every kind of fault, and what must be said about each."""
    wavs = {"whole": ([0.1] * 800, "PCM_16"), "cut": ([0.1] * 800, "PCM_16"), "nan": ([0, np.nan], "FLOAT"), "silent": ([], "PCM_16")}
    for name, (samples, subtype) in wavs.items():
        soundfile.write(tmp_path / f"{name}.wav", np.array(samples, dtype="float32"), 16_000, subtype=subtype)
    for name in ("whole", "cut"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    for name in ("cut.wav", "cut.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "set.json").write_text(json.dumps({"concepts": ["standard", "false"], "alarm": ["false"]}))
    path, lines = tmp_path / "items.jsonl", []
    says = [
        f"{path}: split 'val' has no items with purpose 'gap'; add some",
        f"{path}: split 'fit' has items whose gold expresses 'false' about 1 clips, too few for 4 folds of clips; add clips, lower",
        f"{path}: split 'test' has items whose gold expresses 'standard' about 2 clips, too few for 4 folds",
        f"{path}: split 'test' has no item whose gold expresses 'false'",
        f"{path}: split 'train' has no items with purpose 'retain'; add some or set train.retain to 0 (tables",
    ]

    def put(line: dict | str, *parts: str) -> None:
        lines.append(line if isinstance(line, str) else json.dumps(line))
        says.extend(p.replace("HERE", f"{path}:{len(lines)}") for p in parts)

    put(row("fine", "fit", "whole.png", "whole.wav"))
    put(row("fine-lie", "fit", "whole.png", gold="unseen"))
    put(row("fine-test", "test", "whole.wav"))
    put(
        row("fine-train", "train", "whole.wav", gold=None), "the same media file is in several splits: fit (item 'fine': whole.wav), test ("
    )
    put(row("lost", "fit", "lost.png"), f"{tmp_path / 'lost.png'}: item 'lost': no such image file; restore it")
    put(row("cut", "fit", "cut.wav"), f"{tmp_path / 'cut.wav'}: item 'cut': the audio is truncated", "copy it again")
    put(row("infinite", "fit", "nan.wav"), f"{tmp_path / 'nan.wav'}: item 'infinite': the audio has 1 samples that are not finite")
    put(row("silent", "fit", "silent.wav"), f"{tmp_path / 'silent.wav'}: item 'silent': the audio has no samples; replace it")
    put(row("blurred", "fit", "cut.png"), f"{tmp_path / 'cut.png'}: item 'blurred': the image cannot be decoded")
    put(row("empty", "fit", "empty.wav"), f"{tmp_path / 'empty.wav'}: item 'empty': the audio file is empty; replace it")
    put(row("film", "fit", "film.mp4"), f"{tmp_path / 'film.mp4'}: item 'film': the film cannot be decoded (Invalid data")
    put(row("bare", "fit", options=[{"text": "odd"}, LIE]), "HERE: item 'bare': option 'odd' has no concept; name one of")
    put(
        row("odd", "fit", options=[CONTENT | {"concept": "x"}, LIE]),
        "HERE: item 'odd': option 'odd' expresses 'x', which set.json does not",
    )
    put(row("gold", "fit", gold="even"), "HERE: item 'gold': gold 'even' is not among the options ['odd', 'unseen']; copy")
    put(row("fine", "fit"), "HERE: item id 'fine' was already used on line 1; give")
    put(
        row("split", "test", clip="clip-fine"),
        f"{path}: clip 'clip-fine' is in several splits: fit (item 'fine', line 1), test (item 'split'",
    )
    put('{"id": "broken",', "HERE: not JSON", "write one JSON object per line")
    put(row("key", "fit", colour="red"), "HERE: item 'key': unknown keys ['colour']; put free labels under `tags`")
    path.write_text("\n".join(lines) + "\n")
    return tmp_path, says


@pytest.mark.parametrize("command", ["validate", "measure", "close"])
def test_all_faults_of_a_set_are_told_at_once_and_no_model_loads(command, faulty, tiny_checkpoint, tmp_path_factory, monkeypatch, capsys):
    """Exit status 2, one message with every fault, no traceback, no weights read, nothing left in the run directory."""
    directory, says = faulty
    monkeypatch.setattr("gapclose.pipeline.context.load_model", lambda config: pytest.fail("a model was loaded"))
    run = tmp_path_factory.mktemp("run")
    arguments = ["--data.path", str(directory), "--model.path", str(tiny_checkpoint), "--run_dir", str(run)]
    if command == "measure":  # which needs neither train nor val
        says = [s for s in says if "'val'" not in s and "'train'" not in s]
    assert main([command, *arguments]) == 2
    message = capsys.readouterr().err
    for part in says:
        assert part in message, f"{part!r} is not in:\n{message}"
    assert message.startswith(f"error: {message.count('  - ')} problems with the item set {directory}")
    assert message.count("error:") == 1 and "Traceback" not in message
    assert len(message.splitlines()) - 1 == message.count("  - ") == (18 if command == "measure" else 20)
    assert list(run.iterdir()) == []


def test_a_refused_start_does_not_bind_the_run_directory(faulty, digits_directory, tiny_checkpoint, tmp_path_factory, monkeypatch):
    """After the path of the data is fixed, the same run directory may be used."""
    run = tmp_path_factory.mktemp("run")
    arguments = ["close", "--model.path", str(tiny_checkpoint), "--run_dir", str(run), "--data.path"]
    assert main([*arguments, str(faulty[0])]) == 2

    class Reached(Exception):
        pass

    def load_model(config):
        raise Reached

    monkeypatch.setattr("gapclose.pipeline.context.load_model", load_model)
    with pytest.raises(Reached):
        main([*arguments, str(digits_directory)])
    assert list(run.iterdir()) == []  # nor does one that ends before the model is there


def test_a_model_without_tokenizer_is_one_of_the_problems(faulty, tmp_path_factory, capsys):
    """A wrong model path is told together with the faults of the set."""
    assert main(["validate", "--data.path", str(faulty[0]), "--model.path", "/nowhere/model"]) == 2
    message = capsys.readouterr().err
    assert message.count("model.path '/nowhere/model': no such directory") == 1 and "item 'infinite'" in message
    assert main(["validate", "--data.path", str(faulty[0]), "--model.path", "digit"]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_set_is_counted(digits_directory, tiny_checkpoint, tmp_path, capsys):
    """`gapclose validate` prints what is there, untruncated, and writes nothing for a set of one's own."""
    arguments = ["--data.path", str(digits_directory), "--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]
    assert main(["validate", *arguments]) == 0
    shown = capsys.readouterr().out
    for part in ("696 items, 96 clips", "labelled", "false_vision", "false_audio", "transfer", "no problems found"):
        assert part in shown
    assert "…" not in shown and not (tmp_path / "run").exists()


def test_a_set_without_train_items_is_checked_for_measuring(digits_directory, tiny_checkpoint, tmp_path, capsys):
    """Retention items, which training alone needs, may be missing; val may be there."""
    folder = Path(shutil.copytree(digits_directory, tmp_path / "set"))
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    kept = [r for r in rows if r["split"] != "train" and r.get("purpose", "gap") != "retain"]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    assert main(["validate", "--data.path", str(folder), "--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "no problems found; without train items this set is for `gapclose measure` alone" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("no_outline")
def test_what_the_machine_lacks_is_a_warning(digits_directory, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """A configuration may be checked where it cannot run: no GPU for a quantised base, no network for an upload."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    arguments = ["--data.path", str(digits_directory), "--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]
    assert main(["validate", *arguments, "--model.quantisation", "4bit", "--export.push", "me/it"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: this machine cannot run it: model.quantisation 4bit needs a CUDA GPU" in shown
    assert "warning: this machine cannot run it: export.push needs the network" in shown
    assert main(["validate", *arguments, "--export.omni", "true"]) == 2  # no machine could: a fault of the configuration
    assert "export.omni" in capsys.readouterr().err
    assert main(["validate", *arguments]) == 0
    assert "cannot run it" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_outline")
def test_shares_of_a_set_that_names_its_splits_are_told_to_do_nothing(digits_directory, tiny_checkpoint, tmp_path, capsys):
    arguments = ["--data.path", str(digits_directory), "--model.path", str(tiny_checkpoint), "--run_dir", str(tmp_path / "run")]
    assert main(["validate", *arguments, "--data.shares", "[0.5, 0, 0, 0.5]"]) == 0
    assert "its items name their splits, so data.shares deals nothing out" in " ".join(capsys.readouterr().out.split())


def test_worlds_of_two_seeds_in_one_run_directory_are_two(tmp_path):
    """Validating with another seed first does not give the run that seed's clips."""
    from gapclose.data.config import DataConfig
    from gapclose.pipeline.config import Config

    few = [24, 24, 24, 24]
    one, two, again = (
        prepare_items(Config(run_dir=str(tmp_path), seed=s, data=DataConfig(clips=few)), closing=True).fingerprint() for s in (0, 1, 0)
    )
    assert one == again != two
    images = prepare_items(Config(run_dir=str(tmp_path), data=DataConfig(clips=few, sound=False)), closing=True)
    assert images.concepts == ("standard", "false_vision") and {k for i in images for k, _ in i.media} == {"image"}


@pytest.mark.usefixtures("no_outline")
@pytest.mark.parametrize("broken", [1, 2])
def test_items_with_broken_media_may_be_skipped_up_to_one_in_a_hundred(broken, digits_directory, tiny_checkpoint, tmp_path, capsys):
    """Those that are left out are told and remembered; more than 1 % of them stop the run; without the option every one does."""
    directory = tmp_path / "set"
    shutil.copytree(digits_directory, directory)
    for number in range(broken):
        (directory / "media" / f"fit-00{number}.wav").write_bytes(b"")
    arguments = ["validate", "--data.path", str(directory), "--model.path", str(tiny_checkpoint)]
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("the audio file is empty") == broken
    status = main([*arguments, "--data.on_error", "skip"])
    shown = capsys.readouterr()
    if broken == 1:
        assert status == 0 and "692 items (4 left out)" in shown.out
        assert shown.out.count("left out: item 'fit-000/") == 4
        config = parse_config([*arguments[1:], "--data.on_error", "skip", "--run_dir", str(tmp_path / "run")])
        bind_items(prepare_items(config, closing=True), tmp_path / "items.json")
        found = json.loads((tmp_path / "items.json").read_text())
        assert found["items"] == 692 and "the audio file is empty; replace it" in found["skipped"][0]["fault"]
    else:
        assert status == 2 and "8 of 696 items have media that cannot be used" in shown.err and "leaves out 1% at most" in shown.err
        assert "first: item 'fit-000/" in shown.err


def test_what_was_left_out_stands_beside_the_evidence(tiny_run, tmp_path):
    """Every item with its fault, and a line in the model card."""
    from gapclose.evaluation.run_records import summarise
    from gapclose.export.model_card import left_out, model_card

    (tmp_path / "items.json").write_text(
        json.dumps(
            {
                "root": "/home/me/data",
                "items": 99,
                "skipped": [{"item": "a", "fault": "/home/me/data/sounds/a.wav: empty"}],
                "notes": ["7 rows: why"],
            }
        )
    )
    missing = left_out(tmp_path)
    assert missing["skipped"] == [{"item": "a", "fault": "sounds/a.wav: empty"}]  # where the data lie is not told
    config = parse_config(["--config", str(tiny_run / "config.yaml")])
    card = model_card(summarise(tiny_run), config, SimpleNamespace(path="model", model=SimpleNamespace(config=None)), missing)
    assert "- 1 items beside the 99 were left out" in card and "- 7 rows: why" in card


def test_train_items_that_can_say_one_concept_alone_are_refused(digits):
    """What is read of them could change no answer; told before any model loads."""
    item = next(i for i in digits if i.split == "train" and i.purpose == "gap")
    lone = replace(item, options=[o for o in item.options if o.concept == "standard"], gold=None)
    problems = ErrorCollector("the set")
    check_expressible(replace(digits, items=tuple(lone if i is item else i for i in digits)), problems)
    with pytest.raises(ValueError, match=f"the options of 1 train items express one concept alone, e.g. '{item.id}': 'standard'"):
        problems.raise_if_any()
    check_expressible(digits, quiet := ErrorCollector("the set"))
    assert len(quiet) == 0


def altered(digits_directory, directory, change) -> Path:
    """The set with every line of items.jsonl changed."""
    shutil.copytree(digits_directory, directory)
    lines = [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (directory / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


@pytest.mark.usefixtures("no_outline")
def test_options_that_no_answer_tells_apart_are_named(digits_directory, tiny_checkpoint, tmp_path, capsys):
    """With file, item and both options, before anything costly."""

    def change(line):
        if line["id"].startswith("fit-000/"):
            line["options"][0]["text"] = line["options"][1]["text"].upper()

    directory = altered(digits_directory, tmp_path / "set", change)
    assert main(["validate", "--data.path", str(directory), "--model.path", str(tiny_checkpoint)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{directory / 'items.jsonl'}: item 'fit-000/" in told
    assert re.search(r"no generated answer could tell option '([A-Z]+)' from option '([a-z]+)'", told)


@pytest.mark.slow
@pytest.mark.usefixtures("no_outline")
def test_options_that_a_prompt_does_not_name_are_a_warning(digits_directory, tiny_checkpoint, tmp_path, capsys):
    """By question, with counts, an example and the remedy; of a shipped model a note. Listed options, letters too, are named."""
    where = ["--run_dir", str(tmp_path / "run"), "--data.path"]
    assert main(["validate", *where, str(digits_directory), "--model.path", str(tiny_checkpoint)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    found = re.search(
        r"warning: (\d+) of (\d+) items with the question 'parity' in the prompt 'own' do not name 'unseen', 'unheard', on", told
    )
    assert found and found[1] == found[2] and "e.g. item 'fit-0" in told and "list the options in the prompt, choose prompts.asked" in told
    assert main(["validate", *where, str(digits_directory), "--model.path", "digits"]) == 0
    told = capsys.readouterr().out
    assert "note: " in told and "do not name" in told and "warning: " not in "".join(x for x in told.splitlines() if "do not name" in x)

    def listing(line):
        content = line["messages"][-1]["content"]
        line["stem"] = content[-1]["text"]
        content[-1]["text"] += " Options: " + ", ".join(o["text"].upper() for o in line["options"])

    listed = altered(digits_directory, tmp_path / "listed", listing)
    for prompt in ("own", "paper"):
        assert main(["validate", *where, str(listed), "--model.path", str(tiny_checkpoint), "--prompts.asked", prompt]) == 0
        assert "do not name" not in capsys.readouterr().out


def test_retention_items_that_no_objection_could_answer_are_a_warning():
    """There is none with enough of them, nor without any item to keep; one of many, or one that is rightly objected to, is too few."""
    clips = {"fit": 2, "train": 8, "val": 2, "test": 2}
    items = ItemSet(root=Path(), name="people", concepts=people.CONCEPTS, alarm=people.ALARM, items=people.draw(0, clips))
    kept = [i for i in items if i.purpose == "retain" and i.split == "train"]
    offering = [i for i in kept if OBJECTION in [o.text for o in i.options]]
    others = [i for i in items if i not in kept]
    free = [i for i in kept if i not in offering]
    right = [replace(i, gold=[o.text for o in i.options].index(OBJECTION)) for i in offering]
    assert not no_objection_kept(items) and not no_objection_kept(items.holding(others))
    for some, count in (([], 0), (right, 0), (offering[:1], 1)):
        (said,) = no_objection_kept(items.holding([*others, *free * 4, *some]))
        assert said.startswith(f"{count} of {len(free) * 4 + len(some)} retention items of train have an objecting option (error)")
