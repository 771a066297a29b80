"""The eight models of the source paper (arXiv 2605.13737): their support in transformers 5.23.

The names were not checked on the hub, which could not be reached, and no revisions are pinned. Set
``model.revision`` to the commit that you have read.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Published(NamedTuple):
    """One model of the paper."""

    name: str
    hub: str
    """hub name of its weights"""
    family: str | None
    """class of transformers that is loaded, or None if there is none"""
    known: str
    """known results, or why code besides transformers is needed"""


PUBLISHED = (
    Published(
        "Qwen2.5-Omni",
        "Qwen/Qwen2.5-Omni-7B",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "its class goes all the way at toy size, with films too",
    ),
    Published(
        "Qwen3-Omni",
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "its class goes all the way at toy size, experts included",
    ),
    Published("Ola", "THUdyh/Ola-7b", None, "a Qwen2 decoder with towers of its own; its code is a source tree beside the weights"),
    Published("OmniVinci", "nvidia/omnivinci", None, "a VILA model whose code comes with the checkpoint"),
    Published("MiniCPM-o 2.6", "openbmb/MiniCPM-o-2_6", None, "its code comes with the checkpoint and was written for transformers 4"),
    Published("Uni-MoE-2.0-Omni", "HIT-TMG/Uni-MoE-2.0-Omni", None, "a decoder with experts of its own kind; its code is a source tree"),
    Published("video-SALMONN 2", "tsinghua-ee/video-SALMONN-2", None, "a LLaVA model that hears; its code is a source tree"),
    Published("Baichuan-Omni-1.5", "baichuan-inc/Baichuan-Omni-1d5", None, "its code comes with the checkpoint"),
)


GRAFT = "models/graft"
"""directory that configs/places.yaml names; a recipe writes it"""


def _words(name: str) -> list[str]:
    """The parts of a name between dots, dashes and underscores."""
    return re.findall(r"[a-z0-9]+", name.lower())


def published(path: str) -> Published | None:
    """The model of the paper that a path names, or None.

    That is the model with this hub name, or else one whose name begins the last part of the path.
    """
    exact = next((p for p in PUBLISHED if p.hub.lower() == path.lower()), None)
    last = _words(path.rstrip("/").rpartition("/")[2])
    names = ((p, _words(name)) for p in PUBLISHED for name in (p.name, p.hub.rpartition("/")[2]))
    return exact or next((p for p, words in names if last[: len(words)] == words), None)


def recipe(path: str) -> str:
    """Return the command that writes the directory ``path``, to add to an error; else empty."""
    if path.rstrip("/").endswith(GRAFT):
        return f"; make it first: python recipes/graft.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --out {path}"
    return ""


def remedy(path: str) -> str:
    """Return known facts on the model that ``path`` names, to add to a loading error; else empty."""
    found = published(path)
    if found is None:
        return ""
    if found.family:
        return f" ({found.name} needs no code beside transformers; the paper's is {found.hub})"
    return (
        f" ({found.name} has no class in transformers: {found.known}. The paper's is {found.hub}; where a checkpoint brings its code along, read "
        "it, and set model.trust_remote_code; gapclose was not tried with it)"
    )
