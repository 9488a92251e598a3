"""Which inputs of an autograd Function the running backward pass wants the gradient of."""

from typing import Any

import torch

_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


def needed(ctx: Any, position: int) -> bool:
    """Whether the gradient by an input will be used.

    The pass behind the forces asks for gradients by positions alone; ``ctx.needs_input_grad`` is
    true for parameters all the same, and their gradients would be a third of the work. torch's
    engine knows; it refuses to answer for a leaf only where the leaf is asked for.
    """
    if not ctx.needs_input_grad[position]:
        return False
    if _will_execute is None:
        return True
    node = ctx.next_functions[position][0]
    try:
        return node is None or bool(_will_execute(node))
    except RuntimeError:
        return True
