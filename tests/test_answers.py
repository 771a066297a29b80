"""Answers: which option a generated text is taken for."""

import pytest

from gapclose.answers import parse_all, parse_lenient, parse_strict
from gapclose.items import Item, Option

SIX, NINE = tuple("ABCDEF"), tuple("ABCDEFGHI")
WORDS, LETTERS = ("odd", "even", "not odd", "unseen"), ("A", "B", "C")
LONG = ("the left one", "the left one is wrong", "I cannot see it.")


def item(texts: tuple[str, ...]) -> Item:
    options = [Option(text=t, concept="x") for t in texts]
    return Item(id="i", clip="c", split="test", modality="v", messages=[], options=options)


TABLE = [  # options, answer, strict, lenient
    (WORDS, "odd", 0, 0),
    (WORDS, "  even\n", 1, 1),
    (WORDS, "Odd", None, 0),
    (WORDS, "odd.", None, 0),
    (WORDS, "**Unseen**!", None, 3),
    (WORDS, "It is even, I think.", None, 1),
    (WORDS, "not odd", 2, 2),
    (WORDS, "It is NOT odd", None, 2),
    (WORDS, "not even odd", None, None),
    (WORDS, "odd or even", None, None),
    (WORDS, "not odd, but even", None, None),
    (WORDS, "odd, odd, odd", None, 0),
    (WORDS, "oddly", None, None),
    (WORDS, "seven", None, None),
    (WORDS, "", None, None),
    (WORDS, "...", None, None),
    (WORDS, "I do not know", None, None),
    (LETTERS, "B", 1, 1),
    (LETTERS, "b", None, 1),
    (LETTERS, "(C)", None, 2),
    (LETTERS, "B.", None, 1),
    (LETTERS, "The answer is B: a dog", None, 1),
    (LETTERS, "a dog", None, None),
    (LETTERS, "A or B", None, None),
    (LETTERS, "Bob", None, None),
    (SIX, "A man is not there; the visual detail is incorrect.", None, None),
    (SIX, "A woman, so E", None, 4),
    (SIX, "E: I see no dog", None, 4),
    (SIX, "A is correct", None, 0),
    (SIX, "The answer is A man", None, 0),
    (SIX, "Option A because of the dog", None, 0),
    (SIX, "A\nA man speaks.", None, 0),
    (SIX, "(A) A man speaks.", None, 0),
    (SIX, "E is my option. A man speaks.", None, 4),
    (SIX, "A B", None, None),
    (NINE, "I think it is E", None, 4),
    (NINE, "I'd say E", None, 4),
    (NINE, "I.", None, 8),
    (("A dog", "A cat"), "It is a dog", None, 0),
    (LONG, "the left one", 0, 0),
    (LONG, "The left one is wrong", None, 1),
    (LONG, "i cannot see it", None, 2),
    (LONG, "the one on the left", None, None),
    (("ungerade", "größer"), "Größer!", None, 1),
    (("?", "yes"), "", None, None),
    (("3", "13"), "It is 13", None, 1),
    (("1.5", "5"), "1.5", 0, 0),
    (("1.5", "5"), "about 1.5 m", None, 0),
]


@pytest.mark.parametrize(("texts", "answer", "strict", "lenient"), TABLE)
def test_which_option_an_answer_is(texts, answer, strict, lenient):
    """Strict takes the option letter for letter; lenient one whole-word mention, the longest first."""
    assert (parse_strict(answer, item(texts)), parse_lenient(answer, item(texts))) == (strict, lenient)


def test_every_option_is_itself(digits):
    """Every option of the embedded world parses as itself, strictly and shouted."""
    for one in {i.options[0].text: i for i in digits}.values():
        texts = [o.text for o in one.options]
        assert [parse_strict(t, one) for t in texts] == [parse_lenient(t.upper() + "!", one) for t in texts] == list(range(len(texts)))


def test_many_answers_at_once():
    """-1 stands for an answer that does not parse."""
    items = [item(WORDS), item(LETTERS), item(WORDS)]
    assert parse_all(["odd", "b", "?"], items).tolist() == [0, -1, -1]
    assert parse_all(["odd", "b", "?"], items, lenient=True).tolist() == [0, 1, -1]
    with pytest.raises(ValueError):
        parse_all(["odd"], items)
