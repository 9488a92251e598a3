"""Which inputs of an autograd Function the running backward pass wants the gradient of."""

from typing import Any

import torch

_will_execute = getattr(torch._C, "_will_engine_execute_node", None)
_current_pass = getattr(torch._C, "_current_graph_task_id", None)
# the pass that last refused to answer, which asks for leaves: to refuse again would cost it
# 15 us for each of some fifty questions of a step
_asks_for_leaves: int | None = None


def needed(ctx: Any, position: int) -> bool:
    """Whether the gradient by an input will be used.

    The pass behind the forces asks for gradients by positions alone; ``ctx.needs_input_grad`` is
    true for parameters all the same, and their gradients would be a third of the work. torch's
    engine knows; it refuses to answer for a leaf only where the leaf is asked for. A pass that
    asks for one is taken to ask for all.
    """
    global _asks_for_leaves
    if not ctx.needs_input_grad[position]:
        return False
    if _will_execute is None or _current_pass is None:
        return True
    node = ctx.next_functions[position][0]
    if node is None:
        return True
    this_pass = _current_pass()
    if this_pass == _asks_for_leaves and node.name() == "torch::autograd::AccumulateGrad":
        return True
    try:
        return bool(_will_execute(node))
    except RuntimeError:
        _asks_for_leaves = this_pass
        return True
