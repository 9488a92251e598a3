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

from model_utils.models import packages_by_name

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

    packages_by_name.enter("mace.tools")
    packages_by_name.enter("e3nn.io")
    with packages_by_name.absent("torch._dynamo"):
        import mace.tools.compile
    if mace.tools.compile.dynamo is None:  # used by who lets torch's compiler follow mace's networks
        mace.tools.compile.dynamo = packages_by_name.WhenAsked("torch._dynamo")
    import mace.modules
    from e3nn import o3
    from mace.modules.wrapper_ops import CUET_AVAILABLE, OEQ_AVAILABLE, CuEquivarianceConfig, OEQConfig

torch._C._jit_set_profiling_executor(False)  # as for a CPU, until a network is built elsewhere: ``choose_executor``

VERSIONS = {"mace-torch": mace.__version__, "e3nn": e3nn.__version__}


def choose_executor(device: torch.device) -> None:
    """How this process runs what e3nn 0.4.4 has as TorchScript: its tensor products.

    For batches that all have shapes of their own, torch's older executor takes a tenth (large steps) to a fifth (small
    ones) less time on a CPU than the one that compiles for shapes it sees. On a GPU that one stays, as in mace-torch's
    own training: the older one would hand the functions to a compiler for GPUs that is no longer maintained. Neither
    shall compile for a GPU within a step.
    """
    torch._C._jit_set_profiling_executor(device.type != "cpu")
    torch._C._jit_override_can_fuse_on_gpu(False)


def acceleration_config(kind: str) -> Any:
    """mace's settings of an accelerated module, as its own converters choose them, but for one.

    cuequivariance's fused convolution is off: mace-torch switched it off for training too (its pull request 1702),
    where batches of varying shapes made it slower by far.
    """
    if kind == "oeq":
        return OEQConfig(enabled=True, optimize_all=True, conv_fusion="atomic")
    return CuEquivarianceConfig(enabled=True, layout="ir_mul", group="O3_e3nn", optimize_all=True, conv_fusion=False)


def lammps_classes() -> tuple[Any, Any, Any]:
    """e3nn's compiler and mace's wrappers for LAMMPS; their import sets the variable again."""
    with _unsafe_loading_during_import():
        from e3nn.util import jit
        from mace.calculators import LAMMPS_MACE
        from mace.calculators.lammps_mliap_mace import LAMMPS_MLIAP_MACE
    return jit.compile, LAMMPS_MACE, LAMMPS_MLIAP_MACE


__all__ = [
    "CUET_AVAILABLE",
    "OEQ_AVAILABLE",
    "VERSIONS",
    "acceleration_config",
    "choose_executor",
    "lammps_classes",
    "mace",
    "o3",
]
