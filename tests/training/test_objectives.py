"""Which terms act under which objective, what is refused, and what TRL's trainers cannot take."""

import pytest

from gapclose.pipeline.cli import main
from gapclose.pipeline.config import Config, parse_config
from gapclose.training.config import TargetsConfig, TrainConfig
from gapclose.training.objectives import BY_TRL, IN_WORDS, OBJECTIVES, active_terms, needs_reading, settings_in_words, training_in_words

pytestmark = pytest.mark.usefixtures("no_outline")


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ("consistency", (1.0, 0.0, 0.5)),
        ("gold", (0.0, 2.0, 0.5)),
        ("consistency+gold", (1.0, 2.0, 0.5)),
        ("dpo", (0.0, 0.0, 0.0)),
        ("grpo", (0.0, 0.0, 0.0)),
    ],
)
def test_an_objective_leaves_out_the_terms_that_it_does_not_have(objective, weights):
    """And changes nothing else."""
    given = TrainConfig(gold=2.0, retain=0.5, epochs=7)
    train = active_terms(objective, given)
    assert (train.consistency, train.gold, train.retain) == weights and train.epochs == 7 and given.gold == 2.0
    assert active_terms(objective, train) == train  # a stored configuration reads back as it is


def test_every_objective_has_its_words():
    """Model cards say which it was and what weighed."""
    assert list(IN_WORDS) == list(OBJECTIVES) and set(BY_TRL) < set(OBJECTIVES)
    assert settings_in_words("gold", active_terms("gold", TrainConfig())) == "objective gold, weights gold 1, retain 1"
    assert settings_in_words("dpo", active_terms("dpo", TrainConfig())) == "objective dpo"
    assert [o for o in OBJECTIVES if not needs_reading(o)] == ["gold"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--objective", "sft"), ["objective is 'sft'; choose one of ['consistency', 'gold', 'consistency+gold', 'dpo', 'grpo']"]),
        (("--train.consistency", "0"), ["objective consistency: the weight train.consistency is 0", "make it positive"]),
        (("--objective", "consistency+gold", "--train.gold", "0"), ["objective consistency+gold: the weight train.gold is 0"]),
        (("--objective", "gold", "--train.gold=-1"), ["train.gold", "must not be negative"]),
        (("--objective", "grpo", "--train.global_batch_size", "20"), ["20 counts answers", "grpo.num_generations 8"]),
    ],
)
def test_an_objective_that_cannot_work_is_refused(options, says):
    """When the configuration is read, with what to change."""
    with pytest.raises(ValueError) as caught:
        parse_config(options)
    assert all(part in str(caught.value) for part in says), caught.value


def test_retain_items_are_asked_for_only_where_they_are_used():
    """TRL's objectives have a KL of their own."""
    assert Config().train.retain == 1.0 == Config(objective="gold").train.retain and Config(objective="dpo").train.retain == 0.0


@pytest.mark.parametrize("command", ["validate", "close"])
@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_train_items_with_sound_are_refused_by_name_before_anything_loads(
    command, objective, tiny_config, digits, digits_directory, tmp_path, monkeypatch, capsys
):
    """How many, the first of them, its line and the remedy; other splits may have sound."""
    monkeypatch.setattr("gapclose.pipeline.context.load_model", lambda config: pytest.fail("a model was loaded"))
    assert main([command, "--config", str(tiny_config), "--run_dir", str(tmp_path), "--objective", objective]) == 2
    first = next(i.id for i in digits if i.split == "train" and i.purpose == "gap")
    lines = (digits_directory / "items.jsonl").read_text().splitlines()
    number = next(n for n, line in enumerate(lines, start=1) if first in line.split(",")[0])
    message = capsys.readouterr().err
    for part in (
        f"objective {objective}: TRL's {BY_TRL[objective]} takes no audio; 96 train items have it (first: {first!r}, ",
        f"items.jsonl:{number}); leave their audio out, or choose objective consistency",
    ):
        assert part in message, message
    assert message.count("  - ") == 1


def test_measuring_asks_no_objective(tiny_config, tmp_path, monkeypatch):
    """What will be trained on does not matter to a measurement."""

    class Reached(Exception):
        pass

    def load_model(config):
        raise Reached

    monkeypatch.setattr("gapclose.pipeline.context.load_model", load_model)
    with pytest.raises(Reached):
        main(["measure", "--config", str(tiny_config), "--run_dir", str(tmp_path), "--objective", "dpo"])


def test_a_card_names_what_the_exported_epoch_was_trained_on():
    """No reading where it is of a first round on labels; later rounds up to its own; and twins."""
    labels, plain = TargetsConfig(first="labels", rounds=4, twins=True), TargetsConfig(rounds=4)
    assert training_in_words("consistency+gold", labels, range(1, 2)) == "cross-entropy on the labelled items alone in round 1"
    later = training_in_words("consistency+gold", labels, range(1, 4))
    assert (
        "; in rounds 2 and 3 the answer distribution was also aligned" in later and "no verdict" in later and "Readings of twins" in later
    )
    assert training_in_words("consistency", plain, range(1, 2)) == IN_WORDS["consistency"]
    assert "; in round 2 with the reading of a probe fitted again" in training_in_words("consistency", plain, range(1, 3))
    assert "twins" not in training_in_words("gold", TargetsConfig(twins=True), range(1, 2))
