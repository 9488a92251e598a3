"""Triton's kernels by its interpreter against plain torch, float64: ``python
triton_interpreted.py CASE …``.

Run with TRITON_INTERPRET=1, in a process of its own: Triton looks at the variable when it is
imported. Every line of the output is one comparison as JSON: the case, what is compared, the
largest difference over the largest number.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloader.batch import Batch, collate
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from model_utils import model_loader
from model_utils.models import description as model_json
from model_utils.models.fast import graph_views
from model_utils.models.fast.backends import backend_of, only
from model_utils.models.fast.backends.triton import Triton
from model_utils.models.fast.fast_network import FastNetwork
from model_utils.models.fast.triton import assemble
from model_utils.models.fast.triton.program import Program

Fields = dict[str, Any]
BASE: Fields = {
    "model_class": "ScaleShiftMACE",
    "r_max": 3.0,
    "num_bessel": 3,
    "max_ell": 2,
    "hidden_irreps": "3x0e+3x1o",
    "MLP_irreps": "2x0e",
    "correlation": [2, 3],
    "radial_MLP": [4, 3],
    "atomic_numbers": [8, 12],
    "atomic_energies": [-1.0, -1.0],
    "avg_num_neighbors": 5.0,
    "atomic_inter_scale": 1.3,
    "atomic_inter_shift": 0.1,
}


def patch_interpreter() -> None:
    """Triton 3.6 with numpy from 2.4 on: int() of an array of one number raises in its
    ``range``; 3.7 has it mended.
    """
    from triton.runtime import interpreter

    with open(interpreter.__file__, encoding="utf-8") as file:
        if ".squeeze()" in file.read():
            return
    before = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched


class Interpreted(Triton):
    """The same launches, each program of which the interpreter goes through on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: set[str] = set()
        self._functions: dict[str, Any] = {}

    def takes(self, tensor: Tensor) -> bool:
        return tensor.dtype == torch.float64

    def prepare(self, plan: Any, weights: Any) -> None:
        """Nothing is compiled."""

    def _run(self, program: Program, grid: tuple[int, ...], arguments: Any) -> None:
        self.launched.add(program.name)
        if program.key not in self._functions:
            self._functions[program.key] = assemble.function(program.name, program.text())
        self._functions[program.key][grid](*arguments)


def structures(rng: np.random.Generator) -> list[Structure]:
    """A chain whose atom is a neighbour of its own images, a cluster of uneven
    degrees, an atom alone.
    """
    chain = (np.zeros((1, 3)), (True, False, False), np.diag([2.9, 8, 8]))
    cluster = (
        np.array([[0.0, 0, 0], [1.1, 0.8, 0.4], [2.9, 1.9, 0.1]]),
        (False,) * 3,
        np.zeros((3, 3)),
    )
    alone = (np.zeros((1, 3)), (False,) * 3, np.zeros((3, 3)))
    made = []
    for positions, pbc, cell in (chain, cluster, alone):
        n = len(positions)
        made.append(
            Structure(
                atomic_numbers=np.resize([12, 8], n),
                positions=positions + 0.1 * rng.normal(size=(n, 3)),
                cell=cell,
                pbc=pbc,
                identifier="made",
                labels={"energy": 0.0, "forces": np.zeros((n, 3))},
            )
        )
    return made


def network_and_batch(fields: Fields) -> tuple[FastNetwork, Batch]:
    described = model_json.parse(json.dumps({**BASE, **fields}), "a test")
    module = model_loader.build(described, torch.float64, 1)
    made = structures(np.random.default_rng(2))
    graphs = [build_graph(structure, described.facts().r_max) for structure in made]
    batch = collate(
        made, graphs, range(len(made)), described.facts(), torch.float64, free_atoms_only=False
    )
    return FastNetwork(module), batch


def waves(like: Tensor) -> Tensor:
    """Numbers without symmetry, to weigh entries with."""
    return torch.cos(torch.arange(like.numel(), dtype=like.dtype)).view_as(like)


