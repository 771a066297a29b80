"""Differences between model families; all other code uses the interfaces that families share.

Keys are names that transformers gives (``model_type``, attributes of processors), so a new member
of a family needs no entry.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PARTS = ("thinker_config",)
"""config attributes of the part to train: a full Qwen-Omni checkpoint also contains a talker, and
the thinker is the part that reads and answers"""

EXTRA_FILES = {"qwen2_5_omni": ("spk_dict.pt",)}
"""``model_type`` of a full omni checkpoint -> files besides config and weights that its class needs
to load. An export copies them; nothing here opens them. Qwen3-Omni's speakers are in its config"""


class InVllm(NamedTuple):
    """Known facts on vLLM's support for adapters of a class."""

    begins: str | None
    """prefix of the names in its checkpoint; None where vLLM's list of models has no LoRA for it"""
    since: str | None = None
    """smallest version of vLLM that is known to serve its adapters, or None"""
    doubt: str | None = None
    """evidence against the list"""


# Source: docs/models/supported_models.md of github.com/vllm-project/vllm (August 2026). It states no
# versions, so no smallest one is known. Qwen2.5-Omni: added by vllm-project/vllm#24231 (merged in
# September 2025, release not known). Qwen3-Omni: the list has LoRA, but the class refuses it, by
# issues 31205 (December 2025: 0.9.2, 0.11.0, 0.12.0), 41899 (May 2026) and 51347 (August 2026, open);
# the pull requests 37193 and 42140 that would add it are closed.
LORA_IN_VLLM = {
    "Qwen2_5OmniThinkerForConditionalGeneration": InVllm("thinker."),
    "Qwen3OmniMoeThinkerForConditionalGeneration": InVllm(
        "thinker.",
        doubt="its list of models has LoRA for Qwen3-Omni, and versions up to August 2026 refuse it (vllm-project/vllm#51347, #37193)",
    ),
    "Qwen2_5_VLForConditionalGeneration": InVllm(""),
    "Qwen3VLForConditionalGeneration": InVllm(""),
    "Gemma4ForConditionalGeneration": InVllm(""),
    "SmolVLMForConditionalGeneration": InVllm(""),
    "Qwen2ForCausalLM": InVllm(""),
    "Qwen3ForCausalLM": InVllm(""),
    "LlamaForCausalLM": InVllm(""),
    "Gemma3nForConditionalGeneration": InVllm(None),
    "LlavaOnevisionForConditionalGeneration": InVllm(None),
    "Qwen2AudioForConditionalGeneration": InVllm(None),
}
"""class -> known facts on vLLM's support for its adapters"""

ARGUMENTS = {"image": "images", "audio": "audio", "video": "videos"}
"""kind of media -> the argument of a processor that takes it"""

TAKES = {"image": ("image_processor",), "audio": ("feature_extractor", "audio_processor"), "video": ("video_processor",)}
"""kind of media -> attributes of a processor; a model that takes the kind has one of them
(Phi-4-multimodal: ``audio_processor``)"""

NO_ADAPTER_MODULES = {
    # training mode reads their weights without calling the modules, so an adapter would have no effect
    "gemma3n_text": ("prediction_coefs", "correction_coefs", "modality_router"),
    # the fused Mamba kernel for training on GPUs reads this weight without calling the module
    "nemotron_h": ("out_proj",),
}
"""``model_type`` of a decoder -> leaf names of its linear modules that get no adapter"""

SEVERAL_STREAMS = ("gemma3n_text",)
"""``model_type`` of decoders with several residual streams: the active one is read, and donors can
replace none"""

LONGEST = {"Gemma3nAudioFeatureExtractor": 480_000, "Gemma4AudioFeatureExtractor": 480_000}
"""feature extractor -> samples at which it cuts audio, where that is only a default of its call
(Whisper's has ``n_samples``)"""

PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
"""processor outputs with one value per token, 0 for text without media; identified by name, since a
mask of audio may have the same shape by chance"""

SOUNDS = {
    "Gemma3nProcessor": lambda extractor: {"padding": "max_length"},
    # it cuts nothing, so the longest of a batch may need several windows
    "Qwen3OmniMoeProcessor": lambda extractor: {"padding": True, "pad_to_multiple_of": extractor.n_samples},
}
"""processor -> its settings for audio, given its extractor, besides the sampling rate: audio is
padded to complete windows. With padding to the longest of a batch, the last frames of shorter audio
would differ from those of the same audio alone"""

WITHIN_TEMPLATE = ("VoxtralProcessor",)
"""processors that take audio only through their chat template, encoded in the messages"""

KEPT_APART = {"Phi4MultimodalProcessor": {"vision-lora": "images, with or without sounds", "speech-lora": "sounds alone"}}
"""processor -> folders of a checkpoint with adapters that transformers does not load by itself ->
the media that each is for"""

INTERLEAVES = ("Qwen2_5OmniProcessor", "Qwen3OmniMoeProcessor")
"""processors that order a video's frames and audio by time, and whose models take
``use_audio_in_video``"""

WHOLE_FRAMES = ("Phi4MultimodalFeatureExtractor",)
"""feature extractors that skip the samples behind the last complete frame of audio, and fail in a
batch where shorter audio ends within the same frame as the longest (transformers 5.23). Audio cut
to complete frames avoids both. Remove when they batch"""

NOT_CAUSAL = ("Phi4MultimodalVisionAttention",)
"""attention of towers that is marked causal but not meant to be. Where every patch of a batch is
real, no mask is made, and transformers 5.23 would let patches see only earlier ones, so an image's
features would depend on the other images of its batch. Remove when it sets ``is_causal = False``"""


def trained_part(config: Any) -> Any:
    """The config of the part of a checkpoint that is measured and trained."""
    return next((part for name in PARTS if (part := getattr(config, name, None)) is not None), config)


def part_name(config: Any) -> str | None:
    """The name of the trained part in a checkpoint of several parts (``thinker``), else None."""
    return next((name.removesuffix("_config") for name in PARTS if getattr(config, name, None) is not None), None)


def apply_family_fixes(model: Any, processor: Any) -> None:
    """Apply the fixes of :data:`NOT_CAUSAL` and :data:`SOUNDS` in place."""
    for module in model.modules():
        if type(module).__name__ in NOT_CAUSAL:
            module.is_causal = False
    if type(processor).__name__ in SOUNDS:  # as default: Qwen3-Omni's ignores a call's audio_kwargs (transformers 5.23)
        how = SOUNDS[type(processor).__name__](part_for(processor, "audio"))
        processor.audio_kwargs = {**getattr(processor, "audio_kwargs", {}), **how}


def part_for(processor: Any, kind: str) -> Any:
    """The part of a processor for a kind of media (image, audio, video), or None if there is none."""
    return next((part for name in TAKES.get(kind, ()) if (part := getattr(processor, name, None)) is not None), None)


def longest_sound(processor: Any) -> int | None:
    """Samples of audio beyond which a processor drops the rest silently, or None if it takes all."""
    extractor = part_for(processor, "audio")
    if getattr(processor, "audio_kwargs", {}).get("truncation") is False:  # Qwen3-Omni, Voxtral
        return None
    return getattr(extractor, "n_samples", None) or LONGEST.get(type(extractor).__name__)


def whole_frames(extractor: Any, sound: np.ndarray) -> np.ndarray:
    """Cut audio (samples,) to complete frames for the extractors of :data:`WHOLE_FRAMES`."""
    if type(extractor).__name__ not in WHOLE_FRAMES or len(sound) < extractor.win_length:
        return sound
    return sound[: len(sound) - (len(sound) - extractor.win_length) % extractor.hop_length]
