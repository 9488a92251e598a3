"""Unpickle a foreign weights file and write it as plain data: ``unpickling.py FILE PLAIN``;
started by --trust_pickle.

Classes that mace, e3nn and torch do not have are taken for the nearest of theirs, and
attributes of other classes are left out; what comes of it must give the energies and forces
of the module as it was.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # run as a file, in a process of its own
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from model_utils import model_loader
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.checkpoint import MODULE_NAMESPACES
from model_utils.models.mace_import import mace
from model_utils.tasks import conversion


def main(path: Path, plain: Path) -> int:
    """Write the plain file; returns the exit code, with one line on stderr where it is not 0."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        if isinstance(content, mace.modules.MACE):
            _write_module(content, plain)
        elif isinstance(content, dict):
            tensors = content.get("model", content)
            if not isinstance(tensors, dict):
                raise InputError(f"its model is a {type(tensors).__name__}, no weights by name")
            kept = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
            plain.write_bytes(
                checkpoint.serialise(
                    {"model": kept, "optimizer": {}, "epoch": content.get("epoch", 0)}
                )
            )
        else:
            raise InputError(f"it holds a {type(content).__name__}, no MACE model")
    except Exception as error:  # of any type: the code is the file's
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        return int(getattr(type(error), "exit_code", VerificationError.exit_code))
    return 0


def _write_module(module: nn.Module, plain: Path) -> None:
    """Write a module as one of classes that the inert reader knows, and compare the two.

    Raises:
        VerificationError: they give other energies or forces.
    """
    with _as_known_classes(module):
        plain.write_bytes(checkpoint.serialise(module))
    loaded = model_loader.load(plain)
    deviation = conversion.deviation(module, loaded)
    if not deviation <= conversion.TOLERANCE[loaded.file.dtype]:  # NaN too
        raise VerificationError(
            f"the module computes otherwise than mace's own of its weights (by {deviation:.2g})"
        )


@contextmanager
def _as_known_classes(root: nn.Module) -> Iterator[None]:
    """Every module as its nearest class that the inert reader knows, without
    attributes of other classes.
    """
    before = [(module, type(module), dict(module.__dict__)) for module in root.modules()]
    try:
        for module, cls, state in before:
            known = next(base for base in cls.__mro__ if _is_known(base))
            if known is not cls:
                module.__class__ = known
            for name, value in state.items():
                if not _is_known(type(value)):
                    del module.__dict__[name]
        yield
    finally:
        for module, cls, state in before:
            if type(module) is not cls:
                module.__class__ = cls
            module.__dict__.update(state)


def _is_known(cls: type) -> bool:
    return cls.__module__ == "builtins" or f"{cls.__module__}.".startswith(MODULE_NAMESPACES)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
