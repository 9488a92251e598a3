"""From options to the batches of training and evaluation, and to optimizer steps."""

from collections.abc import Callable, Iterator

import torch

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.loader import EpochBatches, Loader
from model_utils.ranks.group import ALONE, Group
from model_utils.run.budget import budget_of
from model_utils.run.data.open_data import TrainingData
from model_utils.run.evaluation import EvaluatedData, Evaluator
from model_utils.run.steps import DealtSteps, Steps, StepsInTurn
from model_utils.settings.options import BatchOptions, TrainOptions

Prepare = Callable[[Batch], Batch]  # adds to a batch what the network needs besides


def training_batches(
    options: TrainOptions, data: TrainingData, device: torch.device, prepare: Prepare | None = None
) -> EpochBatches:
    """The training batches, made by workers where asked; ``prepare`` adds what the
    network needs besides.
    """
    workers = options.batches.num_workers
    loader = Loader(
        data.train, num_workers=workers, pin_memory=device.type == "cuda", prepare=prepare
    )
    return EpochBatches(data.train, budget_of(options.batches), options.run.seed, loader)


def training_steps(
    options: TrainOptions, batches: EpochBatches, n_parts: int, group: Group, device: torch.device
) -> Steps:
    """The optimizer steps: of whole batches computed in turn, or dealt to a number of parts."""
    accumulate = options.optimizer.accumulate_batches
    if n_parts == 1:
        return StepsInTurn(batches, accumulate)
    return DealtSteps(batches, accumulate, n_parts, group, device)


def evaluator(
    dataset: Dataset,
    options: BatchOptions,
    device: torch.device,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    *,
    what: str = "evaluation",
    everything: bool = False,
    prepare: Prepare | None = None,
    group: Group = ALONE,
) -> Evaluator:
    """What evaluates a data set in batches within the limits of the options; see `Evaluator`."""
    pinned = device.type == "cuda"
    loader = Loader(dataset, num_workers=options.num_workers, pin_memory=pinned, prepare=prepare)
    evaluated = EvaluatedData(dataset, budget_of(options), loader)
    return Evaluator(evaluated, device, watch, what=what, everything=everything, group=group)
