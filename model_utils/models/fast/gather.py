"""Gathering rows so that its derivative gathers too: no scatter, hence one order of sums on any device.

With x̂ = x and a row of zeros behind it,
    gather:  y[s] = x̂[index[s]]               for slots s = 0 … n_slots − 1
    collect: x̄[i] = Σ_k ĝ[inverse[i, k]]      its VJP; inverse[i] lists the slots that show row i, padded by n_slots
and the VJP of collect is gather again.
"""

from typing import Any

import torch
from torch import Tensor


def gather(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """y[s] = x̂[index[s]]; x (n, …), index (n_slots,), inverse (n, width); returns (n_slots, …)."""
    return _Gather.apply(x, index, inverse)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.tables = index, inverse
        return _with_zero(x).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _Collect.apply(g, *ctx.tables), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.tables = index, inverse
        rows = _with_zero(g).index_select(0, inverse.reshape(-1))
        return rows.view(*inverse.shape, *g.shape[1:]).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(a, *ctx.tables), None, None


def _with_zero(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros((1, *x.shape[1:]))])
