"""Training under random kills, requests to stop and disturbances; its result is
that of the unbroken run.

``SOAK_MINUTES=30 BATTERY=full pytest tests/reliability/test_soak.py`` for half an hour;
ten minutes unless asked.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import pytest

from conftest import HANGING, in_the_battery, pausing, wait_until
from model_utils import train_mace
from model_utils.tasks.same_bits import differences
from reliability.conftest import FULL
from reliability.test_killed_commands import command, outputs_in, saved_at, settings

SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
# 5: the last save met a full disk; the run goes on from the one before
ENDS = (0, 5, 75, -signal.SIGKILL)
Record = Callable[[str, object], None]
Life = subprocess.Popen[bytes]


@dataclass
class Place:
    """Where the run writes: a small file system of its own, or, where none
    can be mounted, a folder.
    """

    disk: Path
    is_small: bool

    @property
    def folder(self) -> Path:
        """Holds the run's own folder."""
        return self.disk / "broken"

    def fill(self) -> Path:
        """Take all the room there is."""
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1 << 6, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        return filler


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 6 + 2 * SOAK_MINUTES  # MiB: records and events become more with every life
    words = ["mount", "-t", "tmpfs", "-o", f"size={size:.0f}m", "tmpfs", str(disk)]
    is_small = os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0
    yield Place(disk, is_small)
    if is_small:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


Pause = Callable[[], None]
Disturbance = Callable[[Life, Place, random.Random, Pause], bool]  # whether it met the run


def disk_full_for_seconds(life: Life, place: Place, rng: random.Random, pause: Pause) -> bool:
    if not place.is_small:
        return False
    filler = place.fill()
    pause()
    filler.unlink()
    return True


def reader_of_stdout_leaves(life: Life, place: Place, rng: random.Random, pause: Pause) -> bool:
    assert life.stdout is not None
    if life.stdout.closed:
        return False
    life.stdout.close()
    return True


def worker_killed(life: Life, place: Place, rng: random.Random, pause: Pause) -> bool:
    with suppress(OSError):
        children = Path(f"/proc/{life.pid}/task/{life.pid}/children").read_text().split()
        workers = [
            child
            for child in children
            if b"train_mace" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        if workers:
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
            return True
    return False


def stopped_for_seconds(life: Life, place: Place, rng: random.Random, pause: Pause) -> bool:
    """As where a node swaps."""
    os.kill(life.pid, signal.SIGSTOP)
    pause()
    os.kill(life.pid, signal.SIGCONT)
    return True


def folder_renamed_and_back(life: Life, place: Place, rng: random.Random, pause: Pause) -> bool:
    run, elsewhere = place.folder / "run", place.folder / "renamed"
    if not run.exists():
        return False
    assert not elsewhere.exists(), sorted(elsewhere.rglob("*"))
    run.rename(elsewhere)
    pause()
    life.send_signal(signal.SIGSTOP)
    began_anew = run.exists()  # a life that was starting, and found nothing there
    if began_anew:
        life.kill()
        life.wait()
        shutil.rmtree(run)
    elsewhere.rename(run)
    life.send_signal(signal.SIGCONT)
    return not began_anew


DISTURBANCES: tuple[Disturbance, ...] = (
    disk_full_for_seconds,
    reader_of_stdout_leaves,
    worker_killed,
    stopped_for_seconds,
    folder_renamed_and_back,
)


def begin(words: list[str], errors: Path) -> Life:
    """A life whose stdout somebody reads."""
    with errors.open("wb") as file:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file)


def drain(life: Life) -> None:
    """Read what it says, or its pipe would be full some day."""
    if life.stdout is not None and not life.stdout.closed:
        os.set_blocking(life.stdout.fileno(), False)
        with suppress(OSError):
            while life.stdout.read(65536):
                pass


def end(life: Life, errors: Path) -> int:
    """The exit code of a life that was told to end, judged."""
    limit = time.monotonic() + HANGING
    while life.poll() is None:
        assert time.monotonic() < limit, "it hangs"
        drain(life)
        time.sleep(0.02)
    if life.stdout is not None:
        life.stdout.close()
    said = errors.read_text()
    # it began just when its folder was renamed
    is_missing = life.returncode == 2 and "was there a moment ago" in said
    assert is_missing or life.returncode in ENDS, f"exit code {life.returncode}: {said}"
    assert "Traceback" not in said, said
    return life.returncode


