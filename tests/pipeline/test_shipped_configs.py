"""Every configuration of a model of real size: parsed, bound to its architecture, and a training step of it run by sizes alone."""

import importlib.util
import re
import time
from pathlib import Path

import numpy as np
import pytest
import transformers
from digits_model.tiny_model import MEDIA_TOKENS, build_tokenizer
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, WhisperFeatureExtractor

from gapclose.models.architecture import read_architecture
from gapclose.pipeline.cli import main
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.model_summary import outline

ROOT = Path(__file__).parents[2]
SIZES = {
    # class, parameters in billions (of a Qwen-Omni checkpoint the thinker's), layers, width
    "qwen2_5_omni_3b": ("Qwen2_5OmniThinkerForConditionalGeneration", "4.70 B", 36, 2048),
    "qwen2_5_omni_7b": ("Qwen2_5OmniThinkerForConditionalGeneration", "8.93 B", 28, 3584),
    "qwen3_omni_30b_a3b": ("Qwen3OmniMoeThinkerForConditionalGeneration", "31.72 B", 48, 2048),
    "gemma3n": ("Gemma3nForConditionalGeneration", "7.8", 35, 2048),
    "qwen2_5_vl_7b": ("Qwen2_5_VLForConditionalGeneration", "8.29 B", 28, 3584),
    "qwen2_audio_7b": ("Qwen2AudioForConditionalGeneration", "8.40 B", 32, 4096),
}
QUICK = ("qwen2_audio_7b",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in SIZES])
def test_a_model_of_real_size_is_outlined_without_weights(name, monkeypatch):
    """Within half a minute of CPU time; adapters in the decoder alone; what its comments say of a step is what comes out."""
    if name == "gemma3n" and importlib.util.find_spec("timm") is None:
        pytest.skip("Gemma 3n needs timm (pip install)")
    monkeypatch.chdir(ROOT)
    begun, text = time.process_time(), Path(f"configs/{name}.yaml").read_text()
    found = dict(shown(parse_config(["--config", f"configs/{name}.yaml"])))
    assert time.process_time() - begun < 30
    kind, parameters, layers, width = SIZES[name]
    assert found["class"].startswith(f"{kind}, {parameters}") and "in bfloat16" in found["class"]
    assert found["decoder"].startswith(f"{layers} layers of width {width}")
    for tower in found["towers"].split(", "):
        assert f" 0 in {tower.split()[0]}" in found["adapters, probe at layer"]
    assert f"weights {found['weights']}" in text  # in a comment
    assert found["options"] == found["tokens of an item"] == "not known without the processor"
    step = found["  training step, 1 x 4,096 tokens of text"]
    assert "by formula" not in step and step.split(" GiB")[0] in text.split("micro_batch_size")[1].split("\n")[0]


def shown(config):
    """The rows of an outline; of those about adapters, the first kind."""
    rows = {}
    for label, value in outline(config, None, absent=True):
        rows.setdefault("adapters, probe at layer" if label.startswith("adapters") else label, value)
    return rows


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_configuration_fits_its_model(name, monkeypatch):
    """Its candidates leave layers above them, its global batch can be cut, and the architecture beside it can be read."""
    monkeypatch.chdir(ROOT)
    config = parse_config(["--config", f"configs/{name}.yaml"])
    n_layers = read_architecture(config.model, config.model.architecture).get_text_config().num_hidden_layers
    assert n_layers == SIZES[name][2] and config.probe.candidates(n_layers) == config.probe.layers
    assert config.train.accumulation(1) == 24 and config.train.counts()["consistency"] == 24
    assert config.lora.layers == "after_probe" and not config.model.trust_remote_code
    assert config.train.twins  # which IMAVB's reader finds


@pytest.mark.parametrize(
    ("name", "processor", "patch", "larger"),
    [
        ("qwen2_5_omni_3b", "Qwen2_5OmniProcessor", 14, 288),
        ("qwen2_5_omni_7b", "Qwen2_5OmniProcessor", 14, 288),
        ("qwen3_omni_30b_a3b", "Qwen3OmniMoeProcessor", 16, 224),
        ("qwen2_5_vl_7b", "Qwen2_5_VLProcessor", 14, 288),
    ],
)
def test_a_frame_has_as_many_tokens_as_the_configuration_says(name, processor, patch, larger):
    """By the real processor with its own bounds of pixels: frames smaller than ``data.side`` are enlarged, larger ones are not shrunk."""
    images, tokenizer = Qwen2VLImageProcessor(patch_size=patch), build_tokenizer()
    if "Omni" in processor:
        hearing = WhisperFeatureExtractor(feature_size=128)
        made = getattr(transformers, processor)(images, Qwen2VLVideoProcessor(patch_size=patch), hearing, tokenizer)
    else:
        made = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(patch_size=patch))
    text, video = Path(ROOT / f"configs/{name}.yaml").read_text(), MEDIA_TOKENS["video_token"]
    told = int(re.search(r"frames: 50 .* (\d+) tokens each", text).group(1))
    assert f"so {50 * told:,}" in text and "side: 448 " in text

    def tokens(height, width):
        film = np.zeros((4, height, width, 3), dtype=np.uint8)
        text = [MEDIA_TOKENS["vision_bos_token"] + video + MEDIA_TOKENS["vision_eos_token"]]
        made_of = made(text=text, videos=[film], return_tensors="pt", videos_kwargs={"do_sample_frames": False})
        return int((made_of["input_ids"] == tokenizer.convert_tokens_to_ids(video)).sum()) / 4

    assert tokens(252, 448) == tokens(126, 224) == told and tokens(504, 896) == larger


@pytest.mark.slow
def test_without_checkpoint_and_without_data(monkeypatch, capsys):
    """The model is outlined; that the data are not there is an error all the same."""
    monkeypatch.chdir(ROOT)
    assert main(["validate", "--config", "configs/qwen2_5_vl_7b.yaml"]) == 2
    shown = capsys.readouterr()
    assert "configs/architectures/qwen2_5_vl_7b" in shown.out and "28 layers of width 3584" in shown.out
    assert "training step" in shown.out and "no problems" not in shown.out
    assert shown.err.count("error:") == 1 and "data.path 'data/imavb': no such directory" in shown.err and "model.path" not in shown.err
