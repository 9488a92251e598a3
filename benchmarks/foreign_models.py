"""Small models as releases 0.3.3 … 0.3.16 of mace-torch write them, for ``tests/data/foreign``:
``foreign_models.py``.

Every release is installed without its dependencies into a folder of its own and imported in a
process of its own, over the torch and e3nn of this environment. It builds each small network that
its constructors know, pickles it as ``mace_run_train`` does, and computes energies and forces with
its own forward pass. What comes of it, an archive with a folder per release and its
``expected.json``, is what the tests read. The TorchScript that e3nn adds to a pickle (nine tenths
of a small one, and bytes that no reader here looks into) is left out. About five minutes.
"""

import argparse
import inspect
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

RELEASES = [f"0.3.{n}" for n in range(3, 17)]
HERE = Path(__file__).resolve()
ELEMENTS = [1, 6, 8]
ENERGIES = [-13.6, -1029.4, -2042.0]  # eV
FIRST = "RealAgnosticInteractionBlock"
LATER = "RealAgnosticResidualInteractionBlock"
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
EMBEDDINGS = {
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 7, "emb_dim": 4},
    "total_charge": {
        "type": "categorical",
        "per": "graph",
        "num_classes": 9,
        "offset": 4,
        "emb_dim": 4,
    },
}
BASE: dict[str, Any] = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.7,
    "num_bessel": 4,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "interaction_cls": LATER,
    "interaction_cls_first": LATER,
    "num_interactions": 2,
    "hidden_irreps": "2x0e+2x1o",
    "MLP_irreps": "3x0e",
    "correlation": 2,
    "gate": "silu",
    "avg_num_neighbors": 6.3,
    "radial_MLP": [5],
    "atomic_inter_scale": 0.8041,
    "atomic_inter_shift": 0.1641,
    # as mace_run_train gives it; releases that do not know it have the same
    "use_reduced_cg": False,
}
OMAT = {"distance_transform": "Agnesi", "pair_repulsion": True}
DENSITY = {
    "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
    "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
}
NETWORKS: dict[str, dict[str, Any]] = {  # what differs from BASE
    "mace": {"model_class": "MACE", "interaction_cls_first": FIRST},
    "scale_shift": {},
    "scalars": {"hidden_irreps": "4x0e", "correlation": 3},
    "gaussian": {"radial_type": "gaussian", "num_bessel": 6, "gate": "tanh"},
    "attention": {"interaction_cls": "RealAgnosticAttResidualInteractionBlock"},
    "three_layers": {"num_interactions": 3, "correlation": [3, 2, 1]},
    "one_layer": {"num_interactions": 1},  # with vectors in its only product before 0.3.15
    "chebyshev": {"radial_type": "chebyshev", "num_bessel": 2},
    "mp_0b": {"model_class": "MACE", "interaction_cls_first": FIRST, **OMAT},
    "soft": {"distance_transform": "Soft"},
    "density": DENSITY,
    "omat": {**DENSITY, **OMAT, "hidden_irreps": "4x0e"},
    "heads": {"heads": ["pbe", "r2scan"]},
    "mh_1": {
        **OMAT,
        "interaction_cls_first": NONLINEAR,
        "interaction_cls": NONLINEAR,
        "edge_irreps": "2x0e+2x1o",
        "apply_cutoff": False,
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        "heads": ["omat_pbe", "matpes_r2scan"],
    },
    "mh_0": {
        **OMAT,
        "interaction_cls_first": NONLINEAR,
        "interaction_cls": NONLINEAR,
        "edge_irreps": "2x0e+2x1o",
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "readout_cls": "NonLinearBiasReadoutBlock",
        "heads": ["omat_pbe", "matpes_r2scan"],
    },
    "omol": {
        "interaction_cls_first": NONLINEAR,
        "interaction_cls": NONLINEAR,
        "num_interactions": 3,
        "edge_irreps": "2x0e+2x1o",
        "apply_cutoff": False,
        "embedding_specs": EMBEDDINGS,
    },
    "omol_readout": {
        "interaction_cls_first": NONLINEAR,
        "interaction_cls": NONLINEAR,
        "embedding_specs": EMBEDDINGS,
        "use_embedding_readout": True,
    },
    # the constructor's default: without cuequivariance it has no effect
    "constructor": {"use_reduced_cg": True},
    "all_irreps": {"keep_last_layer_irreps": True},
    "element_dependent": {"interaction_cls": "ResidualElementDependentInteractionBlock"},
}


