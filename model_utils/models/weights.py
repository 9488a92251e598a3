"""Weights into a module and out of it, whatever its family: names, shapes,
precision, facts of model.json.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, jit, nn

from model_utils.errors import VerificationError
from model_utils.models.architecture import architecture_of, build_module
from model_utils.models.schema import ModelDescription

# the latest network, with weights that mean nothing
_latest: tuple[str, torch.dtype, nn.Module] | None = None


def to_be_filled(
    description: ModelDescription, dtype: torch.dtype, where: str = "model.json"
) -> nn.Module:
    """A module on the CPU whose weights mean nothing yet; torch's generator is left as it was.

    A training needs four of one network: a second of e3nn's compilation each. The latest one is
    kept and copied, at the cost of its weights' memory.

    Raises:
        InputError: this installation cannot build the structure.
    """
    text = description.canonical_text()
    if _latest is not None and _latest[:2] == (text, dtype):
        return copied(_latest[2])
    generator = torch.random.get_rng_state()
    try:
        module = build_module(description, dtype, where)
    finally:
        torch.random.set_rng_state(generator)
    keep_latest(description, module)
    return module


def keep_latest(description: ModelDescription, module: nn.Module) -> None:
    """Keep a copy of a module as it was built, before it was filled, for
    further ones of its network.
    """
    global _latest
    dtype = next(module.parameters()).dtype
    _latest = (description.canonical_text(), dtype, copied(module))


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters by the module's names; those without elements have no
    gradient and are left out.
    """
    return {name: p for name, p in module.named_parameters() if p.requires_grad and p.numel()}


def copied(module: nn.Module) -> nn.Module:
    """An independent copy, whose tensors are its own; it shares the compiled
    functions and their graphs.

    To write and read that code, as ``copy.deepcopy`` does for e3nn's parts,
    takes six times as long.
    """
    memo: dict[int, Any] = _fixed_copies(module)
    for part in reversed(list(module.modules())):  # what is inside of another comes first
        if isinstance(part, fx.GraphModule):
            memo[id(part.graph)] = part.graph
        elif isinstance(part, jit.ScriptModule) or not _holds_compiled(part):
            continue
        twin = object.__new__(type(part))
        twin.__dict__.update(copy.deepcopy(part.__dict__, memo))
        memo[id(part)] = twin
    return copy.deepcopy(module, memo)


def written_and_read(module: nn.Module) -> nn.Module:
    """An independent copy whose compiled functions have the text that they have after
    being read from a file.
    """
    return copy.deepcopy(module, _fixed_copies(module))


def _fixed_copies(module: nn.Module) -> dict[int, Any]:
    """Copies, by id, of mace's parameters of couplings that do not exist, which
    deepcopy itself cannot copy.
    """
    return {id(p): type(p)(p.detach().clone()) for p in module.parameters() if not p.requires_grad}


def _holds_compiled(module: nn.Module) -> bool:
    return any(isinstance(part, jit.ScriptModule) for part in module.children())


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a module's buffers; of a fresh one, what the description gives in its precision."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def fill_in_precision(
    target: nn.Module, module: nn.Module, described: Mapping[str, torch.Tensor]
) -> None:
    """Give a freshly built network of another precision the weights of a module.

    Weights are rounded or widened. A buffer that holds what the description gives in the module's
    precision stays what it gives in the new one: an E0 that is merely widened would be the number
    that was rounded before, not that of model.json. Other buffers (a release of mace may have had
    another table) are cast like weights.

    Args:
        target: built from the module's description; gets its weights.
        module: on the CPU; stays as it is.
        described: ``buffers_of`` the module as it was freshly built, before it was filled.
    """
    own = target.state_dict()
    for name, tensor in module.state_dict().items():
        if name not in described or not torch.equal(tensor, described[name]):
            own[name].copy_(tensor)


def check_buffers(module: nn.Module, description: ModelDescription, where: str) -> None:
    """Compare the buffers that repeat facts of the description with it, each cast to
    the buffer's precision.

    Raises:
        VerificationError: naming the field, both values and the file.
    """
    buffers = dict(module.named_buffers())
    for field, name, value in architecture_of(description).repeated(description, module):
        stored = buffers[name].detach().cpu()
        expected = torch.tensor(value, dtype=torch.float64).to(stored.dtype)
        if not torch.equal(stored.reshape(-1), expected.reshape(-1)):
            raise VerificationError(
                f"{where}: buffer {name} holds {stored.reshape(-1).tolist()[:4]} but "
                f"model.json says {field} = {expected.reshape(-1).tolist()[:4]}; one of the "
                "two was changed after training"
            )


def load_tensors(
    module: nn.Module, tensors: dict[str, torch.Tensor], description: ModelDescription, where: str
) -> None:
    """Put stored tensors into a built module: names and shapes must match exactly,
    then the buffers' facts.

    Raises:
        VerificationError: naming the first tensors that differ.
    """
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in tensors]
    faults += [f"{name} is unknown" for name in tensors if name not in own]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise VerificationError(
            f"{where}: weights do not fit model.json: {'; '.join(faults[:3])}{more}"
        )
    module.load_state_dict(tensors)
    check_buffers(module, description, where)
