"""What a run minimises: from options to the losses of its stages and of their epochs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from dataloader import quantities
from dataloader.quantities import DIPOLE, QUANTITIES
from losses import LOSSES, SHAPES, Loss, LossSettings, NamedLoss
from model_utils.errors import InputError
from model_utils.run.divisible import is_a_sum
from model_utils.run.fit_plan import Stage
from model_utils.run.table_entry import entry_of
from model_utils.run.weight_schedule import WeightSchedule, schedules_of, weights_at
from model_utils.settings import terms
from model_utils.settings.options import LossOptions, TrainingOptions

USUAL_WEIGHTS = {"energy": LossOptions.energy_weight, "forces": LossOptions.forces_weight}
Weights = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Units:
    """In which units the terms of a loss are taken.

    Attributes:
        spread: of the labels that are trained on, by quantity; empty where errors
            are taken as they are.
        balanced: whether weights are shares of their sum.
    """

    spread: Mapping[str, float] = field(default_factory=dict)
    balanced: bool = False

    def applied(self, loss: Loss) -> Loss:
        """A loss with its terms in these units."""
        total = sum(term.weight for term in loss.terms.values()) if self.balanced else 1.0
        in_units = {
            name: replace(term, weight=term.weight / total, unit=self.spread.get(name, term.unit))
            for name, term in loss.terms.items()
        }
        return replace(loss, terms=in_units)


AS_THEY_ARE = Units()


def loss_of(options: LossOptions, units: Units = AS_THEY_ARE) -> Loss:
    """The loss of the first stage: what its validations are judged by, and, without a
    schedule, its steps too.
    """
    schedules = weight_schedules(options)
    ends_with = {quantity: schedule.last for quantity, schedule in schedules.items()}
    loss = _named_loss(options, weights_of(options) | ends_with, units)
    if all(term.weight == 0 for term in loss.terms.values()):
        raise InputError(
            "all weights that --weight_schedule ends with are 0; nothing would be left to judge"
        )
    return loss


def weights_of(options: LossOptions) -> Weights:
    """Weights of the terms that a named loss has, by quantity, before any schedule.

    Raises:
        InputError: a weight is given for a term that the loss does not have, or cannot be chosen.
    """
    named = entry_of(LOSSES, options.loss, "--loss")
    for name in named.weights:
        quantities.include(name)
    weights = terms.weights(options)
    given = terms.given_weights(options)
    weights |= {name: weight for name, weight in named.weights.items() if name not in given}
    for name, weight in weights.items():
        is_usual = weight in (0.0, USUAL_WEIGHTS.get(name))
        if not is_usual and not has_term(named, name):
            raise InputError(
                f"--loss {options.loss} has no term of the {name}, and its weight is given as "
                f"{weight:g}; leave the weight out, or take another loss"
            )
        if not is_usual and weight != named.fixed.get(name, weight):
            raise InputError(
                f"--loss {options.loss} gives the {name} the weight {named.fixed[name]:g}, and "
                f"{weight:g} is given; leave it out, or take --loss weighted"
            )
    own = {name: weight if has_term(named, name) else 0.0 for name, weight in weights.items()}
    return own | dict(named.fixed)


def has_term(named: NamedLoss, quantity: str) -> bool:
    """Whether a named loss has a term of a quantity."""
    return named.only is None or quantity in named.only


def weight_schedules(options: LossOptions) -> dict[str, WeightSchedule]:
    """Schedules of the weights of the first stage, by quantity.

    Raises:
        InputError: one cannot be understood, or is of a term that the loss does not have.
    """
    schedules = schedules_of(options.weight_schedule, tuple(QUANTITIES))
    named = entry_of(LOSSES, options.loss, "--loss")
    for quantity in schedules:
        if not has_term(named, quantity) or quantity in named.fixed:
            raise InputError(
                f"--loss {options.loss} has no weight of the {quantity} to be "
                "scheduled; leave it out"
            )
    return schedules


def trained_on(options: TrainingOptions) -> set[str]:
    """Quantities whose weight is not 0 in some epoch of some stage.

    Raises:
        InputError: the options of the loss contradict one another.
    """
    if options.stage_two.stage_two and options.loss.weight_schedule:
        raise InputError(
            "--stage_two and --weight_schedule both change the weights of the loss; give one of "
            "the two: a piecewise schedule of two points is two stages with one best model"
        )
    first = weights_of(options.loss)
    largest = {quantity: s.largest for quantity, s in weight_schedules(options.loss).items()}
    stages = [first | largest]
    if options.stage_two.stage_two:
        stages.append(second_weights(options))
    return {quantity for weights in stages for quantity, weight in weights.items() if weight > 0}


def require_given(options: TrainingOptions, gives: Collection[str], what: str) -> None:
    """Refuse a loss with a term of something that the network does not compute, and
    that would be zero unseen.

    Args:
        options: of the run.
        gives: quantities of the network; empty where that is not known yet.
        what: it is, for the message.

    Raises:
        InputError: naming the quantities and what leaves them out.
    """
    missing = sorted(trained_on(options) - set(gives)) if gives else []
    if not missing:
        return
    fitting = [
        name
        for name, named in LOSSES.items()
        if named.only is not None and set(named.only) <= set(gives)
    ]
    named = f", for example with --loss {fitting[-1]}" if DIPOLE.name in gives and fitting else ""
    raise InputError(
        f"--loss {options.loss.loss} trains on {', '.join(missing)}, and {what} gives "
        f"{', '.join(sorted(gives))} only; give their terms the weight 0{named}"
    )


def second_weights(options: TrainingOptions) -> Weights:
    """Weights of stage two; terms that a named loss does not have stay without one."""
    named = LOSSES[options.loss.loss]
    first = weights_of(options.loss)
    second = first | terms.stage_two_weights(options.stage_two)
    return {
        name: weight if has_term(named, name) else 0.0 for name, weight in second.items()
    } | dict(named.fixed)


def _named_loss(options: LossOptions, weights: Mapping[str, float], units: Units) -> Loss:
    """The loss that --loss names, with these weights.

    Raises:
        InputError: a loss or the shape of a term has no such name, or the loss
            brings shapes of its own.
    """
    named = entry_of(LOSSES, options.loss, "--loss")
    shapes = terms.shapes(options)
    for name, shape in shapes.items():
        if shape not in SHAPES:
            raise InputError(
                f"the loss shape {shape!r} of the {name} is not known; there are "
                f"{', '.join(SHAPES)}"
            )
        if named.own_shapes:
            raise InputError(
                f"--loss {options.loss} has shapes of its own, and {shape} is given for the "
                f"{name}; leave one of the two out"
            )
    settings = LossSettings(weights=weights, shapes=shapes, huber_delta=options.huber_delta)
    loss = units.applied(named.build(settings))
    return replace(loss, divisible=is_a_sum(loss))


def stages(options: TrainingOptions, units: Units = AS_THEY_ARE) -> tuple[Stage, ...]:
    """The stages of a run."""
    first = Stage(loss=loss_of(options.loss, units), of_epoch=_of_epochs(options.loss, units))
    second = options.stage_two
    if not second.stage_two:
        return (first,)
    start = second.start_stage_two or max(options.run.epochs // 4 * 3, 1)
    loss = _named_loss(options.loss, second_weights(options), units)
    rate = None if options.running.stage_two_follows_schedule else second.stage_two_lr
    return (first, Stage(start=start, loss=loss, lr=rate))


def _of_epochs(options: LossOptions, units: Units) -> Callable[[int], Loss] | None:
    """What gives the loss that the steps of an epoch minimise; None where
    no weight has a schedule.
    """
    schedules = weight_schedules(options)
    if not schedules:
        return None
    usual = weights_of(options)

    def of_epoch(epoch: int) -> Loss:
        return _named_loss(options, usual | weights_at(schedules, epoch), units)

    return of_epoch


def require_divisible(loss: Loss, options: TrainingOptions, n_parts: int) -> None:
    """Refuse a loss that is no sum over structures where a step is computed in parts, which
    would train otherwise.

    Raises:
        InputError: naming the option that asks for parts.
    """
    accumulated = options.optimizer.accumulate_batches
    if loss.divisible or (n_parts == 1 and accumulated == 1):
        return
    asked = f"--step_parts {n_parts}" if n_parts > 1 else f"--accumulate_batches {accumulated}"
    raise InputError(
        f"--loss {options.loss.loss} is not a sum over structures, so that a step in parts "
        f"({asked}) would train otherwise than a whole one; train in one process, with "
        "--step_parts 1 and --accumulate_batches 1"
    )
