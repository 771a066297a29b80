"""Videos as inputs of a transformers processor: frames, their times and their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gapclose.data.video import Video


def video_inputs(films: Sequence[Video], processor: Any = None) -> dict[str, Any]:
    """Processor arguments for the videos of a batch: frames as they are, and their times.

    Empty without videos.
    """
    if not films:
        return {}
    from transformers.video_utils import VideoMetadata

    facts = []
    for film in films:
        count, (height, width) = len(film.frames), film.frames.shape[1:3]
        rate = 1 / film.seconds if film.seconds > 0 else 1.0
        facts.append(
            VideoMetadata(
                total_num_frames=count, fps=rate, duration=count / rate, height=height, width=width, frames_indices=list(range(count))
            )
        )
    how = {"video_metadata": facts, "do_sample_frames": False, **_smaller_size(processor)}
    return {"videos": [f.frames for f in films], "videos_kwargs": how}


def _smaller_size(processor: Any) -> dict[str, Any]:
    """The checkpoint's own video size, if it is below the default of its processor's class.

    The Qwen2.5-Omni processor of transformers 5.23 enlarges every frame to at least 100,352 pixels
    (128 tokens), whatever the checkpoint says. The published models saw videos in this way in
    training; a small model has a smaller size on purpose. Remove when the checkpoint's size is
    kept.
    """
    stated = getattr(type(processor), "videos_kwargs", None)
    usual = stated.get("size") if isinstance(stated, dict) else None
    own = getattr(getattr(processor, "video_processor", None), "size", None)
    if not usual or not own or own["longest_edge"] >= usual["longest_edge"]:
        return {}
    return {"size": {key: own[key] for key in ("shortest_edge", "longest_edge")}}


def set_video_times(inputs: dict[str, Any], films: Sequence[Video], processor: Any) -> None:
    """Set the time per grid step of each video where a processor has one for all of them.

    Qwen2.5-Omni's processor assumes that every video was sampled twice a second (transformers
    5.23), and its model places frames in time by that. Remove when it uses the metadata, as the
    processor of Qwen2.5-VL does.
    """
    import torch

    if "video_second_per_grid" in inputs:
        patch = processor.video_processor.temporal_patch_size
        inputs["video_second_per_grid"] = torch.tensor([f.seconds * patch for f in films])
