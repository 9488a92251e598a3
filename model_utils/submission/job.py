"""A job folder: what was submitted, where it is, what came back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataloader import durable, input_files, plain_json
from dataloader.errors import InputError
from dataloader.limits import JSON_BYTES
from model_utils.files.content import file_hash
from model_utils.runtime import log

FORMAT = 1
State = Literal["packed", "submitted", "done"]
STATES: tuple[State, ...] = ("packed", "submitted", "done")
RESULTS = "results.tar.gz"
EXIT_CODE = "exit_code"
SENT = ("work.sh", "sources.tar.gz", "inputs.tar.gz", "settings.yaml")
LOGS = ("work.log", "work.err")


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What is kept of a job, and no secret.

    Attributes:
        command: its name, as ``pipeline``.
        key: hash of command, settings, content of files, sources, machine and resources.
        state: how far it is.
        profile: where it runs.
        submitted: when, UTC.
        ended: when its results came back, UTC.
        submission: dpdispatcher's name of it.
        jobs: numbers of the scheduler.
        exit_code: of the command; None before it ended.
        result: folder that came back.
        sha256: of the archive that came back.
    """

    command: str
    key: str
    state: State
    profile: Mapping[str, Any]
    result: str
    submitted: str = ""
    ended: str = ""
    submission: str = ""
    jobs: list[str] = field(default_factory=list)
    exit_code: int | None = None
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class JobFolder:
    """Names within a job folder."""

    path: Path

    @property
    def record(self) -> Path:
        """What is kept of the job."""
        return self.path / "job.json"

    @property
    def work(self) -> Path:
        """What is sent, and what comes back before it is unpacked."""
        return self.path / "work"

    @property
    def lock(self) -> Path:
        """Held by the process that submits or brings back."""
        return self.path / ".submit.lock"

    def write(self, record: JobRecord) -> None:
        """Put the record on the disk."""
        text = json.dumps(
            {"format": FORMAT, **asdict(record)}, indent=2, ensure_ascii=False, default=str
        )
        durable.write_text(self.record, text + "\n")

    def read(self, key: str) -> JobRecord | None:
        """The record of the job; None where there is none, or it is damaged, which is said.

        Raises:
            InputError: it is of another job.
        """
        try:
            content = plain_json.loads(input_files.read_text(self.record, JSON_BYTES))
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise ValueError("no record of a job")
            record = JobRecord(**content)
            if record.state not in STATES or not isinstance(record.jobs, list):
                raise ValueError("no record of a job")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning(
                "warning: %s cannot be read (%s); the job is looked for anew", self.record, error
            )
            return None
        if record.key != key:
            raise InputError(f"{self.path} is the folder of another job; give another --jobs_dir")
        return record

    def exit_code(self) -> int | None:
        """With which code the command ended there, as its job wrote it."""
        try:
            return int(input_files.read_text(self.work / EXIT_CODE, 20))
        except (OSError, ValueError):
            return None

    def came_back(self) -> str:
        """sha256 of the archive of results.

        Raises:
            InputError: it did not come.
        """
        try:
            return file_hash(self.work / RESULTS)
        except OSError as error:
            raise InputError(
                f"{self.work / RESULTS} did not come back: {error.strerror}; "
                f"{self.work / LOGS[0]} says more"
            ) from None
