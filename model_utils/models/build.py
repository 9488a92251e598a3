"""Build mace-torch's module from a description, and say which of its buffers
repeat the description.
"""

import importlib
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from dataloader.errors import InputError
from dataloader.quantities import ENERGY
from model_utils.models.default_dtype import default_dtype
from model_utils.models.dipole_description import DipoleDescription
from model_utils.models.mace_description import MaceDescription
from model_utils.models.mace_import import (
    CUET_AVAILABLE,
    OEQ_AVAILABLE,
    acceleration_config,
    mace,
    o3,
)
from model_utils.models.seams import Repeated

ENERGIES = "atomic_energies_fn.atomic_energies"
SCALE = "scale_shift.scale"
SHIFT = "scale_shift.shift"
R_MAX = "r_max"
PACKAGES = {"cueq": "cuequivariance-torch", "oeq": "openequivariance"}  # by what --step calls them
AVAILABLE = {"cueq": CUET_AVAILABLE, "oeq": OEQ_AVAILABLE}
REPEATED = {  # buffers of parts of the network, where it has them, by the field they repeat
    "num_interactions": "num_interactions",
    "radial_embedding.bessel_fn.r_max": "r_max",
    "radial_embedding.cutoff_fn.r_max": "r_max",
    "radial_embedding.cutoff_fn.p": "num_polynomial_cutoff",
    "pair_repulsion_fn.p": "num_polynomial_cutoff",
}


def build_module(
    description: MaceDescription, dtype: torch.dtype, where: str = "model.json"
) -> nn.Module:
    """mace-torch's own module on the CPU, with weights drawn from torch's generator.

    Raises:
        InputError: this installation cannot build the structure, or would build another one.
    """
    return _built(description, dtype, where)


def accelerated_module(
    description: MaceDescription, dtype: torch.dtype, kind: str, device: torch.device
) -> nn.Module:
    """mace-torch's module over cuequivariance (``cueq``) or openequivariance (``oeq``) on a
    device, weights at random.

    Raises:
        InputError: the library is not installed, or cannot build the structure.
    """
    if not AVAILABLE[kind]:
        package = PACKAGES[kind]
        raise InputError(
            f"--step {kind} needs the package {package}; install it, or use --step fast"
        )
    if kind == "oeq" and device.type != "cuda":
        raise InputError(
            f"--step oeq has kernels for CUDA only, and the device is {device}; use --step fast"
        )
    if kind == "cueq" and device.type == "cuda":
        _require_kernels_of_cueq()
    # weights that are never used may not move the run's random numbers
    state = torch.random.get_rng_state()
    try:
        config = {f"{kind}_config": acceleration_config(kind)}
        return _built(description, dtype, "model.json", **config).to(device)
    finally:
        torch.random.set_rng_state(state)


def _require_kernels_of_cueq() -> None:
    """Refuse what cuequivariance computes without its kernels: a step of it took six times as
    long on an H100 as one of mace-torch's own module (docs/proofs.md).
    """
    try:
        importlib.import_module("cuequivariance_ops_torch")
    except (ImportError, OSError) as error:  # the latter of libraries of CUDA that are not there
        raise InputError(
            "--step cueq on a GPU needs the package cuequivariance-ops-torch-cu12 or "
            f"-cu13, which cannot be imported: {error}; install it, or use --step fast"
        ) from None


def build_dipoles(description: DipoleDescription, dtype: torch.dtype, where: str) -> nn.Module:
    """mace-torch's own module of dipoles on the CPU, with weights drawn from torch's generator.

    Raises:
        InputError: this installation cannot build the structure.
    """
    return _of_class(description.model_class, _arguments_of_dipoles(description), dtype, where)


def _built(
    description: MaceDescription, dtype: torch.dtype, where: str, **acceleration: object
) -> nn.Module:
    """A module of mace's class; ``acceleration`` are further arguments of its constructor."""
    if description.use_reduced_cg and not CUET_AVAILABLE:
        raise InputError(
            f"{where} asks for use_reduced_cg, which needs the packages cuequivariance and "
            "cuequivariance_torch: without them mace-torch silently builds other weight shapes; "
            "install both or set it to false"
        )
    return _of_class(
        description.model_class, {**_arguments(description), **acceleration}, dtype, where
    )


def _of_class(
    name: str, arguments: Mapping[str, object], dtype: torch.dtype, where: str
) -> nn.Module:
    """A module of one of mace's classes by the constructor's arguments.

    Raises:
        InputError: mace cannot build it.
    """
    cls = getattr(mace.modules, name)
    with default_dtype(dtype), warnings.catch_warnings():
        # torch.jit and einsum notes of e3nn 0.4.4's code generation
        warnings.simplefilter("ignore")
        try:
            module: nn.Module = cls(**arguments)
            return module
        except Exception as error:  # mace and e3nn assert and raise a dozen types
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"mace-torch {mace.__version__} cannot build the network that {where} "
                f"describes: {detail}"
            ) from error


