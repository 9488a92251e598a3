"""A module that mace pickled, read by the sandboxed unpickler: the description
of which it was built.

Nothing of the file is executed (``sandbox.SandboxedObject``).
Attribute names are those of mace-torch 0.3.0 to 0.3.16; what an older release did not
store has its behaviour.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, get_args

import torch
from torch import Tensor, nn

from dataloader.structure import symbols
from model_utils.errors import InputError
from model_utils.models import description as model_json
from model_utils.models import pickled_dipoles
from model_utils.models.mace_description import InteractionName, MaceDescription
from model_utils.models.pickled_values import (
    RADIAL,
    activation_name,
    correlation_of,
    irreps_text,
    nested_numbers,
    plain_float,
    radial_mlp_of,
    scalar_of,
    simplified,
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
from model_utils.models.schema import ModelDescription

# buffers of the ZBL repulsion up to 0.3.9 that no energy depends on, by the field they repeat
OBSOLETE = {
    "pair_repulsion_fn.r_max": "r_max",
    "pair_repulsion_fn.cutoff.r_max": "r_max",
    "pair_repulsion_fn.cutoff.p": "num_polynomial_cutoff",
}
# of e3nn's Gate up to 0.3.15: ones, since every output is computed
OLD_GATE = ".equivariant_nonlin.mul.output_mask"
WITHOUT_EFFECT = (  # fields that the module of a single layer does not tell
    "readout_cls",
    "gate",
    "MLP_irreps",
    "hidden_irreps",
    "interaction_cls",
    "keep_last_layer_irreps",
)
SWITCHES = (  # off where a release did not know them
    "use_reduced_cg",
    "use_so3",
    "use_agnostic_product",
    "use_last_readout_only",
    "use_edge_irreps_first",
)
TRANSFORM = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}


def is_mace_module(content: object) -> TypeGuard[SandboxedObject]:
    """Whether the content of a file is one of mace's models."""
    return isinstance(content, SandboxedObject) and class_name(content).startswith("mace.modules.")


def description_of(
    root: SandboxedObject,
    where: str,
    expected: ModelDescription | None = None,
    elements: Sequence[int] = (),
    *,
    reduced: bool = True,
) -> ModelDescription:
    """The description of which a pickled module was built; a field without effect
    on it takes its default.

    Such are the last readout's of a single layer, which is linear, and keep_last_layer_irreps where
    all are scalars. Numbers that lie in buffers have the buffers' precision; where ``expected``
    differs by that alone, it is returned.

    Args:
        root: the module.
        where: its file, for messages.
        expected: what it should be.
        elements: atomic numbers of a module that does not hold them, as mace wrote until 2022; else
            those of ``expected`` are taken.
        reduced: take a stored ``use_reduced_cg`` at its word; mace stores what was asked for, also
            where the package that does it was not there.

    Raises:
        InputError: a class or a formula that model.json does not describe, an attribute that is not
            as mace has it, or elements that are missing or contradict those in the file.
    """
    name = class_name(root)
    kind = name.rpartition(".")[2]
    if kind not in ("MACE", "ScaleShiftMACE", *pickled_dipoles.CLASSES):
        known = "MACE, ScaleShiftMACE, AtomicDipolesMACE and EnergyDipolesMACE"
        raise InputError(f"{where} holds a {name}; models of class {known} are supported")
    try:
        numbers = _atomic_numbers(
            root, where, elements, [] if expected is None else expected.atomic_numbers
        )
        _refuse_unknown_blocks(root, where)
        _refuse_old_soft_transform(root, where)
        _refuse_mixed_heads(root, where)
        if kind in pickled_dipoles.CLASSES:
            text = json.dumps(pickled_dipoles.fields_of(root, numbers))
        else:
            _refuse_layer_of_vectors(root, where)
            fields = _fields(root, numbers)
            text = json.dumps({**fields, "use_reduced_cg": fields["use_reduced_cg"] and reduced})
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise InputError(
            f"{where}: its {name} is not built as mace-torch builds it ({error!s:.80})"
        ) from None
    stored = model_json.parse(text, f"the model in {where}")
    if expected is not None and _same_in_buffers(stored, expected, root):
        return expected
    return stored


