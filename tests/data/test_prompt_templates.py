"""One item set in several prompts, and its options in a drawn order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gapclose.core.errors import ErrorCollector
from gapclose.data.config import PromptsConfig
from gapclose.data.digits import prompts as of_digits
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.option_shuffle import shuffle_options
from gapclose.data.prompt_templates import apply_template
from gapclose.data.question_text import asking_text, either_prompt, letters_prompt, with_text

CONCEPTS = ("standard", "false_vision", "false_audio")
WORDS = [("red", "standard"), ("blue", "standard"), ("the picture is wrong", "false_vision"), ("the sound is wrong", "false_audio")]
STEM = "Which colour has the car?"


def item(ident="a", *, gold=0, modality="vision", split="test", text=STEM, **more) -> Item:
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": text}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    plain = {"id": ident, "clip": ident, "options": [Option(text=t, concept=c) for t, c in WORDS], "gold": gold}
    return Item(**plain | {"split": split, "modality": modality, "messages": messages} | more)


def lettered(ident="a", **more) -> Item:
    options = [Option(text=k, concept=c, meaning=t) for k, (t, c) in zip("ABCD", WORDS, strict=True)]
    return item(ident, text=letters_prompt(STEM, [t for t, _ in WORDS]), options=options, stem=STEM, **more)


def labelled(*items: Item) -> ItemSet:
    """With a rejection in both modalities, from which the binary prompts learn what *no* means."""
    more = (item("v", gold=2), item("w", gold=3, modality="audio"))
    return ItemSet(root=Path(), name="few", concepts=CONCEPTS, alarm=CONCEPTS[1:], items=(*items, *more))


def asked(name: str, *items: Item, **config) -> list[Item]:
    problems = ErrorCollector("the set")
    worded = apply_template(labelled(*items), name, PromptsConfig(**config), problems)
    problems.raise_if_any()
    return list(worded.items[: len(items)])


def complaint(name: str, *items: Item) -> str:
    with pytest.raises(ValueError) as caught:
        asked(name, *items)
    return str(caught.value)


def test_its_own_words_are_left_alone():
    items = labelled(item())
    assert apply_template(items, "own", PromptsConfig(), ErrorCollector("")) is items


@pytest.mark.parametrize("source", [item, lettered])
def test_options_as_letters_as_words_as_free_text(source):
    """From words to letters and back: text, options and gold follow; media, system message and concept stay."""
    one = source(gold=2)
    (paper,), (free,) = asked("paper", one), asked("free", one)
    assert asking_text(paper) == f"Question:\n{STEM}\n\nOptions:\nA. red\nB. blue\nC. the picture is wrong\nD. the sound is wrong\n\n" + (
        "Answer with the option's letter from the given choices directly."
    )
    assert [(o.text, o.concept, o.meaning) for o in paper.options] == [(k, c, t) for k, (t, c) in zip("ABCD", WORDS, strict=True)]
    assert asking_text(free) == f"Question:\n{STEM}\n\nAnswer in a few words."
    assert [(o.text, o.concept, o.meaning) for o in free.options] == [(t, c, None) for t, c in WORDS]
    for made in (paper, free):
        assert (made.gold, made.concept, made.media) == (2, "false_vision", [("image", "a.png")]) and made.messages[0] == one.messages[0]
        assert asked("paper", made) == [paper] and asked("free", made) == [free]


def test_binary_asks_whether_the_premise_holds():
    """*No* expresses the alarm of the item's modality; unlabelled items stay so; the explanation comes after the answer."""
    items = item(gold=1), item("b", gold=2), item("c", gold=3, modality="audio"), item("d", gold=None)
    made = asked("binary", *items, binary_question="Is it all true?")
    assert asking_text(made[0]) == f"Question:\n{STEM}\n\nIs it all true? Answer with yes or no."
    assert [[(o.text, o.concept) for o in i.options] for i in made] == [
        [("yes", "standard"), ("no", f"false_{m}")] for m in ("vision", "vision", "audio", "vision")
    ]
    assert [i.gold for i in made] == [0, 1, 1, None] and [i.concept for i in made] == [i.concept for i in items]
    explained = asked("binary_explained", *items, binary_answers=["True", "False"])
    assert explained[0].text.endswith("Answer with True or False, then explain why in one sentence.")


def test_items_that_must_not_change_keep_their_words():
    keep = item(purpose="retain")
    for name in ("paper", "binary", "free"):
        assert asked(name, keep) == [keep]


