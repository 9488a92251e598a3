"""What a weights file of ours must hold, entry by entry, so that a forged or damaged one is
named before it is used.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

ENTRIES = {  # what every file of ours has, by type
    "weights": str,
    "model_state_dict": dict,
    "model_json_text": str,
    "model_json_hash": str,
    "kind": str,
    "run_name": str,
    "code_version": dict,
}
SAYS_WHEN = {  # does it say from when the weights are?
    "model": lambda content: _has_counts(content),
    "checkpoint": lambda content: _has_counts(content.get("train_state")),
}


def missing(content: Mapping[str, Any]) -> Iterator[str]:
    """Entries of one of our files that are not there, or are of another kind than we write."""
    for name, kind in ENTRIES.items():
        if not isinstance(content.get(name), kind):
            yield name
    kind_of_file = content.get("kind")
    says_when = SAYS_WHEN.get(kind_of_file) if isinstance(kind_of_file, str) else None
    if says_when is None or not says_when(content):
        yield "epoch or step"
    tensors = content.get("model_state_dict")
    if isinstance(tensors, dict) and not _are_weights(tensors):
        yield "tensors of model_state_dict"
    if not _are_plugins(content.get("plugins", [])):
        yield "plugins"


def _are_weights(tensors: Mapping[Any, object]) -> bool:
    """Whether all values are tensors, and some of them real numbers."""
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return False
    return any(
        isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors.values()
    )


def _are_plugins(stored: object) -> bool:
    """Whether an entry is what ``plugins.loaded`` gave: names and digests."""
    if not isinstance(stored, list):
        return False
    return all(_is_plugin(entry) for entry in stored)


def _is_plugin(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("name"), str) and isinstance(entry.get("sha256"), str)


def _has_counts(state: object) -> bool:
    return isinstance(state, dict) and all(
        isinstance(state.get(name), int) for name in ("epoch", "step")
    )