def _same_in_buffers(
    stored: ModelDescription, expected: ModelDescription, root: SandboxedObject
) -> bool:
    """Whether two descriptions agree in the precision of the buffers, and are equal in
    all that no buffer holds.
    """
    dtype = tensor_of(root, "r_max").dtype
    stored_fields = json.loads(stored.canonical_text())
    expected_fields = json.loads(expected.canonical_text())
    if stored_fields.get("num_interactions") == expected_fields.get("num_interactions") == 1:
        for name in WITHOUT_EFFECT:
            stored_fields.pop(name, None)
            expected_fields.pop(name, None)
    for name in ("r_max", "atomic_energies", "atomic_inter_scale", "atomic_inter_shift"):
        if not _equal_in(dtype, stored_fields.pop(name, None), expected_fields.pop(name, None)):
            return False
    return bool(stored_fields == expected_fields)


def _equal_in(dtype: torch.dtype, a: object, b: object) -> bool:
    """Whether numbers, or nested lists of them, are equal once rounded to a precision;
    None equals None alone.
    """
    if a is None or b is None:
        return a is b
    first = torch.tensor(a, dtype=torch.float64)
    second = torch.tensor(b, dtype=torch.float64)
    return first.shape == second.shape and torch.equal(first.to(dtype), second.to(dtype))


def _atomic_numbers(
    root: SandboxedObject, where: str, named: Sequence[int], described: Sequence[int]
) -> list[int]:
    """The module's own table; else the elements that were named, in mace's order, or those
    of a given description.
    """
    table = as_mapping(attribute(root, "_buffers")).get("atomic_numbers")
    if isinstance(table, Tensor):
        own = [int(number) for number in table.tolist()]
        if named and set(named) != set(own):
            raise InputError(
                f"--elements {symbols(named)}: {where} says itself that it is of {symbols(own)}"
            )
        return own
    n_elements = tensor_of(child(root, "atomic_energies_fn"), "atomic_energies").shape[-1]
    given = sorted(named) or list(described)
    if not given:
        raise InputError(
            f"{where} does not say which {n_elements} elements its weights are for, as modules of "
            "2022 do not; name them with `read_model.py export --elements …`, and give the "
            "model.json that it writes with --input_json"
        )
    if len(given) != n_elements:
        raise InputError(
            f"{where} has weights for {n_elements} elements, and {len(given)} are "
            f"given: {symbols(given)}"
        )
    return given


def _refuse_unknown_blocks(root: SandboxedObject, where: str) -> None:
    """Blocks that mace-torch has removed, or that are not its own."""
    for block in children(root, "interactions"):
        name = type(block).__name__
        if name not in get_args(InteractionName):
            raise InputError(
                f"{where} has a {name}, which model.json does not describe; mace-torch removed the "
                "blocks AgnosticNonlinear…, AgnosticResidualNonlinear… and "
                "ResidualElementDependent… in 0.3.13: use the model with the release that wrote it"
            )


def _refuse_old_soft_transform(root: SandboxedObject, where: str) -> None:
    """One class name, two formulas: the later one has a buffer more."""
    transform = as_mapping(attribute(child(root, "radial_embedding"), "_modules")).get(
        "distance_transform"
    )
    if isinstance(transform, SandboxedObject) and type(transform).__name__ == "SoftTransform":
        names = {
            **as_mapping(attribute(transform, "_buffers")),
            **as_mapping(attribute(transform, "_parameters")),
        }
        if "alpha" not in names:
            raise InputError(
                f"{where} has the Soft transform of mace-torch 0.3.5 to 0.3.9, another formula "
                "than the one that later releases have under this name: no energy of it can be "
                "had here; use it with mace-torch 0.3.9"
            )


