"""The same run in several processes: that they begin alike, and that they still are alike."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model_utils.ranks.group import Group
from model_utils.run.train_state import TrainState

WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def require_equal_data(group: Group, identity: Mapping[str, Any]) -> None:
    """Compare content and order of the data sets, which every process opened by itself.

    Raises:
        VerificationError: a process has other data, as from an older copy on its machine.
    """
    content = {role: part["sha256"] for role, part in identity["data"].items()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    numbers = [int.from_bytes(digest[k : k + 7], "big") for k in range(0, 28, 7)]
    group.require_equal("the data", torch.tensor(numbers, dtype=torch.int64))


def require_equal_state(group: Group, state: TrainState) -> None:
    """Compare the bits of weights, moments and averages.

    Raises:
        VerificationError: naming a process whose are not those of the first.
    """
    if group.rank.size > 1:
        group.require_equal("the weights", fingerprint(state))


def begin_alike(group: Group, state: TrainState) -> None:
    """Give every process the weights, moments and averages of the first, and compare all of them.

    Raises:
        VerificationError: what was received is not what was sent.
    """
    if group.rank.size > 1:
        for tensor in _tensors(state):
            group.give(tensor)
        require_equal_state(group, state)


def fingerprint(state: TrainState) -> Tensor:
    """Sums of the bits of all tensors that a step changes, (n_tensors,) int64, on the device."""
    return torch.stack([_bits(tensor) for tensor in _tensors(state)])


def _tensors(state: TrainState) -> Iterator[Tensor]:
    yield from (parameter.detach() for parameter in state.parameters.values())
    for parameter in state.parameters.values():
        moments = state.optimizer.state.get(parameter, {})
        yield from (moments[name] for name in sorted(moments) if isinstance(moments[name], Tensor))
    if state.ema is not None:
        yield from state.ema.shadow.values()


def _bits(tensor: Tensor) -> Tensor:
    words = tensor.reshape(-1).contiguous().view(WORD[tensor.element_size()])
    return words.to(torch.int64).sum()
