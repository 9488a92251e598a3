"""Which parameters decay and why, the optimizer, and the learning-rate schedule behind one closure."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

NO_DECAY_WORDS = ("bias", "norm", "scale", "shift")

ScheduleKind = Literal["plateau", "step", "exponential", "cosine", "onecycle", "constant"]


def decays(name: str, parameter: Tensor, owner: nn.Module | None = None) -> bool:
    """Whether weight decay acts on a parameter.

    Biases, normalisations, scales, shifts and scalars carry physical magnitudes, which it makes no sense to push
    towards zero. The number of dimensions says nothing: e3nn stores its linear weights flat, and 81 % of MACE-MP-0's
    parameters are one-dimensional tensors that must decay.
    """
    if parameter.numel() == 1 or any(word in name.lower() for word in NO_DECAY_WORDS):
        return False
    return owner is None or "norm" not in type(owner).__name__.lower()


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in a ``decay`` and a ``no_decay`` group, each with the names of its parameters.

    Parameters that a pattern of ``rates`` names (the first that fits) get groups of their own with that rate. Names are
    kept since torch maps optimizer state by position: another grouping would swap moments silently.
    """
    rates = rates or {}
    groups: dict[tuple[str | None, bool], list[tuple[str, nn.Parameter]]] = {
        (pattern, decay): [] for pattern in (None, *rates) for decay in (True, False)
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.numel():
            owner = module.get_submodule(name.rpartition(".")[0])
            pattern = next((p for p in rates if fnmatchcase(name, p)), None)
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


def describe_groups(groups: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> Iterator[str]:
    """Lines that say which parameters decay and how fast each group moves.

    Args:
        groups: of ``parameter_groups``, of an optimizer or of its stored state: ``name``, ``param_names``,
            ``weight_decay`` and, where it is known, ``lr``.
        sizes: numbers in each parameter.
    """
    for group in groups:
        names = list(group["param_names"])
        rate = f", lr {group['lr']:.4g}" if "lr" in group else ""
        count = sum(sizes.get(name, 0) for name in names)
        yield f"group {group['name']}: {len(names)} parameters, {count} numbers, {_decay_text(group)}{rate}"
        by_module: dict[str, list[str]] = {}
        for name in names:
            module = ".".join(name.split(".")[:2])
            by_module.setdefault(module, []).append(name.removeprefix(f"{module}."))
        for module, members in by_module.items():
            yield f"  {module}: {', '.join(members)}"


def _decay_text(group: Mapping[str, Any]) -> str:
    if not group["weight_decay"]:
        return "no weight decay"
    return "weight decay" if math.isnan(group["weight_decay"]) else f"weight decay {group['weight_decay']:g}"


def build_optimizer(
    module: nn.Module,
    *,
    kind: Literal["adam", "adamw"],
    lr: float,
    weight_decay: float,
    amsgrad: bool = True,
    beta1: float = 0.9,
    beta2: float = 0.999,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Adam (decay added to the gradient, as mace) or AdamW (decay of the weight itself) over ``parameter_groups``."""
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return cls(parameter_groups(module, weight_decay, rates), lr=lr, betas=(beta1, beta2), amsgrad=amsgrad)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """A learning-rate schedule; times are epochs or optimizer steps, by ``unit``.

    plateau: times ``factor`` after ``patience`` validations without a lower loss. step: times ``factor`` every
    ``period``. exponential: times ``factor`` every unit. cosine: half a cosine from lr to ``min_lr`` over the horizon
    (Loshchilov & Hutter 2017). onecycle: linear rise over ``warmup`` (or 30 % of the horizon), then a cosine down to
    ``min_lr`` (after Smith & Topin 2018). Every kind begins with a linear warm-up of ``warmup`` units.
    """

    kind: ScheduleKind = "plateau"
    unit: Literal["epoch", "step"] = "epoch"
    factor: float = 0.8
    patience: int = 50
    period: int = 1
    min_lr: float = 0.0
    warmup: float = 0.0
    horizon: float = 1.0  # units from start to end of cosine and onecycle


class Schedule:
    """Sets the learning rate of an optimizer from counters that fit on one line of a checkpoint.

    The rate is a closed form of (time, plateau counters, the rate that was set last and when), not a chain of
    multiplications, so a resumed schedule is where an unbroken one would be.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: ScheduleSettings) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.steps = 0
        self.epochs = 0
        self.best = math.inf
        self.waited = 0
        self.reductions = 0
        self.held: float | None = None  # stage two: this rate, whatever the time
        self.set_at: float | None = None  # the base rates are those of this time on, where ``set_rate`` gave them
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
        """A validation gave this loss; only a plateau looks at it."""
        if loss < self.best:
            self.best, self.waited = loss, 0
        elif self.settings.kind == "plateau":
            self.waited += 1
            if self.waited > self.settings.patience:
                self.reductions, self.waited = self.reductions + 1, 0
        self._apply()

    def hold(self, rate: float) -> None:
        """Stage two: a constant rate takes the place of the schedule."""
        self.held = rate
        self._apply()

    def set_rate(self, rate: float, horizon: float) -> None:
        """This rate now, of all groups in proportion; the schedule goes on from there.

        A step or exponential schedule goes on to decay at its times, a plateau forgets its reductions. A cosine or
        one-cycle takes what is left of its curve from this rate to ``min_lr`` at ``horizon``; where nothing is left, a
        whole half cosine. In a warm-up the rate does not rise above this one: it stays until the warm-up ends. A rate
        that stage two holds is held from now on. Where the rate is that of the schedule already and the horizon as it
        was, nothing changes.

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
        """Begin anew at time zero, with a warm-up where there is one; a rate held by stage two stays.

        Args:
            horizon: units from now to the end of the run.
            rate: another base rate, of all groups in proportion; in stage two the rate that is held.
        """
        if rate is not None:
            self._scale_to(rate)
        self.settings = replace(self.settings, horizon=horizon)
        self.steps = self.epochs = self.waited = self.reductions = 0
        self.set_at, self.set_left = None, 1.0
        self.best = math.inf
        self._apply()

    def rate(self) -> float:
        """Learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def rate_at(self, time: float) -> float:
        """The same at a time, in epochs or steps by the schedule's unit; a plateau's as it is now."""
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
        """Continue where ``state`` stood; cosine and onecycle keep their horizon, however long the run is now.

        Checkpoints from before a rate could be set in a run lack ``set_at`` and ``set_left``.
        """
        self.settings = replace(self.settings, horizon=state["horizon"])
        for name in ("base_rates", "steps", "epochs", "best", "waited", "reductions", "held"):
            setattr(self, name, state[name])
        self.set_at, self.set_left = state.get("set_at"), state.get("set_left", 1.0)
        self._apply()

    def _scale_to(self, rate: float) -> None:
        first = self.base_rates[0]
        self.base_rates = [rate if base == first else base * rate / first for base in self.base_rates]
        self.held = rate if self.held is not None else None

    def _apply(self) -> None:
        first, time = self.base_rates[0], self.time()
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            if self.held is None:
                group["lr"] = self._rate(base, time)
            else:
                group["lr"] = self.held if base == first else self.held * base / first

    def _start(self) -> float:
        """When the rate begins to follow the schedule: after the warm-up, or after what ``set_rate`` made of it."""
        s = self.settings
        if self.set_at is not None:
            return self.set_at
        return s.warmup or (0.3 * s.horizon if s.kind == "onecycle" else 0.0)

    def _left(self, time: float) -> float:
        """How much of its curve a cosine or one-cycle has before it, 1 to 0."""
        start = self._start()
        passed = max(time - start, 0.0) / max(self.settings.horizon - start, 1e-12)
        return self.set_left * (1.0 - min(passed, 1.0))

    def _rate(self, base: float, time: float) -> float:
        s, start = self.settings, self._start()
        if self.set_at is None and time < start:
            return base * (time + 1.0) / (start + 1.0)
        lowest = min(s.min_lr, base)
        if s.kind in ("cosine", "onecycle"):
            height, highest = (math.sin(math.pi / 2 * left) for left in (self._left(time), self.set_left))
            share = (height / highest) ** 2  # of half a cosine: (1 + cos x) / 2 = sin²((π - x) / 2)
            return lowest + (base - lowest) * share if share < 1.0 else base
        since = max(time, start)
        exponent = {
            "plateau": float(self.reductions),
            "step": float((since - s.warmup) // s.period - (start - s.warmup) // s.period),
            "exponential": since - start,
            "constant": 0.0,
        }[s.kind]
        return max(base * s.factor**exponent, lowest)


def scheduler_step(schedule: Schedule) -> Callable[..., None]:
    """The closure the loop calls without knowing the kind of schedule.

    ``scheduler_step()`` after each optimizer step, ``scheduler_step(epoch_done=True)`` after each epoch, and
    ``scheduler_step(loss)`` after each validation; a schedule acts on the call it is made for.
    """

    def step(val_loss: float | None = None, *, epoch_done: bool = False) -> None:
        if val_loss is not None:
            schedule.after_validation(val_loss)
        elif epoch_done:
            schedule.after_epoch()
        else:
            schedule.after_step()

    return step