def test_what_cannot_be_asked_is_told_with_item_and_remedy():
    """One line for every reason, however many items have it."""
    bare = [replace(item(n), options=[Option(text=k, concept=c) for k, (_, c) in zip("ABCD", WORDS, strict=True)]) for n in "ab"]
    message = complaint("paper", *bare)
    assert message.count("  - ") == 1 and "prompt 'paper': item 'a' (and 1 more items): its options are letters" in message
    assert "`meaning`" in message and "`stem`" in message
    listed = item(text=f"{STEM} red, blue, the picture is wrong or the sound is wrong?")
    assert "its text names every option" in complaint("free", listed)
    assert asked("free", replace(listed, stem=STEM))[0].text.startswith(f"Be brief.\nQuestion:\n{STEM}\n")
    assert "say the same" in complaint("free", replace(lettered(), options=[Option(text=k, concept="standard", meaning="x") for k in "AB"]))
    assert "no labelled test item about 'touch'" in complaint("binary", item(modality="touch"))
    assert "test has {'vision': ['false_audio', 'false_vision']}" in complaint("binary", item(gold=3))
    assert "right concept is 'false_audio'" in complaint("binary", item(gold=3, split="fit"))
    assert "no user message has a text" in complaint("paper", item(messages=[{"role": "user", "content": []}]))
    ten = ItemSet(root=Path(), name="ten", concepts=("0", "1"), alarm=(), items=(item(),))
    problems = ErrorCollector("the set")
    apply_template(ten, "binary", PromptsConfig(), problems)
    assert "two answers need one concept that is no alarm" in problems.messages[0]


def shout(one: Item) -> Item:
    lost = one.id == "media"
    loud = asking_text(one).upper()
    return replace(one, messages=[{"role": "user", "content": loud}] if lost else with_text(one, loud))


def stumble(one: Item):
    return None if one.id == "a" else 1 / 0


def test_a_function_of_ones_own():
    """It may change text, options and gold; what else it does is told."""
    assert asked(f"{__name__}:shout", item())[0].text == "Be brief.\n" + STEM.upper()
    assert "changed its media" in complaint(f"{__name__}:shout", item("media"))
    message = complaint(f"{__name__}:stumble", item("a"), item("b"))
    assert "gave NoneType; it must give an Item" in message and "failed on it (ZeroDivisionError" in message
    assert "cannot be imported" in complaint("nowhere_at_all:f", item()) and "PYTHONPATH" in complaint("nowhere_at_all:f", item())
    assert "is dict, no function" in complaint("gapclose.data.digits.questions:KINDS", item())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"asked": "papers"}, "prompts.asked 'papers' is no prompt; choose one of ['own', 'paper'"),
        ({"measured": ["paper", "x y"]}, "prompts.measured 'x y' is no prompt"),
        ({"measured": ["paper", "paper"]}, "two prompts of one name"),
        ({"measured": ["a:f", "b:f"]}, "two prompts of one name"),
        ({"match": "mine"}, "prompts.match 'mine' is no function; write package.module:function"),
        ({"binary_answers": ["yes", "yes "]}, "give two texts that differ"),
        ({"max_new_tokens": 0}, "prompts.max_new_tokens is 0"),
    ],
)
def test_settings_that_do_not_fit(settings, says):
    with pytest.raises(ValueError, match=says.replace("[", r"\[").replace("(", r"\(")):
        PromptsConfig(**settings)


def test_how_long_answers_may_be():
    """Answers that say more than an option may be longer, but not those of the run's own prompt, which has a limit of its own."""
    config = PromptsConfig(asked="free", measured=["own", "binary_explained", "a:f"], max_new_tokens=20)
    assert [config.limit(name, 8) for name in config.names] == [8, 8, 20, 20] and config.limit("a:f", 64) == 64


# -- the embedded world -----------------------------------------------------------------------------------------------------------


def test_the_embedded_world_in_words_it_knows(digits):
    """Claims are checked instead of taken for granted, or asked about in the other way; every text is one of the world's own."""
    from gapclose.data.digits.questions import all_texts

    gap = digits.select(split="test", purpose=("gap", "transfer"))
    known = set(all_texts())
    for name in ("check", "rephrased"):
        problems = ErrorCollector("the set")
        made = apply_template(gap, f"{of_digits.__name__}:{name}", PromptsConfig(), problems)
        assert not problems.messages and len(made) == len(gap)
        assert all(i.text in known and i.text != j.text and i.concept == j.concept for i, j in zip(made, gap, strict=True))
        assert all(i.text.partition(". ")[0] == j.text.partition(". ")[0] for i, j in zip(made, gap, strict=True))
    problems = ErrorCollector("the set")
    apply_template(digits.holding([replace(gap.items[0], tags={})]), f"{of_digits.__name__}:check", PromptsConfig(), problems)
    assert "no premise question of the embedded world" in problems.messages[0]


