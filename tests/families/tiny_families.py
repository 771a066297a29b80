"""Tiny random-weight models of the real classes with their real processors, one builder a family.

Widths are 64, decoders have four layers; tokenizers are byte-level BPE trained on the digits world's own texts, so that nothing is
downloaded. Every builder returns ``(processor, model)``; a family that only reads text has its tokenizer as processor.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gapclose.data.digits.questions import all_texts, answer_words

WIDTH, LAYERS = 64, 4
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

FILES = tempfile.TemporaryDirectory()
"""for a tokenizer that is saved by copying the file it was read from; removed at exit"""


def tokenizer_with(named: dict[str, str] | None = None, more: Sequence[str] = (), bos: str | None = None) -> Any:
    """A tokenizer with media tokens: ``named`` become attributes (``image_token`` ...), ``more`` are special tokens without a name."""
    named = named or {}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, START, END, *named.values(), *more, *([bos] if bos else [])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(all_texts() + [*answer_words(), "user", "assistant"] * 20, trainer)
    if bos:  # as Gemma's and Llama's tokenizers do: a template that writes the token too must not make it two
        begin = bpe.token_to_id(bos)
        bpe.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, begin)])
    known = {"pad_token": PAD, "eos_token": END, "extra_special_tokens": named}
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, **known)


def chat(image: str = "", audio: str = "", start: str = "") -> str:
    """A chat template that writes ``image`` and ``audio`` where a message has one."""
    return (
        start + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'audio' %}" + audio + "{% elif part['type'] == 'text' %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def text_sizes(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """What nearly every decoder's config has."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return sizes | more


