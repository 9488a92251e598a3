"""A request to stop that arrives while a library is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HANGING, ROOT

# as scipy, ase and others do somewhere: what an import raises is caught, and another way taken
LIBRARY = """
import os, signal, time
asked = []
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.2)
    asked.append("whole")
except BaseException:
    asked.append("cut short")
"""
PROGRAM = """
import time
from model_utils.errors import Preempted
from model_utils.run.interruption import Interruption
try:
    with Interruption():
        import library
        time.sleep(20)
        print("never stopped")
except Preempted as stopped:
    import library
    print(*library.asked, stopped)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_import_ends_and_then_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(LIBRARY.format(name=name))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=env,
        capture_output=True,
        text=True,
        timeout=HANGING,
        check=False,
    )
    assert done.stdout.startswith(f"whole {name}: stopped where nothing had to be saved"), (
        done.stdout + done.stderr
    )
