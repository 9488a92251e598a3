"""The order of events of a training run; train_mace.py, finetune.py and resume.py
differ in how it begins.
"""

from collections.abc import Iterator

import torch

from dataloader.batch import Batch
from model_utils import model_loader, runtime
from model_utils.files.outputs import Outputs
from model_utils.models.versions import code_version
from model_utils.ranks.group import Group
from model_utils.run import (
    announcement,
    assemble,
    closing,
    loading,
    objective,
    optimization,
    rehearsal,
    replicas,
    spread,
)
from model_utils.run.advice import copies, idle_settings, loss_advice, uncounted
from model_utils.run.advice.crowding import Crowding
from model_utils.run.assemble import AssembledRun
from model_utils.run.beginnings.beginning import Beginning
from model_utils.run.data import counted, shared_indexing
from model_utils.run.data.data_identity import data_identity, recorded
from model_utils.run.data.open_data import TrainingData
from model_utils.run.fit import fit
from model_utils.run.folder import run_files
from model_utils.run.folder.silent_files import SilentFiles
from model_utils.run.interruption import Interruption
from model_utils.run.objective import Units
from model_utils.run.parts import parts_of_step
from model_utils.runtime import log
from model_utils.settings import reading
from model_utils.settings.declared import FIXED, names_of
from model_utils.settings.options import TrainOptions


def train_in_place(
    options: TrainOptions, outputs: Outputs, beginning: Beginning, stop: Interruption, group: Group
) -> None:
    """Build the network, fit it, keep a resumable checkpoint and the best weights, and
    print the table at the end.

    Args:
        options: every setting.
        outputs: the place, which nobody else writes (``place.held``).
        beginning: what the network and its state are before the first step.
        stop: signals and the clock.
        group: the processes of the run.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see
            ``model_utils.errors``.
    """
    dtype = runtime.dtype_of(options.device.dtype, beginning.dtype)
    device = started(options, beginning, dtype, group)
    announcement.announce_model(options, beginning.description)
    objective.require_given(
        options, beginning.description.gives(), beginning.description.model_class
    )
    if (limit := stop.limit(options.run.time_limit)) is not None:
        log.info(limit)
    shared_indexing.index_by_shares(options, beginning.description.facts(), group)
    data = beginning.data(options, dtype)
    units = spread.units_of(options, data.train, beginning.loss_units)
    announcement.announce_objective(options, units, beginning.stage)
    counted.require_weights(options, data)
    counted.require_judged(options, data)
    loss_advice.advise(options, data.train)
    if group.rank.is_first:
        copies.warn_of_copies(data)
        uncounted.warn_of_untrained_heads(data)
        uncounted.warn_of_unjudged_heads(options, data)
        uncounted.warn_of_elements_without_energies(data)
    beginning.announce_files(options, outputs, split=data.was_split)
    beginning.compare_energies(options, data.train)
    run = assembled(options, outputs, beginning, data, units, device, group)
    announcement.announce_step(run.state.network)
    beginning.examine(run)
    announcement.announce_ranks(group, run.steps)
    largest = rehearsal.largest_batch(run)
    rehearsal.try_batch(largest, run)
    if options.run.dry_run:
        idle_settings.warn(run)
        rehearsal.report(largest, run)
        if options.run.as_ranks is not None:
            rehearsal.report_ranks(run, options.optimizer.step_parts, options.run.as_ranks)
        return
    identity = data_identity(data)
    fixed = names_of(TrainOptions, FIXED)
    settings = {
        name: value for name, value in reading.as_plain(run.options).items() if name in fixed
    }
    replicas.require_equal_beginnings(group, identity, settings, run)
    record = {
        "config": {**reading.as_plain(run.options), "sync": None},
        "history": beginning.put_state(run, identity),
        "source": beginning.source,
        "loss_units": dict(units.spread),
        **recorded(data, identity),
    }
    idle_settings.warn(run)
    replicas.begin_alike(group, run.state)
    runtime.speak_of_own()
    files = run_files.opened(run, outputs, beginning, record, stop)
    try:
        fit_and_report(run, outputs, files, stop)
    finally:
        files.close_loggers()  # those of a run that is preempted or fails too


def started(
    options: TrainOptions, beginning: Beginning, dtype: torch.dtype, group: Group
) -> torch.device:
    """Set the process up: precision, threads, seed; the device on which the run computes.

    Raises:
        InputError: there is no such device.
    """
    asked = options.device.threads
    device = runtime.start(
        device=options.device.device,
        dtype=dtype,
        threads=beginning.threads if asked is None else asked,
        seed=options.run.seed,
        deterministic=options.run.deterministic,
    )
    group.connect(device)
    return device


def assembled(
    options: TrainOptions,
    outputs: Outputs,
    beginning: Beginning,
    data: TrainingData,
    units: Units,
    device: torch.device,
    group: Group,
) -> AssembledRun:
    """Network, optimizer, batches and plan of a run, as yet without the state of a stored one.

    Raises:
        InputError: options that contradict the network or the data.
        VerificationError: the network does not give what its source gives.
    """
    description = beginning.description
    module = model_loader.build(
        description, data.train.dtype, options.run.seed, str(options.input_json)
    )
    beginning.put_weights(module, data.train, options.run.step, device)
    writer = model_loader.PairWriter(  # copies the module while it is on the CPU
        outputs, description, module, code_version(description), beginning.earlier_hashes
    )
    options = beginning.with_measured_budget(options, module, data.train, device, group)
    prepare = model_loader.preparation(options.run.step, description)
    batches = loading.training_batches(options, data, device, prepare)
    accumulate = options.optimizer.accumulate_batches
    n_parts = parts_of_step(
        options.optimizer.step_parts, beginning.step_parts, accumulate, group.rank.size
    )
    plan = assemble.fit_plan(options, units, judge_first=beginning.is_fine_tuned)
    for stage in plan.stages:
        objective.require_divisible(stage.loss, options, n_parts)
    return AssembledRun(
        options=options,
        data=data,
        module=module,
        writer=writer,
        prepare=prepare,
        batches=batches,
        steps=loading.training_steps(options, batches, n_parts, group, device),
        group=group,
        state=optimization.training_state(options, module, description, device, batches, n_parts),
        plan=plan,
    )


def fit_and_report(
    run: AssembledRun, outputs: Outputs, files: SilentFiles, stop: Interruption
) -> None:
    """Train to the end and print the table of the best model.

    Raises:
        NonFiniteError, SaveError, Preempted: see ``model_utils.errors``.
    """
    crowding = Crowding(run.state.device)

    def watch(batches: Iterator[Batch]) -> Iterator[Batch]:
        return crowding.watch(stop.watch(batches))

    validate = loading.evaluator(
        run.data.valid,
        run.options.batches,
        run.state.device,
        watch,
        what="validation",
        prepare=run.prepare,
        group=run.group,
    )
    run.group.first_saves(True)
    with stop.deferred():
        fit(run.state, run.steps, run.plan, files.hooks(run.state.network, validate, watch))
    run.group.first_saves(False)
    log.info("training is over: %s", run.state.progress.finished)
    closing.report_best(run, outputs, files)
    run_files.record_end(run, outputs)
