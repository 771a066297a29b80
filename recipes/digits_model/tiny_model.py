"""A tiny ``Qwen2_5OmniThinkerForConditionalGeneration`` with its real processor, random weights.

Shapes: one scan is one image token; an utterance of ``f`` mel frames (10 ms each, 100 at most) is about ``f / 4`` audio
tokens; a question is 10 to 20 text tokens. Width 96, eight decoder layers, 1.4 M parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gapclose.data.digits.questions import all_texts, answer_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
VOCABULARY = 640

# ChatML without a system turn: media and text in the order of the content parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the world's own questions; every answer word is one token at the start of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END, *MEDIA_TOKENS.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(all_texts() + [*answer_words(), "user", "assistant", "system"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, extra_special_tokens=dict(MEDIA_TOKENS), padding_side="left"
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniProcessor:
    """Images are brought to 28 x 28 (one merged token), audio is padded or cut to one second."""

    from transformers import Qwen2_5OmniProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, WhisperFeatureExtractor

    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, chunk_length=1),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, width: int = 96, layers: int = 8, heads: int = 4, tower: int = 64
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """Random weights (torch's global generator) for a tokenizer. ``tower`` is the width of the audio and vision encoders."""

    from transformers import GenerationConfig, Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    token = {name: tokenizer.convert_tokens_to_ids(text) for name, text in MEDIA_TOKENS.items()}
    half = width // heads // 2
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": tower,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * tower,
            "output_dim": width,
            "max_source_positions": 100,
        },
        vision_config={
            "depth": 2,
            "hidden_size": tower,
            "intermediate_size": 2 * tower,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
            },
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        image_token_index=token["image_token"],
        audio_token_index=token["audio_token"],
        video_token_index=token["video_token"],
        vision_start_token_id=token["vision_bos_token"],  # pyright: ignore[reportCallIssue]
        vision_end_token_id=token["vision_eos_token"],  # pyright: ignore[reportCallIssue]
        audio_start_token_id=token["audio_bos_token"],
        audio_end_token_id=token["audio_eos_token"],
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportCallIssue]
    )
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=4, do_sample=False
    )
    return model
