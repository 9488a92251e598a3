"""Which parameters decay, the optimizers, and the learning-rate schedules.

Two tables are open to additions, of a plug-in too: `OPTIMIZERS`, how each is built, and
`SCHEDULES`, what each makes of the learning rate. Their keys are what a user types after
``--optimizer`` and ``--scheduler``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

NO_DECAY_WORDS = ("bias", "norm", "scale", "shift")

# Which parameters decay


def decays(name: str, parameter: Tensor, owner: nn.Module | None = None) -> bool:
    """Whether weight decay acts on a parameter.

    Biases, normalisations, scales, shifts and scalars carry physical magnitudes, which it makes no
    sense to push towards zero. The number of dimensions says nothing: e3nn stores its linear
    weights flat, and 81 % of MACE-MP-0's parameters are one-dimensional tensors that must decay.
    """
    if parameter.numel() == 1 or any(word in name.lower() for word in NO_DECAY_WORDS):
        return False
    return owner is None or "norm" not in type(owner).__name__.lower()


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in a ``decay`` and a ``no_decay`` group, each with the
    names of its parameters.

    Parameters that a pattern of ``rates`` names (the first that fits) get groups of their own with
    that rate. Names are kept since torch maps optimizer state by position: another grouping would
    swap moments silently.
    """
    rates = rates or {}
    groups: dict[tuple[str | None, bool], list[tuple[str, nn.Parameter]]] = {
        (pattern, decay): [] for pattern in (None, *rates) for decay in (True, False)
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.numel():
            owner = module.get_submodule(name.rpartition(".")[0])
            pattern = pattern_of(name, rates)
            groups[pattern, decays(name, parameter, owner)].append((name, parameter))
    return [
        {
            "name": ("decay" if decay else "no_decay") + (f" {pattern}" if pattern else ""),
            "params": [parameter for _, parameter in members],
            "param_names": [name for name, _ in members],
            "weight_decay": weight_decay if decay else 0.0,
            **({"lr": rates[pattern]} if pattern else {}),
        }
        for (pattern, decay), members in groups.items()
        if members
    ]


def pattern_of(name: str, rates: Mapping[str, float]) -> str | None:
    """The pattern that says the rate of a parameter, the first that fits its name; None where
    it has the usual one.
    """
    return next((pattern for pattern in rates if fnmatchcase(name, pattern)), None)


# Optimizers


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What an optimizer is built from.

    Attributes:
        kind: its name in `OPTIMIZERS`.
        lr: learning rate of the parameters that have no rate of their own.
        weight_decay: of the parameters that decay.
        amsgrad: keep the largest second moment (Reddi et al., ICLR 2018).
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        rates: learning rates of their own by patterns of parameters' names.
    """

    kind: str = "adam"
    lr: float
    weight_decay: float = 0.0
    amsgrad: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    rates: Mapping[str, float] = field(default_factory=dict)


# groups of parameters (``parameter_groups``), settings → an optimizer whose
# ``step()`` takes no closure
OptimizerBuilder = Callable[[list[dict[str, Any]], OptimizerSettings], torch.optim.Optimizer]


def adam(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Adam as mace has it: the decay is added to the gradient (Kingma & Ba, ICLR 2015)."""
    return torch.optim.Adam(groups, **_moments(groups, settings))


def adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Adam with the decay taken from the weight itself (Loshchilov & Hutter, ICLR 2019)."""
    return torch.optim.AdamW(groups, **_moments(groups, settings))


def _moments(groups: list[dict[str, Any]], settings: OptimizerSettings) -> dict[str, Any]:
    """What both take.

    torch's fused form goes through the weights once, where the other one goes through them once
    for each operation: a quarter of the time on a CPU. Its last bits are its own; a run goes on in
    the form that it began with (``TrainState``). On a CPU it does not look at strides, and would
    write beside a weight that has gaps in memory.
    """
    weights = [p for group in groups for p in group["params"]]
    return {
        "lr": settings.lr,
        "betas": (settings.beta1, settings.beta2),
        "amsgrad": settings.amsgrad,
        "fused": all(p.is_floating_point() and p.is_contiguous() for p in weights),
    }


OPTIMIZERS: dict[str, OptimizerBuilder] = {"adam": adam, "adamw": adamw}


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer that settings name, over the ``parameter_groups`` of a module."""
    groups = parameter_groups(module, settings.weight_decay, settings.rates)
    return OPTIMIZERS[settings.kind](groups, settings)


# Schedules


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """A learning-rate schedule by its name in `SCHEDULES`, and its numbers; times are in ``unit``.

    Each kind begins with a linear warm-up of ``warmup`` units, after which none goes below
    ``min_lr``. Which of the other numbers a kind looks at, its entry in the table says.
    """

    kind: str = "plateau"
    unit: Literal["epoch", "step"] = "epoch"
    factor: float = 0.8
    patience: int = 50
    period: int = 1
    min_lr: float = 0.0
    warmup: float = 0.0
    horizon: float = 1.0  # units from the start of the run to its end


@dataclass(frozen=True, kw_only=True)
class ScheduleTime:
    """Where a schedule stands; times are in its unit.

    Attributes:
        now: not before ``start``.
        start: since when the rate follows the schedule: after the warm-up, or since a
            rate was set in the run.
        left: how much of the way to the horizon is left, 1 to 0.
        left_at_start: the same at ``start``; below 1 where a rate was set in the run.
        reductions: how often a plateau reduced the rate.
    """

    now: float
    start: float
    left: float
    left_at_start: float
    reductions: int


@dataclass(frozen=True, kw_only=True)
class ScheduleKind:
    """What a kind of schedule makes of the learning rate after its warm-up.

    The factor must be a closed form of the time, 1 at ``start``: a run that is resumed is then
    where an unbroken one would be.

    Attributes:
        factor: settings, time → factor of the base rate; with an end, the part of the way from
            ``min_lr`` up to the base rate, which is 0 at the horizon.
        has_end: it comes down to ``min_lr`` at its horizon, which it keeps when a
            resumed run is made longer.
        waits: it reduces the rate after validations without a lower loss, which are counted for it.
        warmup_share: part of the horizon that is its warm-up where none is given.
        uses: the option behind each number of the settings that ``factor`` looks at.
    """

    factor: Callable[[ScheduleSettings, ScheduleTime], float]
    has_end: bool = False
    waits: bool = False
    warmup_share: float = 0.0
    uses: Mapping[str, str] = field(default_factory=dict)


def plateau_factor(settings: ScheduleSettings, time: ScheduleTime) -> float:
    """Times ``factor`` after more than ``patience`` validations without a lower loss."""
    return settings.factor ** float(time.reductions)


def step_factor(settings: ScheduleSettings, time: ScheduleTime) -> float:
    """Times ``factor`` every ``period``, counted from the end of the warm-up."""
    periods = (time.now - settings.warmup) // settings.period
    before = (time.start - settings.warmup) // settings.period
    return settings.factor ** float(periods - before)


def exponential_factor(settings: ScheduleSettings, time: ScheduleTime) -> float:
    """Times ``factor`` every unit."""
    return settings.factor ** (time.now - time.start)


def cosine_factor(settings: ScheduleSettings, time: ScheduleTime) -> float:
    """Half a cosine down to ``min_lr`` at the horizon (Loshchilov & Hutter, ICLR 2017),
    or what is left of it.
    """
    height = math.sin(math.pi / 2 * time.left)
    highest = math.sin(math.pi / 2 * time.left_at_start)
    return (height / highest) ** 2  # (1 + cos x) / 2 = sin²((π - x) / 2)


def constant_factor(settings: ScheduleSettings, time: ScheduleTime) -> float:
    """The base rate from the end of the warm-up on."""
    return 1.0


SCHEDULES: dict[str, ScheduleKind] = {
    "plateau": ScheduleKind(
        factor=plateau_factor,
        waits=True,
        uses={"factor": "lr_factor", "patience": "scheduler_patience"},
    ),
    "step": ScheduleKind(factor=step_factor, uses={"factor": "lr_factor", "period": "lr_step"}),
    "exponential": ScheduleKind(factor=exponential_factor, uses={"factor": "lr_gamma"}),
    "cosine": ScheduleKind(factor=cosine_factor, has_end=True),
    # a linear rise and then a cosine, after Smith & Topin 2018
    "onecycle": ScheduleKind(factor=cosine_factor, has_end=True, warmup_share=0.3),
    "constant": ScheduleKind(factor=constant_factor),
}


class Schedule:
    """Sets the learning rate of an optimizer from counters that fit on one line of a checkpoint.

    The rate is a closed form of (time, plateau counters, the rate that was set last and when), not
    a chain of multiplications, so a resumed schedule is where an unbroken one would be.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: ScheduleSettings) -> None:
        self.optimizer = optimizer
        self.settings = settings
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.steps = 0
        self.epochs = 0
        self.best = math.inf
        self.waited = 0
        self.reductions = 0
        self.held: float | None = None  # by a stage of the run: this rate, whatever the time
        # the base rates are those of this time on, where ``set_rate`` gave them
        self.set_at: float | None = None
        self.set_left = 1.0  # how much of its curve a cosine or one-cycle had before it then
        self._apply()

    def after_step(self) -> None:
        """An optimizer step was taken."""
        self.steps += 1
        self._apply()

    def after_epoch(self) -> None:
        """An epoch was finished."""
        self.epochs += 1
        self._apply()

    def after_validation(self, loss: float) -> None:
        """A validation gave this loss; only a schedule that waits for lower ones looks at it."""
        if loss < self.best:
            self.best = loss
            self.waited = 0
        elif self.kind.waits:
            self.waited += 1
            if self.waited > self.settings.patience:
                self.reductions += 1
                self.waited = 0
        self._apply()

    def forget_losses(self) -> None:
        """Losses from now on are of another kind than those before, and not compared with them."""
        self.best = math.inf
        self.waited = 0

    def hold(self, rate: float) -> None:
        """A stage of the run has a rate of its own, which takes the place of the schedule."""
        self.held = rate
        self._apply()

    def set_rate(self, rate: float, horizon: float) -> None:
        """This rate now, of all groups in proportion; the schedule goes on from there.

        A step or exponential schedule goes on to decay at its times, a plateau forgets its
        reductions. A cosine or one-cycle takes what is left of its curve from this rate to
        ``min_lr`` at ``horizon``; where nothing is left, a whole half cosine. In a warm-up the
        rate does not rise above this one: it stays until the warm-up ends. A rate that stage two
        holds is held from now on. Where the rate is that of the schedule already and the horizon
        as it was, nothing changes.

        Args:
            rate: of the first group, above 0.
            horizon: units from the start to the end of the run.
        """
        self.set_left = self._left(self.time()) or 1.0
        self.set_at = max(self.time(), self._start())
        self.reductions = 0
        self._scale_to(rate)
        self.settings = replace(self.settings, horizon=horizon)
        self._apply()

    def restart(self, horizon: float, rate: float | None = None) -> None:
        """Begin anew at time zero, with a warm-up where there is one; a rate
        held by stage two stays.

        Args:
            horizon: units from now to the end of the run.
            rate: another base rate, of all groups in proportion; in stage two
                the rate that is held.
        """
        if rate is not None:
            self._scale_to(rate)
        self.settings = replace(self.settings, horizon=horizon)
        self.steps = self.epochs = self.waited = self.reductions = 0
        self.set_at = None
        self.set_left = 1.0
        self.best = math.inf
        self._apply()

    @property
    def kind(self) -> ScheduleKind:
        """What the schedule makes of the rate."""
        return SCHEDULES[self.settings.kind]

    def rate(self) -> float:
        """Learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def rate_at(self, time: float) -> float:
        """Learning rate of the first group at a time, in epochs or steps; a
        plateau's as it is now.
        """
        return self.held if self.held is not None else self._rate(self.base_rates[0], time)

    def is_warming_up(self) -> bool:
        """Whether the rate rises."""
        return self.held is None and self.set_at is None and self.time() < self._start()

    def time(self) -> float:
        """Epochs or steps behind it, by its unit."""
        return float(self.steps if self.settings.unit == "step" else self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed schedule needs, as plain numbers."""
        return {
            "kind": self.settings.kind,
            "unit": self.settings.unit,
            "horizon": self.settings.horizon,
            "base_rates": list(self.base_rates),
            "steps": self.steps,
            "epochs": self.epochs,
            "best": self.best,
            "waited": self.waited,
            "reductions": self.reductions,
            "held": self.held,
            "set_at": self.set_at,
            "set_left": self.set_left,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` stood; cosine and onecycle keep their horizon,
        however long the run is now.

        Checkpoints from before a rate could be set in a run lack ``set_at`` and ``set_left``.
        """
        self.settings = replace(self.settings, horizon=state["horizon"])
        for name in ("base_rates", "steps", "epochs", "best", "waited", "reductions", "held"):
            setattr(self, name, state[name])
        self.set_at = state.get("set_at")
        self.set_left = state.get("set_left", 1.0)
        self._apply()

    def _scale_to(self, rate: float) -> None:
        first = self.base_rates[0]
        self.base_rates = [
            rate if base == first else base * rate / first for base in self.base_rates
        ]
        self.held = rate if self.held is not None else None

    def _apply(self) -> None:
        first = self.base_rates[0]
        time = self.time()
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            if self.held is None:
                group["lr"] = self._rate(base, time)
            else:
                group["lr"] = self.held if base == first else self.held * base / first

    def _start(self) -> float:
        """When the rate begins to follow the schedule: after the warm-up, or after what
        ``set_rate`` made of it.
        """
        if self.set_at is not None:
            return self.set_at
        return self.settings.warmup or self.kind.warmup_share * self.settings.horizon

    def _left(self, time: float) -> float:
        """How much of the way to the horizon is left at a time, 1 to 0."""
        start = self._start()
        passed = max(time - start, 0.0) / max(self.settings.horizon - start, 1e-12)
        return self.set_left * (1.0 - min(passed, 1.0))

    def _rate(self, base: float, time: float) -> float:
        start = self._start()
        if self.set_at is None and time < start:
            return base * (time + 1.0) / (start + 1.0)
        stands = ScheduleTime(
            now=max(time, start),
            start=start,
            left=self._left(time),
            left_at_start=self.set_left,
            reductions=self.reductions,
        )
        factor = self.kind.factor(self.settings, stands)
        lowest = min(self.settings.min_lr, base)
        if self.kind.has_end:
            return lowest + (base - lowest) * factor if factor < 1.0 else base
        return max(base * factor, lowest)
