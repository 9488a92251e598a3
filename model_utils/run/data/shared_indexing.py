"""LMDBs that several processes are about to open: each of them indexes its
share of the shards first.
"""

from collections.abc import Sequence
from contextlib import suppress

from dataloader.errors import InputError
from dataloader.lmdb_shards.indexing import index_shards
from dataloader.needs import ModelFacts
from dataloader.portion import Portion
from model_utils.ranks.group import Group
from model_utils.run.data.open_data import specs_of
from model_utils.settings.options import DataOptions, Role, TrainingOptions


def index_by_shares(training: TrainingOptions, facts: ModelFacts, group: Group) -> None:
    """Let every process index its share of the shards of LMDBs, before all of them open all.

    Args:
        training: every setting.
        facts: of the model: the inputs that it reads, and its cutoff.
        group: the processes; one alone indexes as it opens.

    Raises:
        InputError: a shard cannot be read.
    """
    if group.rank.size == 1:
        return
    roles: tuple[Role, ...] = ("train", "val", "test")
    filters = training.data.filters
    index_shards(
        [spec for role in roles for spec in specs_of(training.data, role)],
        Portion(group.rank.number, group.rank.size),
        features=facts.features,
        verify=filters.verify,
        r_max=facts.r_max,
        max_neighbors=filters.max_neighbors,
    )
    group.wait_for_all()


def index_for_all(options: DataOptions, roles: Sequence[Role], group: Group) -> None:
    """Let every process index its share of the shards of LMDBs, before all of them open all.

    What cannot be indexed is met, and said, where it is opened.

    Args:
        options: which files.
        roles: of those that will be opened.
        group: the processes; one alone indexes as it opens.
    """
    if group.rank.size == 1:
        return
    for role in roles:
        with suppress(InputError):
            index_shards(
                specs_of(options, role),
                Portion(group.rank.number, group.rank.size),
                verify=options.filters.verify,
            )
    group.wait_for_all()
