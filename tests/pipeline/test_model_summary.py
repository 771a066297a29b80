"""What `gapclose validate` says of a model, from its config and processor alone."""

import json
import re
import shutil

import pytest

from gapclose.data.items import Item
from gapclose.models.architecture import build_on_meta, read_architecture
from gapclose.models.config import ModelConfig
from gapclose.models.known_checkpoints import PUBLISHED, published, remedy
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.model_summary import lengths, positions
from gapclose.pipeline.prompt_lengths import Seen, padding_share
from gapclose.pipeline.validate import has_bfloat16, slow_precision
from gapclose.training.config import TrainConfig


@pytest.fixture
def bare(tiny_checkpoint, tmp_path):
    """The tiny checkpoint without its weights."""
    directory = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    return directory


def validate(*arguments):
    return main(["validate", "--model.dtype", "float32", *(str(a) for a in arguments)])


def test_the_model_is_outlined_without_its_weights(bare, digits_directory, tmp_path, capsys, monkeypatch):
    """Class, layers, options, tokens, adapters, memory; nothing is loaded, and nothing written."""
    monkeypatch.setattr("gapclose.models.loading.load_model", lambda config: pytest.fail("a model was loaded"))
    assert validate("--data.path", digits_directory, "--model.path", bare, "--run_dir", tmp_path / "run") == 0
    text = capsys.readouterr().out
    for part in (
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "5 layers of width 48",
        "one of layers 1..3",
        "one token each: ",
        "items looked at",
        "28 modules in decoder layers 2..5, 0 in model.audio_tower, 0 in model.visual",
        "14 modules in decoder layers 4..5",
        "hidden-state cache on disk",
        "padding of training rows",
        "of their tokens, in micro-batches of 8",
        "observing, 32 x the longest item",
        "training step, 8 x the longest item",
        "by measure",
        "of main memory: the model, and beside it",
        "no problems found",
    ):
        assert part in text, f"{part!r} is not in:\n{text}"
    assert "by formula" not in text and "not known" not in text and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train.cache_trunk", "false"], "while training (train.cache_trunk is off)"),
        (["--train.epochs", "1"], "(train.cache_trunk auto: off, since one epoch reads every item once"),
    ],
)
def test_a_cache_that_is_off_is_said_so(words, says, bare, digits_directory, capsys):
    assert validate("--data.path", digits_directory, "--model.path", bare, *words) == 0
    assert says in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_padding_is_the_share_of_tokens_that_fill_rows():
    """None where prompts are equally long, or where each length has its own kinds of media; else what the longest adds."""
    item = Item(id="i", clip="c", split="fit", modality="m", messages=[], options=[], purpose="gap")
    train = TrainConfig(micro_batch_size=2, global_batch_size=72)

    def share(gap, retain=()):
        return padding_share(Seen(tokens=[1], gap=item, retain=None, by_purpose={"gap": gap, "retain": list(retain)}), train)

    assert share([(("image",), 50)], [(("image",), 50)]) == share([(("image",), 50), (("audio",), 9)]) == 0
    assert share([((), 100), ((), 200)]) == pytest.approx(0.5 * 100 / (0.25 * 200 + 0.75 * 400), abs=0.02)


