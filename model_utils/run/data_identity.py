"""What tells one run's data from another's: it goes into the checkpoint, and a continued run compares."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataloader.dataset import Dataset
from model_utils.errors import VerificationError
from model_utils.run.open_data import TrainingData

INDICES_UP_TO = 100_000  # records: beyond it a list would make every checkpoint larger by 8 bytes per record


def data_identity(data: TrainingData) -> dict[str, Any]:
    """Files, counts and a hash of content and order of each data set; the paths may change, the hash may not."""
    parts: dict[str, Dataset | None] = {"train": data.train, "valid": data.valid, "test": data.test}
    fingerprints = {
        role: {
            "files": [str(source.path) for source in dataset.sources],
            "structures": len(dataset),
            "sha256": hashlib.sha256(
                dataset.places.tobytes() + b"".join(source.content() for source in dataset.sources)
            ).hexdigest(),
        }
        for role, dataset in parts.items()
        if dataset is not None
    }
    return {"data": fingerprints, "lmdb_indices": _lmdb_indices(data)}


def _lmdb_indices(data: TrainingData) -> Any:
    """Which records of the LMDBs are trained on: their numbers, or where they are many, how they were drawn."""
    if all(source.in_memory for source in data.train.sources):
        return None
    if len(data.train) <= INDICES_UP_TO:
        return data.train.places[:, 1].tolist()
    return {"structures": len(data.train), "samples": data.train_samples, "seed": data.seed, "split": data.was_split}


def require_same_data(stored: Mapping[str, Any], mine: Mapping[str, Any], path: Path) -> list[str]:
    """Compare the data of a stored run with those at hand.

    Returns:
        What differs without touching the training: the test data.

    Raises:
        VerificationError: training or validation data are others.
    """
    notes = []
    for role in ("train", "valid", "test"):
        theirs, ours = stored["data"].get(role, {}), mine["data"].get(role, {})
        if theirs.get("sha256") == ours.get("sha256"):
            continue
        if role == "test":
            notes.append("the test data are others than before")
            continue
        raise VerificationError(
            f"{path}: the {role} data are not those of the run ({theirs.get('structures', 0)} structures of "
            f"{', '.join(theirs.get('files', ()))}; found {ours.get('structures', 0)} of "
            f"{', '.join(ours.get('files', ()))}); give the same files with the same head, weight and ratio, or start "
            "anew with --overwrite"
        )
    return notes
