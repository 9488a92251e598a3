"""Which files of a run are watched: named by its folder, that of its
experiment, or its metrics.jsonl.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.files.run_names import LATEST, LOCK, METRICS, RECORD, SETTINGS
from model_utils.settings import plain_yaml

JSON_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is to be.

    Attributes:
        epochs: None where they are not known.
        max_steps: None where the run has no such end.
    """

    epochs: int | None = None
    max_steps: int | None = None


def metrics_of(path: Path) -> Path:
    """The metrics.jsonl that a path means; of an experiment that of its latest run.

    It need not be there yet.

    Raises:
        InputError: nothing of a run is there.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(
            f"{path} is not there; name the folder of a run, of an experiment, or a {METRICS}"
        )
    if any((path / name).exists() for name in (METRICS, RECORD, SETTINGS)):
        return path / METRICS
    if (path / LATEST).is_dir():
        return (path / LATEST).resolve() / METRICS
    try:
        runs = [folder for folder in path.iterdir() if (folder / RECORD).is_file()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not runs:
        raise InputError(f"{path} holds no run: no {METRICS}, and no folder with a {RECORD}")
    return (
        max(runs, key=lambda folder: (str(_content(folder / RECORD).get("created")), folder.name))
        / METRICS
    )


def plan_of(folder: Path) -> Plan:
    """The length of the run in a folder, by its settings; unknown where these cannot be read."""
    try:
        settings = plain_yaml.read(folder / SETTINGS, "settings", "epochs: 100")
    except (InputError, OSError):
        return Plan()
    return Plan(epochs=_count(settings.get("epochs")), max_steps=_count(settings.get("max_steps")))


def ending_of(folder: Path) -> str | None:
    """Why a run ended, by its run.json; None where it has none, goes on, or does not say."""
    finished = _content(folder / RECORD).get("finished")
    return str(finished.get("why", "finished")) if isinstance(finished, dict) else None


def has_writer(folder: Path) -> bool:
    """Whether a process may be writing the run: it has the folder's lock while it does, and a
    process that was killed leaves the file.
    """
    return (folder / LOCK).exists()


def _content(path: Path) -> Mapping[str, Any]:
    """A JSON object of a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
