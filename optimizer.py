"""Which parameters decay and why, the optimizer, and the learning-rate schedule behind one closure."""

import math
from collections.abc import Callable, Mapping
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

    The rate is a closed form of (time, plateau counters), not a chain of multiplications, so a resumed schedule or one
    whose base rate was changed is where an unbroken one would be.
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

    def set_base(self, rate: float) -> None:
        """Another base rate from now on, of all groups in proportion: the schedule follows it.

        A plateau's reductions so far are forgotten.
        """
        self.base_rates = [base * rate / self.base_rates[0] for base in self.base_rates]
        self.reductions = 0
        self.held = rate if self.held is not None else None
        self._apply()

    def restart(self, horizon: float) -> None:
        """Begin anew at time zero with the settings of now; a rate held by stage two stays."""
        self.settings = replace(self.settings, horizon=horizon)
        self.steps = self.epochs = self.waited = self.reductions = 0
        self.best = math.inf
        self._apply()

    def rate(self) -> float:
        """Learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` stood; cosine and onecycle keep their horizon, however long the run is now."""
        self.settings = replace(self.settings, horizon=state["horizon"])
        for name in ("base_rates", "steps", "epochs", "best", "waited", "reductions", "held"):
            setattr(self, name, state[name])
        self._apply()

    def _apply(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = self.held * base / self.base_rates[0] if self.held is not None else self._rate(base)

    def _rate(self, base: float) -> float:
        s = self.settings
        time = float(self.steps if s.unit == "step" else self.epochs)
        warmup = s.warmup or (0.3 * s.horizon if s.kind == "onecycle" else 0.0)
        if time < warmup:
            return base * (time + 1.0) / (warmup + 1.0)
        if s.kind in ("cosine", "onecycle"):
            progress = min((time - warmup) / max(s.horizon - warmup, 1e-12), 1.0)
            return s.min_lr + (base - s.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
        exponent = {
            "plateau": float(self.reductions),
            "step": float((time - warmup) // s.period),
            "exponential": time - warmup,
            "constant": 0.0,
        }[s.kind]
        return max(base * s.factor**exponent, min(s.min_lr, base))


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
