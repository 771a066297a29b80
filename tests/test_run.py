"""The stages of a run, as far as no other module's tests see them: what each control of training blanks."""

import json

import pytest

from gapclose.cli import main


class Reached(Exception):
    """The trainer would be made now."""


@pytest.mark.parametrize(
    ("control", "targets", "training"),
    [("none", [], []), ("blank_targets", ["audio", "image"], []), ("blank_media", ["audio", "image"], ["audio", "image"])],
)
def test_what_a_control_blanks(tiny_config, tmp_path, monkeypatch, control, targets, training):
    """Targets come from blanked media in both, training sees them in one; what must not change is observed as training sees it."""
    seen = {}

    def make_trainer(loaded, examples, media, *rest, **settings):
        seen["training"] = sorted(media.blank)
        raise Reached

    monkeypatch.setattr("gapclose.run.make_trainer", make_trainer)
    with pytest.raises(Reached):
        main(["close", "--config", str(tiny_config), "--run_dir", str(tmp_path), "--targets.control", control])
    stored = {s: json.loads((tmp_path / "observations" / s / "request.json").read_text())["blank"] for s in ("base-train", "base-retain")}
    assert stored == {"base-train": targets, "base-retain": training} and seen["training"] == training
