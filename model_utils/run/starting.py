"""What happens before the first step: another run's files, the announcement, the place and its files."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dataloader import durable
from dataloader.errors import InputError
from dataloader.quantities import ENERGY, FORCES, QUANTITIES, STRESS, Quantity
from losses import Loss
from model_utils import model_loader
from model_utils.errors import VerificationError
from model_utils.files import run_lock
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.outputs import Outputs, checkpoints_in, real
from model_utils.models.architecture import opens_in_mace
from model_utils.models.description import ModelDescription, differing_fields
from model_utils.run import loggers, replaying
from model_utils.run.finetuning import Origin
from model_utils.run.interruption import Interruption
from model_utils.run.open_data import TrainingData
from model_utils.run.resuming import adopt, refuse_contradictions, require_complete, resumed_run, set_aside_damaged
from model_utils.run.run_files import RunFiles
from model_utils.run.train_state import TrainState
from model_utils.runtime import DTYPES, hold_log, log, start_log, write_log
from model_utils.settings import cli
from model_utils.settings.options import DeviceOptions, TrainingOptions, TrainOptions


def find_run(
    options: TrainOptions,
    outputs: Outputs,
    description: ModelDescription,
    begin_with: Path | None,
    origin: Origin | None,
) -> WeightsFile | None:
    """The checkpoint to continue; None for a new run.

    Raises:
        InputError: the place holds another run's files and neither --resume nor --overwrite was given, or the settings
            contradict those of the run.
        VerificationError: the run there is of another network, or all of its checkpoints are damaged.
    """
    if options.output.resume is None:
        if not options.output.overwrite and not options.run.dry_run:
            outputs.refuse_another_run()
            authored = options.input_json if origin is None else None
            model_loader.refuse_other_description(outputs, description, authored)
        return None
    file = resumed_run(outputs, begin_with)
    if file is None:
        lone = [path for path in (outputs.model, outputs.stage_one_model, outputs.bare_module) if path.exists()]
        if lone:
            raise InputError(
                f"{lone[0]} is there, but no checkpoint to resume it from; fine-tune from it with finetune.py, move it "
                "away, or give --overwrite in place of --resume"
            )
        if outputs.metrics.exists() and (others := checkpoints_in(outputs.checkpoint.parent)):
            raise InputError(
                f"there is no {outputs.checkpoint}, but {others[0].name} of another run beside, whose records would be "
                f"replaced; continue that one with --output_checkpoint {others[0]}, or give another place"
            )
        log.info("no checkpoint at %s yet: the run starts anew", outputs.checkpoint)
        return None
    require_complete(file)
    if file.description.hash() != description.hash():
        differences = "; ".join(differing_fields(file.description, description)[:3])
        raise VerificationError(
            f"{file.path} was trained with another model.json than {options.input_json}: {differences}; "
            "resume with the one beside the checkpoint"
        )
    model_loader.check_descriptions(file, outputs)
    before = Outputs.of_checkpoint(file.path, file.content["train_state"]["config"])
    here = real(before.checkpoint) == real(outputs.checkpoint)
    if here and outputs.model.exists() and real(outputs.model) != real(before.model):
        raise InputError(f"--output_model {outputs.model} is there and not of this run; give another place")
    if begin_with is None:
        refuse_contradictions(file, cli.as_plain(options))
    return file


def source_of(origin: Origin | None, checkpoint: WeightsFile | None) -> dict[str, str] | None:
    """What a fine-tuning began with, as its checkpoints record it; None for a run from fresh weights."""
    if checkpoint is not None:
        stored: dict[str, str] | None = checkpoint.content["train_state"]["source"]
        return stored
    if origin is None:
        return None
    return {"path": os.path.abspath(origin.source.file.path), "model_json_hash": origin.source.description.hash()}


def history_of_structures(origin: Origin | None, checkpoint: WeightsFile | None) -> list[str]:
    """Hashes of the descriptions that came before this run's own."""
    if checkpoint is not None:
        return [h for h in checkpoint.content["model_json_history"] if h != checkpoint.description.hash()]
    return [] if origin is None else [origin.source.description.hash()]


def threads(options: DeviceOptions, file: WeightsFile | None) -> int | None:
    """Those asked for; else, in a continued run, as many as it had, where this process has so many cores."""
    if options.threads is not None or file is None:
        return options.threads
    before = int(file.content["train_state"]["computed_on"]["threads"])
    return before if before <= len(os.sched_getaffinity(0)) else None


def default_dtype(checkpoint: WeightsFile | None, origin: Origin | None) -> torch.dtype:
    """Single precision for a new run, the source's for a fine-tuning; a continued one goes on as it was."""
    if checkpoint is not None:
        return DTYPES[checkpoint.content["train_state"]["dtype"]]
    return torch.float32 if origin is None else origin.source.file.dtype


def energies_remedy(options: TrainOptions, *, fine_tuned: bool) -> str:
    """The command by which the model gets the E0s of the data."""
    if fine_tuned:
        return "finetune.py --E0s isolated takes those of the frames, --E0s shift fits the source's errors"
    return f"metadata.py fit --input_json {options.input_json} with the data makes a model.json with theirs"


