"""Begin with another model: its weights, its structure, and reference energies of the new data's method.

A reference energy is added to the network's interaction energy, so changing it changes energies by a number per atom
and leaves forces and stress as they are. That, and nothing else, may differ between the source and the model before
its first step; ``Origin.check`` compares the two on real structures.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.structure import symbols
from model_utils import model_loader
from model_utils.errors import VerificationError
from model_utils.files.outputs import Outputs, sidecar
from model_utils.model_loader import LoadedModel
from model_utils.models import description as model_json
from model_utils.models.build import ENERGIES
from model_utils.models.description import ModelDescription
from model_utils.models.heads import with_copied_heads
from model_utils.models.narrowing import narrowed
from model_utils.models.network import predict
from model_utils.runtime import log
from model_utils.settings import cli
from model_utils.settings.options import FinetuneOptions, TrainOptions
from model_utils.tasks.describe_data import given_energies

COMPARED = 32  # structures
FITTED = 1000  # structures
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that a fine-tuning begins with, and the description of the one it makes."""

    source: LoadedModel
    description: ModelDescription

    @property
    def kept(self) -> list[int]:
        """Positions in the source's table of the elements of this model."""
        table = self.source.description.atomic_numbers
        return [table.index(number) for number in self.description.atomic_numbers]

    def put_into(self, module: nn.Module) -> None:
        """Give a freshly built module the source's weights; its own reference energies stay."""
        source = self.source.module.to(next(module.parameters()).dtype)
        n_heads = len(self.description.heads)
        if self.description.atomic_numbers != self.source.description.atomic_numbers:
            module.load_state_dict(narrowed(source, module, self.kept))
        elif n_heads != len(self.source.description.heads):
            module.load_state_dict(with_copied_heads(source, module, n_heads))
        else:
            module.load_state_dict({**source.state_dict(), ENERGIES: module.state_dict()[ENERGIES]})

    def check(self, module: nn.Module, data: Dataset) -> None:
        """Compare with the source on structures of the training data.

        Raises:
            VerificationError: energies or forces differ by more than the declared change of reference energies.
        """
        indices = np.linspace(0, len(data) - 1, min(COMPARED, len(data))).astype(int).tolist()
        dtype = next(module.parameters()).dtype
        source, kept = self.source.module.to(dtype), np.array(self.kept)
        old = np.array(self.source.description.atomic_energies)[:, kept]
        copied = len(self.description.heads) != len(old)  # then every head is to be the source's one
        old = np.repeat(old, len(self.description.heads), axis=0) if copied else old
        change = np.array(self.description.atomic_energies) - old
        worst = 0.0
        for i in indices:
            batch = data.batch([i])
            in_source = dataclasses.replace(
                batch,
                species=torch.from_numpy(kept)[batch.species],
                head=torch.zeros_like(batch.head) if copied else batch.head,
            )
            found = [
                _predicted(source, self.source.description, in_source),
                _predicted(module, self.description, batch),
            ]
            species, head = batch.species.numpy(), int(batch.head[0])
            before = float(found[0][0]) + old[head][species].sum()
            after = float(found[1][0]) + float(batch.reference_energy[0])
            scale = max(abs(before), 1.0)
            worst = max(worst, abs(after - before - change[head][species].sum()) / scale)
            forces = found[0][1].abs().max().clamp(min=1e-3)
            worst = max(worst, float((found[1][1] - found[0][1]).abs().max() / forces))
        if not worst <= TOLERANCE[dtype]:
            raise VerificationError(
                f"before its first step the model deviates from {self.source.file.path} by {worst:.2g} (at most "
                f"{TOLERANCE[dtype]:g}) beyond the change of reference energies; nothing was trained"
            )
        log.info("step 0: energies and forces of %d structures are the source's to %.2g", len(indices), worst)


def _predicted(module: nn.Module, description: ModelDescription, batch: Batch) -> tuple[Tensor, Tensor]:
    network = model_loader.network(module, "reference", description)
    found = predict(network, dict(module.named_parameters()), batch, stress=False, training=False)
    assert found.forces is not None
    return found.energy, found.forces


def settings(options: FinetuneOptions) -> TrainOptions:
    """The same run as a training of the model.json that will lie beside its checkpoint."""
    place = Outputs.named(options.output_checkpoint, options.output_model)
    plain = {**cli.as_plain(options), "input_json": str(sidecar(place.checkpoint))}
    return cli.from_plain(TrainOptions, plain, options.input_model)


