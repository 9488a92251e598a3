"""Data that must count for something: weights that are not all 0, labels of what is judged,
structures of heads that are to be trained.
"""

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from dataloader.dataset import Dataset
from dataloader.quantities import QUANTITIES
from dataloader.structure import Structure
from model_utils.errors import InputError
from model_utils.metrics import error_names
from model_utils.run.best_metric import ALL, LOSS, unjudged
from model_utils.run.data.open_data import TrainingData
from model_utils.run.objective import trained_on
from model_utils.settings.options import TrainingOptions

WEIGHTS = "config_weight of the records, --config_type_weights, weight of a source"


def require_weights(options: TrainingOptions, data: TrainingData) -> None:
    """Refuse data to train on, or by whose loss to judge, that have no weight at all.

    Raises:
        InputError: the loss of one of the two would be 0, whatever the network says.
    """
    quantities = trained_on(options)
    if not _has_weight(data.train, quantities) and _has_label(data.train, quantities):
        raise InputError(
            f"all structures to train on have the weight 0 ({WEIGHTS}): nothing would be "
            "learned; give some of them another"
        )
    if options.judging.best_metric != LOSS or not _has_label(data.valid, quantities):
        return
    if not _has_weight(data.valid, quantities):
        raise InputError(
            f"all validation structures have the weight 0 ({WEIGHTS}): their loss would be 0 "
            "always, and no model the best; give some of them another, or choose by "
            "--best_metric forces_rmse, which has no weights"
        )


def require_judged(options: TrainingOptions, data: TrainingData) -> None:
    """Refuse validation data that have no label of what the best model is chosen by, before the
    first validation does.

    Raises:
        InputError: naming the metric.
    """
    metric = options.judging.best_metric
    for quantity in QUANTITIES.values():
        if metric not in error_names(quantity).values():
            continue
        for where, rows in _judged_parts(options, data.valid):
            if not data.valid.labelled_rows(rows).get(quantity.name, 0):
                raise unjudged(metric, where)


def _judged_parts(
    options: TrainingOptions, valid: Dataset
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """What is judged as one, and numbers of its structures: all together, or each head's."""
    if options.judging.best_over == "structures":
        yield ALL, np.arange(len(valid))
        return
    numbers = valid.head_numbers()
    for number in np.unique(numbers):
        yield f"head {valid.facts.heads[number]}", np.nonzero(numbers == number)[0]


def _has_weight(dataset: Dataset, quantities: Collection[str]) -> bool:
    """Whether a label of one of some quantities counts; one of a structure that is not in the
    memory is taken to.
    """
    return any(
        not dataset.in_memory(index) or _counts(dataset.structure(index), quantities)
        for index in range(len(dataset))
    )


def _has_label(dataset: Dataset, quantities: Collection[str]) -> bool:
    """Whether a structure in the memory has a label of one of some quantities."""
    return any(
        name in dataset.structure(index).labels
        for index in range(len(dataset))
        if dataset.in_memory(index)
        for name in quantities
    )


def _counts(structure: Structure, quantities: Collection[str]) -> bool:
    return any(structure.weight_of(name) > 0 for name in structure.labels if name in quantities)


def require_structures(added: Collection[str], data: TrainingData) -> None:
    """Refuse heads that were added to be trained and have no structure.

    Args:
        added: names of the heads that the source of a fine-tuning does not have.
        data: of the run.

    Raises:
        InputError: naming the first.
    """
    for head in untrained_heads(data.train):
        if head in added:
            raise InputError(
                f"no structure to train on is of the new head {head}: give their file with "
                f"`head: {head}` and `head_of_all: true` in sources, or write `head={head}` into "
                "the records"
            )


def untrained_heads(train: Dataset) -> list[str]:
    """Heads of which there is no structure."""
    heads = train.facts.heads
    counts = np.bincount(train.head_numbers(), minlength=len(heads))
    return [head for head, count in zip(heads, counts, strict=True) if count == 0]
