"""How a run begins: with fresh weights, with another model's, or where a stored run stood.

Which of the three it is, is decided once, by ``beginnings.deciding`` or ``from_model``. All that
differs between them are the methods of one interface, which ``training.train_in_place`` calls in
order and never asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from dataloader import processors
from dataloader.dataset import Dataset
from model_utils import model_loader
from model_utils.files.outputs import Outputs
from model_utils.models.description import ModelDescription
from model_utils.ranks.group import Group
from model_utils.ranks.joining import this_rank
from model_utils.run import announcement
from model_utils.run.assemble import AssembledRun
from model_utils.run.beginnings import physics_gate, resuming
from model_utils.run.beginnings.continuation import Changes, take_over
from model_utils.run.beginnings.stored_run import KnownRecords, StoredRun
from model_utils.run.budget import with_edges_per_batch, with_measured_budget
from model_utils.run.data import compositions, data_log, open_data
from model_utils.run.data.open_data import TrainingData
from model_utils.run.train_state import Progress
from model_utils.runtime import log
from model_utils.settings.options import TrainOptions


class Beginning(Protocol):
    """How a run begins. The methods are called in the order in which they stand here."""

    @property
    def description(self) -> ModelDescription:
        """Structure of the network that is trained."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Working precision unless --dtype is given."""
        ...

    @property
    def threads(self) -> int | None:
        """CPU threads unless --threads is given; None: torch's choice."""
        ...

    @property
    def step_parts(self) -> int | None:
        """Parts of a step unless --step_parts is given; None: as the processes ask for."""
        ...

    @property
    def loss_units(self) -> Mapping[str, float]:
        """Spread of the labels, by quantity, that is the unit of a stored loss; else empty."""
        ...

    @property
    def stage(self) -> int:
        """The stage, counted from 1, in which the next step is made."""
        ...

    @property
    def source(self) -> Mapping[str, Any] | None:
        """Path and hash of the model that a fine-tuning began with, as
        checkpoints record it; else None.
        """
        ...

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the run began with another model's weights, now or before it was stored."""
        ...

    @property
    def earlier_hashes(self) -> tuple[str, ...]:
        """Hashes of the descriptions that came before this run's own."""
        ...

    @property
    def known_records(self) -> KnownRecords:
        """What of metrics.jsonl belongs to the run already."""
        ...

    def data(self, options: TrainOptions, dtype: torch.dtype) -> TrainingData:
        """The data sets, opened and checked.

        Raises:
            InputError: a file, a structure or a label cannot be used.
        """
        ...

    def announce_files(self, options: TrainOptions, outputs: Outputs, *, split: bool) -> None:
        """Say what will be written where; ``split``: structures are set aside for validation."""
        ...

    def compare_energies(self, options: TrainOptions, data: Dataset) -> None:
        """Say what isolated atoms of the data are beside the model's E0s."""
        ...

    def put_weights(
        self, module: nn.Module, data: Dataset, step: str, device: torch.device
    ) -> None:
        """Put the first weights into a module that was built with fresh ones.

        Args:
            module: on the CPU, in the run's precision.
            data: to train on.
            step: form of the network that is trained (``--step``).
            device: on which it will be.

        Raises:
            VerificationError: the module does not give the energies and forces
                of where it comes from.
        """
        ...

    def with_measured_budget(
        self,
        options: TrainOptions,
        module: nn.Module,
        data: Dataset,
        device: torch.device,
        group: Group,
    ) -> TrainOptions:
        """The options with a number of edges in place of ``--max_edges_per_batch auto``."""
        ...

    def examine(self, run: AssembledRun) -> None:
        """Look whether the network obeys physics, where nobody has looked before.

        Raises:
            VerificationError: it breaks a law that must hold.
        """
        ...

    def put_state(self, run: AssembledRun, identity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Bring the assembled run to where its first step begins.

        Args:
            run: fresh, on its device.
            identity: of the data at hand (``data_identity``).

        Returns:
            The continuations so far, for the next checkpoint.

        Raises:
            VerificationError: a stored run is of other data, or what would be
                written could not be read.
            InputError: what a continued run is to do otherwise cannot be done.
        """
        ...

    def bring_files(self, outputs: Outputs, progress: Progress) -> None:
        """Make the place one of this run alone, before anything is written to it.

        Raises:
            OSError: a file cannot be written, renamed or removed.
        """
        ...

    def write_descriptions(self, options: TrainOptions, outputs: Outputs) -> None:
        """Write model.json beside the weights files.

        Raises:
            OSError: a file cannot be written.
            InputError: another file with other content is there.
        """
        ...


class NewRun:
    """What is the same of every run that has no step behind it."""

    description: ModelDescription
    threads: int | None = None
    step_parts: int | None = None
    loss_units: Mapping[str, float] = MappingProxyType({})
    stage: int = 1
    known_records = KnownRecords()

    def announce_files(self, options: TrainOptions, outputs: Outputs, *, split: bool) -> None:
        """Name every file."""
        announcement.announce_new_files(options, outputs, self.description, split=split)

    def with_measured_budget(
        self,
        options: TrainOptions,
        module: nn.Module,
        data: Dataset,
        device: torch.device,
        group: Group,
    ) -> TrainOptions:
        """Measure how many edges the memory holds, where that is asked for."""
        return with_measured_budget(options, module, self.description, data, device, group)

    def examine(self, run: AssembledRun) -> None:
        """Examine what other libraries and plug-ins compute."""
        options = run.options.run
        physics_gate.examine(
            self.description, run.module, options.step, options.physics_gate, run.group
        )

    def put_state(self, run: AssembledRun, identity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Prove that what will be written can be read; there are no continuations yet."""
        run.writer.begin_with(run.module)
        if run.group.rank.is_first:  # which alone writes
            model_loader.prove(run.writer, run.state.judged, run.module, run.state.state_dict())
        return []

    def bring_files(self, outputs: Outputs, progress: Progress) -> None:
        """Remove the labels that an overwritten run left behind where its
        removal was broken off.
        """
        outputs.replay_before.unlink(missing_ok=True)


@dataclass(frozen=True)
class Fresh(NewRun):
    """A run from a model.json, with weights drawn by its seed."""

    description: ModelDescription
    dtype = torch.float32
    source = None
    is_fine_tuned = False
    earlier_hashes: tuple[str, ...] = ()

    def data(self, options: TrainOptions, dtype: torch.dtype) -> TrainingData:
        """Open the data."""
        return open_data.training_data(options, self.description.facts(), dtype, options.run.seed)

    def compare_energies(self, options: TrainOptions, data: Dataset) -> None:
        """Compare the E0s of the author's model.json with the data."""
        fit = f"metadata.py fit --input_json {options.input_json}"
        remedy = (
            f"{fit} makes a model.json with those of IsolatedAtom frames in the data, or with "
            "--E0s of a file of isolated atoms or JSON; the compositions of the data do not "
            "determine them"
            if compositions.give_impossible_energies(data)
            else f"{fit} with the data makes a model.json with theirs"
        )
        data_log.compare_energies(data, remedy)

    def put_weights(
        self, module: nn.Module, data: Dataset, step: str, device: torch.device
    ) -> None:
        """Keep the weights that the seed drew."""

    def write_descriptions(self, options: TrainOptions, outputs: Outputs) -> None:
        """Write the canonical model.json; the author's own text is kept
        where it would be replaced.
        """
        model_loader.write_description(
            outputs, self.description, options.input_json, overwrite=options.output.overwrite
        )


@dataclass(frozen=True)
class Continued:
    """A stored run that goes on, of whichever kind it was."""

    stored: StoredRun
    changes: Changes

    @property
    def description(self) -> ModelDescription:
        """Structure that the checkpoint holds."""
        return self.stored.description

    @property
    def dtype(self) -> torch.dtype:
        """The precision it had."""
        return self.stored.dtype

    @property
    def threads(self) -> int | None:
        """The number it had, where this process has so many cores: another one
        may change the last bits.
        """
        before = self.stored.threads
        if before is None or before * this_rank().local_size > processors.n_cores():
            return None
        return before

    @property
    def step_parts(self) -> int | None:
        """The number it had."""
        return int(self.stored.computed_on["step_parts"])

    @property
    def loss_units(self) -> Mapping[str, float]:
        """The numbers that the checkpoint records; none in one of before there were units."""
        return self.stored.loss_units

    @property
    def stage(self) -> int:
        """The one it was in, or a later one that is due with its next epoch."""
        progress = Progress.of_stored(self.stored.state)
        within = progress.steps_in_epoch > 0
        due = 0 if within else sum(start <= progress.epoch for start in progress.stage_starts)
        return max(progress.stage, due)

    @property
    def source(self) -> Mapping[str, Any] | None:
        """Path and hash that the checkpoint records."""
        return self.stored.source

    @property
    def is_fine_tuned(self) -> bool:
        """Whether a source was recorded."""
        return self.stored.source is not None

    @property
    def earlier_hashes(self) -> tuple[str, ...]:
        """Hashes that the checkpoint records."""
        return self.stored.earlier_hashes

    @property
    def known_records(self) -> KnownRecords:
        """The records up to the checkpoint; those that a killed run wrote beyond are made again."""
        return KnownRecords(offset=self.stored.metrics_offset, step=self.stored.step)

    def data(self, options: TrainOptions, dtype: torch.dtype) -> TrainingData:
        """Open the data; whether they are those of the run is compared later, by their identity."""
        return open_data.training_data(options, self.description.facts(), dtype, options.run.seed)

    def announce_files(self, options: TrainOptions, outputs: Outputs, *, split: bool) -> None:
        """Name the place alone: its files are known from the run's beginning."""
        announcement.announce_place(options, outputs)

    def compare_energies(self, options: TrainOptions, data: Dataset) -> None:
        """Say nothing: it was said as the run began."""

    def put_weights(
        self, module: nn.Module, data: Dataset, step: str, device: torch.device
    ) -> None:
        """Leave the fresh weights until ``put_state``, which takes weights and state of
        one checkpoint together.
        """

    def with_measured_budget(
        self,
        options: TrainOptions,
        module: nn.Module,
        data: Dataset,
        device: torch.device,
        group: Group,
    ) -> TrainOptions:
        """Take the number that was measured as the run began: another one
        would make other batches.
        """
        if options.batches.max_edges_per_batch != "auto":
            return options
        return with_edges_per_batch(options, self.stored.config["max_edges_per_batch"])

    def examine(self, run: AssembledRun) -> None:
        """Leave it: the network was examined as the run began."""

    def put_state(self, run: AssembledRun, identity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Take over the stored run, and say what is not as it was."""
        history = take_over(self.stored, self.changes, run, identity)
        run.writer.begin_with(run.module)
        return history

    def bring_files(self, outputs: Outputs, progress: Progress) -> None:
        """Set a damaged newest checkpoint aside, and bring best models and records
        along from another place.
        """
        resuming.set_aside_damaged(self.stored, outputs)
        resuming.adopt(self.stored.outputs(), outputs)
        if not outputs.model.exists() and progress.best_step > 0:
            log.warning("warning: %s is gone: the best model is looked for anew", outputs.model)
            progress.forget_best()

    def write_descriptions(self, options: TrainOptions, outputs: Outputs) -> None:
        """Write model.json again where it is gone; what lies there was compared before."""
        model_loader.write_description(outputs, self.description, source=None, overwrite=True)
