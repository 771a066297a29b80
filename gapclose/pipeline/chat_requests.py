"""Requests for a chat completion in OpenAI's form: what is taken of it, and the conversation as messages with files.

Remote addresses are never opened. Media arrive in the request, as base64.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gapclose.core.errors import ItemError
from gapclose.data.audio import USUAL_RATE
from gapclose.data.images import MOST_PIXELS
from gapclose.data.item_set import Framing
from gapclose.data.media import decode

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
SOUNDS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}
"""first bytes of a sound -> suffix"""
PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF")
"""formats of Pillow that are taken; their headers state the pixels that decoding takes"""
MOST_CHARACTERS = 1_000_000
"""of all texts of a request; a pipeline reads them several times"""
MOST_PARTS, MOST_MEDIA, MOST_OPTIONS = 1_000, 64, 100
"""content parts of a request, pictures and sounds among them, and options. A processor enlarges small
pictures and fills up short sounds, so their number counts as well"""
MOST_SECONDS = 3_600
"""of all sounds of a request: 230 MB at 16 kHz. Its pictures have as many pixels in sum as one image may have"""
Zero = Annotated[float | None, Field(ge=0, le=0)]
"""a setting that is taken only where it changes nothing"""


def _base64(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the base64 is damaged ({error}); encode the file again") from error


def _picture(url: Any) -> bytes:
    if not isinstance(url, str) or not (head := DATA_URL.match(url)):
        begun = url[:40] if isinstance(url, str) else type(url).__name__
        raise ValueError(f"{begun!r} is not fetched; send the picture itself, as data:image/png;base64,...")
    return _base64(url[head.end() :])


def _sound(data: Any) -> bytes:
    if not isinstance(data, str):
        raise ValueError("send the sound as a string of base64")
    sound = _base64(data)
    _suffix(sound)
    return sound


def _suffix(sound: bytes) -> str:
    """The suffix of a sound by its first bytes. Raises: ValueError for other formats."""
    if len(sound) > 1 and sound[0] == 0xFF and sound[1] & 0xE0 == 0xE0:
        return ".mp3"
    found = next((suffix for head, suffix in SOUNDS.items() if sound.startswith(head)), None)
    if found is None:
        raise ValueError(f"the sound is none of {sorted(set(SOUNDS.values()))} by its first bytes; convert it, for example to wav")
    return found


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Text(_Part):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """The bytes of a picture."""

    url: Annotated[bytes, BeforeValidator(_picture)]
    detail: Any = None
    """not used"""


class Picture(_Part):
    """A part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(_Part):
    """The bytes of a sound."""

    data: Annotated[bytes, BeforeValidator(_sound)]
    format: str = ""
    """not used: the first bytes show the format"""


class Sound(_Part):
    """A part of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[Text | Picture | Sound, Field(discriminator="type")]


class Message(_Part):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1)]
    name: Any = None
    """not used"""


class StreamOptions(_Part):
    """What a stream also holds."""

    include_usage: bool = False
    include_obfuscation: Any = None
    """not used"""


class Extension(_Part):
    """The key ``gapclose`` of a request."""

    options: list[dict[str, str]] | None = Field(default=None, max_length=MOST_OPTIONS)
    """possible answers with their concepts, ``{"text", "concept"}`` each; they decide on ``disagrees``"""


class ChatRequest(BaseModel):
    """A request. Keys that would change the answer and are not supported are refused by name."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    """None or 0 is greedy"""
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    gapclose: Extension = Extension()

    n: int | None = Field(1, ge=1, le=1)
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _bounded(self) -> ChatRequest:
        parts = [part for message in self.messages for part in message.content]
        texts = [part.text for part in parts if isinstance(part, Text)]
        texts += [text for option in self.gapclose.options or () for text in option.values()]
        _refuse_above(len(parts), MOST_PARTS, "content parts", "join the texts")
        _refuse_above(sum(not isinstance(part, Text) for part in parts), MOST_MEDIA, "pictures and sounds", "send fewer")
        _refuse_above(sum(map(len, texts)), MOST_CHARACTERS, "characters of text", "shorten it")
        return self

    def limit(self, default: int) -> int:
        """The length limit of the answer, in tokens."""
        return self.max_completion_tokens or self.max_tokens or default

    def sampling(self) -> dict[str, Any]:
        """Arguments of ``generate``; empty for greedy answers."""
        if not self.temperature:
            return {}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": 0}

    def conversation(self, folder: Path) -> list[dict[str, Any]]:
        """Write the media to ``folder``, and return the messages in the form of items.

        Raises:
            ValueError: when the media take too much memory.
        """
        messages, count = list[dict[str, Any]](), 0
        for message in self.messages:
            parts = list[dict[str, str]]()
            for part in message.content:
                if isinstance(part, Text):
                    parts.append({"type": "text", "text": part.text})
                    continue
                kind, data, suffix = (
                    ("image", part.image_url.url, "")
                    if isinstance(part, Picture)
                    else ("audio", part.input_audio.data, _suffix(part.input_audio.data))
                )
                name, count = f"{kind}-{count}{suffix}", count + 1
                (folder / name).write_bytes(data)
                parts.append({"type": kind, "path": name})
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": parts})
        _refuse_large(folder)
        return messages


def _refuse_above(count: float, most: int, what: str, remedy: str) -> None:
    if count > most:
        raise ValueError(f"the request has {count:,.0f} {what}, and {most:,} are taken; {remedy}")


def _refuse_large(folder: Path) -> None:
    """Refuse media whose decoded sizes are too large in sum; a small file may hold much.

    Headers count for pictures. Sounds are decoded one by one, since their headers may be wrong.

    Raises:
        ValueError: with the sum or the faulty file, and the remedy.
    """
    pixels, seconds = 0, 0.0
    for path in sorted(folder.iterdir()):
        if path.name.startswith("image"):
            pixels += _pixels(path)
            _refuse_above(pixels, MOST_PIXELS, "pixels in its pictures", "scale them down")
            continue
        try:
            seconds += len(decode("audio", path, USUAL_RATE, Framing())) / USUAL_RATE
        except ItemError as error:
            raise ValueError(f"{path.name}: {error}") from error
        _refuse_above(seconds, MOST_SECONDS, "seconds of sound", "cut them")


def _pixels(path: Path) -> int:
    """The pixels of a picture, as its header states them. Raises: ValueError."""
    try:
        with Image.open(path, formats=PICTURES) as picture:
            return picture.width * picture.height
    except Exception as error:  # damaged files make Pillow raise errors of any kind
        raise ValueError(f"{path.name}: the image cannot be decoded as one of {list(PICTURES)}; write it as PNG") from error


def read_request(body: bytes) -> ChatRequest:
    """Parse the body of a request.

    Raises:
        ValueError: naming every fault and its place.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_input=False)
        ]
        raise ValueError("; ".join(line.removeprefix(": ") for line in told)) from error
