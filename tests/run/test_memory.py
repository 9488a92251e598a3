"""What the memory does not hold: batches in parts with the same result, measured budgets,
a sentence at the end.

Memory is limited for real (the address space of a child process), and by a network that
refuses large batches.
"""

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import parity_cases as cases
from conftest import OF_TESTS, ROOT, TINY, in_the_battery, waters
from dataloader.batch import Batch, collate
from dataloader.dividing import halves
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from losses import Loss, Prediction
from model_utils import evaluate, model_loader, resume, train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models.network import Network, Parameters
from model_utils.ranks.group import ALONE
from model_utils.run import evaluation, memory
from model_utils.run.step import loss_and_gradients


@pytest.fixture(autouse=True)
def _collections_are_quick() -> Iterator[None]:
    """Memory is given back by a collection, which otherwise looks through all that other tests
    left: half a second each time.
    """
    gc.freeze()
    yield
    gc.unfreeze()


LOSS = Loss.of(energy=1.0, forces=10.0, stress=5.0, shapes={"forces": "huber"})


def mixed_batch() -> tuple[Batch, Callable[[slice], Batch]]:
    """Molecules and crystals of several heads, some labels missing; and any part of
    them collated by itself.
    """
    described = model_json.parse(json.dumps(cases.completed(dict(cases.BASE))), "model.json")
    structures = cases.structures(described.heads)
    graphs = [build_graph(s, described.r_max) for s in structures]

    def part(which: slice) -> Batch:
        numbers = range(len(structures))[which]
        return collate(
            structures[which],
            graphs[which],
            numbers,
            described.facts(),
            torch.float64,
            free_atoms_only=False,
        )

    return part(slice(None)), part


def tensors_of(batch: Batch) -> dict[str, Any]:
    flat = {
        f"{name}.{part}": getattr(label, part)
        for name, label in batch.labels.items()
        for part in label._fields
    }
    flat |= {f"features.{name}": value for name, value in batch.features.items()}
    return flat | {
        f.name: getattr(batch, f.name)
        for f in fields(batch)
        if f.name not in ("labels", "features")
    }


def test_halves_are_what_collate_makes_of_their_structures() -> None:
    whole, part = mixed_batch()
    seen = []

    def check(batch: Batch, first: int) -> None:
        alone = tensors_of(part(slice(first, first + batch.n_structures)))
        for name, ours in tensors_of(batch).items():
            same = (
                torch.equal(ours, alone[name]) if isinstance(ours, Tensor) else ours == alone[name]
            )
            assert same, (name, first, batch.n_structures)
        seen.append(batch.n_structures)
        if batch.n_structures > 1:
            left, right = halves(batch)
            check(left, first)
            check(right, first + left.n_structures)

    check(whole, 0)
    assert seen.count(1) == whole.n_structures > 3
    single = part(slice(0, 1))
    with pytest.raises(ValueError, match="single"):
        halves(single)


class Cramped:
    """A network for whose memory batches above some number of edges are too large;
    counts what it computes.
    """

    def __init__(self, inner: Network, edges: int) -> None:
        self.inner, self.module, self.kind, self.arithmetic = (
            inner,
            inner.module,
            inner.kind,
            inner.arithmetic,
        )
        self.gives = inner.gives
        self.edges, self.sizes = edges, list[int]()

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        if batch.n_edges > self.edges:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(batch.n_structures)
        return self.inner.outputs(parameters, batch, positions, shifts)


@pytest.fixture(params=["fast", "reference"])
def network(request: pytest.FixtureRequest) -> Network:
    described = model_json.parse(json.dumps(cases.completed(dict(cases.BASE))), "model.json")
    module = model_loader.build(described, torch.float64, 1)
    return model_loader.build_network(module, request.param, described)


