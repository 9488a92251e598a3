"""Weights of a network for fewer elements, from those for many: the same energies on
structures of the elements kept.

Elements enter as a one-hot vector of N numbers into e3nn's maps, which divide by √N, so weights
kept are multiplied by √(N_kept / N); in the symmetric contraction an element has a row of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dataloader.errors import InputError
from model_utils.models.build import ENERGIES

NUMBERS = "atomic_numbers"


def narrowed(source: nn.Module, target: nn.Module, kept: Sequence[int]) -> dict[str, Tensor]:
    """The state of ``target``, which was built for some of the source's elements.

    Args:
        source: for all elements.
        target: freshly built; its reference energies and atomic numbers stay.
        kept: positions of the target's elements in the source's table.

    Raises:
        InputError: a tensor depends on the elements in a way that is not known here.
    """
    own = target.state_dict()
    all_elements = len(source.get_buffer(NUMBERS))
    scale = (len(kept) / all_elements) ** 0.5
    index = list(kept)
    state = {}
    for name, tensor in source.state_dict().items():
        if name in (NUMBERS, ENERGIES):
            state[name] = own[name]
        elif name == "node_embedding.linear.weight":
            state[name] = (tensor.view(all_elements, -1)[index] * scale).reshape(-1)
        elif name.endswith("skip_tp.weight"):
            state[name] = (
                _of_tensor_product(source.get_submodule(name.removesuffix(".weight")), index)
                * scale
            )
        elif tensor.shape == own[name].shape:
            state[name] = tensor
        elif ".symmetric_contractions." in name and len(tensor) == all_elements:
            state[name] = tensor[index]
        else:
            raise InputError(
                f"--elements: {name} depends on the elements in a way that cannot be narrowed; "
                "leave the flag out"
            )
    return state


def _of_tensor_product(product: nn.Module, index: list[int]) -> Tensor:
    """Weights of features ⊗ elements → features, path by path (channels in,
    elements, channels out).
    """
    views = product.weight_views()  # type: ignore[operator]
    return torch.cat([view[:, index].reshape(-1) for view in views])
