"""What a process sets before CUDA is used, and which arithmetic libraries may take
there; no GPU is needed.
"""

import json
import os
import sys
from collections.abc import Iterator

import pytest
import torch

from conftest import TINY
from model_utils import runtime
from model_utils.errors import InputError
from model_utils.models import build, mace_import
from model_utils.models import description as model_json


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    for name in runtime.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    yield
    for name in runtime.ALLOCATOR:
        os.environ.pop(name, None)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def start(device: str = "cpu", *, deterministic: bool = False) -> torch.device:
    return runtime.start(
        device=device, dtype=torch.float32, threads=1, seed=1, deterministic=deterministic
    )


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    return chosen


@pytest.mark.parametrize(("name", "number"), [("cuda", 0), ("auto", 0), ("cuda:1", 1)])
def test_the_device_that_is_asked_for_is_that_of_every_library(
    name: str, number: int, two_devices: list[torch.device]
) -> None:
    assert start(name) == torch.device("cuda", number)
    assert two_devices == [torch.device("cuda", number)]


def test_a_device_that_is_not_there_is_refused(two_devices: list[torch.device]) -> None:
    with pytest.raises(InputError, match="this machine has 2 CUDA device"):
        start("cuda:2")
    assert two_devices == []


def test_float32_products_are_float32_whatever_the_environment_says(
    two_devices: list[torch.device],
) -> None:
    # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE does in NVIDIA's containers
    torch.set_float32_matmul_precision("high")
    device = start("cuda")
    assert torch.backends.cuda.matmul.allow_tf32 is False
    assert runtime.computing(device)["tf32"] is False
    torch.set_float32_matmul_precision("high")
    before = {"tf32": False}
    said = list(runtime.not_bitwise({}, {}, before, runtime.computing(device)))
    assert "tf32 False → True" in said
    assert "tf32" not in runtime.computing(torch.device("cpu"))


def test_blocks_of_memory_may_grow_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    del os.environ["PYTORCH_CUDA_ALLOC_CONF"]
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    start()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_memory_is_not_filled_before_it_is_written() -> None:
    start(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is False  # type: ignore[attr-defined]


def test_convolutions_of_cuequivariance_are_not_fused_in_training() -> None:
    assert mace_import.acceleration_config("cueq").conv_fusion is False


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_torchscript_is_left_alone_on_a_gpu(device: str) -> None:
    try:
        mace_import.choose_executor(torch.device(device))
        newer = torch._C._jit_set_profiling_executor(False)
    finally:
        mace_import.choose_executor(torch.device("cpu"))
    assert newer == (device == "cuda")


def test_cuequivariance_without_its_kernels_is_refused_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(build.AVAILABLE, "cueq", True)
    monkeypatch.setitem(sys.modules, "cuequivariance_ops_torch", None)
    described = model_json.parse(json.dumps(TINY), "a test")
    with pytest.raises(InputError, match="cuequivariance-ops-torch-cu12 or -cu13, which cannot"):
        build.accelerated_module(described, torch.float32, "cueq", torch.device("cuda"))
