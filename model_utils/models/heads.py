"""Weights of a network with several heads from those of one, each a copy; and of one head from those of several.

A head has a column of its own in every readout. In a readout with a hidden layer it also has hidden channels of its
own, and e3nn divides by the root of their number, so the second map's weights are multiplied by √heads. Between the
maps mace sets the other heads' channels to zero, so that blocks between heads have no effect.
"""

import torch
from torch import Tensor, nn

from dataloader.errors import InputError
from model_utils.models.build import ENERGIES, SCALE, SHIFT


def with_copied_heads(source: nn.Module, target: nn.Module, n_heads: int) -> dict[str, Tensor]:
    """The state of ``target``, which was built with ``n_heads`` heads and otherwise as the source with one.

    Raises:
        InputError: a readout is not of a kind whose columns are known here.
    """
    own, state = target.state_dict(), {}
    for name, tensor in source.state_dict().items():
        if name in (ENERGIES, SCALE, SHIFT) or not name.startswith("readouts.") or tensor.shape == own[name].shape:
            state[name] = own[name] if name == ENERGIES else tensor.expand_as(own[name]).clone()
        elif name.endswith("bias"):
            state[name] = tensor.repeat(n_heads)
        elif name.endswith((".linear.weight", ".linear_1.weight")):
            state[name] = torch.cat([view.repeat(1, n_heads).reshape(-1) for view in _views(source, name)])
        elif name.endswith((".linear_mid.weight", ".linear_2.weight")):
            blocks = [torch.block_diag(*[view * n_heads**0.5] * n_heads) for view in _views(source, name)]
            state[name] = torch.cat([block.reshape(-1) for block in blocks])
        elif name.endswith("output_mask"):
            state[name] = own[name]
        else:
            raise InputError(f"--add_head: {name} belongs to a readout whose heads are not known here")
    return state


def of_one_head(source: nn.Module, target: nn.Module, head: int, n_heads: int) -> dict[str, Tensor]:
    """The state of ``target``, built with one head and otherwise as the source, that gives the energies of that head.

    Args:
        source: with several heads.
        target: freshly built; its reference energies, scale and shift stay.
        head: position of the head in the source's list.
        n_heads: of the source.

    Raises:
        InputError: a readout is not of a kind whose columns are known here.
    """
    own, state = target.state_dict(), {}
    for name, tensor in source.state_dict().items():
        if name in (ENERGIES, SCALE, SHIFT) or name.endswith("output_mask"):
            state[name] = own[name]
        elif not name.startswith(("readouts.", "embedding_readout.")) or tensor.shape == own[name].shape:
            state[name] = tensor
        elif name.endswith("bias"):
            state[name] = tensor.reshape(n_heads, -1)[head]
        elif name.endswith((".linear.weight", ".linear_1.weight")):
            columns = [_of_head(view, 1, head, n_heads) for view in _views(source, name)]
            state[name] = torch.cat([view.reshape(-1) for view in columns])
        elif name.endswith((".linear_mid.weight", ".linear_2.weight")):
            blocks = [_of_head(_of_head(view, 0, head, n_heads), 1, head, n_heads) for view in _views(source, name)]
            state[name] = torch.cat([view.reshape(-1) for view in blocks]) / n_heads**0.5
        else:
            raise InputError(f"--head: {name} belongs to a readout whose heads are not known here")
    return state


def _of_head(matrix: Tensor, dimension: int, head: int, n_heads: int) -> Tensor:
    size = matrix.shape[dimension] // n_heads
    return matrix.narrow(dimension, head * size, size)


def _views(module: nn.Module, name: str) -> list[Tensor]:
    """Matrices (channels in, channels out) of one of e3nn's maps; its biases are instructions without an input."""
    linear = module.get_submodule(name.removesuffix(".weight"))
    shapes = [i.path_shape for i in linear.instructions if i.i_in != -1]  # type: ignore[union-attr]
    sizes = [shape[0] * shape[1] for shape in shapes]
    return [part.view(*shape) for part, shape in zip(linear.weight.split(sizes), shapes, strict=True)]  # type: ignore[operator]
