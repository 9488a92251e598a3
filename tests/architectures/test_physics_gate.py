"""A network that breaks physics is named with the law and the number before anything is trained."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plugged import PAIRS, PAIRS_JSON, restored_tables  # noqa: F401
from torch import Tensor

from model_utils import plugins, resume, train_mace
from model_utils.models.architecture import ARCHITECTURES
from model_utils.models.seams import Form

Make = Callable[..., Path]
Outputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _pairs_are_known(restored_tables: None) -> None:  # noqa: F811
    plugins.load([PAIRS])


def turned(outputs: Outputs, batch: Any, positions: Tensor, shifts: Tensor) -> Outputs:
    """An energy of edges along x."""
    vectors = positions[batch.receivers] - positions[batch.senders] + shifts
    window = (1 - ((vectors**2).sum(dim=1) / 9.0)).clamp(min=0) ** 4
    return added(
        outputs, batch, batch.structure[batch.receivers], 0.1 * vectors[:, 0] ** 2 * window
    )


def hard_cutoff(outputs: Outputs, batch: Any, positions: Tensor, shifts: Tensor) -> Outputs:
    """An energy of every neighbour, which ends at the cutoff."""
    ones = torch.full_like(positions[batch.receivers, 0], 0.01)
    return added(outputs, batch, batch.structure[batch.receivers], ones)


def no_slope(outputs: Outputs, batch: Any, positions: Tensor, shifts: Tensor) -> Outputs:
    """Forces with a part that no energy has: a constant one, opposite for the first two atoms."""
    constant = torch.zeros_like(positions)
    constant[batch.ptr[:-1].long()] = 0.1
    return {**outputs, "forces": constant}


def needs_neighbours(outputs: Outputs, batch: Any, positions: Tensor, shifts: Tensor) -> Outputs:
    """A library that fails where an atom has none."""
    counts = torch.bincount(batch.receivers, minlength=len(positions))
    if int(counts.min()) == 0:
        raise IndexError("index 0 is out of bounds for dimension 0 with size 0")
    return outputs


def mixed_batch(outputs: Outputs, batch: Any, positions: Tensor, shifts: Tensor) -> Outputs:
    """Every structure has a little of the others' energy."""
    return {**outputs, "energy": outputs["energy"] + 1e-3 * outputs["energy"].mean()}


def fixed_in_space(outputs: Outputs, batch: Any, positions: Tensor, shifts: Tensor) -> Outputs:
    """An energy of the place in space."""
    return added(outputs, batch, batch.structure, 1e-3 * positions[:, 0] ** 2)


def added(outputs: Outputs, batch: Any, index: Tensor, amounts: Tensor) -> Outputs:
    more = amounts.new_zeros(batch.n_structures).index_add(0, index, amounts)
    return {**outputs, "energy": outputs["energy"] + more}


REFUSED: dict[str, tuple[Callable[..., Outputs], str]] = {
    "forces": (no_slope, r"forces as slopes: forces off by [1-9]\.\de-0[12] eV/Å in \w+"),
    "isolated atom": (needs_neighbours, "isolated atoms: IndexError: index 0 is out of bounds"),
    "batch": (mixed_batch, r"batches: energy per atom off by \d"),
    "place": (fixed_in_space, r"translation: energy per atom off by \d"),
}
WARNED: dict[str, tuple[Callable[..., Outputs], str]] = {
    "turned": (turned, r"rotation: energy per atom off by \d\.\de-\d\d eV in "),
    "hard cutoff": (hard_cutoff, r"smooth at r_max: energy jump off by 2\.0e-02 eV in "),
}


@pytest.fixture
def train(water_xyz: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS_JSON))
    family = ARCHITECTURES["Pairs"]
    sound = family.forms["reference"]

    def go(change: Callable[..., Outputs] | None, *flags: str) -> int:
        def network(module: Any, description: Any) -> Any:
            inner = sound.network(module, description)
            if change is not None:
                outputs = inner.outputs
                inner.outputs = lambda parameters, batch, positions, shifts: change(  # type: ignore[method-assign]
                    outputs(parameters, batch, positions, shifts), batch, positions, shifts
                )
                inner.gives = frozenset({"energy", "dipole"})
            return inner

        monkeypatch.setattr(family, "forms", {"reference": replace(sound, network=network)})
        words = [
            "--input_json",
            str(tmp_path / "pairs.json"),
            "--xyz_train",
            str(water_xyz("train.xyz", 4)),
        ]
        words += ["--xyz_val", str(water_xyz("val.xyz", 2, seed=1)), "--max_steps", "1"]
        return train_mace.main([*words, "--output_checkpoint", str(tmp_path / "run"), *flags])

    assert isinstance(sound, Form)
    return go


def test_a_sound_network_is_trained_and_examined_once(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(None) == 0
    assert (
        "physics of Pairs: all laws hold to rounding in float64 (forces as slopes,"
        in capfd.readouterr().out
    )
    assert resume.main(["--input_model", str(tmp_path / "run"), "--max_steps", "2"]) == 0
    assert "physics of Pairs" not in capfd.readouterr().out


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_that_spoils_every_result_is_refused_with_its_number(
    fault: str, train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, words = REFUSED[fault]
    assert train(change) == 3
    said = capfd.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith("error: Pairs breaks laws of physics with its first weights: ")
    assert_said(words, said)
    assert not (tmp_path / "run" / "run_checkpoint.pt").exists()
    # the check of what will be written does not meet such an atom, a batch may
    if fault != "isolated atom":
        assert train(change, "--physics_gate", "warn") == 0
        assert_said(f"warning: physics of Pairs: {words}", capfd.readouterr().out)


@pytest.mark.parametrize("fault", WARNED)
def test_a_fault_that_people_live_with_is_warned_of_with_its_number(
    fault: str, train: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    change, words = WARNED[fault]
    assert train(change) == 0
    assert_said(f"warning: physics of Pairs: {words}", capfd.readouterr().out)
    assert train(change, "--physics_gate", "off", "--overwrite") == 0
    assert "physics of Pairs" not in capfd.readouterr().out


def assert_said(words: str, text: str) -> None:
    assert re.search(words, text), text
