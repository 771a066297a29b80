"""Answers: which option a generated text is taken for."""

import random
import unicodedata

import pytest

from gapclose.data.answer_matching import AnswerMatcher, parse_all, parse_lenient, parse_strict, same_to_the_matcher, unmentioned
from gapclose.data.answer_words import words
from gapclose.data.items import Item, Option

SIX, NINE = tuple("ABCDEF"), tuple("ABCDEFGHI")
WORDS, LETTERS = ("odd", "even", "not odd", "unseen"), ("A", "B", "C")
SCAN, LUNGS, YES_NO, SEEN = ("normal", "tumour"), ("clear", "crackles"), ("yes", "no"), ("visible", "not visible")
DOG = ("dog", "cat")
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
    # idioms that affirm
    (DOG, "There is no doubt that it is a dog", None, 0),
    (DOG, "No doubt, a dog.", None, 0),
    (DOG, "I have no doubts it is a dog", None, 0),
    (DOG, "It's not only a dog", None, 0),
    (DOG, "It isn\u2019t just a dog", None, 0),
    (DOG, "There is no question that this is a dog.", None, 0),
    (DOG, "It is without a doubt a dog", None, 0),
    (DOG, "Without any doubt a dog", None, 0),
    (DOG, "I see nothing but a dog", None, 0),
    (DOG, "There is no doubt that it is not a dog", None, None),
    (DOG, "It is without doubt no dog", None, None),
    (DOG, "It is not only no dog", None, None),
    (DOG, "There is no question of a dog", None, None),
    (DOG, "It is not only a dog but a cat", None, None),
    (("doubt", "trust"), "There is no doubt", None, None),
    (("no doubt", "doubt"), "There is no doubt.", None, 0),
    (("no", "no doubt"), "No doubt", None, 1),
    (SEEN, "No doubt it is not visible", None, 1),
    (YES_NO, "No doubt about that.", None, None),
    (YES_NO, "No doubt, yes", None, 0),
    # a bare yes or no that begins the answer, and another in it
    (YES_NO, "Yes, there is no dog.", None, 0),
    (YES_NO, "Yes. There is no dog.", None, 0),
    (YES_NO, "**Yes**, there is no dog.", None, 0),
    (YES_NO, "Yes\nThere is no dog.", None, 0),
    (YES_NO, "Yes, no doubt.", None, 0),
    (YES_NO, "No, she says yes to him.", None, 1),
    (YES_NO, "No. There is no dog, and she says yes", None, 1),
    (YES_NO, "Yes there is no dog", None, None),
    (YES_NO, "There is no dog, yes or no?", None, None),
    (YES_NO, "Yes, no.", None, None),
    (YES_NO, "Yes. No.", None, None),
    (YES_NO, "No, the answer is yes", None, None),
    (YES_NO, "No: not what I hoped, but yes", None, None),
    (("no", "cat", "dog"), "No, it is a cat.", None, None),
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

