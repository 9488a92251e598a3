"""torch's optimizers without torch's compiler.

``torch.optim`` imports the compiler, a thousand modules and up to a second of a start, for one
purpose: to tell it to keep out of the optimizers' own methods. No optimizer is compiled here, so
nobody needs to be told.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.optim import Optimizer

COMPILER = "torch._dynamo"


def methods_stay_as_they_are() -> None:
    """Have the methods of optimizers that torch hides from its compiler run unhidden, from
    their first call on; nothing is done where the compiler is imported already.
    """
    if COMPILER in sys.modules:
        return
    for method in vars(Optimizer).values():
        hidden = getattr(method, "__globals__", {}).get("__name__") == "torch._compile"
        if hidden and hasattr(method, "__wrapped__"):
            # where torch keeps what the compiler makes of the method
            vars(method.__wrapped__).setdefault("__dynamo_disable", method.__wrapped__)


@contextmanager
def compiler_left_out(optimizer: Optimizer) -> Iterator[None]:
    """Within it, a step of one of torch's own optimizers finds a stand-in where it imports the
    compiler.
    """
    if COMPILER in sys.modules or not type(optimizer).__module__.startswith("torch.optim"):
        yield
        return
    stand_in = _Compiler(COMPILER)
    try:
        vars(torch)["_dynamo"] = stand_in
        sys.modules[COMPILER] = stand_in
        yield
    finally:
        stand_in.leave()


class _Compiler(ModuleType):
    """What an optimizer's step asks of the compiler; for anything else it is imported."""

    @staticmethod
    def graph_break() -> None:
        """Nothing is being compiled."""

    def leave(self) -> None:
        """Make room for the compiler itself."""
        for names, name in ((sys.modules, COMPILER), (vars(torch), COMPILER.rpartition(".")[2])):
            if names.get(name) is self:
                del names[name]

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(importlib.import_module(COMPILER), name)
