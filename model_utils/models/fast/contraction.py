"""The symmetric contraction: products of up to four features of one atom and
channel, weighted per element.

mace's form (Batatia et al., NeurIPS 2022, eqs. 10 and 11), for an atom of element z, channel c
and output component w:

    y_w = Σ_a x_a (T1_wa + Σ_b x_b (T2_wab + Σ_d x_d (T3_wabd + Σ_e T4_wabde x_e))),
    T_ν = Σ_κ U_ν[…, κ] W_ν[z, κ, c],

with x the features' components. Products commute, so entries of U that differ by the order of a, b,
d, e are added and only a ≤ b ≤ d ≤ e is kept: a sparse polynomial in x whose coefficients T depend
on weights alone and are made once per element. In the nested form (T4 left out here), with B_wab =
T2_wab + Σ_d T3_wabd x_d and A_wa = T1_wa + Σ_b x_b B_wab, y_w = Σ_a x_a A_wa:
    VJP:  Ā_wa = ȳ_w x_a, B̄_wab = Ā_wa x_b, T̄1 = Ā, T̄2 = B̄, T̄3_wabd = B̄_wab x_d,
          x̄_a = Σ ȳ_w A_wa, + Σ Ā_wa B_wab to x̄_b, + Σ B̄_wab T3_wabd to x̄_d;
    VJP of the VJP:
          the derivatives of a·x̄ by x, T and ȳ; a·x̄ is the change of Σ ȳ y for the change a of x,
          so that every A, B, Ā, B̄ carries its change along, by the product rule.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import Backend, backend_of
from model_utils.models.fast.frozen_weights import OfWeights, made_anew
from model_utils.models.fast.gather import spread, take
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.linear import by_tile
from model_utils.models.fast.needed import needed

ZERO = 1e-12  # entries of U are either exactly zero in exact arithmetic or well above this


@dataclass(frozen=True, kw_only=True)
class Monomials:
    """Terms of one degree of one output order: rows (w, a, b, …) with a ≤ b ≤
    …, and their couplings.
    """

    rows: np.ndarray  # (n_terms, 1 + degree)
    couplings: Tensor  # (n_terms, n_paths), float64
    weight: str  # mace's name of W, (n_elements, n_paths, n_channels)


@dataclass(frozen=True)
class Contraction:
    """All output orders of one product block."""

    orders: tuple[tuple[Monomials, ...], ...]  # per output order, degrees ascending
    n_in: int  # components of the features
    n_channels: int
    kept: dict[str, Any] = field(default_factory=dict, repr=False)  # what a backend made of it

    @classmethod
    def of(cls, module: Any, prefix: str) -> "Contraction":
        """The constants of mace's SymmetricContraction, whose parameters have names that
        begin with ``prefix``.
        """
        orders = []
        for index, contraction in enumerate(module.contractions):
            highest = contraction.correlation
            degrees = []
            for degree in range(1, highest + 1):
                weight = "weights_max" if degree == highest else f"weights.{highest - degree - 1}"
                if type(contraction.get_parameter(weight)).__name__ == "EmptyParam":
                    continue  # mace holds these weights at zero
                name = f"{prefix}.contractions.{index}.{weight}"
                monomials = _monomials(contraction.U_tensors(degree), degree, name)
                if monomials is not None:
                    degrees.append(monomials)
            orders.append(tuple(degrees))
        n_in = sum(ir.dim for _, ir in module.irreps_in)
        return cls(tuple(orders), n_in, module.irreps_in[0].mul)

    def __call__(
        self,
        graph: BatchGraph,
        x: Tensor,
        weight: Callable[[str], Tensor],
        of_weights: OfWeights = made_anew,
    ) -> Tensor:
        """Products of features.

        Args:
            graph: orders of the batch.
            x: (components, n_atoms, n_channels).
            weight: W of the elements that occur by mace's name, (n_present, n_paths, n_channels).
            of_weights: what keeps coefficients of frozen weights.

        Returns:
            (components of all output orders, n_atoms, n_channels).
        """
        backend = backend_of(x)
        if backend is None:
            return self.by_torch(graph, x, weight)
        terms = of_weights(f"{self.first_weight} terms", lambda: self.terms(x.dtype, weight))
        return _Contract.apply(x.contiguous(), terms, graph, self, backend)

    def terms(self, dtype: torch.dtype, weight: Callable[[str], Tensor]) -> Tensor:
        """T of the elements that occur, (n_present, n_terms, n_channels): the
        polynomial's coefficients.
        """
        weights = [weight(m.weight) for degrees in self.orders for m in degrees]
        couplings = self._couplings_on(weights[0].device, dtype)
        return torch.cat([u @ w for u, w in zip(couplings, weights, strict=True)], dim=1)

    def _couplings_on(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The couplings of all monomials, kept on the device: copying them
        would make a GPU wait.
        """
        key = (device, dtype)
        if key not in self._couplings:
            self._couplings[key] = [
                m.couplings.to(device, dtype) for degrees in self.orders for m in degrees
            ]
        return self._couplings[key]

    @cached_property
    def _couplings(self) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
        return {}

    @cached_property
    def n_out(self) -> int:
        """Components of all output orders."""
        return len(self.orders) ** 2

    @property
    def first_weight(self) -> str:
        """A weight's name, by which the contraction is known within its network."""
        return next(m.weight for degrees in self.orders for m in degrees)

    @property
    def n_terms(self) -> int:
        """Terms of all output orders."""
        return sum(len(m.rows) for degrees in self.orders for m in degrees)

    @property
    def degree(self) -> int:
        """The highest number of factors of a term."""
        return max((m.rows.shape[1] - 1 for degrees in self.orders for m in degrees), default=1)

    def nested(self) -> tuple[list[int], list[tuple[int, ...]], list[tuple[int, ...]], list[int]]:
        """The terms nested by their factors, numbered as ``terms`` lays them out; −1
        where a factor has no term.

        Returns:
            First entry of every output component in the next; (a, term of T1, first and end of
            its entries) of the next; (b, term of T2, first and end of its entries, first term
            of T3) of the last, which lists d. Where there are terms of four factors,
            ``nested_deep`` says what T3 is.
        """
        return self._nest[:4]

    def nested_deep(self) -> tuple[list[tuple[int, ...]], list[int]]:
        """Beside every d of ``nested``: (term of T3, first and end of its entries, first term
        of T4) of a list of e.
        """
        return self._nest[4:]

    @cached_property
    def _nest(self) -> Any:
        outer_ptr = [0]
        outer: list[tuple[int, ...]] = []
        inner: list[tuple[int, ...]] = []
        third: list[int] = []
        deep: list[tuple[int, ...]] = []
        fourth: list[int] = []
        offset = 0
        for order, degrees in enumerate(self.orders):
            number: dict[tuple[int, ...], int] = {}
            for m in degrees:
                number |= {tuple(row): offset + k for k, row in enumerate(m.rows.tolist())}
                offset += len(m.rows)
            tree = _tree(number)
            for w in range(2 * order + 1):
                for a, by_b in sorted(tree.get(w, {}).items()):
                    outer.append((a, number.get((w, a), -1), len(inner), len(inner) + len(by_b)))
                    for b, by_d in sorted(by_b.items()):
                        cubic = next(
                            (number[w, a, b, d] for d in sorted(by_d) if (w, a, b, d) in number), 0
                        )
                        inner.append(
                            (
                                b,
                                number.get((w, a, b), -1),
                                len(third),
                                len(third) + len(by_d),
                                cubic,
                            )
                        )
                        for d, by_e in sorted(by_d.items()):
                            es = sorted(by_e)
                            # rows are sorted, so the others follow
                            quartic = number[w, a, b, d, es[0]] if es else 0
                            term = number.get((w, a, b, d), -1)
                            deep.append((term, len(fourth), len(fourth) + len(es), quartic))
                            third.append(d)
                            fourth += es
                outer_ptr.append(len(outer))
        return outer_ptr, outer, inner, third, deep, fourth

    def keep_on(self, like: Tensor) -> None:
        """Make the tables of plain torch for tensors of a device and precision,
        before a step needs them.
        """
        for table in self._tables:
            table.on(like)

    def by_torch(self, graph: BatchGraph, x: Tensor, weight: Callable[[str], Tensor]) -> Tensor:
        """The products in plain torch, one batched product over tiles of one element and
        channels per output order.
        """
        tiles = graph.tiles
        placed = spread(x, tiles.slot, tiles.n_slots).view(
            -1, tiles.n_tiles, tiles.width, self.n_channels
        )
        # (n_tiles, n_channels, width, components)
        by_channel = placed.permute(1, 3, 2, 0).contiguous()
        outputs = [table(by_channel, weight, graph) for table in self._tables]
        y = (
            torch.cat(outputs, dim=3)
            .permute(3, 0, 2, 1)
            .reshape(-1, tiles.n_slots, self.n_channels)
        )
        return take(y, tiles.slot)

    @cached_property
    def _tables(self) -> list["_Table"]:
        return [_Table.of(order, degrees, self.n_in) for order, degrees in enumerate(self.orders)]


