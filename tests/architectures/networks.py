"""Small networks of every class that other libraries compute, as model.json has
them; structures for them.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from dataloader.batch import Batch, collate
from dataloader.needs import ModelFacts
from dataloader.neighbors import MAX_NEIGHBORS, build_graph
from dataloader.structure import Structure

COMMON: dict[str, Any] = {
    "r_max": 3.0,
    "atomic_numbers": [1, 8],
    "atomic_energies": {"H": -13.6, "O": -430.0},
    "avg_num_neighbors": 2.5,
    "atomic_inter_scale": 1.5,
    "atomic_inter_shift": 0.25,
}
SMALL: dict[str, dict[str, Any]] = {
    "PaiNN": {"channels": 8, "layers": 2, "radial_features": 5},
    "TensorNet": {"channels": 6, "layers": 2, "radial_features": 5},
    "ZEmbeddingNequIP": {
        "channels": [6, 4, 2],
        "l_max": 2,
        "use_odd_parity": False,
        "layers": 2,
        "Z_embed_dim": 4,
        "radial_features": 4,
        "neighbour_aggregation": "constant_fixed",
    },
    "SchNet": {"channels": 8, "layers": 2, "expansion_features": 8},
    "ViSNet": {"hidden_channels": 8, "num_heads": 2, "num_layers": 2, "num_rbf": 5, "lmax": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {  # further forms of a class
    "TensorNet, Bessel": {
        "model_class": "TensorNet",
        **SMALL["TensorNet"],
        "radial_expansion": "Bessel",
    },
    "NequIP, odd": {
        "model_class": "ZEmbeddingNequIP",
        **SMALL["ZEmbeddingNequIP"],
        "channels": 3,
        "l_max": 1,
        "use_odd_parity": True,
        "self_interaction": "linear",
        "neighbour_aggregation": "constant_learnable",
    },
    "ViSNet, vertex": {
        "model_class": "ViSNet",
        **SMALL["ViSNet"],
        "lmax": 1,
        "vertex": True,
        "trainable_rbf": True,
        "trainable_vecnorm": True,
    },
}
MODULES = {"ViSNet": "torch_geometric"}  # others are graph-pes'


def fields_of(name: str) -> dict[str, Any]:
    """A model.json as a person writes it."""
    return {**COMMON, **VARIANTS.get(name, {"model_class": name, **SMALL.get(name, {})})}


def needs(name: str) -> pytest.MarkDecorator:
    """Skips where the library of a network is not installed."""
    module = MODULES.get(fields_of(name)["model_class"], "graph_pes")
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}: make test_extras")


def each(names: Any) -> list[Any]:
    """Names as cases, each skipped where its library is not installed."""
    return [pytest.param(name, marks=needs(name)) for name in names]


def structures() -> dict[str, Atoms]:
    """A molecule, a crystal, one that is smaller than the cutoff, a layer, and an atom alone."""
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    rock = bulk("OH", "rocksalt", a=3.4, cubic=True)
    rock.rattle(0.05, seed=2)
    small = Atoms(
        "OH",
        positions=[[0, 0, 0], [1.1, 0.9, 1.2]],
        cell=[[2.1, 0, 0], [0.5, 2.3, 0], [0, 0.4, 2.6]],
        pbc=True,
    )
    layer = Atoms(
        "OHH", positions=[[0, 0, 0], [1.1, 0.9, 0.3], [2.2, 0.2, 0.9]], cell=[3.1, 2.4, 0.0]
    )
    layer.pbc = [True, True, False]
    return {
        "water": water,
        "crystal": rock,
        "small cell": small,
        "layer": layer,
        "atom": Atoms("O"),
    }


def structure(name: str, atoms: Atoms) -> Structure:
    """Atoms with labels of no meaning."""
    rng = np.random.default_rng(len(atoms))
    pbc = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    labels: dict[str, Any] = {
        "energy": float(len(atoms)),
        "forces": rng.normal(size=(len(atoms), 3)),
    }
    if all(pbc):
        labels["stress"] = 0.01 * np.eye(3)
    return Structure(
        atomic_numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=pbc,
        identifier=name,
        head="Default",
        labels=labels,
    )


def batch_of(facts: ModelFacts, dtype: torch.dtype, *atoms: Atoms) -> Batch:
    """Structures as one batch."""
    each = [structure(str(number), a) for number, a in enumerate(atoms)]
    graphs = [build_graph(s, facts.r_max, MAX_NEIGHBORS) for s in each]
    return collate(each, graphs, range(len(each)), facts, dtype, free_atoms_only=False)
