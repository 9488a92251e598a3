"""Are two runs the same, bit for bit, and what differs first if not."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs

# entries of a checkpoint's state that say where and how a run was made, and
# are no part of its result
PLACE_AND_HISTORY = {
    "config",
    "history",
    "reason",
    "metrics_offset",
    "data",
    "computed_on",
    "source",
}


def differences(run: Outputs, other: Outputs) -> list[str]:
    """What differs between two runs, the earliest first: records, then
    checkpoint, then best models.

    Left out are times and rates (``perf``), the run's name and place, the version of the
    code and what says how the run was made (``PLACE_AND_HISTORY``). Everything else must be
    equal to the last bit.
    """
    differing = list(_records(run, other))
    for name in ("checkpoint", "model", "stage_one_model"):
        first = getattr(run, name)
        second = getattr(other, name)
        if first.exists() != second.exists():
            differing.append(
                f"{name}: {'missing' if first.exists() else 'only'} in {second.parent}"
            )
        elif first.exists():
            differing.extend(
                f"{name}: {text}" for text in _different(_content(first), _content(second))
            )
    return differing


def _content(path: Path) -> dict[str, Any]:
    """The result of a run as a file holds it, without name, version, place and history."""
    file = checkpoint.read(path)
    content = {
        k: v
        for k, v in file.content.items()
        if k not in ("run_name", "code_version", "train_state")
    }
    state = file.content.get("train_state", {})
    return content | {"train_state": {k: v for k, v in state.items() if k not in PLACE_AND_HISTORY}}


def _records(run: Outputs, other: Outputs) -> Iterator[str]:
    """The first record of metrics.jsonl that differs; without one, a difference in their number."""
    first = _without_times(run)
    second = _without_times(other)
    for a, b in zip(first, second, strict=False):
        if a != b:
            where = f"{a.get('kind')} record of step {a.get('step')}"
            yield f"metrics.jsonl: {where}: {'; '.join(islice(_different(a, b), 2))}"
            return
    if len(first) != len(second):
        yield f"metrics.jsonl: {len(first)} records against {len(second)}"


def _without_times(outputs: Outputs) -> list[dict[str, Any]]:
    """The records of a run, none where it wrote none, without what depends on the clock."""
    if not outputs.metrics.exists():
        return []
    lines = outputs.metrics.read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "perf"} for line in lines]


def _different(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """Where two nested values differ: tensors in type, shape or any bit, everything
    else where it is unequal.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            yield f"{name}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}"
        elif not torch.equal(_bits(a), _bits(b)):
            yield f"{name}: differs by up to {(a.double() - b.double()).abs().max():.3g}"
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            inner = f"{name}.{key}" if name else str(key)
            if (key in a) != (key in b):
                yield f"{inner}: in one of the two only"
            else:
                yield from _different(a[key], b[key], inner)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for position, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _different(x, y, f"{name}.{position}")
    elif type(a) is not type(b) or (a != b and not (a != a and b != b)):
        # a number that is none is equal to itself
        yield f"{name}: {a!r:.60} against {b!r:.60}"


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: by value 0.0 would be -0.0, and a NaN never itself."""
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