def main() -> None:
    """Install every release, let it write, and pack what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", nargs="+", default=RELEASES)
    parser.add_argument(
        "--output", type=Path, default=HERE.parents[1] / "tests/data/foreign/mace_torch.tar.xz"
    )
    parser.add_argument(
        "--installed", type=Path, help="folder of releases, one mace-X.Y.Z each; kept if given"
    )
    # in the release's own process
    parser.add_argument("--networks_of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.networks_of is not None:
        write_networks(options.networks_of)
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for release in options.releases:
            folder = Path(temporary) / "networks" / release
            folder.mkdir(parents=True)
            run_release(release, folder, options.installed or Path(temporary))
            print(f"{release}: {', '.join(sorted(path.stem for path in folder.glob('*.model')))}")
        pack(Path(temporary) / "networks", options.output)
    print(f"wrote {options.output}: {options.output.stat().st_size} bytes")


def run_release(release: str, folder: Path, installed: Path) -> None:
    """Let one release write its networks into a folder."""
    target = installed / f"mace-{release}"
    if not target.exists():
        words = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(target),
            f"mace-torch=={release}",
        ]
        subprocess.run([sys.executable, *words], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    subprocess.run(
        [sys.executable, str(HERE), "--networks_of", str(folder)],
        check=True,
        env=environment,
        cwd=folder,
    )


def pack(folder: Path, archive: Path) -> None:
    """The folder's files as an archive that depends on their names and content alone."""
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        # alike ones together
        for path in sorted(folder.rglob("*.*"), key=lambda path: (path.name, path.parent.name)):
            if path.is_file():
                entry = tarfile.TarInfo(str(path.relative_to(folder)))
                content = path.read_bytes()
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


# --- in the release's own process


def write_networks(folder: Path) -> None:
    """Every network that this release can build, pickled, with its energies and
    forces in ``expected.json``.
    """
    warnings.simplefilter("ignore")
    import mace
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    leave_out_torchscript()
    expected: dict[str, Any] = {
        "release": mace.__version__,
        "structures": structures(),
        "networks": {},
    }
    for name, differences in NETWORKS.items():
        fields = {**BASE, **differences}
        module = built(fields)
        if module is None:
            continue
        torch.save(module, folder / f"{name}.model")
        heads = fields.get("heads", ["Default"])
        try:
            results = [
                [computed(module, structure, fields, head) for structure in expected["structures"]]
                for head in range(len(heads))
            ]
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            # built, but not run by this release
            print(f"{mace.__version__} cannot run {name}: {str(error).splitlines()[0]:.120}")
            results = None
        expected["networks"][name] = {"fields": fields, "heads": heads, "results": results}
    (folder / "expected.json").write_text(json.dumps(expected, sort_keys=True))


def leave_out_torchscript() -> None:
    """Let e3nn's modules pickle the names of their compiled functions without the functions."""
    from e3nn.util.codegen import CodeGenMixin

    state_of = CodeGenMixin.__getstate__

    def without(self: Any) -> dict[str, Any]:
        state = state_of(self)
        if "__codegen__" in state:
            state["__codegen__"] = dict.fromkeys(state["__codegen__"], b"left out")
        return state

    CodeGenMixin.__getstate__ = without


