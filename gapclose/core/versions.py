"""The versions that computed a run: torch, transformers and this package.

A run may be resumed under others if the user accepts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from gapclose.core.files import read_json
from gapclose.core.logging import get_logger
from gapclose.core.version import __version__

logger = get_logger(__name__)

REMEDY = (
    "Install those versions again, or give --observe.versions any to go on with what is there (environment.json keeps what each start ran "
    "on), or give the run another directory (--run_dir) to compute all of it anew"
)


def versions_now() -> dict[str, str]:
    """Return package -> version for the packages that determine the numbers of an observation."""
    return {"gapclose": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}


def differing(there: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Describe each package whose version differs.

    Without stored versions, every package counts as different.
    """
    old = there or {}
    return [f"{name} {old.get(name, 'not known')} there, {now[name]} now" for name in now if old.get(name) != now[name]]


def refuse_other_versions(directory: Path, accepted: str) -> None:
    """Check the versions of a run's observations of the base model, before a model is loaded.

    Args:
        directory: of the run. accepted: ``same`` or ``any`` (``observe.versions``).

    Raises:
        ValueError: when ``accepted`` is ``same`` and some observations have other versions; names
            all of them.
    """
    now, found = versions_now(), dict[str, list[str]]()
    for path in sorted((directory / "observations").glob("*/request.json")):
        request = read_json(path)
        # observations of adapters are repeated
        if not request.get("adapter") and (other := differing(request.get("versions"), now)):
            found.setdefault(", ".join(other), []).append(path.parent.name)
    if not found:
        return
    listed = "; ".join(f"{', '.join(stages)} ({versions})" for versions, stages in found.items())
    if accepted != "any":
        raise ValueError(f"{directory / 'observations'}: observed under other versions: {listed}. {REMEDY}")
    logger.warning(f"goes on with what was observed under other versions: {listed}")


def say_other_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn when probes, targets, checkpoints or records of this run come from other versions."""
    if before and (other := differing(before.get("versions"), now["versions"])):
        logger.warning(f"checkpoints, records and probes so far are of other versions ({', '.join(other)}); environment.json keeps both")
