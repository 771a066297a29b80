"""The layout of IMAVB: read, split by clip, twins together; with the tiny model through `gapclose measure`."""

import json
import shutil

import numpy as np
import pytest
import torch

from gapclose.core.errors import ErrorCollector
from gapclose.data.config import PromptsConfig
from gapclose.data.formats import read_set
from gapclose.data.option_shuffle import shuffle_options
from gapclose.data.prompt_templates import apply_template
from gapclose.data.splits import SplitAssignment
from gapclose.models.config import ModelConfig
from gapclose.models.loading import load_model
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches
from gapclose.observe.request import ObservationRequest

pytest.importorskip("av", reason="films need PyAV")

from gapclose.data.digits import videos as films
from gapclose.evaluation.controls.interchange import twins
from gapclose.pipeline.cli import main

pytestmark = pytest.mark.usefixtures("no_outline")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """32 films of the embedded world in the public set's layout."""
    path = tmp_path_factory.mktemp("films")
    films.write(path, clips=32, seed=0)
    return path


def read(path, dealing=None):
    problems = ErrorCollector("the set")
    items = read_set(path, problems, dealing or SplitAssignment())
    problems.raise_if_any()
    return items


def test_the_four_tables_become_items_with_twins(directory):
    """Concepts, letters, the paper's prompt, film and sound track, and every item's twin beside it in one split."""
    items = read(directory)
    assert len(items) == 128 and items.concepts == ("standard", "false_vision", "false_audio") and items.alarm == items.concepts[1:]
    item = next(i for i in items if i.id == "train-003/misleading_audio")
    row = json.loads((directory / "misleading_audio.jsonl").read_text().splitlines()[3])
    assert (item.concept, item.modality, item.media) == ("false_audio", "audio", [(k, "videos/train-003.mp4") for k in ("video", "audio")])
    assert [o.text for o in item.options] == list("ABCDEF") and item.gold == 5
    assert item.text.startswith(f"Question:\n{row['question']}\n\nOptions:\nA. {row['option_a']}\n")
    assert item.text.endswith(
        "F. The audio detail in the question is incorrect\n\nAnswer with the option's letter from the given choices directly."
    )
    found = twins(items.items)
    assert len(found) == 128 and found[item.id] == "train-003/standard_audio"
    split = {i.clip: i.split for i in items}
    assert all(split[i.clip] == i.split for i in items)
    assert [i.clip for i in items][::4] == list(split) and all(len({i.clip for i in items.items[n : n + 4]}) == 1 for n in range(0, 128, 4))


@pytest.mark.parametrize("stated", ["../other.mp4", "/other.mp4"])
def test_a_film_outside_the_data_is_refused(directory, tmp_path, stated):
    """Where the row says so and there is no other; one under ``videos`` is taken whatever the row says."""
    shutil.copytree(directory, tmp_path / "data")
    path = tmp_path / "data" / "standard_vision.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"video": stated}), *others]))
    film = read(tmp_path / "data").items[0].media[0][1]
    clip = json.loads(first)["video_id"]
    (tmp_path / "data" / "videos" / f"{clip}.mp4").rename(tmp_path / "other.mp4")
    for table in ("misleading_audio", "misleading_vision", "standard_audio"):  # whichever is read first says where the film is
        lines = [json.loads(line) for line in (tmp_path / "data" / f"{table}.jsonl").read_text().splitlines()]
        changed = [line | ({"video": stated} if line["video_id"] == clip else {}) for line in lines]
        (tmp_path / "data" / f"{table}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    problems = ErrorCollector("the set")
    read_set(tmp_path / "data", problems, SplitAssignment())
    (message,) = problems.messages
    assert film and f"video is {stated!r}, which leaves" in message and f"move or link the film to videos/{clip}.mp4" in message


def test_its_own_prompt_is_the_paper_s_and_there_are_others(directory):
    """The same text and options come out of `paper`; `binary` and `free` have none of the letters; a drawn order is written out again."""
    items, problems, config = read(directory), ErrorCollector("the set"), PromptsConfig()
    assert apply_template(items, "paper", config, problems).items == items.items
    binary, free = (apply_template(items, name, config, problems) for name in ("binary", "free"))
    shuffled = shuffle_options(items, 0, problems)
    assert not problems.messages
    for item, asked, freely, mixed in zip(items, binary, free, shuffled, strict=True):
        assert [o.concept for o in asked.options] == ["standard", f"false_{item.modality}"] and asked.concept == item.concept
        assert f"\n{item.options[0].words}" not in asked.text and freely.text == f"Question:\n{item.stem}\n\nAnswer in a few words."
        assert freely.options[freely.gold].text == item.options[item.gold].meaning == mixed.options[mixed.gold].meaning
        assert all(f"\n{o.text}. {o.meaning}\n" in mixed.text for o in mixed.options) and mixed.media == item.media
    assert any(i.options[4].concept == "standard" for i in shuffled)
    pairs = twins(shuffled.items)
    by_id = {i.id: i for i in shuffled}
    assert len(pairs) == 128 and all(by_id[a].order == by_id[b].order for a, b in pairs.items())


def test_a_film_is_decoded_once_for_all_its_questions(directory, tiny_checkpoint, monkeypatch):
    """Even where the cache holds no more than one clip's film and sound."""
    from gapclose.data import media

    decoded = []
    decode = media.decode
    monkeypatch.setattr(media, "decode", lambda kind, path, *how: decoded.append((kind, path)) or decode(kind, path, *how))
    items, loaded = read(directory), load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))
    shown = media.MediaLoader(items.root, loaded.sampling_rate, framing=items.framing, limit=2)
    for item in items.items[:16]:
        loaded.prompts([item], shown)
    assert len(decoded) == len(set(decoded)) == 8