NUMBERS = [  # options, answer, lenient; strict is None
    (("5", "-5"), "It is -5.", 1),
    (("5", "-5"), "It is \u22125.", 1),
    (("5", "-5"), "It is \u20135", 1),
    (("5", "-5"), "It is minus 5", 1),
    (("5", "-5"), "(-5)", 1),
    (("5", "-5"), "7 minus 5", 0),
    (("5", "-5"), "F-5", 0),
    (("5", "-5"), "- 5", 0),
    (("5", "-5"), "+5", 0),
    (("2", "3"), "2.5", None),
    (("2", "3"), "2,5", None),
    (("2", "3"), "2.0", 0),
    (("2", "3"), "It is 2.", 0),
    (("2", "3"), "2, not 3", None),
    (("2", "3"), "2-3", None),
    (("2", "3", "2-3"), "about 2\u20133 dogs", 2),
    (("2", "3"), "at 2:30", None),
    (("2", "3"), "on 2024-03-02", None),
    (("2", "3"), "version 2.3.1", None),
    (("5", "500"), "about 5,000", None),
    (("5", "5000"), "about 5,000", 1),
    (("5", "5000"), "about 5.000", 0),  # a single point is a decimal one
    (("5", "5,000,000"), "5.000.000", 1),
    (("5", "5000"), "5 000", 1),
    (("5", "5000"), "5\u202f000", 1),
    (("5", "5000"), "5'000", 1),
    (("5", "5000"), "5 thousand", 1),
    (("5", "5 million"), "5,000,000 of them", 1),
    (("1", "100000"), "1,00,000", 1),
    (("1500.25", "1"), "1.500,25", 0),
    (("1500.25", "1"), "1,500.25", 0),
    (("0.5", "500"), "0,500", 0),
    (("2.5", "25"), "2,5 m", 0),
    (("1000", "1"), "1e3", 0),
    (("1000", "1"), "1 \u00d7 10³", 0),
    (("0.001", "1"), "10\u207b³", 0),
    (("1/2", "1/3"), "It is ½.", 0),
    (("1/2", "1"), "0.5", 0),
    (("1 1/2", "1"), "1½", 0),
    (("1", "2"), "1/2", None),
    (("50 %", "5 %"), "50%", 0),
    (("50 %", "5 %"), "50", 0),
    (("50 %", "5 %"), "0.5 of them", 0),
    (("0.5", "0.05"), "50 %", 0),
    (("$5", "5 %"), "It is $5", 0),
    (("$5", "5 %"), "5 percent is 5%", 1),
    (("$5", "5 %"), "5", None),
    (("$5", "$6"), "5", 0),
    (("5", "6"), "$5", 0),
    (("-$5", "$5"), "-$5!", 0),
    (("5 km", "6 km"), "5km", 0),
    (("5 km", "5 m"), "5 m", 1),
    (("3", "4"), "3D", None),
    (("3", "4"), "the 3rd", None),
    (("< 5 mm", "5 mm"), "It is <5 mm", 0),
    (("< 5 mm", "5 mm"), "<answer>5 mm</answer>", 1),
    (("\u2264 5", "> 5"), "<= 5", 0),
    (("18", "18+"), "18+", 1),
    (("5", "6"), "\uff15", 0),
    (("5", "6"), "\u0665", 0),
    (("15", "16"), "\u0967\u096b", 0),
    (("2.5", "25"), "\u0662\u066b\u0665", 0),
    (("5", "6"), "It is not 5.", None),
    (("5", "6"), "1" * 5000, None),
    (("5", "6"), "5e999999999", None),
]
SYMBOLS = [
    (("C", "C++"), "It is C++.", 1),
    (("C", "C++"), "C", 0),
    (("C", "C++", "C#"), "c#", 2),
    (("C", "Java"), "I think C#", None),
    (("NET", ".NET"), "It is .net", 1),
    (("A", "A+"), "A+", 1),
    (("A", "A+", "B"), "The answer is A.", 0),
    (("+", "-"), "It is +", 0),
    (("\U0001f44d", "\U0001f44e"), "My answer: \U0001f44e.", 1),
    (("?", "!"), "What? No", None),
    (("\u2460", "\u2461"), "2", 1),
]
SCRIPTS = [
    (LETTERS, "答案是B", 1),
    (LETTERS, "选B\u3002", 1),
    (LETTERS, "我认为B是正确的", 1),
    (LETTERS, "不是B", None),
    (LETTERS, "不是A\uff0c而是B", None),  # two are named
    (LETTERS, "B超显示", None),  # a word that begins with a letter
    (LETTERS, "答えはBです", 1),
    (LETTERS, "정답은 B입니다", 1),
    (LETTERS, "\uff22", 1),
    (LETTERS, "\uff08\uff22\uff09", 1),
    (("猫", "犬"), "图中是猫", 0),
    (("猫", "犬"), "没有猫", None),
    (("猫", "犬"), "猫ではない", None),
    (("猫", "犬"), "不是猫", None),
    (("猫", "犬"), "毫无疑问是猫", 0),
    (("猫", "犬"), "不仅是猫", 0),
    (("猫", "犬"), "无疑不是猫", None),
    (("是", "不"), "是\uff0c不在这里", 0),
    (("可见", "不可见"), "它不可见", 1),
    (("正常", "异常"), "非常正常", 0),
    (("是", "否"), "答案是否", 1),
    (("是", "否"), "这是猫", None),
    (("보이지 않음", "고양이"), "고양이입니다", 1),
    (("\u0e41\u0e21\u0e27", "\u0e2a\u0e38\u0e19\u0e31\u0e02"), "\u0e40\u0e1b\u0e47\u0e19\u0e41\u0e21\u0e27\u0e04\u0e23\u0e31\u0e1a", 0),
    (("café", "thé"), "un cafe\u0301!", 0),
    (("cafe\u0301", "the\u0301"), "Un café.", 0),
    (("pêche", "péché"), "la pêche", 0),
    (("hay\u0131r", "evet"), "HAYIR!", 0),
    (("istanbul", "izmir"), "İSTANBUL", 0),
    (("groß", "klein"), "GROSS", 0),
    (("\u0939\u093e\u0901", "\u0928\u0939\u0940\u0902"), "\u0909\u0924\u094d\u0924\u0930: \u0928\u0939\u0940\u0902\u0964", 1),
    (("\u0939", "\u0928"), "\u0939\u093f\u0928\u094d\u0926\u0940", None),  # a vowel sign is no end of a word
    (("\u0646\u0639\u0645", "\u0644\u0627"), "\u0646\u064e\u0639\u064e\u0645\u060c \u0623\u0631\u0627\u0647", 0),
    (("yes", "no"), "\u200byes\u200b", 0),
]


