"""run.json: what a run was asked, by what it is computed, on what, with which data, and
every time it was started.

It lies in the folder that a run gets with ``--run_dir``. Which run goes on there is found by it,
and ``read_model.py reproduce`` and ``diff`` read it. A run's numbers do not depend on it: where it
cannot be written while the run lasts, that is one warning.
"""

import json
import os
import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dataloader import durable, input_files, plain_json, processors
from dataloader.limits import JSON_BYTES
from model_utils.files.run_names import RECORD
from model_utils.run.beginnings.stored_run import CHANGEABLE
from model_utils.runtime import log
from model_utils.settings import invoked

FORMAT = 1
COMMANDS = invoked.COMMANDS  # settings that are commands
PACKAGES = (
    "torch",
    "mace-torch",
    "e3nn",
    "ase",
    "numpy",
    "scipy",
    "lmdb",
    "vesin",
    "safetensors",
    "pydantic",
    "cyclopts",
)


def of_new_run(
    command: str, asked: Mapping[str, Any], model_json_hash: str | None, task: str | None
) -> dict[str, Any]:
    """The record of a run that begins.

    Args:
        command: the script, ``train_mace.py`` or ``finetune.py``.
        asked: its options as plain values, as they were typed.
        model_json_hash: of the model.json that is trained, where it is known
            before the data are read.
        task: which task of an array of jobs this process is; None outside of one.
    """
    return {
        "format": FORMAT,
        "command": command,
        "argv": invoked.words(),
        "folder": os.getcwd(),
        "created": now(),
        "job": job(),
        "task": task,
        "asked": kept(asked),
        "asked_model_json_hash": model_json_hash,
        "changed_to": [],
        "starts": [],
        "finished": None,
    }


def kept(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a record has them: without secrets, and without commands, which are
    never taken from a file.
    """

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(item) for item in value]
        return invoked.without_secrets_in(value) if isinstance(value, str) else value

    hidden = invoked.HIDDEN
    return {
        name: hidden if value and invoked.is_secret(name) else shown(value)
        for name, value in asked.items()
        if name not in COMMANDS
    }


def read(folder: Path) -> dict[str, Any] | None:
    """The record that lies in a folder; None where there is none that can be read."""
    path = folder / RECORD
    try:
        record = plain_json.loads(input_files.read_text(path, JSON_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("warning: %s cannot be read and is left aside: %s", path, error)
        return None
    wanted: dict[str, type] = {
        "created": str,
        "asked": dict,
        "starts": list,
        "argv": list,
        "command": str,
    }
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), kind) for name, kind in wanted.items()
    ):
        log.warning("warning: %s is no record of a run and is left aside", path)
        return None
    return record


def changes_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What continuations made of the settings by which runs are told apart, the last one last.

    ``asked`` stays what the run began with, which is what a repetition begins with.
    """
    entries = record.get("changed_to")  # absent of a run from before there was this entry
    return (
        [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    )


def with_settings(
    record: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The entry ``changed_to`` after a start.

    Args:
        record: of the run.
        settings: all settings of the start, by name.
    """
    changes = changes_of(record)
    before = {**record["asked"], **(changes[-1] if changes else {})}
    now = {name: settings[name] for name in CHANGEABLE if name in before and name in settings}
    is_changed = any(before[name] != value for name, value in now.items())
    return [*changes, now] if is_changed else changes


def text_of(record: Mapping[str, Any]) -> str:
    """A record as its file holds it."""
    return json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"


def changed(
    folder: Path,
    changes: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Put entries into the record of a folder, where there is one; a disk that
    refuses costs a warning.

    Args:
        folder: of the run.
        changes: entries by name, which replace those of the name.
        start: one more start of a process that computes the run.
        settings: of the run as it goes on from a checkpoint, by name; None where it begins.
    """
    record = read(folder)
    if record is None:
        return
    record |= changes
    if settings is not None:
        record["changed_to"] = with_settings(record, settings)
    if start is not None:
        record["starts"] = [*record["starts"], dict(start)]
    try:
        durable.write_text(folder / RECORD, text_of(record))
    except OSError as error:
        log.warning("warning: %s", error)


def start_of_now(step: int, computing: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """What is kept of a start.

    Args:
        step: optimizer steps that the run had behind it.
        computing: device, threads and what else decides last bits (``TrainState.computed_on``).
        processes: how many compute the run.
    """
    return {
        "at": now(),
        "step": step,
        "argv": invoked.words(),
        "job": job(),
        "processes": processes,
        "hardware": {**hardware(), **computing},
        "packages": dict(packages()),
    }


def now() -> str:
    """The time, UTC, so that text order is order in time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def job() -> str:
    """Number of the scheduler's job, empty outside of one."""
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or ""


@cache
def packages() -> Mapping[str, str]:
    """Versions of what computes and reads, those that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """The machine."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": processors.n_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


@cache
def _processor() -> str:
    """Name of the processor as the kernel has it; empty where it says none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
