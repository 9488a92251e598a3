"""How evenly steps are dealt, what adding costs, how far it scales: ``python
benchmarks/ranks.py --help``.

Parts: ``balance`` of four ways to share a step on the sizes of a data set; ``cost``, whether edges
and atoms predict the time of a part; ``plans``, time and memory of an epoch's order; ``links``,
time of the reduction by the α–β model; ``exact``, the share of a step that adding without rounding
takes; ``two``, two processes against one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.io import read, write
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataloader.batching import Budget, epoch_order, pack
from dataloader.data_file import SourceSpec
from dataloader.dataset import Dataset
from dataloader.dealing import balance, cost_of, deal
from dataloader.formats import format_of
from dataloader.labels import TO_PREDICT
from dataloader.needs import ModelFacts
from dataloader.sources import open_sources
from losses import Loss
from model_utils import model_loader
from model_utils.models import description as model_json
from model_utils.ranks.exact_sum import add_rounded, largest_entries, rounders
from model_utils.run.step import loss_and_gradients

PROCESSES = (8, 64, 512, 1024)
PER_PART = (4, 8, 16, 32, 64)  # structures on average
OVERHEAD = 1000.0  # cost of a batch besides its edges and atoms, in edges
MODELS = {"S": "64x0e+64x1o", "M": "128x0e+128x1o", "256, L=2": "256x0e+256x1o+256x2e"}


@dataclass(frozen=True)
class Link:
    """A network between processes."""

    name: str
    processes: int
    bandwidth: float  # bytes per second and process
    latency: float  # s

    def seconds(self, n_bytes: float) -> float:
        """Of an all-reduce: 2(R−1)/R · bytes/bandwidth + 2α·log₂R."""
        size = self.processes
        return 2 * (size - 1) / size * n_bytes / self.bandwidth + 2 * self.latency * np.log2(size)


LINKS = (
    Link("8 H100, NVLink", 8, 300e9, 5e-6),
    Link("64 GPUs, 400 Gb/s each", 64, 40e9, 15e-6),
    Link("1,024 GPUs, 400 Gb/s each", 1024, 40e9, 15e-6),
    Link("16 CPU nodes, 10 GbE", 16, 1.1e9, 50e-6),
)


def main() -> None:
    """Run the parts that were asked for."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "balance": show_balance,
        "cost": show_cost,
        "plans": show_plans,
        "links": show_links,
        "exact": show_exact,
        "two": show_two,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="structures, for balance, cost, exact and two")
    parser.add_argument("--r_max", type=float, default=6.0, help="cutoff, Å")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3, help="of `two`, interleaved")
    arguments = parser.parse_args()
    for name in arguments.parts:
        print(f"\n{name}", flush=True)
        parts[name](arguments)


def opened(path: Path, r_max: float, dtype: torch.dtype = torch.float32) -> Dataset:
    """All structures of a file for a network of all elements."""
    numbers = tuple(range(1, 104))
    facts = ModelFacts(
        atomic_numbers=numbers,
        heads=("Default",),
        atomic_energies=((0.0,) * len(numbers),),
        r_max=r_max,
    )
    sources = open_sources(
        [SourceSpec(path=path, format=format_of(path))], needs=TO_PREDICT, max_dropped=0.01
    )
    return Dataset(sources, facts, dtype)


