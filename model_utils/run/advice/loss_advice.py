"""What is said of a loss, and of its second stage, that may not be what its user takes it for:
default weights in other units, unused labels, what mace-torch has otherwise.
"""

from collections.abc import Iterator, Mapping

from dataloader.dataset import Dataset
from dataloader.quantities import ENERGY, FORCES, STRESS
from losses import LOSSES
from model_utils.run.objective import second_weights, weight_schedules, weights_of
from model_utils.runtime import log
from model_utils.settings.options import LossOptions, StageTwoOptions, TrainingOptions

# weights that suit errors in eV/atom and eV/Å; one that is 1 suits any unit
OF_STAGE_ONE = {FORCES.name: LossOptions.forces_weight}
STRESS_OF_STAGE_TWO = 10.0  # mace-torch's --swa_stress_weight and --swa_virials_weight
OF_STAGE_TWO = {
    ENERGY.name: StageTwoOptions.stage_two_energy_weight,
    FORCES.name: StageTwoOptions.stage_two_forces_weight,
}


def advise(options: TrainingOptions, train: Dataset) -> None:
    """Warn of default weights in units of the spread, and say that labels of the stress are not
    trained on, which mace-torch may do.

    Args:
        options: of the run.
        train: structures to train on.
    """
    if options.loss.loss_units != "absolute":
        for text in default_weights(options):
            log.warning("warning: --loss_units %s: %s", options.loss.loss_units, text)
    for text in _stage_two_of_mace(options):
        log.info(text)
    for text in _faster_stage_two(options):
        log.warning("warning: %s", text)
    is_trained = weights_of(options.loss)[STRESS.name] > 0
    if (
        is_trained
        or stress_is_chosen(options.loss)
        or not any(source.census.has_label(STRESS.name) for source in train.sources)
    ):
        return
    theirs = LOSSES[options.loss.loss].theirs.get(STRESS.name)
    if theirs is None:
        log.info(
            "the data have labels of the stress, whose term has the weight 0: --stress_weight "
            "trains on them"
        )
    else:
        log.warning(
            "warning: the data have labels of the stress, and --loss %s does not train on them: "
            "here its term has the weight 0 unless given, in mace-torch %g; give --stress_weight "
            "%g, or 0 to leave them out without this line",
            *(options.loss.loss, theirs, theirs),
        )


def _stage_two_of_mace(options: TrainingOptions) -> Iterator[str]:
    """What mace-torch would train otherwise in the second stage of such a loss."""
    if not options.stage_two.stage_two:
        return
    named = LOSSES[options.loss.loss]
    if named.theirs_in_stage_two is not None:
        yield (
            f"stage two goes on with --loss {options.loss.loss}; mace-torch takes "
            f"{named.theirs_in_stage_two} there"
        )
    weight = second_weights(options)[STRESS.name]
    if weight > 0 and options.stage_two.stage_two_stress_weight is None and named.own_shapes:
        yield (
            f"stage two has the stress weight of stage one, {weight:g}; mace-torch has "
            f"{STRESS_OF_STAGE_TWO:g} there unless it is given: --stage_two_stress_weight"
        )


def _faster_stage_two(options: TrainingOptions) -> Iterator[str]:
    """That the second stage begins with a higher rate, as after a fine-tuning's low one."""
    second = options.stage_two
    is_own = second.stage_two and not options.running.stage_two_follows_schedule
    if is_own and second.stage_two_lr > options.optimizer.lr:
        yield (
            f"stage two begins with --stage_two_lr {second.stage_two_lr:g}, a higher rate than "
            f"--lr {options.optimizer.lr:g} of stage one; a second stage is usually slower"
        )


def stress_is_chosen(options: LossOptions) -> bool:
    """Whether the user says what weight the stress has."""
    return options.stress_weight is not None or STRESS.name in weight_schedules(options)


def default_weights(options: TrainingOptions) -> Iterator[str]:
    """One sentence for each stage of whose weights one is the default, where that is
    made for absolute errors.
    """
    last = {
        quantity: schedule.last for quantity, schedule in weight_schedules(options.loss).items()
    }
    yield from _defaults_among(weights_of(options.loss) | last, OF_STAGE_ONE, "")
    if options.stage_two.stage_two:
        yield from _defaults_among(second_weights(options), OF_STAGE_TWO, "stage_two_")


def _defaults_among(
    weights: Mapping[str, float], defaults: Mapping[str, float], prefix: str
) -> Iterator[str]:
    """A sentence on default weights of a stage that has several terms.

    Args:
        weights: by quantity.
        defaults: those that suit absolute errors.
        prefix: of the stage's flags.
    """
    total = sum(weights.values())
    if sum(weight > 0 for weight in weights.values()) < 2:
        return
    flags = {
        f"--{prefix}{name}_weight": weights[name]
        for name, default in defaults.items()
        if weights[name] == default
    }
    if flags:
        named = ", ".join(
            f"{flag} {weight:g} ({weight / total:.1%} of the loss)"
            for flag, weight in flags.items()
        )
        yield (
            (
                f"{named} is a default, for errors in eV/atom and eV/Å; in units of the spread "
                "give weights near 1, as "
            )
            + " ".join(f"{flag} 1" for flag in flags)
        )
