"""Time and memory of whole training steps of one form on a GPU: a line of JSON
for each network and size.

``benchmarks/gpu.py`` starts one such process for each form, since mace-torch's own setting of
TorchScript is one of the whole process; those that have the device in turn share a lock.
"""

import argparse
import fcntl
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch
import train_step
from on_device import BEGAN, MODELS, TINY, batch_of, built, timed

SIZES = (216, 432, 1080, 2160, 4104, 8208)  # atoms of MgO, 56 edges each
# Forms of the step, by the order in which they are timed: those of one group have the device in
# turn, a row each; a library that compiles for long keeps nobody but itself waiting. With the share
# of the time that is left.
GROUPS: tuple[tuple[tuple[str, ...], float], ...] = (
    # mace-torch's module as its own training calls it; torch: the fast step without kernels
    (("mace", "reference", "fast", "torch"), 0.6),
    (("cueq fused",), 0.5),
    (("cueq",), 1.0),
)
FORMS = tuple(form for forms, _ in GROUPS for form in forms)


def timed_steps(form: str, seconds: float, turn: str, sizes: list[int], *, rehearsal: bool) -> None:
    """Steps of one form, a line of JSON for each model and size, timed while no other process
    uses the device; larger ones are left out where one did not fit.
    """
    from model_utils import runtime

    device = runtime.start(
        device="cpu" if rehearsal else "cuda",
        dtype=torch.float32,
        threads=1 if rehearsal else None,
        seed=3,
    )
    for model, hidden in (TINY if rehearsal else MODELS).items():
        described, module = built(hidden, "float32", device, small=rehearsal)
        for atoms in (0,) if rehearsal else sizes:
            batch = batch_of(described, atoms, module)
            row: dict[str, Any] = {
                "form": form,
                "model": model,
                "atoms": batch.n_atoms,
                "edges": batch.n_edges,
            }
            with in_turn(turn):
                if time.monotonic() - BEGAN < seconds:
                    row |= row_of(form, described, module, batch, 0.2 if rehearsal else 0.7)
                else:
                    row |= {"ms": None, "why": "no time"}
                gc.collect()
                torch.cuda.empty_cache()  # the next process may need it
            print(json.dumps(row), flush=True)
            if row["ms"] is None and row["why"] != "does not fit":
                return
            if row["ms"] is None:
                break


@contextmanager
def in_turn(file: str) -> Iterator[None]:
    """Have the device alone, among processes that ask for it by one file."""
    with open(file, "ab") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def row_of(form: str, described: Any, module: Any, batch: Any, seconds: float) -> dict[str, Any]:
    """Time and memory of a step of a form, or why there are none."""
    from model_utils.run.memory import _out_of_memory

    try:
        step = step_of(form, described, module, batch)
        return measured(step, batch.positions.device, seconds)
    except Exception as error:
        too_large = _out_of_memory(error)
        return {"ms": None, "why": "does not fit" if too_large else f"fails: {str(error)[:80]}"}


def measured(step: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, float]:
    """Time and memory of a step."""
    if device.type != "cuda":
        return {"ms": timed(step, device, seconds), "gib": 0.0}
    torch.cuda.reset_peak_memory_stats(device)
    ms = timed(step, device, seconds)
    return {"ms": ms, "gib": torch.cuda.max_memory_allocated(device) / 2**30}


def step_of(form: str, described: Any, module: Any, batch: Any) -> Callable[[], Any]:
    """One training step of a form, without the optimizer."""
    from losses import Loss
    from model_utils import model_loader
    from model_utils.models.fast import backends
    from model_utils.run.step import _micro_step

    device = batch.positions.device
    if form == "mace":
        torch._C._jit_set_profiling_executor(True)  # torch's own, as mace_run_train has it
        torch._C._jit_override_can_fuse_on_gpu(True)
        args = argparse.Namespace(forms=["mace"], what="step", device=str(device))
        return train_step.mace_step(args, module, described, batch, [], Loss.of())
    kind = {"torch": "fast", "cueq fused": "cueq"}.get(form, form)
    if form == "cueq fused":
        fuse_convolutions()
    network = model_loader.build_network(module, kind, described)
    if network.kind != kind:
        raise RuntimeError(f"the step is {network.kind}")
    if form == "torch" and device.type == "cuda" and backends.backend_of(batch.positions) is None:
        raise RuntimeError("is what fast computes with here")
    weights = model_loader.trainable(module)
    loss = Loss.of()

    def step() -> None:  # not divided where it does not fit
        _micro_step(network, weights, list(weights.values()), replace(batch), loss, batch.rows)

    def plain() -> None:
        with backends.plain_torch():
            step()

    return plain if form == "torch" else step


def fuse_convolutions() -> None:
    """cuequivariance's fused convolution, which is off in training."""
    from model_utils.models import build, mace_import

    before = mace_import.acceleration_config

    def fused(kind: str) -> Any:
        config = before(kind)
        config.conv_fusion = True
        return config

    build.acceleration_config = fused


def main() -> None:
    """Time the form that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--turn", required=True, help="file whose lock is the device")
    parser.add_argument("--seconds", type=float, default=60.0, help="no row begins later")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="atoms of the steps")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with a tiny network")
    args = parser.parse_args()
    timed_steps(args.form, args.seconds, args.turn, args.sizes, rehearsal=args.rehearse)


if __name__ == "__main__":
    main()
