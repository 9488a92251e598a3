"""Begin with another model: its weights, its structure, and reference energies of
the new data's method.

A reference energy is added to the network's interaction energy, so changing it changes
energies by a number per atom and leaves forces and stress as they are. That, and nothing
else, may differ between the source and the model before its first step; ``Origin.check``
compares the two on real structures.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.labels import NOT_READ
from dataloader.quantities import ENERGY
from dataloader.structure import symbols
from model_utils import model_loader
from model_utils.errors import VerificationError
from model_utils.files.outputs import Outputs, real, sidecar
from model_utils.model_loader import LoadedModel
from model_utils.models import description as model_json
from model_utils.models.architecture import architecture_of
from model_utils.models.description import ModelDescription
from model_utils.models.network import Network, predict
from model_utils.run.data.open_data import USUAL, TrainingData, numbers_of
from model_utils.runtime import DTYPES, log
from model_utils.settings import reading
from model_utils.settings.options import GENERAL_FLAGS, FinetuneOptions, SourceOptions, TrainOptions

COMPARED = 32  # structures
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative
# eV/Å, e·Å; below it rounding is that of what cancels
SMALLEST = {torch.float64: 1e-3, torch.float32: 1.0}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that a fine-tuning begins with, and the description of the one it makes."""

    source: LoadedModel  # in the precision of the run
    description: ModelDescription
    parents: tuple[int, ...]  # for each head, the position of the source's head that it begins as
    data: TrainingData | None = None  # where they were opened already
    # elements whose reference energies the user gave, by head, where some were given
    given: Mapping[str, Set[int]] = field(default_factory=dict)
    given_by_name: Set[str] = frozenset()  # heads that the user named for it

    @property
    def copied(self) -> bool:
        """Whether a head was added."""
        return len(self.parents) != len(self.source.description.heads)

    @property
    def kept(self) -> list[int]:
        """Positions in the source's table of the elements of this model."""
        table = self.source.description.atomic_numbers
        return [table.index(number) for number in self.description.atomic_numbers]

    def put_into(self, module: nn.Module) -> None:
        """Give a freshly built module the source's weights; its own reference energies stay."""
        source = self.source.module
        family = architecture_of(self.description)
        if self.description.atomic_numbers != self.source.description.atomic_numbers:
            module.load_state_dict(family.narrowed(source, module, self.kept))
        elif self.copied:
            module.load_state_dict(family.with_copied_heads(source, module, self.parents))
        else:
            own = family.reference_energies
            kept = {} if own is None else {own: module.state_dict()[own]}
            module.load_state_dict({**source.state_dict(), **kept})

    def check(self, module: nn.Module, data: Dataset, step: str, device: torch.device) -> None:
        """Compare with the source on structures of the training data, both in the form of the
        network that is trained.

        Args:
            module: on the CPU, where it stays.
            data: to train on.
            step: form of the network.
            device: on which it is trained; other devices have other kernels.

        Raises:
            VerificationError: what they give differs by more than the declared change
                of reference energies.
        """
        source_network = network_on(device, self.source.module, step, self.source.description)
        network = network_on(device, module, step, self.description)
        indices = np.linspace(0, len(data) - 1, min(COMPARED, len(data))).astype(int).tolist()
        dtype = next(module.parameters()).dtype
        worst = 0.0
        for index in indices:
            deviations = self._deviations(source_network, network, data.batch([index]))
            worst = float(np.max([worst, *deviations]))  # which is NaN where one of them is
        if not worst <= TOLERANCE[dtype]:
            raise VerificationError(
                f"before its first step the model deviates from {self.source.file.path} by "
                f"{worst:.2g} (at most {TOLERANCE[dtype]:g}) beyond the change of reference "
                "energies; nothing was trained"
            )
        gives = (
            "energies and forces"
            if ENERGY.name in network.gives
            else " and ".join(f"{q}s" for q in network.gives)
        )
        log.info("step 0: %s of %d structures are the source's to %.2g", gives, len(indices), worst)

    def _deviations(self, source_network: Network, network: Network, batch: Batch) -> list[float]:
        """Relative deviations between source and model on a batch of one structure,
        of all that both give.

        The change of reference energies that was asked for is no deviation.
        """
        dtype = next(network.module.parameters()).dtype
        theirs = predicted(source_network, self.in_source(batch))
        ours = predicted(network, batch)
        deviations = (
            []
            if ENERGY.name not in ours
            else [self._of_energy(theirs.pop(ENERGY.name), ours, batch)]
        )
        for name, expected in theirs.items():
            scale = expected.abs().max().clamp(min=SMALLEST[dtype])
            deviations.append(float((ours[name] - expected).abs().max() / scale))
        return deviations

    def _of_energy(self, source_energy: Tensor, ours: Mapping[str, Tensor], batch: Batch) -> float:
        """The relative deviation of the energy of a structure beyond the change
        of reference energies.
        """
        # (n_heads, n_elements) of the source, eV
        source_table = np.array(self.source.description.atomic_energies)
        # (n_heads, n_elements) of this model
        E0s_before = source_table[:, self.kept][list(self.parents)]
        E0s_after = np.array(self.description.atomic_energies)
        species = batch.species.numpy()
        head = int(batch.head[0])
        asked_change = (E0s_after - E0s_before)[head][species].sum()
        before = float(source_energy) + E0s_before[head][species].sum()
        after = float(ours[ENERGY.name]) + float(batch.reference_energy[0])
        return float(abs(after - before - asked_change) / max(abs(before), 1.0))

    def in_source(self, batch: Batch) -> Batch:
        """A batch of this model as the source takes it."""
        species = torch.tensor(self.kept)[batch.species]
        head = torch.tensor(self.parents)[batch.head]
        return dataclasses.replace(batch, species=species, head=head, orders={})