def built(fields: dict[str, Any]) -> Any:
    """The module with random weights, or None where the release's constructor lacks
    an argument or a class.
    """
    import torch
    from e3nn import o3
    from mace import modules

    if fields.get("radial_type") == "chebyshev" and not hasattr(modules.radial, "ChebychevBasis"):
        return None
    known = {}
    classes = {**modules.interaction_classes, "ResidualElementDependentInteractionBlock": None}
    classes.update(modules.interaction_classes)
    for key in ("interaction_cls", "interaction_cls_first"):
        if classes.get(fields[key]) is None:
            return None
        known[key] = classes[fields[key]]
    for key in ("hidden_irreps", "MLP_irreps"):
        known[key] = o3.Irreps(fields[key])
    if "edge_irreps" in fields:
        known["edge_irreps"] = o3.Irreps(fields["edge_irreps"])
    if "readout_cls" in fields:
        known["readout_cls"] = getattr(modules.blocks, fields["readout_cls"], None)
    known["gate"] = modules.gate_dict[fields["gate"]]
    heads = fields.get("heads", ["Default"])
    energies = np.array([ENERGIES, [e - 1.5 for e in ENERGIES]][: len(heads)])
    known["atomic_energies"] = energies if len(heads) > 1 else energies[0]
    known["atomic_numbers"] = ELEMENTS
    known["num_elements"] = len(ELEMENTS)
    arguments = {**{k: v for k, v in fields.items() if k != "model_class"}, **known}
    if len(heads) > 1:
        for key in ("atomic_inter_scale", "atomic_inter_shift"):
            arguments[key] = [arguments[key], arguments[key] + 0.25]
    if fields["model_class"] == "MACE":
        del arguments["atomic_inter_scale"], arguments["atomic_inter_shift"]
    taken = {
        *inspect.signature(modules.MACE.__init__).parameters,
        "atomic_inter_scale",
        "atomic_inter_shift",
    }
    if "use_reduced_cg" not in taken and not arguments["use_reduced_cg"]:
        del arguments["use_reduced_cg"]
    if not set(arguments) <= taken:
        return None
    torch.manual_seed(7)
    module = getattr(modules, fields["model_class"])(**arguments)
    for parameter in module.parameters():  # biases begin as zeros
        if parameter.numel() and not parameter.detach().any():
            parameter.data.normal_(std=0.3)
        parameter.data.mul_(16).round_().div_(16)  # compresses to a tenth
    return module


def structures() -> list[dict[str, Any]]:
    """A molecule and a crystal: positions and cell in Å."""
    rng = np.random.default_rng(3)
    grid = 1.4 * np.stack(np.meshgrid(*[np.arange(2.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    probes: list[dict[str, Any]] = []
    for periodic in (False, True):
        positions = grid + rng.normal(0.0, 0.12, grid.shape)
        cell = (
            np.array([[3.0, 0.0, 0.0], [0.4, 3.1, 0.0], [0.0, -0.3, 2.9]])
            if periodic
            else np.zeros((3, 3))
        )
        probes.append(
            {
                "numbers": rng.choice(ELEMENTS, len(grid)).tolist(),
                "positions": positions.round(6).tolist(),
                "cell": cell.tolist(),
                "periodic": periodic,
                "total_charge": 1,
                "total_spin": 2,
            }
        )
    return probes


def computed(
    module: Any, structure: dict[str, Any], fields: dict[str, Any], head: int
) -> dict[str, Any]:
    """Energy (eV) and forces (eV/Å) by the release's own forward pass."""
    import torch

    positions = np.array(structure["positions"])
    cell = np.array(structure["cell"])
    edges, shifts, units = neighbours(positions, cell, structure["periodic"], fields["r_max"])
    species = torch.tensor([ELEMENTS.index(z) for z in structure["numbers"]])
    data = {
        "positions": torch.tensor(positions, requires_grad=True),
        "node_attrs": torch.nn.functional.one_hot(species, len(ELEMENTS)).double(),
        "edge_index": torch.tensor(edges.T.copy()),
        "shifts": torch.tensor(shifts),
        "unit_shifts": torch.tensor(units),
        "cell": torch.tensor(cell if structure["periodic"] else np.eye(3)),
        "batch": torch.zeros(len(species), dtype=torch.long),
        "ptr": torch.tensor([0, len(species)]),
        "head": torch.tensor([head]),
        "total_charge": torch.tensor([float(structure["total_charge"])]),
        "total_spin": torch.tensor([float(structure["total_spin"])]),
    }
    output = module(data, training=False)
    return {"energy": output["energy"].item(), "forces": output["forces"].tolist()}


def neighbours(
    positions: np.ndarray, cell: np.ndarray, periodic: bool, r_max: float
) -> tuple[np.ndarray, ...]:
    """Every pair within r_max by looking at all images: (sender, receiver),
    shift in Å, shift in cells.
    """
    images = np.stack(np.meshgrid(*[np.arange(-2.0, 3.0)] * 3, indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    images = images if periodic else np.zeros((1, 3))
    edges = []
    units = []
    for image in images:
        vectors = positions[None, :] + image @ cell - positions[:, None]
        distances = np.linalg.norm(vectors, axis=-1)
        for sender, receiver in np.argwhere((distances < r_max) & (distances > 1e-9)):
            edges.append((sender, receiver))
            units.append(image)
    return np.array(edges), np.array(units) @ cell, np.array(units)


if __name__ == "__main__":
    main()
