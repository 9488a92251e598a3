"""What benchmarks on a device share: their networks and batches of MgO, a
clock that waits for the device, and what the profiler says of a step.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import train_step

MODELS = {"S": "64x0e", "M": "128x0e+128x1o", "L": "128x0e+128x1o+128x2e"}  # hidden_irreps
TINY = {"S": "4x0e+4x1o"}  # for a rehearsal on a CPU
BEGAN = time.monotonic()


def say(*words: object) -> None:
    """One line with the time so far."""
    print(f"[{time.monotonic() - BEGAN:5.0f} s]", *words, flush=True)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device, seconds: float = 0.5) -> float:
    """Median time, ms, after two calls that load and compile."""
    for _ in range(2):
        function()
    wait(device)
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < end:
        began = time.perf_counter()
        function()
        wait(device)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def waits_of(step: Callable[[], None], device: torch.device) -> list[str]:
    """Where the host waits for the device during a step."""
    if device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = sorted(
        {
            f"{Path(w.filename).name}:{w.lineno}"
            for w in caught
            if "called a synchronizing" in str(w.message)
        }
    )
    if lines:
        say("  waits:", ", ".join(lines))
    return lines


def busy(function: Callable[[], Any], device: torch.device, calls: int = 5) -> float:
    """Time, ms, that the device works for a call, by the profiler; a CPU's by the clock.

    What the host needs to start a kernel is more than a small one takes.
    """
    if device.type != "cuda":
        return timed(function, device)
    for _ in range(2):
        function()

    def several() -> None:
        for _ in range(calls):
            function()

    return sum(event.self_device_time_total for event in kernels_of(several, device)) / 1e3 / calls


def kernels_of(function: Callable[[], Any], device: torch.device) -> list[Any]:
    """What the profiler says of the kernels that a function starts on a GPU, those that take
    most time first.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        wait(device)
    kernels = [
        e for e in profiled.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(kernels, key=lambda event: -event.self_device_time_total)


def launches_of(step: Callable[[], None], device: torch.device) -> tuple[int, list[str]]:
    """Kernels of a step, and those that take most time."""
    if device.type != "cuda":
        return 0, ["not on a CPU"]
    kernels = kernels_of(step, device)
    top = [f"{e.self_device_time_total / 1e3:.2f} ms {e.count}x {e.key[:50]}" for e in kernels[:5]]
    return sum(event.count for event in kernels), top


def crystals(atoms: int) -> list[Any]:
    """Supercells of MgO of 108 atoms, of so many together; a cell of eight for 0."""
    rng = np.random.default_rng(5)
    if not atoms:
        from ase.build import bulk

        return [train_step.labelled(bulk("MgO", "rocksalt", a=4.21, cubic=True), rng)]
    structures: list[Any] = []
    while sum(s.n_atoms for s in structures) < atoms:
        structures += train_step.crystals(rng, 0)[0]
    return structures


def built(
    hidden: str, dtype_name: str, device: torch.device, *, small: bool = False
) -> tuple[Any, Any]:
    """Description and module, this on the device; ``small``: for the cell of eight atoms."""
    from model_utils import model_loader, runtime
    from model_utils.models import description as model_json

    dtype = runtime.DTYPES[dtype_name]
    torch.set_default_dtype(dtype)
    fields = {
        "model_class": "ScaleShiftMACE",
        "r_max": 2.6 if small else 5.0,
        "atomic_numbers": [8, 12],
        "atomic_energies": [-1.0, -1.0],
        "avg_num_neighbors": 50.0,
        "atomic_inter_scale": 1.3,
        "atomic_inter_shift": 0.2,
        "hidden_irreps": hidden,
    }
    described = model_json.parse(json.dumps(fields), "benchmark")
    return described, model_loader.build(described, dtype, 1).to(device)


def batch_of(described: Any, atoms: int, module: Any) -> Any:
    """A batch of so many atoms with its orders, where the module is."""
    from dataloader.batch import collate
    from dataloader.neighbors import build_graph
    from model_utils import model_loader

    structures = crystals(atoms)
    own = next(module.parameters())
    graphs = [build_graph(s, described.r_max) for s in structures]
    numbers = range(len(structures))
    batch = collate(
        structures, graphs, numbers, described.facts(), own.dtype, free_atoms_only=False
    )
    return model_loader.preparation("fast", described)(batch).to(own.device)


def made(hidden: str, atoms: int, dtype_name: str, device: torch.device) -> tuple[Any, Any, Any]:
    """Description, module and batch, these on the device."""
    described, module = built(hidden, dtype_name, device, small=not atoms)
    return described, module, batch_of(described, atoms, module)