def said(quantity: Quantity, loss: Loss) -> bool:
    """Whether a quantity is named where the loss is explained: usual ones always, others where they have a weight."""
    return quantity.required or loss.weight(quantity.name) > 0


def what_is_averaged(quantity: Quantity) -> str:
    """``E of energies per atom (eV)``, ``F of force components (eV/Å)``."""
    usual = {
        ENERGY.name: "energies per atom",
        FORCES.name: "force components",
        STRESS.name: "stress components",
    }
    return f"{quantity.symbol} of {usual.get(quantity.name, f'{quantity.name} components')} ({quantity.unit})"


def announce_files(
    options: TrainOptions, outputs: Outputs, description: ModelDescription, loss: Loss, *, goes_on: bool, split: bool
) -> None:
    """Say what is minimised, and what will be written where: every file of a new run, the place of one that goes on."""
    log.info(
        "loss: %s, means of errors: %s",
        loss.text(),
        ", ".join(what_is_averaged(quantity) for quantity in QUANTITIES.values() if said(quantity, loss)),
    )
    if options.run.dry_run:
        return
    if goes_on:
        elsewhere = "" if outputs.model.parent == outputs.checkpoint.parent else f", and {outputs.model}"
        log.info("goes on writing %s and what lies beside it%s", outputs.checkpoint, elsewhere)
        return
    bare_module = options.output.export_mace_model and opens_in_mace(description)
    files = outputs.announced(bare_module=bare_module, split=split)
    for path, what in chain(files, loggers.announced(logger_names(options), outputs.checkpoint.parent)):
        log.info("will write %s: %s", path, what)


def logger_names(options: TrainingOptions) -> tuple[str, ...]:
    """The loggers of a run; --tensorboard is short for --loggers tensorboard."""
    return loggers.chosen([*(["tensorboard"] if options.run.tensorboard else []), *options.run.loggers])


def announce(options: TrainOptions, description: ModelDescription) -> None:
    """Say what is trained, before anything slow begins.

    Raises:
        InputError: a logger that was asked for cannot be had.
    """
    logger_names(options)
    if options.run.dry_run:
        log.info("dry run: nothing is written")
    log.info(
        "model %s: %s, r_max %g Å, %d element(s), hash %s…",
        options.input_json,
        description.summary(),
        description.r_max,
        len(description.atomic_numbers),
        description.hash()[:12],
    )
    for note in description.notes():
        log.info("%s", note)


@contextmanager
def place(options: TrainingOptions, outputs: Outputs) -> Iterator[Outputs]:
    """Make the folders and be the only writer of the run; a dry run needs neither.

    Yields:
        The names of what is written, which follow folders that are moved while the run lasts.

    Raises:
        InputError: another process writes this run, or the place cannot be written.
    """
    if options.run.dry_run:
        start_log(None)
        yield outputs
        return
    hold_log()
    outputs.make_folders()
    with run_lock.run_held(outputs, wait=options.output.resume is not None) as held:
        if options.output.resume is not None:
            replaying.take_back(held)
        yield held


def open_files(
    options: TrainOptions,
    outputs: Outputs,
    description: ModelDescription,
    state: TrainState,
    writer: model_loader.PairWriter,
    data: TrainingData,
    record: Mapping[str, Any],
    stop: Interruption,
    continued: WeightsFile | None,
    origin: Origin | None,
) -> RunFiles:
    """Remove another run where asked, write the descriptions and settings, and open what the loop adds to.

    Only now has every input been looked at: until here nothing was written, and another run's files are still there.

    Raises:
        InputError: a file cannot be written.
    """
    stored = None if continued is None else continued.content["train_state"]
    try:
        if options.output.overwrite:
            outputs.remove_another_run()
        if continued is None:
            outputs.replay_before.unlink(missing_ok=True)  # of a run whose removal was broken off
        if continued is not None and stored is not None:
            set_aside_damaged(continued, outputs)
            adopt(Outputs.of_checkpoint(continued.path, stored["config"]), outputs)
        write_log(outputs.log)
        if continued is not None and not outputs.model.exists() and state.progress.best_step > 0:
            log.warning("warning: %s is gone: the best model is looked for anew", outputs.model)
            state.progress.best_loss, state.progress.waited = float("inf"), 0
            state.progress.validated_step = -1
        authored = options.input_json if origin is None and continued is None else None
        replace = options.output.overwrite or continued is not None  # what lies there has been compared
        model_loader.write_description(outputs, description, authored, overwrite=replace)
        if origin is not None and origin.source.description.hash() != description.hash():
            durable.write_text(outputs.source_json, origin.source.description.canonical_text())
        files = RunFiles(outputs, writer, data, record, stop, continued=stored, loggers=logger_names(options))
        if files.metrics.mended:
            files.save(state, "records")
        return files
    except OSError as error:
        if options.output.resume is None:
            with suppress(OSError):
                outputs.remove_another_run()  # what was begun just now: it must not stand in the way of the next try
        unwritable = error.filename2 or error.filename or outputs.checkpoint.parent
        remedy = "give another --output_checkpoint or --output_model"
        raise InputError(f"cannot write {unwritable}: {error.strerror}; {remedy}") from None