@pytest.mark.parametrize(("texts", "answer", "lenient"), [*NUMBERS, *SYMBOLS, *SCRIPTS])
def test_numbers_symbols_and_other_scripts(texts, answer, lenient):
    """Numbers by value, symbols as part of their word, words of any script in any form."""
    assert parse_lenient(answer, item(texts)) == lenient


def test_two_forms_of_an_accent_are_one_strictly():
    """A tokenizer may normalise what the items do not."""
    assert parse_strict("café", item(("the", "cafe\u0301"))) == 1


def test_the_rewards_matcher_is_the_same():
    """``Matching``, which GRPO's reward and the measured prompts use, reads numbers so, too; and where the answer leads."""
    items = [item(("5", "-5")), item(("5", "-5")), item(("C", "C++"))]
    assert AnswerMatcher()(["It is -5.", "5", "c++"], items).tolist() == [1, 0, 1]
    assert AnswerMatcher(leading=True)(["-5, since 5 is wrong", "5; not -5", "C++ is no C"], items).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        (("5", "5.0", "6"), [("5", "5.0")]),
        (("1/2", "0.5"), [("1/2", "0.5")]),
        (("Yes", "yes."), [("Yes", "yes.")]),
        (("café", "cafe\u0301"), [("café", "cafe\u0301")]),
        (("$5", "5 %", "5", "-5", "5+", "<5"), []),
        (("C", "c", "C++", "C#"), []),
        (("+", "-", "?"), []),
        (WORDS, []),
    ],
)
def test_options_that_no_answer_tells_apart(texts, pairs):
    """Both are named; what the matcher tells apart is no pair, and each of those is itself."""
    assert same_to_the_matcher(texts) == pairs
    if not pairs:
        assert [parse_lenient(f" {t}\n", item(texts)) for t in texts] == list(range(len(texts)))


def test_any_text_is_read():
    """Whatever characters a model generates, an answer is an option or none, and an option in another form is still itself."""
    draw = random.Random(0)
    alphabet = "aAbI59 .,-+/%$½\u00b2\u0301不猫가\u0e41\u0665\u202f\u200d\n'^e\u00d7()<>"
    for _ in range(3000):
        answer = "".join(draw.choices(alphabet, k=draw.randrange(12)))
        assert parse_lenient(answer, item(("5", "-5", "A", "猫"))) in (None, 0, 1, 2, 3)
        if answer.strip():
            assert parse_lenient(unicodedata.normalize("NFD", answer), item((answer, "zzz"))) in (None, 0)


def test_a_range_of_any_length_is_one_number():
    """Longer than Python's stack is deep; no other number is named in it, and it is itself."""
    (said,) = words("1.5-" * 3000 + "1")
    assert said.number == "3/2\u2013" * 3000 + "1" and said.end == 12_001
    assert [parse_lenient(t, item(("1.5", "1.5-2.5-1.5"))) for t in ("1.5-" * 3000 + "1", "1,5\u20132.50\u20131.5")] == [None, 1]


def test_what_a_text_does_not_mention():
    """As whole words; a letter in its own case, an article too, since lists are written in many ways."""
    asked = "Is it odd, 5,000 or not visible? A one\nB. two"
    assert unmentioned(asked, ("odd", "Not visible", "5000", "A", "B", "one")) == []
    assert unmentioned(asked, ("even", "5", "C", "unseen", "a", "odd")) == ["even", "5", "C", "unseen", "a"]


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
