"""Extension points: functions that users add under a name, or name in the configuration as ``package.module:function``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from gapclose.core.imports import FUNCTION, named_function

F = TypeVar("F", bound=Callable[..., Any])


def _same(one: Any, other: Any) -> bool:
    """Whether two functions are one, or one was defined again, as a notebook's cell does that is run twice."""
    return one is other or all(getattr(one, key, one) == getattr(other, key, other) for key in ("__module__", "__qualname__"))


class Registry(Generic[F]):
    """Functions of one kind by name."""

    def __init__(self, key: str, kind: str, built_in: Iterable[str] = ()) -> None:
        """
        Args:
            key: of the configuration that names them, for messages.
            kind: what they are, for messages.
            built_in: names that the package itself understands, and that nobody may take.
        """
        self.key, self.kind, self.built_in = key, kind, tuple(built_in)
        self.added: dict[str, F] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names that may be given: built-in ones first."""
        return (*self.built_in, *self.added)

    def register(self, name: str, function: F) -> F:
        """Add a function; returns it.

        Raises:
            ValueError: when the name is taken by another function, is no plain name, or the function cannot be called.
        """
        if not name.isidentifier():
            raise ValueError(f"{self.kind} {name!r}: give it a name of letters, digits and underscores")
        if name in self.built_in or not _same(self.added.get(name, function), function):
            raise ValueError(f"{self.kind} {name!r} is there already; choose another name than {list(self.names)}")
        if not callable(function):
            raise ValueError(f"{self.kind} {name!r} is {type(function).__name__}, not a function")
        self.added[name] = function
        return function

    def known(self, name: str) -> bool:
        """Whether a name may be given; a ``package.module:function`` is only looked at for its form."""
        return name in self.names or FUNCTION.fullmatch(name) is not None

    def get(self, name: str) -> F:
        """The function of a name that is not built in.

        Raises:
            ValueError: when there is none, with the nearest name.
        """
        if name in self.added:
            return self.added[name]
        if FUNCTION.fullmatch(name):
            return named_function(name, self.key)  # type: ignore[return-value]
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{self.key} {name!r} is no {self.kind}; choose one of {list(self.names)}, or package.module:function{hint}")
