"""Rates and memory of reading LMDBs: ``python benchmarks/lmdb_reading.py FOLDER [--rows 1.0]``.

FOLDER gets synthetic shards (lmdb_shards.py; 15 GB at ``--rows 1``) and is used again where they
are there. Prints: indexing of OC20-like and of small rows, also interrupted and continued; counting
of edges; opening of a kept index; resident memory of a training process at 10⁴ and 10⁶ rows; and
structures per second with neighbour lists against mace-torch's own loader on the same `.aselmdb`,
same workers, in turn. Rates are per second of wall clock and per second of processor time of one
core: on a machine that is shared the second is the one to compare.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
R_MAX = 5.0
LOADED = 3000  # structures delivered by each loader in one round


def main() -> None:
    """Run what is asked for, everything unless told."""
    parts: dict[str, Callable[[Path, float], None]] = {
        "index": index_rates,
        "edges": edge_rate,
        "open": opening,
        "memory": training_memory,
        "loaders": loaders,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=float, default=1.0, help="share of the 10⁵ and 10⁶ rows")
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts:
        parts[name](arguments.folder, arguments.rows)


def shard(folder: Path, kind: str, n: int) -> Path:
    """A synthetic shard; written where it is not there."""
    path = folder / f"{kind}-{n}.{'aselmdb' if kind == 'aselmdb' else 'lmdb'}"
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, str(ROOT / "benchmarks/lmdb_shards.py"), kind, str(n), temporary],
            check=True,
        )
        temporary.rename(path)
    return path


def forget_index(path: Path) -> None:
    """Remove what an earlier round kept."""
    for entry in path.parent.glob(f"{path.name}.*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def timed(what: str, rows: int) -> Iterator[None]:
    """Print the rates of what happens inside, children included."""

    def spent() -> float:
        return sum(
            usage.ru_utime + usage.ru_stime
            for usage in (
                resource.getrusage(resource.RUSAGE_SELF),
                resource.getrusage(resource.RUSAGE_CHILDREN),
            )
        )

    began = time.perf_counter()
    before = spent()
    yield
    wall = time.perf_counter() - began
    busy = spent() - before
    print(
        f"{what}: {rows} rows, {wall:.1f} s, {rows / wall:.0f} rows/s, {rows / busy:.0f} "
        "rows/s of one core",
        flush=True,
    )


OPEN = """
import sys, time
from pathlib import Path
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_shards.lmdb_source import LmdbSource
began = time.perf_counter()
source = LmdbSource(Path(sys.argv[1]), LabelKeys(), needs=TO_TRAIN, max_dropped=0.001)
print(len(source), time.perf_counter() - began)
"""


def opened(path: Path) -> tuple[int, float]:
    """Open a source in a process of its own: number of rows, seconds."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, path], cwd=ROOT, check=True, capture_output=True, text=True
    )
    n, seconds = done.stdout.split()
    return int(n), float(seconds)


def index_rates(folder: Path, share: float) -> None:
    """Indexing, and once more with a kill -9 in the middle."""
    for kind, full in (("oc20", 100_000), ("small", 1_000_000)):
        n = int(full * share)
        path = shard(folder, kind, n)
        forget_index(path)
        with timed(f"index {kind}", n):
            assert opened(path)[0] == n
    whole = {entry.name: entry.read_bytes() for entry in folder.glob(f"{path.name}.*.index")}
    forget_index(path)
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, path], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    work = folder / f"{next(iter(whole))}.building"
    while len(list(work.glob("0*"))) < 5 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = len(list(work.glob("0*")))
    assert opened(path)[0] == n
    same = whole == {
        entry.name: entry.read_bytes() for entry in folder.glob(f"{path.name}.*.index")
    }
    print(
        f"index {kind} killed after {made} parts and continued: "
        f"{'the same bytes' if same else 'DIFFERENT'}"
    )


