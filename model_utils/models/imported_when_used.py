"""Modules that are imported at the first use of what was taken from them.

e3nn imports sympy, 480 modules, for functions that made its source once; nothing that trains or
computes calls them.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class WhenAsked:
    """A module in whose place this stands until an attribute of it is read."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


@contextmanager
def taken_without_import(*modules: str) -> Iterator[None]:
    """Within it, an import takes names of these modules without importing them.

    What was taken from one is called as if it were there: with the first call all that was taken
    is put where an import would have put it. A module itself is imported when an attribute of it
    is read. Where one of them is imported already nothing is done.

    Args:
        modules: all that the imports within name; a package before what is in it.
    """
    if any(module in sys.modules for module in modules):
        yield
        return
    before = set(sys.modules)
    sys.modules.update({module: _Pretended(module) for module in modules})
    try:
        yield
    finally:
        for module in modules:
            del sys.modules[module]
    taken: list[_Taken] = []
    for module in set(sys.modules) - before:
        names = vars(sys.modules[module])
        for name, value in list(names.items()):
            if isinstance(value, _Pretended):
                names[name] = WhenAsked(value.__name__)
            elif isinstance(value, _Taken):
                value.is_in(names, name, taken)


class _Pretended(ModuleType):
    """A package of which every name can be taken."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> "_Taken":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Taken(self.__name__, name)


class _Taken:
    """A name of a module that is not imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._holder: dict[str, Any] = {}
        self._own_name = name
        self._together: list[_Taken] = []

    def is_in(self, holder: dict[str, Any], own_name: str, together: list["_Taken"]) -> None:
        """Remember where it stands, and those that are put there with it."""
        self._holder, self._own_name, self._together = holder, own_name, together
        together.append(self)

    def __call__(self, *words: Any, **named: Any) -> Any:
        for taken in self._together:
            taken._holder[taken._own_name] = taken._value()
        return self._value()(*words, **named)

    def _value(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)
