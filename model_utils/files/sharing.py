"""How much the content of a weights file is once its shared parts are counted at every
place where they stand.

A list of one list twice, of one list twice, … is 40 short lines of a pickle and 10¹² values
for whoever hashes it.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from dataloader.limits import PICKLE_DEPTH, PICKLE_WORK, TENSOR_SHARING
from model_utils.models.sandbox import SandboxedObject

_COLLECTIONS = (dict, list, tuple, set, SandboxedObject)
_PLAIN = frozenset({bool, int, float, type(None)})


class _Extent(NamedTuple):
    """How much a value is with all that is in it."""

    items: int
    n_bytes: int  # of its tensors and texts


def refuse_unfolding(content: object, n_bytes: int, n_pickle: int) -> None:
    """Raise ValueError where a content holds far more than its file has bytes, or is
    nested without bottom.

    Args:
        content: of a weights file, as the sandboxed unpickler gives it.
        n_bytes: of the file.
        n_pickle: of these, the pickle's, of which every value that is there
            once takes one at least.
    """
    extent = _extent(content, {}, 0)
    if extent.items > PICKLE_WORK + n_pickle:
        raise ValueError("it holds shared parts that unfold to millions of values")
    if extent.n_bytes > PICKLE_WORK + TENSOR_SHARING * n_bytes:
        raise ValueError(
            f"it holds shared tensors or texts that unfold to over {TENSOR_SHARING} times its size"
        )


def _extent(value: object, known: dict[int, _Extent | None], depth: int) -> _Extent:
    """The extent of a value; ``known`` has those of collections by id, None
    while one is being counted.
    """
    if isinstance(value, _COLLECTIONS):
        return _extent_of_collection(value, known, depth)
    if isinstance(value, Tensor):
        return _Extent(1, value.numel() * value.element_size())
    if isinstance(value, str | bytes):
        return _Extent(1, len(value))
    return _Extent(1, 0)


def _extent_of_collection(value: object, known: dict[int, _Extent | None], depth: int) -> _Extent:
    """A collection and all that is in it, gone through where it is met first."""
    if id(value) not in known:
        if depth > PICKLE_DEPTH:
            raise ValueError(f"it is nested too deeply (more than {PICKLE_DEPTH} levels)")
        known[id(value)] = None
        items = 1
        n_bytes = 0
        for part in _parts(value):
            if type(part) in _PLAIN:  # most of what a network holds
                items += 1
                continue
            extent = _extent(part, known, depth + 1)
            items += extent.items
            n_bytes += extent.n_bytes
        known[id(value)] = _Extent(items, n_bytes)
    extent_of_all = known[id(value)]
    if extent_of_all is None:
        raise ValueError("it holds a part that holds itself")
    return extent_of_all


def _parts(value: Any) -> Iterable[object]:
    """What is in a collection or an object: of a mapping, its keys and its values."""
    inner = value.__dict__ if isinstance(value, SandboxedObject) else value
    return chain.from_iterable(inner.items()) if isinstance(inner, dict) else inner
