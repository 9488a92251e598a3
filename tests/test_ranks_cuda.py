"""Several processes on GPUs, one for each, and one alone over NCCL; skipped without a GPU,
but for one over gloo.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase.io import write
from ranks.launching import differences
from ranks.test_adding import tensors_of_parts

from conftest import HANGING, ROOT, TINY, waters
from model_utils.ranks.exact_sum import add_rounded, largest_entries, rounders

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def total_on(device: str, parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    there = [[tensor.to(device) for tensor in part] for part in parts]
    constants = rounders(largest_entries(there, torch.device(device)), len(parts))
    total = [torch.zeros(tensor.shape, dtype=torch.float64, device=device) for tensor in parts[0]]
    for part in there:
        add_rounded(total, part, constants)
    return [tensor.cpu() for tensor in total]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_one_process_adds_over_a_backend_as_alone(device: str) -> None:
    """Over NCCL on a single GPU; over gloo on a CPU, which shows that the test can be run."""
    own = [path for path in [os.environ.get("PYTHONPATH", "")] if path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *own])}
    words = [sys.executable, "-m", "ranks.one_over", device]
    done = subprocess.run(
        words, env=env, capture_output=True, text=True, timeout=HANGING, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["the same bits"], done.stderr


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_on_the_device_is_that_of_the_processor(dtype: torch.dtype) -> None:
    for seed in range(20):
        parts = tensors_of_parts(seed, 8, dtype)
        assert all(map(torch.equal, total_on("cuda", parts), total_on("cpu", parts)))


def trained(size: int, folder: Path) -> Path:
    """A run of so many processes on as many GPUs."""
    torchrun = [
        str(Path(sys.executable).with_name("torchrun")),
        "--standalone",
        f"--nproc-per-node={size}",
    ]
    script = str(ROOT / "model_utils" / "train_mace.py")
    words = ["--input_json", folder / "tiny.json", "--xyz_train", folder / "train.xyz"]
    words += [
        "--xyz_val",
        folder / "valid.xyz",
        "--batch_size",
        3,
        "--accumulate_batches",
        2,
        "--epochs",
        3,
        "--ema",
    ]
    words += [
        "--deterministic",
        "--device",
        "cuda",
        "--step_parts",
        8,
        "--output_checkpoint",
        folder / f"run{size}",
    ]
    subprocess.run([*torchrun, script, *map(str, words)], check=True, timeout=HANGING)
    return folder / f"run{size}"


@needs_cuda
def test_nccl_gives_the_run_of_one_device(tmp_path: Path) -> None:
    """One process over NCCL against several where there are so many
    devices; else against itself.
    """
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    for part, n in (("train", 14), ("valid", 5)):
        write(tmp_path / f"{part}.xyz", waters(n), format="extxyz")
    sizes = [size for size in (1, 2, 4, 8) if size <= torch.cuda.device_count()]
    runs = [trained(size, tmp_path) for size in sizes]
    for run in runs[1:]:
        assert differences(runs[0], run) == []
