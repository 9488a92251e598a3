"""Heads that the data leave as they are, or that nobody sees judged."""

import numpy as np

from model_utils.run.data import data_log
from model_utils.run.data.counted import untrained_heads
from model_utils.run.data.open_data import TrainingData
from model_utils.runtime import log
from model_utils.settings.options import TrainingOptions


def warn_of_untrained_heads(data: TrainingData) -> None:
    """Say which files have records of other heads than the one that is given for them, and which
    heads stay as they are, since no structure to train on is of theirs.
    """
    sets = [dataset for dataset in (data.train, data.valid, data.test) if dataset is not None]
    data_log.say_other_heads([source for dataset in sets for source in dataset.sources])
    untrained = untrained_heads(data.train)
    if untrained:
        log.info(
            "no structure to train on is of head %s: its own weights stay", ", ".join(untrained)
        )


def warn_of_elements_without_energies(data: TrainingData) -> None:
    """Say which elements occur in a head that has no reference energy of them."""
    remedy = "give one, or write the head of another method into the records"
    sets = {"training": data.train, "validation": data.valid, "test": data.test}
    for role, dataset in sets.items():
        if dataset is not None:
            data_log.say_zero_energies(dataset, role, remedy)


def warn_of_unjudged_heads(options: TrainingOptions, data: TrainingData) -> None:
    """Say which heads are trained and not judged."""
    heads = data.train.facts.heads
    unjudged = np.setdiff1d(data.train.head_numbers(), data.valid.head_numbers())
    if not len(unjudged):
        return
    chosen = (
        "the mean over heads (--best_over) is that of the others"
        if options.judging.best_over == "heads"
        else "the best model is chosen without them"
    )
    log.warning(
        "warning: no validation structure is of head %s, which is trained: its errors are not "
        "seen, and %s; give validation structures of it, or a larger --valid_fraction",
        *(" and ".join(heads[number] for number in unjudged), chosen),
    )
