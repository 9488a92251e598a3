"""A run that goes on by its own command has the settings that it began with: whatever the command
says otherwise, or no longer says, is refused by name.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model_utils import train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.run.beginnings import resuming
from model_utils.settings import reading
from model_utils.settings.declared import FIXED, declared
from model_utils.settings.options import TrainOptions

ARGV = ["--input_json", "m.json", "--xyz_train", "a.xyz", "--output_checkpoint", "run"]
VALUES: dict[str, Any] = {  # of every fixed option that may be left out
    "dtype": "float64",
    "max_atoms": 40,
    "max_force": 3.0,
    "energy_key": "dft",
    "forces_key": "dft_forces",
    "stress_key": "none",
    "charge_key": "none",
    "spin_key": "none",
    "lmdb_train_samples": 5,
    "lmdb_val_samples": 5,
    "head": "Default",
    "batch_size": 2,
    "max_atoms_per_batch": 100,
    "max_edges_per_batch": 1000,
    "stress_weight": 10.0,
    "energy_loss": "mae",
    "forces_loss": "huber",
    "stress_loss": "huber",
    "start_stage_two": 5,
    "stage_two_stress_weight": 2.0,
    "validate_every_steps": 10,
    "scheduler_length": 100,
    "network": {"r_max": 4.0},
}


def options(**settings: Any) -> TrainOptions:
    """Settings of a training; the others as they are by default."""
    plain = {**reading.as_plain(parsed()), **settings}
    return reading.from_plain(TrainOptions, plain, Path("test"))


def parsed() -> TrainOptions:
    found = reading.parse(TrainOptions, ARGV)
    assert found is not None
    return found


def refused(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What is said where a run with some settings goes on with others."""
    config = {**reading.as_plain(parsed()), **before}
    stored = SimpleNamespace(config=config, path="run_checkpoint.pt", dtype=torch.float64)
    try:
        resuming.refuse_contradictions(stored, options(**now))  # type: ignore[arg-type]
    except InputError as error:
        return str(error)
    return None


def test_every_option_that_may_be_left_out_has_a_case() -> None:
    fixed = [o.name for o in declared(TrainOptions) if o.nature is FIXED and o.default is None]
    assert set(fixed) == set(VALUES)


# the network is compared as a model.json
@pytest.mark.parametrize("name", [name for name in VALUES if name != "network"])
def test_what_is_left_out_or_added_is_refused(name: str) -> None:
    beside = {"stage_two": True} if "stage_two" in name else {}
    value = {**beside, name: VALUES[name]}
    assert refused(value, value) is None
    left_out = refused(value, beside)
    if name in resuming.HELD:
        assert left_out is None
    else:
        assert left_out is not None
        assert f"--{name} is left out, but the run of run_checkpoint.pt has" in left_out
    if name != "dtype":
        added = refused(beside, value)
        assert added is not None
        assert f"--{name} is " in added


@pytest.mark.parametrize(
    ("name", "usual"),
    [("batch_size", 10), ("forces_loss", "mse"), ("energy_loss", "mse"), ("stress_weight", 0.0)],
)
def test_a_default_may_be_written_out(name: str, usual: Any) -> None:
    assert refused({}, {name: usual}) is None
    assert refused({name: usual}, {}) is None


def test_a_budget_that_was_measured_stays() -> None:
    assert refused({"max_edges_per_batch": 5000}, {"max_edges_per_batch": "auto"}) is None
    assert "max_edges_per_batch" in str(refused({}, {"max_edges_per_batch": "auto"}))


def test_by_the_command(
    tiny_json: Path,
    water_xyz: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loss and the batches stay those of the run, and nothing is written."""

    def train(*words: object) -> int:
        data = ["--input_json", tiny_json, "--xyz_train", water_xyz("a.xyz", 8)]
        place = ["--valid_fraction", 0.25, "--output_checkpoint", tmp_path / "run"]
        own = [*data, *place, "--huber_delta", 0.05, "--no_export_mace_model", *words]
        return train_mace.main(list(map(str, own)))

    given = {"batch_size": 2, "forces_loss": "huber"}
    all_given = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert train(*all_given, "--epochs", 1) == 0
    path = tmp_path / "run/run_checkpoint.pt"
    before = path.read_bytes()
    for name, value in given.items():
        (other,) = given.keys() - {name}
        capsys.readouterr()
        assert train(f"--{name}", value, "--epochs", 2, "--resume", "auto") == 2
        assert f"--{other} is left out, but the run of" in capsys.readouterr().err
        assert path.read_bytes() == before
    assert train(*all_given, "--epochs", 2, "--resume", "auto") == 0
    assert checkpoint.read(path).content["train_state"]["epoch"] == 2
