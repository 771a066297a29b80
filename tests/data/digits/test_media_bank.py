"""The shipped media: enough speech, small files, and nothing shared between groups."""

from __future__ import annotations

import numpy as np
import pytest

from gapclose.data.digits import media_bank as bank

soundfile = pytest.importorskip("soundfile")


def test_bank_is_rich_and_small():
    spoken = bank.utterances()
    assert len(spoken) >= 400
    assert len({u.voice for u in spoken}) >= 12
    assert sum(f.stat().st_size for f in bank.HERE.glob("speech.*")) < 2_000_000
    for group in ("base", "train", "val", "test"):
        counts = np.bincount([u.digit for u in spoken if u.group == group], minlength=10)
        assert counts.min() == counts.max() > 0, f"{group}: {counts} utterances by digit"


def test_no_voice_is_in_two_groups():
    groups: dict[str, set[str]] = {}
    for utterance in bank.utterances():
        groups.setdefault(utterance.voice, set()).add(utterance.group)
    assert all(len(g) == 1 for g in groups.values()), groups


def test_every_utterance_is_audible_and_under_a_second():
    for utterance in bank.utterances():
        wave = bank.waveform(utterance)
        assert len(wave) == utterance.samples < bank.RATE
        assert 0.2 < np.abs(wave).max() <= 1.0, utterance


def test_scans_of_the_base_are_never_offered_to_item_sets():
    ours, others = bank.scan_partition()
    assert len(ours) == bank.BASE_SCANS and len(ours) + len(others) == 1797
    assert not set(ours) & set(others)
    image = bank.scan_image(int(others[0]))
    assert image.size == (bank.SIDE, bank.SIDE) and image.mode == "RGB"