def network_on(
    device: torch.device, module: nn.Module, step: str, description: ModelDescription
) -> Network:
    """A form of a network on a device; the module, which is on the CPU, stays
    there: files are made of it.

    Raises:
        InputError: the form has no kernels for the device, or cannot have this network's weights.
    """
    there = module if device.type == "cpu" else model_loader.copied(module).to(device)
    return model_loader.build_network(there, step, description)


def predicted(network: Network, batch: Batch) -> dict[str, Tensor]:
    """What a network gives of a batch on the host, there again: by
    quantity, energies without E0s.
    """
    parameters = dict(network.module.named_parameters())
    device = next(network.module.parameters()).device
    prediction = predict(
        network, parameters, network.prepared(batch).to(device), wanted=(), training=False
    )
    return {name: value.cpu() for name, value in prediction.items()}


def settings(
    options: FinetuneOptions,
    heads: Sequence[str],
    replayed: Path | None,
    stored_head: str | None = None,
) -> TrainOptions:
    """Settings of a fine-tuning as a training of the model.json that will lie
    beside its checkpoint.

    With them ``resume.py`` continues it as any other run, without the source.

    Args:
        options: of the fine-tuning.
        heads: of the model it makes.
        replayed: the labelled structures to replay; None without replay.
        stored_head: of structures that name none, in a run that goes on; earlier versions chose
            otherwise.

    Raises:
        InputError: settings that contradict each other.
    """
    place = Outputs.named(options.output.output_checkpoint, options.output.output_model)
    plain = {**reading.as_plain(options), "input_json": str(sidecar(place.checkpoint))}
    # of several heads none is the usual one, but where one is left beside that which was asked for
    asked = options.replay_head if options.replay is not None else options.add_head
    others = [head for head in heads if head != asked]
    if len(heads) == 2 and len(others) == 1:
        plain["head"] = options.data.head or stored_head or others[0]
    if replayed is not None:
        replay = SourceOptions(
            path=replayed,
            head=options.replay_head,
            head_of_all=True,  # whatever head they had where they are from
            weight=options.replay_weight,
            ratio=options.replay_ratio,
            energy_key=USUAL,
            forces_key=USUAL,
            stress_key=USUAL,
            charge_key=_usual(options.data.labels.charge_key),
            spin_key=_usual(options.data.labels.spin_key),
        )
        plain["sources"] = [*plain["sources"], reading.as_plain(replay)]
    return reading.from_plain(TrainOptions, plain, options.input_model)


def _usual(own: str | None) -> str | None:
    """The key of replayed structures where that of the new data has a name of its own; where it is
    not looked for, neither is theirs.
    """
    return USUAL if own not in (None, NOT_READ) else None


