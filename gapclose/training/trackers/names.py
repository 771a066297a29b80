"""Names of a run, its group and its artifact, as every tracker takes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST, NOT_IN_PROJECTS = 128, "/\\#?%:"
"""largest length of a name, and characters that a project name must not contain; Weights & Biases sets both"""


def run_name(directory: Path) -> str:
    """Return the name of the run directory, cut to the allowed length."""
    return _printable(directory)[:LONGEST]


def artifact_name(directory: Path, kind: str = "adapter") -> str:
    """Return ``NAME-KIND``, with the directory's name as a valid artifact name.

    Every character except ASCII letters and digits, ``-``, ``_`` and ``.`` becomes ``-``. A changed
    or shortened name ends in six digits of the SHA-256 of the original, so that two directories
    have two artifacts.
    """
    name, most = _printable(directory), LONGEST - len(f"-{kind}")
    fit = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    if fit != name or len(fit) > most:
        fit = f"{fit[: most - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return f"{fit}-{kind}"


def _printable(directory: Path) -> str:
    """Return the directory's name with ``-`` for unprintable characters; ``run`` for a root
    directory."""
    name = directory.resolve().name or "run"
    return "".join(c if c.isprintable() else "-" for c in name.encode("utf-8", "replace").decode())


def group_name(settings: Mapping[str, Any]) -> str:
    """Return the group of a run's seeds: the names of its data and model, and six digits of a hash.

    The hash is of both paths, the objective and the control of training, so runs that differ in one
    of these have another group. The seed and all other settings play no part.
    """
    paths = [str(settings[group]["path"]) for group in ("data", "model")]
    told = json.dumps([*paths, settings["objective"], settings["targets"]["control"]])
    names = "-".join(_printable(Path(path))[:50] for path in paths)
    return f"{names}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"
