"""Networks, structures and a direct use of mace-torch for the parity guard ``test_parity.py``.

What is built here comes from mace's own constructor, data classes and losses, with every argument
written out; of our own code there is only the plain record ``Structure``, so that no error of ours
can stand on both sides of a comparison.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import covering
import numpy as np
import torch
from torch import Tensor, nn

from dataloader.structure import Structure
from model_utils.models.mace_import import VARIABLE, mace, o3

_before = os.environ.get(VARIABLE)
import e3nn  # noqa: E402  (after mace_import, which makes these imports possible)
from mace import data, tools  # noqa: E402
from mace.tools.torch_geometric.dataloader import DataLoader  # noqa: E402

if _before is None:
    os.environ.pop(VARIABLE, None)
else:
    os.environ[VARIABLE] = _before

Fields = dict[str, Any]
Case = Mapping[str, str]  # axis → name of its value

ELEMENTS = [8, 1, 6]  # not sorted: the order is the model's
# eV, per head; small, so that 1e-10 of a total is sharp
ENERGIES = [[-4.25, -1.125, -7.5], [-4.5, -1.0625, -7.0]]
ABSENT = "-"  # the value, in a network of one layer, of an axis that such a network does not have
# the axes of which this is so
LATER_LAYERS = ("later", "readouts", "last_layer", "readout", "gate")
SITE = "site_field"  # two numbers per atom, input of an embedding
INTERACTIONS = {
    "plain": "RealAgnosticInteractionBlock",
    "residual": "RealAgnosticResidualInteractionBlock",
    "density": "RealAgnosticDensityInteractionBlock",
    "density_residual": "RealAgnosticDensityResidualInteractionBlock",
    "attention": "RealAgnosticAttResidualInteractionBlock",
    "nonlinear": "RealAgnosticResidualNonLinearInteractionBlock",
}
EMBEDDINGS = {
    "total_spin": {
        "type": "categorical",
        "per": "graph",
        "emb_dim": 3,
        "num_classes": 5,
        "offset": -1,
    },
    "total_charge": {"type": "continuous", "per": "graph", "emb_dim": 2, "use_bias": False},
    SITE: {"type": "continuous", "per": "atom", "emb_dim": 2, "in_dim": 2},
}

BASE: Fields = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.2,
    "num_bessel": 5,
    "num_polynomial_cutoff": 4,
    "max_ell": 2,
    "interaction_cls": INTERACTIONS["residual"],
    "interaction_cls_first": INTERACTIONS["residual"],
    "num_interactions": 2,
    "hidden_irreps": "4x0e+4x1o",
    "MLP_irreps": "4x0e",
    "atomic_numbers": ELEMENTS,
    "avg_num_neighbors": 7.5,
    "correlation": [2, 2],
    "gate": "silu",
    "pair_repulsion": False,
    "apply_cutoff": True,
    "use_so3": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_embedding_readout": False,
    "distance_transform": "None",
    "edge_irreps": None,
    "use_edge_irreps_first": False,
    "radial_MLP": [6],
    "radial_type": "bessel",
    "heads": ["Default"],
    "embedding_specs": None,
    "readout_cls": "NonLinearReadoutBlock",
    "keep_last_layer_irreps": False,
}

MAIN_AXES: dict[str, dict[str, Fields]] = {
    "first": {name: {"interaction_cls_first": cls} for name, cls in INTERACTIONS.items()},
    "later": {**{name: {"interaction_cls": cls} for name, cls in INTERACTIONS.items()}, ABSENT: {}},
    "radial": {
        "bessel": {},
        "gaussian": {"radial_type": "gaussian"},
        # grows as distance^number: 5 give 10⁷ eV
        "chebyshev": {"radial_type": "chebyshev", "num_bessel": 2},
    },
    "transform": {name: {"distance_transform": name} for name in ("None", "Agnesi", "Soft")},
    "repulsion": {"off": {}, "zbl": {"pair_repulsion": True}},
    "heads": {"one": {}, "two": {"heads": ["pbe", "r2scan"]}},
    "correlation": {"even": {}, "falling": {"correlation": [3, 2]}},
    "class": {"MACE": {"model_class": "MACE"}, "ScaleShift": {}},
}
SWITCHES: dict[str, dict[str, Fields]] = {
    "layers": {"two": {}, "one": {"num_interactions": 1}, "three": {"num_interactions": 3}},
    "irreps": {
        "vectors": {},
        "scalars": {"hidden_irreps": "4x0e"},
        "pseudoscalars": {"hidden_irreps": "4x0e+4x0o+4x1o"},
        "tensors": {"hidden_irreps": "4x0e+4x1o+4x2e"},
        "so3": {"hidden_irreps": "4x0e+4x1e", "use_so3": True},
    },
    "edge": {
        "all": {},
        "later": {"edge_irreps": "3x0e+2x1o"},
        "first": {"edge_irreps": "3x0e+2x1o", "use_edge_irreps_first": True},
    },
    "orders": {"2": {}, "1": {"max_ell": 1}, "3": {"max_ell": 3}},
    "product": {"by_element": {}, "agnostic": {"use_agnostic_product": True}},
    "readouts": {"every": {}, "last": {"use_last_readout_only": True}, ABSENT: {}},
    "last_layer": {"scalars": {}, "all": {"keep_last_layer_irreps": True}, ABSENT: {}},
    "cutoff": {"on_basis": {}, "on_weights": {"apply_cutoff": False}},
    "readout": {"plain": {}, "bias": {"readout_cls": "NonLinearBiasReadoutBlock"}, ABSENT: {}},
    "gate": {**{name: {"gate": name} for name in ("silu", "tanh", "abs", "None")}, ABSENT: {}},
    "embedding": {
        "none": {},
        "inputs": {"embedding_specs": EMBEDDINGS},
        "readout": {"embedding_specs": EMBEDDINGS, "use_embedding_readout": True},
    },
    "widths": {"4_6": {}, "8_5_7": {"MLP_irreps": "8x0e", "radial_MLP": [5, 7]}},
}
AXES = {**MAIN_AXES, **SWITCHES}

IMPOSSIBLE: list[tuple[Case, str]] = [
    (
        {"later": "nonlinear", "irreps": "pseudoscalars"},
        "the block's gate has no activation for odd scalars",
    ),
    (
        {"class": "MACE", "heads": "two", "embedding": "readout"},
        "MACE adds the embedding's energies of all heads",
    ),
]


def pairwise(axes: Mapping[str, Mapping[str, Any]]) -> list[Case]:
    """Possible cases in which every possible pair of values of two axes occurs."""
    return covering.pairwise(axes, possible)


def possible(case: Case) -> bool:
    """Whether mace can run the network of a case, and every value in it means something."""
    single = {case[axis] == ABSENT for axis in LATER_LAYERS if axis in case}
    if "layers" in case:
        single.add(case["layers"] == "one")
    if len(single) > 1 or (single == {True} and case.get("edge") == "later"):
        return False
    return not any(combination.items() <= case.items() for combination, _ in IMPOSSIBLE)


def full_product() -> Iterator[Case]:
    """The product of the main axes; each takes the next set of switches from the
    pairwise array of these.
    """
    switches = pairwise(SWITCHES)
    for number, values in enumerate(product(*MAIN_AXES.values())):
        main = dict(zip(MAIN_AXES, values, strict=True))
        # else an axis of 3 values would meet every third set only
        start = number + number // len(switches)
        candidates = (
            {**main, **switches[(start + k) % len(switches)]} for k in range(len(switches))
        )
        yield next(case for case in candidates if possible(case))


def name_of(case: Case) -> str:
    """The main axes' values, then the switches that are not at their first value."""
    switched = [
        f"{axis}={case[axis]}"
        for axis, values in SWITCHES.items()
        if case[axis] not in (ABSENT, next(iter(values)))
    ]
    return "-".join([*(case[axis] for axis in MAIN_AXES), *switched])