def origin(options: FinetuneOptions, train: TrainOptions) -> Origin:
    """Load the source and decide on the reference energies.

    Raises:
        InputError: the source cannot be read, or energies are given that do not fit it.
        VerificationError: the source is damaged.
    """
    source = model_loader.load(options.input_model, input_json=options.input_json)
    log.info(
        "source %s: %s, %s, elements %s, weights of %s",
        options.input_model,
        source.description.model_class,
        source.description.hidden_irreps,
        symbols(source.description.atomic_numbers),
        source.file.when(),
    )
    elements, old = source.description.atomic_numbers, source.description.atomic_energies
    new = old
    kept = _kept(source, options)
    if options.E0s == "shift":
        new = _shifted(source, train)
    elif options.E0s != "keep":
        given = given_energies(options.E0s, "keep, shift")
        foreign = sorted(set(given) - set(elements))
        if foreign:
            raise InputError(f"--E0s names {symbols(foreign)}, which the source does not have")
        new = [[given.get(z, before) for z, before in zip(elements, row, strict=True)] for row in old]
    for head, before, after in zip(source.description.heads, old, new, strict=True):
        for number, a, b in zip(elements, before, after, strict=True):
            if a != b:
                log.info("E0 of %s (%s): %.6f → %.6f eV", symbols([number]), head, a, b)
    heads = _heads(source, options)
    if new == old and len(kept) == len(elements) and heads == source.description.heads:
        return Origin(source=source, description=source.description)
    fields = {
        **json.loads(source.description.canonical_text()),
        "atomic_numbers": [elements[k] for k in kept],
        "atomic_energies": [[row[k] for k in kept] for row in (new if len(new) == len(heads) else [*new, *old])],
        "heads": heads,
    }
    for name in ("atomic_inter_scale", "atomic_inter_shift"):
        if fields[name] is not None and len(fields[name]) != len(heads):
            fields[name] = fields[name] * len(heads)
    return Origin(source=source, description=model_json.parse(json.dumps(fields), str(options.input_model)))


def _heads(source: LoadedModel, options: FinetuneOptions) -> list[str]:
    """Heads of the new model: the source's, and a copy under a new name where one was asked for."""
    heads = source.description.heads
    if options.add_head is None:
        return heads
    if len(heads) > 1 or options.elements:
        raise InputError("--add_head copies the head of a source that has one, and not together with --elements")
    if options.add_head in heads:
        raise InputError(f"--add_head {options.add_head}: the source's own head has this name; give another")
    log.info("heads: %s (the source's) and %s, a copy", heads[0], options.add_head)
    return [*heads, options.add_head]


def _kept(source: LoadedModel, options: FinetuneOptions) -> list[int]:
    """Positions in the source's table of the elements that the new model has: all, or those of --elements."""
    from model_utils.run.open_data import numbers_of

    table, asked = source.description.atomic_numbers, numbers_of(options.elements)
    if asked is None:
        return list(range(len(table)))
    foreign = sorted(set(asked) - set(table))
    if foreign:
        raise InputError(f"--elements {symbols(foreign)}: the source does not have it; it has {symbols(table)}")
    kept = [k for k, number in enumerate(table) if number in asked]
    if len(kept) < len(table):
        log.info("the new model has %s of the source's %d elements", symbols([table[k] for k in kept]), len(table))
    return kept


def _shifted(source: LoadedModel, train: TrainOptions) -> list[list[float]]:
    """Reference energies plus the least-squares fit of label − prediction by composition; absent elements stay."""
    from model_utils.run import open_data

    description = source.description
    if len(description.heads) > 1:
        raise InputError("--E0s shift: the source has several heads; give the energies as JSON")
    facts = description.facts()
    data = open_data.training_data(train, facts, source.file.dtype, train.seed).train
    compositions, residuals = [], []
    for i in np.linspace(0, len(data) - 1, min(FITTED, len(data))).astype(int).tolist():
        batch = data.batch([i])
        if bool(batch.labels.energy_mask[0]):
            energy, _ = _predicted(source.module, description, batch)
            residuals.append(float(batch.labels.energy[0]) - float(energy[0]))
            compositions.append(np.bincount(batch.species.numpy(), minlength=len(facts.atomic_numbers)))
    if not residuals:
        raise InputError("--E0s shift: no structure of the training data has an energy")
    counts = np.array(compositions, dtype=float)
    present = counts.any(axis=0)
    fitted, _, rank, _ = np.linalg.lstsq(counts[:, present], np.array(residuals), rcond=None)
    if rank < present.sum():
        log.warning("the compositions do not determine every element's shift: the smallest that fit are taken")
    change = np.zeros(len(facts.atomic_numbers))
    change[present] = fitted
    rest = np.array(residuals) - counts @ change
    log.info(
        "E0 shift fitted to %d structures: error per configuration %.3f → %.3f eV (rms)",
        len(residuals),
        np.sqrt(np.mean(np.square(residuals))),
        np.sqrt(np.mean(rest**2)),
    )
    return [(np.array(description.atomic_energies[0]) + change).tolist()]


def continued(options: FinetuneOptions) -> ModelDescription | None:
    """The description of a fine-tuning that was begun at the place before; None where --resume finds none."""
    from model_utils.run.resuming import newest_checkpoint

    if options.resume is None:
        return None
    place: Path = Outputs.named(options.output_checkpoint, options.output_model).checkpoint
    file = newest_checkpoint(place)
    return None if file is None else file.description
