"""The digest of what a checkpoint holds, and numbers in it that are none."""

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def digest(value: object) -> str:
    """sha256 over types, shapes and bytes of nested content; survives copying and
    renaming, unlike a file time.
    """
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def non_finite(value: object, name: str = "") -> Iterator[str]:
    """Names of tensors that hold NaN or infinity."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not torch.isfinite(value).all():
            yield name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from non_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from non_finite(item, f"{name}.{position}")


def _feed(hasher: Any, value: object) -> None:
    """Hash a value with its type and its size, so that no two contents give the same bytes.

    What is hashed decides whether checkpoints of earlier versions are still whole:
    it must stay as it is.

    Raises:
        TypeError: the value would need an allow-list to load.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        hasher.update(f"tensor {tensor.dtype} {tuple(tensor.shape)};".encode())
        hasher.update(
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    elif isinstance(value, Mapping):
        hasher.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            _feed(hasher, key)
            _feed(hasher, item)
    elif isinstance(value, list | tuple):
        hasher.update(f"{type(value).__name__} {len(value)};".encode())
        for item in value:
            _feed(hasher, item)
    elif type(value) is float:
        hasher.update(b"float " + struct.pack("<d", value))
    elif value is None or type(value) in (bool, int, str):
        # not their subclasses: numpy's float64 is one
        text = str(value).encode("utf-8", "surrogatepass")
        hasher.update(f"{type(value).__name__} {len(text)};".encode() + text)
    else:
        raise TypeError(
            f"a {type(value).__name__} may not stand in a checkpoint: it would need an "
            "allow-list to load"
        )
