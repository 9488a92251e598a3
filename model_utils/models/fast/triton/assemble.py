"""Compile texts of Triton kernels: ``python assemble.py <architecture>`` reads them as JSON from its input.

This file knows nothing of the project and does not import torch, so that many processes of it start quickly. What they
compile lies in Triton's cache (``$TRITON_CACHE_DIR``), from where ``compiled`` takes it in the process that asked.
"""

import hashlib
import json
import linecache
import sys
from typing import Any

ALIGNED = 16  # bytes that every pointer is a multiple of


def function(name: str, text: str) -> Any:
    """The kernel of a module's text, which is kept in memory; Triton asks Python for the text of a function."""
    file = f"<{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": "mace_pretrain_kernels"}
    exec(compile(text, file, "exec"), module)
    return module[name]


def compiled(name: str, text: str, types: dict[str, str], warps: int, architecture: int) -> Any:
    """A kernel as Triton compiles it for an architecture, which need not be here.

    Args:
        name: of the function.
        text: of a module that has it.
        types: Triton's types of its arguments in order.
        warps: of 32 threads.
        architecture: 80, 90, …
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = [k for k, kind in enumerate(types.values()) if kind.startswith("*")]
    aligned = {(k,): [["tt.divisibility", ALIGNED]] for k in pointers}
    source = ASTSource(fn=function(name, text), signature=types, constexprs={}, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})


def main() -> None:
    """Compile what stands in the input, a list of arguments of ``compiled``, for one architecture."""
    for arguments in json.load(sys.stdin):
        compiled(**arguments, architecture=int(sys.argv[1]))


if __name__ == "__main__":
    main()