def _refuse_layer_of_vectors(root: SandboxedObject, where: str) -> None:
    """A single layer whose product has weights for which a network of today has no place."""
    products = children(root, "products")
    if len(products) == 1 and "+" in simplified(
        attribute(child(products[0], "linear"), "irreps_out")
    ):
        raise InputError(
            f"{where} is one layer whose product has more than scalars, as mace-torch built it "
            "before 0.3.15; later releases leave out the rest, which no energy depends on, and "
            "have no place for its weights: use it with mace-torch 0.3.14"
        )


def _refuse_mixed_heads(root: SandboxedObject, where: str) -> None:
    """mace 0.3.14 set the other heads' channels to zero after the second of
    this readout's maps only.
    """
    readout = children(root, "readouts")[-1]
    heads = attribute(root, "heads") or []
    if type(readout).__name__ != "NonLinearBiasReadoutBlock" or len(heads) < 2:
        return
    if "use_edge_irreps_first" in root.__dict__:  # since 0.3.15
        return
    raise InputError(
        f"{where} is of mace-torch 0.3.14 and has a NonLinearBiasReadoutBlock of several "
        "heads, which later releases compute otherwise: no energy of it can be had here; use "
        "it with mace-torch 0.3.14"
    )


def _fields(root: SandboxedObject, numbers: list[int]) -> dict[str, Any]:
    """The fields of model.json that a module tells; one that is not there takes its default.

    Args:
        root: the module.
        numbers: atomic numbers of its elements.
    """
    interactions = children(root, "interactions")
    products = children(root, "products")
    readout = children(root, "readouts")[-1]
    radial = child(root, "radial_embedding")
    first = interactions[0]
    energies = nested_numbers(tensor_of(child(root, "atomic_energies_fn"), "atomic_energies"))
    heads = _heads(root, n_heads=_rows(energies))
    hidden = irreps_text(attribute(child(products[0], "linear"), "irreps_out"))
    if len(interactions) == 1:  # its product may keep scalars only
        hidden = irreps_text(attribute(first, "hidden_irreps"))
    last = irreps_text(attribute(child(products[-1], "linear"), "irreps_out"))
    specs = attribute(root, "embedding_specs")
    fields: dict[str, Any] = {
        "model_class": class_name(root).rpartition(".")[2],
        "r_max": scalar_of(tensor_of(root, "r_max")),
        "atomic_numbers": numbers,
        "heads": heads,
        "atomic_energies": [energies]
        if _rows(energies) == 1 and not isinstance(energies[0], list)
        else energies,
        "avg_num_neighbors": plain_float(attribute(first, "avg_num_neighbors")),
        "num_bessel": int(attribute(radial, "out_dim")),
        "num_polynomial_cutoff": whole_number(
            scalar_of(tensor_of(child(radial, "cutoff_fn"), "p"))
        ),
        "max_ell": int(attribute(child(root, "spherical_harmonics"), "_lmax")),
        "interaction_cls_first": type(first).__name__,
        "interaction_cls": type(interactions[-1]).__name__,
        "num_interactions": len(interactions),
        "hidden_irreps": hidden,
        "edge_irreps": _optional_irreps(attribute(root, "edge_irreps")),
        "MLP_irreps": _scalars_per_head(attribute(readout, "hidden_irreps"), len(heads)),
        "correlation": [correlation_of(product) for product in products],
        "gate": _gate(readout),
        "radial_type": RADIAL[type(child(radial, "bessel_fn")).__name__],
        "radial_MLP": radial_mlp_of(first),
        "distance_transform": _distance_transform(radial),
        "pair_repulsion": "pair_repulsion_fn" in as_mapping(attribute(root, "_modules")),
        "apply_cutoff": bool(attribute(root, "apply_cutoff", True)),
        **{name: bool(attribute(root, name, False)) for name in SWITCHES},
        "use_embedding_readout": "embedding_readout" in as_mapping(attribute(root, "_modules")),
        "embedding_specs": None
        if specs is None
        else {name: dict(spec) for name, spec in specs.items()},
        "readout_cls": type(readout).__name__,
        "keep_last_layer_irreps": len(products) > 1 and "+" in hidden and last == hidden,
    }
    if fields["model_class"] == "ScaleShiftMACE":
        for name in ("scale", "shift"):
            values = nested_numbers(tensor_of(child(root, "scale_shift"), name).reshape(-1))
            fields[f"atomic_inter_{name}"] = values if len(values) > 1 else values[0]
    # of a single layer: the fields have no effect there
    if fields["readout_cls"] == "LinearReadoutBlock":
        del fields["readout_cls"]
        del fields["gate"]
    return {name: value for name, value in fields.items() if value is not None}


