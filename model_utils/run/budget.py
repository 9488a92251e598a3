"""Limits of a batch by the options, and how many edges the memory holds where they say ``auto``."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dataloader.batch import Batch
from dataloader.batching import Budget, epoch_order, pack
from dataloader.dataset import Dataset
from dataloader.progress import ProgressBar
from losses import Loss
from model_utils import model_loader
from model_utils.models.description import ModelDescription
from model_utils.models.network import Network, Parameters
from model_utils.ranks.group import Group
from model_utils.run import memory
from model_utils.run.evaluation import evaluate
from model_utils.run.objective import loss_of
from model_utils.run.step import loss_and_gradients
from model_utils.runtime import log
from model_utils.settings.options import BatchOptions, TrainOptions

DEFAULT_BATCH_SIZE = 10
Step = Callable[[Batch], Any]

# of the free memory; a CPU's is also that of workers, files and other people
SHARE = {"cuda": 0.8, "cpu": 0.5}
FIRST_PROBE = 1000  # edges
PROBING = 20.0  # s after which no larger batch is tried


def budget_of(options: BatchOptions) -> Budget:
    """Limits of a batch: a number of structures, or a budget of atoms or edges."""
    assert options.max_edges_per_batch != "auto", "it is measured before"
    budgeted = options.max_atoms_per_batch is not None or options.max_edges_per_batch is not None
    size = options.batch_size if options.batch_size is not None or budgeted else DEFAULT_BATCH_SIZE
    return Budget(
        structures=size, atoms=options.max_atoms_per_batch, edges=options.max_edges_per_batch
    )


def with_measured_budget(
    options: TrainOptions,
    module: nn.Module,
    description: ModelDescription,
    dataset: Dataset,
    device: torch.device,
    group: Group,
) -> TrainOptions:
    """The options with a number in place of ``--max_edges_per_batch auto``,
    measured by trial steps.

    Args:
        options: of the run.
        module: with its first weights; is moved to the device.
        description: of the network.
        dataset: to train on.
        device: on which the run computes.
        group: the processes of the run.

    Raises:
        InputError: not even one structure fits into the memory.
    """
    batches = options.batches
    if batches.max_edges_per_batch != "auto":
        return options
    network = model_loader.build_network(module.to(device), options.run.step, description)
    parameters = model_loader.trainable(module)
    loss = loss_of(options.loss)

    def step(batch: Batch) -> None:
        loss_and_gradients(network, parameters, [network.prepared(batch).to(device)], loss)

    edges = measured_edges(step, dataset, device, batches.batch_size, group)
    if (
        batches.batch_size is None
        and batches.max_atoms_per_batch is None
        and edges >= dataset.n_edges.sum()
    ):
        log.warning(
            "warning: the memory holds all of the training data as one batch, so an epoch is one "
            "step; --batch_size limits batches as well"
        )
    return with_edges_per_batch(options, edges)


def with_edges_per_batch(options: TrainOptions, edges: int) -> TrainOptions:
    """The options with this number of edges that a batch may have."""
    return replace(options, batches=replace(options.batches, max_edges_per_batch=edges))


def with_measured_evaluation_budget(
    options: BatchOptions,
    network: Network,
    parameters: Parameters,
    dataset: Dataset,
    device: torch.device,
    group: Group,
) -> BatchOptions:
    """The options with a measured number in place of ``auto`` for an evaluation, which
    needs less memory per edge.
    """
    if options.max_edges_per_batch != "auto":
        return options

    def step(batch: Batch) -> None:
        evaluate(network, parameters, [network.prepared(batch)], Loss.of(), device)

    return replace(
        options,
        max_edges_per_batch=measured_edges(step, dataset, device, options.batch_size, group),
    )


def measured_edges(
    step: Step, dataset: Dataset, device: torch.device, structures: int | None, group: Group
) -> int:
    """How many edges a batch may have by the memory that there is, from the growth of trial steps.

    Batches of the training data grow until one takes an eighth of what is to be had, and memory is
    taken to be proportional to edges from there. Rounded down to two digits, so that equal machines
    mostly arrive at equal budgets.

    A step before them is not measured: it loads and compiles what every later one finds there.

    Args:
        step: what is to fit into the memory, with bringing a batch to the device.
        dataset: what batches are made of.
        device: where the step computes.
        structures: ``--batch_size``, which limits a batch as well.
        group: the processes of the run, which share the memory of a machine, and take the
            smallest number of all.

    Returns:
        Edges of a batch, at least those of the largest structure.

    Raises:
        InputError: not even one structure fits.
    """
    order = epoch_order(len(dataset), seed=0, epoch=0)
    n_edges = dataset.n_edges
    smallest = int(n_edges.max())  # a budget that every structure fits into
    everything = int(n_edges.sum())
    processes = group.rank.local_size if device.type == "cpu" else 1
    allowed = SHARE[device.type] * memory.free(device) / processes
    edges = max(FIRST_PROBE, smallest)
    with (
        memory.naming(dataset.names),
        ProgressBar("what the memory holds", unit="trial batches") as progress,
    ):
        step(_first_batch(dataset, order, n_edges, edges, structures))
        began = time.monotonic()
        while True:
            batch = _first_batch(dataset, order, n_edges, edges, structures)
            # what earlier steps left behind is not of this one
            before = memory.peak(device, since_now=True)
            step(batch)
            grown = memory.peak(device) - before
            if (
                grown > allowed / 8
                or batch.n_edges < edges / 2
                or time.monotonic() - began > PROBING
            ):
                break
            edges *= 2
            progress.update()
    per_edge = max(grown, 1) / max(batch.n_edges, 1)
    budget = group.smallest(max(min(_two_digits(int(allowed / per_edge)), everything), smallest, 1))
    log.info(
        "max_edges_per_batch auto: %d; a step takes %.3g kB per edge, and %.3g GiB of memory "
        "are to be had (%s)",
        budget,
        per_edge / 1000,
        allowed / 2**30,
        device.type,
    )
    return budget


def _first_batch(
    dataset: Dataset, order: np.ndarray, n_edges: np.ndarray, edges: int, structures: int | None
) -> Batch:
    plan = pack(order, dataset.n_atoms, n_edges, Budget(structures=structures, edges=edges))
    return dataset.batch(plan[0].tolist())


def _two_digits(number: int) -> int:
    """Rounded down: 1289 → 1200."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return number // unit * unit
