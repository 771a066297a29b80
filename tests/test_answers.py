"""Answers: which option a generated text is taken for."""

import pytest

from gapclose.answers import parse_all, parse_lenient, parse_strict
from gapclose.items import Item, Option

SIX, NINE = tuple("ABCDEF"), tuple("ABCDEFGHI")
WORDS, LETTERS = ("odd", "even", "not odd", "unseen"), ("A", "B", "C")
SCAN, LUNGS, YES_NO, SEEN = ("normal", "tumour"), ("clear", "crackles"), ("yes", "no"), ("visible", "not visible")
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
    # what denies its option
    (SCAN, "There is no tumour.", None, None),
    (SCAN, "It is not normal.", None, None),
    (SCAN, "This isn't normal", None, None),
    (SCAN, "This isn\u2019t normal", None, None),
    (SCAN, "I cannot see any tumour", None, None),
    (SCAN, "A brain without a tumour.", None, None),
    (SCAN, "It has never been normal", None, None),
    (SCAN, "Neither of them shows a tumour", None, None),
    (SCAN, "None of these is a tumour", None, None),
    (SCAN, "A tumour. There is no second tumour.", None, None),
    (SCAN, "It is not normal, but a tumour", None, None),
    (LUNGS, "no crackles", None, None),
    (("present", "absent"), "not present", None, None),
    (SIX, "It is certainly not F.", None, None),
    (SIX, "The answer is not (F).", None, None),
    (SEEN, "It is never not visible", None, None),
    # what only contains a negation
    (SCAN, "I see a tumour.", None, 1),
    (SCAN, "No, it is a tumour.", None, 1),
    (SCAN, "I do not hesitate: a tumour", None, 1),
    (SCAN, "Not what I hoped, but normal", None, 0),
    (SCAN, "I had no doubts\nTumour", None, 1),
    (SCAN, "Normal, with no lesion", None, 0),
    (SCAN, "Another notable tumour", None, 1),
    (WORDS, "No, it is odd", None, 0),
    (SEEN, "not visible", 1, 1),
    (SEEN, "It is not visible.", None, 1),
    (SEEN, "not visible, really not visible", None, 1),
    (SEEN, "It is visible.", None, 0),
    (("no crackles", "crackles"), "I hear no crackles.", None, 0),
    (SIX, "I am not sure, but F.", None, 5),
    (SIX, "F, not sure why", None, 5),
    # a bare yes or no
    (YES_NO, "I have no idea.", None, None),
    (YES_NO, "There is no dog.", None, None),
    (YES_NO, "She says yes to him", None, None),
    (YES_NO, "I would not say no", None, None),
    (YES_NO, " No.", None, 1),
    (YES_NO, "No, it is odd", None, 1),
    (YES_NO, "No no no", None, 1),
    (YES_NO, "**Yes**, it is", None, 0),
    (YES_NO, "I would say no", None, 1),
    (YES_NO, "The answer is yes because I hear it", None, 0),
    # a letter that is an answer, and one that is not
    (SIX, "A dog is barking in E major", None, None),
    (SIX, "Mostly E-flat", None, None),
    (SIX, "The answer is (F).", None, 5),
    (SIX, "Answer: F", None, 5),
    (SIX, "the answer is F which is wrong", None, 5),
    (SIX, "**F**", None, 5),
    (SIX, "F) A man speaks.", None, 5),
    (SIX, "B The man speaks.", None, 1),
]


@pytest.mark.parametrize(("texts", "answer", "strict", "lenient"), TABLE)
def test_which_option_an_answer_is(texts, answer, strict, lenient):
    """Strict takes the option letter for letter; lenient one whole-word mention, the longest first, if it affirms it."""
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
