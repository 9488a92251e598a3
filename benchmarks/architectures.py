"""Errors and processor time of other networks on real molecules, through the real command:
three seeds, the median.

    python benchmarks/architectures.py --data acac/train_300K.xyz --network PaiNN TensorNet

100 frames are trained on for 25 epochs with an EMA, five a step, and the next 50 of the file judge.
Needs the extra `architectures` and a quiet machine.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from ase.io import read, write

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 25
N_TRAIN = 100
N_VALID = 50
BATCH = 5
# meV/Å, of forces
BOUNDS = {"PaiNN": 1.1 * 106.0, "TensorNet": 1.1 * 87.0, "ZEmbeddingNequIP": 200.0}
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {  # fields of model.json, learning rate
    "PaiNN": ({"channels": 128, "layers": 3}, 0.001),
    "TensorNet": ({"channels": 64, "layers": 2, "radial_features": 32}, 0.001),
    "ZEmbeddingNequIP": (
        {
            "channels": [32, 16, 8],
            "l_max": 2,
            "use_odd_parity": False,
            "layers": 3,
            "neighbour_aggregation": "constant_fixed",
        },
        0.01,
    ),
    "SchNet": ({"channels": 128, "layers": 3}, 0.001),
    "ViSNet": ({"hidden_channels": 64, "num_layers": 3, "lmax": 2}, 0.001),
}


def arguments() -> argparse.Namespace:
    """What is measured, and where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="frames of one kind of molecule")
    parser.add_argument("--network", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/architectures"))
    return parser.parse_args()


def run(*words: object) -> float:
    """Run a command of the project on one thread; the processor seconds of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(name: str, seed: int, folder: Path) -> tuple[float, float]:
    """Lowest RMSE of forces of the validations (meV/Å), and processor seconds
    of the whole training.
    """
    fields, rate = SETTINGS[name]
    network = folder / f"{name}.json"
    network.write_text(json.dumps({"model_class": name, "r_max": 5.0, **fields}))
    complete = folder / f"{name}_complete.json"
    data = ["--xyz_train", folder / "train.xyz"]
    run(
        ROOT / "metadata.py",
        "fit",
        "--input_json",
        network,
        *data,
        "--output_json",
        complete,
        "--overwrite",
    )
    place = folder / f"{name}-{seed}"
    words = ["--input_json", complete, *data, "--xyz_val", folder / "valid.xyz"]
    words += ["--epochs", EPOCHS, "--batch_size", BATCH, "--lr", rate, "--ema"]
    words += ["--seed", seed, "--threads", 1, "--output_checkpoint", place, "--overwrite"]
    seconds = run(ROOT / "model_utils" / "train_mace.py", *words)
    records = [
        json.loads(line)
        for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return 1000.0 * min(r["forces_rmse"] for r in records if r["kind"] == "valid"), seconds


def main() -> int:
    """Measure and print; 1 where a network misses its bound."""
    asked = arguments()
    asked.folder.mkdir(parents=True, exist_ok=True)
    frames = read(asked.data, index=f":{N_TRAIN + N_VALID}")
    write(asked.folder / "train.xyz", frames[:N_TRAIN])
    write(asked.folder / "valid.xyz", frames[N_TRAIN:])
    missed = False
    for name in asked.network:
        results = [measured(name, seed, asked.folder) for seed in asked.seeds]
        error = median(rmse for rmse, _ in results)
        bound = BOUNDS.get(name)
        missed |= bound is not None and error > bound
        each = ", ".join(f"{rmse:.1f}" for rmse, _ in results)
        limit = "" if bound is None else f"  at most {bound:.1f}"
        seconds = median(s for _, s in results)
        print(
            f"{name:18s} F rmse {error:7.1f} meV/Å ({each}){limit}  {seconds:.0f} s CPU", flush=True
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
