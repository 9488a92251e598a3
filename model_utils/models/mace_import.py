"""The only import of mace and e3nn: both need torch's safe loading switched off to import, and leave it so.

``import mace`` sets TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD for the whole process, which makes every bare ``torch.load``
run code from the file; e3nn 0.4.4 does not import without it. The variable is put back to what it was.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

VARIABLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def _unsafe_loading_during_import() -> Iterator[None]:
    """Set the variable without which e3nn does not import, and put it back whatever the import did to it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # e3nn 0.4.4 and torch.jit deprecations; cuequivariance's absence on stdout
            yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


with _unsafe_loading_during_import():
    import e3nn
    import mace
    import mace.modules
    from e3nn import o3
    from mace.modules.wrapper_ops import CUET_AVAILABLE, OEQ_AVAILABLE, CuEquivarianceConfig, OEQConfig

# e3nn 0.4.4 runs its tensor products as TorchScript. For batches that all have shapes of their own, torch's older
# executor takes a tenth (large steps) to a fifth (small ones) less time than the one that compiles for shapes it sees.
torch._C._jit_set_profiling_executor(False)

VERSIONS = {"mace-torch": mace.__version__, "e3nn": e3nn.__version__}


def acceleration_config(kind: str, device: str) -> Any:
    """mace's settings of an accelerated module, as its own converters choose them."""
    if kind == "oeq":
        return OEQConfig(enabled=True, optimize_all=True, conv_fusion="atomic")
    fused = device == "cuda"
    return CuEquivarianceConfig(enabled=True, layout="ir_mul", group="O3_e3nn", optimize_all=True, conv_fusion=fused)


def lammps_classes() -> tuple[Any, Any, Any]:
    """e3nn's compiler and mace's wrappers for LAMMPS; their import sets the variable again."""
    with _unsafe_loading_during_import():
        from e3nn.util import jit
        from mace.calculators import LAMMPS_MACE
        from mace.calculators.lammps_mliap_mace import LAMMPS_MLIAP_MACE
    return jit.compile, LAMMPS_MACE, LAMMPS_MLIAP_MACE


__all__ = ["CUET_AVAILABLE", "OEQ_AVAILABLE", "VERSIONS", "acceleration_config", "lammps_classes", "mace", "o3"]
