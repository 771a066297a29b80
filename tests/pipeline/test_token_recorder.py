"""The pieces of a stream are the whole answer, also where a tokenizer changes earlier text, or the stream ends with an error."""

import pytest
import torch

from gapclose.pipeline.token_recorder import Revised, TokenRecorder


class Cleaning:
    """Joins tokens as a tokenizer that cleans up spaces: a later token may change what earlier ones were decoded to."""

    words = ("do", " n", "'t", " know", "\ufffd", " ", "'")

    def decode(self, tokens, skip_special_tokens=False):
        text = "".join(self.words[t] for t in tokens)
        return text.replace("\ufffd" * 2, "\u00e9").replace(" n't", "n't").replace(" ' ", "'")


def streamed(tokens) -> list[str]:
    """The pieces of an answer of these tokens."""
    pieces, cleaning = list[str](), Cleaning()
    recorder = TokenRecorder(cleaning, {99}, None, lambda text, _: pieces.append(text))
    for value in (torch.zeros(1, 5), *(torch.tensor([t]) for t in (*tokens, 99))):
        recorder.put(value)
    recorder.finish(cleaning.decode(tokens))
    return pieces


@pytest.mark.parametrize(
    ("tokens", "answer"), [((0, 1, 2, 3), "don't know"), ((0, 4, 4, 3), "do\u00e9 know"), ((0, 4), "do\ufffd"), ((3,), " know"), ((), "")]
)
def test_the_pieces_are_the_whole_answer(tokens, answer):
    pieces = streamed(tokens)
    assert "".join(pieces) == answer and "" not in pieces and (len(tokens) < 4 or len(pieces) > 1)


def test_a_stream_whose_text_was_changed_too_late_ends_with_an_error():
    with pytest.raises(Revised, match="ask for it without `stream`"):
        streamed((0, 5, 6, 5, 0))  # "do '" has sent "do ", and the blank behind it makes "do'do"
