"""Where it gets lost: layer profile, logit lens and interchange, against plain forwards of the tiny model and planted answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gapclose.data.items import Option
from gapclose.evaluation.controls.interchange import interchange, twins
from gapclose.evaluation.controls.logit_lens import final_norm, first_tokens, layer_profile, lens_scores, make_lens
from gapclose.evaluation.controls.scoring import ControlScorer
from gapclose.metrics.bootstrap import Interval
from gapclose.metrics.labels import Labels
from gapclose.models.config import ModelConfig
from gapclose.models.hooks import patched_at
from gapclose.models.loading import load_model
from gapclose.observe.batching import plan_batches
from gapclose.observe.config import ObserveConfig
from gapclose.observe.extract import forward_batches, observe
from gapclose.observe.request import ObservationRequest
from gapclose.probes.linear import FrozenProbe, fit_linear

CONFIG, LAYERS = ObserveConfig(batch_size=8, shard_batches=2, share_prefix=False), (0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_model(ModelConfig(path=str(tiny_checkpoint), dtype="float32"))


@pytest.fixture(scope="module")
def items(digits):
    """Six clips with their twins, in both modalities."""
    return replace(digits, items=digits.select(split="test", purpose="gap").items[:24])


def seen_of(model, items, **wanted):
    batches = plan_batches(items.items, CONFIG.batch_size)
    return forward_batches(model, batches, model.media(items), CONFIG, ObservationRequest(layers=LAYERS, **wanted)).take(
        [i.id for i in items]
    )


@pytest.fixture(scope="module")
def seen(model, items):
    return seen_of(model, items)


# -- logit lens -----------------------------------------------------------------------------------------------------------------------


def test_the_lens_after_the_last_layer_says_what_the_model_says(model, items, seen):
    """Norm once, then the head, whatever the batch; earlier layers say something else, and lists of options are padded with -inf."""
    longer = Option(text="seven", concept="standard")
    several = replace(items, items=tuple(replace(i, options=[*i.options, longer]) if n % 3 else i for n, i in enumerate(items)))
    expected = seen_of(model, several).scores
    tokens = first_tokens(model, several.items)
    last = lens_scores(model, seen.residuals[5], tokens, 7)
    np.testing.assert_allclose(last, expected.numpy(), atol=2e-5)
    assert np.isneginf(last).sum() == 8
    there = np.isfinite(last)
    assert np.abs(lens_scores(model, seen.residuals[3], tokens, 7)[there] - last[there]).max() > 0.01
    assert final_norm(model.model) is model.model.get_decoder().norm


def test_a_lens_that_would_say_something_else_is_refused(model, items, seen):
    """Residuals that are not what the head sees in the end, options that begin alike, norms among which the final one is not known."""
    scores = seen.scores.numpy()
    lens = make_lens(model, items.items, seen.residuals[5], scores, 8)
    np.testing.assert_allclose(lens(seen.residuals[5]), scores, atol=2e-5)
    with pytest.raises(ValueError, match=r"norm and head after the last layer are [0-9.e+]+ nats off the model's own scores"):
        make_lens(model, items.items, seen.residuals[4] * 3, scores, 8)
    alike = replace(items.items[0], options=[Option(text=t, concept="standard") for t in ("an odd number", "an even one")])
    with pytest.raises(ValueError, match="share a first token"):
        first_tokens(model, [alike])

    class Nameless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.a, self.b = torch.nn.ModuleList(), torch.nn.LayerNorm(2), torch.nn.LayerNorm(2)

    with pytest.raises(ValueError, match=r"Nameless has the norms \['a', 'b'\]"):
        final_norm(Nameless())


def test_long_options_are_seen_through_the_lens_by_their_first_token(model, items):
    """Their sum over tokens is not the lens's to give, so they are left out of the check."""
    long = [Option(text=t, concept=c) for t, c in (("odd", "standard"), ("unseen detail here", "false_vision"))]
    changed = replace(items, items=tuple(replace(i, options=long, gold=0) for i in items.items[:4]))
    seen = seen_of(model, changed)
    lens = make_lens(model, changed.items, seen.residuals[5], seen.scores.numpy(), 8)
    found = lens(seen.residuals[5])
    np.testing.assert_allclose(found[:, 0], seen.scores[:, 0], atol=2e-5)
    assert (found[:, 1] > seen.scores[:, 1].numpy()).all()


# -- layer profile --------------------------------------------------------------------------------------------------------------------