def refuse_place(options: FinetuneOptions, outputs: Outputs) -> None:
    """Refuse a place that holds another run or what this one reads, before anything slow begins.

    Raises:
        InputError: naming the file.
    """
    if options.run.dry_run:
        return
    own = {real(path) for path in (*outputs.of_another_run(), *outputs.model_jsons, outputs.replay)}
    source = [options.input_model, sidecar(options.input_model), options.input_json]
    data = [file.path for role in GENERAL_FLAGS for file in options.data.files(role)]
    for path in [*source, options.replay, *data]:
        if path is not None and path.exists() and real(path) in own:
            what = "the source" if path in source else "read"
            raise InputError(
                f"{path} is {what}, and this run would write over it; give another "
                "--output_checkpoint"
            )
    if options.output.resume is None and not options.output.overwrite:
        outputs.refuse_another_run()
        if options.replay_labels == "source" and outputs.replay.exists():
            raise InputError(
                f"{outputs.replay} is there already, and the labels of --replay would be written "
                "over it; move it away, replace it with --overwrite, or give another "
                "--output_checkpoint"
            )


def origin(options: FinetuneOptions) -> Origin:
    """Load the source and decide what the new model has: elements, heads, and reference
    energies that are given.

    Raises:
        InputError: the source cannot be read, or what is asked for does not fit it.
        VerificationError: the source is damaged.
    """
    source = model_loader.load(
        options.input_model,
        dtype=DTYPES.get(options.device.dtype or ""),
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
        restore_sidecar=not options.run.dry_run,
    )
    log.info(
        "source %s: %s, elements %s, weights of %s",
        options.input_model,
        source.description.summary(),
        symbols(source.description.atomic_numbers),
        source.file.when(),
    )
    if options.E0s != "keep" and architecture_of(source.description).reference_energies is None:
        raise InputError(
            f"--E0s {options.E0s}: {source.description.model_class} has no energies; "
            "leave the flag out"
        )
    heads, parents = _heads(source, options)
    kept = _kept(source, options)
    if (
        options.E0s != "keep"
        and options.replay is not None
        and options.replay_head in source.description.heads
    ):
        raise InputError(
            f"--E0s changes the reference energies of head {options.replay_head}, in "
            "which the source's own structures would be replayed; give a new "
            "--replay_head, or keep the energies"
        )
    if len(kept) == len(source.description.atomic_numbers) and heads == source.description.heads:
        return Origin(source=source, description=source.description, parents=parents)
    fields = source.description.for_heads(heads, parents, kept)
    description = model_json.parse(json.dumps(fields), str(options.input_model))
    return Origin(source=source, description=description, parents=parents)


def _heads(source: LoadedModel, options: FinetuneOptions) -> tuple[list[str], tuple[int, ...]]:
    """Heads of the new model, the source's and one more where it was asked for, and which
    of the source's each is.

    Raises:
        InputError: the name is taken, or there is no such head to copy.
    """
    heads = source.description.heads
    own = tuple(range(len(heads)))
    replay = options.replay_head if options.replay is not None else None
    flag, added = ("--replay_head", replay) if replay else ("--add_head", options.add_head)
    copied = options.copy_head or heads[0]
    if copied not in heads:
        raise InputError(f"--copy_head {copied}: the source has {', '.join(heads)}")
    if added is None or (added in heads and replay):
        if options.copy_head is not None:
            raise InputError(
                f"--copy_head {options.copy_head}: no head is made, as the source has "
                f"{flag} {added}; leave it out, or give a new name"
            )
        return heads, own
    if options.data.filters.elements:
        raise InputError(
            f"{flag} {added}: a head is not copied together with --elements; do one after the other"
        )
    if added in heads:
        raise InputError(f"--add_head {added}: a head of the source has this name; give another")
    if len(heads) > 1 and options.copy_head is None:
        log.warning(
            "warning: %s %s copies head %s, the first of %s; --copy_head names another",
            flag,
            added,
            heads[0],
            ", ".join(heads),
        )
    log.info("heads: %s (the source's) and %s, a copy of %s", ", ".join(heads), added, copied)
    return [*heads, added], (*own, heads.index(copied))


def _kept(source: LoadedModel, options: FinetuneOptions) -> list[int]:
    """Positions in the source's table of the elements that the new model has: all,
    or those of --elements.
    """
    table = source.description.atomic_numbers
    asked = numbers_of(options.data.filters.elements)
    if asked is None:
        return list(range(len(table)))
    foreign = sorted(set(asked) - set(table))
    if foreign:
        raise InputError(
            f"--elements {symbols(foreign)}: the source does not have it; it has {symbols(table)}"
        )
    kept = [k for k, number in enumerate(table) if number in asked]
    if len(kept) < len(table):
        log.info(
            "the new model has %s of the source's %d elements",
            symbols([table[k] for k in kept]),
            len(table),
        )
    return kept
