"""What a training says, or refuses, before its first step: settings that change nothing, data
that count for nothing.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from conftest import TINY, waters
from model_utils import resume, train_mace

Said = Callable[..., str]
TWO_HEADS = {
    **TINY,
    "heads": ["pbe", "r2"],
    "atomic_energies": [[-13.6, -430.0]] * 2,
    "atomic_inter_scale": [1.0] * 2,
    "atomic_inter_shift": [0.0] * 2,
}


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """What a dry run on waters prints."""

    def go(
        *words: object,
        code: int = 0,
        fields: Mapping[str, object] = TINY,
        train: list[Atoms] | None = None,
        valid: list[Atoms] | None = None,
    ) -> str:
        (tmp_path / "m.json").write_text(json.dumps(fields))
        write(tmp_path / "t.xyz", train or waters(6), format="extxyz")
        write(tmp_path / "v.xyz", valid or waters(3, seed=1), format="extxyz")
        given = ["--input_json", tmp_path / "m.json", "--train_file", tmp_path / "t.xyz"]
        given += ["--valid_file", tmp_path / "v.xyz", "--output_checkpoint", tmp_path / "run"]
        given += ["--batch_size", 2, "--dry_run", *words]
        assert train_mace.main([str(word) for word in given]) == code
        return "".join(capsys.readouterr())

    return go


def test_what_the_best_model_is_chosen_by_has_labels(said: Said) -> None:
    words = "--best_metric stress_rmse: no structure of the validation data has a label of it"
    assert words in said("--best_metric", "stress_rmse", code=2)
    words = "--best_metric stress_rmse: no structure of head Default has a label of it"
    assert words in said("--best_metric", "stress_rmse", "--best_over", "heads", code=2)
    said("--best_metric", "energy_mae_cfg")
    said("--best_metric", "forces_rmse", "--best_over", "heads")


def test_a_run_that_goes_on_says_the_loss_of_its_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text(json.dumps(TINY))
    write(tmp_path / "t.xyz", waters(6), format="extxyz")
    given = ["--input_json", tmp_path / "m.json", "--train_file", tmp_path / "t.xyz"]
    given += ["--valid_fraction", 0.4, "--output_checkpoint", tmp_path / "run"]
    given += ["--stage_two", "--start_stage_two", 1, "--epochs", 3, "--max_steps"]
    for steps, loss in (
        (1, "loss: 1 E² + 100 F²"),
        (2, "loss of stage two: 1000 E² + 100 F²"),  # which is due now
        (3, "loss of stage two: 1000 E² + 100 F²"),
    ):
        words = [str(word) for word in (*given, steps, "--resume", "auto")]
        assert train_mace.main(words) == 0
        assert f"{loss}, means of errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--ema_decay 0.9", "--ema_decay is given and --ema is not: it changes nothing"),
        ("--ema --ema_decay 0.9", None),
        ("--stage_two_lr 0.5", "--stage_two_lr is given and --stage_two is not"),
        ("--stage_two_energy_weight 7", "--stage_two_energy_weight is given and --stage_two"),
        ("--stage_two --stage_two_energy_weight 7 --epochs 4", None),
        ("--stage_two --lr 1e-4 --epochs 4", "--stage_two_lr 0.001, a higher rate than --lr"),
        (
            "--stage_two --stage_two_energy_weight 7 --loss forces_only --epochs 4",
            "--stage_two_energy_weight 7 changes nothing: --loss forces_only has no weight of the "
            "energy to be chosen",
        ),
        ("--stage_two --stage_two_forces_weight 7 --loss ef --epochs 4", "changes nothing"),
        ("--stage_two --start_stage_two 4 --epochs 4", "stage 2 never starts: it begins after"),
        ("--stage_two --epochs 8 --max_steps 18", "ends after 6 epochs"),
        ("--stage_two --epochs 8 --max_steps 19", None),
        (
            "--stage_two --start_stage_two 9 --epochs 6 --patience 5",
            "the run ends after 6 epochs (--epochs, --max_steps), too soon for --patience 5 to run",
        ),
        ("--stage_two --start_stage_two 9 --epochs 6 --patience 4", None),
        ("--stage_two --start_stage_two 9 --epochs 6 --patience 2 --validate_every 2", "too soon"),
        ("--stage_two --start_stage_two 9 --epochs 6 --patience 1 --validate_every 2", None),
        (
            "--stage_two --start_stage_two 9 --epochs 6 --patience 5 --validate_every_steps 3",
            "too soon for --patience 5",
        ),
        ("--stage_two --start_stage_two 9 --epochs 6 --patience 4 --validate_every_steps 3", None),
        ("--stage_two --start_stage_two 5 --epochs 6 --patience 50", None),
        ("--warmup 5 --epochs 4", "the rate never reaches --lr 0.01"),
        ("--warmup 5 --scheduler_unit step --epochs 4", None),
        ("--warmup 12 --scheduler_unit step --epochs 4", "the run of 12 steps"),
        (
            "--min_lr 0.01 --scheduler cosine",
            "--min_lr 0.01 is not below --lr 0.01: --scheduler cosine does not lower the",
        ),
        ("--min_lr 1e-3 --lr 1e-4", "--min_lr 0.001 is not below --lr 0.0001: --scheduler plateau"),
        ("--min_lr 1e-3", None),
        (
            "--validate_every 2 --validate_every_steps 3",
            "--validate_every 2 changes nothing: --validate_every_steps 3 takes its place",
        ),
        ("--validate_every_steps 3", None),
        (
            "--stage_two --epochs 4 --stage_two_lr 0.002 --stage_two_follows_schedule",
            "--stage_two_lr 0.002 changes nothing: with --stage_two_follows_schedule",
        ),
        ("--stage_two --epochs 4 --stage_two_follows_schedule", None),
        ("--stage_two --epochs 4 --stage_two_lr 0.002", None),
        (
            "--min_lr 1e-3 --scheduler constant",
            "--min_lr 0.001 changes nothing: --scheduler constant",
        ),
        (
            "--lr_of *=0.001 readouts.*=0.01",
            "--lr_of readouts.*=0.01 changes nothing: all its parameters have the rate of *",
        ),
        ("--lr_of readouts.*=0.01 *=0.001", None),
        ("--huber_delta 0.1", "--huber_delta 0.1 changes nothing: no term of the loss has a Huber"),
        ("--huber_delta 0.1 --forces_loss huber", None),
        ("--huber_delta 0.1 --loss universal", None),
        ("--valid_fraction 0.3", "--valid_fraction 0.3 changes nothing: the validation structures"),
    ],
)
def test_settings_that_change_nothing(said: Said, words: str, sentence: str | None) -> None:
    text = said(*words.split())
    if sentence is None:
        assert "warning" not in text
    else:
        assert sentence in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--loss huber", "goes on with --loss huber; mace-torch takes weighted there"),
        ("--loss weighted", None),
        ("--loss stress", "the stress weight of stage one, 1; mace-torch has 10 there"),
        ("--loss stress --stage_two_stress_weight 1", None),
    ],
)
def test_a_second_stage_that_mace_has_otherwise(
    said: Said, words: str, sentence: str | None
) -> None:
    frames = [*waters(4)]
    for atoms in frames:
        atoms.cell, atoms.pbc = [9.0] * 3, True
        atoms.info["REF_stress"] = np.zeros(6)
    text = said("--stage_two", *words.split(), train=frames, valid=frames)
    if sentence is None:
        assert "mace-torch" not in text
    else:
        assert sentence in text


def test_a_file_whose_records_name_another_head(said: Said) -> None:
    frames = waters(6)
    for number, atoms in enumerate(frames):
        atoms.info["head"] = ("pbe", "r2")[number % 2]
    text = said("--head", "r2", fields=TWO_HEADS, train=frames)
    assert "t.xyz: 3 of 6 structures name another head than r2, which is given" in text
    assert "v.xyz" not in text.partition("name another head")[2].partition("\n")[0]
    assert "name another head" not in said(fields=TWO_HEADS, train=frames, valid=frames)


def test_the_head_that_all_records_of_a_file_replace_is_no_warning(said: Said) -> None:
    """It need not have been meant for the file."""
    frames = waters(6)
    for atoms in frames:
        atoms.info["head"] = "pbe"
    text = said("--head", "r2", fields=TWO_HEADS, train=frames)
    assert "t.xyz: 6 of 6 structures name another head than r2, and keep theirs" in text
    assert text.count("name another head") == 1


def test_an_element_whose_energy_a_head_lacks(said: Said) -> None:
    """Where all E0s are 0 nobody takes them for those of atoms."""
    lacking = {**TWO_HEADS, "atomic_energies": [[-13.6, -430.0], [-13.6, 0.0]]}
    first, second = waters(6), waters(3)
    for head, frames in (("pbe", first), ("r2", second)):
        for atoms in frames:
            atoms.info["head"] = head
    sentence = "structures of head r2 have O, whose E0 is 0 eV there, which says nothing"
    assert f"validation {sentence}" in said(fields=lacking, train=first, valid=second)
    assert f"training {sentence}" in said(fields=lacking, train=[*first, *second], valid=first)
    assert "whose E0 is 0" not in said(fields=lacking, train=first, valid=first)
    nothing = {**TWO_HEADS, "atomic_energies": [[-13.6, -430.0], [0.0, 0.0]]}
    assert "whose E0 is 0" not in said(fields=nothing, train=first, valid=second)


def test_a_pattern_has_one_rate(said: Said) -> None:
    text = said("--lr_of", "readouts.*=0.001", "readouts.*=0.01", code=2)
    assert "--lr_of names readouts.* twice" in text


def test_a_run_that_is_made_shorter_than_its_first_stage_says_so(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said("--no_dry_run", "--epochs", 8, "--stage_two", "--max_steps", 3, "--no_export_mace_model")
    run = ["--input_model", str(tmp_path / "run")]
    assert resume.main([*run, "--epochs", "5", "--max_steps", "6"]) == 0
    text = "".join(capsys.readouterr())
    assert "stage 2 never starts: it begins after epoch 6, and the run ends after 2 epochs" in text


def weighing(frames: list[Atoms], **weights: float) -> list[Atoms]:
    for atoms in frames:
        atoms.info |= weights
    return frames


def test_weights_that_are_all_zero_are_refused(said: Said) -> None:
    nothing = weighing(waters(4), config_weight=0.0)
    assert "nothing would be learned" in said(train=nothing, code=2)
    assert "nothing would be learned" in said("--config_type_weights", "Default=0", code=2)
    assert "no model the best" in said(valid=nothing, code=2)
    said("--best_metric", "forces_rmse", valid=nothing)
    said(train=[*nothing, *waters(1)], valid=[*nothing, *waters(1)])
    of_energy = weighing(waters(4), config_energy_weight=0.0)
    assert "4 of 4 structures have energy of weight 0" in said(train=of_energy)
    assert "nothing would be learned" in said("--forces_weight", 0, train=of_energy, code=2)


def test_a_head_that_validation_does_not_have_is_named(said: Said) -> None:
    both = waters(6)
    for number, atoms in enumerate(both):
        atoms.info["head"] = ("pbe", "r2")[number % 2]
    one = [atoms for atoms in both if atoms.info["head"] == "pbe"]
    text = said(fields=TWO_HEADS, train=both, valid=one)
    assert "no validation structure is of head r2, which is trained" in text
    text = said("--best_over", "heads", fields=TWO_HEADS, train=both, valid=one)
    assert "the mean over heads (--best_over) is that of the others" in text
    assert "no validation structure" not in said(fields=TWO_HEADS, train=both, valid=both)
    assert "no validation structure" not in said(fields=TWO_HEADS, train=one, valid=one)