def test_bfloat16_that_is_emulated_is_warned_of(bare, digits_directory, tmp_path, capsys, monkeypatch):
    """Where the processor lists no instructions for it, and the model computes in it; elsewhere not."""
    for words, expected in (("flags : fpu avx512f avx512_bf16", True), ("Features : asimd bf16", True), ("flags : avx2", False)):
        (tmp_path / "cpuinfo").write_text(words)
        assert has_bfloat16(tmp_path / "cpuinfo") is expected
    assert has_bfloat16(tmp_path / "nothing") is None
    monkeypatch.setattr("gapclose.pipeline.validate.has_bfloat16", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for dtype, expected in (("bfloat16", True), ("float32", False)):
        config = parse_config(["--model.path", str(bare), "--model.dtype", dtype])
        assert bool(slow_precision(config)) is expected
    assert "--model.dtype float32" in slow_precision(parse_config(["--model.path", str(bare), "--model.dtype", "bfloat16"]))[0]


def test_a_cache_and_observations_that_will_not_fit_are_said_so(bare, digits_directory, capsys, monkeypatch):
    monkeypatch.setattr("gapclose.pipeline.model_summary.free_bytes", lambda path: 1 << 10)
    assert validate("--data.path", digits_directory, "--model.path", bare, "--train.cache_trunk", "true") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "it would be left off" in told and "1.0 KiB free at" in told and "which is too little" in told


def test_an_option_that_is_not_one_token_is_said_so(bare, digits_directory, tmp_path, capsys):
    """With the number of its tokens; it is scored by all of them."""
    directory = tmp_path / "set"
    shutil.copytree(digits_directory, directory)
    rows = [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]
    for row in rows:
        for option in row["options"]:
            option["text"] = option["text"].replace("unseen", "unseen or low")
        row["gold"] = row["gold"] and row["gold"].replace("unseen", "unseen or low")
    (directory / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert validate("--data.path", directory, "--model.path", bare) == 0
    text = capsys.readouterr().out
    assert "'unseen or low' is 3 tokens; one token each: low, high" in text, text


def test_layers_that_the_model_lacks_are_found_before_it_loads(bare, digits_directory, capsys):
    """Told beside what is wrong with the items, in one go."""
    assert validate("--data.path", digits_directory, "--model.path", bare, "--probe.layers", "[9]") == 2
    assert "probe.layers [9]: this decoder has 5 layers" in capsys.readouterr().err
    assert validate("--data.path", digits_directory / "nowhere", "--model.path", bare, "--probe.layers", "[9]") == 2
    message = capsys.readouterr().err
    assert "no such directory" in message and "this decoder has 5 layers" in message and "Traceback" not in message


def test_a_checkpoint_that_is_not_there_yet(bare, digits_directory, capsys):
    """Sizes stand in for it; without them it is a problem, and `measure` never takes them."""
    arguments = ("--data.path", digits_directory, "--model.path", "somebody/not-here-yet")
    assert validate(*arguments, "--model.architecture", bare) == 0
    text = capsys.readouterr().out
    assert "no checkpoint can be read at somebody/not-here-yet (" in text and "not known without the processor" in text
    assert "not checked without the processor of somebody/not-here-yet" in text and "512 tokens of text" in text
    assert validate(*arguments) == 2
    assert "somebody/not-here-yet" in capsys.readouterr().err
    assert main(["measure", *map(str, arguments), "--model.architecture", str(bare)]) == 2
    assert "somebody/not-here-yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("broken", "is not a valid JSON file"),
        ("checkpoints/mine/final", "no such directory; is it mistyped?"),
        ("./mine", "no such directory; is it mistyped?"),
        ("~/mine", "no such directory; is it mistyped?"),
    ],
)
def test_sizes_stand_in_for_no_broken_or_mistyped_checkpoint(path, says, bare, digits_directory, tmp_path, capsys, monkeypatch):
    """Only for a hub name that cannot be reached: others are errors, and no model of other sizes is outlined."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bare, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    assert validate("--data.path", digits_directory, "--model.path", path, "--model.architecture", bare) == 2
    shown = capsys.readouterr()
    assert says in shown.err and "no problems found" not in shown.out and "layers of width" not in shown.out


def test_a_prompt_longer_than_the_decoder_has_positions(bare, digits_directory, capsys):
    """After all that can be shown; and nothing is estimated for lengths that it cannot take."""
    config = json.loads((bare / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 24
    (bare / "config.json").write_text(json.dumps(config))
    assert validate("--data.path", digits_directory, "--model.path", bare) == 2
    shown = capsys.readouterr()
    assert re.search(r"the longest prompt that was looked at has \d+ tokens, an answer up to 8, and .* has 24 positions", shown.err)
    assert "5 layers of width 48" in shown.out and "training step" in shown.out
    model = build_on_meta(read_architecture(ModelConfig(path=str(bare))), ModelConfig(path=str(bare)))
    assert positions(model) == 24 and lengths(model) == [24]
    model.config.get_text_config().rope_parameters |= {"factor": 4.0, "original_max_position_embeddings": 4096}
    assert positions(model) == 16384 and lengths(model) == [4096, 16384]


def test_objectives_of_trl_have_no_estimate(bare, digits_directory, capsys):
    """It says so; all the rest is there."""
    assert validate("--data.path", digits_directory.parent / "none", "--model.path", bare, "--objective", "dpo") == 2
    text = capsys.readouterr().out
    assert "not estimated for objective dpo" in text and "5 layers of width 48" in text and "training step" not in text


@pytest.mark.parametrize("path", ["openbmb/MiniCPM-o-2_6", "checkpoints/MiniCPM-o-2_6-int4/", "MiniCPM-o 2.6"])
def test_a_model_without_a_class_is_known_by_its_name(path, digits_directory, capsys):
    """With what it would take."""
    assert published(path).name == "MiniCPM-o 2.6"
    assert validate("--data.path", digits_directory, "--model.path", path) == 2
    message = capsys.readouterr().err
    assert "MiniCPM-o 2.6 has no class in transformers" in message and "model.trust_remote_code" in message


def test_the_eight_models_of_the_paper():
    """Those with a class are what transformers has; each is found by its hub name, and no other model is taken for one."""
    import transformers

    assert len(PUBLISHED) == 8 and sum(p.family is None for p in PUBLISHED) == 6
    assert all(hasattr(transformers, p.family) for p in PUBLISHED if p.family)
    assert [published(p.hub) for p in PUBLISHED] == list(PUBLISHED)
    for other in ("Qwen/Qwen2.5-VL-7B-Instruct", "allenai/olamide-7b", "somebody/solar-ola", "/data/mine"):
        assert published(other) is None and remedy(other) == ""
    for name in ("qwen/qwen2.5-omni-7b", "Qwen/Qwen2.5-Omni-3B"):  # of which not every size is the paper's
        assert remedy(name) == " (Qwen2.5-Omni needs no code beside transformers; the paper's is Qwen/Qwen2.5-Omni-7B)"
    assert published("my-video_salmonn_2") is None and published("me/video_salmonn_2_plus").name == "video-SALMONN 2"
