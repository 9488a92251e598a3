"""The command of a stage as a child process: what it says is shown and kept, and it
ends with the pipeline.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dataloader import file_lock
from dataloader.errors import InputError
from dataloader.file_lock import Lock
from model_utils.errors import StopRequested
from model_utils.ranks.ending import listened_to
from model_utils.runtime import log
from model_utils.stages.place import Place

SCRIPTS = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1
PATIENCE = 300.0  # s that a stage may take to end whose pipeline was killed
CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
TOLD = ("error: ", "stopped: ")
LAST_LINES = 200  # of which the reason of a failure is one


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative where a signal ended it.
        reason: the line in which it says why, or the last one.
    """

    code: int
    reason: str


def run(script: str, settings: Path, place: Place, stage: str) -> Ended:
    """Run a command of ours with a file of settings; what it says goes to the log of the stage too.

    A signal to this process is handed on once; the command then ends as it ends by itself, before
    ``StopRequested`` goes on.

    Args:
        script: below model_utils/.
        settings: the file.
        place: of the pipeline.
        stage: whose command it is.

    Raises:
        StopRequested: this process was asked to stop.
        OSError: the command cannot be started.
    """
    command = [sys.executable, str(SCRIPTS / script), "--config", str(settings)]
    with place.log(stage).open("ab", buffering=0) as file, _stage_lock(place) as lock:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,  # Ctrl-C is for the pipeline, which hands it on
            preexec_fn=_end_with(os.getpid()),
        )
        assert child.stdout is not None
        lines: list[str] = []
        try:
            _follow(child.stdout, file, stage, lines)
            code = child.wait()
        except StopRequested:
            child.terminate()
            _follow(child.stdout, file, stage, lines)
            child.wait()
            raise
    return Ended(code=code, reason=_reason(code, lines))


def _follow(stream: IO[bytes], file: IO[bytes], stage: str, lines: list[str]) -> None:
    """Show and keep the lines of a command until it says no more."""
    for line in stream:
        with contextlib.suppress(OSError):  # a full disk costs the log, not the stage
            file.write(line)
        text = CLOCK.sub("", line.decode("utf-8", "backslashreplace").rstrip())
        if text:
            log.info("%s: %s", stage, text)
            lines.append(text)
            del lines[:-LAST_LINES]


def _reason(code: int, lines: Sequence[str]) -> str:
    """Why a command failed, in one line."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (
            ", as by a lack of memory" if name == "SIGKILL" else ""
        )
    told = [line for line in lines if line.startswith(TOLD)]
    line = told[-1] if told else (lines[-1] if lines else "it said nothing")
    for word in TOLD:
        line = line.removeprefix(word)
    return line


def _end_with(parent: int) -> Callable[[], None]:
    """What a child does first: asks the kernel to be ended when the process
    that began it is gone.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    numbers = listened_to()

    def ask() -> None:
        # which workers leave to their parent; this child is a command of its own
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return ask


@contextlib.contextmanager
def _stage_lock(place: Place) -> Iterator[int | None]:
    """A lock that the running stage inherits: it holds as long as any
    process of the stage lives.
    """
    descriptor = os.open(place.stage_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        end = time.monotonic() + PATIENCE
        waited = False
        while (answer := file_lock.ask(descriptor)) is Lock.HELD:
            if not waited:
                log.info("waiting for the end of a stage whose pipeline is gone")
                waited = True
            if time.monotonic() > end:
                raise InputError(
                    f"{place.folder}: a stage of an earlier pipeline still runs "
                    "there; end its process"
                )
            time.sleep(0.1)
        yield descriptor if answer is Lock.OURS else None
    finally:
        os.close(descriptor)
