"""Time of one training step (energies, forces, loss, gradient of every parameter), or
of a part, by each form.

    python benchmarks/train_step.py                     # mace-torch's step and the fast one
    python benchmarks/train_step.py --models M --data periodic --dtype float64 --rounds 3
    python benchmarks/train_step.py --forms mace torch  # the fast algebra without a compiler
    python benchmarks/train_step.py --elements 85       # a table of 85, 17 of them present
    python benchmarks/train_step.py --what forces       # or energy, step, loader
    python benchmarks/train_step.py --device cuda --models S M L --forms mace mace_cueq fast cueq

Forms take turns in fresh processes, each on the same generated structures and weights. A step is
repeated for half a second at a time; only stretches during which other processes used less than an
eighth of a core count, and where there are too few of them no ratio is printed. "mace" is
mace-torch's module on a prepared dictionary, so its data path is free; the fast step makes its
orders of atoms and edges within the step. Neither has an optimizer. With ``--what loader`` each
batch is made anew, by each side's own loader in the main process, neighbour lists being kept.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODELS = {"S": "64x0e", "M": "128x0e+128x1o", "L": "128x0e+128x1o+128x2e"}
FORMS = ("mace", "mace_cueq", "reference", "fast", "torch", "cueq")
CLEAN = 0.125  # cores that others may use in a stretch that counts
STRETCH = 0.5  # s


def main() -> None:
    """Run every combination and print a table."""
    args = arguments()
    if args.child:
        print(json.dumps(measure(args)))
        return
    clock = "CPU seconds of one thread, whatever else runs" if args.cpu_time else "wall clock"
    print(
        f"{args.what} on {args.device}, load {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores, "
        f"{args.threads} threads, {args.dtype}, {clock}"
    )
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["S", "M"])
    parser.add_argument("--what", choices=["energy", "forces", "step", "loader"], default="step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--data", nargs="+", choices=["molecules", "periodic"], default=["molecules", "periodic"]
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["mace", "fast"])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument(
        "--elements", type=int, choices=[0, 85], default=0, help="85: of the model's table"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes of each form")
    parser.add_argument("--stretches", type=int, default=5, help="clean ones per process")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds to wait for a quiet machine, per process",
    )
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="CPU seconds of one thread, for machines that are never quiet",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.threads = 1 if args.cpu_time else args.threads
    return args


def fresh_process(args: argparse.Namespace, model: str, data: str, form: str) -> dict[str, Any]:
    """One form's measurement in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--child",
        "--models",
        model,
        "--data",
        data,
        "--forms",
        form,
    ]
    for name in ("what", "device", "dtype", "elements", "threads", "stretches", "patience"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--cpu_time"] if args.cpu_time else []
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


HEAD = (
    "model data      form         step s (smallest … largest)    steps/s  atoms/s   edges/s CPU "
    "s/step  extra MiB  first s  ratio"
)


def report(model: str, data: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """One line per form; the ratio to the first form only where the
    stretches of both were clean.
    """
    medians: dict[str, float] = {}
    quiet = True
    for form, runs in rows.items():
        steps = sorted(seconds for run in runs for seconds in run["steps"])
        quiet = quiet and all(run["clean"] for run in runs)
        medians[form] = median = steps[len(steps) // 2]
        first = runs[0]
        ratio = (
            f"{next(iter(medians.values())) / median:6.2f}"
            if quiet
            else "no ratio: the machine was busy"
        )
        print(
            f"{model:5s} {data:9s} {form:9s} {median:9.4f} ({steps[0]:.4f} … {steps[-1]:.4f}) "
            f"{1 / median:10.2f} {first['atoms'] / median:8.0f} {first['edges'] / median:9.0f} "
            f"{sum(run['cpu'] for run in runs) / len(runs):10.4f} "
            f"{max(run['extra'] for run in runs):10.0f} {first['first']:8.2f}  {ratio}",
            flush=True,
        )


# In a process of its own


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times of one form on one batch."""
    step, atoms, edges = prepared(args)
    clock = time.process_time if args.cpu_time else time.perf_counter
    before = peak(args.device, reset=True)
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
    while len(clean) < args.stretches and (
        time.monotonic() < deadline or len(every) < args.stretches
    ):
        others = busy()
        own = own_cpu()
        start = clock()
        for _ in range(per_stretch):
            step()
        wall = clock() - start
        own = own_cpu() - own
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
        "extra": peak(args.device) - before,
    }


def prepared(args: argparse.Namespace) -> tuple[Callable[[], Any], int, int]:
    """A step to repeat, with its numbers of atoms and edges."""
    import numpy as np
    import torch

    from dataloader.batch import collate
    from dataloader.neighbors import build_graph
    from losses import Loss
    from model_utils import model_loader, runtime
    from model_utils.models import description as model_json

    dtype = runtime.DTYPES[args.dtype]
    form = args.forms[0]
    device = runtime.start(device=args.device, dtype=dtype, threads=args.threads, seed=3)
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
    module = model_loader.build(described, dtype, 1).to(device)
    graphs = [build_graph(s, 5.0) for s in structures]

    def made() -> Any:
        return collate(
            structures,
            graphs,
            range(len(structures)),
            described.facts(),
            dtype,
            free_atoms_only=False,
        )

    batch = made().to(device)
    if form in ("mace", "mace_cueq"):
        step = mace_step(args, module, described, batch, structures, Loss.of())
    else:
        step = our_step(args, module, described, batch, made, Loss.of())
    if device.type == "cpu":
        return step, batch.n_atoms, batch.n_edges

    def waited_for() -> None:
        step()
        torch.cuda.synchronize(device)

    return waited_for, batch.n_atoms, batch.n_edges


def our_step(
    args: argparse.Namespace,
    module: Any,
    described: Any,
    batch: Any,
    made: Callable[[], Any],
    loss: Any,
) -> Callable[[], Any]:
    """A form of ours."""
    from model_utils import model_loader
    from model_utils.models.fast import backends
    from model_utils.models.network import predict
    from model_utils.run.step import loss_and_gradients

    form = args.forms[0]
    network = model_loader.build_network(module, "fast" if form == "torch" else form, described)
    assert network.kind == ("fast" if form == "torch" else form)
    algebra = backends.plain_torch if form == "torch" else nullcontext
    weights = model_loader.trainable(module)
    frozen = {name: p.detach() for name, p in weights.items()}

    def step() -> Any:
        now = made().to(batch.positions.device) if args.what == "loader" else replace(batch)
        with algebra():
            if args.what == "energy":
                return network.outputs(frozen, now, now.positions, now.shifts)
            if args.what == "forces":
                return predict(network, frozen, now, wanted=(), training=False)
            return loss_and_gradients(network, weights, [now], loss)

    return step


def mace_step(
    args: argparse.Namespace,
    module: Any,
    described: Any,
    batch: Any,
    structures: list[Any],
    loss: Any,
) -> Callable[[], Any]:
    """mace-torch's module as its training calls it, on a dictionary made once; or on
    those of its own loader.
    """
    import torch

    from losses import error_sums

    if args.forms[0] == "mace_cueq":
        from mace.cli.convert_e3nn_cueq import run

        module = run(module, device=args.device)
    weights = [p for p in module.parameters() if p.requires_grad]
    if args.what in ("energy", "forces"):
        for parameter in weights:
            parameter.requires_grad_(False)
    data = {
        "positions": batch.positions,
        "node_attrs": torch.nn.functional.one_hot(batch.species, len(module.atomic_numbers)).to(
            batch.positions.dtype
        ),
        "edge_index": torch.stack([batch.senders, batch.receivers]),
        "shifts": batch.shifts,
        "unit_shifts": batch.cell_shifts.to(batch.positions.dtype),
        "cell": batch.cell.reshape(-1, 3),
        "batch": batch.structure,
        "ptr": batch.ptr,
        "head": batch.head,
    }
    batches = mace_batches(structures, described) if args.what == "loader" else None

    def step() -> Any:
        given = data if batches is None else next(batches).to(args.device).to_dict()
        training = args.what in ("step", "loader")
        forces = args.what != "energy"
        out = module(
            {**given, "positions": given["positions"].clone()},
            training=training,
            compute_force=forces,
        )
        if not training:
            return out
        prediction = {"energy": out["interaction_energy"], "forces": out["forces"]}
        value = loss.total(error_sums(prediction, batch.labels, batch.sizes, loss), batch.rows)
        return torch.autograd.grad(value, weights, allow_unused=True)

    return step


def mace_batches(structures: list[Any], described: Any) -> Iterator[Any]:
    """Batches of mace-torch's loader, again and again; the structures keep their order."""
    from mace import data
    from mace.tools import AtomicNumberTable, torch_geometric

    table = AtomicNumberTable(list(described.atomic_numbers))
    atoms = [
        data.AtomicData.from_config(
            data.Configuration(
                atomic_numbers=s.atomic_numbers,
                positions=s.positions,
                properties={"energy": s.energy, "forces": s.forces},
                property_weights={"energy": 1.0, "forces": 1.0},
                cell=s.cell,
                pbc=tuple(s.pbc),
            ),
            z_table=table,
            cutoff=described.r_max,
        )
        for s in structures
    ]
    loader = torch_geometric.dataloader.DataLoader(
        dataset=atoms, batch_size=len(atoms), shuffle=False
    )
    while True:
        yield from loader


def molecules(rng: Any, table: int) -> tuple[list[Any], list[int]]:
    """Eight rattled pairs of molecules of 20 to 30 atoms in all: of H, C, N, O."""
    from ase.build import molecule

    names = [
        ("C6H6", "CH3CH2OH"),
        ("C4H4NH", "CH3CONH2"),
        ("CH3CH2OCH3", "C5H5N"),
        ("C5H8", "C4H4O"),
    ] * 2
    pairs = []
    for first, second in names:
        lower = molecule(first)
        upper = molecule(second)
        upper.positions += [0.0, 0.0, 4.5]
        pairs.append(lower + upper)
    return [labelled(atoms, rng) for atoms in pairs], elements([1, 6, 7, 8], table)


def crystals(rng: Any, table: int) -> tuple[list[Any], list[int]]:
    """Two rattled supercells of MgO, 108 atoms with 56 neighbours each; of 17
    elements for the large table.
    """
    from ase.build import bulk

    supercells = []
    for _ in range(2):
        a = bulk("MgO", "rocksalt", a=4.21) * (3, 3, 6)
        if table:
            a.numbers = rng.choice(range(3, 20), size=len(a))
        supercells.append(a)
    return [labelled(a, rng) for a in supercells], elements([8, 12], table)


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
        labels={"energy": float(rng.normal()), "forces": rng.normal(size=positions.shape)},
    )


def peak(device: str, *, reset: bool = False) -> float:
    """Largest memory so far, MiB: resident, or allocated on a GPU (there ``reset``
    forgets and gives what is).
    """
    if device != "cpu":
        import torch

        if reset:
            torch.cuda.reset_peak_memory_stats(device)
            return torch.cuda.memory_allocated(device) / 2**20
        return torch.cuda.max_memory_allocated(device) / 2**20
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
