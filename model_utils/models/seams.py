"""The interface of a family of networks: what the loop, the files and the data may know
of it, and nothing else.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from model_utils.models.network import Network
from model_utils.models.schema import ModelDescription


class Repeated(NamedTuple):
    """A buffer of a module that repeats a fact of model.json, with which it must agree
    whenever weights are loaded.
    """

    field: str  # of model.json
    buffer: str  # its name in the module
    value: object  # number, or nested lists of numbers


def unprepared(batch: Batch) -> Batch:
    """The batch as it is, for forms that need nothing besides its arrays."""
    return batch


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to compute a family's networks, as ``--step`` names it."""

    network: Callable[[nn.Module, Any], Network]  # from a module and its description
    # adds what the form needs of a batch, in the loader's workers
    prepare: Callable[[Batch], Batch] = unprepared
    # why it does not cover a description, as a phrase
    why_not: Callable[[Any], str | None] = lambda _: None


class Architecture(Protocol):
    """A family of networks."""

    @property
    def description(self) -> type[ModelDescription]:
        """The class that holds a model.json of this family, checked."""
        ...

    @property
    def reference_energies(self) -> str | None:
        """The name of the buffer of a module that holds E0s, (n_heads, n_elements), eV;
        None without energies.
        """
        ...

    @property
    def namespaces(self) -> tuple[str, ...]:
        """How the full names of the modules' classes begin; the sandboxed unpickler
        reads them and calls none.
        """
        ...

    @property
    def forms(self) -> Mapping[str, Form]:
        """Ways to compute a network by the name in ``--step``; "reference" takes
        over where "fast" is not.
        """
        ...

    @property
    def exports(self) -> Collection[str]:
        """Which forms of ``read_model.py convert --to`` there are of it."""
        ...

    def build(self, description: Any, dtype: torch.dtype, where: str) -> nn.Module:
        """A module on the CPU with weights drawn from torch's generator.

        Raises:
            InputError: this installation cannot build what the file ``where`` describes.
        """
        ...

    def repeated(self, description: Any, module: nn.Module) -> list[Repeated]:
        """The buffers of this module that must say what its description says."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that compute it, by name; another one need not
        give the same last bits.
        """
        ...

    def narrowed(
        self, source: nn.Module, target: nn.Module, kept: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The state of a module for some of the source's elements, ``kept`` by
        position in its table.

        Raises:
            InputError: it cannot be had of this network.
        """
        ...

    def with_copied_heads(
        self, source: nn.Module, target: nn.Module, parents: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The state of a module with other heads: each begins as the source's head of the
        position in ``parents``.

        Raises:
            InputError: it cannot be had of this network.
        """
        ...