def spread(model: torch.nn.Module) -> None:
    """Redraw all weights as wide as keeps activations near one: of transformers' own, hardly anything of a tower reaches the decoder."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            inputs = parameter.shape[-1] if "experts" in name else parameter[0].numel()
            torch.nn.init.normal_(parameter, std=inputs**-0.5)


def ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}}


def qwen_vision(**more: Any) -> dict[str, Any]:
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {**sizes, "patch_size": 14, "out_hidden_size": WIDTH, **more}


def qwen_images(patch: int = 14) -> tuple[Any, Any]:
    """Image and video processors that give one to four merged tokens an image."""
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}
    return hf.Qwen2VLImageProcessor(size=size, patch_size=patch), hf.Qwen2VLVideoProcessor(size=size, patch_size=patch)


WINDOWED = {"window_size": 112, "fullatt_block_indexes": [1]}
DEEPSTACK = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
QWEN_OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
QWEN_OMNI_CHAT = chat("<|vision_bos|><|IMAGE|><|vision_eos|>", "<|audio_bos|><|AUDIO|><|audio_eos|>")


def _qwen_omni_ends(tokenizer: Any) -> dict[str, Any]:
    vision = {"vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"}
    audio = {"audio_start_token_id": "<|audio_bos|>", "audio_end_token_id": "<|audio_eos|>"}
    return {**ids(tokenizer, **vision, **audio), "pad_token_id": tokenizer.pad_token_id}


def qwen2_5_omni() -> tuple[Any, Any]:
    tokenizer = tokenizer_with(QWEN_OMNI_TOKENS)
    hearing = hf.WhisperFeatureExtractor(feature_size=128, chunk_length=1)
    processor = hf.Qwen2_5OmniProcessor(*qwen_images(), hearing, tokenizer, chat_template=QWEN_OMNI_CHAT)
    config = hf.Qwen2_5OmniThinkerConfig(
        audio_config={**WHISPER, "output_dim": WIDTH},
        vision_config=qwen_vision(**WINDOWED),
        text_config=text_sizes(tokenizer, **rope(2, 3, 3)),
        image_token_index=tokenizer.image_token_id,
        audio_token_index=tokenizer.audio_token_id,
        video_token_index=tokenizer.video_token_id,
        **_qwen_omni_ends(tokenizer),
    )
    return processor, hf.Qwen2_5OmniThinkerForConditionalGeneration(config)


def qwen3_omni() -> tuple[Any, Any]:
    tokenizer = tokenizer_with(QWEN_OMNI_TOKENS)
    hearing = hf.WhisperFeatureExtractor(feature_size=128, chunk_length=4)
    processor = hf.Qwen3OmniMoeProcessor(*qwen_images(16), hearing, tokenizer, chat_template=QWEN_OMNI_CHAT)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    config = hf.Qwen3OmniMoeThinkerConfig(
        audio_config={**WHISPER, "output_dim": WIDTH, "downsample_hidden_size": 16},
        vision_config=qwen_vision(**DEEPSTACK),
        text_config=text_sizes(tokenizer, **experts, **rope(4, 2, 2, mrope_interleaved=True)),
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        video_token_id=tokenizer.video_token_id,
        **_qwen_omni_ends(tokenizer),
    )
    return processor, hf.Qwen3OmniMoeThinkerForConditionalGeneration(config)


GEMMA_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
}
GEMMA_CHAT = chat("<image_soft_token>", "<audio_soft_token>", start="{{ bos_token }}")
SLIDING = {"sliding_window": 128, "layer_types": ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]}


def gemma3n() -> tuple[Any, Any]:
    tokenizer = tokenizer_with(GEMMA_TOKENS, bos="<bos>")
    words = len(tokenizer)
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(),
        image_processor=hf.SiglipImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        tokenizer=tokenizer,
        chat_template=GEMMA_CHAT,
        audio_seq_length=188,
        image_seq_length=4,
    )
    matformer = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 8, "altup_num_inputs": 2, "head_dim": 16}
    text = text_sizes(tokenizer, vocab_size=words + 256, vocab_size_per_layer_input=words, **matformer, **SLIDING)
    audio = {"hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": (8, 4)}
    ends = {f"{name}_id": token for name, token in GEMMA_TOKENS.items()}
    config = hf.Gemma3nConfig(
        text_config=text,
        audio_config={**audio, "vocab_size": 128, "vocab_offset": words + 128},
        vision_config={"architecture": "test_resnet", "hidden_size": 96, "vocab_size": 128, "vocab_offset": words},
        audio_soft_tokens_per_image=188,
        vision_soft_tokens_per_image=4,
        **ids(tokenizer, **ends),
    )
    model = hf.Gemma3nForConditionalGeneration(config)
    for layer in model.model.language_model.layers:  # zeros at first, and what comes through it would go nowhere
        torch.nn.init.ones_(layer.altup.correct_output_scale)
    return processor, model


def _gemma4_parts() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    tokenizer = tokenizer_with(GEMMA_TOKENS, more=["<|video|>"], bos="<bos>")
    ends = {f"{n}_id": token for n, token in GEMMA_TOKENS.items() if n != "eoa_token"}
    tokens = ids(tokenizer, **ends, eoa_token_index=GEMMA_TOKENS["eoa_token"], video_token_id="<|video|>")
    return tokenizer, text_sizes(tokenizer, head_dim=16, global_head_dim=32, **SLIDING), tokens


def gemma4() -> tuple[Any, Any]:
    tokenizer, text, tokens = _gemma4_parts()
    hearing, images, videos = hf.Gemma4AudioFeatureExtractor(), hf.Gemma4ImageProcessor(max_soft_tokens=70), hf.Gemma4VideoProcessor()
    processor = hf.Gemma4Processor(hearing, images, tokenizer, videos, chat_template=GEMMA_CHAT)
    config = hf.Gemma4Config(
        text_config={**text, "vocab_size_per_layer_input": len(tokenizer), "hidden_size_per_layer_input": 8},
        vision_config={**SMALL, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 256},
        audio_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [128, 4],
            "output_proj_dims": 32,
        },
        **tokens,
    )
    return processor, hf.Gemma4ForConditionalGeneration(config)


def phi4() -> tuple[Any, Any]:
    tokenizer = tokenizer_with({"image_token": "<|image|>", "audio_token": "<|audio|>"}, bos="<bos>")
    hearing, images = hf.Phi4MultimodalFeatureExtractor(), hf.Phi4MultimodalImageProcessor(dynamic_hd=1)
    processor = hf.Phi4MultimodalProcessor(images, hearing, tokenizer)
    tokenizer.chat_template = chat("<|image|>", "<|audio|>")
    audio = {"hidden_size": 32, "intermediate_size": 64, "num_blocks": 2, "num_attention_heads": 2}
    convolutions = {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 16}
    image = {"image_size": 448, "patch_size": 14, "crop_size": 448, "image_token_id": tokenizer.image_token_id}
    config = hf.Phi4MultimodalConfig(
        **text_sizes(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        vision_config={**SMALL, "num_hidden_layers": 2, **image},
        audio_config={**audio, **convolutions, "audio_token_id": tokenizer.audio_token_id},
    )
    return processor, hf.Phi4MultimodalForCausalLM(config)


def nemotron_h_omni() -> tuple[Any, Any]:
    named = {"image_token": "<image>", "video_token": "<video>", "audio_token": "<so_embedding>"}
    tokenizer = tokenizer_with(named, more=["<so_start>", "<so_end>", "<img>", "</img>"])
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        hf.NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=4, max_num_patches=16),
        hf.NemotronH_Omni_Reasoning_V3VideoProcessor(),
        tokenizer,
        hf.ParakeetFeatureExtractor(feature_size=80),
        chat_template=chat("<image>", "<so_embedding>"),
    )
    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 2, "chunk_size": 16}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32}
    kinds = ["linear_attention", "full_attention", "moe", "linear_attention", "full_attention", "mlp"]
    text = text_sizes(tokenizer, head_dim=16, layers_block_type=kinds, num_hidden_layers=len(kinds), **mamba, **experts)
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config={"model_type": "nemotron_h", **text},
        vision_config={
            "model_type": "radio",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_img_size": 64,
            "video_temporal_patch_size": 2,
        },
        audio_config={**SMALL, "subsampling_conv_channels": 8, "projection_hidden_size": 32, "projection_bias": False},
        vision_hidden_size=32,
        projector_hidden_size=64,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    return processor, hf.NemotronH_Omni_Reasoning_V3(config)


QWEN_VL_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
QWEN_VL_CHAT = chat("<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_vl_tokens(tokenizer: Any) -> dict[str, int]:
    ends = ids(tokenizer, vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")
    return {"image_token_id": tokenizer.image_token_id, "video_token_id": tokenizer.video_token_id, **ends}


def qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer, (images, videos) = tokenizer_with(QWEN_VL_TOKENS), qwen_images()
    processor = hf.Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=QWEN_VL_CHAT)
    text = text_sizes(tokenizer, **rope(2, 3, 3))
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=qwen_vision(**WINDOWED), **_qwen_vl_tokens(tokenizer))
    return processor, hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer, (images, _) = tokenizer_with(QWEN_VL_TOKENS), qwen_images(16)
    videos = hf.Qwen3VLVideoProcessor(size={"shortest_edge": 32**2, "longest_edge": 64**2}, patch_size=16)
    processor = hf.Qwen3VLProcessor(images, tokenizer, videos, chat_template=QWEN_VL_CHAT)
    text = text_sizes(tokenizer, head_dim=16, **rope(4, 2, 2, mrope_interleaved=True))
    config = hf.Qwen3VLConfig(text_config=text, vision_config=qwen_vision(**DEEPSTACK), **_qwen_vl_tokens(tokenizer))
    return processor, hf.Qwen3VLForConditionalGeneration(config)


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = tokenizer_with({"image_token": "<image>", "video_token": "<video>"})
    side = {"height": 28, "width": 28}
    images = hf.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=[[28, 28]])
    processor = hf.LlavaOnevisionProcessor(
        images,
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chat("<image>"),
    )
    siglip = {"model_type": "siglip_vision_model", **SMALL, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_sizes(tokenizer)},
        vision_config=siglip,
        image_token_id=tokenizer.image_token_id,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=[[28, 28]],
        vision_feature_layer=-1,
    )
    return processor, hf.LlavaOnevisionForConditionalGeneration(config)


def smolvlm() -> tuple[Any, Any]:
    named = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    tokenizer = tokenizer_with({**named, "end_of_utterance_token": "<end_of_utterance>"}, more=["<video>"])
    edge = {"longest_edge": 32}
    videos = hf.SmolVLMVideoProcessor(size=edge, max_image_size=edge, video_sampling={"fps": 1, "max_frames": 2, "video_size": edge})
    images = hf.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = hf.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template=chat("<image>"))
    config = hf.SmolVLMConfig(
        text_config={"model_type": "llama", **text_sizes(tokenizer)},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return processor, hf.SmolVLMForConditionalGeneration(config)


def qwen2_audio() -> tuple[Any, Any]:
    named = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    tokenizer = tokenizer_with(named)
    hearing = hf.WhisperFeatureExtractor(feature_size=128, chunk_length=1)
    processor = hf.Qwen2AudioProcessor(hearing, tokenizer, chat_template=chat(audio="<|audio_bos|><|AUDIO|><|audio_eos|>"))
    config = hf.Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **text_sizes(tokenizer)},
        audio_config={"model_type": "qwen2_audio_encoder", **WHISPER, "encoder_layers": 1, "max_source_positions": 50},
        audio_token_index=tokenizer.audio_token_id,
    )
    return processor, hf.Qwen2AudioForConditionalGeneration(config)


def voxtral() -> tuple[Any, Any]:
    """Its tokenizer is mistral-common's, of a vocabulary of bytes and one word; the audio token must have the id 24."""
    from mistral_common.tokens.tokenizers.base import SpecialTokens

    known = [token.value for token in SpecialTokens]
    audio = known.index(SpecialTokens.audio.value)
    special = [*known[:audio], *(f"<SPECIAL_{n}>" for n in range(audio, 24)), *known[audio:]]
    pieces = [*(bytes([n]) for n in range(256)), b"od", b"odd"]
    windows = {"num_mel_bins": 128, "hop_length": 160, "window_size": 400}
    vocabulary = {
        "config": {
            "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + len(special),
            "default_num_special_tokens": len(special),
            "version": "v7",
        },
        "vocab": [{"rank": n, "token_bytes": base64.b64encode(b).decode(), "token_str": None} for n, b in enumerate(pieces)],
        "special_tokens": [{"rank": n, "token_str": t, "is_control": True} for n, t in enumerate(special)],
        "audio": {"sampling_rate": 16000, "frame_rate": 12.5, "audio_encoding_config": windows, "chunk_length_s": 30.0},
    }
    (Path(FILES.name) / "tekken.json").write_text(json.dumps(vocabulary))
    tokenizer = hf.MistralCommonBackend.from_pretrained(FILES.name)
    processor = hf.VoxtralProcessor(hf.WhisperFeatureExtractor(feature_size=128), tokenizer)
    config = hf.VoxtralConfig(
        text_config={"model_type": "llama", **text_sizes(tokenizer)},
        audio_config={"model_type": "voxtral_encoder", **SMALL, "intermediate_size": 128, "max_source_positions": 1500},
        audio_token_id=24,
    )
    return processor, hf.VoxtralForConditionalGeneration(config)


