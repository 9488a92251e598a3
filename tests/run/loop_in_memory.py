"""A run in memory: a network of two weights, batches of waters, hooks that write
down what they are told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conftest import waters
from dataloader.batch import Batch, collate
from dataloader.needs import ModelFacts
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from losses import Loss
from model_utils.metrics import Metrics, metrics
from model_utils.run.ema import ExponentialMovingAverage
from model_utils.run.evaluation import evaluate
from model_utils.run.fit import Hooks
from model_utils.run.fit_plan import Stage
from model_utils.run.steps import StepsInTurn
from model_utils.run.train_state import Tally, TrainState
from optimizer import OptimizerSettings, Schedule, ScheduleSettings, build_optimizer

R_MAX = 3.0
FACTS = ModelFacts(
    atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=R_MAX
)
CPU = torch.device("cpu")


class EnergyPerElement:
    """Energies are sums of one number for each element; there are no forces."""

    kind = "per element"
    arithmetic = "per element"
    gives = frozenset({"energy"})

    def __init__(self) -> None:
        self.module = nn.Module()
        self.module.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def outputs(
        self, parameters: Mapping[str, Tensor], batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """The energies, (n_structures,), eV."""
        per_atom = parameters["weight"][batch.species] + 0.0 * positions.sum(dim=1)
        energies = torch.zeros(batch.n_structures, dtype=torch.float64)
        return {"energy": energies.index_add(0, batch.structure, per_atom)}


class Waters:
    """Structures of one and of two molecules in batches of two; the same plan in every epoch."""

    def __init__(self, n: int, *, broken: int | None = None) -> None:
        self.structures = [
            Structure(
                atomic_numbers=atoms.numbers.astype(np.int64),
                positions=atoms.positions,
                cell=np.zeros((3, 3)),
                pbc=(False, False, False),
                identifier=str(number),
                labels={
                    "energy": float("inf") if number == broken else atoms.info["REF_energy"],
                    "forces": atoms.arrays["REF_forces"],
                },
            )
            for number, atoms in enumerate(waters(n))
        ]
        self.graphs = [build_graph(structure, R_MAX) for structure in self.structures]

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """Two structures to a batch."""
        return [np.arange(first, first + 2) for first in range(0, len(self.structures), 2)]

    def batches(self, plan: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """The batches of a plan."""
        for rows in plan:
            structures = [self.structures[row] for row in rows]
            graphs = [self.graphs[row] for row in rows]
            yield collate(
                structures, graphs, rows.tolist(), FACTS, torch.float64, free_atoms_only=False
            )


def steps_of(data: Waters, accumulate: int = 1) -> StepsInTurn:
    """The optimizer steps of an epoch, of so many batches each."""
    return StepsInTurn(data, accumulate)  # type: ignore[arg-type]


@dataclass
class Told:
    """What the loop told its hooks, in its order; attributes say what the hooks answer."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    # of validations to come, in place of measured ones
    losses: list[float] = field(default_factory=list)
    # answers of saves to come; afterwards each succeeds
    saves: list[bool] = field(default_factory=list)
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """The events of one kind, without its name."""
        return [event[1:] for event in self.events if event[0] == kind]

    def kinds(self) -> list[str]:
        """Names of all events."""
        return [event[0] for event in self.events]

    def hooks(self, state: TrainState, data: Waters) -> Hooks:
        """Hooks that write into ``events``."""

        def say(*event: Any) -> None:
            self.events.append(event)

        def validate(
            parameters: Mapping[str, Tensor], loss: Loss
        ) -> tuple[Metrics, dict[str, Metrics]]:
            batches = self.watch(data.batches(data.plan(0)))
            measured = metrics(
                evaluate(state.network, parameters, batches, loss, CPU).tolist(), loss
            )
            value = self.losses.pop(0) if self.losses else measured.loss
            judged = Metrics(
                loss=value,
                errors=measured.errors,
                n_configs=measured.n_configs,
                n_atoms=measured.n_atoms,
            )
            return judged, {"all": judged}

        def save(_: TrainState, reason: str) -> bool:
            say("save", reason)
            return self.saves.pop(0) if self.saves else True

        def begin(_: TrainState, stage: Stage) -> None:
            say("stage", state.progress.stage + 1, state.progress.epoch)

        return Hooks(
            alike=lambda state: None,
            validate=validate,
            on_step=lambda state, steps, loss: say("step", state.progress.step),
            on_train=lambda record: say("train", record.epoch, record.lr, record.metrics.loss),
            on_validation=lambda record: say(
                "valid", record.epoch, record.best, record.metrics.loss
            ),
            on_best=lambda state, errors: say("best", errors.loss),
            on_judged=lambda state, errors, score: None,
            on_stage=begin,
            save=save,
            save_last=lambda state, reason: say("last", reason),
            rescue=lambda state, reason: say("last", reason),
            watch=self.watch,
            meet=lambda: None,
            names=lambda indices: " and ".join(str(index) for index in indices),
        )


def state_of(
    lr: float = 0.01,
    *,
    settings: ScheduleSettings | None = None,
    optimizer: str = "adam",
    ema: bool = False,
    network: EnergyPerElement | None = None,
) -> TrainState:
    """A run before its first step."""
    network = EnergyPerElement() if network is None else network
    moved_by = build_optimizer(network.module, OptimizerSettings(kind=optimizer, lr=lr))
    parameters: dict[str, Tensor] = dict(network.module.named_parameters())
    return TrainState(
        network=network,
        parameters=parameters,
        optimizer=moved_by,
        schedule=Schedule(moved_by, settings or ScheduleSettings(kind="constant")),
        ema=ExponentialMovingAverage(parameters, 0.9) if ema else None,
        tally=Tally.empty(CPU),
        device=CPU,
    )