def step(network: FastNetwork, batch: Batch) -> dict[str, Tensor]:
    """Energies, forces, and the gradients of a loss of both by every parameter."""
    weights = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    positions = batch.positions.detach().clone().requires_grad_(True)
    energies = network.outputs(weights, batch, positions, batch.shifts)["energy"]
    forces = torch.autograd.grad(energies.sum(), positions, create_graph=True)[0]
    loss = (energies * waves(energies)).sum() + (forces**2 * (1.5 + waves(forces))).sum()
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    results = {"energies": energies.detach(), "forces": forces.detach()}
    given = zip(weights, gradients, strict=True)
    return results | {f"gradient by {name}": g for name, g in given if g is not None}


def trilinear(
    convolution: Callable[..., Tensor], graph: Any, h: Tensor, y: Tensor, w: Tensor
) -> dict[str, Tensor]:
    """A convolution with its first derivatives and the derivatives of
    those, by all three inputs.
    """
    inputs = [x.clone().requires_grad_(True) for x in (h, y, w)]
    out = convolution(graph, *inputs)
    value = (out * waves(out) + 0.1 * out**2).sum()
    first = torch.autograd.grad(value, inputs, create_graph=True)
    second = torch.autograd.grad(
        sum(((g * waves(g)).sum() + (g**2).sum() for g in first), start=h.sum()), inputs
    )
    values = [out, *first, *second]
    names = (
        "A",
        "first by h",
        "first by Y",
        "first by w",
        "second by h",
        "second by Y",
        "second by w",
    )
    return {name: value.detach() for name, value in zip(names, values, strict=True)}


def convolutions(
    network: FastNetwork, batch: Batch, *, directed: bool = False
) -> dict[str, Tensor]:
    """The first convolution of a network on random inputs; directed: every edge brings its
    own copy of its pair's.
    """
    graph = network.graph(batch)
    convolution = network.plan.interactions[-1].couplings
    draw = torch.Generator().manual_seed(4)
    components = (max(p.l1 for p in convolution.paths) + 1) ** 2
    width = len(convolution.paths) * convolution.n_channels
    shapes = [
        (components, graph.n_atoms, convolution.n_channels),
        (graph.n_pairs, len(convolution.odd)),
        (graph.n_pairs, width),
    ]
    inputs = [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]
    if not directed or backend_of(inputs[0]) is None:
        return trilinear(convolution, graph, *inputs)
    pair = graph.pair.long()
    reading = graph_views.directed(graph)
    signs = torch.where(
        torch.tensor(convolution.odd), 1 - 2 * graph.flipped.double().unsqueeze(1), 1.0
    )

    def of_edges(_: Any, h: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return convolution(reading, h, y[pair] * signs, w[pair])

    return trilinear(of_edges, graph, *inputs)


WHAT: dict[str, Callable[[FastNetwork, Batch], dict[str, Tensor]]] = {
    "step": step,
    "convolution": convolutions,
    "directed convolution": partial(convolutions, directed=True),
}


def comparisons(fields: Fields) -> Iterator[dict[str, Any]]:
    """Every result by the kernels and by plain torch; the kernels' bits of a second run."""
    network, batch = network_and_batch(fields)
    backend = Interpreted()
    for what, function in WHAT.items():
        with only():
            expected = function(network, batch)
        with only(backend):
            results = function(network, batch)
            # or it takes minutes
            repeated = what == "convolution" or len(fields.get("correlation", [0] * 3)) < 3
            again = function(network, batch) if repeated else results
        for name, value in expected.items():
            largest = max(float(value.abs().max()), 1e-30)
            error = float((results[name] - value).abs().max()) / largest
            same = bool(torch.equal(results[name], again[name]))
            yield {
                "what": f"{what}: {name}",
                "error": error,
                "same_again": same,
                "largest": largest,
            }
    yield {"launched": sorted(backend.launched)}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    patch_interpreter()
    for case in sys.argv[1:]:
        for line in comparisons(json.loads(case)):
            print(json.dumps({"case": case, **line}), flush=True)


if __name__ == "__main__":
    main()