@dataclass
class Soak:
    """What was done so far, and what the lives used."""

    rng: random.Random
    ends: Counter[int] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    # MiB, every half second, for each life
    resident: list[list[float]] = field(default_factory=list)

    def live(self, words: list[str], place: Place, errors: Path, seconds: float) -> int:
        """One life, disturbed every few seconds, then signalled; its exit code."""
        life, until = begin(words, errors), time.monotonic() + seconds
        self.resident.append([])
        before = saved_at(place.folder)
        next_one = time.monotonic() + self.rng.uniform(2.0, 8.0)
        while life.poll() is None and time.monotonic() < until:
            drain(life)
            if saved_at(place.folder) != before:  # start-up is over
                self._look(life)
            if time.monotonic() >= next_one:
                disturb = self.rng.choice(DISTURBANCES)
                self.met[disturb.__name__] += disturb(
                    life, place, self.rng, lambda: self._pause(life)
                )
                next_one = time.monotonic() + self.rng.uniform(1.0, 8.0)
            time.sleep(0.5)
        if life.poll() is None:
            life.send_signal(self.rng.choice([signal.SIGKILL, signal.SIGTERM]))
        code = end(life, errors)
        self.ends[code] += 1
        return code

    def _pause(self, life: Life) -> None:
        until = time.monotonic() + self.rng.uniform(0.5, 5.0)
        while time.monotonic() < until:
            drain(life)
            time.sleep(0.1)

    def _look(self, life: Life) -> None:
        with suppress(OSError, IndexError):  # it just ended
            pages = int(Path(f"/proc/{life.pid}/statm").read_text().split()[1])
            self.resident[-1].append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def growth(resident: list[float]) -> float:
    """Memory in the last quarter of a life's training against the one before."""
    quarter = len(resident) // 4
    return mean(resident[-quarter:]) / mean(resident[-2 * quarter : -quarter])


@pytest.mark.skipif(not FULL, reason=f"{SOAK_MINUTES:.0f} minutes: make battery")
def test_soak_with_disturbances(
    material: Path, tmp_path: Path, place: Place, record_property: Record
) -> None:
    trial = time.monotonic()
    subprocess.run(
        command(material, tmp_path / "trial", "--epochs", "200"),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    epochs = str(int(200 * 60 * SOAK_MINUTES / (time.monotonic() - trial)))
    words = ("--epochs", epochs, "--num_workers", "1", "--tensorboard")
    soak, code, end_at = Soak(random.Random(3)), 75, time.monotonic() + 120 * SOAK_MINUTES
    while code != 0 and time.monotonic() < end_at:
        seconds = soak.rng.uniform(5.0, 45.0)
        code = soak.live(
            command(material, place.folder, *words), place, tmp_path / "stderr", seconds
        )
    if code != 0:
        subprocess.run(
            command(material, place.folder, *words), check=True, stdout=subprocess.DEVNULL
        )
    subprocess.run(
        command(material, tmp_path / "whole", *words), check=True, stdout=subprocess.DEVNULL
    )
    assert differences(outputs_in(tmp_path / "whole"), outputs_in(place.folder)) == []
    largest = max((growth(life) for life in soak.resident if len(life) >= 40), default=1.0)
    for name, value in {"lives": soak.ends.total(), **soak.met}.items():
        record_property(name, value)
    ends = ", ".join(f"{count} × {code}" for code, count in sorted(soak.ends.items()))
    met = ", ".join(f"{count} × {name}" for name, count in sorted(soak.met.items()))
    print(
        f"soak: {epochs} epochs; lives that ended with {ends}; {met}; memory × "
        f"{largest:.3f}; result equal"
    )
    assert largest < 1.05
    assert (
        all(soak.met[disturb.__name__] for disturb in DISTURBANCES if place.is_small)
        or SOAK_MINUTES < 5
    )


@in_the_battery
def test_every_disturbance_in_one_step(material: Path, tmp_path: Path, place: Place) -> None:
    """All of them, one after another, while the run waits in a step: nothing is left to chance."""
    words = ("--epochs", "2", "--num_workers", "1")
    assert train_mace.main(settings(material, tmp_path / "whole", *words)) == 0
    reached, over, errors = tmp_path / "reached", tmp_path / "over", tmp_path / "stderr"
    life = begin([*pausing(2, reached, over), *settings(material, place.folder, *words)], errors)
    wait_until(lambda: reached.exists() or life.poll() is not None, "the second step")
    assert life.poll() is None, errors.read_text()
    for disturb in DISTURBANCES:
        assert disturb(life, place, random.Random(4), lambda: None) or not place.is_small, (
            disturb.__name__
        )
    over.touch()
    assert end(life, errors) == 0, errors.read_text()
    assert errors.read_text() == ""
    assert differences(outputs_in(tmp_path / "whole"), outputs_in(place.folder)) == []
    log = (place.folder / "run" / "train.log").read_text()
    assert "stdout cannot be written" in log
    assert "worker 0: a process was killed" in log
