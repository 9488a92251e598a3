"""A run is the same bit for bit, however many processes computed it:
checkpoint, best model, metrics.
"""

from collections.abc import Mapping
from pathlib import Path

import covering
import pytest
import torch

from conftest import LONG
from ranks.launching import Launcher, differences, state_of

AXES: dict[str, dict[str, list[str]]] = {
    "ema": {"off": [], "on": ["--ema"]},
    "schedule": {
        "plateau": [
            "--scheduler_patience",
            "0",
            "--lr_factor",
            "0.5",
            "--validate_every_steps",
            "1",
        ],
        "cosine": ["--scheduler", "cosine", "--scheduler_unit", "step", "--patience", "3"],
    },
    "stages": {
        "weights_by_epoch": [
            "--weight_schedule",
            "energy=linear:0=1,1=25",
            "--loss_units",
            "spread",
            "--keep_best",
            "1",
        ],
        "two": ["--stage_two", "--start_stage_two", "1"],
    },
    "data": {"waters": [], "lmdb": [], "boxes": ["--stress_weight", "1"]},
    "workers": {"none": [], "two": ["--num_workers", "2"]},
    "batches": {"structures": ["--batch_size", "3"], "edges": ["--max_edges_per_batch", "90"]},
    "accumulate": {"one": [], "two": ["--accumulate_batches", "2"]},
}
CASES = covering.pairwise(AXES)


def test_the_covering_array_is_small() -> None:
    assert len(CASES) <= 12


@pytest.mark.parametrize(
    "case", CASES if LONG else CASES[::3], ids=lambda case: "-".join(case.values())
)
def test_any_number_of_processes_gives_the_same_run(
    case: Mapping[str, str], launcher: Launcher, material: Path, tmp_path: Path
) -> None:
    flags = [flag for axis, value in case.items() for flag in AXES[axis][value]]
    kind = "lmdb" if case["data"] == "lmdb" else "xyz"
    for part, role in (("train", "train"), ("valid", "val")):
        flags += [f"--{kind}_{role}", str(material / f"{case['data']}-{part}.{kind}")]
    network = ["--input_json", material / "tiny.json", "--epochs", 2, "--step_parts", 4]
    for size in (1, 2, 4):
        launcher.run(
            size,
            "train_mace",
            *network,
            *flags,
            "--output_checkpoint",
            tmp_path / str(size),
            folder=tmp_path,
        )
    assert differences(tmp_path / "1", tmp_path / "2") == []
    assert differences(tmp_path / "1", tmp_path / "4") == []


def test_one_process_deals_nothing_unless_asked(
    launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """By default a single process computes whole batches; another number of parts is
    said not to be bitwise.
    """
    place = ["--output_checkpoint", tmp_path / "run"]
    alone = launcher.run(1, "train_mace", *words, *place, "--max_steps", 2, folder=tmp_path)
    assert "dealt" not in alone.said()
    going_on = [*words, *place, "--resume", "auto"]
    both = launcher.run(2, "train_mace", *going_on, "--max_steps", 4, folder=tmp_path)
    assert "not bitwise: step parts 1 → 8" in both.said()
    kept = launcher.run(1, "train_mace", *going_on, "--max_steps", 6, folder=tmp_path)
    assert "a step is dealt to 8 parts" in kept.said()
    assert "not bitwise" not in kept.said()
    given = launcher.run(
        3, "train_mace", *going_on, "--step_parts", 8, "--max_steps", 8, folder=tmp_path
    )
    assert "not bitwise: step parts 8 → 9" in given.said(), (
        "three do not divide what the job file says"
    )


def test_another_number_of_parts_differs_by_rounding_alone(
    launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """Whole runs in float64, weights relative to each tensor's largest."""
    for parts, size in ((1, 1), (3, 1), (4, 2)):
        place = [
            "--output_checkpoint",
            tmp_path / str(parts),
            "--step_parts",
            parts,
            "--dtype",
            "float64",
            "--ema",
        ]
        launcher.run(size, "train_mace", *words, *place, folder=tmp_path)
    undivided = _weights(tmp_path / "1")
    for parts in (3, 4):
        dealt = _weights(tmp_path / str(parts))
        errors = [
            float((dealt[name] - whole).abs().max() / whole.abs().max())
            for name, whole in undivided.items()
        ]
        assert 0 < max(errors) < 1e-9, max(errors)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has learned, by name."""
    values = {
        name: value
        for name, value in state_of(folder).items()
        if name.startswith("checkpoint.tensors")
    }
    return {
        name: value for name, value in values.items() if value.is_floating_point() and value.any()
    }
