"""Compile texts of Triton kernels: ``python assemble.py`` reads them as JSON from its input.

This file knows nothing of the project and does not import torch, so that many processes of it start
quickly. What they compile lies in Triton's cache (``$TRITON_CACHE_DIR``), from where ``compiled``
takes it in the process that asked.
"""

import hashlib
import json
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ALIGNED = 16  # bytes that every pointer is a multiple of
WARP = 32  # threads


def function(name: str, text: str) -> Any:
    """The kernel of a module's text, which is kept in memory; Triton asks Python for
    the text of a function.
    """
    file = f"<{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": "mace_pretrain_kernels"}
    # text that this package makes from a network's orders; of no file
    exec(compile(text, file, "exec"), module)
    return module[name]


def compiled(
    *,
    name: str,
    text: str,
    types: dict[str, str],
    lanes: int,
    warps: int,
    registers: int | None,
    architecture: int,
) -> Any:
    """A kernel as Triton compiles it for an architecture, which need not be here.

    Args:
        name: of the function.
        text: of a module that has it.
        types: Triton's types of its arguments in order.
        lanes: numbers beside each other in a program.
        warps: of 32 threads.
        registers: of a thread, at most.
        architecture: 80, 90, …
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = [k for k, kind in enumerate(types.values()) if kind.startswith("*")]
    aligned = {(k,): [["tt.divisibility", ALIGNED]] for k in pointers}
    source = ASTSource(fn=function(name, text), signature=types, constexprs={}, attrs=aligned)
    target = GPUTarget("cuda", architecture, WARP)
    with _without_coalescing(lanes == WARP * warps):
        return triton.compile(
            source, target=target, options={"num_warps": warps, "maxnreg": registers}
        )


@contextmanager
def _without_coalescing(applies: bool) -> Iterator[None]:
    """Leave out a pass of the compiler where a thread has one number, so that there is
    nothing to lay out otherwise.

    Its time grows with the square of a text: of the contraction's, minutes in place of seconds.
    """
    from triton.backends.nvidia import compiler

    passes = compiler.passes.ttgpuir
    before = getattr(passes, "add_coalesce", None)
    if before is None or not applies:
        yield
        return
    passes.add_coalesce = lambda _: None
    try:
        yield
    finally:
        passes.add_coalesce = before


def main() -> None:
    """Compile what stands in the input, a list of arguments of ``compiled``."""
    for arguments in json.load(sys.stdin):
        compiled(**arguments)


if __name__ == "__main__":
    main()