# -- option order -----------------------------------------------------------------------------------------------------------------


def shuffled(*items: Item, seed=0, shown=True) -> list[Item]:
    problems = ErrorCollector("the set")
    made = shuffle_options(labelled(*items), seed, problems, shown=shown)
    problems.raise_if_any()
    return list(made.items[: len(items)])


def test_letters_keep_their_places_and_what_they_stand_for_moves():
    """The text lists the new order; gold follows; the order leads back."""
    items = [lettered(str(n), gold=n % 4) for n in range(24)]
    made = shuffled(*items)
    assert len({tuple(i.order) for i in made}) > 5
    for before, after in zip(items, made, strict=True):
        assert [o.text for o in after.options] == list("ABCD") and sorted(after.order) == [0, 1, 2, 3]
        assert [o.meaning for o in after.options] == [before.options[k].meaning for k in after.order]
        assert after.options[after.gold].meaning == before.options[before.gold].meaning and after.concept == before.concept
        assert after.text.endswith(letters_prompt(STEM, [o.meaning for o in after.options]))
        back = [after.options[after.order.index(k)] for k in range(4)]
        assert [(o.meaning, o.concept) for o in back] == [(o.meaning, o.concept) for o in before.options]


def test_the_order_is_the_item_s_own():
    """Of seed and id alone: not of the company it is in; twins share theirs."""
    items = [lettered(str(n)) for n in range(12)]
    together, alone = shuffled(*items), [shuffled(i)[0] for i in items]
    assert together == alone and shuffled(*items, seed=1) != together
    pairs = [
        lettered(a, clip=a[0], gold=g, tags={"twin": b}) for n in "abcdef" for a, b, g in ((n + "0", n + "1", 0), (n + "1", n + "0", 2))
    ]
    orders = [i.order for i in shuffled(*pairs)]
    assert orders[::2] == orders[1::2] and len({tuple(o) for o in orders}) > 2


def test_words_move_in_a_listing_that_can_be_written_again():
    """*Yes or no* becomes *no or yes*; where the text lists nothing, only the order of scoring changes, and the text does not."""
    options = [Option(text="yes", concept="standard"), Option(text="no", concept="false_vision")]
    made = shuffled(*(item(str(n), text=either_prompt(STEM, ["yes", "no"]), options=options, stem=STEM) for n in range(12)))
    assert {asking_text(i).removeprefix(f"{STEM} ") for i in made} == {"Answer with yes or no.", "Answer with no or yes."}
    for one in made:
        assert one.text.endswith(either_prompt(STEM, [o.text for o in one.options])) and one.options[one.gold].text == "yes"
    plain = shuffled(item())[0]
    assert plain.text == item().text and sorted(o.text for o in plain.options) == sorted(t for t, _ in WORDS)


def test_a_listing_that_cannot_be_written_again_is_refused():
    """Unless other prompts are asked, which are written from the options."""
    listed = item(text=f"{STEM} (a) red (b) blue (c) the picture is wrong (d) the sound is wrong", stem=STEM)
    free_form = replace(lettered(), messages=listed.messages)
    for one in (listed, free_form):
        with pytest.raises(ValueError, match=r"data.shuffle_options: item 'a': its text names every option in a form that cannot"):
            shuffled(one)
        problems = ErrorCollector("the set")
        paper = apply_template(labelled(*shuffled(one, shown=False)), "paper", PromptsConfig(), problems).items[0]
        assert paper.text.endswith(letters_prompt(STEM, [o.meaning for o in paper.options])) and not problems.messages
    with pytest.raises(ValueError, match="its options are letters, and nothing says"):
        shuffled(replace(item(), options=[Option(text=k, concept="standard") for k in "AB"]))


def test_the_order_stays_with_letters_and_words_and_leaves_two_answers():
    one = shuffled(lettered(gold=2))[0]
    assert asked("paper", one)[0].order == asked("free", one)[0].order == one.order
    assert [o.text for o in asked("free", one)[0].options] == [o.meaning for o in one.options]
    assert asked("binary", one)[0].order is None and json.dumps(one.tags)
