"""A run is the same bit for bit, however many processes computed it: checkpoint, best model, metrics."""

from pathlib import Path

import pytest

from ranks.launching import Launcher, differences

SETTINGS = [
    ("--ema",),
    ("--ema", "--stage_two", "--start_stage_two", "1", "--patience", "5"),
    ("--max_edges_per_batch", "40", "--validate_every_steps", "3", "--num_workers", "1"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[-2] if len(setting) > 1 else setting[0])
def test_any_number_of_processes_gives_the_same_run(
    setting: tuple[str, ...], launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    for size in (1, 2, 4):
        place = ["--output_checkpoint", tmp_path / str(size), "--step_parts", 4]
        launcher.run(size, "train_mace", *words, *place, *setting, folder=tmp_path)
    assert differences(tmp_path / "1", tmp_path / "2") == []
    assert differences(tmp_path / "1", tmp_path / "4") == []
