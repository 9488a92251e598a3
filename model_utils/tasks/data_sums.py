"""The structures that a training would train on, gone over once, by one process
or by several together.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import numpy as np

from dataloader import progress
from dataloader.data_file import Census, Source, Unread, given
from dataloader.dataset import set_aside, shares_of
from dataloader.errors import InputError
from dataloader.labels import TO_EVALUATE
from dataloader.sources import open_sources, unread
from dataloader.statistics import DataSums, Facts, collect, facts_of
from model_utils.ranks.group import Group
from model_utils.ranks.in_order import in_order
from model_utils.run.data.open_data import filters_of, numbers_of, specs_of
from model_utils.run.data.shared_indexing import index_for_all
from model_utils.runtime import log
from model_utils.settings.options import MetadataOptions
from model_utils.tasks.label_census import LabelCensus


def sums_of(
    options: MetadataOptions, r_max: float, default_head: str, group: Group
) -> DataSums | None:
    """Read the data once and sum up what a model.json must know of them.

    To read a structure and to find its neighbours costs, and is shared. What is found comes to
    the first process in the order of the structures and is added there, so that no bit depends on
    the number of processes.

    Args:
        options: which data, and what counts of them.
        r_max: cutoff of neighbours, Å.
        default_head: of structures that name none.
        group: the processes that share the structures.

    Returns:
        The sums; None in all processes but the first.

    Raises:
        InputError: the data cannot be used; what a structure is refused for is raised in
            the first process alone.
    """
    free_atoms_only = options.data.train_on_free_atoms
    max_neighbors = options.data.filters.max_neighbors

    def facts(read: Unread) -> Facts:
        return facts_of(read(), r_max, free_atoms_only=free_atoms_only, max_neighbors=max_neighbors)

    index_for_all(options.data, ["train"], group)
    census = LabelCensus()
    sums = collect(census.watch(in_order(_structures(options), facts, group)), default_head)
    if not group.rank.is_first:
        return None
    if sums.atoms == 0:
        raise InputError("no structures to measure; look at the files and at --elements")
    census.judge(allow_missing=options.data.allow_missing_labels)
    return sums


def _structures(options: MetadataOptions) -> Iterator[Unread]:
    """What reads the structures that a training with these options would train
    on, and isolated atoms.
    """
    specs = specs_of(options.data, "train")
    filters = filters_of(options.data.filters, keep_charges=True)
    max_dropped = options.data.filters.max_dropped
    if options.data.valid_fraction == 0:  # then no file has to be opened before it is read
        return unread(
            specs,
            needs=TO_EVALUATE,
            elements=numbers_of(options.data.filters.elements),
            max_dropped=max_dropped,
            filters=filters,
            say=_say_notes,
        )
    # which structures are set aside depends on how many there are
    sources = open_sources(specs, needs=TO_EVALUATE, max_dropped=max_dropped, filters=filters)
    for source in sources:
        _say_notes(source.census)
    return _trained_on(sources, options)


def _say_notes(census: Census) -> None:
    """Log what was converted, passed over or left out in a file, with counts."""
    for text, count in census.notes.items():
        log.info("%s: %s: %d structures", census.path, text, count)
    if census.left_out:
        log.info(
            "%s: left out %d: %s",
            *(census.path, census.left_out.total(), census.left_out_report()),
        )


def _trained_on(sources: Sequence[Source], options: MetadataOptions) -> Iterator[Unread]:
    """What reads isolated atoms, and those inside --elements that training would not
    set aside for validation.
    """
    wanted = numbers_of(options.data.filters.elements)
    every = [
        (number, i)
        for number, source in enumerate(sources)
        for i in range(len(source))
        if wanted is None or source.elements[i] <= set(wanted)
    ]
    owners = np.array([number for number, _ in every], dtype=np.int64)
    own, shares = shares_of([source.ratio for source in sources], owners)
    train, _ = set_aside(own, shares, options.data.valid_fraction, options.seed)
    places = [(sources[every[row][0]], every[row][1]) for row in train.tolist()]
    isolated = chain.from_iterable(source.isolated_atoms for source in sources)
    shown = progress.over(places, "statistics", len(places))
    return chain(map(given, isolated), (partial(source.structure, i) for source, i in shown))
