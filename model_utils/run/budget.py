"""``--max_edges_per_batch auto``: how many edges the memory holds, measured."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dataloader.batch import Batch
from dataloader.batching import Budget, epoch_order, pack
from dataloader.dataset import Dataset
from dataloader.progress import ProgressBar
from model_utils.ranks.group import Group
from model_utils.run import memory
from model_utils.runtime import log

Step = Callable[[Batch], Any]

# of the free memory; a CPU's is also that of workers, files and other people
SHARE = {"cuda": 0.8, "cpu": 0.5}
FIRST_PROBE = 1000  # edges
PROBING = 20.0  # s after which no larger batch is tried


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
