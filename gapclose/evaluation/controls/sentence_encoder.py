"""A sentence encoder as a text control: features of the question alone, without media.

Shapes: N texts, B batch, T tokens, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers

from gapclose.core.logging import progress

LONGEST = 512  # tokens; longer texts are truncated


@torch.inference_mode()
def encode(path: str, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """Return the encoder's last token states, averaged over the tokens of each text, (N, D).

    Raises:
        ValueError: when transformers cannot load a model and a tokenizer from the directory
            ``path``.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"controls.text_encoder {path!r} cannot be loaded as a model with its tokenizer: {error}") from error
    states, starts = [], range(0, len(texts), batch_size)
    for start in progress(starts, len(starts), "encoding the questions"):
        batch = list(texts[start : start + batch_size])
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state  # (B, T, D)
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        states.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(states).double().numpy()
