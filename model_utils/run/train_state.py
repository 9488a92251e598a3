"""Everything of a run that must survive a preemption, in one record."""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from losses import no_sums
from model_utils.errors import VerificationError
from model_utils.models.network import Network
from model_utils.run.ema import ExponentialMovingAverage
from model_utils.run.stored_sums import named_sums, sums_of_named
from model_utils.runtime import computing
from optimizer import Schedule

FUSED = "fused"


@dataclass
class Progress:
    """Counters of a run."""

    epoch: int = 0  # finished epochs
    steps_in_epoch: int = 0  # optimizer steps of the epoch that has begun
    step: int = 0  # optimizer steps of the run
    samples: int = 0  # structures seen
    stage: int = 1  # of FitPlan.stages, counted from 1
    # finished epochs before each stage, fixed as the run began
    stage_starts: list[int] = field(default_factory=list)
    validated_step: int = -1
    validation_due: bool = True  # before the first step, and where one was broken off
    best_loss: float = math.inf  # what the judge made of the best validation within the stage
    best_epoch: int = 0
    best_step: int = 0
    waited: int = 0  # validations since the best
    # learning rate of the last step, 0 before the first; None in a run that an earlier version
    # began, whose records have the rate of the step to come
    rate: float | None = 0.0
    finished: str | None = None  # why the run is over

    def start_of(self, stage: int, planned: int) -> int:
        """Finished epochs before a stage (from 1): as fixed when the run
        began, else as planned now.
        """
        return self.stage_starts[stage - 1] if stage <= len(self.stage_starts) else planned

    def forget_best(self) -> None:
        """Look for the best model anew, as where its file is gone; the next
        validation comes at once.
        """
        self.best_loss = math.inf
        self.waited = 0
        self.validated_step = -1

    @classmethod
    def of_stored(cls, state: Mapping[str, Any]) -> "Progress":
        """The counters of a stored run; runs of two stages at most knew the
        start of the second only.
        """
        known = {item.name: state[item.name] for item in fields(cls) if item.name in state}
        known.setdefault("rate", None)
        if "stage_starts" not in known and state.get("stage_two_epoch") is not None:
            known["stage_starts"] = [0, state["stage_two_epoch"]]
        return cls(**known)


@dataclass
class Tally:
    """Sums over the steps of an epoch, kept on the device so that no step waits for it."""

    sums: Tensor  # in the order of losses.sum_names
    gradient: Tensor  # [sum of norms, largest norm, steps that were clipped, steps]

    @classmethod
    def empty(cls, device: torch.device) -> "Tally":
        """All zero."""
        return cls(
            sums=no_sums(device),
            gradient=torch.zeros(4, dtype=torch.float64, device=device),
        )

    def add(self, sums: Tensor, norm: Tensor, limit: float) -> None:
        """Count one step."""
        norm = norm.to(torch.float64)
        self.sums += sums
        one = torch.ones_like(norm)
        clipped = (norm > limit).to(torch.float64) if limit > 0 else torch.zeros_like(norm)
        largest = torch.maximum(self.gradient[1], norm)
        self.gradient = torch.stack(
            [self.gradient[0] + norm, largest, self.gradient[2] + clipped, self.gradient[3] + one]
        )


@dataclass
class TrainState:
    """A network in training with all that belongs to it."""

    network: Network
    parameters: dict[str, Tensor]  # trainable ones, by mace's names; the module's own tensors
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: ExponentialMovingAverage | None
    tally: Tally
    device: torch.device
    step_parts: int = 1  # to which every step is dealt
    progress: Progress = field(default_factory=Progress)

    @property
    def judged(self) -> Mapping[str, Tensor]:
        """The weights that validation, best model and schedule look at: averaged ones
        where there is an average.
        """
        return self.ema.shadow if self.ema is not None else self.parameters

    @property
    def judged_kind(self) -> str:
        """``ema`` or ``raw``."""
        return "ema" if self.ema is not None else "raw"

    def state_dict(self) -> dict[str, Any]:
        """All of it but the raw weights, as tensors and plain values."""
        return {
            "optimizer": _on_cpu(_without_form(self.optimizer.state_dict())),
            "scheduler": self.schedule.state_dict(),
            "ema_state_dict": None if self.ema is None else _on_cpu(self.ema.state_dict()),
            **asdict(self.progress),
            "tally": {"sums": named_sums(self.tally.sums), "gradient": self.tally.gradient.cpu()},
            "rng": _random_state(self.device),
            "computed_on": self.computed_on(),
        }

    def computed_on(self) -> dict[str, Any]:
        """What decides last bits besides the code: device, threads, form of step and optimizer."""
        fused = any(group.get("fused") for group in self.optimizer.param_groups)
        return {
            **computing(self.device),
            "step": self.network.kind,
            "optimizer": FUSED if fused else "plain",
            **self._sums(),
        }

    def _sums(self) -> dict[str, Any]:
        return {"arithmetic": self.network.arithmetic, "step_parts": self.step_parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` stood; the raw weights are in the module already.

        Raises:
            VerificationError: the stored optimizer is over other parameters; torch matches
                them by position only.
        """
        mine = [group["param_names"] for group in self.optimizer.state_dict()["param_groups"]]
        if [group.get("param_names") for group in state["optimizer"]["param_groups"]] != mine:
            raise VerificationError(
                "the optimizer of the checkpoint moves other parameters, or in another order, "
                "than this version does; resume with the version that wrote it, or start a new "
                "run from its weights"
            )
        self._load_optimizer(state["optimizer"], state["computed_on"].get("optimizer"))
        self.schedule.load_state_dict(state["scheduler"])
        if self.ema is not None:
            if state["ema_state_dict"] is not None:
                self.ema.load_state_dict(state["ema_state_dict"])
            else:
                self.ema.restart(self.parameters)
        self.progress = Progress.of_stored(state)
        self.tally = Tally(
            sums=sums_of_named(state["tally"]["sums"], self.device),
            gradient=state["tally"]["gradient"].to(self.device),
        )
        _restore_random_state(state["rng"], self.device)

    def _load_optimizer(self, stored: Mapping[str, Any], form: str | None) -> None:
        """Moments, in the strides of their weights, and settings, with the form of the run."""
        groups = [
            {**group, "fused": mine["fused"]} if form == FUSED and "fused" in mine else group
            for group, mine in zip(stored["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**stored, "param_groups": groups})
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[name] = laid_out_as(parameter, value)


def laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A tensor of a parameter's shape with the parameter's strides: torch's fused optimizers take
    that for granted, on a CPU without a look.
    """
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _without_form(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state in which no group is of the fused form, which ``computed_on`` knows:
    versions that do not lay gradients out for it would go on with wrong ones.
    """
    groups = [
        {**group, "fused": None} if "fused" in group else group for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def _random_state(device: torch.device) -> dict[str, Any]:
    """Generators of Python and torch; nothing here draws from numpy's global one."""
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {
        "python": [version, list(internal), gauss],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value