def qwen2() -> tuple[Any, Any]:
    tokenizer = tokenizer_with()
    tokenizer.chat_template = READS_STRINGS
    return tokenizer, hf.Qwen2ForCausalLM(hf.Qwen2Config(**text_sizes(tokenizer)))


def llama() -> tuple[Any, Any]:
    tokenizer = tokenizer_with(bos="<bos>")
    tokenizer.chat_template = "{{ bos_token }}" + READS_STRINGS
    tokenizer.pad_token = None  # as in Llama's checkpoints
    return tokenizer, hf.LlamaForCausalLM(hf.LlamaConfig(**text_sizes(tokenizer)))


READS_STRINGS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""as templates of text models are: a content that is a list of parts makes them fail"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One family of the matrix."""

    build: Callable[[], tuple[Any, Any]]
    kinds: tuple[str, ...]
    """media that the model takes"""
    linears: int = 7 * (LAYERS - 2)
    """linear modules in the decoder layers after the second that get an adapter"""
    experts: int = 0
    """and stacks of fused experts"""
    needs: tuple[str, ...] = ()
    """packages beyond those that gapclose installs"""
    repeats: int = 1
    """how often a sound is played: Qwen3-Omni's tower hears windows of a second, each padded to the longest in the batch, so that a
    batch tells on sounds without a whole one"""
    one_length: bool = False
    """whether sounds are cut to one length: Phi-4-multimodal's tower sees the padding of shorter ones, so that a batch tells on them"""
    no_hidden_states_with: str = ""
    """kind of media with which ``output_hidden_states`` fails in transformers 5.23"""
    reads_once: bool | None = True
    """whether the questions of a clip can follow on one reading of it: not where a state moves on with every token; None: with some media"""
    no_trunk: str = ""
    """words of why what enters the first adapted layer is not all that the layers above it need"""
    no_branches: str = ""
    """words of why answers of several tokens cannot stand in one row"""
    slow: bool = False


