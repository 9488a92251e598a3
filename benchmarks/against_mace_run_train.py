"""Whole processes, start to printed table: ours against mace_run_train, alternating.

    python benchmarks/against_mace_run_train.py [--settings mace01|acac] [--rounds 3] [--ours_only]

mace01: the published settings, 32x0e, float64, 50 epochs with stage two; about 5 minutes per round
on two cores. acac: 128x0e+128x1o, float32, batches of 10, 10 epochs with EMA; about 8 minutes. Ours
runs twice a round: as the first run on a machine, which compiles the kernels, and as a later one,
which finds them in the cache; both caches are new folders. Needs the measured data
(MACE_TRAIN_SHARED_DATA, default ../shared/data).
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("MACE_TRAIN_SHARED_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training, as both sides are told to do it."""

    train: Path
    test: Path
    ours: str  # flags
    mace: str
    init: str = ""  # flags of metadata.py, where a model.json is to be made first; not timed


SETTINGS = {
    "mace01": Settings(
        train=DATA / "solvent_xtb/solvent_xtb_train_200.xyz",
        test=DATA / "solvent_xtb/solvent_xtb_test.xyz",
        ours=f"--config {ROOT}/configs/solvent_xtb_mace01.yaml",
        mace=(
            "--model MACE --num_interactions 2 --num_channels 32 --max_L 0 --correlation 2 --r_max "
            "4.0 --max_ell 2 --valid_fraction 0.1 --energy_key energy_xtb --forces_key forces_xtb "
            "--default_dtype float64 --batch_size 10 --valid_batch_size 10 --max_num_epochs 50 "
            "--swa --start_swa 36 --eval_interval 2 --energy_weight 1 --forces_weight 100"
        ),
    ),
    "acac": Settings(
        train=DATA / "acac/train_300K.xyz",
        test=DATA / "acac/test_MD_300K.xyz",
        init=(
            "--preset medium --E0s "
            '{"H":-13.568422178253735,"C":-1026.8538996116154,"O":-2037.796869412825}'
        ),
        ours=(
            "--valid_fraction 0.1 --dtype float32 --batch_size 10 --epochs 10 --ema --ema_decay "
            "0.99 --lr 0.01 --energy_weight 225 --forces_weight 1000"
        ),
        mace=(
            "--model MACE --num_interactions 2 --num_channels 128 --max_L 1 --correlation 3 "
            "--r_max 5.0 --max_ell 3 --E0s "
            "{1:-13.568422178253735,6:-1026.8538996116154,8:-2037.796869412825} --valid_fraction "
            "0.1 --energy_key energy --forces_key forces --default_dtype float32 --batch_size 10 "
            "--valid_batch_size 10 --max_num_epochs 10 --ema --ema_decay 0.99 --lr 0.01 "
            "--energy_weight 225 --forces_weight 1000"
        ),
    ),
}


def main() -> None:
    """Run both alternately and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", choices=SETTINGS, default="mace01")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours_only", action="store_true")
    asked = parser.parse_args()
    print("who              seed  seconds  CPU s   energy meV/atom  forces meV/Å", flush=True)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as caches:
        for seed in range(123, 123 + asked.rounds):
            first = Path(caches) / str(seed)
            trainings = {
                "ours, first": partial(ours, cache=first),
                "ours, later": partial(ours, cache=first),
                "mace_run_train": partial(mace, cache=first),
            }
            for who, run in trainings.items():
                if asked.ours_only and who == "mace_run_train":
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    seconds, cpu, energy, forces = run(SETTINGS[asked.settings], seed, Path(folder))
                rows.setdefault(who, []).append((seconds, energy, forces))
                print(
                    f"{who:15s}  {seed}  {seconds:7.1f}  {cpu:6.1f}  "
                    f"{energy:15.2f}  {forces:12.2f}",
                    flush=True,
                )
    for who, runs in rows.items():
        seconds, energy, forces = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{who:15s}  median {seconds:5.1f}          {energy:15.2f}  {forces:12.2f}")


def ours(
    settings: Settings, seed: int, folder: Path, cache: Path
) -> tuple[float, float, float, float]:
    """Our command; the errors are those of the table it prints."""
    flags = [
        *settings.ours.split(),
        "--xyz_train",
        str(settings.train),
        "--xyz_test",
        str(settings.test),
    ]
    if settings.init:
        described = str(folder / "model.json")
        init = [
            str(ROOT / "metadata.py"),
            "init",
            "--xyz_train",
            str(settings.train),
            "--output_json",
            described,
        ]
        timed([sys.executable, *init, *settings.init.split()], folder, cache)
        flags += ["--input_json", described]
    flags += ["--seed", str(seed), "--output_checkpoint", str(folder / "run")]
    seconds, cpu, _ = timed(
        [sys.executable, str(ROOT / "model_utils/train_mace.py"), *flags], folder, cache
    )
    final = json.loads((folder / "run/metrics.jsonl").read_text().splitlines()[-1])["test"]
    return seconds, cpu, 1000 * final["energy_rmse_per_atom"], 1000 * final["forces_rmse"]


def mace(
    settings: Settings, seed: int, folder: Path, cache: Path
) -> tuple[float, float, float, float]:
    """mace_run_train; the errors are those of the last table it prints (the model of stage two)."""
    script = str(Path(sys.executable).parent / "mace_run_train")
    flags = [
        "--train_file",
        str(settings.train),
        "--test_file",
        str(settings.test),
        "--seed",
        str(seed),
    ]
    flags += ["--work_dir", str(folder), "--device", "cpu", "--plot", "False", "--name", "bench"]
    seconds, cpu, shown = timed([script, *settings.mace.split(), *flags], folder, cache)
    rows = re.findall(
        r"\|\s*(?:Default_Default|\S*[Dd]efault\S*|test\S*)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|",
        shown,
    )
    energy, forces = rows[-1]
    return seconds, cpu, float(energy), float(forces)


def timed(command: list[str], folder: Path, cache: Path) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and output of a process, which keeps its kernels in ``cache``."""
    before = os.times()
    began = time.monotonic()
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
    seconds = time.monotonic() - began
    after = os.times()
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return seconds, cpu, done.stdout + done.stderr


if __name__ == "__main__":
    main()
