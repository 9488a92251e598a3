"""Weights of a network with other heads than another's: every head begins as a copy
of one of the source's.

A head has a column of its own in every readout. In a readout with a hidden layer it also has hidden
channels of its own, and e3nn divides by the root of their number, so the second map's weights are
multiplied by √(heads / source's). Weights between the channels of two heads are there, but mace
masks them: they are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dataloader.errors import InputError
from model_utils.models.build import ENERGIES, SCALE, SHIFT


def with_copied_heads(
    source: nn.Module, target: nn.Module, parents: Sequence[int]
) -> dict[str, Tensor]:
    """The state of ``target``, which was built with other heads and otherwise as the source.

    Args:
        source: with at least one head.
        target: freshly built, with as many heads as there are parents; its reference energies stay.
        parents: for each of its heads, the position of the source's head that it begins as.

    Raises:
        InputError: a readout is not of a kind whose columns are known here, or as many heads are
            to have another order.
    """
    own = target.state_dict()
    state = {}
    chosen = list(parents)
    before = len(torch.atleast_2d(source.get_buffer(ENERGIES)))
    if len(chosen) == before and chosen != list(range(before)):
        # what is of heads is known here by its size, which stays
        raise InputError(f"{before} heads cannot be put into another order")
    for name, tensor in source.state_dict().items():
        if name == ENERGIES or name.endswith("output_mask"):
            state[name] = own[name]
        elif name in (SCALE, SHIFT):
            state[name] = tensor.reshape(-1)[chosen].reshape(own[name].shape)
        elif (
            not name.startswith(("readouts.", "embedding_readout."))
            or tensor.shape == own[name].shape
        ):
            state[name] = tensor
        elif name.endswith("bias"):
            state[name] = tensor.reshape(before, -1)[chosen].reshape(-1)
        elif name.endswith((".linear.weight", ".linear_1.weight")):
            state[name] = torch.cat(
                [_columns(view, before, chosen) for view in _views(source, name)]
            )
        elif name.endswith((".linear_mid.weight", ".linear_2.weight")):
            scale = (len(chosen) / before) ** 0.5
            state[name] = torch.cat(
                [_blocks(view, before, chosen) * scale for view in _views(source, name)]
            )
        else:
            raise InputError(f"{name} belongs to a readout whose heads are not known here")
    return state


def _columns(matrix: Tensor, before: int, chosen: list[int]) -> Tensor:
    """Columns of the chosen heads, flat, of a map to channels of each head."""
    return matrix.reshape(len(matrix), before, -1)[:, chosen].reshape(-1)


def _blocks(matrix: Tensor, before: int, chosen: list[int]) -> Tensor:
    """Blocks of the chosen heads, flat, of a map from channels of each head to
    channels of each head.
    """
    rows = matrix.shape[0] // before
    columns = matrix.shape[1] // before
    blocks = [matrix[h * rows : (h + 1) * rows, h * columns : (h + 1) * columns] for h in chosen]
    return torch.block_diag(*blocks).reshape(-1)


def _views(module: nn.Module, name: str) -> list[Tensor]:
    """Matrices (channels in, channels out) of one of e3nn's maps; its biases are
    instructions without an input.
    """
    linear = module.get_submodule(name.removesuffix(".weight"))
    shapes = [i.path_shape for i in linear.instructions if i.i_in != -1]  # type: ignore[union-attr]
    sizes = [shape[0] * shape[1] for shape in shapes]
    parts = linear.weight.split(sizes)  # type: ignore[operator]
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]
