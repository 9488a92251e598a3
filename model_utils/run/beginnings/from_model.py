"""How a fine-tuning begins: with another model's weights, or where it stood."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dataloader import durable
from dataloader.dataset import Dataset
from model_utils import model_loader
from model_utils.files.outputs import Outputs
from model_utils.models.description import ModelDescription, parse
from model_utils.ranks.group import Group
from model_utils.run.beginnings import (
    finetuning,
    new_energies,
    replaying,
    resuming,
    same_source,
)
from model_utils.run.beginnings.beginning import Beginning, NewRun
from model_utils.run.beginnings.deciding import beginning_of_training, refuse_other_files
from model_utils.run.beginnings.finetuning import Origin
from model_utils.run.data import compositions, counted, data_log, open_data
from model_utils.run.data.open_data import TrainingData
from model_utils.run.interruption import Interruption
from model_utils.settings.options import FinetuneOptions, TrainOptions


@dataclass(frozen=True)
class FromModel(NewRun):
    """A fine-tuning before its first step: the weights are those of another model.

    Attributes:
        origin: that model, and the one that is made of it.
        source: what the checkpoint keeps of it (``same_source``).
        options: of the fine-tuning.
    """

    origin: Origin
    source: Mapping[str, Any]
    options: FinetuneOptions

    @property
    def description(self) -> ModelDescription:  # type: ignore[override]
        """Structure of the model that is made: the source's structure, or for fewer elements,
        more heads, other E0s.
        """
        return self.origin.description

    @property
    def dtype(self) -> torch.dtype:
        """The source's precision."""
        return self.origin.source.file.dtype

    is_fine_tuned = True

    @property
    def earlier_hashes(self) -> tuple[str, ...]:
        """The source's hash."""
        return (self.origin.source.description.hash(),)

    def data(self, options: TrainOptions, dtype: torch.dtype) -> TrainingData:
        """The data as they were opened to fit reference energies, or opened now."""
        facts = self.description.facts()
        if self.origin.data is not None:
            data = self.origin.data.with_facts(facts)
        else:
            data = open_data.training_data(options, facts, dtype, options.run.seed)
        counted.require_structures(
            set(self.description.heads) - set(self.origin.source.description.heads), data
        )
        return data

    def compare_energies(self, options: TrainOptions, data: Dataset) -> None:
        """Compare the E0s that the source has, or was given, with the data."""
        remedy = "finetune.py --E0s isolated takes those of the frames, --E0s " + (
            "with a file of isolated atoms or JSON those; the compositions of the data do not "
            "determine them"
            if compositions.give_impossible_energies(data)
            else "shift fits the source's errors"
        )
        new_energies.warn_of_not_given(self.origin, data)
        data_log.compare_energies(data, remedy, new_energies.isolated_atoms(data, self.options))

    def put_weights(
        self, module: nn.Module, data: Dataset, step: str, device: torch.device
    ) -> None:
        """Put the source's weights in and compare the two models on structures of the data."""
        self.origin.put_into(module)
        self.origin.check(module, data, step, device)

    def write_descriptions(self, options: TrainOptions, outputs: Outputs) -> None:
        """Write model.json, and the source's beside it where the structure was changed."""
        model_loader.write_description(
            outputs, self.description, source=None, overwrite=options.output.overwrite
        )
        source = self.origin.source.description
        if source.hash() != self.description.hash():
            durable.write_text(outputs.source_json, source.canonical_text())


@contextmanager
def beginning_of_finetuning(
    options: FinetuneOptions, outputs: Outputs, stop: Interruption, group: Group
) -> Iterator[tuple[TrainOptions, Beginning]]:
    """How a fine-tuning begins: with its source, or with --resume where it stood.

    Args:
        options: of the fine-tuning.
        outputs: its place, which nobody else writes.
        stop: signals, which may come while the source labels what is replayed.
        group: the processes of the run, of which the first looks at the place and writes labels.

    Yields:
        Settings of the run, as a training of the model.json that will lie beside its checkpoint,
        and its beginning. What is replayed lies at its place until the end of the context.

    Raises:
        InputError: source, data or place cannot be used.
        VerificationError: the source or the stored run is damaged.
    """
    description, head = _stored_at(options, outputs, group)
    if description is not None:
        labels = replaying.replayed_file(options, outputs)
        settings = finetuning.settings(options, description.heads, labels, head)
        yield settings, beginning_of_training(settings, outputs, description, group)
        return
    if group.rank.is_first:
        finetuning.refuse_place(options, outputs)
    with replaying.place_to_label(options, outputs, group) as labels:
        origin = new_energies.with_given(finetuning.origin(options), options)
        settings = finetuning.settings(options, origin.description.heads, labels)
        if labels is not None and options.replay_labels == "source":
            replaying.label(options, origin.source, labels, stop, group)
        if options.E0s in new_energies.OF_DATA:
            origin = new_energies.of_data(origin, options, settings)
        own = origin.description.canonical_text().encode()
        text = group.of_first(lambda: own).decode()
        # fitted energies have other last bits on another kind of processor
        if not group.rank.is_first:
            origin = replace(origin, description=parse(text, str(options.input_model)))
        record = same_source.record_of(options, origin.source)
        yield settings, _from_model(options, settings, outputs, origin, record, group)


def _stored_at(
    options: FinetuneOptions, outputs: Outputs, group: Group
) -> tuple[ModelDescription | None, str | None]:
    """The structure of the fine-tuning that goes on at a place, None where one begins; and the head
    of its structures that name none.

    Raises:
        InputError: what lies there is not what is asked for.
        VerificationError: it is damaged.
    """

    def look() -> bytes:
        stored = (
            resuming.newest_run(outputs.checkpoint) if options.output.resume is not None else None
        )
        if stored is None:
            return b""
        same_source.require_same_source(stored, options)
        own = [stored.description.canonical_text(), stored.config.get("head")]
        return json.dumps(own).encode()

    text = group.of_first(look).decode()
    if not text:
        return None, None
    description, head = json.loads(text)
    return parse(description, str(outputs.checkpoint)), head


def _from_model(
    tuning: FinetuneOptions,
    options: TrainOptions,
    outputs: Outputs,
    origin: Origin,
    record: Mapping[str, Any],
    group: Group,
) -> FromModel:
    """A fine-tuning where no checkpoint of it was found.

    Raises:
        InputError: the place holds files of something else.
    """

    def look() -> None:
        if options.output.resume is None:
            refuse_other_files(options, outputs, origin.description, of_author=False)
        else:
            resuming.refuse_remains(outputs)

    group.once(look)
    return FromModel(origin, record, tuning)
