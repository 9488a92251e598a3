"""A request to stop that arrives where an exception would be lost, or leave things half done."""

import importlib
from pathlib import Path

import pytest

from conftest import program
from model_utils.run.interruption import STARTS

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
    done = program(PROGRAM, tmp_path)
    assert done.stdout.startswith(f"whole {name}: stopped where nothing had to be saved"), (
        done.stdout + done.stderr
    )


WHERE_IT_IS_LOST = {
    "when an object is freed": """
class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
thing = Thing()
del thing
""",
    "when a process is forked": """
os.register_at_fork(before=lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.1,))
child.start()
""",
}
LOST = """
import multiprocessing, os, signal, time
from model_utils.errors import Preempted
from model_utils.run.interruption import Interruption
try:
    with Interruption():
        exec({what!r})
        time.sleep(20)
        print("never stopped")
except Preempted as stopped:
    print(stopped)
"""


@pytest.mark.parametrize("where", WHERE_IT_IS_LOST)
def test_a_request_that_python_drops_is_met_a_moment_later(where: str) -> None:
    done = program(LOST.format(what=WHERE_IT_IS_LOST[where]))
    assert done.stdout.startswith("SIGTERM: stopped where nothing had to be saved"), done.stderr
    assert done.stderr == ""


# as tqdm does when it writes for the first time
BROKEN = """
def broken():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    finally:
        os.no_such_thing
def read():
    try:
        broken()
    except Exception as error:  # as a reader does
        raise InputError("the file is damaged") from error
def batches():
    yield 1
    read()
"""
BREAKING = """
import os, signal, time
from model_utils.errors import InputError, Preempted, StopRequested
from model_utils.run.interruption import Interruption
{broken}
try:
    with Interruption() as stop:
        {what}
        print("never stopped")
except Preempted as stopped:
    print(stopped)
"""
IN_A_LOOP = """
        with stop.deferred():
            try:
                for batch in stop.watch(batches()):
                    print("batch", batch)
            except StopRequested as request:
                print(request, "saved")
            {then}
"""


def test_what_a_library_makes_of_a_request_is_the_request() -> None:
    for what in ("broken()", "read()"):
        done = program(BREAKING.format(broken=BROKEN, what=what))
        assert done.stdout.startswith("SIGTERM: stopped where nothing had to be saved"), done.stderr
    done = program(BREAKING.format(broken=BROKEN, what=IN_A_LOOP.format(then="")))
    assert done.stdout == "batch 1\nSIGTERM saved\nnever stopped\n", done.stderr


def test_an_error_of_a_save_is_no_request() -> None:
    """Nor is one that another error led to."""
    save = IN_A_LOOP.replace('print(request, "saved")', "os.no_such_thing").format(then="")
    for what in (save, "[][0]", "try: [][0]\n        finally: os.no_such_thing"):
        done = program(BREAKING.format(broken=BROKEN, what=what))
        assert done.returncode == 1
        assert "no_such_thing" in done.stderr or "IndexError" in done.stderr
        assert "stopped" not in done.stdout


FORKED = """
import multiprocessing, os, signal, time
from model_utils.errors import Preempted
from model_utils.run.interruption import Interruption

def work():
    try:
        with Interruption():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
            print("never stopped", flush=True)
    except Preempted as stopped:
        print(stopped, flush=True)

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
"""


def test_a_process_that_was_forked_is_not_being_forked_all_its_life() -> None:
    done = program(FORKED)
    assert done.stdout.startswith("SIGTERM: stopped where nothing had to be saved"), done.stderr


def test_what_starts_processes_is_called_so() -> None:
    for module, name in STARTS:
        kinds = vars(importlib.import_module(module)).values()
        assert any(name in vars(kind) for kind in kinds if isinstance(kind, type)), (module, name)


OF_A_LOOP = """
import asyncio, os, signal
from model_utils.run.interruption import Interruption

async def main():
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    with Interruption():
        pass
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(heard.wait(), 60)
    print("heard")

asyncio.run(main())
"""


def test_a_loop_of_asyncio_hears_its_signals_again() -> None:
    done = program(OF_A_LOOP)
    assert done.stdout == "heard\n", done.stderr[-300:]
