"""The largest batch of a run, computed before its first step: what does not fit shows
now, and not after hours.
"""

import time

import numpy as np

from dataloader.batch import Batch
from model_utils.ranks.group import ALONE
from model_utils.run import announcement, memory
from model_utils.run.assemble import AssembledRun
from model_utils.run.log_lines import describe_groups
from model_utils.run.parts import parts_of_step
from model_utils.run.step import StepResult, loss_and_gradients
from model_utils.run.steps import DealtSteps
from model_utils.runtime import dtype_name, log

EPOCHS_LOOKED_AT = 5


def largest_batch(run: AssembledRun) -> Batch:
    """The largest batch of the first epochs: by edges where they are counted
    already, by atoms where not.

    Of a step that is dealt, the parts of the step with the largest batch, of which each
    process takes its largest.
    """
    batches = run.batches
    epochs = run.plan.epochs
    sizes = batches.dataset.n_edges if batches.budget.edges is not None else batches.dataset.n_atoms
    largest = np.zeros(0, np.int64)
    size = -1
    for epoch in range(min(epochs, EPOCHS_LOOKED_AT)):
        plan = batches.plan(epoch)
        totals = plan.totals(sizes)
        if totals.max() > size:
            largest = plan[int(totals.argmax())].copy()  # a view would keep the whole plan
            size = int(totals.max())
    [batch] = batches.batches([run.steps.largest_part(largest)])
    return batch


def try_batch(batch: Batch, run: AssembledRun) -> StepResult:
    """What the loop does with a batch, but for moving the weights.

    Raises:
        InputError: one of its structures does not fit into the memory.
    """
    state = run.state
    with memory.naming(run.batches.dataset.names):
        return loss_and_gradients(
            state.network, state.parameters, [batch.to(state.device)], run.plan.stage(1).loss
        )


def report_ranks(run: AssembledRun, step_parts: int | None, n_processes: int) -> None:
    """What each of so many processes would get of a step, as a cluster has them;
    computed here, by one.

    Raises:
        InputError: --step_parts does not fit so many processes.
    """
    accumulate = run.options.optimizer.accumulate_batches
    n_parts = parts_of_step(step_parts, None, accumulate, n_processes)
    began = time.monotonic()
    if n_parts > 1:
        steps = DealtSteps(run.batches, accumulate, n_parts, ALONE, run.state.device)
        announcement.describe_dealing(steps, n_processes, f"as if there were {n_processes}")
    wire = 8 * sum(p.numel() for p in run.state.parameters.values())
    log.info(
        "  the gradient is %.1f MB per step on the wire; looked at in %.1f s",
        wire / 1e6,
        time.monotonic() - began,
    )


def report(largest: Batch, run: AssembledRun) -> None:
    """Sizes, memory and time of the run to come; the largest batch was tried before,
    so nothing is made anew.
    """
    state = run.state
    batches = run.batches
    plan = run.plan
    began = time.monotonic()
    value = float(try_batch(largest, run).loss)  # waits for a GPU
    seconds = time.monotonic() - began
    batch_plan = batches.plan(0)
    n_edges = batches.dataset.n_edges
    sizes = batch_plan.totals(np.ones_like(n_edges))
    edges = batch_plan.totals(n_edges)
    epoch = seconds / max(largest.n_edges, 1) * float(edges.sum())
    parameters = sum(p.numel() for p in state.parameters.values())
    log.info("parameters: %d trainable, %s", parameters, dtype_name(largest.positions.dtype))
    numbers = {name: p.numel() for name, p in state.parameters.items()}
    for line in describe_groups(state.optimizer.param_groups, numbers):
        log.info("%s", line)
    log.info(
        "structures: %d to train on, %d to validate on", len(batches.dataset), len(run.data.valid)
    )
    log.info("steps per epoch: %d (%d batches)", len(run.steps.of_epoch(0)), len(batch_plan))
    log.info("batches: %d to %d structures, up to %d edges", min(sizes), max(sizes), max(edges))
    log.info(
        "largest batch: %d structures, %d atoms, %d edges; its loss is %.6g",
        largest.n_structures,
        largest.n_atoms,
        largest.n_edges,
        value,
    )
    log.info("memory: %.2f GiB at its peak", memory.peak(state.device) / 2**30)
    log.info(
        "time: %.3g s for a step on it, about %.3g s per epoch, %.3g h in all",
        seconds,
        epoch,
        epoch * plan.epochs / 3600,
    )
