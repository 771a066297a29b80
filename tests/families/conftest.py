"""Which tests of the matrix of families take minutes together: a family whose cost is high, and another like it has them in the default suite."""

import pytest

OFTEN = ("Qwen2.5-Omni", "Qwen3-Omni", "Gemma 4", "Qwen2.5-VL", "LLaVA-OneVision", "Qwen2-Audio", "Qwen", "Llama")
"""families of which every test is in the default suite; of the others, what reads, scores and adapts them is"""
COSTLY = (
    "test_random_weights_keep_nothing_that_was_learned",
    "test_half_precision_says_nearly_the_same",
    "test_training_lowers_the_loss_and_the_export_gives_the_same_scores",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them slow, before what is slow is left out."""
    for item in items:
        given = getattr(item, "callspec", None)
        if given is not None and getattr(item, "originalname", "") in COSTLY and given.params.get("case") not in OFTEN:
            item.add_marker(pytest.mark.slow)
