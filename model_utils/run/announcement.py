"""What a run says before anything slow begins: the model, the loss, and every
file that it will write.
"""

from itertools import chain

from dataloader.quantities import DIPOLE, ENERGY, FORCES, QUANTITIES, STRESS, Quantity
from losses import Loss
from model_utils.files.outputs import Outputs
from model_utils.models.architecture import opens_in_mace
from model_utils.models.description import ModelDescription
from model_utils.models.network import PLAIN_TORCH, Network
from model_utils.ranks.group import Group
from model_utils.ranks.joining import idle_warning
from model_utils.run import loggers
from model_utils.run.assemble import logger_names
from model_utils.run.log_lines import number_word
from model_utils.run.objective import Units, stages
from model_utils.run.parts import numbers_of_processes
from model_utils.run.steps import DealtSteps, Steps
from model_utils.runtime import log
from model_utils.settings.options import JudgingOptions, TrainingOptions, TrainOptions

WORTH_A_WORD = 0.9  # balance below which it is said what evens it out
USUAL_ERRORS = {  # quantity: what its errors are taken of
    ENERGY.name: "energies per atom",
    FORCES.name: "force components",
    STRESS.name: "stress components",
    DIPOLE.name: "dipole components per atom",
}


def announce_model(options: TrainOptions, description: ModelDescription) -> None:
    """Say what is trained.

    Raises:
        InputError: a logger that was asked for cannot be had.
    """
    logger_names(options.run)
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


def announce_loss(loss: Loss, stage: int) -> None:
    """Say what is minimised in a stage, and in which units."""
    parts = [_error_of(quantity) for quantity in QUANTITIES.values() if _is_named(quantity, loss)]
    of_stage = "" if stage == 1 else f" of stage {number_word(stage)}"
    log.info("loss%s: %s, means of errors: %s", of_stage, loss.text(), ", ".join(parts))


def announce_objective(options: TrainingOptions, units: Units, stage: int) -> None:
    """Say what is minimised, how its weights change, and by what the best model is chosen
    where that is not the loss.

    Args:
        options: of the run.
        units: of its loss.
        stage: the one in which the run begins or goes on, counted from 1.

    Raises:
        InputError: options of the loss contradict one another.
    """
    all_stages = stages(options, units)
    stage = min(stage, len(all_stages))
    announce_loss(all_stages[stage - 1].loss, stage)
    for text in options.loss.weight_schedule:
        log.info("weight by epoch: %s; validations are judged by the last one", text)
    judging = options.judging
    if (judging.best_metric, judging.best_over) != (
        JudgingOptions.best_metric,
        JudgingOptions.best_over,
    ):
        over = ", the mean over heads" if judging.best_over == "heads" else ""
        log.info("the best model, patience and plateau go by %s%s", judging.best_metric, over)


def _is_named(quantity: Quantity, loss: Loss) -> bool:
    """Whether a quantity is named where the loss is explained: usual ones always, others
    where they have a weight.
    """
    return quantity.required or loss.weight(quantity.name) > 0


def _error_of(quantity: Quantity) -> str:
    """``E of energies per atom (eV)``, ``F of force components (eV/Å)``."""
    of_what = USUAL_ERRORS.get(quantity.name, f"{quantity.name} components")
    return f"{quantity.symbol} of {of_what} ({quantity.unit})"


def announce_new_files(
    options: TrainOptions, outputs: Outputs, description: ModelDescription, *, split: bool
) -> None:
    """Name every file that a new run will write; a dry run writes none.

    Args:
        options: of the run.
        outputs: its place.
        description: of the network.
        split: whether structures are set aside for validation, whose names are written.
    """
    if options.run.dry_run:
        return
    has_module = options.output.export_mace_model and opens_in_mace(description)
    files = outputs.announced(bare_module=has_module, split=split)
    of_loggers = loggers.announced(logger_names(options.run), outputs.checkpoint.parent)
    for path, what in chain(files, of_loggers):
        log.info("will write %s: %s", path, what)


def announce_step(network: Network) -> None:
    """Say which arithmetic runs where; another one gives other last bits,
    and takes another time.
    """
    device = next(network.module.parameters()).device
    slow = network.kind == "fast" and network.arithmetic == PLAIN_TORCH
    note = f"; there are no compiled kernels for {device.type} here" if slow else ""
    log.info("step: %s on %s, computed by %s%s", network.kind, device, network.arithmetic, note)


def announce_ranks(group: Group, steps: Steps) -> None:
    """Say how many processes there are, what each gets of a step, and which other
    numbers keep the bits.
    """
    if (idle := idle_warning()) is not None:
        log.warning("warning: %s", idle)
    if isinstance(steps, DealtSteps):
        describe_dealing(steps, group.rank.size, group.rank.launcher)


def describe_dealing(steps: DealtSteps, n_processes: int, launcher: str) -> None:
    """Say what each of so many processes gets of a step, and how long they wait for one another.

    Args:
        steps: of the run.
        n_processes: how many there are, or may be.
        launcher: what starts them.
    """
    dealt = steps.dealt()
    sizes = dealt.of_processes(dealt.sizes, n_processes)
    costs = dealt.of_processes(dealt.costs, n_processes)
    balance = dealt.balance(n_processes)
    log.info(
        "%d process%s (%s): a step is dealt to %d parts; each process gets %d to %d structures, "
        "%.0f to %.0f edges in cost; balance %.3f",
        n_processes,
        "es" * (n_processes > 1),
        launcher if n_processes > 1 else "alone",
        steps.n_parts,
        sizes.min(),
        sizes.max(),
        costs.min(),
        costs.max(),
        balance,
    )
    if balance < WORTH_A_WORD:
        log.info(
            "  %.0f %% of the time is spent waiting for the slowest: %s",
            100 * (1 - balance),
            f"a single structure costs {dealt.largest:.0f}, a process {costs.mean():.0f} on "
            "average; a larger step (--max_edges_per_batch, --batch_size, "
            "--accumulate_batches) evens that out",
        )
    numbers = ", ".join(map(str, numbers_of_processes(steps.n_parts)))
    log.info("the run may go on with %s processes and give the same bits", numbers)


def announce_place(options: TrainOptions, outputs: Outputs) -> None:
    """Name the place of a run that goes on; a dry run writes nothing there."""
    if options.run.dry_run:
        return
    elsewhere = (
        "" if outputs.model.parent == outputs.checkpoint.parent else f", and {outputs.model}"
    )
    log.info("goes on writing %s and what lies beside it%s", outputs.checkpoint, elsewhere)
