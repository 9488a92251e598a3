"""Which parameters of a network move."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from dataloader.errors import InputError


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of the training by patterns of their names, as ``interactions.0.*``.

    Raises:
        InputError: a pattern fits no parameter, or none is left to train.
    """
    for pattern in patterns:
        fitting = [
            p for name, p in module.named_parameters() if fnmatchcase(name, pattern) and p.numel()
        ]
        if not fitting:
            modules = sorted({name.rpartition(".")[0] for name in _trainable(module)})
            raise InputError(
                f"--freeze {pattern}: no parameter has such a name; there are those of "
                f"{', '.join(modules[:6])} …"
            )
        for parameter in fitting:
            parameter.requires_grad_(False)
    if patterns and not _trainable(module):
        raise InputError("--freeze leaves nothing to train; name fewer parameters")


def _trainable(module: nn.Module) -> list[str]:
    """Names of the parameters that are trained; those without elements have no gradient."""
    return [name for name, p in module.named_parameters() if p.requires_grad and p.numel()]
