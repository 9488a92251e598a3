"""Networks of other libraries as families of networks.

A library is imported when one of its networks is built.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import torch
from torch import Tensor, nn

from dataloader.errors import InputError
from model_utils.models.libraries.graph_pes_descriptions import (
    NequipDescription,
    PainnDescription,
    SchnetDescription,
    TensornetDescription,
)
from model_utils.models.libraries.library_description import LibraryDescription
from model_utils.models.libraries.visnet_description import VisnetDescription
from model_utils.models.network import Network
from model_utils.models.seams import Form, Repeated

EXTRA = "pip install -e '.[architectures]' in the checkout"
OF_MODEL_JSON = (
    "atomic_energies",
    "atomic_inter_scale",
    "atomic_inter_shift",
    "atomic_numbers",
    "r_max",
)
Builder = Callable[[LibraryDescription, torch.dtype], nn.Module]


def _graph_pes() -> Builder:
    from model_utils.models.libraries.graph_pes_networks import GraphPesModule

    return GraphPesModule


def _torch_geometric() -> Builder:
    from model_utils.models.libraries.visnet import VisnetModule

    return VisnetModule


def _network(module: nn.Module, description: LibraryDescription) -> Network:
    from model_utils.models.libraries.library_module import LibraryNetwork

    return LibraryNetwork(module, description)


FORMS: dict[str, Form] = {"reference": Form(network=_network)}


class LibraryArchitecture:
    """One class of networks of another library.

    Args:
        description: of its model.json.
        home: imports the library and gives its module.
        repeats: parts of the library's network that repeat a field, by their names within it.
        computed_with: further packages that compute it.
    """

    reference_energies = "atomic_energies"
    namespaces = ("model_utils.models.libraries.",)
    forms: ClassVar = FORMS
    exports = ("safetensors",)

    def __init__(
        self,
        description: type[LibraryDescription],
        home: Callable[[], Builder],
        repeats: Mapping[str, str] | None = None,
        computed_with: Sequence[str] = (),
    ) -> None:
        self.description = description
        self._home = home
        self._repeats = repeats or {}
        self._packages = (description.package, *computed_with)

    def build(self, description: LibraryDescription, dtype: torch.dtype, where: str) -> nn.Module:
        """The library's network in our module, on the CPU, with weights drawn
        from torch's generator.

        Raises:
            InputError: the library is not installed, or cannot build the structure.
        """
        build = self._imported(description, where)
        try:
            return build(description, dtype)
        except Exception as error:  # libraries assert and raise a dozen types
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{description.package} {version(description.package)} cannot build the network "
                f"that {where} describes: {detail}"
            ) from error

    def _imported(self, description: LibraryDescription, where: str) -> Builder:
        """The library's module; an import may draw random numbers, and a run's
        follow from its seed alone.
        """
        generator = torch.random.get_rng_state()
        of_python = random.getstate()
        try:
            return self._home()
        except ImportError as error:
            raise InputError(
                f"{where}: {description.model_class} is computed by {description.package}, which "
                f"cannot be imported ({error}): {EXTRA}"
            ) from None
        finally:
            torch.random.set_rng_state(generator)
            random.setstate(of_python)

    def repeated(self, description: LibraryDescription, module: nn.Module) -> list[Repeated]:
        """Our buffers, and those of the library's network that repeat a field."""
        facts = [Repeated(name, name, getattr(description, name)) for name in OF_MODEL_JSON]
        for buffer, _ in module.named_buffers():
            field = next(
                (f for ending, f in self._repeats.items() if buffer.endswith(ending)), None
            )
            if field is not None:
                facts.append(Repeated(field, buffer, getattr(description, field)))
        return facts

    def versions(self) -> Mapping[str, str]:
        """Versions of the library and of what computes with it; empty where it is not installed."""
        try:
            return {name: version(name) for name in self._packages}
        except PackageNotFoundError:
            return {}

    def narrowed(
        self, source: nn.Module, target: nn.Module, kept: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The source's weights as they are: tables of elements have a row for each
        element that there is.
        """
        own = target.state_dict()
        return {
            **source.state_dict(),
            **{name: own[name] for name in ("atomic_energies", "atomic_numbers")},
        }

    def with_copied_heads(
        self, source: nn.Module, target: nn.Module, parents: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """Not offered.

        Raises:
            InputError: always; a description with several heads is refused before.
        """
        name = self.description.__name__.removesuffix("Description")
        raise InputError(
            f"{name} has one head, and none can be added; leave --add_head and --replay out"
        )


CUTOFF = {"network.cutoff": "r_max"}
PAINN = LibraryArchitecture(PainnDescription, _graph_pes, CUTOFF)
TENSORNET = LibraryArchitecture(TensornetDescription, _graph_pes, CUTOFF)
SCHNET = LibraryArchitecture(SchnetDescription, _graph_pes, CUTOFF)
NEQUIP = LibraryArchitecture(
    NequipDescription, _graph_pes, {**CUTOFF, "aggregation.scale": "avg_num_neighbors"}, ("e3nn",)
)
VISNET = LibraryArchitecture(VisnetDescription, _torch_geometric)
