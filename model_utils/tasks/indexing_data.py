"""What dataloader/index.py does: options to shards, their indexes, and what is said of them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from dataloader.data_file import Census, SourceSpec
from dataloader.errors import InputError
from dataloader.lmdb_file import LmdbFile
from dataloader.lmdb_shards.indexing import FORMAT, index_shards, named_shards
from dataloader.lmdb_shards.lmdb_source import names_of_first
from dataloader.lmdb_shards.shard_index import ShardIndex
from dataloader.portion import Portion
from dataloader.sources import refuse_names_that_are_nowhere
from model_utils.models import description as model_json
from model_utils.run.data.open_data import specs_of
from model_utils.runtime import log, start_log
from model_utils.settings.options import IndexOptions, Role
from model_utils.tasks.own_portion import own_portion

ROLES: tuple[Role, ...] = ("train", "val", "test")


def index(options: IndexOptions) -> None:
    """Make the indexes of a share of the shards, and say what they hold.

    Raises:
        InputError: there is no LMDB, or one cannot be read.
    """
    start_log()
    portion = own_portion(options.share)
    specs = [spec for role in ROLES for spec in specs_of(options.data, role)]
    lmdbs = [spec for spec in specs if spec.format == FORMAT]
    if not lmdbs:
        raise InputError("no LMDB to index; name them with --lmdb_train, --lmdb_val, --lmdb_test")
    model = None if options.input_json is None else model_json.read(options.input_json)
    features = () if model is None else model.facts().features
    filters = options.data.filters
    indexes = index_shards(
        lmdbs,
        portion,
        features=features,
        verify=filters.verify,
        r_max=options.r_max or (None if model is None else model.r_max),
        max_neighbors=filters.max_neighbors,
    )
    _describe(indexes, len(named_shards(lmdbs, features)), portion)
    _judge_names(lmdbs, indexes, portion)


def _describe(indexes: Sequence[ShardIndex], total: int, portion: Portion) -> None:
    """Say how many records there are, how many are faulty, and which indexes are not kept."""
    of_share = "" if portion.is_whole else f"share {portion}: "
    faults: Counter[str] = Counter()
    for shard in indexes:
        faults.update({reason: count for reason, (count, _) in shard.faults.items()})
    records = sum(shard.n_records for shard in indexes)
    log.info("%s%d of %d shards, %d records", of_share, len(indexes), total, records)
    for reason, count in faults.most_common():
        log.warning("  %d records cannot be used: %s", count, reason)
    unkept = sum(shard.place is None for shard in indexes)
    if unkept:
        log.info("  %d of them are too small to keep an index, or it can be kept nowhere", unkept)


def _judge_names(
    specs: Sequence[SourceSpec], indexes: Sequence[ShardIndex], portion: Portion
) -> None:
    """See that labels occur under the names that were given; of a share, whose shards may lack
    them, it is only said.

    Raises:
        InputError: a name occurs in none of all shards.
    """
    censuses = [
        Census(path=s.path, first_names=partial(names_of_first, [LmdbFile(s.path)]))
        for s in indexes
    ]
    for shard, census in zip(indexes, censuses, strict=True):
        for names, count in shard.header["names"]:
            census.label_names[tuple(names)] += count
        census.named.update(shard.header["named"])
    by_path = {shard.path: census for shard, census in zip(indexes, censuses, strict=True)}
    own = [(shard, by_path[shard.path]) for shard in named_shards(specs) if shard.path in by_path]
    try:
        refuse_names_that_are_nowhere(
            [
                SourceSpec(path=shard.path, format=FORMAT, keys=shard.recipe.keys)
                for shard, _ in own
            ],
            [census for _, census in own],
        )
    except InputError as error:
        if portion.is_whole:
            raise
        log.warning("warning: %s; these are the shards of this share", error)
