"""torch's optimizers without torch's compiler.

``torch.optim`` imports the compiler, a thousand modules and up to a second of a start, for one
purpose: to tell it to keep out of the optimizers' own methods. No optimizer is compiled here, so
nobody needs to be told.
"""

import inspect
import sys

import torch
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

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


def step(optimizer: Optimizer) -> None:
    """One step of an optimizer; of one of torch's own as it stands in its class, without what
    torch wraps around it for the compiler and for hooks.

    Others are asked as anybody would, as are torch's own where the compiler is imported, a hook is
    registered, or somebody wrapped the step of this very optimizer.
    """
    if COMPILER in sys.modules or not _is_as_torch_made_it(optimizer):
        optimizer.step()
        return
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
        inspect.unwrap(type(optimizer).step)(optimizer)


def _is_as_torch_made_it(optimizer: Optimizer) -> bool:
    """Whether a step is that of a class of torch, with nothing before or behind it."""
    if not type(optimizer).__module__.startswith("torch.optim.") or "step" in vars(optimizer):
        return False
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    return not any(hooks)
