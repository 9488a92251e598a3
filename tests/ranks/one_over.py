"""One process that adds over torch.distributed: ``python -m ranks.one_over cuda`` over
NCCL, ``cpu`` over gloo.

A machine with a single GPU gets to NCCL by it. The gradients of a step must have the bits that
one process alone has on a CPU, its loss and its sums of errors those of one alone on the device.
"""

import os
import sys

import torch
from torch import Tensor

from dataloader.batching import Budget
from losses import Loss, sum_names
from model_utils.ranks.control import Control
from model_utils.ranks.group import ALONE, Group
from model_utils.ranks.rank import Rank
from model_utils.ranks.together import Ranks
from model_utils.run.exact_addition import ExactAddition
from model_utils.run.step import StepResult
from ranks.launching import free_port
from ranks.test_adding import tensors_of_parts

N_PARTS = 8
ROWS = {"energy": 3, "forces": 7, "stress": 0}


def added(parts: list[list[Tensor]], device: torch.device, group: Group) -> StepResult:
    """The step of these parts' gradients, added on a device over a group."""
    generator = torch.Generator().manual_seed(3)
    results = []
    for part in parts:
        sums = torch.rand(len(sum_names()), generator=generator, dtype=torch.float64)
        gradients = [tensor.to(device) for tensor in part]
        results.append(
            [StepResult(loss=sums.sum().to(device), gradients=gradients, sums=sums.to(device))]
        )
    addition = ExactAddition(
        group=group,
        n_parts=len(parts),
        numbers=range(len(parts)),
        labelled=lambda: ROWS,
        budget=Budget(structures=1),
        device=device,
    )
    return addition.total(results, [tensor.to(device) for tensor in parts[0]], Loss.of(), ROWS)


def main(name: str) -> None:
    """Compare, for both precisions."""
    device = torch.device(name, 0) if name == "cuda" else torch.device(name)
    if name == "cuda":
        torch.cuda.set_device(device)
    group = Ranks(
        Control(Rank(address="127.0.0.1", port=free_port(), launcher="torchrun"), os._exit)
    )
    group.connect(device)
    assert torch.distributed.get_backend() == ("nccl" if name == "cuda" else "gloo")
    for dtype in (torch.float32, torch.float64):
        for seed in range(5):
            parts = tensors_of_parts(seed, N_PARTS, dtype)
            ours = added(parts, device, group)
            alone = added(parts, torch.device("cpu"), ALONE)
            here = added(parts, device, ALONE)
            # of the errors, which a device adds over the parts in an order of its own
            assert torch.equal(ours.loss, here.loss)
            assert torch.equal(ours.sums, here.sums)
            for tensor, expected in zip(ours.gradients, alone.gradients, strict=True):
                assert torch.equal(tensor.cpu(), expected)
    assert group.smallest(7) == 7
    given = torch.arange(3.0)
    group.give(given)
    assert given.tolist() == [0.0, 1.0, 2.0]
    group.require_equal("weights", torch.arange(4))
    print("the same bits")


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # nobody else is there to leave with
