"""The same run in several processes: that they begin alike, and that they still are alike."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model_utils.errors import InputError
from model_utils.models.versions import code_version
from model_utils.ranks.group import Group
from model_utils.run.train_state import TrainState

WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def require_equal_beginnings(
    group: Group, identity: Mapping[str, Any], settings: Mapping[str, Any], run: Any
) -> None:
    """Compare what every process read by itself: data, settings, code and the
    structure of the network.

    Args:
        group: the processes.
        identity: content and order of the data sets (``data_identity``).
        settings: that decide what a step computes, by name.
        run: assembled.

    Raises:
        InputError: a process has others, as from an older copy on its machine.
    """
    if group.rank.size == 1:
        return
    content = {role: part["sha256"] for role, part in identity.items()}
    description = run.writer.description
    network = [
        description.canonical_text(),
        *map(str, code_version(description).items()),
        run.state.step_parts,
    ]
    for what, values in (
        ("the data", content),
        ("the settings", settings),
        ("network and code", network),
    ):
        group.require_equal(what, _digest(values), InputError)


def _digest(values: object) -> Tensor:
    """(4,) int64 of anything that JSON can hold."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).digest()
    return torch.tensor(
        [int.from_bytes(digest[k : k + 7], "big") for k in range(0, 28, 7)], dtype=torch.int64
    )


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
        for tensor in (*_frozen(state), *_tensors(state)):
            group.give(tensor)
        require_equal_state(group, state)


def fingerprint(state: TrainState) -> Tensor:
    """Sums of the bits of all tensors that a step changes, (n_tensors,) int64, on the device."""
    # torch's plain Adam counts on the host
    return torch.stack([_bits(tensor).to(state.device) for tensor in _tensors(state)])


def _frozen(state: TrainState) -> Iterator[Tensor]:
    """Tensors of the network that no step changes."""
    trained = {id(parameter) for parameter in state.parameters.values()}
    for tensor in (*state.network.module.parameters(), *state.network.module.buffers()):
        if id(tensor) not in trained and tensor.numel():
            yield tensor.detach()


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
