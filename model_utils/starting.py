"""What happens before the first step: another run's files, the announcement, the rehearsal, the clock."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dataloader.errors import InputError
from dataloader.loader import EpochBatches
from model_utils import model_loader
from model_utils.checkpoint import WeightsFile
from model_utils.errors import VerificationError
from model_utils.fit import FitPlan
from model_utils.models.description import ModelDescription, differing_fields
from model_utils.open_data import TrainingData
from model_utils.options import TrainOptions
from model_utils.outputs import Outputs
from model_utils.report import ProgressBar
from model_utils.run_files import RunFiles, newest_checkpoint
from model_utils.runtime import DTYPES, dtype_name, hold_log, log, start_log, write_log
from model_utils.step import loss_and_gradients
from model_utils.train_state import TrainState


def find_run(options: TrainOptions, outputs: Outputs, description: ModelDescription) -> WeightsFile | None:
    """The checkpoint to continue; None for a new run.

    Raises:
        InputError: the place holds another run's files and neither --resume nor --overwrite was given.
        VerificationError: the run there is of another network, or all of its checkpoints are damaged.
    """
    if options.resume is None:
        if not options.overwrite and not options.dry_run:
            outputs.refuse_another_run()
            model_loader.refuse_other_description(outputs, description, options.input_json)
        return None
    file = newest_checkpoint(outputs.checkpoint)
    if file is not None and file.description.hash() != description.hash():
        differences = "; ".join(differing_fields(file.description, description)[:3])
        raise VerificationError(
            f"{file.path} was trained with another model.json than {options.input_json}: {differences}; "
            "resume with the one beside the checkpoint"
        )
    return file


def default_dtype(checkpoint: WeightsFile | None) -> torch.dtype:
    """Single precision for a new run; a continued one goes on as it was."""
    return torch.float32 if checkpoint is None else DTYPES[checkpoint.content["train_state"]["dtype"]]


def announce(options: TrainOptions, outputs: Outputs, description: ModelDescription) -> None:
    """Say what will be written where, before anything slow begins."""
    if options.dry_run:
        start_log(None)
        log.info("dry run: nothing is written")
    else:
        outputs.make_folders()
        hold_log()
        files = outputs.announced(
            bare_module=options.export_mace_model,
            tensorboard=options.tensorboard,
            split=not (options.xyz_val or options.lmdb_val),
        )
        for path, what in files:
            log.info("will write %s: %s", path, what)
        if options.resume and not outputs.checkpoint.exists():
            log.info("no checkpoint at %s yet: the run starts anew", outputs.checkpoint)
    log.info(
        "model %s: %s, %s, r_max %g Å, %d element(s), hash %s…",
        options.input_json,
        description.model_class,
        description.hidden_irreps,
        description.r_max,
        len(description.atomic_numbers),
        description.hash()[:12],
    )
    if description.model_class == "MACE":
        log.info(
            "model_class MACE is not what `mace_run_train --model MACE` builds: that is ScaleShiftMACE with shift 0"
        )


def open_files(
    options: TrainOptions,
    outputs: Outputs,
    description: ModelDescription,
    writer: model_loader.PairWriter,
    config: Mapping[str, Any],
    data: TrainingData,
    checkpoint: WeightsFile | None,
) -> RunFiles:
    """Remove another run where asked, write the descriptions and settings, and open what the loop adds to.

    Only now has every input been looked at: until here nothing was written, and another run's files are still there.

    Raises:
        InputError: a file cannot be written.
    """
    offset = 0 if checkpoint is None else checkpoint.content["train_state"]["metrics_offset"]
    try:
        if options.overwrite:
            outputs.remove_another_run()
        write_log(outputs.log)
        model_loader.write_description(outputs, description, options.input_json, overwrite=options.overwrite)
        return RunFiles(outputs, writer, config, data, metrics_offset=offset, tensorboard=options.tensorboard)
    except OSError as error:
        place = error.filename2 or error.filename or outputs.checkpoint.parent
        remedy = "give another --output_checkpoint or --output_model"
        raise InputError(f"cannot write {place}: {error.strerror}; {remedy}") from None


def progress_bar() -> ProgressBar:
    """Shown on a terminal only."""
    return ProgressBar(shown=sys.stderr.isatty())


def time_limit(options: TrainOptions, files: RunFiles) -> Callable[[], str | None]:
    """Asked after every step: a reason to stop when another step and a save might not fit into the time left."""
    if options.time_limit is None:
        return lambda: None
    began = last = time.monotonic()
    end = began + 60 * options.time_limit
    longest_step = 0.0

    def reason() -> str | None:
        nonlocal last, longest_step
        now = time.monotonic()
        longest_step, last = max(longest_step, now - last), now
        return "time limit" if now + longest_step + 2 * files.longest_save > end else None

    return reason


def rehearse(state: TrainState, batches: EpochBatches, plan: FitPlan, data: TrainingData) -> None:
    """One step on the largest batch: sizes, memory and time of the run to come."""
    batch_plan = batches.plan(0)
    n_edges = data.train.n_edges
    costs = [int(n_edges[indices].sum()) for indices in batch_plan]
    largest = next(iter(batches.batches([batch_plan[int(np.argmax(costs))]]))).to(state.device)
    parameters = sum(p.numel() for p in state.parameters.values())
    loss_and_gradients(state.network, state.parameters, [largest], plan.loss)  # warm-up: code generation
    began = time.monotonic()
    result = loss_and_gradients(state.network, state.parameters, [largest], plan.loss)
    value = float(result.loss)  # waits for a GPU
    seconds = time.monotonic() - began
    per_edge = seconds / max(largest.n_edges, 1)
    epoch = per_edge * float(n_edges.sum())
    log.info("parameters: %d trainable, %s", parameters, dtype_name(largest.positions.dtype))
    log.info("structures: %d to train on, %d to validate on", len(data.train), len(data.valid))
    log.info("steps per epoch: %d (%d batches)", -(-len(batch_plan) // plan.accumulate), len(batch_plan))
    sizes = [len(indices) for indices in batch_plan]
    log.info("batches: %d to %d structures, up to %d edges", min(sizes), max(sizes), max(costs))
    log.info(
        "largest batch: %d structures, %d atoms, %d edges; its loss is %.6g",
        largest.n_structures,
        largest.n_atoms,
        largest.n_edges,
        value,
    )
    log.info("memory: %.2f GiB at its peak", _peak_memory(state.device) / 2**30)
    log.info(
        "time: %.3g s for a step on it, about %.3g s per epoch, %.3g h in all",
        seconds,
        epoch,
        epoch * plan.epochs / 3600,
    )


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