def test_a_divided_step_has_the_loss_and_gradients_of_the_whole(network: Network) -> None:
    batch, _ = mixed_batch()
    weights = model_loader.trainable(network.module)
    whole = loss_and_gradients(network, weights, [batch, batch], LOSS)
    biggest = int(torch.bincount(batch.structure[batch.receivers]).max())
    for edges in (biggest, batch.n_edges // 2 + biggest, batch.n_edges):
        cramped = Cramped(network, edges)
        divided = loss_and_gradients(cramped, weights, [batch, batch], LOSS)
        assert sum(cramped.sizes) == 2 * batch.n_structures
        assert (len(cramped.sizes) > 2) == (edges < batch.n_edges)
        assert float(divided.loss) == pytest.approx(float(whole.loss), rel=1e-12)
        torch.testing.assert_close(divided.sums, whole.sums, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(divided.gradients, whole.gradients, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=0, atol=1e-12 * max(float(theirs.abs().max()), 1e-3)
            )


def test_a_divided_evaluation_has_the_same_errors(network: Network) -> None:
    batch, _ = mixed_batch()
    weights = model_loader.trainable(network.module)
    biggest = int(torch.bincount(batch.structure[batch.receivers]).max())
    found = []
    for form in (network, Cramped(network, biggest)):
        seen: list[int] = []

        def note(part: Batch, _: Prediction, seen: list[int] = seen) -> None:
            seen.extend(part.index)

        sums = evaluation.evaluate(
            form, weights, [batch], LOSS, torch.device("cpu"), note, everything=True
        )
        assert seen == list(batch.index)
        found.append(sums)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_a_structure_that_does_not_fit_is_named(network: Network) -> None:
    batch, _ = mixed_batch()
    weights = model_loader.trainable(network.module)
    per_structure = torch.bincount(batch.structure[batch.receivers])
    biggest = int(per_structure.argmax())
    cramped = Cramped(network, int(per_structure.max()) - 1)
    with (
        pytest.raises(
            InputError,
            match=rf"out of memory on cpu: frame {biggest} alone, with \d+ atoms and \d+ edges",
        ),
        memory.naming(lambda numbers: ", ".join(f"frame {i}" for i in numbers)),
    ):
        loss_and_gradients(cramped, weights, [batch], LOSS)


def test_other_errors_are_not_taken_for_a_full_memory(network: Network) -> None:
    batch, _ = mixed_batch()
    calls = []

    def broken(part: Batch) -> None:
        calls.append(part)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        memory.in_parts(broken, batch, "step")
    assert len(calls) == 1


# A memory that is full in earnest

LIMITED = """
import json, resource, sys
from pathlib import Path
import test_memory
from model_utils import model_loader, runtime
from model_utils.run import memory
from model_utils.run.step import loss_and_gradients

runtime.start_log()
network, batch = test_memory.wide_network("reference"), test_memory.many_waters(300)
weights = model_loader.trainable(network.module)
# code generation
loss_and_gradients(network, weights, [test_memory.many_waters(4)], test_memory.LOSS)
free = int(sys.argv[1]) * 2**20
size = memory._kilobytes(Path("/proc/self/status"), "VmSize")
resource.setrlimit(resource.RLIMIT_AS, (size + free, resource.RLIM_INFINITY))
assert memory.free(batch.positions.device) <= free
divided = loss_and_gradients(network, weights, [batch], test_memory.LOSS)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
whole = loss_and_gradients(network, weights, [batch], test_memory.LOSS)
worst = max(
    float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-3))
    for ours, theirs in zip(divided.gradients, whole.gradients)
)
print(json.dumps([float(divided.loss), float(whole.loss), worst]))
"""


def wide_network(kind: str, device: str = "cpu") -> Network:
    described = model_json.parse(json.dumps({**TINY, "hidden_irreps": "32x0e+32x1o"}), "model.json")
    module = model_loader.build(described, torch.float64, 1).to(device)
    return model_loader.build_network(module, kind, described)


def many_waters(n: int) -> Batch:
    facts = model_json.parse(json.dumps(TINY), "model.json").facts()
    structures = [
        Structure(
            identifier=f"water {i}",
            atomic_numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            labels={"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]},
        )
        for i, atoms in enumerate(waters(n))
    ]
    graphs = [build_graph(s, 3.0) for s in structures]
    return collate(structures, graphs, range(n), facts, torch.float64, free_atoms_only=False)


def test_a_step_goes_on_in_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "60"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": OF_TESTS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the memory did not hold a batch of 300 structures" in done.stdout + done.stderr
    divided, whole, worst = json.loads(done.stdout.splitlines()[-1])
    assert divided == pytest.approx(whole, rel=1e-12)
    assert worst < 1e-12


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", 2
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate"
    ),
    MemoryError(),
]
OTHERS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
    RuntimeError("Expected all tensors to be on the same device"),
]


