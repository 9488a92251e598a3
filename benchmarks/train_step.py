"""Time of one training step (energies, forces, loss, gradient of every parameter) by each form of the network.

    python benchmarks/train_step.py                                       # mace-torch's own step against the fast one
    python benchmarks/train_step.py --models M --data periodic --dtype float64 --rounds 3
    python benchmarks/train_step.py --forms mace torch                    # the fast algebra without a compiler
    python benchmarks/train_step.py --elements 85                         # a table of 85 elements, 17 of them present

Forms take turns in fresh processes, each on the same generated structures and weights. A step is repeated for half a
second at a time; only stretches during which other processes used less than an eighth of a core count, and where
there are too few of them no ratio is printed. "mace" is mace-torch's module on a prepared dictionary, so its data
path is free; the fast step makes its orders of atoms and edges within the step. Neither has an optimizer or a loader.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODELS = {"S": "64x0e", "M": "128x0e+128x1o"}
FORMS = ("mace", "reference", "fast", "torch")
CLEAN = 0.125  # cores that others may use in a stretch that counts
STRETCH = 0.5  # s


def main() -> None:
    """Run every combination and print a table."""
    args = arguments()
    if args.child:
        print(json.dumps(measure(args)))
        return
    clock = "CPU seconds of one thread, whatever else runs" if args.cpu_time else "wall clock"
    print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores, {args.threads} threads, {args.dtype}, {clock}")
    print(HEAD)
    for data in args.data:
        for model in args.models:
            rows: dict[str, list[dict[str, Any]]] = {form: [] for form in args.forms}
            for _ in range(args.rounds):
                for form in args.forms:
                    rows[form].append(fresh_process(args, model, data, form))
            report(model, data, rows)


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data", nargs="+", choices=["molecules", "periodic"], default=["molecules", "periodic"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["mace", "fast"])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--elements", type=int, choices=[0, 85], default=0, help="85: of the model's table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes of each form")
    parser.add_argument("--stretches", type=int, default=5, help="clean ones per process")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds to wait for a quiet machine, per process"
    )
    parser.add_argument(
        "--cpu_time", action="store_true", help="CPU seconds of one thread, for machines that are never quiet"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.threads = 1 if args.cpu_time else args.threads
    return args


def fresh_process(args: argparse.Namespace, model: str, data: str, form: str) -> dict[str, Any]:
    """One form's measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", "--models", model, "--data", data, "--forms", form]
    for name in ("dtype", "elements", "threads", "stretches", "patience"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--cpu_time"] if args.cpu_time else []
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


HEAD = (
    "model data      form         step s (smallest … largest)    steps/s  atoms/s   edges/s CPU s/step  extra MiB"
    "  first s  ratio"
)


def report(model: str, data: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """One line per form; the ratio to the first form only where the stretches of both were clean."""
    medians: dict[str, float] = {}
    quiet = True
    for form, found in rows.items():
        steps = sorted(s for row in found for s in row["steps"])
        quiet = quiet and all(row["clean"] for row in found)
        medians[form] = median = steps[len(steps) // 2]
        one = found[0]
        ratio = f"{next(iter(medians.values())) / median:6.2f}" if quiet else "no ratio: the machine was busy"
        print(
            f"{model:5s} {data:9s} {form:9s} {median:9.4f} ({steps[0]:.4f} … {steps[-1]:.4f}) {1 / median:10.2f} "
            f"{one['atoms'] / median:8.0f} {one['edges'] / median:9.0f} "
            f"{sum(r['cpu'] for r in found) / len(found):10.4f} {max(r['extra'] for r in found):10.0f} "
            f"{found[0]['first']:8.2f}  {ratio}",
            flush=True,
        )


# In a process of its own


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times of one form on one batch."""
    step, atoms, edges = prepared(args)
    clock = time.process_time if args.cpu_time else time.perf_counter
    before = peak()
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    start = clock()
    step()
    per_stretch = max(1, round(STRETCH / (clock() - start)))
    clean: list[float] = []
    every: list[float] = []
    cpu = 0.0
    deadline = time.monotonic() + args.patience
    while len(clean) < args.stretches and (time.monotonic() < deadline or len(every) < args.stretches):
        others, own, start = busy(), own_cpu(), clock()
        for _ in range(per_stretch):
            step()
        wall, own = clock() - start, own_cpu() - own
        every.append(wall / per_stretch)
        if args.cpu_time or (busy() - others - own) / wall < CLEAN:
            clean.append(wall / per_stretch)
            cpu = own / per_stretch
        else:
            time.sleep(1.0)
    enough = len(clean) >= args.stretches
    return {
        "steps": clean if enough else every,
        "clean": enough,
        "first": first,
        "atoms": atoms,
        "edges": edges,
        "cpu": cpu,
        "extra": peak() - before,
    }


def prepared(args: argparse.Namespace) -> tuple[Callable[[], Any], int, int]:
    """A step to repeat, with its numbers of atoms and edges."""
    import numpy as np

    from dataloader.batch import collate
    from dataloader.neighbors import build_graph
    from losses import Loss
    from model_utils import model_loader, runtime
    from model_utils.models import description as model_json
    from model_utils.models.fast import kernels
    from model_utils.models.fast.network import FastNetwork
    from model_utils.models.reference import ReferenceNetwork
    from model_utils.run.step import loss_and_gradients

    dtype, form = runtime.DTYPES[args.dtype], args.forms[0]
    runtime.start(device="cpu", dtype=dtype, threads=args.threads, seed=3)
    structures, numbers = (molecules if args.data == ["molecules"] else crystals)(
        np.random.default_rng(5), args.elements
    )
    fields = {
        "model_class": "ScaleShiftMACE",
        "r_max": 5.0,
        "atomic_numbers": numbers,
        "atomic_energies": [-1.0] * len(numbers),
        "avg_num_neighbors": 50.0,
        "atomic_inter_scale": 1.3,
        "atomic_inter_shift": 0.2,
        "hidden_irreps": MODELS[args.models[0]],
    }
    described = model_json.parse(json.dumps(fields), "benchmark")
    module = model_loader.build(described, dtype, 1)
    graphs = [build_graph(s, 5.0) for s in structures]
    batch = collate(structures, graphs, range(len(structures)), described.facts(), dtype, free_atoms_only=False)
    weights, loss = model_loader.trainable(module), Loss()
    if form == "mace":
        return mace_step(module, batch, weights, loss), batch.n_atoms, batch.n_edges
    network = ReferenceNetwork(module) if form == "reference" else FastNetwork(module)
    algebra = kernels.plain_torch if form == "torch" else nullcontext

    def step() -> Any:
        with algebra():
            return loss_and_gradients(network, weights, [replace(batch)], loss)

    return step, batch.n_atoms, batch.n_edges


def mace_step(module: Any, batch: Any, weights: Any, loss: Any) -> Callable[[], Any]:
    """mace-torch's module as its training calls it, on a dictionary made once."""
    import torch

    from losses import Prediction, error_sums

    data = {
        "positions": batch.positions,
        "node_attrs": torch.nn.functional.one_hot(batch.species, len(module.atomic_numbers)).to(batch.positions.dtype),
        "edge_index": torch.stack([batch.senders, batch.receivers]),
        "shifts": batch.shifts,
        "unit_shifts": batch.cell_shifts.to(batch.positions.dtype),
        "cell": batch.cell.reshape(-1, 3),
        "batch": batch.structure,
        "ptr": batch.ptr,
        "head": batch.head,
    }

    def step() -> Any:
        out = module({**data, "positions": batch.positions.clone()}, training=True, compute_force=True)
        prediction = Prediction(energy=out["interaction_energy"], forces=out["forces"], stress=None)
        value = loss.total(error_sums(prediction, batch.labels, loss), batch.counts)
        return torch.autograd.grad(value, list(weights.values()), allow_unused=True)

    return step


def molecules(rng: Any, table: int) -> tuple[list[Any], list[int]]:
    """Eight rattled pairs of molecules of 20 to 30 atoms in all: of H, C, N, O."""
    from ase.build import molecule

    names = [("C6H6", "CH3CH2OH"), ("C4H4NH", "CH3CONH2"), ("CH3CH2OCH3", "C5H5N"), ("C5H8", "C4H4O")] * 2
    found = []
    for first, second in names:
        a, b = molecule(first), molecule(second)
        b.positions += [0.0, 0.0, 4.5]
        found.append(a + b)
    return [labelled(a, rng) for a in found], elements([1, 6, 7, 8], table)


def crystals(rng: Any, table: int) -> tuple[list[Any], list[int]]:
    """Two rattled supercells of MgO, 108 atoms with 56 neighbours each; of 17 elements for the large table."""
    from ase.build import bulk

    found = []
    for _ in range(2):
        a = bulk("MgO", "rocksalt", a=4.21) * (3, 3, 6)
        if table:
            a.numbers = rng.choice(range(3, 20), size=len(a))
        found.append(a)
    return [labelled(a, rng) for a in found], elements([8, 12], table)


def elements(few: list[int], table: int) -> list[int]:
    """The model's elements: those of the data, or the first ones of the periodic table."""
    return list(range(1, table + 1)) if table else few


def labelled(atoms: Any, rng: Any) -> Any:
    """A structure with labels; their values do not matter for time."""
    import numpy as np

    from dataloader.structure import Structure

    positions = atoms.positions + rng.normal(scale=0.05, size=atoms.positions.shape)
    return Structure(
        atomic_numbers=atoms.numbers.astype(np.int64),
        positions=positions,
        cell=np.asarray(atoms.cell),
        pbc=tuple(bool(p) for p in atoms.pbc),
        identifier="generated",
        energy=float(rng.normal()),
        forces=rng.normal(size=positions.shape),
    )


def peak() -> float:
    """Largest resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_cpu() -> float:
    """CPU seconds of this process."""
    used = os.times()
    return used.user + used.system


def busy() -> float:
    """CPU seconds that all processes of the machine have used."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(x) for x in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