def test_clips_are_dealt_out_by_shares_and_seed(directory):
    """Shares of the clips, to the nearest one; the same again for the same seed, whatever the order of the rows."""
    items = read(directory)
    counts = {s: len({i.clip for i in items.select(split=s)}) for s in ("fit", "train", "val", "test")}
    assert counts == {"fit": 10, "train": 9, "val": 3, "test": 10}
    names = [f"clip-{n}" for n in range(40)]
    dealt = SplitAssignment(shares=[0.5, 0, 0, 0.5], seed=1).deal(names)
    assert (
        dealt == SplitAssignment(shares=[0.5, 0, 0, 0.5], seed=1).deal(names[::-1]) != SplitAssignment(shares=[0.5, 0, 0, 0.5]).deal(names)
    )
    assert sorted(dealt.values()) == ["fit"] * 20 + ["test"] * 20


def test_the_hub_s_layout_reads_alike(directory, tmp_path):
    """Parquet under data/, the film as a struct, options E and F left out: the same items."""
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "films" / "data").mkdir(parents=True)
    shutil.copytree(directory / "videos", tmp_path / "films" / "videos")
    for path in directory.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["video"] = {"path": row["video"], "bytes": None}
            del row["option_e"], row["option_f"]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "films" / "data" / f"{path.stem}-00000-of-00001.parquet")
    assert read(tmp_path / "films").items == read(directory).items