def _heads(root: SandboxedObject, n_heads: int) -> list[str]:
    """Names of the heads; releases that stored none called the first ``Default``."""
    stored = list(attribute(root, "heads") or [])
    return stored or ["Default", *(f"head_{index}" for index in range(1, n_heads))]


def _distance_transform(radial: SandboxedObject) -> str:
    if "distance_transform" not in as_mapping(attribute(radial, "_modules")):
        return "None"
    return TRANSFORM[type(child(radial, "distance_transform")).__name__]


def _rows(energies: list[Any]) -> int:
    """Heads of E0s: one where they are a flat list."""
    return len(energies) if isinstance(energies[0], list) else 1


def _optional_irreps(value: object) -> str | None:
    return None if value is None else irreps_text(value)


def _scalars_per_head(value: object, n_heads: int) -> str | None:
    """MLP_irreps from the hidden irreps of a readout, in which every head has as many scalars."""
    if value is None:
        return None
    scalars = [term for term in irreps_text(value).split("+") if term.endswith("x0e")]
    channels = sum(int(term.partition("x")[0]) for term in scalars)
    return f"{max(1, channels // n_heads)}x0e"


def _gate(readout: SandboxedObject) -> str:
    """The name of the activation of a readout, ``None`` where it has none."""
    if "non_linearity" not in as_mapping(attribute(readout, "_modules")):
        return "None"
    acts = children(child(readout, "non_linearity"), "acts")
    return activation_name(attribute(acts[0], "f"))


def without_obsolete(
    tensors: Mapping[str, Tensor], description: ModelDescription
) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out the tensors that older releases had and that no energy depends on.

    Returns:
        The other tensors by name, and a phrase for each of those left out that is not
        as the description says.
    """
    kept = {}
    faults = []
    for name, tensor in tensors.items():
        if name.endswith(OLD_GATE):
            value: float = 1
        elif (
            name in OBSOLETE
            and isinstance(description, MaceDescription)
            and description.pair_repulsion
        ):
            value = getattr(description, OBSOLETE[name])
        else:
            kept[name] = tensor
            continue
        if not bool((tensor == torch.tensor(value, dtype=torch.float64).to(tensor.dtype)).all()):
            faults.append(f"{name} holds {tensor.reshape(-1).tolist()[:3]}, expected {value}")
    return kept, faults


def fit_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors of another release of mace as a module built today takes them.

    Every parameter must be there in its shape. A buffer may have another shape of the same numbers
    (E0s and scales were stored flat), may be absent where it is derived from the structure (added
    by later releases), and is taken from the file where it is there.

    Returns:
        The complete state, the names of derived buffers that the file lacks, and what does not fit.
    """
    own = module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    state = {}
    absent = []
    faults = []
    for name, mine in own.items():
        theirs = tensors.get(name)
        if theirs is None and (name not in parameters or mine.numel() == 0):
            absent.append(name)
            state[name] = mine
        elif theirs is None:
            faults.append(f"{name} is missing")
        elif theirs.shape == mine.shape or (
            name not in parameters and theirs.numel() == mine.numel()
        ):
            state[name] = theirs.reshape(mine.shape)
        else:
            faults.append(f"{name} has shape {tuple(theirs.shape)}, expected {tuple(mine.shape)}")
    faults += [
        f"{name} is unknown"
        for name, tensor in tensors.items()
        if name not in own and tensor.numel()
    ]
    return state, absent, faults
