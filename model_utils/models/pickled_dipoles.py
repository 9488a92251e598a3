"""The fields of model.json in a pickled module of mace that gives dipoles."""

from typing import Any

from model_utils.models.pickled_values import (
    RADIAL,
    activation_name,
    correlation_of,
    irreps_text,
    nested_numbers,
    plain_float,
    radial_mlp_of,
    scalar_of,
    whole_number,
)
from model_utils.models.sandbox import (
    SandboxedObject,
    as_mapping,
    attribute,
    child,
    children,
    class_name,
    tensor_of,
)

CLASSES = ("AtomicDipolesMACE", "EnergyDipolesMACE")


def fields_of(root: SandboxedObject, numbers: list[int]) -> dict[str, Any]:
    """The fields of model.json that a module of dipoles tells.

    Args:
        root: the module.
        numbers: atomic numbers of its elements.
    """
    interactions = children(root, "interactions")
    products = children(root, "products")
    readout = children(root, "readouts")[-1]
    radial = child(root, "radial_embedding")
    fields: dict[str, Any] = {
        "model_class": class_name(root).rpartition(".")[2],
        "r_max": scalar_of(tensor_of(root, "r_max")),
        "atomic_numbers": numbers,
        "avg_num_neighbors": plain_float(attribute(interactions[0], "avg_num_neighbors")),
        "num_bessel": int(attribute(radial, "out_dim")),
        "num_polynomial_cutoff": whole_number(
            scalar_of(tensor_of(child(radial, "cutoff_fn"), "p"))
        ),
        "max_ell": int(attribute(child(root, "spherical_harmonics"), "_lmax")),
        "interaction_cls_first": type(interactions[0]).__name__,
        "interaction_cls": type(interactions[-1]).__name__,
        "num_interactions": len(interactions),
        "hidden_irreps": irreps_text(attribute(child(products[0], "linear"), "irreps_out")),
        "correlation": correlation_of(products[0]),
        "radial_type": RADIAL[type(child(radial, "bessel_fn")).__name__],
        "radial_MLP": radial_mlp_of(interactions[0]),
    }
    if "atomic_energies_fn" in as_mapping(attribute(root, "_modules")):
        energies = nested_numbers(tensor_of(child(root, "atomic_energies_fn"), "atomic_energies"))
        fields["atomic_energies"] = energies if isinstance(energies[0], list) else [energies]
    if type(readout).__name__ == "NonLinearDipoleReadoutBlock":  # a single layer has a linear one
        fields["MLP_irreps"] = irreps_text(attribute(readout, "hidden_irreps"))
        fields["gate"] = _gate_of_vectors(child(readout, "equivariant_nonlin"))
    return fields


def _gate_of_vectors(block: SandboxedObject) -> str:
    """The name of the activation of a gated readout: of mace-torch's block, or of
    e3nn's as before 0.3.16.
    """
    function = attribute(block, "_act_gate") or attribute(block, "_act_scalar")
    for name in ("act_gates", "act_scalars"):
        if function is None and name in as_mapping(attribute(block, "_modules")):
            acts = children(child(block, name), "acts")
            function = attribute(acts[0], "f") if acts else None
    return activation_name(function)
