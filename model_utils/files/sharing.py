"""How much the content of a weights file is once its shared parts are counted at every place where they stand.

A list of one list twice, of one list twice, … is 40 short lines of a pickle and 10¹² values for whoever hashes it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dataloader.limits import PICKLE_DEPTH, PICKLE_WORK, TENSOR_SHARING
from model_utils.models.sandbox import SandboxedObject


class _Extent(NamedTuple):
    """How much a value is with all that is in it."""

    items: int
    n_bytes: int  # of its tensors and texts


def refuse_unfolding(content: object, n_bytes: int, n_pickle: int) -> None:
    """Raise ValueError where a content holds far more than its file has bytes, or is nested without bottom.

    Args:
        content: of a weights file, as the sandboxed unpickler gives it.
        n_bytes: of the file.
        n_pickle: of these, the pickle's, of which every value that is there once takes one at least.
    """
    extent = _extent(content, {}, 0)
    if extent.items > PICKLE_WORK + n_pickle:
        raise ValueError("it holds shared parts that unfold to millions of values")
    if extent.n_bytes > PICKLE_WORK + TENSOR_SHARING * n_bytes:
        raise ValueError(f"it holds shared tensors or texts that unfold to over {TENSOR_SHARING} times its size")


def _extent(value: object, known: dict[int, _Extent | None], depth: int) -> _Extent:
    """The extent of a value; ``known`` has those of collections by id, None while one is being counted."""
    if isinstance(value, Tensor):
        return _Extent(1, value.numel() * value.element_size())
    if isinstance(value, str | bytes):
        return _Extent(1, len(value))
    if not isinstance(value, Mapping | list | tuple | set | SandboxedObject):
        return _Extent(1, 0)
    if id(value) not in known:
        if depth > PICKLE_DEPTH:
            raise ValueError(f"it is nested too deeply (more than {PICKLE_DEPTH} levels)")
        known[id(value)] = None
        extents = [_extent(item, known, depth + 1) for item in _parts(value)]
        items = 1 + sum(extent.items for extent in extents)
        n_bytes = sum(extent.n_bytes for extent in extents)
        known[id(value)] = _Extent(items, n_bytes)
    extent = known[id(value)]
    if extent is None:
        raise ValueError("it holds a part that holds itself")
    return extent


def _parts(value: Any) -> Iterable[object]:
    """What is in a collection or an object: of a mapping, its keys and its values."""
    inner = value.__dict__ if isinstance(value, SandboxedObject) else value
    if isinstance(inner, Mapping):
        return (part for key_and_value in inner.items() for part in key_and_value)
    return inner
