"""How data are packed: what the user asks for, and what of it determines the shards."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataloader.data_file import Source
from dataloader.filters import OTHER_ELEMENT


@dataclass(frozen=True, kw_only=True)
class PackingRecipe:
    """How data are packed, as the options of dataloader/pack.py say it."""

    rows_per_shard: int
    r_max: float | None  # Å, of stored neighbour lists
    max_neighbors: int  # see ``neighbors.build_graph``
    id_key: str | None
    group_key: str | None
    shares: Mapping[str, float]
    listed: Mapping[str, frozenset[str]]  # identifiers by split
    stages: Sequence[int]  # sizes of nested subsets of the first split
    drop_duplicates: bool
    seed: int
    elements: Sequence[int] | None = None  # to which the data were narrowed


def asked_for(sources: Sequence[Source], recipe: PackingRecipe) -> dict[str, Any]:
    """What determines the shards: the data and the settings."""
    listed = {
        name: hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
        for name, ids in recipe.listed.items()
    }
    # where it left out some: earlier versions packed these too, and noted no elements
    left_out = any(source.census.left_out[OTHER_ELEMENT] for source in sources)
    narrowed = {"elements": sorted(recipe.elements or ())} if left_out else {}
    return {
        **narrowed,
        "data": [hashlib.sha256(source.content()).hexdigest() for source in sources],
        "structures": [len(source) for source in sources],
        "rows_per_shard": recipe.rows_per_shard,
        "r_max": recipe.r_max,
        "id_key": recipe.id_key,
        "group_key": recipe.group_key,
        "shares": dict(recipe.shares),
        "listed": listed,
        "stages": list(recipe.stages),
        "drop_duplicates": recipe.drop_duplicates,
        "seed": recipe.seed,
    }
