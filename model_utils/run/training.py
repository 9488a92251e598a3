"""The order of events of a training run, new or continued; train_mace.py and resume.py differ in what they hand it."""

from model_utils import model_loader, runtime
from model_utils.files.outputs import Outputs
from model_utils.models.description import ModelDescription
from model_utils.models.versions import code_version
from model_utils.run import assemble, closing, open_data, rehearsal, resuming, starting
from model_utils.run.data_identity import data_identity
from model_utils.run.finetuning import Origin
from model_utils.run.fit import fit
from model_utils.run.interruption import Interruption
from model_utils.run.resuming import Changes
from model_utils.runtime import log
from model_utils.settings import cli
from model_utils.settings.options import TrainOptions


def train(
    options: TrainOptions,
    description: ModelDescription,
    stop: Interruption,
    changes: Changes | None = None,
) -> None:
    """``train_in_place``, as the only writer of the place.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see ``model_utils.errors``.
    """
    outputs = Outputs.named(options.output.output_checkpoint, options.output.output_model)
    with starting.place(options, outputs) as outputs:
        train_in_place(options, outputs, description, stop, changes)


def train_in_place(
    options: TrainOptions,
    outputs: Outputs,
    description: ModelDescription,
    stop: Interruption,
    changes: Changes | None = None,
    origin: Origin | None = None,
) -> None:
    """Build the network, fit it, keep a resumable checkpoint and the best weights, and print the table at the end.

    Args:
        options: every setting.
        outputs: the place, which nobody else writes (``starting.place``).
        description: of the network.
        stop: signals and the clock.
        changes: what a continued run does otherwise.
        origin: the model of a fine-tuning; fresh weights without one.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see ``model_utils.errors``.
    """
    changes = changes or Changes()
    stored = starting.find_run(options, outputs, description, changes.begin_with, origin)
    dtype = runtime.dtype_of(options.device.dtype, starting.default_dtype(stored, origin))
    device = runtime.start(
        device=options.device.device,
        dtype=dtype,
        threads=starting.threads(options.device, stored),
        seed=options.run.seed,
        deterministic=options.run.deterministic,
    )
    starting.announce(options, description)
    if (limit := stop.limit(options.run.time_limit)) is not None:
        log.info(limit)

    if origin is not None and origin.data is not None:
        data = origin.data.with_facts(description.facts())
    else:
        data = open_data.training_data(options, description.facts(), dtype, options.run.seed)
    loss = assemble.loss_of(options.loss)
    starting.announce_files(options, outputs, description, loss, goes_on=stored is not None, split=data.was_split)
    if stored is None:
        open_data.compare_energies(data.train, starting.energies_remedy(options, fine_tuned=origin is not None))
    module = model_loader.build(description, dtype, options.run.seed, str(options.input_json))
    if origin is not None:
        origin.put_into(module)
        origin.check(module, data.train, options.run.step)
    hashes = starting.history_of_structures(origin, stored)
    writer = model_loader.PairWriter(outputs, description, module, code_version(description), hashes)
    options = assemble.with_measured_budget(options, module, description, data.train, device, stored)
    prepare = model_loader.preparation(options.run.step, description)
    batches = assemble.training_batches(options, data, device, prepare)
    state = assemble.training_state(options, module, description, device, batches)
    source = starting.source_of(origin, stored)
    plan = assemble.fit_plan(options, judge_first=source is not None)
    largest = rehearsal.largest_batch(batches, plan.epochs)
    rehearsal.try_batch(largest, state, batches, plan)
    if options.run.dry_run:
        rehearsal.report(largest, state, batches, plan, len(data.valid))
        return
    identity = data_identity(data)
    history = []
    if stored is not None:
        steps = assemble.steps_per_epoch(options, batches)
        history = resuming.take_over(stored, module, state, identity, changes, plan, steps)
    writer.begin_with(module)
    if stored is None:
        model_loader.prove(writer, state.judged, module, state.state_dict())

    record = {"config": cli.as_plain(options), "history": history, "source": source, **identity}
    files = starting.open_files(options, outputs, description, state, writer, data, record, stop, stored, origin)
    validate = assemble.evaluator(data.valid, options.batches, device, stop.watch, what="validation", prepare=prepare)
    hooks = files.hooks(state.network, validate)
    try:
        with stop.deferred():
            fit(state, batches, plan, hooks)
        log.info("training is over: %s", state.progress.finished)
        closing.report_best(options, outputs, data, files, state, plan.stage(state.progress.stage).loss)
    finally:
        files.loggers.close()  # those of a run that is preempted or fails too
