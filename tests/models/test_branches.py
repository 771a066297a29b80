"""Several answers behind one prompt: what every token sees, where it stands, and what is found out by a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from gapclose.data.items import Option
from gapclose.models import branches
from gapclose.models.branches import branch_mask, branch_positions
from gapclose.observe.answer_rows import AnswerRows, branch_numbers
from gapclose.observe.branch_trial import can_branch

ATTENTION = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
BRANCH = torch.tensor([[1, 1, 2], [1, 0, 0]])
"""a prompt of two tokens (padded on the left) with branches of two tokens and of one; a prompt of three with one branch of one"""


def test_a_branch_sees_its_prompt_and_itself():
    seen = branch_mask(ATTENTION, BRANCH, torch.float32)[:, 0] == 0
    columns = [[[n for n, allowed in enumerate(row) if allowed] for row in of] for of in seen.tolist()]
    assert columns[0] == [[0], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 5]]
    assert columns[1][:4] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert torch.isfinite(branch_mask(ATTENTION, BRANCH, torch.float16)).all()


def test_a_branch_begins_right_behind_its_prompt():
    """By counted tokens, as they are given, and on three axes that lie behind a picture's grid; given twice, they stay."""
    assert branch_positions(None, BRANCH, ATTENTION).tolist() == [[0, 0, 1, 2, 3, 2], [0, 1, 2, 3, 3, 4]]
    counted = torch.tensor([[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
    once = branch_positions(counted, BRANCH, ATTENTION)
    assert once.tolist() == [[0, 0, 1, 2, 3, 2], [0, 1, 2, 3, 3, 4]]
    assert torch.equal(branch_positions(once, BRANCH, ATTENTION), once)
    grid = torch.stack([counted, counted + 5, counted + 7])
    assert branch_positions(grid, BRANCH, ATTENTION).tolist() == [once.tolist(), (once + 5).tolist(), (once + 7).tolist()]


def test_answers_are_laid_out_in_one_row_or_in_several(digits):
    """The same tokens are predicted from the same contexts; the first of every answer from the end of the prompt."""
    item, answers = digits.items[0], [[5], [1, 2, 3], [1, 4], [6, 7], [1, 2]]
    one, several = AnswerRows(branching=True), AnswerRows(branching=False)
    for laid in (one, several):
        laid.add_answers(item, answers)
        laid.add_prompt(item)
    assert [branches for _, branches in one.rows] == [[[1, 2], [6]], []]
    assert [branches for _, branches in several.rows] == [[[1, 2]], [[6]], []]
    assert branch_numbers(one.rows).tolist() == [[1, 1, 2], [0, 0, 0]] and branch_numbers(several.rows) is None
    columns = [[(place, token) for place, token in laid.pairs] for laid in (one, several)]
    places = [{number: place for place, number in laid.positions.items()} for laid in (one, several)]
    assert [(places[0][p], t) for p, t in columns[0]] == [
        ((0, 0), 5), ((0, 0), 1), ((0, 1), 2), ((0, 2), 3), ((0, 0), 1), ((0, 1), 4), ((0, 0), 6), ((0, 3), 7), ((0, 0), 1), ((0, 1), 2),
    ]  # fmt: skip
    assert [t for _, t in columns[0]] == [t for _, t in columns[1]]
    assert {places[1][p] for p, t in columns[1] if t == 7} == {(1, 1)}


@torch.no_grad()
@pytest.mark.parametrize("family", [transformers.OPTForCausalLM, transformers.LlamaForCausalLM])
def test_padded_prompts_keep_their_positions(family):
    """Also where positions are learned, one for each place, and counted by the mask: a padded row has the results of a row alone."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"ffn_dim": 32, "word_embed_proj_dim": 16} if family is transformers.OPTForCausalLM else {"intermediate_size": 32}
    model = family(family.config_class(**sizes, **more)).eval()
    prompts, answers = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13]]
    ids = torch.tensor([[*[1] * (4 - len(p)), *p, *answers[0], *answers[1]] for p in prompts])
    attention = torch.tensor([[*[0] * (4 - len(p)), *[1] * (len(p) + 3)] for p in prompts])
    with branches.branched(model, torch.tensor([[1, 1, 2]] * 2)):
        together = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    for row, prompt in enumerate(prompts):
        for answer, columns in zip(answers, ([4, 5], [6]), strict=True):
            alone = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) :]
            torch.testing.assert_close(together[row, columns], alone, atol=1e-5, rtol=1e-5)


def long_options(digits):
    options = [Option(text=t, concept="standard") for t in ("odd", "an odd number", "unseen detail here")]
    return [replace(i, options=options, gold=0) for i in digits.items[:2]]


@pytest.mark.parametrize("fault", ["mask", "positions"])
def test_a_model_whose_branches_disturb_each_other_is_found_out(loaded, digits, monkeypatch, capsys, fault):
    items, media = long_options(digits), loaded.media(digits)
    assert can_branch(loaded, items, media)
    if fault == "mask":
        monkeypatch.setattr(branches, "branch_mask", lambda attention, branch, dtype: branch_mask(attention, branch.clamp_max(1), dtype))
    else:
        monkeypatch.setattr(
            branches, "branch_positions", lambda positions, branch, mask: torch.arange(mask.shape[1]).expand(len(branch), -1)
        )
    assert not can_branch(loaded, items, media)
    assert "in one row, a log-probability differs by" in capsys.readouterr().out


def test_attention_without_a_mask_for_every_token_is_refused(loaded, digits, monkeypatch, capsys):
    """Only where an item has several contexts; elsewhere nothing is asked of the model."""
    monkeypatch.setattr(branches, "MASKED_ATTENTION", ("eager",))
    assert can_branch(loaded, digits.items[:2], loaded.media(digits))
    assert not can_branch(loaded, long_options(digits), loaded.media(digits))
    assert "attention sdpa takes no mask" in capsys.readouterr().out