def edge_rate(folder: Path, share: float) -> None:
    """Counting edges of 54 atoms."""
    from dataloader.labels import TO_TRAIN, LabelKeys
    from dataloader.lmdb_shards.lmdb_source import LmdbSource

    n = max(int(20_000 * share), 2000)
    path = shard(folder, "aselmdb", n)
    source = LmdbSource(path, LabelKeys(), needs=TO_TRAIN, max_dropped=0.001)
    for entry in folder.glob(f"{path.name}.*.edges-*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    with timed(f"count edges at {R_MAX:g} Å, 54 atoms", n):
        counts = source.edges(R_MAX)
    print(f"  {counts.mean():.0f} edges a structure")


def opening(folder: Path, share: float) -> None:
    """Opening a kept index."""
    n = int(1_000_000 * share)
    path = shard(folder, "small", n)
    opened(path)
    times = sorted(opened(path)[1] for _ in range(5))
    print(
        f"open the kept index of {n} rows: {times[2]:.2f} s (median of 5, {times[0]:.2f} "
        f"to {times[-1]:.2f})"
    )


TRAIN = """
import os, sys, time
from model_utils import train_mace
from model_utils.run import closing, fit
step = fit._Run._optimizer_step
def first(self, batches):
    step(self, batches)
    fit._Run._optimizer_step = step
    print("FIRST", time.time() - float(os.environ["BEGAN"]), time.process_time())
fit._Run._optimizer_step = first
def resident(*_):
    lines = [line.split() for line in open("/proc/self/status")]
    print("RSS", *[int(words[1]) / 1024 for words in lines if words[0] in ("RssAnon:", "RssFile:")])
closing.report_best = resident
sys.exit(train_mace.main(sys.argv[1:]))
"""


def training_memory(folder: Path, share: float) -> None:
    """Resident memory after 200 steps of training, its own and that of mapped files;
    time to the first step.
    """
    model = {
        "model_class": "ScaleShiftMACE", "r_max": 3.0, "atomic_numbers": list(range(1, 21)),
        "avg_num_neighbors": 5.0, "atomic_energies": [0.0] * 20, "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0, "hidden_irreps": "4x0e", "max_ell": 1, "correlation": 2,
        "radial_MLP": [8], "MLP_irreps": "4x0e",
    }  # fmt: skip
    (folder / "tiny.json").write_text(json.dumps(model))
    used = {}
    for n in (10_000, int(1_000_000 * share)):
        path = shard(folder, "small", n)
        flags = [
            "--input_json",
            folder / "tiny.json",
            "--lmdb_train",
            path,
            "--lmdb_val",
            shard(folder, "small", 10_000),
        ]
        flags += [
            "--lmdb_val_samples",
            "50",
            "--max_steps",
            "200",
            "--validate_every_steps",
            "200",
            "--overwrite",
        ]
        command = [sys.executable, "-c", TRAIN, *flags, "--output_checkpoint", folder / "run"]
        opened(path)  # the index is kept
        environment = os.environ | {"BEGAN": str(time.time())}
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        used[n] = [float(megabytes) for megabytes in done.stdout.split("RSS")[1].split()[:2]]
        wall, busy = map(float, done.stdout.split("FIRST")[1].split()[:2])
        print(f"first step at {n} rows: after {wall:.1f} s, {busy:.1f} s of one core")
    (small, (low, low_mapped)), (large, (high, high_mapped)) = used.items()
    print(
        f"training process: {low:.0f} MB at {small} rows, {high:.0f} MB at {large} rows, "
        f"{high - low:+.0f} MB"
    )
    print(
        f"  and pages of mapped files, which the kernel takes back: {low_mapped:.0f} and "
        f"{high_mapped:.0f} MB"
    )


OURS = """
import sys, time, json
import torch, numpy as np
from pathlib import Path
from dataloader.needs import ModelFacts
from dataloader.dataset import Dataset
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_shards.lmdb_source import LmdbSource
from dataloader.loader import Loader
torch.set_num_threads(1)
path, workers, n = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
numbers = (1, 6, 8, 26)
e0s = ((0.0,) * 4,)
facts = ModelFacts(atomic_numbers=numbers, heads=("Default",), atomic_energies=e0s, r_max=5.0)
source = LmdbSource(path, LabelKeys(), needs=TO_TRAIN, max_dropped=0.001)
data = Dataset([source], facts, torch.float32)
order = np.random.default_rng(0).permutation(len(data))[:n]
plan = [order[i : i + 10] for i in range(0, n, 10)]
loader = Loader(data, num_workers=workers)
next(iter(loader.batches(plan[:4])))
edges, began = 0, time.perf_counter()
for batch in loader.batches(plan):
    edges += batch.n_edges
print(json.dumps([n / (time.perf_counter() - began), edges / n]))
"""
THEIRS = """
import sys, time, json, warnings
warnings.filterwarnings("ignore")
import torch, numpy as np
from mace.data.lmdb_dataset import LMDBDataset
from mace.tools import AtomicNumberTable, torch_geometric
torch.set_num_threads(1)
path, workers, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = LMDBDataset(path, r_max=5.0, z_table=AtomicNumberTable([1, 6, 8, 26]))
order = np.random.default_rng(0).permutation(len(data))[:n]
part = torch.utils.data.Subset(data, order.tolist())
loader = torch_geometric.dataloader.DataLoader(
    part, batch_size=10, num_workers=workers, persistent_workers=workers > 0
)
if workers:
    iterator = iter(loader)
edges, began = 0, time.perf_counter()
for batch in loader:
    edges += batch.edge_index.shape[1]
print(json.dumps([n / (time.perf_counter() - began), edges / n]))
"""


def loaders(folder: Path, share: float) -> None:
    """Ours against mace-torch's, in turn, three rounds; packed rows with their edges besides."""
    path = shard(folder, "aselmdb", max(int(20_000 * share), 2000))
    packed = folder / "packed"
    if not packed.exists():
        flags = ["--input", path, "--output_dir", packed, "--r_max", str(R_MAX)]
        subprocess.run(
            [sys.executable, "dataloader/pack.py", *map(str, flags)],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    n = min(LOADED, max(int(20_000 * share), 2000))
    for workers in (0, 1):
        rates: dict[str, list[float]] = {}
        for _ in range(3):
            for name, code, data in (
                ("ours", OURS, path),
                ("mace-torch", THEIRS, path),
                ("ours, packed", OURS, packed),
            ):
                command = [sys.executable, "-c", code, data, workers, n]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(
                    list(map(str, command)),
                    cwd=ROOT,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    print(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
                    continue
                rate, edges = json.loads(done.stdout.strip().splitlines()[-1])
                rates.setdefault(name, []).append(rate)
        medians = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
        ratio = (
            medians.get("ours", 0) / medians["mace-torch"]
            if "mace-torch" in medians
            else float("nan")
        )
        text = ", ".join(f"{name} {rate:.0f}/s" for name, rate in medians.items())
        print(
            f"structures delivered, {workers} worker(s), {edges:.0f} edges: {text}; ours "
            f"is {ratio:.1f} times",
            flush=True,
        )


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
