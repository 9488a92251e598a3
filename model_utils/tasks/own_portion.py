"""Which share of a work this process has: the one that was typed, or that of its rank
where srun started several.
"""

import os

from dataloader.portion import Portion, portion_of
from model_utils.ranks.rank import find


def own_portion(share: str | None) -> Portion:
    """The share of ``--share``; without it that of torchrun's or srun's rank, the whole
    where there is one process.

    Raises:
        InputError: the launcher's variables contradict each other.
        ValueError: the text names no share.
    """
    if share is not None:
        return portion_of(share)
    rank = find(os.environ)
    return Portion(rank.number, rank.size)
