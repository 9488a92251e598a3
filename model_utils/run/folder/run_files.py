"""The files of a run while it lasts: what the loop's hooks write."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import yaml

from dataloader import durable
from dataloader.errors import is_away
from losses import Loss
from model_utils.errors import OTHER_PLACE, SaveError, VerificationError, cannot_write
from model_utils.files.outputs import Outputs
from model_utils.metrics import Metrics
from model_utils.model_loader import PairWriter
from model_utils.ranks.group import ALONE, Group
from model_utils.run.advice import first_errors
from model_utils.run.assemble import AssembledRun, logger_names
from model_utils.run.beginnings.beginning import Beginning, Continued
from model_utils.run.data.open_data import TrainingData
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.fit_plan import Stage
from model_utils.run.folder import run_folders, run_record
from model_utils.run.folder.epoch_progress import EpochProgress
from model_utils.run.folder.keeping import Keeper, keeper
from model_utils.run.folder.metrics_file import MetricsFile
from model_utils.run.folder.silent_files import SilentFiles
from model_utils.run.folder.syncing import Sync
from model_utils.run.interruption import Interruption
from model_utils.run.log_lines import number_word
from model_utils.run.loggers import PATIENCE, LoggedRun, Loggers
from model_utils.run.train_state import Progress, TrainState
from model_utils.runtime import dtype_name, log, write_log
from model_utils.settings import reading
from model_utils.settings.declared import OF_THE_COMMAND, names_of
from model_utils.settings.options import TrainOptions

# s before the last save is tried again where a network file system does not answer
PAUSES = (0.5, 2.0, 5.0)


class RunFiles(SilentFiles):
    """Writes checkpoint, best model and metrics of one run, and tells its loggers.

    Args:
        outputs: their places.
        writer: of the pair.
        data: for names of structures.
        record: what every checkpoint repeats: settings (``config``), identity of the data,
            history of continuations.
        stop: is asked between batches, and told how long a save takes.
        beginning: of the run.
        group: the processes of the run, which wait while this one writes for the last time.
        loggers: names of those that hear of every record (``loggers.chosen``).

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(
        self,
        outputs: Outputs,
        writer: PairWriter,
        data: TrainingData,
        record: Mapping[str, Any],
        stop: Interruption,
        beginning: Beginning,
        loggers: Sequence[str],
        group: Group = ALONE,
    ) -> None:
        self.outputs = outputs
        self.writer = writer
        super().__init__(data, stop, group)
        self.record = record
        self.is_fine_tuned = beginning.is_fine_tuned
        self._write_settings()
        if data.was_split:
            self._write_names_of_valid()
        self.epoch_progress = EpochProgress()
        known = beginning.known_records
        self.sync: Sync | None = None  # of ``--sync``
        self.keeper: Keeper | None = None  # of ``--keep_best``
        self.metrics = MetricsFile(outputs.metrics, known.offset, known.step)
        logged = LoggedRun(
            where=lambda: outputs.checkpoint.parent,
            name=outputs.run_name,
            step=known.step,
            n_records=self.metrics.n_records(),
            settings=record["config"],
        )
        self.loggers = Loggers(loggers, logged)

    def _write_settings(self) -> None:
        """Every setting as used, but for those of one call of the command, as --debug."""
        of_the_command = names_of(TrainOptions, OF_THE_COMMAND)
        settings = {
            name: value
            for name, value in self.record["config"].items()
            if name not in of_the_command
        }
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        durable.write_text(self.outputs.config, text)
        if units := self.record.get("loss_units"):
            durable.write_text(self.outputs.loss_units, json.dumps(units, indent=2) + "\n")

    def _write_names_of_valid(self) -> None:
        valid = self.data.valid
        names = [valid.name(i) for i in range(len(valid))]
        durable.write_text(self.outputs.valid_names, "\n".join(names) + "\n")

    def on_step(self, state: TrainState, n_steps: int, loss: Loss) -> None:
        """Show how far the epoch is."""
        self.epoch_progress(state, n_steps, loss)

    def on_train(self, record: TrainRecord) -> None:
        """A training line."""
        self.metrics.train(record)
        self.loggers.train(record)

    def on_validation(self, record: ValidationRecord) -> None:
        """A validation line."""
        self.metrics.validation(record)
        self.loggers.validation(record)
        if record.step == 0:
            first_errors.advise(
                (record.metrics, *record.by_source.values()),
                self.data.valid,
                self.writer.description,
                self.record["config"]["input_json"],
                is_fine_tuned=self.is_fine_tuned,
            )

    def final(self, record: FinalRecord) -> None:
        """The table at the end."""
        self.metrics.final(record)
        self.loggers.final(record)

    def on_best(self, state: TrainState, errors: Metrics) -> None:
        """A new best model."""
        progress = state.progress
        try:
            self.writer.save_best(
                state.judged,
                metrics=errors,
                weights=state.judged_kind,
                epoch=progress.epoch,
                step=progress.step,
                stage=progress.stage,
                score=[self.record["config"]["best_metric"], progress.best_loss],
            )
        except OSError as error:
            log.warning("warning: the best model of step %d waits: %s", progress.step, error)

    def on_judged(self, state: TrainState, errors: Metrics, score: float) -> None:
        """Keep the model where it is one of the best."""
        if self.keeper is not None:
            self.keeper.judged(state, errors, score)

    def on_stage(self, state: TrainState, stage: Stage) -> None:
        """A stage begins; where its losses cannot be compared, the best
        model of stage one is kept.
        """
        progress = state.progress
        if progress.stage == 1 and stage.new_best:
            try:
                self.writer.keep_stage_one(progress.best_step)
            except (OSError, VerificationError) as error:
                log.warning("warning: the best model of stage one waits: %s", error)
        log.info(
            "stage %s begins after epoch %d: loss weights%s change%s",
            number_word(progress.stage + 1),
            progress.epoch,
            "" if stage.lr is None else " and rate",
            ", the best model starts anew" if stage.new_best else "",
        )

    def save(self, state: TrainState, reason: str) -> bool:
        """Write the checkpoint; a disk that is full for now costs a warning, not the run."""
        try:
            self._write(state, reason)
        except OSError as error:
            log.warning(
                "warning: step %d is not saved, tried again later: %s", state.progress.step, error
            )
            return False
        return True

    def save_last(self, state: TrainState, reason: str) -> None:
        """Write the checkpoint where no later try will come.

        Raises:
            SaveError: it could not be written; the generations before are untouched.
        """
        self.group.once(lambda: self.rescue(state, reason))

    def rescue(self, state: TrainState, reason: str) -> None:
        """Write the checkpoint without a word to other processes, which may be gone.

        Raises:
            SaveError: it could not be written.
        """
        self.stop.is_met()
        self.epoch_progress.close()  # the last epoch may have ended before its last step
        for pause in (*PAUSES, None):
            try:
                return self._write(state, reason)
            except OSError as error:
                if pause is None or not is_away(error):
                    text = (
                        f"step {state.progress.step} is not saved: {error}; older files are intact"
                    )
                    raise SaveError(text) from None
                time.sleep(pause)

    def _write(self, state: TrainState, reason: str) -> None:
        began = time.monotonic()
        train_state = {
            **state.state_dict(),
            "dtype": dtype_name(next(iter(state.parameters.values())).dtype),
            "metrics_offset": self.metrics.offset(),
            "reason": reason,
            **self.record,
        }
        self.writer.save_checkpoint(state.network.module, train_state)
        if self.keeper is not None:
            self.keeper.checkpoint_written()
        if self.sync is not None:
            self.sync.checkpoint_written()
        self.stop.save_seconds = max(self.stop.save_seconds, time.monotonic() - began)

    def close(self) -> None:
        """Close the records; the loggers are closed however the run ends (``training``).

        Raises:
            NotWritten: records could not be written.
        """
        self.metrics.close()
        if self.sync is not None:
            self.sync.checkpoint_written()  # the last record, and the module for mace's calculator

    def close_loggers(self) -> None:
        """Close the loggers, however the run ended; who was asked to stop
        does not wait for them.
        """
        end = time.monotonic() + (PATIENCE if self.stop.reason is None else 0.0)
        self.loggers.close(max(end - time.monotonic(), 0.0))
        if self.sync is not None:
            self.sync.close(max(end - time.monotonic(), 0.0))


