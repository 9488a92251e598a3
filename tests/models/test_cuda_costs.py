"""Launches and bytes of a training step as a GPU would have them, counted on fake tensors by
benchmarks/cuda_costs.py.

The numbers are bounds: who makes them smaller lowers them here; a line that raises them is seen.
"""

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT
from model_utils.models.fast import forward_pass

HIDDEN = "4x0e+4x1o"


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    torch.set_default_dtype(torch.float32)
    import cuda_costs

    return cuda_costs


def test_a_step_of_the_medium_network(costs: ModuleType) -> None:
    """216 atoms of MgO; at 4104 atoms bytes are 19 times as many: 271 and 26 GB."""
    for form, launches, gigabytes in (("plain", 1730, 14.1), ("kernels", 484, 1.43)):
        step, n_atoms, n_edges = costs.counted_step(form, "128x0e+128x1o", 216)
        assert (n_atoms, n_edges) == (216, 12146)
        assert step.launches <= launches
        assert step.bytes <= gigabytes * 1e9


def crystal_of(n_elements: int, costs: ModuleType) -> tuple[list[Any], list[int]]:
    """108 atoms of so many elements, unevenly, in a table of 20."""
    [structure, _], _ = costs.train_step.crystals(np.random.default_rng(5), 0)
    numbers = 1 + np.minimum(np.arange(108) // 5, n_elements - 1)
    return [replace(structure, atomic_numbers=numbers.astype(np.int64))], list(range(1, 21))


def test_launches_do_not_grow_with_elements_but_with_a_copy(
    costs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, _, n_edges = costs.counted_step("plain", HIDDEN, 0, structures=crystal_of(3, costs))
    many, _, _ = costs.counted_step("plain", HIDDEN, 0, structures=crystal_of(17, costs))
    assert many.launches == few.launches
    vectors = forward_pass.pair_vectors
    monkeypatch.setattr(forward_pass, "pair_vectors", lambda *words: vectors(*words).clone())
    more, _, _ = costs.counted_step("plain", HIDDEN, 0, structures=crystal_of(3, costs))
    assert more.launches == few.launches + 1
    assert more.bytes == few.bytes + 2 * (n_edges // 2 * 3 * 4)
