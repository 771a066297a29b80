"""Fixtures: questions about images alone, which is what TRL's trainers can take, and whole runs on them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gapclose.data.digits import generate as world
from gapclose.pipeline.cli import main


@pytest.fixture(scope="session")
def images_directory(tmp_path_factory) -> Path:
    """A small item set without sound: 48 train items."""
    directory = tmp_path_factory.mktemp("images")
    world.write(directory, seed=0, clips={"fit": 24, "train": 24, "val": 24, "test": 24}, sound=False)
    return directory


@pytest.fixture(scope="session")
def close_images(quick_config, images_directory) -> Callable[..., int]:
    """``(run_dir, *options)`` -> exit status of a two-epoch ``gapclose close`` on the tiny model and those items."""

    def close(directory: Path, *options: str) -> int:
        fixed = [
            "--config",
            str(quick_config),
            "--data.path",
            str(images_directory),
            "--run_dir",
            str(directory),
            "--export.verify",
            "false",
        ]
        return main(["close", *fixed, "--gap.replicates", "100", *options])

    return close