def fields_of(case: Case) -> Fields:
    """The fields of a case, complete and consistent."""
    fields = dict(BASE)
    for axis, value in case.items():
        fields.update(AXES[axis][value])
    return completed(fields)


def completed(fields: Fields) -> Fields:
    """What follows from the other fields: numbers per layer and per head, and the
    parity of edges under SO(3).
    """
    n_heads, layers = len(fields["heads"]), fields["num_interactions"]
    fields = dict(fields)
    if isinstance(fields["correlation"], list) and len(fields["correlation"]) == 2:
        fields["correlation"] = {
            1: fields["correlation"][:1],
            2: fields["correlation"],
            3: [*fields["correlation"], 1],
        }[layers]
    fields.setdefault("atomic_energies", ENERGIES[:n_heads])
    if fields["model_class"] == "ScaleShiftMACE":
        fields.setdefault("atomic_inter_scale", [1.25, 0.75][:n_heads])
        fields.setdefault("atomic_inter_shift", [0.5, -0.25][:n_heads])
    if fields["use_so3"] and fields["edge_irreps"]:
        fields["edge_irreps"] = fields["edge_irreps"].replace("o", "e")
    return fields


def direct_model(fields: Fields) -> nn.Module:
    """mace-torch's module in float64, by its constructor.

    e3nn's generated code stays Python here, where ours is TorchScript: the two forms are compared,
    and building takes half the time.
    """
    blocks, arguments = mace.modules.blocks, {}
    cls = {"MACE": mace.modules.MACE, "ScaleShiftMACE": mace.modules.ScaleShiftMACE}[
        fields["model_class"]
    ]
    if cls is mace.modules.ScaleShiftMACE:
        scale, shift = fields["atomic_inter_scale"], fields["atomic_inter_shift"]
        arguments = {"atomic_inter_scale": scale, "atomic_inter_shift": shift}
    specs = fields["embedding_specs"]
    gates = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs, "None": None}
    with tools.torch_tools.default_dtype(torch.float64), python_instead_of_torchscript():
        return cls(
            r_max=fields["r_max"],
            num_bessel=fields["num_bessel"],
            num_polynomial_cutoff=fields["num_polynomial_cutoff"],
            max_ell=fields["max_ell"],
            interaction_cls=getattr(blocks, fields["interaction_cls"]),
            interaction_cls_first=getattr(blocks, fields["interaction_cls_first"]),
            num_interactions=fields["num_interactions"],
            num_elements=len(fields["atomic_numbers"]),
            hidden_irreps=o3.Irreps(fields["hidden_irreps"]),
            MLP_irreps=o3.Irreps(fields["MLP_irreps"]),
            atomic_energies=np.array(fields["atomic_energies"]),
            avg_num_neighbors=fields["avg_num_neighbors"],
            atomic_numbers=fields["atomic_numbers"],
            correlation=fields["correlation"],
            gate=gates[fields["gate"]],
            pair_repulsion=fields["pair_repulsion"],
            apply_cutoff=fields["apply_cutoff"],
            use_reduced_cg=False,
            use_so3=fields["use_so3"],
            use_agnostic_product=fields["use_agnostic_product"],
            use_last_readout_only=fields["use_last_readout_only"],
            use_embedding_readout=fields["use_embedding_readout"],
            distance_transform=fields["distance_transform"],
            edge_irreps=o3.Irreps(fields["edge_irreps"]) if fields["edge_irreps"] else None,
            use_edge_irreps_first=fields["use_edge_irreps_first"],
            radial_MLP=fields["radial_MLP"],
            radial_type=fields["radial_type"],
            heads=fields["heads"],
            cueq_config=None,
            embedding_specs=None
            if specs is None
            else {name: {"in_dim": 1, **spec} for name, spec in specs.items()},
            oeq_config=None,
            lammps_mliap=False,
            readout_cls=getattr(blocks, fields["readout_cls"]),
            keep_last_layer_irreps=fields["keep_last_layer_irreps"],
            **arguments,
        )


