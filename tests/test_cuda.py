"""What only a GPU can show; skipped without one.

``python benchmarks/gpu.py`` has the times, and runs these.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_memory import LOSS, many_waters, wide_network

from conftest import TINY, program
from model_utils import evaluate, model_loader, resume, train_mace
from model_utils.files import checkpoint
from model_utils.run import memory
from model_utils.run.step import loss_and_gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
STEPS = ("fast", "reference")
# what makes sums of a form have one order
IN_ORDER = {"fast": [], "reference": ["--deterministic"]}


@pytest.fixture
def train(tmp_path: Path, water_xyz: Callable[..., Path]) -> Callable[..., Path]:
    """Train on the GPU into a folder of the given name; returns its checkpoint."""
    description = tmp_path / "model.json"
    description.write_text(json.dumps(TINY))

    def go(name: str, *flags: str) -> Path:
        data = [
            "--xyz_train",
            str(water_xyz("train.xyz", 20)),
            "--xyz_val",
            str(water_xyz("val.xyz", 4, seed=1)),
        ]
        place = ["--input_json", str(description), "--output_checkpoint", str(tmp_path / name)]
        common = ["--device", "cuda", "--dtype", "float64", "--batch_size", "4", "--ema"]
        assert train_mace.main([*data, *place, *common, *flags]) == 0
        return tmp_path / name / f"{name}_checkpoint.pt"

    return go


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(path).tensors


def assert_equal(first: Path, second: Path) -> None:
    one, two = tensors(first), tensors(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("step", STEPS)
def test_the_same_run_twice_is_bitwise_equal(step: str, train: Callable[..., Path]) -> None:
    flags = ["--epochs", "3", "--step", step, *IN_ORDER[step]]
    assert_equal(train("one", *flags), train("two", *flags))


@pytest.mark.parametrize("step", STEPS)
def test_a_continued_run_is_bitwise_equal(step: str, train: Callable[..., Path]) -> None:
    whole = train("whole", "--epochs", "4", "--step", step, *IN_ORDER[step])
    part = train("part", "--epochs", "4", "--step", step, *IN_ORDER[step], "--max_steps", "7")
    assert resume.main(["--input_model", str(part), "--max_steps", "20", "--epochs", "4"]) == 0
    assert_equal(whole, part)


def test_fast_runs_with_the_flag_too(train: Callable[..., Path]) -> None:
    """torch refuses what has no fixed order."""
    train("run", "--epochs", "2", "--deterministic")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_waits_for_nothing(step: str) -> None:
    device = torch.device("cuda", 0)
    network = wide_network(step, "cuda")
    weights = model_loader.trainable(network.module)
    batches = [network.prepared(many_waters(n)).to(device) for n in (40, 50)]
    loss_and_gradients(network, weights, batches[:1], LOSS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradients(network, weights, batches[1:], LOSS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_batch_comes_by_one_pinned_copy() -> None:
    moved = many_waters(10).to(torch.device("cuda", 0))
    tensors = [moved.positions, moved.senders, *moved.labels["forces"]]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert torch.equal(moved.senders.cpu(), many_waters(10).senders)


def test_what_the_device_is_set_to(train: Callable[..., Path]) -> None:
    path = train("run", "--epochs", "1", "--dtype", "float32")
    computed_on = checkpoint.read(path).content["train_state"]["computed_on"]
    assert computed_on["tf32"] is False
    assert computed_on["cuda"] == torch.version.cuda


def test_a_command_has_memory_that_grows_in_segments() -> None:
    """Asked of a process of its own: the first use of the device settles it."""
    lines = [
        "import torch",
        "from model_utils import runtime",
        "runtime.start(device='cuda', dtype=torch.float32, threads=None, seed=1)",
        "torch.zeros(1, device='cuda')",
        "print(torch.cuda.memory._snapshot()['allocator_settings']['expandable_segments'])",
    ]
    done = program("\n".join(lines))
    assert done.stdout.split() == ["True"], done.stderr


def test_files_of_a_gpu_open_on_a_cpu(train: Callable[..., Path], tmp_path: Path) -> None:
    path = train("run", "--epochs", "2")
    assert {t.device.type for t in tensors(path).values()} == {"cpu"}
    errors = []
    for device in ("cuda", "cpu"):
        report = tmp_path / f"{device}.json"
        data = [
            "--xyz_path",
            str(tmp_path / "val.xyz"),
            "--output_json",
            str(report),
            "--device",
            device,
        ]
        assert evaluate.main(["--input_model", str(path.with_name("run_model.pt")), *data]) == 0
        errors.append(json.loads(report.read_text()))
    assert errors[0]["forces_rmse"] == pytest.approx(errors[1]["forces_rmse"], rel=1e-10)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_goes_on_in_little_memory(step: str) -> None:
    device = torch.device("cuda", 0)
    network, batch = wide_network(step, "cuda"), many_waters(2000).to(device)
    weights = model_loader.trainable(network.module)
    before = memory.peak(device, since_now=True)
    whole = loss_and_gradients(network, weights, [batch], LOSS)
    torch.cuda.synchronize()
    needed = memory.peak(device) - before
    memory.release(device)
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 0.6 * needed) / total
        )
        divided = loss_and_gradients(network, weights, [batch], LOSS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert float(divided.loss) == pytest.approx(float(whole.loss), rel=1e-12)
    for ours, theirs in zip(divided.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-11 * max(float(theirs.abs().max()), 1e-3)
        )


def test_steps_agree(train: Callable[..., Path]) -> None:
    fast, reference = (tensors(train(step, "--epochs", "2", "--step", step)) for step in STEPS)
    for name, ours in fast.items():
        torch.testing.assert_close(ours, reference[name], rtol=1e-7, atol=1e-9)


def test_the_measured_budget_is_used(train: Callable[..., Path]) -> None:
    path = train("auto", "--epochs", "1", "--max_edges_per_batch", "auto")
    assert checkpoint.read(path).content["train_state"]["config"]["max_edges_per_batch"] > 100
