"""Index the shards of data sets, and nothing else: by one process, or each process
a share of the shards.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataloader.data_file import SourceSpec
from dataloader.lmdb_file import shards_of
from dataloader.lmdb_shards.kept_edges import edge_counts
from dataloader.lmdb_shards.lmdb_index import open_indexes
from dataloader.lmdb_shards.shard_index import IndexRecipe, ShardIndex
from dataloader.needs import FeatureSpec
from dataloader.neighbors import MAX_NEIGHBORS
from dataloader.packed import packed_manifest
from dataloader.portion import WHOLE, Portion

FORMAT = "lmdb"


class NamedShard(NamedTuple):
    """A shard of a data set, and which index of it is wanted.

    Attributes:
        path: the file.
        recipe: names of labels and model inputs, on which the index depends.
        hashed: whether the index is to have the sha256 of the whole file, as for packed data.
    """

    path: Path
    recipe: IndexRecipe
    hashed: bool


def named_shards(
    specs: Sequence[SourceSpec], features: Sequence[FeatureSpec] = ()
) -> list[NamedShard]:
    """All shards that LMDBs among the names of data sets stand for, each once, in
    the order of the names.

    Raises:
        InputError: a name stands for no LMDB, or its manifest is damaged.
    """
    return list(dict.fromkeys(_named_shards(specs, tuple(features))))


def _named_shards(
    specs: Sequence[SourceSpec], features: tuple[FeatureSpec, ...]
) -> Iterator[NamedShard]:
    for spec in specs:
        if spec.format == FORMAT:
            manifest = packed_manifest.beside(spec.path)
            for path in manifest.shards if manifest else shards_of(spec.path):
                yield NamedShard(path, IndexRecipe(spec.keys, features), manifest is not None)


def index_shards(
    specs: Sequence[SourceSpec],
    portion: Portion = WHOLE,
    *,
    features: Sequence[FeatureSpec] = (),
    verify: bool = False,
    r_max: float | None = None,
    max_neighbors: int = MAX_NEIGHBORS,
) -> list[ShardIndex]:
    """Make the indexes of a share of the shards, where they are not there, so that whoever
    opens the data finds them.

    Args:
        specs: names of data sets; those that are no LMDBs need no index.
        portion: which of the shards, counted over all names.
        features: inputs of the model that is to read the data.
        verify: see ``open_indexes``.
        r_max: count edges within this cutoff (Å) too, and keep the counts.
        max_neighbors: see ``neighbors.build_graph``.

    Returns:
        The indexes of the share.

    Raises:
        InputError: a shard cannot be read, or the neighbours of a record show that it is broken.
    """
    mine = portion.of(named_shards(specs, features))
    indexes: list[ShardIndex] = []
    for recipe, hashed in dict.fromkeys((shard.recipe, shard.hashed) for shard in mine):
        paths = [shard.path for shard in mine if (shard.recipe, shard.hashed) == (recipe, hashed)]
        of_recipe = open_indexes(paths, recipe, verify=verify, hashed=hashed)
        if r_max is not None:
            edge_counts(of_recipe, recipe, r_max, max_neighbors)
        indexes += of_recipe
    return indexes
