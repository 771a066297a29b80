"""Extension points: functions that users register, or name as ``package.module:function``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from gapclose.core.imports import FUNCTION, named_function

F = TypeVar("F", bound=Callable[..., Any])


def _same(one: Any, other: Any) -> bool:
    """Whether two functions are the same, or one redefines the other (a repeated notebook cell)."""
    return one is other or all(getattr(one, key, one) == getattr(other, key, other) for key in ("__module__", "__qualname__"))


class Registry(Generic[F]):
    """Functions of one kind by name."""

    def __init__(self, key: str, kind: str, built_in: Iterable[str] = ()) -> None:
        """Create an empty registry.

        Args:
            key: configuration key that names the functions, for messages.
            kind: name for this kind of function, for messages.
            built_in: reserved names that the package handles itself.
        """
        self.key, self.kind, self.built_in = key, kind, tuple(built_in)
        self.added: dict[str, F] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All valid names, built-in ones first."""
        return (*self.built_in, *self.added)

    def register(self, name: str, function: F) -> F:
        """Add a function and return it.

        Raises:
            ValueError: when another function has the name, the name is not an identifier, or the
                function is not callable.
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
        """Whether a name is valid; of ``package.module:function`` only the form is checked."""
        return name in self.names or FUNCTION.fullmatch(name) is not None

    def get(self, name: str) -> F:
        """Return the function of a name that is not built in.

        Raises:
            ValueError: when there is none; suggests the nearest name.
        """
        if name in self.added:
            return self.added[name]
        if FUNCTION.fullmatch(name):
            return named_function(name, self.key)  # type: ignore[return-value]
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{self.key} {name!r} is no {self.kind}; choose one of {list(self.names)}, or package.module:function{hint}")
