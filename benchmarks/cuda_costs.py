"""Launches, bytes and memory of one training step on a GPU, counted without
one: nothing is computed.

    python benchmarks/cuda_costs.py   # S, M and L, 216 and 4104 atoms of MgO
    python benchmarks/cuda_costs.py --models M --atoms 4104 --forms plain --by operation

Every call of torch's library in a step on fake tensors is noted: what it reads and writes, each
array once per call. The form ``plain`` is the fast step in plain torch, as CUDA runs it without
kernels; ``kernels`` the same with the kernels that it would launch, which say what they move;
``reference`` mace-torch's own module without the fusions of TorchScript. Busy time is the sum over
launches of the largest of 2 µs, bytes over bandwidth and operations over rate, with the rates of
copying and of float32 products seen on such cards: it is counted, not measured.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np
import torch
import train_step
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from model_utils.models.fast.backends.triton import Triton

FORMS = ("reference", "plain", "kernels")
# bytes/s of a copy, float32 operations/s
CARDS = {"H100": (3.0e12, 60e12), "H200": (4.3e12, 60e12)}
LAUNCH = 2e-6  # s, the least a kernel takes
CACHE = 40e6  # bytes; what is gathered from an array that fits is read once
FREE = {
    "detach", "alias", "view", "_unsafe_view", "expand", "permute", "transpose", "t", "select",
    "slice", "split", "split_with_sizes", "unsqueeze", "squeeze", "as_strided", "unbind",
    "diagonal", "_reshape_alias", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "set_", "sym_size", "sym_stride", "sym_numel", "is_same_size", "unfold",
    "sym_storage_offset",
}  # fmt: skip
FILLING = {
    "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like",
    "new_full", "arange", "scalar_tensor", "zero_", "fill_",
}  # fmt: skip
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmm_"}
GATHERS = {"index_select", "index", "gather", "embedding"}
SCATTERS = {
    "index_add",
    "index_add_",
    "scatter_add",
    "scatter_add_",
    "index_put",
    "index_put_",
    "index_copy_",
}


@dataclass(frozen=True)
class Call:
    """One call, as kernels on a GPU."""

    name: str
    launches: int
    read: int  # bytes
    written: int
    operations: int = 0

    def seconds(self, bandwidth: float, rate: float) -> float:
        """How long a card is busy with it."""
        return max(
            LAUNCH * self.launches, (self.read + self.written) / bandwidth, self.operations / rate
        )


@dataclass
class Counted:
    """All calls of a step, and the most memory that its tensors take together."""

    calls: list[Call] = field(default_factory=list)
    peak: int = 0

    @property
    def launches(self) -> int:
        """Kernels that the host starts."""
        return sum(call.launches for call in self.calls)

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(call.read + call.written for call in self.calls)

    @property
    def operations(self) -> int:
        """Of matrix products."""
        return sum(call.operations for call in self.calls)

    def busy(self, card: str) -> float:
        """Seconds."""
        return sum(call.seconds(*CARDS[card]) for call in self.calls)


def size(tensor: Tensor) -> int:
    """Bytes of all entries."""
    return tensor.numel() * tensor.element_size()


def touched(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor, of which an expanded one has few."""
    axes = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(length for length, stride in axes if stride or not length) * tensor.element_size()


