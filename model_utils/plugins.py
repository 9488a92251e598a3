"""A user's own Python files that add to the tables of this project: ``--plugin my_code.py``.

A plug-in adds an entry to a plain dictionary: a loss shape (``losses.SHAPES``), a schedule or an
optimizer (``optimizer``), a logger, a format of files, a labelled quantity, an architecture. It is
imported before options are read, so that its names are known there. The file is what the user
typed, on the command line or in the file of settings that the command line names. No path that is
stored in a checkpoint is ever followed; a checkpoint keeps the sha256, and who goes on with it
names the file again. Who only uses the model does so where the network or its quantities are the
plug-in's: a loss shape or a schedule is no part of a model.
"""

import hashlib
import importlib
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloader import input_files
from dataloader.errors import InputError

MOST_BYTES = 2**20  # of a plug-in
TABLES = {  # module: names of its tables that a plug-in may add to, and may not change otherwise
    "dataloader.quantities": ("QUANTITIES",),
    "dataloader.formats": ("FORMATS",),
    "losses": ("SHAPES", "LOSSES"),
    "optimizer": ("OPTIMIZERS", "SCHEDULES"),
    "model_utils.run.loggers": ("LOGGERS",),
    "model_utils.run.weight_schedule": ("COURSES",),
    "model_utils.models.architecture": ("ARCHITECTURES",),
}
# without whose entries a model's weights mean nothing
OF_MODELS = {"dataloader.quantities.QUANTITIES", "model_utils.models.architecture.ARCHITECTURES"}


@dataclass(frozen=True)
class Plugin:
    """A file that was imported."""

    path: Path
    sha256: str
    adds: tuple[str, ...]  # full names of the tables to which it added

    def as_plain(self) -> dict[str, Any]:
        """Name, digest and tables, as a checkpoint keeps them."""
        return {"name": self.path.name, "sha256": self.sha256, "adds": list(self.adds)}


_loaded: list[Plugin] = []  # in the order in which they were imported


def loaded() -> list[dict[str, Any]]:
    """The plug-ins of this process, for a checkpoint."""
    return [plugin.as_plain() for plugin in _loaded]


def load(paths: Sequence[Path]) -> None:
    """Import plug-ins, each once.

    Raises:
        InputError: one cannot be read, is no Python, fails while it is imported, or
            changes an entry of a table.
    """
    for path in paths:
        code = _read(path)
        digest = hashlib.sha256(code).hexdigest()
        if digest in {plugin.sha256 for plugin in _loaded}:
            continue
        before = _entries()
        _run(path, code)
        _refuse_changes(path, before)
        added = _entries().keys() - before.keys()
        _refuse_misfits(path, before, added)
        _loaded.append(Plugin(path, digest, tuple(sorted({table for table, _ in added}))))


def compare(stored: Sequence[Mapping[str, Any]], source: Path, *, of_models: bool) -> None:
    """Refuse a file that was made with plug-ins which this process has not imported.

    Args:
        stored: plug-ins that the file remembers.
        source: the file, for messages.
        of_models: only of those without which the weights mean nothing; of files that do not
            say what a plug-in added, and of plug-ins that added nothing to a table, all.

    Raises:
        InputError: one is missing, or is another file than it was.
    """
    here = {plugin.sha256 for plugin in _loaded}
    names = {plugin.path.name: plugin.sha256 for plugin in _loaded}
    for plugin in stored:
        name = plugin["name"]
        digest = plugin["sha256"]
        adds = plugin.get("adds")
        # one that adds nothing to a table changes something else
        says_what = isinstance(adds, list) and len(adds) > 0
        is_needed = not (of_models and says_what) or not OF_MODELS.isdisjoint(adds or ())
        if digest in here or not is_needed:
            continue
        if name in names:
            raise InputError(
                f"--plugin {name} is not the file that made {source}: its sha256 is "
                f"{names[name][:12]}…, there {digest[:12]}…; give the file as it was"
            )
        raise InputError(
            f"{source} was made with --plugin {name} (sha256 {digest[:12]}…); name that file "
            "again with --plugin (in Python: model_utils.plugins.load([Path(…)]) before it)"
        )


def _read(path: Path) -> bytes:
    """The bytes of a plug-in, which is a regular file of a few pages."""
    try:
        with input_files.opened(path) as file:
            code = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read --plugin {path}: {error.strerror or error}; expected a Python file"
        ) from None
    if len(code) > MOST_BYTES:
        raise InputError(
            f"--plugin {path} has more than {MOST_BYTES} bytes; expected a Python "
            "file of a few pages"
        )
    return code


def _run(path: Path, code: bytes) -> None:
    """Execute the bytes that were read: what is hashed is what runs."""
    module = types.ModuleType(f"plugin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickles of its classes look there
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        raise InputError(f"--plugin {path} line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise InputError(
            f"--plugin {path}{_line_of(error, path)}: {type(error).__name__}: {error}"
        ) from error


def _line_of(error: Exception, path: Path) -> str:
    """`` line 3`` where the error passed through a line of the plug-in."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f" line {lines[-1]}" if lines else ""


def _entries() -> dict[tuple[str, str], Any]:
    """The entries of all tables, by the table's full name and their own."""
    entries = {}
    for full_name, table in _tables():
        for name, entry in table.items():
            entries[full_name, name] = entry
    return entries


def _tables() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table that a plug-in may add to, by its full name."""
    for module, names in TABLES.items():
        owner = importlib.import_module(module)
        for name in names:
            yield f"{module}.{name}", getattr(owner, name)


def _refuse_changes(path: Path, before: Mapping[tuple[str, str], Any]) -> None:
    """Raise where an entry that was there is another one now: runs of the same settings
    would differ unnoticed.
    """
    after = _entries()
    for (table, name), entry in before.items():
        if after.get((table, name)) is not entry:
            raise InputError(
                f"--plugin {path} replaces {name!r} of {table}; add it under a name of its own"
            )


def _refuse_misfits(
    path: Path, before: Mapping[tuple[str, str], Any], added: Set[tuple[str, str]]
) -> None:
    """Raise where an entry is no object of the class that all others of its table are of."""
    after = _entries()
    for table, name in sorted(added):
        classes = {type(entry) for (other, _), entry in before.items() if other == table}
        entry = after[table, name]
        expected = next(iter(classes)) if len(classes) == 1 else object
        if not isinstance(entry, expected) and not (callable(entry) and _is_callable(expected)):
            raise InputError(
                f"--plugin {path}: {name!r} of {table} is of type {type(entry).__name__}, "
                f"expected {expected.__module__}.{expected.__qualname__}; see configs/plugins"
            )


def _is_callable(kind: type) -> bool:
    """Whether a table's entries are functions: another callable does as well."""
    return kind is types.FunctionType or kind is type
