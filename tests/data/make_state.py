"""Write the small files that a state of the code leaves behind, for every later
state to read and resume.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/data/make_state.py /tmp/state_<commit>

Run in a checkout of that state, then move the folder to ``tests/data``;
``tests/test_stored_states.py`` opens every ``state_*`` there. Two runs are stopped by SIGTERM in
the middle of an epoch; what the unbroken ones came to stands in ``expected.json``.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import write

from dataloader import pack
from dataloader.lmdb_shards import index_building
from model_utils import evaluate, train_mace
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models.versions import code_version
from model_utils.run import fit

MODEL = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.5,
    "atomic_numbers": [13, 29],
    "atomic_energies": {"Al": 1.5, "Cu": 2.5},
    "avg_num_neighbors": 3.0,
    "atomic_inter_scale": 0.8,
    "atomic_inter_shift": 0.1,
    "hidden_irreps": "2x0e",
    "num_bessel": 3,
    "max_ell": 1,
    "correlation": 1,
    "num_interactions": 2,
    "radial_MLP": [4],
    "MLP_irreps": "2x0e",
}
COMMON = [
    "--input_json",
    "model.json",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--log_every_steps",
    "1",
]
RUNS = {
    "float32": [
        *(
            "--xyz_train",
            "train.xyz",
            "--valid_fraction",
            "0.25",
            "--batch_size",
            "2",
            "--epochs",
            "4",
        ),
        *(
            "--ema",
            "--scheduler",
            "cosine",
            "--scheduler_unit",
            "step",
            "--warmup",
            "2",
            "--no_export_mace_model",
        ),
    ],
    "float64": [
        *(
            "--lmdb_train",
            "data.lmdb",
            "--xyz_val",
            "valid.xyz",
            "--dtype",
            "float64",
            "--epochs",
            "4",
        ),
        *("--max_edges_per_batch", "30", "--ema", "--ema_decay", "0.9", "--optimizer", "adamw"),
        *("--lr_of", "readouts.*=0.001", "--scheduler", "exponential", "--lr_gamma", "0.9"),
        *("--stage_two", "--start_stage_two", "2", "--no_export_mace_model"),
    ],
}
STOP_AT = {"float32": 6, "float64": 12}  # steps; the latter in the second stage


def clusters(n: int, seed: int) -> list[Atoms]:
    """Clusters of three to five atoms of aluminium and copper, labelled by ASE's
    effective medium theory.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        n_atoms = int(rng.integers(3, 6))
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        positions = 2.5 * corners[rng.permutation(8)[:n_atoms]] + rng.normal(0, 0.1, (n_atoms, 3))
        atoms = Atoms(rng.choice([13, 29], n_atoms), positions=positions)
        atoms.calc = EMT()
        atoms.info["REF_energy"] = float(atoms.get_potential_energy())
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
        frames.append(atoms)
    return frames


def write_lmdb(path: Path, frames: list[Atoms]) -> None:
    """Rows of plain dicts, as people write them."""
    import pickle

    with (
        lmdb.open(str(path), subdir=False, map_size=2**26, lock=False) as environment,
        environment.begin(write=True) as t,
    ):
        for i, atoms in enumerate(frames):
            row = {
                "pos": atoms.positions,
                "atomic_numbers": atoms.numbers,
                "cell": np.zeros((3, 3)),
                "pbc": atoms.pbc,
            }
            row |= {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
            t.put(str(i).encode(), pickle.dumps(row))


def stopped_after(step: int, train: Callable[[], int]) -> int:
    """What a training returns that gets SIGTERM after a step."""
    after_step = fit._Run._after_step

    def stop(run: Any) -> None:
        after_step(run)
        if run.state.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    fit._Run._after_step = stop  # type: ignore[method-assign]
    try:
        return train()
    finally:
        fit._Run._after_step = after_step  # type: ignore[method-assign]


def outcome(folder: Path) -> dict[str, Any]:
    """What an unbroken run came to: weights, averages, counters, records without times."""
    file = checkpoint.read(folder / "run_checkpoint.pt")
    state, best = file.content["train_state"], checkpoint.read(folder / "run_model.pt")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counters = ("epoch", "step", "samples", "stage", "best_step", "waited", "scheduler")
    starts = state.get("stage_starts") or [0, state.get("stage_two_epoch")]
    stage_two = starts[1] if len(starts) > 1 else None
    return {
        "weights": {
            name: tensor.flatten().tolist()
            for name, tensor in file.tensors.items()
            if tensor.numel()
        },
        "average": {
            name: t.flatten().tolist() for name, t in state["ema_state_dict"]["shadow"].items()
        },
        "updates": state["ema_state_dict"]["updates"],
        "best": {
            name: tensor.flatten().tolist()
            for name, tensor in best.tensors.items()
            if tensor.numel()
        },
        "state": {"stage_two_epoch": stage_two, **{name: state[name] for name in counters}},
        "records": [
            {k: v for k, v in record.items() if k not in ("perf", "by_source")}
            for record in records
        ],
    }


def main(folder: Path) -> None:
    """Everything, into an empty folder."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("model.json").write_text(json.dumps(MODEL))
    write("train.xyz", clusters(12, seed=1), format="extxyz")
    write("valid.xyz", clusters(4, seed=2), format="extxyz")
    write_lmdb(Path("data.lmdb"), clusters(16, seed=3))
    index_building.KEPT_FROM = 4  # so that these few records leave an index too
    version = code_version(model_json.parse(json.dumps(MODEL), "model.json"))
    expected: dict[str, Any] = {"code_version": version, "runs": {}}
    for name, words in RUNS.items():
        command = [*COMMON, *words, "--output_checkpoint"]
        assert train_mace.main([*command, f"unbroken/{name}/run_checkpoint.pt"]) == 0
        stop_at = STOP_AT[name]
        stopped = [*command, f"{name}/run_checkpoint.pt"]
        assert stopped_after(stop_at, lambda stopped=stopped: train_mace.main(stopped)) == 75
        state = checkpoint.read(Path(name) / "run_checkpoint.pt").content["train_state"]
        assert (state["step"], state["steps_in_epoch"] > 0) == (stop_at, True)
        model = f"{name}/run_model.pt"
        assert (
            evaluate.main(
                ["--input_model", model, "--xyz_path", "valid.xyz", "--output_json", f"{name}.json"]
            )
            == 0
        )
        expected["runs"][name] = outcome(Path("unbroken") / name) | {"stopped_at": stop_at}
        expected["runs"][name]["errors"] = json.loads(Path(f"{name}.json").read_text())
        Path(f"{name}.json").unlink()
    shutil.rmtree("unbroken")
    packing = [
        "--input",
        "train.xyz",
        "valid.xyz",
        "--output_dir",
        "packed",
        "--r_max",
        "3.5",
        "--stages",
        "6",
    ]
    assert pack.main([*packing, "--split", "train=0.75", "valid=0.25"]) == 0
    words = [*COMMON, "--lmdb_train", "packed/train", "--lmdb_val", "packed/valid", "--epochs", "1"]
    assert (
        train_mace.main([*words, "--max_atoms_per_batch", "12", "--output_checkpoint", "read"]) == 0
    )
    shutil.rmtree("read")  # it has left the indexes of the shards
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for leftover in [
        *folder.rglob(".run.lock"),
        *folder.rglob("*-lock"),
        *folder.rglob("train.log"),
    ]:
        leftover.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
