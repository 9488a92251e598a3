"""Whether a run that goes on has the data it had."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_utils.errors import VerificationError
from model_utils.run.beginnings.stored_run import StoredRun


def require_same_data(stored: StoredRun, identity: Mapping[str, Any]) -> list[str]:
    """Compare the data of a stored run with those at hand.

    Args:
        stored: the run.
        identity: ``data_identity`` of the data at hand.

    Returns:
        What differs without touching the training: the test data.

    Raises:
        VerificationError: training or validation data are others.
    """
    notes = []
    for role in ("train", "valid", "test"):
        theirs = stored.data.get(role, {})
        ours = identity.get(role, {})
        same_records = theirs.get("records") in (None, ours.get("records"))
        if theirs.get("sha256") == ours.get("sha256") and same_records:
            continue
        if role == "test":
            notes.append("the test data are others than before")
            continue
        raise VerificationError(
            f"{stored.path}: the {role} data are not those of the run "
            f"({_difference(theirs, ours)}); give the same files with the same head, weight and "
            "ratio, or begin a new run elsewhere"
        )
    return notes


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Numbers and files of a run and those at hand; where they are alike, what is not."""
    shown = [
        f"{data.get('structures', 0)} structures of {', '.join(data.get('files', ()))}"
        for data in (theirs, ours)
    ]
    names = [
        (data.get("structures", 0), [Path(file).name for file in data.get("files", ())])
        for data in (theirs, ours)
    ]
    if names[0] == names[1]:
        return f"{shown[1]}, whose labels, positions, weights or order have changed since"
    return f"{shown[0]}; found {shown[1]}"
