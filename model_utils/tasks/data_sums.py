"""The structures that a training would train on, gone over once, by one process
or by several together.
"""

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from dataloader import progress
from dataloader.data_file import Census, Unread, given
from dataloader.errors import InputError
from dataloader.labels import TO_EVALUATE
from dataloader.selection import Selection
from dataloader.sources import open_sources, unread
from dataloader.statistics import DataSums, Facts, collect, facts_of
from model_utils.ranks.group import Group
from model_utils.ranks.in_order import in_order
from model_utils.run.data import chosen
from model_utils.run.data.open_data import filters_of, numbers_of, specs_of
from model_utils.run.data.shared_indexing import index_for_all
from model_utils.runtime import log
from model_utils.settings import terms
from model_utils.settings.options import DataOptions, MetadataInitOptions, MetadataOptions, Role
from model_utils.settings.options.data import GENERAL_FLAGS
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

    index_for_all(options.data, _roles(options.data), group)
    census = LabelCensus()
    sums = collect(census.watch(in_order(_structures(options), facts, group)), default_head)
    if not group.rank.is_first:
        return None
    if sums.atoms == 0:
        raise InputError(
            "no structures to measure; look at the files, at --elements, --max_atoms, --max_force"
        )
    census.require_types(dict(terms.config_type_weights(options.data)))
    census.judge(allow_missing=options.data.allow_missing_labels)
    return sums


def _structures(options: MetadataOptions) -> Iterator[Unread]:
    """What reads the structures that a training with these options would train
    on, and isolated atoms.
    """
    data = options.data
    filters = filters_of(data.filters, keep_charges=True)
    elements = numbers_of(data.filters.elements)
    max_dropped = data.filters.max_dropped
    if data.valid_fraction == 0 and not chosen.are_chosen(data):
        # then no file has to be opened before it is read
        return unread(
            specs_of(data, "train"),
            needs=TO_EVALUATE,
            elements=elements,
            max_dropped=max_dropped,
            filters=filters,
            say=_say_notes,
        )
    # which structures are set aside, drawn or named depends on all that there are
    pools: dict[str, Selection | None] = {}
    for role in _roles(data):
        sources = open_sources(
            specs_of(data, role), needs=TO_EVALUATE, max_dropped=max_dropped, filters=filters
        )
        for source in sources:
            _say_notes(source.census)
        pools[role] = Selection(sources, elements) if sources else None
    return _of_part(chosen.trained_on(pools, data, options.seed))


def what_is_read(options: MetadataOptions) -> Iterator[tuple[str, Path | None]]:
    """What is read, by flag; a model.json that ``fit`` completes may be replaced by what it
    becomes.
    """
    for role in GENERAL_FLAGS:
        yield from (("the data", source.path) for source in options.data.files(role))
    yield "--linear_references", options.linear_references
    if options.E0s is not None and os.path.isfile(options.E0s):  # it may be JSON as well
        yield "--E0s", Path(options.E0s)
    if isinstance(options, MetadataInitOptions):
        yield "--mace_config", options.mace_config


def _roles(options: DataOptions) -> list[Role]:
    """Roles whose files say which structures are trained on: a list of validation data speaks
    of the training data where they have no files of their own.
    """
    return list(GENERAL_FLAGS) if options.splits.lists() else ["train"]


def _say_notes(census: Census) -> None:
    """Log what was converted, passed over or left out in a file, with counts."""
    for text, count in census.notes.items():
        log.info("%s: %s: %d structures", census.path, text, count)
    if census.left_out:
        log.info(
            "%s: left out %d: %s",
            *(census.path, census.left_out.total(), census.left_out_report()),
        )


def _of_part(part: Selection) -> Iterator[Unread]:
    """What reads the isolated atoms of some files and the structures of a part of them."""
    places = [(part.sources[s], int(i)) for s, i in part.places]
    isolated = chain.from_iterable(source.isolated_atoms for source in part.sources)
    shown = progress.over(places, "statistics", len(places))
    return chain(map(given, isolated), (partial(source.structure, i) for source, i in shown))
