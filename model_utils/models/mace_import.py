"""The only import of mace and e3nn, guarded: both need torch's safe loading switched off to
import, and leave it so.
"""

from typing import Any

import torch

from model_utils.models import packages_by_name
from model_utils.models.guarded_import import VARIABLE, choose_executor
from model_utils.models.guarded_import import (
    unsafe_loading_during_import as _unsafe_loading_during_import,
)
from model_utils.models.imported_when_used import WhenAsked, taken_without_import

_SYMPY = ("sympy", "sympy.printing", "sympy.printing.pycode")

with _unsafe_loading_during_import():
    import opt_einsum_fx  # noqa: F401  before the block below, which is for e3nn alone

    with taken_without_import(*_SYMPY):
        import e3nn
        from e3nn import o3
    import mace

    packages_by_name.enter("mace.tools")
    packages_by_name.enter("e3nn.io")
    with packages_by_name.absent("torch._dynamo"):
        import mace.tools.compile
    # used by who lets torch's compiler follow mace's networks
    if mace.tools.compile.dynamo is None:
        mace.tools.compile.dynamo = WhenAsked("torch._dynamo")
    import mace.modules
    from mace.modules.wrapper_ops import (
        CUET_AVAILABLE,
        OEQ_AVAILABLE,
        CuEquivarianceConfig,
        OEQConfig,
    )

# as for a CPU, until a network is built elsewhere: ``choose_executor``
torch._C._jit_set_profiling_executor(False)

VERSIONS = {"mace-torch": mace.__version__, "e3nn": e3nn.__version__}


def acceleration_config(kind: str) -> Any:
    """mace's settings of an accelerated module, as its own converters choose them, but for one.

    cuequivariance's fused convolution is off: mace-torch switched it off for training too (its pull
    request 1702), where batches of varying shapes made it slower by far.
    """
    if kind == "oeq":
        return OEQConfig(enabled=True, optimize_all=True, conv_fusion="atomic")
    return CuEquivarianceConfig(
        enabled=True, layout="ir_mul", group="O3_e3nn", optimize_all=True, conv_fusion=False
    )


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
    "VARIABLE",
    "VERSIONS",
    "acceleration_config",
    "choose_executor",
    "lammps_classes",
    "mace",
    "o3",
]
