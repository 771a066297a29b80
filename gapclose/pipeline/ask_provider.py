"""Put items to a provider's model through inspect_ai, which keeps clients, retries, logs and prices.

Only :mod:`gapclose.pipeline.ask` imports this module: it needs the extra ``api``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inspect_ai
import soundfile
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalSample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentAudio,
    ContentImage,
    ContentText,
    ContentVideo,
    GenerateConfig,
    ModelCost,
    ModelInfo,
    get_model_info,
    set_model_info,
)
from inspect_ai.solver import generate
from rich.text import Text

from gapclose.data.audio import USUAL_RATE, read_audio
from gapclose.data.images import read_image
from gapclose.data.items import Item
from gapclose.evaluation.asked_answers import AskedAnswer

ROLES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
FILMS = {".mp4": "mp4", ".mpeg": "mpeg", ".mpg": "mpeg", ".mov": "mov"}
TOP = 20
"""first tokens to list, the most that OpenAI gives"""
RETRIES = 5
CUT_OFF = ("max_tokens", "model_length")
REQUEST_END = re.compile(r"(?:\\n|\n)\}(?:\\n|\n)+")
"""end of the request that inspect puts before an error, with its newlines as they are or escaped"""
Question = tuple[str, Item]
"""a name that is unique among the questions, and the item"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came back."""

    answers: Mapping[str, AskedAnswer]
    """by the name of the question"""
    faults: Mapping[str, str]
    """why there is no answer, by the name of the question"""
    usage: Mapping[str, Any]
    """tokens, and dollars where a price is known"""
    cut_off: int
    """answers that reached their length limit before any text"""
    log: str


def ask_questions(
    questions: Sequence[Question],
    root: Path,
    *,
    model: str,
    folder: Path,
    max_tokens: int,
    connections: int,
    logprobs: bool,
    cache: bool,
    price: tuple[float, float] | None,
) -> Asked:
    """Ask every question once, greedily.

    Args:
        root: directory of the media.
        model: as inspect names it, ``PROVIDER/MODEL``.
        folder: for inspect's log, and for media in formats that providers do not take.
        logprobs: ask for log-probabilities.
        cache: take answers to the same requests from inspect's cache.
        price: dollars for a million tokens, of requests and of answers.

    Raises:
        ValueError: when inspect refuses the model or its settings, or does not come to the end.
        KeyboardInterrupt: when inspect was interrupted.
    """
    if price is not None:
        sent, written = price
        cost = ModelCost(input=sent, output=written, input_cache_write=sent, input_cache_read=sent)
        set_model_info(model, (get_model_info(model) or ModelInfo()).model_copy(update={"cost": cost}))
    faults, samples, media = dict[str, str](), list[Sample](), folder / "media"
    for name, item in questions:
        try:
            samples.append(Sample(input=messages(item, root, media), id=name))
        except ValueError as error:
            faults[name] = str(error)
    if not samples:
        return Asked(answers={}, faults=faults, usage={}, cut_off=0, log="none, since nothing was sent")
    config = GenerateConfig(temperature=0.0, max_tokens=max_tokens, max_retries=RETRIES, max_connections=connections)
    if logprobs:
        config = config.merge(GenerateConfig(logprobs=True, top_logprobs=TOP))
    task = inspect_ai.Task(dataset=MemoryDataset(samples), solver=generate(cache=cache), config=config, name="gapclose")
    quiet: dict[str, Any] = {
        "display": "none",
        "log_level": "error",
        "log_images": False,
        "score": False,
        "acp_server": False,
        "ctl_server": False,
    }
    try:
        logs = inspect_ai.eval(task, model=model, log_dir=str(folder / "log"), fail_on_error=False, **quiet)
    except Exception as error:  # clients raise errors of any kind for a missing key or an unknown model
        told = str(error)
        if type(error).__name__ == "PrerequisiteError":  # inspect writes it for a console, in rich's markup
            told = Text.from_markup(told).plain.removeprefix("ERROR: ")
        raise ValueError(f"{model}: {_reason(told)}") from error
    if not logs or logs[0].status == "cancelled":  # inspect handles the interruption itself
        raise KeyboardInterrupt(f"inspect's log of what was answered is in {folder / 'log'}; --cache takes those answers from its cache")
    log = logs[0]
    if log.status != "success" or log.samples is None:
        raise ValueError(f"{model}: {_reason(log.error.message) if log.error else f'inspect ended as {log.status!r}, with nothing'}")
    answers, cut_off = dict[str, AskedAnswer](), 0
    for sample in log.samples:
        if why := _no_answer(sample):
            faults[str(sample.id)] = why
            continue
        choice = sample.output.choices[0]
        cut_off += choice.stop_reason in CUT_OFF and not sample.output.completion.strip()
        first = choice.logprobs.content[0] if choice.logprobs and choice.logprobs.content else None
        listed = None if first is None or not first.top_logprobs else {t.token: t.logprob for t in first.top_logprobs}
        answers[str(sample.id)] = AskedAnswer(text=sample.output.completion, first=listed)
    usage = {name: used.model_dump(exclude_none=True) for name, used in log.stats.model_usage.items()}
    return Asked(answers=answers, faults=faults, usage=usage, cut_off=cut_off, log=log.location)


def _no_answer(sample: EvalSample) -> str | None:
    """Why a request has no answer; None if it has one."""
    if sample.error is not None:
        return _reason(sample.error.message)
    if sample.output is None or not sample.output.choices:
        return "the provider gave no answer"
    if sample.output.choices[0].stop_reason == "content_filter":
        return "the provider's filter withheld the answer"
    return None


def _reason(message: str) -> str:
    """What an error says, without the request that inspect puts before it."""
    *before, told = REQUEST_END.split(message)
    told = told.replace("\\'", "'").removesuffix("')") if before else told
    return " ".join(told.split())[:300] or "no reason is given"


def messages(item: Item, root: Path, folder: Path) -> list[ChatMessage]:
    """The messages of an item, with media as files that providers take.

    Raises:
        ValueError: when a medium cannot be given to a provider.
    """
    turns = list[ChatMessage]()
    for message in item.messages:
        content = message["content"]
        turns.append(ROLES[message["role"]](content=content if isinstance(content, str) else [_part(p, root, folder) for p in content]))
    return turns


def _part(part: Mapping[str, Any], root: Path, folder: Path) -> Content:
    if part["type"] == "text":
        return ContentText(text=part["text"])
    path = (root / part["path"]).absolute()
    suffix = path.suffix.lower()
    if part["type"] == "image":
        if suffix not in (".png", ".jpg", ".jpeg"):
            read_image(path).save(path := _copy(folder, part["path"], ".png"))
        return ContentImage(image=str(path))
    if part["type"] == "audio":
        if suffix not in (".wav", ".mp3"):
            sound, rate = read_audio(path, USUAL_RATE)
            soundfile.write(path := _copy(folder, part["path"], ".wav"), sound, rate)
        return ContentAudio(audio=str(path), format="mp3" if suffix == ".mp3" else "wav")
    if suffix not in FILMS or part.get("sound"):
        raise ValueError(f"a film as {suffix}, or with interleaved sound, has no form that providers take")
    return ContentVideo(video=str(path), format=FILMS[suffix])  # type: ignore[arg-type]


def _copy(folder: Path, path: str, suffix: str) -> Path:
    """The place of a medium in another format."""
    place = folder / f"{path}{suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
