"""The layout of AVHBench: questions that are answered by yes or no."""

import json
import shutil

import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.data.formats import read_set
from gapclose.data.option_shuffle import shuffle_options
from gapclose.data.splits import SplitAssignment
from gapclose.pipeline.cli import main

pytest.importorskip("av", reason="films need PyAV")

from gapclose.data.digits import videos as films

pytestmark = pytest.mark.usefixtures("no_outline")

HEAR, SEE, MATCH = "Video-driven Audio Hallucination", "Audio-driven Video Hallucination", "AV Matching"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A film and its copy with another sound for each of 12 clips; a file of questions a film."""
    path = tmp_path_factory.mktemp("avh")
    films.write(path / "made", clips=12)
    (path / "json").mkdir()
    (path / "video").mkdir()
    for n, film in enumerate(sorted((path / "made" / "videos").glob("*.mp4"))):
        for name in (f"{n:05d}", f"{n:05d}_swap"):
            shutil.copy(film, path / "video" / f"{name}.mp4")
            rows = [
                (HEAR, "Is a seven said in the audio?", "Yes"),
                (HEAR, "Is a ten said in the audio?", "No"),
                (SEE, "Is a cat visible?", "No"),
            ]
            rows += [(SEE, "Is a digit visible?", "Yes"), (MATCH, "Do they match?", "No"), ("AV Captioning", "Describe it.", "A digit.")]
            keyed = [{"video_id": name, "task": t, "text": q, "label": a} for t, q, a in rows]
            (path / "json" / f"{name}.json").write_text(json.dumps(keyed))
    shutil.rmtree(path / "made")
    return path


def test_questions_become_items_about_what_is_seen_and_heard(directory):
    """Agreeing is standard, no is the alarm; a copy with another sound stays with its film; captions are told."""
    problems = ErrorCollector("the set")
    items = read_set(directory, problems, SplitAssignment())
    problems.raise_if_any()
    assert len(items) == 120 and items.concepts == ("true", "false") and items.alarm == ("false",)
    item = next(i for i in items if i.id == "00003_swap/2")
    assert (item.clip, item.modality, item.concept) == ("00003", "audio", "false") and item.media[0] == ("video", "video/00003_swap.mp4")
    assert item.text == "Is a ten said in the audio? Answer with yes or no." and [o.text for o in item.options] == ["yes", "no"]
    assert item.stem == "Is a ten said in the audio?" and item.tags == {"twin": "00003_swap/1"}  # "Is a seven said in the audio?": yes
    assert all(bool(i.tags) == (i.modality != "matching") for i in items)  # a cat, a digit: one word in four
    mixed = shuffle_options(items, 0, problems)
    assert {i.text.rpartition("? ")[2] for i in mixed} == {"Answer with yes or no.", "Answer with no or yes."} and not problems.messages
    split = {i.clip: i.split for i in items}
    assert len(split) == 12 and all(split[i.clip] == i.split for i in items)
    captions, swapped = items.notes
    assert captions == f"24 rows of {directory} are left out: they ask for a caption (AV Captioning) and have no options"
    assert swapped.startswith(f"12 films of {directory} carry another clip's sound (_swap), and nothing says whose")
    assert read_set(directory, problems, SplitAssignment(shares=(0, 0, 0, 1))).notes == (
        captions,
    )  # one split, which nothing can lead out of


def test_a_film_outside_the_data_is_refused(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "data")
    path = tmp_path / "data" / "json" / "00000.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | {"video_id": "../../00000"}, *rows[1:]]))
    problems = ErrorCollector("the set")
    read_set(tmp_path / "data", problems, SplitAssignment())
    (message,) = problems.messages
    assert message == f"{path}:1: item '../../00000': video_id leads out of the data; name a film in them"


def test_one_list_beside_the_films_reads_alike(directory, tmp_path):
    rows = [row for path in sorted((directory / "json").glob("*.json")) for row in json.loads(path.read_text())]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    shutil.copytree(directory / "video", tmp_path / "videos")
    one, two = (read_set(d, ErrorCollector("the set"), SplitAssignment()) for d in (directory, tmp_path))
    assert [i.id for i in one] == [i.id for i in two] and two.items[0].media[0][1].startswith("videos/")


FAULTS = {
    "no text": ({"text": ""}, ["item '00000': text is ''; fill it in"]),
    "unknown task": ({"task": "Taste"}, ["item '00000': task 'Taste' is not one of ['Video-driven Audio Hallucination'"]),
    "neither yes nor no": ({"label": "maybe"}, ["item '00000': label is 'maybe'; it must be Yes or No"]),
    "no film": ({"video_id": "99999"}, ["99999.mp4: item '99999/1': no such video file; restore it or remove the item"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_row_is_told_with_file_and_remedy(directory, tiny_checkpoint, tmp_path, capsys, fault):
    change, says = FAULTS[fault]
    shutil.copytree(directory, tmp_path / "set")
    path = tmp_path / "set" / "json" / "00000.json"
    first, *rest = json.loads(path.read_text())
    path.write_text(json.dumps([first | change, *rest]))
    arguments = ["--data.path", str(tmp_path / "set"), "--model.path", str(tiny_checkpoint), "--probe.folds", "2", "--train.retain", "0"]
    assert main(["validate", *arguments, "--data.shares", "[0.5, 0, 0, 0.5]"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error:") and all(part in message for part in says), message