def test_every_layer_is_read_by_a_probe_of_its_own(digits):
    """The signal is planted from layer 2 on; one layer is asked for at a time; the lens row repeats what its scores say."""
    fit, test = (digits.select(split=s, purpose="gap") for s in ("fit", "test"))
    known, labels = Labels.of(fit), Labels.of(test)
    asked = []

    def residual(part: str, layer: int) -> torch.Tensor:
        asked.append((part, layer))
        concept = torch.tensor((known if part == "fit" else labels).concept)
        noise = torch.randn(len(concept), 6, generator=torch.Generator().manual_seed(layer + 10 * (part == "fit")))
        return noise + (4 * torch.nn.functional.one_hot(concept, 6) if layer >= 2 else 0)

    z = residual("fit", 3).double().numpy()
    mean, scale, weight, bias = fit_linear(z, known.concept, "logistic", 0.1)
    facts = {"layers": [3], "family": "logistic", "strength": 0.1, "concepts": fit.concepts, "temperature": 1.0}
    probe = FrozenProbe(mean=mean, scale=scale, weight=weight, bias=bias, **facts)
    judge = ControlScorer(labels, probe.predict_proba(residual("test", 3)), 100, 0)
    asked.clear()
    option = np.where(labels.option_concept == 0, 1.0, 0.0)
    rows = layer_profile([0, 1, 2, 3], residual, known.concept, probe, judge, lambda z: option)
    assert [r.layer for r in rows] == [0, 1, 2, 3] and sorted(asked) == [(p, k) for p in ("fit", "test") for k in range(4)]
    for row in rows:
        found = row.reading.balanced.value
        assert found > 0.85 if row.layer >= 2 else found < 0.65
        assert row.lens is not None and row.lens.balanced.value == 0.5 and row.lens.auroc.value == 0.5
    assert rows[3].reading.auroc.value == pytest.approx(float(judge.reading["all"].auroc[0]))
    bare = layer_profile([3], residual, known.concept, probe, judge, None)
    assert bare == [replace(rows[3], lens=None)]


# -- interchange ----------------------------------------------------------------------------------------------------------------------


def test_patching_an_item_with_its_own_residual_changes_nothing(model, items, seen):
    """At any layer; and the hook is gone afterwards, even after an error."""
    for layer in (1, 3, 5):
        own = {i: seen.residuals[layer][n] for n, i in enumerate(seen.ids)}
        found = seen_of(model, items, patch={layer: own})
        torch.testing.assert_close(found.scores, seen.scores, atol=2e-5, rtol=1e-5)
    hooks = [len(block._forward_hooks) for block in model.layers]
    with pytest.raises(RuntimeError, match="within"), patched_at(model.model, torch.tensor([0]), {2: torch.zeros(1, 48)}):
        assert [len(block._forward_hooks) for block in model.layers] != hooks
        raise RuntimeError("within")
    assert [len(block._forward_hooks) for block in model.layers] == hooks
    torch.testing.assert_close(seen_of(model, items).scores, seen.scores, atol=0, rtol=0)


def test_patching_after_the_last_layer_makes_the_answer_the_donors(model, items, seen):
    """Exactly, whatever the recipient; further down the recipient's own context has its say above the patch."""
    donor_of = twins(items.items)
    place = {i: n for n, i in enumerate(seen.ids)}
    donors = [place[donor_of[i]] for i in seen.ids]
    for layer, same in ((5, True), (1, False)):
        patch = {i: seen.residuals[layer][place[d]] for i, d in donor_of.items()}
        found = seen_of(model, items, patch={layer: patch})
        torch.testing.assert_close(found.residuals[layer], seen.residuals[layer][donors], atol=1e-6, rtol=0)
        assert torch.equal(found.residuals[layer - 1], seen.residuals[layer - 1])  # nothing below is touched
        off = (found.scores - seen.scores[donors]).abs().max()
        assert (off < 2e-5) == same, off


def test_patching_several_layers_makes_all_their_residuals_the_donors(model, items, seen):
    """Options of one token then follow the highest layer alone; the cache of the layers between shows in longer ones."""
    long = [Option(text=t, concept="standard") for t in ("odd", "unseen detail here")]
    changed = replace(items, items=tuple(replace(i, options=long, gold=0) for i in items.items[:2]))
    plain = seen_of(model, changed)
    a, b = plain.ids
    patch = {layer: {a: plain.residuals[layer][1], b: plain.residuals[layer][0]} for layer in (2, 4)}
    both, highest = (seen_of(model, changed, patch=of) for of in (patch, {4: patch[4]}))
    for layer in (2, 4):
        torch.testing.assert_close(both.residuals[layer], plain.residuals[layer][[1, 0]], atol=1e-6, rtol=0)
    assert (highest.residuals[2] == plain.residuals[2]).all()
    torch.testing.assert_close(both.scores[:, 0], highest.scores[:, 0], atol=2e-5, rtol=1e-5)
    assert (both.scores[:, 1] - highest.scores[:, 1]).abs().min() > 1e-5


