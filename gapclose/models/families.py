"""What differs between families of models, in one small table; the rest is found through the interfaces that all of them share.

Keys are names that transformers gives (``model_type``, attributes of processors), so that a new member of a family needs no entry.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PARTS = ("thinker_config",)
"""attribute of a checkpoint's config -> the config of the part to train: a full Qwen-Omni checkpoint holds a talker too, and the thinker
is the part that reads and answers"""

EXTRA_FILES = {"qwen2_5_omni": ("spk_dict.pt",)}
"""``model_type`` of a whole omni checkpoint -> files beside config and weights without which its class does not load; an export copies them,
and nothing here opens them. Qwen3-Omni's speakers stand in its config"""


class InVllm(NamedTuple):
    """What is known of adapters for a class in vLLM."""

    begins: str | None
    """how the names in its checkpoint begin; None where vLLM's list of models has no LoRA for it"""
    since: str | None = None
    """smallest version of vLLM that is known to serve adapters for it, or None"""
    doubt: str | None = None
    """what contradicts the list"""


# The list is docs/models/supported_models.md of github.com/vllm-project/vllm (August 2026). It says nothing of versions, so no smallest one is
# known; of what was found besides: Qwen2.5-Omni by vllm-project/vllm#24231 (merged in September 2025, in which release is not known). Of
# Qwen3-Omni the list has LoRA and the class refuses it: issues 31205 (December 2025: 0.9.2, 0.11.0, 0.12.0), 41899 (May 2026) and 51347 (August
# 2026, open); the pull requests 37193 and 42140 that would add it are closed.
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
"""class -> what is known of adapters for it in vLLM"""

ARGUMENTS = {"image": "images", "audio": "audio", "video": "videos"}
"""kind of media -> the argument of a processor that takes it"""

TAKES = {"image": ("image_processor",), "audio": ("feature_extractor", "audio_processor"), "video": ("video_processor",)}
"""kind of media -> attributes of which a processor has one when the model takes that kind (Phi-4-multimodal: ``audio_processor``)"""

NO_ADAPTER_MODULES = {
    # in training mode their weights are read without calling the modules, which an adapter on them would not notice
    "gemma3n_text": ("prediction_coefs", "correction_coefs", "modality_router"),
    # the fused Mamba kernel that trains on GPUs takes this weight, not the module
    "nemotron_h": ("out_proj",),
}
"""``model_type`` of a decoder -> leaf names of its linear modules that get no adapter"""

SEVERAL_STREAMS = ("gemma3n_text",)
"""``model_type`` of decoders with several residual streams: the active one is read, and none can be replaced by a donor"""

LONGEST = {"Gemma3nAudioFeatureExtractor": 480_000, "Gemma4AudioFeatureExtractor": 480_000}
"""feature extractor -> samples at which it cuts a sound, where that is only a default of its call (Whisper's says ``n_samples``)"""

PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
"""what processors give once a token, 0 for text that carries no media; never told by shape, which a mask of sounds may share by chance"""

SOUNDS = {
    "Gemma3nProcessor": lambda extractor: {"padding": "max_length"},
    # it cuts nothing, so that the longest of a batch may need several windows
    "Qwen3OmniMoeProcessor": lambda extractor: {"padding": True, "pad_to_multiple_of": extractor.n_samples},
}
"""processor -> how it is to prepare sounds, given its extractor, beyond the sampling rate that all of them are told: in whole windows.
Padded to the longest of a batch, the last frames of a shorter sound would be others than those of the same sound alone"""

WITHIN_TEMPLATE = ("VoxtralProcessor",)
"""processors that take sounds through their chat template alone, encoded in the messages"""

KEPT_APART = {"Phi4MultimodalProcessor": {"vision-lora": "images, with or without sounds", "speech-lora": "sounds alone"}}
"""processor -> folders of a checkpoint with adapters that transformers does not load by itself -> the media that one is for"""

INTERLEAVES = ("Qwen2_5OmniProcessor", "Qwen3OmniMoeProcessor")
"""processors that lay out a film's frames and its sound in the order of time, and whose models are told by ``use_audio_in_video``"""

WHOLE_FRAMES = ("Phi4MultimodalFeatureExtractor",)
"""feature extractors that skip the samples behind the last whole frame of a sound, and fail in a batch where a shorter sound ends within
the same frame as the longest (transformers 5.23); given whole frames, they skip nothing and do not fail. Remove when they batch"""

NOT_CAUSAL = ("Phi4MultimodalVisionAttention",)
"""attention of towers that calls itself causal and is not meant to be: where every patch of a batch is real, no mask is made, and transformers
5.23 would let patches see only those before them, so that an image's features hang on which others share its batch. Remove when it says
``is_causal = False``"""


def trained_part(config: Any) -> Any:
    """The config of the part of a checkpoint that is measured and trained."""
    return next((part for name in PARTS if (part := getattr(config, name, None)) is not None), config)


def part_name(config: Any) -> str | None:
    """What the part that is trained is called in a checkpoint of several parts (``thinker``); None where there is only one."""
    return next((name.removesuffix("_config") for name in PARTS if getattr(config, name, None) is not None), None)


def apply_family_fixes(model: Any, processor: Any) -> None:
    """Set right, in place, what :data:`NOT_CAUSAL` and :data:`SOUNDS` name."""
    for module in model.modules():
        if type(module).__name__ in NOT_CAUSAL:
            module.is_causal = False
    if type(processor).__name__ in SOUNDS:  # as its own default: Qwen3-Omni's drops what a call says in audio_kwargs (transformers 5.23)
        how = SOUNDS[type(processor).__name__](part_for(processor, "audio"))
        processor.audio_kwargs = {**getattr(processor, "audio_kwargs", {}), **how}


def part_for(processor: Any, kind: str) -> Any:
    """What of a processor prepares media of a kind (image, audio, video), or None when the model takes none."""
    return next((part for name in TAKES.get(kind, ()) if (part := getattr(processor, name, None)) is not None), None)


def longest_sound(processor: Any) -> int | None:
    """Samples of audio beyond which the processor would drop the rest silently, or None when it takes all of a sound."""
    extractor = part_for(processor, "audio")
    if getattr(processor, "audio_kwargs", {}).get("truncation") is False:  # Qwen3-Omni, Voxtral
        return None
    return getattr(extractor, "n_samples", None) or LONGEST.get(type(extractor).__name__)


def whole_frames(extractor: Any, sound: np.ndarray) -> np.ndarray:
    """A sound (samples,) cut to what its extractor looks at, where :data:`WHOLE_FRAMES` names that."""
    if type(extractor).__name__ not in WHOLE_FRAMES or len(sound) < extractor.win_length:
        return sound
    return sound[: len(sound) - (len(sound) - extractor.win_length) % extractor.hop_length]