def show_balance(arguments: argparse.Namespace) -> None:
    """Mean over largest cost of the processes in a step, by how the step is shared."""
    data = opened(arguments.data, arguments.r_max)
    draw = np.random.default_rng(1)
    cost = cost_of(data.n_edges, data.n_atoms)
    print(
        f"{len(data)} structures, drawn with replacement; largest "
        f"{cost.max() / cost.mean():.1f} times the mean"
    )
    print("processes  a part  fixed count  atoms budget  edges budget  dealt")
    for size in PROCESSES:
        for per_part in PER_PART:
            steps = max(3, min(60, 20_000 // (size * per_part)))
            ways = []
            for _ in range(steps):
                drawn = draw.integers(0, len(data), 3 * size * per_part + 3 * size)
                ways.append(_ways(data, cost, drawn, size, per_part))
            count, atoms, edges, dealt = np.mean(ways, axis=0)
            print(
                f"{size:9d}  {per_part:6d}  {count:11.3f}  {atoms:12.3f}  "
                f"{edges:12.3f}  {dealt:.4f}",
                flush=True,
            )


def _ways(
    data: Dataset, cost: NDArray[np.float64], drawn: NDArray[np.int64], size: int, per_part: int
) -> tuple[float, float, float, float]:
    """The balance of one step of so many processes in four ways."""
    order = drawn[: size * per_part]
    owner = np.repeat(np.arange(size), per_part)
    count = balance(cost[order] + OVERHEAD / per_part, owner, size)
    budgets = []
    for sizes in (data.n_atoms, data.n_edges):
        limit = int(max(sizes.max(), per_part * sizes.mean()))
        plan = pack(drawn, sizes, sizes, Budget(edges=limit))
        loads = np.array([cost[plan[k]].sum() + OVERHEAD for k in range(size)])
        budgets.append(float(loads.mean() / loads.max()))
    parts = deal(cost[order], size)
    loads = np.array([cost[order[part]].sum() + OVERHEAD for part in parts])
    return count, budgets[0], budgets[1], float(loads.mean() / loads.max())


def show_cost(arguments: argparse.Namespace) -> None:
    """Seconds of a part as a sum over edges, atoms and the part itself, and what
    of it is not explained.
    """
    torch.set_num_threads(1)
    data = opened(arguments.data, arguments.r_max)
    draw = np.random.default_rng(5)
    rows = []
    step = _step_of("M", data)
    for size in [1, 2, 4, 8, 12, 16] * 4:
        batch = data.batch(draw.integers(0, len(data), size).tolist())
        seconds = min(_timed(lambda batch=batch: step(batch)) for _ in range(2))
        rows.append((batch.n_edges, batch.n_atoms, 1.0, seconds))
    table = np.array(rows)
    known, measured = table[:, :3], table[:, 3]
    per_edge, per_atom, per_part = np.linalg.lstsq(
        known / measured[:, None], np.ones(len(rows)), rcond=None
    )[0]
    off = float(np.sqrt(np.mean((known @ [per_edge, per_atom, per_part] / measured - 1) ** 2)))
    print(
        f"{per_edge * 1e6:.2f} µs an edge, an atom {per_atom / per_edge:.1f} edges, a part "
        f"{per_part / per_edge:.0f}; residual {100 * off:.1f} % of the time"
    )


def _step_of(model: str, data: Dataset) -> Callable[..., object]:
    """Loss and gradients of a network of all elements."""
    fields = {
        "model_class": "ScaleShiftMACE",
        "r_max": data.facts.r_max,
        "atomic_numbers": list(data.facts.atomic_numbers),
        "atomic_energies": {str(number): 0.0 for number in data.facts.atomic_numbers},
        "avg_num_neighbors": 60.0,
        "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0,
        "hidden_irreps": MODELS[model],
    }
    description = model_json.parse(json.dumps(fields), "model.json")
    module = model_loader.build(description, data.dtype, 1)
    network = model_loader.build_network(module, "fast", description)
    weights = model_loader.trainable(module)
    return lambda batch: loss_and_gradients(network, weights, [batch], Loss.of())


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show_plans(arguments: argparse.Namespace) -> None:
    """Time and memory of an epoch's order and its cut into batches, and of
    dealing a step of 17 a part.
    """
    for n in (10**6, 10**7, 10**8):
        began = time.perf_counter()
        order = epoch_order(n, 0, 0)
        made = time.perf_counter() - began
        plan = pack(order, np.ones(1, np.int64), None, Budget(structures=64))
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        size_of_it = order.nbytes / 2**30
        print(
            f"{n:>11,d} structures: order {made:.2f} s, {size_of_it:.2f} GiB; {len(plan):,d} "
            f"steps; peak {used:.1f} GiB"
        )
        del order, plan
    draw = np.random.default_rng(0)
    for size in PROCESSES:
        seconds = _timed(lambda size=size: deal(draw.lognormal(0, 1, 17 * size), size))
        print(f"{size:>5d} parts of 17: dealt in {1e3 * seconds:.1f} ms")


def show_links(arguments: argparse.Namespace) -> None:
    """Time of one reduction of the gradient in float64 (computed, not measured)."""
    weights = {"S": 1.15e6, "M": 4.7e6, "256, L=2": 18e6}
    print(f"{'':10s}" + "".join(f"{link.name:>28s}" for link in LINKS))
    for name, n in weights.items():
        print(f"{name:10s}" + "".join(f"{1e3 * link.seconds(8 * n):25.2f} ms" for link in LINKS))


def show_exact(arguments: argparse.Namespace) -> None:
    """The share of a step of at least 40,000 edges that adding without
    rounding takes, for one part.
    """
    torch.set_num_threads(1)
    data = opened(arguments.data, arguments.r_max)
    enough = int(np.searchsorted(np.cumsum(data.n_edges), 40_000)) + 1
    batch = data.batch(list(range(enough)))
    step = _step_of("M", data)
    step(batch)
    seconds = min(_timed(lambda: step(batch)) for _ in range(3))
    gradients = step(batch).gradients  # type: ignore[attr-defined]
    total = [torch.zeros(gradient.shape, dtype=torch.float64) for gradient in gradients]

    def add() -> None:
        constants = rounders(largest_entries([gradients], torch.device("cpu")), 8)
        add_rounded(total, gradients, constants)

    exact = min(_timed(add) for _ in range(5))
    n = sum(gradient.numel() for gradient in gradients)
    share = 100 * exact / seconds
    print(
        f"{batch.n_edges} edges, {n / 1e6:.1f} M weights: step {seconds:.2f} s, adding "
        f"{1e3 * exact:.1f} ms, {share:.1f} %"
    )


def show_two(arguments: argparse.Namespace) -> None:
    """Whole commands of two processes against one, with the same two parts: seconds of a step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = read(arguments.data, ":52")
        write(folder / "train.xyz", frames, format="extxyz")
        write(folder / "valid.xyz", frames[:2], format="extxyz")
        numbers = sorted({number for atoms in frames for number in atoms.numbers.tolist()})
        fields = {
            "model_class": "ScaleShiftMACE",
            "r_max": arguments.r_max,
            "atomic_numbers": numbers,
        }
        fields |= {
            "atomic_energies": {str(number): 0.0 for number in numbers},
            "avg_num_neighbors": 60.0,
        }
        fields |= {
            "atomic_inter_scale": 1.0,
            "atomic_inter_shift": 0.0,
            "hidden_irreps": MODELS["M"],
        }
        (folder / "model.json").write_text(json.dumps(fields))
        for round_ in range(arguments.rounds):
            times = {size: _seconds_of(size, folder, round_) for size in (1, 2)}
            print(
                f"one {times[1]:.2f} s a step, two {times[2]:.2f} s: "
                f"{times[1] / times[2]:.2f} times",
                flush=True,
            )


def _seconds_of(size: int, folder: Path, round_: int) -> float:
    """Seconds of a step of all structures, the best of six."""
    python = Path(sys.executable)
    torchrun = [str(python.with_name("torchrun")), "--standalone", f"--nproc-per-node={size}"]
    launch = [str(python)] if size == 1 else torchrun
    run = folder / f"{size}-{round_}"
    words = ["--input_json", folder / "model.json", "--xyz_train", folder / "train.xyz"]
    words += [
        "--xyz_val",
        folder / "valid.xyz",
        "--step_parts",
        2,
        "--device",
        "cpu",
        "--output_checkpoint",
        run,
    ]
    words += [
        "--batch_size",
        26,
        "--accumulate_batches",
        2,
        "--epochs",
        6,
        "--no_export_mace_model",
    ]
    script = ROOT / "model_utils" / "train_mace.py"
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), *map(str, words)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(min(record["perf"]["seconds"] for record in records if record["kind"] == "train"))


if __name__ == "__main__":
    main()
