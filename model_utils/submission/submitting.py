"""What submit.py does: a command packed, sent, found again, and its results brought back."""

import hashlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataloader import durable
from model_utils import runtime
from model_utils.errors import StageFailed, cannot_write
from model_utils.files.run_lock import held
from model_utils.run.folder.run_record import now
from model_utils.runtime import log
from model_utils.stages.keys import key_of
from model_utils.submission import packing, profile
from model_utils.submission.commands import Submitted, commands
from model_utils.submission.dispatching import Dispatch
from model_utils.submission.job import EXIT_CODE, RESULTS, SENT, JobFolder, JobRecord
from model_utils.submission.profile import Profile

MOST_RESTARTS = 100  # of a job by itself: it ends one that never gets far enough to make progress
LENGTH_OF_NAME = 8  # of a key, in the name of a folder
WORK = """\
#!/bin/bash
# Made by submit.py. A start that was interrupted is begun again here, and goes on where it was.
mkdir -p {project} && tar xzf sources.tar.gz -C {project} && tar xzf inputs.tar.gz || exit 1
{launcher}{python} {project}/model_utils/{command} --config settings.yaml
code=$?
case $code in
    75 | 129 | 138 | 140 | 143 | 152)
        # asked to stop: SLURM requeues no job that ends within its time of grace
        if [ -n "$SLURM_JOB_ID" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most_restarts} ]; then
            # ends this shell; where it is refused, the job fails with the code
            scontrol requeue "$SLURM_JOB_ID"
        fi
        exit $code ;;
    137) exit $code ;;  # killed: whoever watches the job begins it again
esac
if [ -e {result} ]; then
    tar czf {results}.part --exclude='.*.lock' --exclude='.*.tmp' -- {result} || exit 1
    mv {results}.part {results} || exit 1
else
    tar czf {results} -T /dev/null
fi
echo $code > {exit_code}
"""


def submit(name: str, options: Any) -> None:
    """Submit a command, or find the job of the same command on the same files, and bring its
    results if they are there.

    Args:
        name: of the command in the table.
        options: a ``SubmissionOptions`` and the command's own.

    Raises:
        InputError: the profile, the credentials, the settings or their files cannot be used.
        StageFailed: the job failed.
        Preempted: asked to stop while the job goes on.
    """
    runtime.start_log()
    command = commands()[name]
    where = profile.read(options.submission.profile)
    where.machine_with_credentials()  # refused before anything is packed
    inputs = packing.Inputs()
    settings, result = packing.settings_of(command, options.command, inputs)
    sent = _sent(command, where, settings, result, inputs)
    key = key_of(
        {
            "command": name,
            "profile": where.deciding(),
            "sent": {n: _sha256(d) for n, d in sent.items()},
        }
    )
    folder = JobFolder(
        path=(options.submission.jobs_dir / f"job_{key[:LENGTH_OF_NAME]}").absolute()
    )
    wanted = JobRecord(
        command=name, key=key, state="packed", profile=where.deciding(), result=result
    )
    _made(folder)
    with held(folder.lock, wait=True, flag="--jobs_dir"):
        record = folder.read(key) or wanted
        # what failed may leave nothing
        is_here = (folder.path / record.result).exists() or record.exit_code != 0
        if record.state == "done" and is_here:
            log.info("done before: %s", folder.path / record.result)
        else:
            record = _worked(folder, where, record, sent, options)
    _refuse_failure(folder, record)


def _made(folder: JobFolder) -> None:
    try:
        folder.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(f"--jobs_dir {folder.path.parent}", error, verb="make") from None


def _sent(
    command: Submitted,
    where: Profile,
    settings: dict[str, Any],
    result: str,
    inputs: packing.Inputs,
) -> dict[str, bytes]:
    """The files that a job gets, by name."""
    script = WORK.format(
        project=packing.PROJECT,
        launcher=f"{where.launcher} " if where.launcher else "",
        python=shlex.quote(where.python),
        command=shlex.join(command.words),
        result=shlex.quote(result),
        results=RESULTS,
        exit_code=EXIT_CODE,
        most_restarts=MOST_RESTARTS,
    )
    content = (
        script.encode(),
        packing.archive(packing.sources()),
        packing.archive(inputs.files),
        packing.settings_text(settings).encode(),
    )
    return dict(zip(SENT, content, strict=True))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _worked(
    folder: JobFolder, where: Profile, record: JobRecord, sent: dict[str, bytes], options: Any
) -> JobRecord:
    """The record of a job that is submitted, and whose results are here if it has ended."""
    for name, data in sent.items():
        durable.write(folder.work / name, data)
    if record.state == "packed":
        folder.write(record)
    dispatch = Dispatch(folder, where)
    is_done = dispatch.submit(
        wait=options.submission.wait, check_every=options.submission.check_every
    )
    record = replace(
        record,
        state="submitted",
        submitted=record.submitted or now(),
        submission=dispatch.name,
        jobs=dispatch.numbers,
    )
    folder.write(record)
    if not is_done:
        log.info(
            "submitted as %s: %s; repeat the command to bring the results",
            ", ".join(record.jobs),
            folder.path,
        )
        return record
    record = _brought(folder, record)
    dispatch.clean()
    return record


def _brought(folder: JobFolder, record: JobRecord) -> JobRecord:
    """Unpack what came back, and keep that it is here."""
    digest = folder.came_back()
    number = packing.unpack(folder.work / RESULTS, folder.path, record.result)
    record = replace(record, state="done", ended=now(), exit_code=folder.exit_code(), sha256=digest)
    folder.write(record)
    log.info("brought %d files: %s", number, folder.path / record.result)
    return record


def _refuse_failure(folder: JobFolder, record: JobRecord) -> None:
    """Raise StageFailed where the command failed in its job."""
    if record.state != "done" or record.exit_code == 0:
        return
    code = record.exit_code
    raise StageFailed(
        f"{record.command} ended with {'no code' if code is None else code} in its job: "
        f"{_last_error(folder)}; what it left is in {folder.path / record.result}; remove "
        f"{folder.path} to submit it anew",
        code if code in (2, 3, 4, 5) else 1,
    )


def _last_error(folder: JobFolder) -> str:
    """The last line in which the command said what is wrong."""
    lines: list[str] = []
    for name in ("work.log", "work.err"):
        path = Path(folder.work / name)
        if path.exists():
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    last = told or lines
    line = last[-1].strip() if last else "it said nothing"
    return line.removeprefix("error: ").removeprefix("stopped: ")
