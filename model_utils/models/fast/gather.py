"""Gathering rows so that its derivative gathers too: no scatter, hence one order
of sums on any device.

A `Listing` says which row each slot shows, index[s], and which slots show each row, an ascending
list S(i). With it
    gather:  y[s] = x[index[s]]              for slots s = 0 … n_slots − 1
    collect: x̄[i] = Σ_{s in S(i)} g[s]       its VJP
and the VJP of collect is gather again. A slot may be *empty*: it is in no list, and shows some row
all the same, which costs less than a row of zeros would; whoever gathers multiplies it by zero.

Where every row has one slot of its own, the two are `spread`, which leaves zeros in
empty slots, and `take`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model_utils.models.fast.backends import backend_of


@dataclass(frozen=True)
class Listing:
    """Which row each slot shows, and which slots show each row."""

    index: Tensor  # (n_slots,), int64
    slots: Tensor  # (n_listed,), int64, the slots of row 0, then those of row 1, …
    first: Tensor  # (n_rows + 1,), int64, where the slots of each row begin

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.first.shape[0] - 1


def adds_in_one_order(tensor: Tensor) -> bool:
    """Whether torch's own sums over an index, of which a GPU makes atomics, are taken as they are.

    They have one order on a CPU; where it computes in plain torch it computes what a GPU
    does, which is tested so.
    """
    return tensor.device.type == "cpu" and backend_of(tensor) is not None


def gather(x: Tensor, listing: Listing) -> Tensor:
    """y[s] = x[index[s]]; x (n_rows, …), returns (n_slots, …)."""
    return _Gather.apply(x, listing)


def collect(g: Tensor, listing: Listing) -> Tensor:
    """x̄[i] = Σ_{s in S(i)} g[s], in the order of the list; g (n_slots, …), returns (n_rows, …)."""
    return _Collect.apply(g, listing)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, listing: Listing) -> Tensor:
        ctx.listing = listing
        if len(x) == 0:  # slots there may be all the same, all of them empty
            return x.new_zeros((len(listing.index), *x.shape[1:]))
        return x.index_select(0, listing.index)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Collect.apply(g, ctx.listing), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, listing: Listing) -> Tensor:
        ctx.listing = listing
        return sums_of_rows(g, listing.slots, listing.first)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(a, ctx.listing), None


def sums_of_rows(x: Tensor, rows: Tensor, first: Tensor, factors: Tensor | None = None) -> Tensor:
    """Sums over lists of rows, in the order of each list; not differentiable.

    Args:
        x: (n, …).
        rows: (n_listed,), int64; the lists one after the other.
        first: (n_lists + 1,), int64, where each list begins.
        factors: (n_listed,), of x's precision; multiplies what is added.

    Returns:
        (n_lists, …).
    """
    shape = (len(first) - 1, *x.shape[1:])
    if len(rows) == 0 or x.numel() == 0:
        return x.new_zeros(shape)
    flat = x.reshape(len(x), -1)
    # torch's sum over bags of embeddings reads every row once and adds in the order of
    # the list, on any device
    sums = torch.ops.aten._embedding_bag_forward_only(
        flat, rows, first, False, 0, False, factors, True
    )[0]
    return sums.view(shape)


def spread(x: Tensor, slot: Tensor, n_slots: int) -> Tensor:
    """y[:, slot[i]] = x[:, i], zero elsewhere; x (…, n_rows, n), slot (n_rows,) without
    repetition; (…, n_slots, n).
    """
    return x if n_slots == len(slot) else _Spread.apply(x, slot, n_slots)


def take(y: Tensor, slot: Tensor) -> Tensor:
    """x[:, i] = y[:, slot[i]], the inverse of ``spread`` and its VJP."""
    return y if y.shape[-2] == len(slot) else _Take.apply(y, slot)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, n_slots: int) -> Tensor:
        ctx.slot = slot
        zeros = x.new_zeros((*x.shape[:-2], n_slots, x.shape[-1]))
        return zeros.index_copy_(-2, slot, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _Take.apply(g, ctx.slot), None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, slot: Tensor) -> Tensor:
        ctx.rest = slot, y.shape[-2]
        return y.index_select(-2, slot)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(a, *ctx.rest), None