SAME_NAME = (  # fields that the constructor takes as they are
    "r_max",
    "num_bessel",
    "num_polynomial_cutoff",
    "max_ell",
    "num_interactions",
    "avg_num_neighbors",
    "atomic_numbers",
    "correlation",
    "pair_repulsion",
    "apply_cutoff",
    "use_reduced_cg",
    "use_so3",
    "use_agnostic_product",
    "use_last_readout_only",
    "use_embedding_readout",
    "distance_transform",
    "use_edge_irreps_first",
    "radial_MLP",
    "radial_type",
    "heads",
    "keep_last_layer_irreps",
)


def _arguments(d: MaceDescription) -> dict[str, object]:
    """The constructor's arguments; every one is given, so a changed default
    of mace changes nothing.
    """
    arguments: dict[str, object] = {name: getattr(d, name) for name in SAME_NAME}
    arguments.update(
        num_elements=len(d.atomic_numbers),
        interaction_cls=mace.modules.interaction_classes[d.interaction_cls],
        interaction_cls_first=mace.modules.interaction_classes[d.interaction_cls_first],
        readout_cls=mace.modules.readout_classes[d.readout_cls],
        hidden_irreps=o3.Irreps(d.hidden_irreps),
        MLP_irreps=o3.Irreps(d.MLP_irreps),
        edge_irreps=None if d.edge_irreps is None else o3.Irreps(d.edge_irreps),
        atomic_energies=np.array(d.atomic_energies),
        gate=mace.modules.gate_dict[d.gate],
        embedding_specs=_embedding_specs(d),
        cueq_config=None,
        oeq_config=None,
        lammps_mliap=False,
    )
    if d.model_class == "ScaleShiftMACE":
        arguments.update(
            atomic_inter_scale=d.atomic_inter_scale, atomic_inter_shift=d.atomic_inter_shift
        )
    return arguments


OF_DIPOLES = (  # fields that both constructors take as they are
    "r_max",
    "num_bessel",
    "num_polynomial_cutoff",
    "max_ell",
    "num_interactions",
    "avg_num_neighbors",
    "atomic_numbers",
    "correlation",
    "radial_MLP",
)


def _arguments_of_dipoles(d: DipoleDescription) -> dict[str, object]:
    """The constructor's arguments that have an effect."""
    has_energies = d.model_class == "EnergyDipolesMACE"
    arguments: dict[str, object] = {name: getattr(d, name) for name in OF_DIPOLES}
    arguments.update(
        num_elements=len(d.atomic_numbers),
        interaction_cls=mace.modules.interaction_classes[d.interaction_cls],
        interaction_cls_first=mace.modules.interaction_classes[d.interaction_cls_first],
        hidden_irreps=o3.Irreps(d.hidden_irreps),
        MLP_irreps=o3.Irreps(d.MLP_irreps),
        gate=mace.modules.gate_dict[d.gate],
        atomic_energies=np.array(d.atomic_energies) if has_energies else None,
    )
    return arguments if has_energies else {**arguments, "radial_type": d.radial_type}


def _embedding_specs(d: MaceDescription) -> dict[str, dict[str, object]] | None:
    """Inputs besides species by name, as mace's constructor takes them."""
    if d.embedding_specs is None:
        return None
    return {
        spec.name: spec.model_dump(exclude={"name"}, exclude_none=True)
        for spec in d.embedding_specs
    }


def repeated(description: MaceDescription | DipoleDescription, module: nn.Module) -> list[Repeated]:
    """The buffers of a module of mace that must say what its description says."""
    facts = [
        Repeated("r_max", R_MAX, description.r_max),
        Repeated("atomic_numbers", "atomic_numbers", description.atomic_numbers),
    ]
    if ENERGY.name in description.gives():
        facts.insert(0, Repeated("atomic_energies", ENERGIES, description.atomic_energies))
    if isinstance(description, MaceDescription) and description.model_class == "ScaleShiftMACE":
        facts.append(Repeated("atomic_inter_scale", SCALE, description.atomic_inter_scale))
        facts.append(Repeated("atomic_inter_shift", SHIFT, description.atomic_inter_shift))
    buffers = dict(module.named_buffers())
    for name, field in REPEATED.items():
        if name in buffers:
            facts.append(Repeated(field, name, getattr(description, field)))
    return facts
