"""The compiled kernels of the symmetric contraction take two atoms at once: what an atom gets
does not depend on which others there are.
"""

import pytest
import torch
from test_fast_step import Both, fields_of, needs_compiler
from torch import Tensor

from model_utils.models.fast import kernels
from model_utils.models.fast.backends import backend_of, cpp_tables
from model_utils.models.fast.contraction import Contraction

N_CHANNELS = 19  # full vectors and a part of one


class Given:
    """A contraction, with random features, coefficients and adjoints of atoms of one element."""

    def __init__(self, case: str, n_atoms: int, dtype: torch.dtype) -> None:
        fields = {**fields_of({"irreps": "vectors"}), "hidden_irreps": "19x0e+19x1o"}
        fields |= {"max_ell": 2, "correlation": 4 if case == "quartic" else 3}
        module = Both.of(fields).module
        self.contraction = Contraction.of(module.products[0].symmetric_contractions, "p")
        assert (self.contraction.degree == 4) == (case == "quartic")
        n_out = self.contraction.n_out
        n_in = self.contraction.n_in
        generator = torch.Generator().manual_seed(7)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, N_CHANNELS, generator=generator, dtype=dtype)

        self.x = random(n_in, n_atoms)
        self.ax = random(n_in, n_atoms)
        self.g = random(n_out, n_atoms)
        self.t = random(1, self.contraction.n_terms)

    def call(
        self, name: str, atoms: slice, *inputs: Tensor, like: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """What a kernel gives to these atoms alone."""
        outputs = [torch.full_like(tensor, torch.nan) for tensor in like]
        n_atoms = len(range(self.x.shape[1])[atoms])
        ends = torch.tensor([0, n_atoms])
        table = kernels.AtomTable(n_atoms, 1, ends.data_ptr())
        polynomial = cpp_tables.polynomial(self.contraction)
        kernels.call(name, self.x.dtype, polynomial, table, *inputs, *outputs)
        return outputs

    def all_of(self, atoms: slice) -> dict[str, Tensor]:
        """Every output of the three kernels for these atoms alone."""
        x, g, ax = (v[:, atoms].contiguous() for v in (self.x, self.g, self.ax))
        (y,) = self.call("contract", atoms, x, self.t, like=(g,))
        gx, gt = self.call("contract_vjp", atoms, x, self.t, g, like=(x, self.t))
        dx, dt, dg = self.call("contract_vjp_vjp", atoms, x, self.t, g, ax, like=(x, self.t, g))
        return {"y": y, "gx": gx, "gt": gt, "dx": dx, "dt": dt, "dg": dg}


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["cubic", "quartic"])
@pytest.mark.parametrize("n_atoms", [1, 2, 5])
def test_an_atom_gets_the_same_bits_in_any_company(
    case: str, n_atoms: int, dtype: torch.dtype
) -> None:
    assert backend_of(torch.zeros(1)) is not None
    given = Given(case, n_atoms, dtype)
    together = given.all_of(slice(None))
    for first in range(n_atoms):
        for others in (slice(first, first + 1), slice(first, None), slice(None, first + 1)):
            apart = given.all_of(others)
            at = range(n_atoms)[others].index(first)
            for name in ("y", "gx", "dx", "dg"):
                assert torch.equal(apart[name][:, at], together[name][:, first]), name


@needs_compiler
@pytest.mark.parametrize("case", ["cubic", "quartic"])
def test_gradients_by_coefficients_are_sums_over_atoms(case: str) -> None:
    given = Given(case, 5, torch.float64)
    together = given.all_of(slice(None))
    alone = [given.all_of(slice(i, i + 1)) for i in range(5)]
    for name in ("gt", "dt"):
        expected = torch.stack([of_atom[name] for of_atom in alone]).sum(dim=0)
        assert expected.abs().max() > 1
        torch.testing.assert_close(together[name], expected, rtol=1e-12, atol=1e-12)
