"""dpdispatcher behind one door: a job of one task, found again by what it is made of,
without a secret in any file.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.errors import StageFailed
from model_utils.report.libraries import needed
from model_utils.runtime import log
from model_utils.settings import invoked
from model_utils.submission.job import EXIT_CODE, LOGS, RESULTS, SENT, JobFolder
from model_utils.submission.profile import VARIABLE, Profile

LOGGER = "dpdispatcher"


class Dispatch:
    """A job in the hands of dpdispatcher.

    Args:
        folder: of the job.
        profile: where it runs.

    Raises:
        InputError: dpdispatcher is not installed, or does not take the profile.
    """

    def __init__(self, folder: JobFolder, profile: Profile) -> None:
        self._library = _library(folder.path)
        machine = {**profile.machine_with_credentials(), "local_root": str(folder.path)}
        self._secrets = {str(value) for name, value in _leaves(machine) if invoked.is_secret(name)}
        with self._told("the profile", profile.path):
            self._machine = self._library.Machine.load_from_dict(machine)
            resources = self._library.Resources.load_from_dict(
                {"group_size": 1, **profile.resources}
            )
        self._machine.serialize = _without_secrets(self._machine.serialize)
        task = self._library.Task(
            command="bash work.sh",
            task_work_path="work",
            forward_files=list(SENT),
            backward_files=[RESULTS, EXIT_CODE, *LOGS],
            outlog=LOGS[0],
            errlog=LOGS[1],
        )
        self.submission = _recovering(self._library.Submission)(
            work_base=".", machine=self._machine, resources=resources, task_list=[task]
        )

    def submit(self, *, wait: bool, check_every: float) -> bool:
        """Submit the job, or find it again; whether its results are here.

        Args:
            wait: for its end.
            check_every: s between two looks.

        Raises:
            StageFailed: it cannot be submitted, or ended again and again without
                a word of its command.
        """
        with self._told("the job", Path(self._machine.context.temp_local_root)):
            self.submission.run_submission(
                exit_on_submit=not wait, clean=False, check_interval=check_every
            )
            return bool(self.submission.check_all_finished())

    def clean(self) -> None:
        """Remove what lies on the machine, once the results are here."""
        try:
            with _without_credentials():
                self._machine.context.clean()
        except Exception as error:  # of whatever library the context has
            log.warning(
                "warning: what lies on the machine was not removed: %s", self._printable(error)
            )

    @property
    def numbers(self) -> list[str]:
        """Numbers of the jobs as the scheduler has them."""
        return [str(job.job_id) for job in self.submission.belonging_jobs if job.job_id != ""]

    @property
    def name(self) -> str:
        """Name of the folder on the machine."""
        return str(self.submission.submission_hash)

    @contextlib.contextmanager
    def _told(self, what: str, where: Path) -> Iterator[None]:
        """Errors of the library as one line of ours, without secrets; what
        it starts inherits none.
        """
        try:
            with _without_credentials():
                yield
        except (InputError, StageFailed):
            raise
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise InputError(
                f"dpdispatcher does not take {what} ({where}): {self._printable(error)}"
            ) from None
        except Exception as error:
            # contexts raise what their libraries raise: paramiko, requests, RuntimeError
            raise StageFailed(f"{what} ({where}): {self._printable(error)}", 1) from None

    def _printable(self, error: BaseException) -> str:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        text = "; ".join(
            f"{type(cause).__name__} {' '.join(str(cause).split()):.300}" for cause in causes
        )
        for secret in self._secrets:
            text = text.replace(secret, invoked.HIDDEN)
        return text


def _library(folder: Path) -> Any:
    """dpdispatcher, whose log goes to the job folder and not to wherever the command was typed.

    Raises:
        InputError: it is not installed.
    """
    before = Path.cwd()
    os.chdir(folder)  # where it opens its log when it is imported
    try:
        (library, record) = needed(
            "dpdispatcher", "dpdispatcher.utils.record", what="submit.py", extra="cluster"
        )
    finally:
        os.chdir(before)
    record.record.record_directory = folder
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)
    return library


@contextlib.contextmanager
def _without_credentials() -> Iterator[None]:
    """The environment without its credentials: a job on this machine, and
    SLURM, would take them over.
    """
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(VARIABLE)}
    try:
        yield
    finally:
        os.environ.update(kept)


def _without_secrets(serialize: Any) -> Any:
    """A machine's description as it is written to files: all that is known
    of it but its secrets.
    """

    def shown(*arguments: Any, **options: Any) -> Any:
        return _hidden(serialize(*arguments, **options))

    return shown


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _hidden(item) for name, item in value.items() if not invoked.is_secret(str(name))
        }
    return [_hidden(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, str(key))
    elif value:
        yield name, value


def _recovering(kind: Any) -> Any:
    """A submission that finds its former self with the machine at hand, not with one
    made of what a file says.

    The library makes a second machine of the record that lies on the machine; from ours
    the secrets are missing.
    """

    class Recovering(kind):
        def try_recover_from_json(self) -> None:
            """Take the jobs of an earlier start, where their record is there."""
            import json

            name = f"{self.submission_hash}.json"
            if not self.machine.context.check_file_exists(name):
                return
            stored = json.loads(self.machine.context.read_file(fname=name))
            before = kind.deserialize(submission_dict=stored, machine=self.machine)
            self.belonging_jobs = before.belonging_jobs
            self.belonging_tasks = [
                task for job in self.belonging_jobs for task in job.job_task_list
            ]
            self.bind_machine(machine=self.machine)

    return Recovering
