"""Verify that exports reproduce the measurement: load each in a fresh process, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gapclose.core.files import write_json
from gapclose.core.logging import get_logger

logger = get_logger(__name__)

DIFFERS = 3
"""exit status of the verifying process when an export differs from the measurement"""


def verify_in_fresh_process(directory: Path) -> dict[str, Any]:
    """Reload every export in a new interpreter and compare it with the stored test observations.

    Raises:
        ValueError: with the process's message, when an export differs from the measurement.
        RuntimeError: with its traceback, when the process failed in another way.
    """
    logger.info("verifying what was exported, in a fresh process")
    command = [sys.executable, "-W", "ignore", "-m", "gapclose.pipeline.verify_export", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=_single_process_environment())
    if result.returncode == DIFFERS:
        raise ValueError(f"{directory}: the export does not reproduce what was measured:\n{result.stderr.strip()}")
    if result.returncode:
        raise RuntimeError(
            f"{directory}: verifying the export failed (status {result.returncode}):\n{result.stderr.strip()}\nThe training is whole, and "
            f"nothing of it is lost; `gapclose export --config {directory / 'config.yaml'} --run_dir {directory}` writes and verifies again"
        )
    verified = json.loads(result.stdout.strip().splitlines()[-1])
    write_json(directory / "adapter" / "verified.json", verified)
    for name, facts in verified.items():
        answers = f"{facts['flipped']} other answers, each between options as near as that" if facts["flipped"] else "same answers"
        logger.info(f"verified {name}: {facts['items']} items, largest score difference {facts['largest_difference']:.2g} nats, {answers}")
    return verified


def _single_process_environment() -> dict[str, str]:
    """Return the environment without a launcher's variables, so that the child joins no group."""
    import os

    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")
    return {k: v for k, v in os.environ.items() if k not in launcher and not k.startswith(("TORCHELASTIC_", "ACCELERATE_", "FSDP_"))}
