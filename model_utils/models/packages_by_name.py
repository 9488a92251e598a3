"""Packages whose ``__init__`` imports far more than is used, entered without it.

``import mace.modules`` runs ``mace/tools/__init__.py``, which imports all of mace's training:
torchmetrics, matplotlib, pandas, scipy's signals and statistics. With torch's compiler that is 2.4
of the 2.9 seconds, in every command and every process of a loader. A package that is entered by
name has the same contents; each is imported when it is asked for.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


def enter(package: str) -> None:
    """Put a package among the imported ones without running its ``__init__``, if that
    does nothing but import.

    Nothing is done where the package is imported already, or where its ``__init__`` does more: then
    the first import of it is an ordinary one. Its parent must be imported.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return
    places = _places(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    if places is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__all__"] = list(places)
    module.__dict__["_places"] = places
    module.__class__ = _Package
    sys.modules[package] = module
    parent, _, own_name = package.rpartition(".")
    setattr(sys.modules[parent], own_name, module)


class _Package(ModuleType):
    """A package whose contents are imported when they are asked for."""

    _places: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name in self._places:
            submodule, own_name = self._places[name]
            value = getattr(importlib.import_module(f"{self.__name__}.{submodule}"), own_name)
        elif importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            value = importlib.import_module(f"{self.__name__}.{name}")
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """An imported submodule does not hide what the package has under the same name,
        ``train`` of ``.train``.
        """
        submodule, own_name = self._places.get(name, (None, name))
        is_submodule = isinstance(value, ModuleType) and value.__name__ == f"{self.__name__}.{name}"
        super().__setattr__(
            name, getattr(value, own_name) if is_submodule and submodule == name else value
        )


def _places(init: ast.Module) -> dict[str, tuple[str, str]] | None:
    """Submodule and name there of every name that an ``__init__`` imports; None where
    it does anything else.
    """
    places = {}
    for statement in init.body:
        if (
            isinstance(statement, ast.ImportFrom)
            and statement.level == 1
            and statement.module is not None
        ):
            for alias in statement.names:
                places[alias.asname or alias.name] = (statement.module, alias.name)
        elif not _says_nothing_new(statement):
            return None
    return None if "*" in places else places


def _says_nothing_new(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring or the list of names."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)] == ["__all__"]


@contextmanager
def absent(module: str) -> Iterator[None]:
    """Within it, an import of a module that is not imported yet fails as if
    it were not installed.
    """
    if module in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules[module] = None  # by which the import system knows what is not there
    try:
        yield
    finally:
        del modules[module]
