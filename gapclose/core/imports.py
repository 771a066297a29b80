"""Packages that an extra of gapclose installs, and functions named as ``package.module:function``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

FUNCTION = re.compile(r"[\w.]+:\w+")


class MissingPackage(ValueError):
    """A package that only one of gapclose's extras installs is not there; the message says what needs it and how to get it."""


def require(module: str, extra: str, user: str) -> ModuleType:
    """Import a package that is not among gapclose's required dependencies.

    Args:
        module: its name, as imported.
        extra: of gapclose, which installs it.
        user: what needs it, as the message names it.

    Raises:
        MissingPackage: when it, or a package that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacking = (error.name or module).partition(".")[0]
        why = "which is not installed" if lacking == module else f"which cannot be imported without {lacking}"
        raise MissingPackage(f'{user} needs {module}, {why}: pip install "gapclose[{extra}]"') from error


def named_function(name: str, key: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names.

    Raises:
        ValueError: when it cannot be imported or called; the message names ``key``.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{key} {name!r} cannot be imported ({error}); install its package, or start with PYTHONPATH=. beside it"
        ) from error
    if not callable(found):
        raise ValueError(f"{key} {name!r} is {type(found).__name__}, no function")
    return found
