"""The model that is judged, or several as a committee, in the precision and on the
device where that is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dataloader.dataset import Dataset
from model_utils import model_loader, runtime
from model_utils.errors import InputError
from model_utils.model_loader import LoadedModel
from model_utils.models.committee import Committee, other_zero_point, repeated_member
from model_utils.models.network import Network, Parameters
from model_utils.physics.subject import Subject
from model_utils.run import announcement
from model_utils.run.data import open_data
from model_utils.runtime import log
from model_utils.settings.options import EvaluateOptions
from model_utils.tasks import evaluation_report


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model, or a committee of them, that is going to be judged.

    Attributes:
        members: the weights files, one or several of equal elements, heads, cutoff and inputs.
        dtype: working precision.
        device: where it computes.
        network: what computes; of several models the means over them and how far they are apart.
        weights: parameters of the network.
    """

    members: tuple[LoadedModel, ...]
    dtype: torch.dtype
    device: torch.device
    network: Network
    weights: Parameters

    @property
    def loaded(self) -> LoadedModel:
        """The first of the models."""
        return self.members[0]

    @property
    def is_committee(self) -> bool:
        """Whether there are several models."""
        return len(self.members) > 1

    def subject(self, data: Dataset) -> Subject:
        """The model as the checks of its physics take it."""
        return Subject(
            network=self.network,
            weights=self.weights,
            facts=data.facts,
            dtype=self.dtype,
            device=self.device,
        )

    def data(self, options: EvaluateOptions) -> Dataset:
        """The structures of the options, as this model takes them."""
        return open_data.evaluation_data(options, self.loaded.description.facts(), self.dtype)


def opened(options: EvaluateOptions) -> OpenedModel:
    """Load and verify the models; set up precision and device.

    Raises:
        InputError: a file cannot be read, several models are not of one kind, or energies
            of atoms cannot be had.
        VerificationError: a file is damaged or not of its model.json.
    """
    members = tuple(_loaded(options, path) for path in options.input_model)
    _refuse_unlike(members)
    dtype = runtime.dtype_of(options.device.dtype, members[0].file.dtype)
    device = runtime.start(
        device=options.device.device, dtype=dtype, threads=options.device.threads, seed=0
    )
    for member in members:
        evaluation_report.say_what_is_used(member, dtype, device)
        evaluation_report.warn_of_wrong_forces(member)
    _warn_of_other_zero_points(members)
    _warn_of_a_repeated_one(members)
    networks = [
        model_loader.build_network(member.module.to(device), options.step, member.description)
        for member in members
    ]
    announcement.announce_step(networks[0])
    network = _as_one(networks, members, of_atoms=options.atom_energies)
    weights = model_loader.trainable(network.module)
    return OpenedModel(
        members=members, dtype=dtype, device=device, network=network, weights=weights
    )


def _loaded(options: EvaluateOptions, path: Path) -> LoadedModel:
    return model_loader.load(
        path,
        dtype=runtime.DTYPES.get(options.device.dtype or ""),
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
    )


def _refuse_unlike(members: Sequence[LoadedModel]) -> None:
    """Raise InputError unless all models see the same batches."""
    first = members[0]
    for other in members[1:]:
        differing = []
        for name in ("model_class", "atomic_numbers", "heads", "r_max"):
            ours = getattr(first.description, name)
            theirs = getattr(other.description, name)
            if ours != theirs:
                differing.append(f"{name} {theirs!s:.60} and {ours!s:.60}")
        if first.description.features() != other.description.features():
            differing.append("other inputs")
        if (
            first.file.dtype != other.file.dtype
            and next(first.module.parameters()).dtype != next(other.module.parameters()).dtype
        ):
            differing.append("other precisions, for which --dtype chooses one")
        if differing:
            raise InputError(
                f"--input_model: {other.file.path} is no member of a committee with "
                f"{first.file.path}: {'; '.join(differing)}; name models of one kind, or "
                "evaluate them one by one"
            )


def _warn_of_other_zero_points(members: Sequence[LoadedModel]) -> None:
    first = members[0]
    for other in members[1:]:
        for head in range(len(first.description.heads)):
            ours, theirs = (
                dict(
                    zip(
                        m.description.atomic_numbers,
                        m.description.atomic_energies[head],
                        strict=True,
                    )
                )
                for m in (first, other)
            )
            text = other_zero_point(ours, theirs, first.file.path, other.file.path)
            if text is not None:
                log.warning("warning: %s", text)
                break


def _warn_of_a_repeated_one(members: Sequence[LoadedModel]) -> None:
    text = repeated_member([(m.file.path, model_loader.trainable(m.module)) for m in members])
    if text is not None:
        log.warning("warning: %s", text)


def _as_one(
    networks: Sequence[Network], members: Sequence[LoadedModel], *, of_atoms: bool
) -> Network:
    """One network alone as it is; several, or one with energies of atoms, as a committee.

    Raises:
        InputError: energies of atoms are asked for, and a network does not give them.
    """
    if of_atoms:
        for member, network in zip(members, networks, strict=True):
            if not hasattr(network, "energies_of_atoms"):
                raise InputError(
                    f"--atom_energies: {member.file.path} is a {member.description.model_class}, "
                    "which gives no energies of atoms; leave the flag out"
                )
    if len(networks) == 1 and not of_atoms:
        return networks[0]
    facts = [member.description.facts() for member in members]
    return Committee(networks, facts, of_atoms=of_atoms)
