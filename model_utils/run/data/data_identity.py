"""What tells one run's data from another's: it goes into the checkpoint, and a
continued run compares (``beginnings.same_data``).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.dataset import Dataset
from model_utils.run.data.open_data import TrainingData

# records of a set: beyond it a list would make every checkpoint megabytes larger
INDICES_UP_TO = 100_000


def data_identity(data: TrainingData) -> dict[str, dict[str, Any]]:
    """Files, counts and a hash of content and order of each data set; the paths may
    change, the hash may not.
    """
    return {
        role: {
            "files": [str(source.path) for source in dataset.sources],
            "structures": len(dataset),
            "sha256": hashlib.sha256(
                dataset.places.tobytes() + b"".join(source.content() for source in dataset.sources)
            ).hexdigest(),
            # which runs of before do not have: theirs knew some records of LMDBs only
            "records": hashlib.sha256(
                b"".join(source.every_record() for source in dataset.sources)
            ).hexdigest(),
        }
        for role, dataset in _sets(data).items()
    }


def keep_names(data: TrainingData, identity: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Give files the names that a run has for them in its records: a relative path is an
    absolute one where it goes on, and the files may lie elsewhere.

    Args:
        data: the data sets, which get the names where their content is that of before.
        identity: ``data_identity`` of them.
        before: that of the run as it was stored.
    """
    for role, dataset in _sets(data).items():
        theirs = before.get(role, {})
        names = [str(name) for name in theirs.get("files", ())]
        is_same = theirs.get("sha256") == identity[role]["sha256"]
        if is_same and len(names) == len(dataset.source_names):
            dataset.source_names = names


def recorded(data: TrainingData, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of the data: their identity and which records of LMDBs are used,
    under the names that the run has for its files.
    """
    return {
        "data": {
            role: {**identity[role], "files": list(dataset.source_names)}
            for role, dataset in _sets(data).items()
        },
        "lmdb_indices": _lmdb_indices(data),
    }


def _sets(data: TrainingData) -> dict[str, Dataset]:
    """The data sets that there are, by their role."""
    sets = {"train": data.train, "valid": data.valid, "test": data.test}
    return {role: dataset for role, dataset in sets.items() if dataset is not None}


def _lmdb_indices(data: TrainingData) -> dict[str, Any] | None:
    """Which records of LMDBs are trained on and validated on, so that they can be
    found again in the files.

    For each of the two sets a list of shards, each with the keys of its records and their rows
    (places among all keys of the shard in numerical order, whatever was left out); where there are
    many, the recipe that draws them.
    """
    sets = {"train": (data.train, data.train_samples), "valid": (data.valid, data.valid_samples)}
    indices = {role: _records(dataset, samples, data) for role, (dataset, samples) in sets.items()}
    return {role: records for role, records in indices.items() if records is not None} or None


def _records(
    dataset: Dataset, samples: int | None, data: TrainingData
) -> list[dict[str, Any]] | dict[str, Any] | None:
    of_lmdbs = [number for number, source in enumerate(dataset.sources) if not source.in_memory]
    in_lmdbs = np.isin(dataset.places[:, 0], of_lmdbs)
    if not in_lmdbs.any():
        return None
    if in_lmdbs.sum() > INDICES_UP_TO:
        return {
            "recipe": (
                "all usable records of the sources in order, less those of the split, "
                "sampled with the seed"
            ),
            "sources": [dataset.source_names[number] for number in of_lmdbs],
            "structures": int(in_lmdbs.sum()),
            "samples": samples,
            "seed": data.seed,
            "split": data.was_split,
            **({"lists": dict(data.lists)} if data.lists else {}),
        }
    return [
        {
            "source": dataset.source_names[number],
            "shard": _named(part.shard, dataset.sources[number].path, dataset.source_names[number]),
            "keys": list(part.keys),
            "rows": list(part.rows),
        }
        for number in of_lmdbs
        for part in dataset.sources[number].records(
            dataset.places[dataset.places[:, 0] == number, 1]
        )
    ]


def _named(shard: Path, source: Path, name: str) -> str:
    """A shard under the name of its source; its own where the source is a pattern."""
    return (
        str(Path(name) / shard.relative_to(source)) if shard.is_relative_to(source) else str(shard)
    )
