"""Tiny whole omni checkpoints of the real classes: the thinker of the matrix with a talker and a vocoder, saved in several files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_families import ROWS, rope, spread

TOKENS = 32
"""of the talkers"""
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def _qwen2_5(thinker: Any) -> Any:
    names = ("start", "end", "pad")
    text = {f"tts_text_{n}_token_id": i for i, n in enumerate(names)}
    codec = {f"tts_codec_{n}_token_id": i for i, n in enumerate((*names, "mask"))}
    ends = {k: getattr(thinker, k) for k in ("vision_start_token_id", "vision_end_token_id", "audio_start_token_id", "audio_end_token_id")}
    talker = hf.Qwen2_5OmniTalkerConfig(
        vocab_size=TOKENS, embedding_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, head_dim=16, **HEADS,
        **rope(2, 3, 3), **text, **codec, **ends, audio_token_index=4, image_token_index=5, video_token_index=6, pad_token_id=0,
    )  # fmt: skip
    speaker = {"enc_dim": 8, "enc_emb_dim": 8, "enc_channels": [8] * 5, "enc_attention_channels": 4, "enc_se_channels": 4}
    dit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "emb_dim": 8, "num_embeds": TOKENS + 1}
    vocoder = {"upsample_initial_channel": 64, "mel_dim": 8}
    parts = {"dit_config": {**dit, **speaker, "mel_dim": 8, "enc_res2net_scale": 2}, "bigvgan_config": vocoder}
    return hf.Qwen2_5OmniConfig(thinker_config=thinker.to_dict(), talker_config=talker.to_dict(), token2wav_config=parts)


def _qwen3(thinker: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, **HEADS}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    talker = {
        "text_config": {**sizes, **experts, "vocab_size": TOKENS, "head_dim": 16, **rope(4, 2, 2, mrope_interleaved=True)},
        "code_predictor_config": {**sizes, "vocab_size": TOKENS, "head_dim": 16, "num_code_groups": 2},
        "thinker_hidden_size": 64,
        "num_code_groups": 2,
        "accept_hidden_layer": 1,
        "spatial_merge_size": 2,
        "speaker_id": {"someone": 1},
    }
    vocoder = {**sizes, "codebook_size": TOKENS, "num_quantizers": 2, "decoder_dim": 32, "upsample_rates": [2], "upsampling_ratios": [2]}
    return hf.Qwen3OmniMoeConfig(thinker_config=thinker.to_dict(), talker_config=talker, code2wav_config=vocoder)


WHOLE = {
    "Qwen2.5-Omni": (_qwen2_5, "Qwen2_5OmniForConditionalGeneration"),
    "Qwen3-Omni": (_qwen3, "Qwen3OmniMoeForConditionalGeneration"),
}


def save_whole(name: str, directory: Path, *, dtype: torch.dtype = torch.float32, shards: str = "400KB") -> Any:
    """Save a whole checkpoint with its processor and whatever travels with it; returns the class that loads it."""
    torch.manual_seed(0)
    processor, thinker = ROWS[name].build()
    make_config, kind = WHOLE[name]
    model = getattr(hf, kind)(make_config(thinker.config))
    spread(model.thinker)
    model.to(dtype).save_pretrained(directory, max_shard_size=shards)
    processor.save_pretrained(directory)
    if name == "Qwen2.5-Omni":  # its class reads voices from there when it loads
        torch.save({"someone": {"cond": torch.zeros(1)}}, directory / "spk_dict.pt")
    return getattr(hf, kind)
