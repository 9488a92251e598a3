"""One process is asked to stop, and all save and leave at one step; killed or stopped, any
number of them goes on.
"""

import signal
from pathlib import Path

import pytest

from conftest import every, in_the_battery, wait_until
from model_utils.files import checkpoint
from ranks.launching import Launcher, differences

SECONDS = 60.0  # a process that waits for others would wait for ever
PARTS = (
    "--step_parts",
    "4",
    "--ema",
    "--checkpoint_every_steps",
    "1",
    "--validate_every_steps",
    "3",
)

HELD = """
import time
from pathlib import Path
from model_utils.run import {module} as module
call, calls = module.{name}, []
def held(*words, **more):
    calls.append(1)
    if len(calls) == {at} and rank in {ranks}:
        Path("held-" + str(rank)).touch()
        while not Path("go").exists():
            time.sleep(0.005)
    return call(*words, **more)
module.{name} = held
"""
IN_A_STEP = HELD.format(module="fit", name="loss_and_gradients", at=6, ranks=(0, 1))
# the second has one batch
IN_A_VALIDATION = HELD.format(module="evaluation", name="evaluate", at=4, ranks=(0,))


def unbroken(launcher: Launcher, words: list[object], folder: Path) -> Path:
    """The run that nobody disturbed, in one process."""
    if not (folder / "whole").exists():
        launcher.run(
            1, "train_mace", *words, *PARTS, "--output_checkpoint", folder / "whole", folder=folder
        )
    return folder / "whole"


@pytest.fixture(scope="module")
def whole(
    launcher: Launcher, words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return unbroken(launcher, words, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("number", "ranks", "where"),
    every(
        2,
        [
            (number, ranks, where)
            for number, ranks, places in (
                (signal.SIGTERM, [1], ("step", "validation")),
                (signal.SIGUSR1, [0], ("validation", "step")),
                (signal.SIGINT, [0, 1], ("step", "validation")),
            )
            for where in places
        ],
        of_several=True,
    ),
)
def test_all_stop_at_one_step(
    where: str,
    number: signal.Signals,
    ranks: list[int],
    launcher: Launcher,
    words: list[object],
    whole: Path,
    tmp_path: Path,
) -> None:
    place = [*PARTS, "--output_checkpoint", tmp_path / "run", "--resume", "auto"]
    before = IN_A_STEP if where == "step" else IN_A_VALIDATION
    processes = launcher.start(2, "train_mace", *words, *place, folder=tmp_path, before=before)
    held = (0, 1) if where == "step" else (0,)
    wait_until(
        lambda: all((tmp_path / f"held-{rank}").exists() for rank in held), f"in the {where}"
    )
    for rank in ranks:
        processes.kill(number, rank)
    (tmp_path / "go").touch()
    assert processes.codes(SECONDS) == [75, 75], processes.said()
    assert len(processes.errors()) == 1
    file = checkpoint.read(tmp_path / "run" / "run_checkpoint.pt")
    assert file.content["train_state"]["step"] == (6 if where == "step" else 3)
    launcher.run(4, "train_mace", *words, *place, folder=tmp_path)
    assert differences(tmp_path / "run", whole) == []


WHILE_READING = """
import time
from pathlib import Path
from model_utils.run.data import open_data
call = open_data.training_data
def held(*words, **more):
    data = call(*words, **more)
    Path("held-" + str(rank)).touch()
    while not Path("go").exists():
        time.sleep(0.005)
    return data
open_data.training_data = held
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_data_are_read(
    rank: int, launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """Nothing is begun, nothing is left, and the same command starts the run later."""
    place = [*PARTS, "--output_checkpoint", tmp_path / "run", "--resume", "auto"]
    processes = launcher.start(
        2, "train_mace", *words, *place, folder=tmp_path, before=WHILE_READING
    )
    wait_until(lambda: all((tmp_path / f"held-{k}").exists() for k in (0, 1)), "the data are read")
    processes.kill(signal.SIGTERM, rank)
    (tmp_path / "go").touch()
    assert processes.codes(SECONDS) == [75, 75], processes.said()
    assert len(processes.errors()) == 1
    launcher.run(2, "train_mace", *words, *place, "--max_steps", 2, folder=tmp_path)


LIVES = {  # processes, and in which of its steps they are killed; the last life comes to the end
    "three kills": [(4, 2), (2, 3), (1, 2), (4, 99)],
    "ten kills": [
        (4, 3),
        (2, 2),
        (1, 4),
        (2, 3),
        (4, 1),
        (1, 2),
        (4, 5),
        (2, 1),
        (1, 3),
        (4, 2),
        (2, 99),
    ],
}


@pytest.mark.parametrize("lives", ["three kills", pytest.param("ten kills", marks=in_the_battery)])
def test_killed_and_continued_by_other_numbers(
    lives: str, launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """Every life but the last ends by kill -9, and the next has another number of processes."""
    epochs = ["--epochs", 2 if lives == "three kills" else 5]
    whole = ["--output_checkpoint", tmp_path / "whole"]
    launcher.run(1, "train_mace", *words, *PARTS, *epochs, *whole, folder=tmp_path)
    place = [*PARTS, *epochs, "--output_checkpoint", tmp_path / "run", "--resume", "auto"]
    for size, at in LIVES[lives]:
        before = HELD.format(
            module="fit", name="loss_and_gradients", at=at, ranks=tuple(range(size))
        )
        processes = launcher.start(
            size, "train_mace", *words, *place, folder=tmp_path, before=before
        )
        if at < 99:
            wait_until(
                lambda size=size: len(list(tmp_path.glob("held-*"))) == size, f"{size} in step {at}"
            )
            processes.kill()
            assert processes.codes(SECONDS) == [-9] * size
            for file in tmp_path.glob("held-*"):
                file.unlink()
        else:
            assert processes.codes(SECONDS) == [0] * size, processes.said()
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_a_stalled_process_is_not_waited_for(
    launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """Where no step comes to an end, a process that was asked to stop leaves as it is,
    and the others with it.
    """
    patient = "from model_utils.run import interruption\ninterruption.PATIENCE = 0.5\n"
    stalled = HELD.format(module="fit", name="loss_and_gradients", at=6, ranks=(0,))
    place = [*PARTS, "--output_checkpoint", tmp_path / "run"]
    processes = launcher.start(
        2, "train_mace", *words, *place, folder=tmp_path, before=patient + stalled
    )
    wait_until(lambda: (tmp_path / "held-0").exists(), "the first in the step")
    processes.kill(signal.SIGTERM, 1)
    assert processes.codes(SECONDS) == [75, 75], processes.said()
    assert (
        checkpoint.read(tmp_path / "run" / "run_checkpoint.pt").content["train_state"]["step"] == 5
    )
