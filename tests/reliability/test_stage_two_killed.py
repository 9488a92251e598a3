"""A kill where stage two begins: the best model of stage one is kept, and the end is
that of the unbroken run.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.run.fit_plan import Stage
from model_utils.run.folder.run_files import RunFiles
from model_utils.run.train_state import TrainState
from model_utils.tasks.same_bits import differences
from reliability.conftest import amount

KILLED = 137
Train = Callable[..., Path]
Act = Callable[..., Any]


def at_its_begin(act: Act) -> Act:
    def die(*_: Any) -> None:
        os._exit(KILLED)

    return die


def when_it_is_done(act: Act) -> Act:
    def act_and_die(*arguments: Any, **names: Any) -> None:
        act(*arguments, **names)
        os._exit(KILLED)

    return act_and_die


def in_its_first_best_model(act: Act) -> Act:
    """That is on the disk, and no checkpoint of stage two yet."""

    def act_and_be_ready(self: RunFiles, state: TrainState, stage: Stage) -> None:
        act(self, state, stage)
        self.writer.save_best = when_it_is_done(self.writer.save_best)  # type: ignore[method-assign]
        self.writer.save_checkpoint = lambda *_: None  # type: ignore[method-assign]

    return act_and_be_ready


@pytest.mark.parametrize(
    "moment", [at_its_begin, when_it_is_done, in_its_first_best_model][: amount(1, 3)]
)
@pytest.mark.parametrize("every", ["1", "2"])
def test_killed_where_stage_two_begins(
    every: str, moment: Callable[[Act], Act], train: Train, tmp_path: Path
) -> None:
    """With a validation after every epoch, and with one that belongs to the end of the stage."""
    flags = [
        "--batch_size",
        "4",
        "--stage_two",
        "--start_stage_two",
        "1",
        "--ema",
        "--checkpoint_every_steps",
        "3",
        "--validate_every",
        every,
    ]
    whole, broken = train("whole/run", *flags), tmp_path / "run"
    child = os.fork()
    if child == 0:
        RunFiles.on_stage = moment(RunFiles.on_stage)  # type: ignore[method-assign]
        train("run", *flags)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    train("run", *flags, "--resume", "auto")
    outputs = [Outputs.named(folder / "run_checkpoint.pt", None) for folder in (whole, broken)]
    assert differences(*outputs) == []
    kept = [checkpoint.read(place.stage_one_model) for place in outputs]
    assert checkpoint.digest(kept[0].tensors) == checkpoint.digest(kept[1].tensors)
    assert kept[0].content["step"] == kept[1].content["step"] <= 4
