"""Whole processes, start to printed table: ours against mace_run_train at the mace01 settings, alternating.

    python benchmarks/against_mace_run_train.py [--rounds 3] [--ours_only]

Needs the measured data (MACE_TRAIN_SHARED_DATA, default ../shared/data). About 3.5 minutes per round on two cores.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data")) / "solvent_xtb"
TRAIN, TEST = DATA / "solvent_xtb_train_200.xyz", DATA / "solvent_xtb_test.xyz"
MACE_SETTINGS = [
    "--model",
    "MACE",
    "--num_interactions",
    "2",
    "--num_channels",
    "32",
    "--max_L",
    "0",
    "--correlation",
    "2",
    "--r_max",
    "4.0",
    "--max_ell",
    "2",
    "--valid_fraction",
    "0.1",
    "--energy_key",
    "energy_xtb",
    "--forces_key",
    "forces_xtb",
    "--device",
    "cpu",
    "--default_dtype",
    "float64",
    "--batch_size",
    "10",
    "--valid_batch_size",
    "10",
    "--max_num_epochs",
    "50",
    "--swa",
    "--start_swa",
    "36",
    "--eval_interval",
    "2",
    "--energy_weight",
    "1",
    "--forces_weight",
    "100",
    "--plot",
    "False",
    "--name",
    "bench",
]


def main() -> None:
    """Run both alternately and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours_only", action="store_true")
    asked = parser.parse_args()
    print("who              seed  seconds  CPU s   energy meV/atom  forces meV/Å", flush=True)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(123, 123 + asked.rounds):
        for who, run in (("ours", ours), ("mace_run_train", mace)):
            if who == "ours" or not asked.ours_only:
                with tempfile.TemporaryDirectory() as folder:
                    seconds, cpu, energy, forces = run(seed, Path(folder))
                rows.setdefault(who, []).append((seconds, energy, forces))
                print(f"{who:15s}  {seed}  {seconds:7.1f}  {cpu:6.1f}  {energy:15.2f}  {forces:12.2f}", flush=True)
    for who, found in rows.items():
        seconds, energy, forces = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{who:15s}  median {seconds:5.1f}          {energy:15.2f}  {forces:12.2f}")


def ours(seed: int, folder: Path) -> tuple[float, float, float, float]:
    """Our command; the errors are those of the table it prints."""
    flags = ["--config", str(ROOT / "configs/solvent_xtb_mace01.yaml"), "--xyz_train", str(TRAIN)]
    flags += ["--xyz_test", str(TEST), "--seed", str(seed), "--output_checkpoint", str(folder / "run")]
    seconds, cpu, _ = timed([sys.executable, str(ROOT / "model_utils/train_mace.py"), *flags], folder)
    final = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])["test"]
    return seconds, cpu, 1000 * final["energy_rmse_per_atom"], 1000 * final["forces_rmse"]


def mace(seed: int, folder: Path) -> tuple[float, float, float, float]:
    """mace_run_train; the errors are those of the last table it prints (the model of stage two)."""
    script = str(Path(sys.executable).parent / "mace_run_train")
    flags = ["--train_file", str(TRAIN), "--test_file", str(TEST), "--seed", str(seed), "--work_dir", str(folder)]
    seconds, cpu, shown = timed([script, *MACE_SETTINGS, *flags], folder)
    rows = re.findall(r"\|\s*(?:Default_Default|\S*[Dd]efault\S*|test\S*)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|", shown)
    energy, forces = rows[-1]
    return seconds, cpu, float(energy), float(forces)


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and output of a process."""
    before, began = os.times(), time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, os.times()
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, done.stdout + done.stderr


if __name__ == "__main__":
    main()
