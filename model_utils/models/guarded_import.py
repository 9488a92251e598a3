"""Libraries over e3nn 0.4.4 imported without leaving torch's safe loading off, and how
their TorchScript is run.

``import mace`` sets TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD for the whole process, which makes every
bare ``torch.load`` run code from the file; e3nn 0.4.4 does not import without it. The variable is
put back to what it was.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator

import torch

VARIABLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def unsafe_loading_during_import() -> Iterator[None]:
    """Set the variable without which e3nn does not import, and put it back
    whatever the import did to it.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # e3nn 0.4.4 and torch.jit deprecations; cuequivariance's absence on stdout
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def choose_executor(device: torch.device) -> None:
    """How this process runs what e3nn 0.4.4 has as TorchScript: its tensor products.

    For batches that all have shapes of their own, torch's older executor takes a tenth (large
    steps) to a fifth (small ones) less time on a CPU than the one that compiles for shapes it
    sees. On a GPU that one stays, as in mace-torch's own training: the older one would hand
    the functions to a compiler for GPUs that is no longer maintained. Neither shall compile
    for a GPU within a step.
    """
    torch._C._jit_set_profiling_executor(device.type != "cpu")
    torch._C._jit_override_can_fuse_on_gpu(False)
