"""The real command, killed in known steps or at random moments, and a soak; the result
is the unbroken run's.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from conftest import HANGING, ROOT, pausing, wait_until
from model_utils import train_mace
from model_utils.files.outputs import Outputs
from model_utils.tasks.same_bits import differences
from reliability.conftest import FULL

KILLS = 50
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
Record = Callable[[str, object], None]


def command(material: Path, folder: Path, *flags: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "model_utils" / "train_mace.py"),
        *settings(material, folder, *flags),
    ]


def settings(material: Path, folder: Path, *flags: str) -> list[str]:
    """A run with four steps in an epoch."""
    words = [
        "--input_json",
        material / "tiny.json",
        "--xyz_train",
        material / "train.xyz",
        "--batch_size",
        "4",
    ]
    words += [
        "--xyz_val",
        material / "val.xyz",
        "--ema",
        "--stage_two",
        "--threads",
        "1",
        "--resume",
        "auto",
    ]
    words += ["--output_checkpoint", folder / "run", "--checkpoint_every_steps", "3"]
    return [str(word) for word in (*words, *flags)]


def outputs_in(folder: Path) -> Outputs:
    return Outputs.named(folder / "run" / "run_checkpoint.pt", None)


@dataclass
class Life:
    """What one process used, looked at every half second."""

    resident: list[float] = field(default_factory=list)  # MiB
    descriptors: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/statm").read_text().split()
            self.descriptors.append(lasting_descriptors(pid))
        except OSError:  # it just ended
            return
        self.resident.append(int(status[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)


def lasting_descriptors(pid: int) -> int:
    """How many are open, without those of batches on their way from a worker, which are more
    or fewer from one moment to the next.
    """
    lasting = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was just closed
            lasting += not os.readlink(descriptor).startswith("/dev/shm/torch_")
    return lasting


def saved_at(folder: Path) -> int:
    """When the run in a folder was saved last, ns; 0 before."""
    with suppress(OSError):
        return outputs_in(folder).checkpoint.stat().st_mtime_ns
    return 0


def live(
    words: list[str], folder: Path, seconds: float, number: signal.Signals
) -> tuple[int, Life]:
    """Start the command and signal it after a time; its exit code and what it used from its
    first save on, when start-up is over on however busy a machine.
    """
    before = saved_at(folder)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    life, end = Life(), time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(min(0.5, max(end - time.monotonic(), 0.0)))
        if saved_at(folder) != before:
            life.look(process.pid)
    if process.poll() is None:
        process.send_signal(number)
    code = process.wait(timeout=HANGING)
    assert process.stderr is not None
    said = process.stderr.read()
    assert code in (0, 75, -9), f"exit code {code}: {said}"
    assert "Traceback" not in said, said
    return code, life


def test_killed_in_a_step_and_in_a_step_of_the_next_life(material: Path, tmp_path: Path) -> None:
    """Kill -9 in the second step, when only the first save is there, then 16
    steps later, in stage two.
    """
    whole, broken, flags = tmp_path / "whole", tmp_path / "broken", ("--epochs", "6")
    assert train_mace.main(settings(material, whole, *flags)) == 0
    for step in (2, 18):
        kill_in_step(step, settings(material, broken, *flags), tmp_path / f"reached{step}")
    assert train_mace.main(settings(material, broken, *flags)) == 0
    assert differences(outputs_in(whole), outputs_in(broken)) == []


def kill_in_step(step: int, words: list[str], reached: Path) -> None:
    command = [*pausing(step, reached, reached.with_name("never")), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: reached.exists() or process.poll() is not None, f"step {step}")
        assert process.poll() is None
        process.kill()


@pytest.mark.skipif(not FULL, reason="what a kill meets is left to chance: make battery")
def test_killed_again_and_again(material: Path, tmp_path: Path, record_property: Record) -> None:
    """Kill -9 at random times; each time it goes on, and the end is that of the unbroken run."""
    epochs = "100"  # as long again as a command needs to begin: kills meet both
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    subprocess.run(
        command(material, whole, "--epochs", epochs), check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - began
    rng, kills, code = random.Random(1), 0, -9
    while kills < KILLS:
        code, _ = live(
            command(material, broken, "--epochs", epochs),
            broken,
            rng.uniform(0.2, 1.2 * seconds),
            signal.SIGKILL,
        )
        if code == 0:  # it was done before the kill: the next run begins anew
            assert differences(outputs_in(whole), outputs_in(broken)) == []
            broken = tmp_path / f"broken{kills}"
        else:
            kills += 1
    subprocess.run(
        command(material, broken, "--epochs", epochs), check=True, stdout=subprocess.DEVNULL
    )
    assert differences(outputs_in(whole), outputs_in(broken)) == []
    record_property("kills", kills)
    print(f"kill -9 of the command: {kills}, each resumed, equal to the unbroken run")


def third_quarter(samples: list[Any]) -> list[Any]:
    return samples[len(samples) // 2 : 3 * len(samples) // 4]


def last_quarter(samples: list[Any]) -> list[Any]:
    return samples[3 * len(samples) // 4 :]


@pytest.mark.skipif(not FULL, reason="ten minutes: make battery")
def test_soak(material: Path, tmp_path: Path, record_property: Record) -> None:
    """Train for a long time with random kills and requests to stop: memory and descriptors
    stay flat, result equal.
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    trial = time.monotonic()
    subprocess.run(
        command(material, tmp_path / "trial", "--epochs", "200"),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    epochs = str(int(200 * 60 * SOAK_MINUTES / (time.monotonic() - trial)))
    flags = ("--epochs", epochs, "--num_workers", "1")
    rng, lives, end = random.Random(2), [], time.monotonic() + 60 * SOAK_MINUTES
    code = 75
    while code != 0 and time.monotonic() < end + 60 * SOAK_MINUTES:
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        code, life = live(command(material, broken, *flags), broken, rng.uniform(5.0, 30.0), number)
        lives.append(life)
    if code != 0:
        subprocess.run(command(material, broken, *flags), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(command(material, whole, *flags), check=True, stdout=subprocess.DEVNULL)
    assert differences(outputs_in(whole), outputs_in(broken)) == []
    # of 10 s and more; the last one may have come to the run's end, which evaluates and exports
    long = [life for life in lives[:-1] if len(life.resident) >= 20]
    growth = max(
        mean(last_quarter(life.resident)) / mean(third_quarter(life.resident)) for life in long
    )
    # a file that is being written is open for a moment: what stays is seen in the mean
    more = mean(
        mean(last_quarter(life.descriptors)) - mean(third_quarter(life.descriptors))
        for life in long
    )
    record_property("lives", len(lives))
    print(
        f"soak: {len(lives)} lives, {epochs} epochs, memory × {growth:.3f}, descriptors "
        f"{more:+.2f} in the last quarter of {len(long)} lives, result equal"
    )
    assert growth < 1.05
    assert more < 0.25
