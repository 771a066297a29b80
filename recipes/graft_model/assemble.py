"""Put a pretrained language model into an omni thinker: configuration, processor, weights. The towers stay untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

MEDIA_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "audio_token": "<|quad_start|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|box_start|>",
    "audio_eos_token": "<|box_end|>",
}
"""role -> a token of Qwen2 tokenizers whose embedding no chat uses"""
SIDE = 28
"""pixels of a square image: four patches of 14, merged into one image token"""
HOP, RATE = 640, 16_000
"""samples between mel frames, and samples a second: 25 frames a second, about 6 audio tokens a second"""
TEXT_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads max_position_embeddings "
    "rms_norm_eps hidden_act layer_types use_sliding_window sliding_window max_window_layers"
)
"""what the text part of a thinker takes over from a Qwen2 configuration"""
MEDIA_BRANCHES = (
    "{% if part['type'] == 'image' %}<|image_pad|>{% elif part['type'] == 'video' %}<|video_pad|>"
    "{% elif part['type'] == 'audio' %}<|quad_start|>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nSYSTEM<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    + MEDIA_BRANCHES
    + "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""the language model's own ChatML, with media where they occur and no marks around them"""


def load_language_model(path: str) -> tuple[Any, Any, torch.dtype]:
    """A Qwen2 checkpoint in float32, its tokenizer with the media tokens named, and the type of its stored weights.

    Raises:
        ValueError: when the checkpoint is of another architecture, its rotary positions are scaled, or
            its tokenizer lacks a media token.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
        raise ValueError(f"{path}: no such directory")
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "qwen2":
        raise ValueError(f"{path} is a {config.model_type} checkpoint; the text part of a Qwen2.5-Omni thinker has the architecture qwen2")
    if (rope := config.rope_parameters["rope_type"]) != "default":
        raise ValueError(f"{path} has rotary positions of type {rope!r}; a thinker has those of type 'default'")
    known = AutoTokenizer.from_pretrained(path).get_vocab()
    if missing := sorted(set(MEDIA_TOKENS.values()) - set(known)):
        raise ValueError(f"the tokenizer of {path} lacks {missing}, which stand for media; take a Qwen2 or Qwen2.5 checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(path, extra_special_tokens=dict(MEDIA_TOKENS), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, tokenizer, config.dtype or torch.float32


def build_processor(tokenizer: Any, seconds: int = 1) -> Any:
    """Images are brought to 28 x 28, sounds are padded or cut to ``seconds``. The system turn is the language model's own."""
    from transformers import Qwen2_5OmniProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, WhisperFeatureExtractor

    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    system = rendered.partition("<|im_start|>system\n")[2].partition("<|im_end|>")[0]
    start = CHAT_TEMPLATE.index("{% for message in messages %}")
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, chunk_length=seconds, hop_length=HOP, n_fft=1024),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("SYSTEM", system) if system else CHAT_TEMPLATE[start:],
    )


def thinker_config(language: Any, tokenizer: Any, *, width: int = 128, depth: int = 4, seconds: int = 1) -> Any:
    """The configuration of a thinker around a Qwen2 configuration.

    Args:
        width, depth: of both towers.
        seconds: the longest sound.
    """
    from transformers import Qwen2_5OmniThinkerConfig

    half = language.hidden_size // language.num_attention_heads // 2
    third = half // 3
    token = {role: tokenizer.convert_tokens_to_ids(text) for role, text in MEDIA_TOKENS.items()}
    text = {key: getattr(language, key) for key in TEXT_KEYS.split() if getattr(language, key, None) is not None}
    text |= {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": language.rope_parameters["rope_theta"],
            "mrope_section": [half - 2 * third, third, third],
        },
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": language.bos_token_id,
        "eos_token_id": language.eos_token_id,
        "tie_word_embeddings": False,
    }
    audio = {
        "d_model": width, "encoder_layers": depth, "encoder_attention_heads": 4, "encoder_ffn_dim": 4 * width,
        "output_dim": language.hidden_size, "max_source_positions": max(100, seconds * RATE // HOP),
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": width, "intermediate_size": 4 * width, "num_heads": 4, "patch_size": SIDE // 2,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": language.hidden_size, "window_size": 4 * SIDE,
        "fullatt_block_indexes": list(range(depth)),
    }  # fmt: skip
    return Qwen2_5OmniThinkerConfig(
        audio_config=audio, vision_config=vision, text_config=text,
        image_token_index=token["image_token"], audio_token_index=token["audio_token"], video_token_index=token["video_token"],
        vision_start_token_id=token["vision_bos_token"],  # pyright: ignore[reportCallIssue]
        vision_end_token_id=token["vision_eos_token"],  # pyright: ignore[reportCallIssue]
        audio_start_token_id=token["audio_bos_token"], audio_end_token_id=token["audio_eos_token"],
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportCallIssue]
        tie_word_embeddings=False,
    )  # fmt: skip


def assemble(language_model: Any, config: Any) -> Any:
    """A thinker in float32 with the language model's weights and towers of random weights (torch's global generator).

    Raises:
        ValueError: when the weights do not fit part by part.
    """
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    thinker = Qwen2_5OmniThinkerForConditionalGeneration(config)
    given = language_model.state_dict()
    given.setdefault("lm_head.weight", given["model.embed_tokens.weight"])
    moved = {key if key.startswith("lm_head") else key.replace("model.", "model.language_model.", 1): value for key, value in given.items()}
    missing, unexpected = thinker.load_state_dict(moved, strict=False)
    strange = [key for key in missing if not key.startswith(("model.audio_tower", "model.visual"))]
    if strange or unexpected:
        raise ValueError(f"the weights do not fit a Qwen2.5-Omni thinker: missing {strange[:3]}, unexpected {list(unexpected)[:3]}")
    thinker.generation_config = language_model.generation_config
    return thinker.eval()


@torch.no_grad()
def text_difference(thinker: Any, processor: Any, language_model: Any, tokenizer: Any, texts: list[str]) -> tuple[float, float]:
    """The largest difference between the text-only logits of thinker and language model, and the largest logit.

    Raises:
        ValueError: when the two chat templates give other tokens.
    """
    worst = top = 0.0
    for text in texts:
        own = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        message = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        inputs = processor(text=[processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)], return_tensors="pt")
        expected = tokenizer(own, return_tensors="pt", add_special_tokens=False)
        if not torch.equal(inputs["input_ids"], expected["input_ids"]):
            raise ValueError(f"the chat template of the graft writes {text!r} in other tokens than the language model's own")
        now, before = thinker(**inputs).logits[:, -1], language_model(**expected).logits[:, -1]
        worst, top = max(worst, float((now - before).abs().max())), max(top, float(before.abs().max()))
    return worst, top
