"""Functions that a configuration names as ``package.module:function``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

FUNCTION = re.compile(r"[\w.]+:\w+")


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