BOTH = ("image", "audio")
ROWS = {
    "Qwen2.5-Omni": Row(build=qwen2_5_omni, kinds=BOTH),
    "Qwen3-Omni": Row(build=qwen3_omni, kinds=BOTH, repeats=6, linears=8, experts=4),
    "Gemma 3n": Row(
        build=gemma3n,
        kinds=BOTH,
        linears=22,
        needs=("timm",),
        reads_once=None,
        no_trunk="several residual streams",
        no_branches="layers keep",
        slow=True,
    ),
    "Gemma 4": Row(build=gemma4, kinds=BOTH, linears=18, no_trunk="per_layer_inputs", no_branches="layers keep"),
    "Phi-4-multimodal": Row(build=phi4, kinds=BOTH, linears=8, one_length=True, no_hidden_states_with="image", slow=True),
    "Nemotron-H-Omni": Row(build=nemotron_h_omni, kinds=BOTH, linears=9, experts=2, reads_once=False, no_branches="layers keep"),
    "Qwen2.5-VL": Row(build=qwen2_5_vl, kinds=("image",)),
    "Qwen3-VL": Row(build=qwen3_vl, kinds=("image",)),
    "LLaVA-OneVision": Row(build=llava_onevision, kinds=("image",)),
    "SmolVLM": Row(build=smolvlm, kinds=("image",), needs=("num2words",)),
    "Qwen2-Audio": Row(build=qwen2_audio, kinds=("audio",)),
    "Voxtral": Row(build=voxtral, kinds=("audio",), needs=("mistral_common",)),
    "Qwen": Row(build=qwen2, kinds=()),
    "Llama": Row(build=llama, kinds=()),
}