def test_options_of_several_tokens_go_on_from_the_patched_position(model, items, seen):
    """After the last layer the first token is the donor's, and those after it are scored in the recipient's own context."""
    long = [Option(text=t, concept="standard") for t in ("odd", "unseen detail here")]
    changed = replace(items, items=tuple(replace(i, options=long, gold=0) for i in items.items[:2]))
    plain = seen_of(model, changed)
    a, b = plain.ids
    found = seen_of(model, changed, patch={5: {a: plain.residuals[5][1], b: plain.residuals[5][0]}})
    torch.testing.assert_close(found.scores[:, 0], plain.scores[[1, 0], 0], atol=2e-5, rtol=1e-5)
    first = lens_scores(model, plain.residuals[5], first_tokens(model, changed.items), 8)
    rest = plain.scores[:, 1].double().numpy() - first[:, 1]
    np.testing.assert_allclose(found.scores[:, 1], first[[1, 0], 1] + rest, atol=5e-5)


def test_a_patched_observation_is_stored_and_taken_for_no_other(model, items, seen, tmp_path):
    """Layer and content of the patch are part of what an observation is known by."""
    few = replace(items, items=items.items[:4])
    patch = {i: seen.residuals[2][n] for n, i in enumerate(seen.ids)}
    observe(model, few, tmp_path / "o", CONFIG, ObservationRequest(patch={2: patch}))
    with pytest.raises(ValueError, match=r"patch: \[2, '[0-9a-f]{16}'\] there, None now"):
        observe(model, few, tmp_path / "o", CONFIG, ObservationRequest())
    other = {i: state + 1 for i, state in patch.items()}
    with pytest.raises(ValueError, match=r"patch: \[2, '[0-9a-f]{16}'\] there, \[2, '[0-9a-f]{16}'\] now"):
        observe(model, few, tmp_path / "o", CONFIG, ObservationRequest(patch={2: other}))
    with pytest.raises(ValueError, match=r"layer 6 cannot be patched: this decoder has layers 1\.\.5"):
        seen_of(model, few, patch={6: patch})


def test_twins_name_each_other_share_a_clip_and_differ_in_what_is_right(digits):
    """Anything else is no pair."""
    items = digits.select(split="test", purpose="gap").items[:4]
    found = twins(items)
    assert len(found) == 4 and all(found[found[i]] == i for i in found)
    a, b = (next(i for i in items if i.id == name) for name in next(iter(found.items())))
    assert twins([a]) == {} and twins([a, replace(b, clip="other")]) == {} and twins([a, replace(b, gold=a.gold)]) == {}
    assert twins([a, replace(b, tags={})]) == {}


def planted_pairs(clips: int) -> tuple[Labels, np.ndarray]:
    concept = np.tile([0, 1, 0, 2], clips)
    labels = Labels(
        clip=np.repeat(np.arange(clips), 4), modality=np.tile(["vision", "vision", "audio", "audio"], clips), concept=concept, gold=concept,
        option_concept=np.tile([0, 1, 2], (4 * clips, 1)), concepts=("standard", "false_vision", "false_audio"),
        alarm=("false_vision", "false_audio"),
    )  # fmt: skip
    return labels, np.arange(4 * clips) ^ 1


def test_answers_that_follow_the_donor_are_counted_against_no_patch():
    """A model that always says standard follows half of the donors without any patch; what moves below the threshold shows in nats."""
    labels, donor = planted_pairs(12)
    always = np.tile([2.0, 0.0, 0.0], (48, 1))
    honest = 5.0 * np.eye(3)[labels.concept]
    found = interchange(labels, donor, always, honest[donor], [3], 100, 0)
    assert (found.layer, found.n_pairs) == (3, 24) and found.follows == Interval(1.0, 1.0, 1.0)
    assert found.stays_without_patch.value == 0.5 and set(found.by_modality) == {"audio", "vision"}
    assert found.to_alarm is not None and found.to_standard is not None
    assert (found.to_alarm.stays_without_patch.value, found.to_standard.stays_without_patch.value) == (0.0, 1.0)
    assert "100.0% of the answers" in found.sentence and "without it 50.0% do" in found.sentence
    nudged = always.copy()
    nudged[labels.concept[donor] == 1, 1] += 1  # towards the donor's alarm, and too little to be said
    moved = interchange(labels, donor, always, nudged, [3], 100, 0)
    assert moved.shift is not None and moved.shift_whole is not None
    assert moved.follows.value == 0.5 and moved.shift.value > 0.1 and moved.shift_whole.value == 0
    stacked = interchange(labels, donor, always, nudged, [2, 3], 100, 0)
    assert (stacked.layer, stacked.layers) == (3, (2, 3)) and "the residuals after layers 2, 3 taken" in stacked.sentence
    plain = replace(labels, alarm=())
    assert "to_alarm" not in interchange(plain, donor, always, honest, [3], 100, 0).to_dict()