def test_every_text_of_exhausted_memory_divides_a_batch_and_no_other() -> None:
    batch, _ = mixed_batch()
    for error in OUT_OF_MEMORY:
        assert (
            sum(memory.in_parts(refusing(batch.n_structures, error), batch, "step"))
            == batch.n_structures
        ), error
    for error in OTHERS:
        with pytest.raises(type(error), match=re.escape(str(error)[:20])):
            memory.in_parts(refusing(batch.n_structures, error), batch, "step")


def refusing(
    n_structures: int, error: BaseException, tried: list[int] | None = None
) -> Callable[[Batch], int]:
    """Counts structures of a batch, and refuses one of so many or more."""

    def compute(batch: Batch) -> int:
        if tried is not None:
            tried.append(batch.n_structures)
        if batch.n_structures >= n_structures:
            raise error
        return batch.n_structures

    return compute


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_does_not_try_again_what_did_not_fit(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing is remembered; on a device also not of other work,
    nor for smaller batches.
    """
    batch, part = mixed_batch()
    monkeypatch.setattr(memory, "_failed", {})
    monkeypatch.setattr(memory, "release", lambda _: None)
    monkeypatch.setattr(memory, "_device_of", lambda _: torch.device(device))
    tried: list[int] = []
    compute = refusing(batch.n_structures, OUT_OF_MEMORY[0], tried)
    n = batch.n_structures
    halved = [half.n_structures for half in halves(batch)]
    for what, expected in (("step", [n, *halved]), ("step", halved), ("evaluation", [n, *halved])):
        tried.clear()
        assert sum(memory.in_parts(compute, batch, what)) == n
        assert sorted(tried) == sorted(expected if device == "cuda" else [n, *halved])
    tried.clear()
    smaller = part(slice(0, n - 1))
    memory.in_parts(compute, smaller, "step")
    assert tried == [n - 1]


# Budgets that are measured


def test_the_first_trial_step_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded and compiled once is not memory of an edge."""
    from model_utils.run import budget

    steps: list[int] = []
    seen: list[int] = []

    class Data:
        n_edges = np.full(100, 100)
        n_atoms = np.full(100, 10)

        def __len__(self) -> int:
            return 100

        def batch(self, indices: list[int]) -> Any:
            return type("Taken", (), {"n_edges": 100 * len(indices)})()

        def names(self, indices: Any, shown: int = 5) -> str:
            return "?"

    def peak(device: torch.device, *, since_now: bool = False) -> int:
        seen.append(len(steps))
        return 0 if since_now else sum(steps[-1:]) * 10 + (10**9 if len(steps) == 1 else 0)

    monkeypatch.setattr(memory, "free", lambda _: 2 * 10**6)
    monkeypatch.setattr(memory, "peak", peak)
    taken = budget.measured_edges(
        lambda b: steps.append(b.n_edges), Data(), torch.device("cpu"), None, ALONE
    )  # type: ignore[arg-type]
    assert seen[0] == 1
    assert steps[0] == steps[1]
    assert taken == 10_000  # all of them: 10 bytes an edge


def test_auto_budget_is_a_number_from_then_on(
    tiny_json: Path, water_xyz: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz("train.xyz", 40)),
        "--epochs",
        "2",
    ]
    arguments += [
        "--max_edges_per_batch",
        "auto",
        "--batch_size",
        "8",
        "--output_checkpoint",
        str(tmp_path / "run"),
    ]
    assert train_mace.main([*arguments, "--max_steps", "3"]) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    [number] = map(int, re.findall(r"max_edges_per_batch auto: (\d+);", log))
    path = tmp_path / "run" / "run_checkpoint.pt"
    assert checkpoint.read(path).content["train_state"]["config"]["max_edges_per_batch"] == number
    assert train_mace.main([*arguments, "--max_steps", "4", "--resume", "auto"]) == 0
    assert resume.main(["--input_model", str(path), "--max_steps", "5"]) == 0
    assert checkpoint.read(path).content["train_state"]["step"] == 5
    assert (tmp_path / "run" / "train.log").read_text().count("max_edges_per_batch auto:") == 1
    data = ["--xyz_path", str(tmp_path / "train.xyz")]
    assert evaluate.main(["--input_model", str(path), *data, "--max_edges_per_batch", "auto"]) == 0