class Counting(TorchDispatchMode):
    """Notes every call."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._remember(outputs)
        name = func._schema.name.removeprefix("aten::")
        if "::" not in name and name not in FREE and (outputs or inputs):
            self.counted.calls.append(call_of(name, inputs, outputs))
        return out

    def _remember(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                rounded = -(-storage.nbytes() // 512) * 512  # as the allocator does
                self._alive[storage._cdata] = StorageWeakRef(storage), rounded
                self._now += rounded
        if self._now > self.counted.peak:
            for key in [key for key, (kept, _) in self._alive.items() if kept.expired()]:
                self._now -= self._alive.pop(key)[1]
            self.counted.peak = max(self.counted.peak, self._now)


def call_of(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> Call:
    """A call of torch's library as what a GPU does."""
    read = sum(map(touched, inputs))
    written = sum(map(touched, outputs))
    in_place = name.endswith("_") and bool(outputs) and bool(inputs) and outputs[0] is inputs[0]
    if name in PRODUCTS:
        factors = inputs[-2:]
        return Call(name, 1, read, written, 2 * prod(outputs[0].shape) * factors[0].shape[-1])
    if name in ("slice_backward", "select_backward"):
        return Call(name, 2, touched(inputs[0]), size(outputs[0]) + touched(inputs[0]))
    if name in GATHERS:
        indices = sum(map(touched, inputs[1:]))
        source = touched(inputs[0])
        return Call(
            name,
            1,
            indices + (min(source, written) if source < CACHE else size(outputs[0])),
            written,
        )
    if name == "_embedding_bag_forward_only":
        table, rows = inputs[:2]
        listed = rows.numel() * table.shape[1] * table.element_size()
        source = touched(table)
        return Call(
            name,
            1,
            sum(map(touched, inputs[1:])) + (min(source, listed) if source < CACHE else listed),
            written,
        )
    if name in SCATTERS:
        source = size(inputs[-1])
        copied = 0 if name.endswith("_") else size(inputs[0])
        both = 0 if name == "index_copy_" else source  # what is added to is read
        read = sum(map(touched, inputs[1:])) + both + copied
        return Call(name, 1 if name.endswith("_") else 2, read, source + copied)
    if name in FILLING:
        return Call(name, 1, 0, touched(inputs[0]) if in_place else written)
    if name == "copy_":
        return Call(name, 1, touched(inputs[1]), touched(inputs[0]))
    if name.startswith("_foreach"):
        numbers = sum(tensor.numel() for tensor in (outputs or inputs))
        return Call(name, max(1, -(-numbers // (320 * 65536))), read, written)
    return Call(name, 1, read, touched(inputs[0]) if in_place else written)


def structures_of(atoms: int, table: int) -> tuple[list[Any], list[int]]:
    """Supercells of MgO, of at least so many atoms together; of 17 elements
    in a table of ``table``.
    """
    rng = np.random.default_rng(5)
    structures: list[Any] = []
    numbers: list[int] = []
    while sum(s.n_atoms for s in structures) < atoms:
        more, numbers = train_step.crystals(rng, table)
        structures += more
    return structures, numbers


def fake_parameters(module: nn.Module, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Parameters without numbers, in place of a module's own."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with mode:
                    empty = torch.empty_strided(
                        parameter.shape, parameter.stride(), dtype=parameter.dtype
                    )
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def as_on_a_gpu(form: str, counted: Counted) -> Iterator["Triton | None"]:
    """The algebra of a form, with sums as they are on a GPU, and the kernels where it has some;
    fake tensors can only be of the CPU.
    """
    from unittest import mock

    from model_utils.models.fast import backends, energies, first_layer, geometry, linear, sums
    from model_utils.models.fast.backends.triton import Triton

    with ExitStack() as stack:
        for module in (energies, first_layer, geometry, linear, sums):
            stack.enter_context(mock.patch.object(module, "adds_in_one_order", return_value=False))
        if form != "kernels":
            stack.enter_context(backends.plain_torch())
            yield None
            return
        kernels = Triton()
        launches = stack.enter_context(kernels.counted())
        stack.enter_context(backends.only(kernels))
        yield kernels
        counted.calls += [Call(one.name, 1, one.read, one.written) for one in launches]


def counted_step(
    form: str,
    hidden: str,
    atoms: int,
    *,
    table: int = 0,
    structures: tuple[list[Any], list[int]] | None = None,
) -> tuple[Counted, int, int]:
    """Calls of one training step in single precision, after the first one;
    numbers of atoms and edges.

    Args:
        form: of ``FORMS``.
        hidden: irreps of the features.
        atoms: at least so many.
        table: elements of the network's table; 0: those of the structures.
        structures: these, with the network's elements, instead of crystals.
    """
    import e3nn

    from dataloader.batch import _map_tensors, collate
    from dataloader.neighbors import build_graph
    from losses import Loss
    from model_utils import model_loader
    from model_utils.models import description as model_json
    from model_utils.run.step import loss_and_gradients

    chosen, numbers = structures_of(atoms, table) if structures is None else structures
    fields = {
        "model_class": "ScaleShiftMACE", "r_max": 5.0, "atomic_numbers": numbers, "atomic_energies":
        [-1.0] * len(numbers), "avg_num_neighbors": 50.0, "atomic_inter_scale": 1.3,
        "atomic_inter_shift": 0.2, "hidden_irreps": hidden,
    }  # fmt: skip
    described = model_json.parse(json.dumps(fields), "benchmark")
    before = e3nn.get_optimization_defaults()["jit_script_fx"]
    e3nn.set_optimization_defaults(jit_script_fx=False)
    counted = Counted()
    try:
        module = model_loader.build(described, torch.float32, 1)
    finally:
        e3nn.set_optimization_defaults(jit_script_fx=before)
    graphs = [build_graph(s, described.r_max) for s in chosen]
    host = collate(
        chosen, graphs, range(len(chosen)), described.facts(), torch.float32, free_atoms_only=False
    )
    with as_on_a_gpu(form, counted) as kernels:
        network = model_loader.build_network(
            module, "reference" if form == "reference" else "fast", described
        )
        if kernels is not None:  # texts need numbers, which fake tensors have not
            kernels._catalogue.of_network(network.plan, dict(module.named_parameters()))
        host = network.prepared(host)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        weights = fake_parameters(module, mode)
        if hasattr(network, "_own"):
            network._own = dict(module.named_parameters())
        batch = _map_tensors(host, mode.from_tensor)
        with mode, Counting(counted):
            loss_and_gradients(network, weights, [batch], Loss.of())
    return counted, batch.n_atoms, batch.n_edges


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=train_step.MODELS, default=["S", "M", "L"])
    parser.add_argument("--atoms", nargs="+", type=int, default=[216, 4104])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["plain", "kernels"])
    parser.add_argument(
        "--elements",
        type=int,
        choices=[0, 85],
        default=0,
        help="85: of the model's table, 17 present",
    )
    parser.add_argument("--by", choices=["operation"], help="also the heaviest operations")
    args = parser.parse_args()
    torch.set_default_dtype(torch.float32)
    print("counted, not measured; busy times are lower bounds of a step")
    print("model  atoms    edges form       launches      GB   GFLOP  peak GiB  H100 ms  H200 ms")
    for model in args.models:
        for atoms in args.atoms:
            for form in args.forms:
                step, n_atoms, n_edges = counted_step(
                    form, train_step.MODELS[model], atoms, table=args.elements
                )
                print(
                    f"{model:5s} {n_atoms:6d} {n_edges:8d} {form:9s} {step.launches:9d} "
                    f"{step.bytes / 1e9:7.1f} {step.operations / 1e9:7.1f} "
                    f"{step.peak / 2**30:9.2f} {1e3 * step.busy('H100'):8.1f} "
                    f"{1e3 * step.busy('H200'):8.1f}",
                    flush=True,
                )
                if args.by:
                    print_heaviest(step)


def print_heaviest(step: Counted, most: int = 15) -> None:
    """The operations that move most bytes."""
    by_name: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for call in step.calls:
        by_name[call.name][0] += call.launches
        by_name[call.name][1] += (call.read + call.written) / 1e9
    for name, (launches, gigabytes) in sorted(by_name.items(), key=lambda item: -item[1][1])[:most]:
        print(f"      {name:28s} {launches:6.0f} launches {gigabytes:8.2f} GB")


if __name__ == "__main__":
    main()
