"""A few epochs on real files of other people: records used against records in the file, errors
against predicting zero.

    python benchmarks/real_data.py [mptrj lips oc20] [--epochs 3]

Needs the measured data (MACE_TRAIN_SHARED_DATA, default ../shared/data). About
five minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))
SETS = {  # name: its file, the flag that takes it, records in it, settings of its own
    "mptrj": ("mptrj/mptrj-random-1k.xyz", "xyz", 1000, ["--stress_weight", "10"]),
    "lips": ("lips/data.lmdb", "lmdb", 200, []),
    "oc20": ("oc20/s2ef_val_20_data.lmdb", "lmdb", 20, []),
}


def main() -> None:
    """Train on each set and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help="mptrj, lips or oc20; all unless given"
    )
    parser.add_argument("--epochs", type=int, default=3)
    asked = parser.parse_args()
    print(
        "set     records  used  dropped  F rmse meV/Å  predicting zero  S rmse meV/Å³", flush=True
    )
    for name in asked.sets or SETS:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, asked.epochs, Path(folder)), flush=True)


def row(name: str, epochs: int, folder: Path) -> str:
    """Make a model.json from the data, train, and compare with a network
    that predicts no forces.
    """
    file, kind, records, settings = SETS[name]
    data = [f"--{kind}_train", str(DATA / file)]
    model = folder / "model.json"
    run = folder / "run"
    command(
        "metadata.py",
        "init",
        *data,
        "--output_json",
        str(model),
        "--hidden_irreps",
        "16x0e+16x1o",
        "--max_ell",
        "2",
    )
    flags = [
        "--input_json",
        str(model),
        "--epochs",
        str(epochs),
        "--max_edges_per_batch",
        "15000",
        "--max_dropped",
        "0.01",
    ]
    command("model_utils/train_mace.py", *data, *flags, *settings, "--output_checkpoint", str(run))
    final = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    used = final["train"]["n_configs"] + final["valid"]["n_configs"]
    dropped = (run / "train.log").read_text().count("dropped")
    stress = final["valid"]["stress_rmse"]
    # the scale is the rms force component
    zero = 1000 * json.loads(model.read_text())["atomic_inter_scale"][0]
    return (
        f"{name:7s} {records:7d} {used:5d} {dropped:8d} "
        f"{1000 * final['valid']['forces_rmse']:13.1f} {zero:16.1f} "
        f"{'-' if stress is None else f'{1000 * stress:.2f}':>14s}"
    )


def command(*words: str) -> None:
    """Run one of our commands; its output is shown only where it fails."""
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