def _tree(rows: Iterable[tuple[int, ...]]) -> dict[int, Any]:
    """Rows (w, a, b, …) as dictionaries in dictionaries, by w, then a, then b …"""
    tree: dict[int, Any] = {}
    for row in rows:
        level = tree
        for factor in row:
            level = level.setdefault(factor, {})
    return tree


def _monomials(u: Tensor, degree: int, weight: str) -> Monomials | None:
    """The sparse symmetric form of U, (2l + 1, components, …, n_paths), whose first axis
    mace leaves out for l = 0.

    None where all couplings are zero.
    """
    dense = u.detach().double().cpu().numpy()
    dense = dense[None] if dense.ndim == degree + 1 else dense
    at = np.argwhere(np.abs(dense).max(axis=-1) > ZERO)
    if len(at) == 0:
        return None
    values = dense[tuple(at.T)]
    at[:, 1:].sort(axis=1)
    rows, place = np.unique(at, axis=0, return_inverse=True)
    couplings = np.zeros((len(rows), dense.shape[-1]))
    np.add.at(couplings, place.reshape(-1), values)
    kept = np.abs(couplings).max(axis=1) > ZERO
    return Monomials(rows=rows[kept], couplings=torch.from_numpy(couplings[kept]), weight=weight)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """One output order with dense couplings over its last factor, for batched products.

    Rows r = (w, a, b) with a ≤ b hold T2 and, over all d, T3, over all d and e, T4:
    y_w = Σ_{r of w} x_a x_b (T2_r + Σ_d T3_rd x_d + Σ_de T4_rde x_d x_e) + Σ T1 x.
    """

    n_out: int
    first: Tensor | None  # (n_in, n_out · n_paths)
    second: Tensor | None  # (n_rows, n_paths)
    third: Tensor | None  # (n_in · n_rows, n_paths)
    fourth: Tensor | None  # (n_in² · n_rows, n_paths)
    left: Tensor  # (n_in, n_rows), 1 where the row's a is the component
    right: Tensor  # the same for b
    sums: Tensor  # (n_rows, n_out), 1 where the row belongs to w
    names: tuple[str | None, ...]  # of W by degree
    kept: dict[Any, list[Any]] = field(default_factory=dict, repr=False)  # the tables on a device

    @classmethod
    def of(cls, order: int, degrees: tuple[Monomials, ...], n_in: int) -> "_Table":
        """The table of one output order from its monomials in the features' ``n_in`` components."""
        n_out = 2 * order + 1
        by_degree = {m.rows.shape[1] - 1: m for m in degrees}
        pairs = [m.rows[:, :3] for degree, m in by_degree.items() if degree > 1]
        rows = (
            np.unique(np.concatenate(pairs), axis=0) if pairs else np.zeros((0, 3), dtype=np.int64)
        )
        number = {tuple(row): k for k, row in enumerate(rows.tolist())}
        first: Tensor | None = None
        second: Tensor | None = None
        third: Tensor | None = None
        fourth: Tensor | None = None
        if 1 in by_degree:
            m = by_degree[1]
            first = m.couplings.new_zeros(n_in, n_out, m.couplings.shape[1])
            first[m.rows[:, 1], m.rows[:, 0]] = m.couplings
            first = first.view(n_in * n_out, -1)
        if 2 in by_degree:
            m = by_degree[2]
            second = m.couplings.new_zeros(len(rows), m.couplings.shape[1])
            second[[number[tuple(r)] for r in m.rows.tolist()]] = m.couplings
        if 3 in by_degree:
            m = by_degree[3]
            third = m.couplings.new_zeros(n_in, len(rows), m.couplings.shape[1])
            third[m.rows[:, 3], [number[tuple(r[:3])] for r in m.rows.tolist()]] = m.couplings
            third = third.view(n_in * len(rows), -1)
        if 4 in by_degree:
            m = by_degree[4]
            fourth = m.couplings.new_zeros(n_in, n_in, len(rows), m.couplings.shape[1])
            fourth[m.rows[:, 3], m.rows[:, 4], [number[tuple(r[:3])] for r in m.rows.tolist()]] = (
                m.couplings
            )
            fourth = fourth.view(n_in**2 * len(rows), -1)
        one_hot = [
            torch.zeros(size, len(rows), dtype=torch.float64) for size in (n_out, n_in, n_in)
        ]
        for table, column in zip(one_hot, rows.T, strict=True):
            table[column, torch.arange(len(rows))] = 1.0
        names = {degree: m.weight for degree, m in by_degree.items()}
        return cls(
            n_out=n_out,
            first=first,
            second=second,
            third=third,
            fourth=fourth,
            left=one_hot[1],
            right=one_hot[2],
            sums=one_hot[0].t().contiguous(),
            names=tuple(names.get(degree) for degree in (1, 2, 3, 4)),
        )

    def __call__(self, x: Tensor, weight: Callable[[str], Tensor], graph: BatchGraph) -> Tensor:
        """(n_tiles, n_channels, width, n_out) from features (n_tiles, n_channels, width,
        n_in) of atoms in tiles.
        """
        n_in = x.shape[3]
        n_rows = self.left.shape[1]
        first, second, third, fourth, left, right, sums = self.on(x)
        t1, t2, t3, t4 = (
            None
            if name is None or u is None
            else by_tile(torch.matmul(u, weight(name)).transpose(1, 2), graph)
            for name, u in zip(self.names, (first, second, third, fourth), strict=True)
        )  # (n_tiles, n_channels, entries)
        inner: Tensor | None = None
        if t3 is not None:
            inner = x @ t3.reshape(*x.shape[:2], n_in, n_rows)
        if t4 is not None:
            factors = (x.unsqueeze(4) * x.unsqueeze(3)).flatten(3)
            quartic = factors @ t4.reshape(*x.shape[:2], n_in**2, n_rows)
            inner = quartic if inner is None else inner + quartic
        if t2 is not None:
            inner = t2.unsqueeze(2) if inner is None else inner + t2.unsqueeze(2)
        y = None if inner is None else ((x @ left) * (x @ right) * inner) @ sums
        if t1 is not None:
            linear = x @ t1.reshape(*x.shape[:2], n_in, self.n_out)
            y = linear if y is None else y + linear
        return x.new_zeros(*x.shape[:3], self.n_out) if y is None else y

    def on(self, x: Tensor) -> list[Any]:
        """The tables as a tensor is, kept on its device: copying them every time
        would make a GPU wait.
        """
        key = (x.device, x.dtype)
        if key not in self.kept:
            tables = (
                self.first,
                self.second,
                self.third,
                self.fourth,
                self.left,
                self.right,
                self.sums,
            )
            self.kept[key] = [None if table is None else table.to(x) for table in tables]
        return self.kept[key]


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        graph: BatchGraph,
        contraction: Contraction,
        backend: Backend,
    ) -> Tensor:
        ctx.save_for_backward(x, t)
        ctx.rest = graph, contraction, backend
        y = x.new_empty(contraction.n_out, *x.shape[1:])
        backend.contract(graph, contraction, (x, t), (y,))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gx, gt = _ContractVjp.apply(*ctx.saved_tensors, g.contiguous(), *ctx.rest, needed(ctx, 1))
        return gx, gt, None, None, None


class _ContractVjp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        t: Tensor,
        g: Tensor,
        graph: BatchGraph,
        contraction: Contraction,
        backend: Backend,
        by_t: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, t, g)
        ctx.set_materialize_grads(False)
        ctx.rest = graph, contraction, backend
        gx = torch.empty_like(x)
        gt = torch.empty_like(t) if by_t else None
        backend.contract_vjp(graph, contraction, (x, t, g), (gx, gt))
        return gx, gt

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ax: Tensor | None, at: Tensor | None) -> tuple[Tensor | None, ...]:
        if at is not None:
            raise NotImplementedError(
                "the gradient by coefficients is not differentiated again; use plain torch"
            )
        x, t, g = ctx.saved_tensors
        graph, contraction, backend = ctx.rest
        if ax is None:
            return None, None, None, None, None, None, None
        dx = torch.empty_like(x)
        dt = torch.empty_like(t)
        dg = torch.empty_like(g)
        backend.contract_vjp_vjp(graph, contraction, (x, t, g, ax.contiguous()), (dx, dt, dg))
        return dx, dt, dg, None, None, None, None