@contextmanager
def python_instead_of_torchscript() -> Iterator[None]:
    """Networks built meanwhile run e3nn's generated code as Python."""
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(jit_script_fx=False)
    try:
        yield
    finally:
        e3nn.set_optimization_defaults(**before)


def structures(heads: Sequence[str]) -> list[Structure]:
    """A molecule, a slab periodic in two directions, an atom alone and two crystals, all
    labelled; heads in turn.
    """
    rng = np.random.default_rng(7)
    zero, open_, full = np.zeros((3, 3)), (False, False, False), (True, True, True)
    ethanol = np.array(
        [
            [1.18, -0.42, 0.03], [0.02, 0.56, -0.02], [-1.20, -0.24, 0.01],
            [-1.95, 0.37, -0.04], [1.16, -1.04, 0.92], [1.13, -1.08, -0.87],
            [2.12, 0.13, 0.01], [0.06, 1.21, 0.87], [0.04, 1.19, -0.91],
        ]
    )  # fmt: skip
    skewed = np.array([[3.1, 0.2, 0.1], [-0.9, 3.4, 0.3], [0.4, -0.7, 3.8]])
    # some outside
    scaled = np.array(
        [[0.05, 0.1, 0.02], [0.52, 1.48, 0.45], [-0.45, 0.07, 0.55], [0.02, 0.55, 2.61]]
    )
    # shorter than the cutoff: own images
    small = np.array([[0.0, 1.9, 1.8], [1.7, 0.0, 2.0], [1.9, 1.8, 0.1]])
    slab = np.array([[2.9, 0.3, 0.4], [0.0, 20.0, 0.0], [-0.8, 0.0, 3.3]])
    geometries = [
        # short bonds, for ZBL
        ("molecule", [6, 6, 8, 1, 1, 1, 1, 1, 1], 0.9 * ethanol, zero, open_),
        (
            "slab",
            [6, 8, 1],
            np.array([[0.1, 0.2, 0.1], [1.4, 1.7, 1.5], [-0.6, 2.4, 7.0]]),
            slab,
            (True, False, True),
        ),
        ("atom", [8], np.array([[0.3, -0.2, 0.1]]), zero, open_),
        ("crystal", [6, 8, 1, 1], scaled @ skewed, skewed, full),
        ("small crystal", [6, 8], np.array([[0.1, 0.0, 0.2], [1.6, 1.9, 2.1]]), small, full),
    ]
    made = []
    for number, (name, numbers, positions, cell, pbc) in enumerate(geometries):
        n_atoms = len(numbers)
        stress = rng.normal(size=(3, 3)) * 0.05
        made.append(
            Structure(
                atomic_numbers=np.array(numbers),
                positions=positions,
                cell=cell,
                pbc=pbc,
                identifier=name,
                labels={
                    "energy": float(rng.normal() * n_atoms),
                    "forces": rng.normal(size=(n_atoms, 3)),
                    **({"stress": stress + stress.T} if all(pbc) else {}),
                },
                head=heads[number % len(heads)],
                features={
                    "total_spin": np.array(float(number % 3 + 1)),
                    "total_charge": np.array(0.5 * number - 1.0),
                    SITE: rng.normal(size=(n_atoms, 2)),
                },
            )
        )
    return made


