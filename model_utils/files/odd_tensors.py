"""What no network's file holds: tensors that are more than numbers in this machine's memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model_utils.models.sandbox import SandboxedObject


def refuse_odd_tensors(content: object) -> None:
    """Tensors are numbers in the memory of this machine, each stored;
    anything else is no network's.
    """
    for tensor in _tensors(content, set()):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex():
            raise ValueError(
                f"it holds a tensor of {tensor.layout} on {tensor.device}, which no network has"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"it holds a tensor of {tensor.numel()} numbers over a smaller storage"
            )


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors in a content, however deep; a shared part, whose id is in
    ``seen``, is gone through once.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | SandboxedObject):
        # all that the sandboxed unpickler can nest
        if id(value) in seen:
            return
        seen.add(id(value))
        inner = value.__dict__ if isinstance(value, SandboxedObject) else value
        for item in inner.values() if isinstance(inner, dict) else inner:
            yield from _tensors(item, seen)