@in_the_battery
def test_auto_budget_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the free memory gives twice the budget; the growth of the process is measured,
    its free memory is given.
    """
    from dataloader.dataset import Dataset
    from model_utils.run import budget

    class Waters(Dataset):
        def __init__(self) -> None:
            self.places = np.zeros((10**6, 2))
            self._n_edges, self.taken = np.full(10**6, 100), list[int]()

        n_atoms = property(lambda self: np.full(10**6, 10))

        def batch(self, indices: Any) -> Any:
            self.taken.append(len(indices))
            return type("Taken", (), {"n_edges": 100 * len(indices), "to": lambda self, _: self})()

        def names(self, indices: Any, shown: int = 5) -> str:
            return "?"

    def step(batch: Any) -> None:
        np.ones(batch.n_edges * 125)  # a kilobyte an edge, touched and given back

    found = []
    monkeypatch.setattr(budget, "PROBING", float("inf"))  # however slow the machine is
    for gigabytes in (1, 2):
        monkeypatch.setattr(memory, "free", lambda _, g=gigabytes: g * 2**30)
        found.append(budget.measured_edges(step, Waters(), torch.device("cpu"), None, ALONE))
    assert found[0] == pytest.approx(0.5 * 2**30 / 1000, rel=0.2)
    assert found[1] == pytest.approx(2 * found[0], rel=0.2)
    assert budget.measured_edges(step, Waters(), torch.device("cpu"), 4, ALONE) <= 10**8


def test_the_limit_of_a_job_is_seen(tmp_path: Path) -> None:
    """Of all groups around the process; what was only read from files counts as free."""
    names = {
        "memory.max": "4000",
        "memory.current": "3000",
        "memory.stat": "active_file 500\ninactive_file 700",
    }
    older = {
        "limit_in_bytes": "4000",
        "usage_in_bytes": "3000",
        "stat": "total_active_file 1\ntotal_inactive_file 2",
    }
    for folder, files in (
        ("slurm/job_1", names),
        ("slurm/job_1/step_0", {**names, "memory.max": "max"}),
        ("memory/slurm", {f"memory.{name}": text for name, text in older.items()}),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(
        "3:memory:/slurm/elsewhere\n1:name=systemd:/\n0::/slurm/job_1/step_0\n"
    )
    assert memory._group_free(tmp_path / "own", tmp_path) == [1003, 2200]
    assert min(memory._group_free(), default=1) > 0


def test_auto_says_where_an_epoch_is_one_step(
    tiny_json: Path,
    water_xyz: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz("train.xyz", 30)),
        "--dry_run",
    ]
    words += ["--max_edges_per_batch", "auto", "--output_checkpoint", str(tmp_path / "run")]
    for more, batches in ([], 1), (["--batch_size", "9"], 3):
        assert train_mace.main([*words, *more]) == 0
        shown = capsys.readouterr().out
        assert ("an epoch is one step" in shown) == (batches == 1)
        assert f"({batches} batches)" in shown


def test_auto_is_refused_where_it_means_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train_mace.main(
            ["--input_json", "m.json", "--xyz_train", "t.xyz", "--max_edges_per_batch", "much"]
        )
        == 2
    )
    assert "expected" in capsys.readouterr().err