def mace_batch(structures: Sequence[Structure], fields: Fields) -> Any:
    """The same structures through mace's data classes and loader, in float64."""
    table = tools.AtomicNumberTable(fields["atomic_numbers"])
    with tools.torch_tools.default_dtype(torch.float64):
        records: Any = [
            data.AtomicData.from_config(
                _configuration(s), z_table=table, cutoff=fields["r_max"], heads=fields["heads"]
            )
            for s in structures
        ]
        return next(
            iter(
                DataLoader(dataset=records, batch_size=len(records), shuffle=False, drop_last=False)
            )
        )


def _configuration(structure: Structure) -> Any:
    properties = {
        "energy": structure.energy,
        "forces": structure.forces,
        "stress": structure.stress,
    }
    return data.Configuration(
        atomic_numbers=structure.atomic_numbers,
        positions=structure.positions,
        properties={**properties, **structure.features},
        property_weights={},
        cell=structure.cell,
        pbc=structure.pbc,
        head=structure.head or "Default",
    )


def mace_outputs(model: nn.Module, batch: Any, *, stress: bool) -> dict[str, Tensor]:
    """mace's own forward pass with a graph behind forces and stress."""
    with tools.torch_tools.default_dtype(torch.float64):
        return model(batch.to_dict(), training=True, compute_force=True, compute_stress=stress)


def mace_loss_and_gradients(
    model: nn.Module, batch: Any, weights: Mapping[str, float], parameters: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """mace's weighted loss of energy per atom, forces and stress, and autograd's gradient of
    it; zero where unused.
    """
    loss_fn = mace.modules.WeightedEnergyForcesStressLoss(**weights)
    outputs = mace_outputs(model, batch, stress=weights["stress_weight"] > 0)
    outputs["stress"] = batch.stress if outputs["stress"] is None else outputs["stress"]
    loss = loss_fn(pred=outputs, ref=batch)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)
    ]


def mace_runs(fields: Fields) -> bool:
    """Whether mace by itself builds a network and gets finite forces and
    their gradients from it.
    """
    try:
        model = direct_model(fields)
        outputs = mace_outputs(model, mace_batch(structures(fields["heads"]), fields), stress=False)
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(outputs["forces"].square().sum(), trained, allow_unused=True)
    except Exception:  # mace, e3nn and torch raise a dozen types
        return False
    return bool(torch.isfinite(outputs["forces"]).all())