def opened(
    run: AssembledRun,
    outputs: Outputs,
    beginning: Beginning,
    record: Mapping[str, Any],
    stop: Interruption,
) -> SilentFiles:
    """Remove another run where asked, write descriptions and settings, and open
    what the loop adds to.

    Only now has every input been looked at: until here nothing was written, and another run's
    files are still there.

    Args:
        run: whose files they are; it stands before its first step, or where the stored run stood.
        outputs: their places.
        beginning: of the run.
        record: what every checkpoint repeats, see `RunFiles`.
        stop: is asked between batches.

    Raises:
        InputError: a file cannot be written.
    """
    state = run.state
    if not run.group.rank.is_first:
        state.progress = Progress(**json.loads(run.group.of_first(bytes)))
        return SilentFiles(run.data, stop, run.group)
    files = _opened_by_first(run, outputs, beginning, record, stop)
    # the best model may be gone
    run.group.of_first(lambda: json.dumps(asdict(state.progress)).encode())
    return files


def _opened_by_first(
    run: AssembledRun,
    outputs: Outputs,
    beginning: Beginning,
    record: Mapping[str, Any],
    stop: Interruption,
) -> RunFiles:
    options = run.options
    try:
        if options.output.overwrite:
            outputs.remove_another_run()
        beginning.bring_files(outputs, run.state.progress)
        write_log(outputs.log)
        beginning.write_descriptions(options, outputs)
        _record_start(run, outputs, beginning, record)
        names = logger_names(options.run)
        files = RunFiles(outputs, run.writer, run.data, record, stop, beginning, names, run.group)
        if options.run.sync is not None:
            files.sync = Sync(options.run.sync, outputs)
        files.keeper = keeper(options.judging, outputs, run.writer, beginning.known_records.step)
        if files.metrics.mended:
            files.save(run.state, "records")
        return files
    except OSError as error:
        if options.output.resume is None:
            # what was begun just now: it must not stand in the way of the next try
            with suppress(OSError):
                outputs.remove_another_run()
        unwritable = error.filename2 or error.filename or outputs.checkpoint.parent
        raise cannot_write(unwritable, error, OTHER_PLACE) from None


def _record_start(
    run: AssembledRun, outputs: Outputs, beginning: Beginning, record: Mapping[str, Any]
) -> None:
    """Put a start of the run into its run.json, where it has one."""
    folder = outputs.checkpoint.parent
    start = run_record.start_of_now(
        run.state.progress.step, run.state.computed_on(), run.group.rank.size
    )
    known = {
        "model_json_hash": beginning.description.hash(),
        "seed": run.options.run.seed,
        "code": run.writer.code_version,
        "data": record["data"],
        "source": record["source"],
        "history": record["history"],
        "finished": None,
    }
    settings = reading.as_plain(run.options) if isinstance(beginning, Continued) else None
    run_record.changed(folder, known, start, settings)
    run_folders.make_latest(folder)


def record_end(run: AssembledRun, outputs: Outputs) -> None:
    """Put why the run is over into its run.json, where it has one."""
    if run.group.rank.is_first:
        progress = run.state.progress
        ended = {
            "at": run_record.now(),
            "why": progress.finished,
            "step": progress.step,
            "epoch": progress.epoch,
        }
        run_record.changed(outputs.checkpoint.parent, {"finished": ended})
