"""--sync: a user's command after each checkpoint, in a process of its own, for whatever
keeps a copy elsewhere.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from model_utils.files.outputs import Outputs
from model_utils.runtime import log

SHELL = "/bin/sh"
SHOWN = 200  # letters of what a failed command said last
# $1: process to wait for, $2: command. In some containers nothing collects orphans: one that
# ended stays as a zombie.
AFTERWARDS = (
    'while kill -0 "$1" 2>/dev/null && ! grep -qs "^State:.Z" "/proc/$1/status"; do sleep 0.2; '
    f'done; exec {SHELL} -c "$2"'
)


class Sync:
    """Runs one command again and again, one process at a time, and never waits for
    it while the run lasts.

    Checkpoints that are written while a command runs are one: it is started once more when it has
    ended. The command gets ``RUN_FOLDER``, ``RUN_CHECKPOINT`` and ``RUN_MODEL`` as variables of its
    environment. It has a session of its own: what ends the training does not end a copy half-way.

    Args:
        command: a line for the shell, from the command line or the typed
            configuration; it is stored nowhere.
        outputs: the place of the run.
    """

    def __init__(self, command: str, outputs: Outputs) -> None:
        self._command = command
        self._outputs = outputs
        self._change = threading.Condition()
        self._running: subprocess.Popen[bytes] | None = None
        self._is_due = False
        self._has_failed = False

    def checkpoint_written(self) -> None:
        """Start the command, or have it started when the one that runs has ended."""
        with self._change:
            if self._running is not None:
                self._is_due = True
            else:
                self._start()

    def close(self, seconds: float) -> None:
        """Wait so long for what runs or is due; then say that it goes on without this process.

        A command that is due, and would copy the last checkpoint, is handed to a shell of its own,
        which starts it when the one that runs has ended.
        """
        with self._change:
            ended = self._change.wait_for(lambda: self._running is None, timeout=seconds)
            is_handed_over = self._is_due and self._hand_over()
        if is_handed_over:
            log.warning(
                "warning: --sync still copies an older checkpoint; it goes on by itself, and then "
                "runs once more for the last one, unless what ends this job ends it too"
            )
        elif not ended and seconds > 0:
            log.warning("warning: --sync did not end within %.0f s; it goes on by itself", seconds)

    def _hand_over(self) -> bool:
        """Have the command that is due started after the end of this process; whether that is so.

        The lock is held.
        """
        assert self._running is not None, "what is due waits for what runs"
        self._is_due = False
        words = [SHELL, "-c", AFTERWARDS, "sync", str(self._running.pid), self._command]
        try:
            self._opened(words, subprocess.DEVNULL)
        except OSError as error:
            log.warning("warning: --sync does not copy the last checkpoint: %s", error)
            return False
        return True

    def _start(self) -> None:
        """Start the command; the lock is held."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe would stay open in what the command leaves behind
        try:
            child = self._opened([SHELL, "-c", self._command], errors)
        except OSError as error:
            errors.close()
            self._say_failure(str(error))
            return
        self._running = child
        threading.Thread(target=self._wait, args=(child, errors), daemon=True).start()

    def _opened(self, words: Sequence[str], errors: IO[bytes] | int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **self._variables()},
            start_new_session=True,
        )

    def _variables(self) -> Mapping[str, str]:
        outputs = self._outputs
        return {
            "RUN_FOLDER": str(outputs.checkpoint.parent.absolute()),
            "RUN_CHECKPOINT": str(outputs.checkpoint.absolute()),
            "RUN_MODEL": str(outputs.model.absolute()),
        }

    def _wait(self, child: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        began = time.monotonic()
        code = child.wait()
        with errors:
            said = _last_line(errors)
        if code != 0:
            self._say_failure(f"it ended with {code} after {time.monotonic() - began:.0f} s{said}")
        with self._change:
            self._running = None
            if self._is_due:
                self._is_due = False
                self._start()
            self._change.notify_all()

    def _say_failure(self, why: str) -> None:
        """Warn the first time alone: a server may be away for a night, and is tried
        again at each checkpoint.
        """
        if not self._has_failed:
            self._has_failed = True
            log.warning(
                "warning: --sync failed: %s; tried again after the next checkpoint, without a word",
                why,
            )


def _last_line(errors: IO[bytes]) -> str:
    """What a command said last, `` (…)``."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(size - 4096, 0))
    lines = errors.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({last[:SHOWN]})" if last else ""