FAULTS = {
    "a table is missing": (lambda p: (p / "standard_audio.jsonl").unlink(), ["no table standard_audio", "IMAVB has standard_vision, "]),
    "a table is empty": (lambda p: (p / "standard_audio.jsonl").write_text(""), ["standard_audio.jsonl: holds no rows", "fill it"]),
    "no JSON": (
        lambda p: (p / "standard_audio.jsonl").write_text("{\n"),
        ["standard_audio.jsonl: cannot be read (line 1: not JSON (", "write one JSON object per line"],
    ),
    "no object": (lambda p: (p / "standard_audio.jsonl").write_text("[1]\n"), ["standard_audio.jsonl:1: holds list, not an object"]),
    "other bytes": (
        lambda p: (p / "standard_audio.jsonl").write_bytes(b"\xff\xfe"),
        ["standard_audio.jsonl: cannot be read (not UTF-8 (it is UTF-16, line 1)", "save it again"],
    ),
    "broken Parquet": (
        lambda p: (p / "standard_audio.jsonl").rename(p / "standard_audio.parquet"),
        ["standard_audio.parquet: cannot be read (Parquet magic bytes not found"],
    ),
    "no clip": ({"video_id": None}, ["item None of standard_audio: video_id is None; fill it in"]),
    "no question": ({"question": " "}, ["item 'train-000' of standard_audio: question is ' '; fill it in"]),
    "no option": ({"option_c": ""}, ["item 'train-000' of standard_audio: option_c is ''"]),
    "no letter": ({"correct_answer": "seven"}, ["correct_answer is 'seven'; it must be a letter from A to F"]),
    "another table's letter": ({"correct_answer": "F"}, ["correct_answer 'F' means false_audio, but the table's items are standard; move"]),
    "no film": (
        lambda p: (p / "videos" / "train-000.mp4").unlink(),
        ["train-000.mp4: item 'train-000/misleading_audio': no such video file"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_set_is_told_with_file_row_and_remedy(directory, tiny_checkpoint, tmp_path, capsys, fault):
    """Through the command: one message, no traceback, status 2."""
    change, says = FAULTS[fault]
    shutil.copytree(directory, tmp_path / "set")
    path = tmp_path / "set" / "standard_audio.jsonl"
    if isinstance(change, dict):
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
        says = [f"{path}:1: ", *says]
    else:
        change(tmp_path / "set")
    assert (
        main(
            [
                "validate",
                "--data.path",
                str(tmp_path / "set"),
                "--model.path",
                str(tiny_checkpoint),
                "--probe.folds",
                "2",
                "--train.retain",
                "0",
            ]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert message.startswith("error:") and "Traceback" not in message and all(part in message for part in says), message


def test_the_tiny_model_sees_and_hears_films(directory, tiny_checkpoint):
    """Padded equals unpadded, and blanking the film or its sound changes what is observed."""
    loaded = load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))
    items = read(directory)
    batch, config = list(items.items[:6]), ObserveConfig(max_new_tokens=3, share_prefix=False)
    wanted = ObservationRequest(layers=[0, 3, 5], generate=True)
    together = forward_batches(loaded, [batch], loaded.media(items), config, wanted)
    alone = forward_batches(loaded, [[i] for i in batch], loaded.media(items), config, wanted)
    for layer in wanted.layers:
        assert torch.allclose(together.residuals[layer], alone.residuals[layer], atol=1e-4)
    assert torch.allclose(together.scores, alone.scores, atol=1e-4) and together.answers == alone.answers
    prompt = loaded.prompts(batch, loaded.media(items))
    assert prompt["video_grid_thw"].tolist() == [[4, 2, 2]] * 6  # eight frames, two a token
    assert np.allclose(prompt["video_second_per_grid"], [2 * loaded.media(items).load("video", i.media[0][1]).seconds for i in batch])
    for kind in ("video", "audio"):
        blank = forward_batches(loaded, [batch], loaded.media(items, blank=(kind,)), config, wanted)
        assert not torch.allclose(together.residuals[5], blank.residuals[5], atol=1e-4)


CONFIG = """
data: {{path: {data}, shares: {shares}, frames: 4}}
model: {{path: {model}, dtype: float32}}
observe: {{batch_size: 16, max_new_tokens: 3}}
probe: {{families: [logistic], c: [0.01], folds: 2}}
gap: {{replicates: 100}}
controls: {{random_weights: false, draws: 2, nested: false, codelength: false, baselines: false}}
force: true
export: {{unimproved: true}}
train: {{epochs: 1, global_batch_size: 12, micro_batch_size: 12, learning_rate: 0.01, retain: 0}}
"""


@pytest.mark.slow
def test_films_go_through_measure(directory, tiny_checkpoint, tmp_path, capsys):
    """`gapclose measure` on the public layout: every control, blanked film and blanked sound among them."""
    path = tmp_path / "films.yaml"
    path.write_text(CONFIG.format(data=directory, model=tiny_checkpoint, shares="[0.5, 0, 0, 0.5]"))
    assert main(["measure", "--config", str(path), "--run_dir", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "measurement.json").read_text())
    names = {c["name"] for c in found["controls"]}
    assert {"blank_video_frozen", "blank_audio_frozen", "blank_all_refit"} <= names
    assert found["interchange"]
    assert json.loads((tmp_path / "run" / "items.json").read_text())["skipped"] == []


@pytest.mark.slow
def test_films_go_through_close(directory, tiny_checkpoint, tmp_path):
    """Training, re-measurement, export and its verification in a fresh process, on films."""
    path = tmp_path / "films.yaml"
    path.write_text(CONFIG.format(data=directory, model=tiny_checkpoint, shares="[0.3, 0.3, 0.2, 0.2]"))
    assert main(["close", "--config", str(path), "--run_dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "adapter" / "verified.json").read_text())["adapter"]["items"]


@pytest.mark.parametrize(("about", "kind", "letters"), [("vision", "video", "ABCDE"), ("audio", "audio", "ABCDE")])
def test_questions_about_one_half_of_the_films_alone(directory, about, kind, letters):
    """For models that only see or only hear: neither the other half of a film, nor the option that it was wrong."""
    problems = ErrorCollector("the set")
    items = read_set(directory, problems, SplitAssignment(), about=about)
    assert not problems and len(items) == 64 and items.concepts == ("standard", f"false_{about}") and items.alarm == items.concepts[1:]
    assert {k for i in items for k, _ in i.media} == {kind} and {i.modality for i in items} == {about}
    false = next(i for i in items if i.concept == f"false_{about}")
    assert "".join(o.text for o in false.options) == letters and false.options[false.gold].text == "E"
    assert f"E. The {'visual' if about == 'vision' else 'audio'} detail in the question is incorrect\n\nAnswer" in false.text


def test_other_layouts_have_no_halves(digits_directory):
    """A key that would do nothing is refused."""
    problems = ErrorCollector("the set")
    read_set(digits_directory, problems, SplitAssignment(), about="vision")
    assert "not in the layout of IMAVB" in problems.messages[0]
