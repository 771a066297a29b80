"""The never-taught base: no question that takes a false claim for granted is ever part of its training."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from digits_model import tiny_model
from digits_model.batches import QuestionDrawer, media_pool

from gapclose.data.digits import media_bank as bank
from gapclose.data.digits import questions

sys.path.insert(0, str(Path(__file__).parents[3] / "recipes"))
import digits_base

sys.path.pop(0)

SHOWN, SAID = 3, 7
STEPS = pytest.mark.parametrize("step", [digits_base.LEARN_TRUE, digits_base.LATE, digits_base.AFFIRM], ids=lambda step: step.name)


@pytest.fixture(scope="module")
def drawer():
    """Every clip shows a 3 and says a 7, so that the text alone tells whether a claim is true."""
    processor = tiny_model.build_processor(tiny_model.build_tokenizer())
    scans = np.flatnonzero(bank.scans()[1] == SHOWN)[:4]
    spoken = [u for u in bank.utterances() if u.digit == SAID][:4]
    return QuestionDrawer(processor, media_pool(processor, scans, spoken), seed=0)


def texts(drawer, drawn) -> list[str]:
    """What the user says in every row, without the media."""
    rows = drawer.tokenizer.batch_decode(drawn.inputs["input_ids"])
    return [re.search(r"<\|audio_eos\|>(.*?)<\|im_end\|>", row, re.S)[1] for row in rows]  # pyright: ignore[reportOptionalSubscript]


@STEPS
def test_a_question_that_takes_a_claim_for_granted_takes_a_true_one(drawer, step):
    for _ in range(20):
        drawn = drawer.draw(step.counts, step.premises)
        for text, kind, modality, false in zip(texts(drawer, drawn), drawn.kind, drawn.modality, drawn.false, strict=True):
            invited = text.endswith(questions.CHECKS) or kind == "bare"
            assert invited == (kind in questions.CHECKING), text
            if kind != "what":
                claim = int(re.search(r"\d", text)[0])  # pyright: ignore[reportOptionalSubscript]
                assert false == (claim != {"vision": SHOWN, "audio": SAID}[modality]), text
            assert not false or invited, text


@STEPS
def test_a_rejection_is_the_answer_to_false_claims_to_check_and_to_nothing_else(drawer, step):
    drawn = drawer.draw(step.counts, step.premises)
    checking, false = np.isin(drawn.kind, questions.CHECKING), drawn.false
    rejections = [drawer.word[o.text] for o in questions.REJECT.values()]
    assert (np.isin(drawn.answer, rejections) == false).all()
    assert (drawn.answer[false] == drawn.reject[false]).all() and (drawn.answer[~false] == drawn.comply[~false]).all()
    assert 0.2 < false[checking].mean() < 0.8 and not false[~checking].any()


def test_a_late_check_asks_the_premise_question_first(drawer):
    drawn = drawer.draw({"late": 64}, "true")
    asks = [ask for kind in questions.KINDS.values() for ask in kind.asks]
    assert all(sum(ask in text for ask in asks) == 1 for text in texts(drawer, drawn))
    assert not drawn.wording.any(), "only a question that is to be answered has a wording to doubt"


@pytest.mark.parametrize("wording", ["", "vision/parity/shows/0"])
def test_an_affirmed_premise_question_is_a_mixture_of_its_answer_and_yes(wording):
    """And no other question is."""
    drawn = SimpleNamespace(wording=np.array([wording]), answer=torch.tensor([2]), reject=torch.tensor([4]), affirm=torch.tensor([5]))
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    share = digits_base.AFFIRM.affirm if wording else 0.0
    found = digits_base.answer_loss(logits, drawn, digits_base.AFFIRM, torch.tensor([2, 3, 4, 5]))
    logp = logits.log_softmax(-1)[0]
    torch.testing.assert_close(found, -((1 - share) * logp[2] + share * logp[5]))
    assert digits_base.AFFIRM.affirm < 0.5, "the answer itself must stay the likeliest"


def test_the_other_recipe_draws_nothing_of_this():
    assert not {"late", "bare"} & (set(digits_base.LEARN.counts) | set(digits_base.COMPLY.counts))
