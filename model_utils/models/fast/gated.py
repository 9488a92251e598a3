"""The non-linear interaction of mace: what it computes besides messages and their linear map.

Its radial network also reads the elements of both atoms, so that the two edges of a pair have path
weights of their own (``graph_views.directed``). Messages m of an atom become

    x = m / (α + β ρ) + W h,    x_0 ← c silu(x_0),    x_l ← c′ sigmoid(g_l) x_l  for l > 0,

with ρ the density, h what the atom itself sends, and g_l the scalars of x
behind the channels of x_0.
"""

import torch
from torch import Tensor

from model_utils.models.fast.linear import silu
from model_utils.models.fast.plan import Gated


def divided(x: Tensor, divisor: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Flat blocks, block l ((2l + 1), n_atoms, width of l), over a number for
    each atom, (n_atoms, 1).
    """
    inverse = divisor.reciprocal()
    return torch.cat([(block * inverse).view(-1) for block in _blocks(x, len(divisor), widths)])


def gate(x: Tensor, gated: Gated, n_atoms: int, widths: tuple[int, ...]) -> Tensor:
    """Flat blocks behind the gate, every order of ``gated.n_channels`` channels."""
    scalars, *vectors = _blocks(x, n_atoms, widths)
    first, *gates = scalars.split(gated.n_channels, dim=2)
    opened = [silu(first.contiguous(), gated.scalar_gain).view(-1)]
    for block, g in zip(vectors, gates, strict=True):
        opened.append((block * (torch.sigmoid(g) * gated.gate_gain)).view(-1))
    return torch.cat(opened)


def added(x: Tensor, lowest: Tensor) -> Tensor:
    """Flat blocks and others of their lowest orders alone."""
    if lowest.numel() == x.numel():
        return x + lowest
    first, rest = x.split([lowest.numel(), x.numel() - lowest.numel()])
    return torch.cat([first + lowest, rest])


def _blocks(x: Tensor, n_atoms: int, widths: tuple[int, ...]) -> list[Tensor]:
    """Block l as ((2l + 1), n_atoms, width)."""
    sizes = [(2 * order + 1) * n_atoms * width for order, width in enumerate(widths)]
    parts = x.split(sizes)
    return [part.view(-1, n_atoms, width) for part, width in zip(parts, widths, strict=True)]
