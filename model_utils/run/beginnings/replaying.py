"""Replay: what the source was trained on beside the new data, labelled by the source
where it has no labels.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch
from ase import Atoms

from dataloader import durable
from dataloader.batch import Batch
from dataloader.data_file import SourceSpec
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.formats import format_of
from dataloader.frames import LABEL, as_extended_xyz, bare_atoms, put
from dataloader.labels import TO_PREDICT
from dataloader.record_details import HELD_NAME, weights_by_name
from dataloader.sources import open_sources
from losses import Loss, Prediction
from model_utils import model_loader, runtime
from model_utils.errors import cannot_write
from model_utils.files.generations import previous_generation
from model_utils.files.outputs import Outputs
from model_utils.model_loader import LoadedModel
from model_utils.models.network import Network
from model_utils.ranks.group import Group
from model_utils.run.budget import with_measured_evaluation_budget
from model_utils.run.data import open_data
from model_utils.run.interruption import Interruption
from model_utils.run.loading import evaluator
from model_utils.run.predictions import of_structure, with_references
from model_utils.runtime import log
from model_utils.settings.options import FinetuneOptions


def replayed_file(options: FinetuneOptions, outputs: Outputs) -> Path | None:
    """The file of what is replayed: the user's, or the one that got the source's
    labels; none without replay.
    """
    return outputs.replay if options.replay_labels == "source" else options.replay


@contextmanager
def place_to_label(
    options: FinetuneOptions, outputs: Outputs, group: Group
) -> Iterator[Path | None]:
    """The file of what is replayed, before the source has labelled it; the user's
    where it needs no labels.

    Where no training begins, the place is left as it was. Of several processes the first makes it.

    Yields:
        The file; None without replay.
    """
    if options.replay_labels == "file":
        yield options.replay
    elif group.rank.is_first:
        with _place_of_labels(options, outputs) as path:
            group.of_first(lambda: os.path.realpath(path).encode())
            yield path
    else:
        yield Path(group.of_first(bytes).decode())


@contextmanager
def _place_of_labels(options: FinetuneOptions, outputs: Outputs) -> Iterator[Path]:
    if options.run.dry_run:  # writes nothing that stays
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / outputs.replay.name
    else:
        before = outputs.replay_before  # goes with the other run's files
        if options.output.overwrite and outputs.replay.exists() and not before.exists():
            os.replace(outputs.replay, before)
        try:
            yield outputs.replay
        finally:
            if options.output.overwrite and before.exists():
                os.replace(before, outputs.replay)
            elif not outputs.of_another_run():
                outputs.replay.unlink(missing_ok=True)


def take_back(outputs: Outputs) -> None:
    """Give a run that goes on the labels it was trained with, where a fine-tuning that was to
    replace it was killed.

    The labels of a run that is to be overwritten wait beside the new ones until all other
    files of it are removed.

    Args:
        outputs: of the run, held by this process.

    Raises:
        InputError: the file cannot be given its name.
    """
    before = outputs.replay_before
    generations = (outputs.checkpoint, previous_generation(outputs.checkpoint))
    if not before.exists() or not any(path.exists() for path in generations):
        return
    try:
        os.replace(before, outputs.replay)
    except OSError as error:
        raise InputError(
            f"{before} holds the labels that the run replays, and cannot be named "
            f"{outputs.replay.name} ({error.strerror}); rename it, then resume"
        ) from None
    log.warning(
        "warning: a fine-tuning that was to replace this run was killed before its first step: %s "
        "is again what this run replays",
        outputs.replay,
    )


def label(
    options: FinetuneOptions, source: LoadedModel, path: Path, stop: Interruption, group: Group
) -> None:
    """Write the structures of --replay with energies, forces and stress of the
    source, batch by batch.

    Raises:
        InputError: the structures cannot be read, or the file cannot be written.
        NonFiniteError: the source gives no numbers for one of them.
    """
    assert options.replay is not None
    dtype = runtime.dtype_of(options.device.dtype, source.file.dtype)
    device = runtime.start(
        device=options.device.device,
        dtype=dtype,
        threads=options.device.threads,
        seed=options.run.seed,
    )
    group.connect(device)
    description = source.description
    # that of which the head of the replay is a copy, where it is a new one
    head = options.replay_head
    if head not in description.heads:
        head = options.copy_head or description.heads[0]
    data = _unlabelled(options, source, head, dtype)
    module = model_loader.copied(source.module).to(device)
    network = model_loader.build_network(module, options.run.step, description)
    try:
        with stop.deferred(), _written(path, group) as stream:
            _write_labels(stream, options, data, network, stop, group)
    except OSError as error:
        raise cannot_write(path, error) from None
    group.once(lambda: None)  # the others open the file when it is complete
    log.info(
        "replay: %d structures of %s have the labels of the source's head %s",
        len(data),
        options.replay,
        head,
    )


@contextmanager
def _written(path: Path, group: Group) -> Iterator[TextIO]:
    """The file, in the first process; the others have nothing to write."""
    if group.rank.is_first:
        with durable.text_stream(path) as stream:
            yield stream
    else:
        yield io.StringIO()


def _write_labels(
    stream: TextIO,
    options: FinetuneOptions,
    data: Dataset,
    network: Network,
    stop: Interruption,
    group: Group,
) -> None:
    """Predict structures and write them as extended XYZ, batch by batch."""
    device = next(network.module.parameters()).device
    weights = model_loader.trainable(network.module)
    batches = with_measured_evaluation_budget(
        options.batches, network, weights, data, device, group
    )
    evaluate = evaluator(
        data,
        batches,
        device,
        stop.watch,
        what="labels of the source",
        everything=True,  # stress too, though the structures have no label of it
        prepare=network.prepared,
        group=group,
    )

    def write(batch: Batch, prediction: Prediction) -> None:
        stream.write(as_extended_xyz(list(_frames(data, batch, prediction))))

    evaluate(network, weights, Loss.of(), write)


def _unlabelled(
    options: FinetuneOptions, source: LoadedModel, head: str, dtype: torch.dtype
) -> Dataset:
    """The structures of --replay, whatever labels they have.

    Raises:
        InputError: they cannot be read, or none is left.
    """
    assert options.replay is not None
    facts = source.description.facts()
    spec = SourceSpec(
        path=options.replay, format=format_of(options.replay), head=head, head_of_all=True
    )
    sources = open_sources(
        [spec],
        needs=TO_PREDICT,
        max_dropped=options.data.filters.max_dropped,
        features=facts.features,
        filters=open_data.filters_of(options.data.filters),
    )
    elements = open_data.numbers_of(options.data.filters.elements)
    data = Dataset(
        sources, facts, dtype, elements=elements, max_neighbors=options.data.filters.max_neighbors
    )
    if len(data) == 0:
        raise InputError(
            f"{options.replay}: no structure is left to replay; look at the file and at --elements"
        )
    return data


def _frames(data: Dataset, batch: Batch, prediction: Prediction) -> Iterator[Atoms]:
    """The structures of a batch with the prediction as their labels; names, config_type,
    weights, held atoms and features are kept.
    """
    predicted = with_references(batch, prediction)
    ptr = batch.ptr.tolist()
    for k, index in enumerate(batch.index):
        structure = data.structure(index)
        atoms = bare_atoms(structure)
        atoms.info |= {"identifier": data.name(index), "config_type": structure.config_type}
        atoms.info |= weights_by_name(structure)
        if structure.free_atoms is not None:
            atoms.arrays[HELD_NAME] = ~structure.free_atoms
        put(atoms, LABEL, of_structure(predicted, k, slice(ptr[k], ptr[k + 1])))
        for spec in data.facts.features:
            (atoms.arrays if spec.per_atom else atoms.info)[spec.name] = structure.features[
                spec.name
            ]
        yield atoms
