"""evaluate.py --physics: sound networks pass every check in both precisions, and each
planted fault fails its own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from simulation.conftest import METALS, written
from torch import Tensor, nn

from conftest import every
from dataloader.quantities import FORCES
from dataloader.structure import Structure
from model_utils import evaluate, model_loader
from model_utils.models import description as model_json
from model_utils.physics import checks
from model_utils.physics.checks import CHECKS
from model_utils.physics.records import CheckRecord, PhysicsReport
from model_utils.physics.subject import Subject
from model_utils.simulation.potential import Potential

ALL_ORDERS = {**METALS, "max_ell": 2, "hidden_irreps": "4x0e+4x1o", "atomic_inter_scale": 3.0}


def structure(atoms: Atoms, name: str) -> Structure:
    pbc = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    return Structure(
        atomic_numbers=atoms.numbers.astype("int64"),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=pbc,
        identifier=name,
        head="Default",
    )


def alloy() -> Atoms:
    atoms = bulk("Al", cubic=True)
    atoms.numbers[1] = 29
    return atoms


def structures() -> list[Structure]:
    slab = alloy()
    slab.pbc = [True, True, False]
    return [
        structure(molecule("H2O"), "water"),
        structure(alloy(), "alloy"),
        structure(slab, "slab"),
    ]


def subject(step: str = "fast", precision: str = "float64", **changes: object) -> Subject:
    dtype = getattr(torch, precision)
    description = model_json.parse(json.dumps({**ALL_ORDERS, **changes}), "test")
    torch.set_default_dtype(dtype)
    module = model_loader.build(description, dtype, seed=3)
    return Subject(
        network=model_loader.build_network(module, step, description),
        weights=model_loader.trainable(module),
        facts=description.facts(),
        dtype=dtype,
        device=torch.device("cpu"),
    )


def report(of: Subject) -> PhysicsReport:
    return checks.examined(of, structures())


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_sound_network_passes_all(precision: str) -> None:
    result = report(subject(precision=precision))
    assert [record for record in result.checks if not record.passed] == []
    assert {record.check for record in result.checks} == set(CHECKS)
    plain = result.as_plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["passed"], plain["precision"], len(plain["structures"])) == (True, precision, 3)
    assert {curve["pair"] for curve in plain["curves"]["dimers"]} == {
        "H–H",
        "H–O",
        "O–O",
        "Al–Al",
        "Al–Cu",
        "Cu–Cu",
    }


# ---- planted faults: a network that is wrapped


@dataclass
class Wrapped:
    """A network whose outputs are changed; ``change`` gets them with
    positions, shifts and batch.
    """

    inner: Any
    change: Callable[..., dict[str, Tensor]]
    gives: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.gives = self.inner.gives

    def prepared(self, batch: Any) -> Any:
        return self.inner.prepared(batch)

    def outputs(
        self, parameters: Any, batch: Any, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        return self.change(
            lambda p, s: self.inner.outputs(parameters, batch, p, s), batch, positions, shifts
        )


Inner = Callable[[Tensor, Tensor], dict[str, Tensor]]


def push(inner: Inner, batch: Any, positions: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    """Forces with a small part that is no slope: a turn around each next atom."""
    outputs = inner(positions, shifts)
    with torch.enable_grad():
        at = positions.detach().requires_grad_(True)
        forces = -torch.autograd.grad(inner(at, shifts.detach())["energy"].sum(), at)[0]
    turn = torch.linalg.cross(
        positions.detach(), torch.tensor([0.0, 0.0, 1.0]).to(positions).expand_as(positions)
    )
    return {**outputs, FORCES.name: forces + 0.05 * turn}


def stress_of_atoms_alone(
    inner: Inner, batch: Any, positions: Tensor, shifts: Tensor
) -> dict[str, Tensor]:
    """The strain of the cell does not enter."""
    return inner(positions, shifts.detach())


def absolute_place(
    inner: Inner, batch: Any, positions: Tensor, shifts: Tensor
) -> dict[str, Tensor]:
    """An energy that depends on the order of the atoms."""
    outputs = inner(positions, shifts)
    first = positions[batch.ptr[:-1].long()]
    second = positions[batch.ptr[:-1].long() + (batch.ptr.diff() > 1).long()]
    return {**outputs, "energy": outputs["energy"] + 1e-3 * ((first - second) ** 2).sum(dim=1)}


def not_extensive(inner: Inner, batch: Any, positions: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    outputs = inner(positions, shifts)
    return {**outputs, "energy": outputs["energy"] * (1 + 1e-4 * batch.ptr.diff())}


def no_number(inner: Inner, batch: Any, positions: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    outputs = inner(positions, shifts)
    return {**outputs, "energy": outputs["energy"] * float("nan")}


class OtherSign(nn.Module):
    """Spherical harmonics of which one has the wrong sign."""

    def __init__(self, inner: nn.Module, number: int) -> None:
        super().__init__()
        self.inner = inner
        self.number = number

    def forward(self, vectors: Tensor) -> Tensor:
        harmonics = self.inner(vectors)
        sign = torch.ones(harmonics.shape[1], dtype=harmonics.dtype)
        sign[self.number] = -1.0
        return harmonics * sign


class Ones(nn.Module):
    """A cutoff function that cuts nothing off before r_max."""

    def forward(self, lengths: Tensor) -> Tensor:
        return torch.ones_like(lengths)


def wrong_sign(number: int, precision: str) -> Subject:
    of = subject("reference", precision)
    module = of.network.module
    module.spherical_harmonics = OtherSign(module.spherical_harmonics, number)
    return of


def hard_cutoff(precision: str) -> Subject:
    of = subject("reference", precision)
    of.network.module.radial_embedding.cutoff_fn = Ones()
    return of


def wrapped(change: Callable[..., dict[str, Tensor]]) -> Callable[[str], Subject]:
    def make(precision: str) -> Subject:
        of = subject(precision=precision)
        return replace(of, network=Wrapped(of.network, change))

    return make


FAULTS: dict[str, tuple[Callable[[str], Subject], set[str]]] = {
    **{
        f"sign of harmonic {number}": (
            lambda precision, n=number: wrong_sign(n, precision),
            {"rotation"},
        )
        for number in (2, 4, 6, 8)
    },
    "hard cutoff": (hard_cutoff, {"smooth at r_max"}),
    "broken stress": (wrapped(stress_of_atoms_alone), {"stress as slope"}),
    "not conservative": (wrapped(push), {"forces as slopes", "NVE"}),
    "order of atoms": (wrapped(absolute_place), {"permutation"}),
    "size": (wrapped(not_extensive), {"extensivity"}),
    "no number": (wrapped(no_number), {"rotation", "forces as slopes", "dimers", "NVE"}),
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(fault: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, must_fail = FAULTS[fault]
    monkeypatch.setattr(checks, "CHECKS", {name: CHECKS[name] for name in must_fail})
    result = report(make(precision))
    assert {record.check for record in result.failed} == must_fail, "\n".join(result.lines())
    assert json.dumps(result.as_plain(), allow_nan=False)


def sharp(inner: Inner, batch: Any, positions: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    """Besides, a sound energy that goes up and down along 0.03 Å, in which a step
    of the slopes is long.
    """
    vectors = positions[batch.receivers] - positions[batch.senders] + shifts
    wave = 0.01 * torch.sin(200.0 * torch.linalg.vector_norm(vectors, dim=1))
    outputs = inner(positions, shifts)
    return {
        **outputs,
        "energy": outputs["energy"].index_add(0, batch.structure[batch.receivers], wave),
    }


def test_the_steps_of_slopes_are_short_enough_for_sharp_energies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deep networks, and those of many radial functions, were refused for the
    error of one long step.
    """
    kept = ("forces as slopes", "stress as slope")
    monkeypatch.setattr(checks, "CHECKS", {name: CHECKS[name] for name in kept})
    result = report(wrapped(sharp)("float64"))
    assert not result.failed, "\n".join(result.lines())


# ---- which structures


def test_one_of_every_periodicity_is_taken_before_more_of_one() -> None:
    crystals = [structure(bulk("Al"), f"crystal {k}") for k in range(3)]
    picked = checks._different([*crystals, *structures()], 3)
    assert [s.identifier for s in picked] == ["crystal 0", "water", "slab"]


# ---- the command


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("physics") / "test.xyz"
    frames = [molecule("H2O"), alloy()]
    for atoms in frames:
        atoms.info["REF_energy"] = -1.0 * len(atoms)
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
    write(path, frames, format="extxyz")
    return path


def test_the_command(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tmp_path, 1, max_ell=2)
    output = tmp_path / "errors.json"
    words = ["--input_model", str(model), "--xyz_path", str(labelled), "--output_json", str(output)]
    assert evaluate.main([*words, "--physics", "--physics_structures", "2"]) == 0
    content = json.loads(output.read_text())
    assert content["physics"]["passed"] is True
    assert content["physics"]["precision"] == "float64"
    assert "forces_rmse" in content
    shown = capsys.readouterr().out
    assert "all 23 checks passed" in shown


def test_a_failed_check_is_written_and_ends_with_3(
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = written(tmp_path, 1)
    output = tmp_path / "errors.json"
    words = ["--input_model", str(model), "--xyz_path", str(labelled), "--output_json", str(output)]
    outcome = replace(CHECKS["NVE"], measure=lambda *_: checks.Outcome(measured=[bad]))
    bad = checks.Measured(quantity="drift per atom", value=7.0, structure="water")
    monkeypatch.setattr(checks, "CHECKS", {"NVE": outcome})
    assert evaluate.main([*words, "--physics"]) == 3
    [record] = json.loads(output.read_text())["physics"]["checks"]
    assert (record["value"], record["bound"], record["passed"]) == (7.0, 0.5, False)
    captured = capsys.readouterr()
    assert "7.0e+00" in captured.out
    [line] = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert "1 of 1 checks FAILED: NVE (drift per atom)" in line


# ---- models that others made


SHARED = {
    "mace_mp/mace_mp_small.model": "mof/NaCl.cif",
    "solvent_xtb/mace01.model": "solvent_xtb/solvent_xtb_train_20.xyz",
    "mace_run/model_run-1234_swa.model": "mace_run/solvent_mace_test.xyz",
    "solvent_xtb/mace01_swa.model": "solvent_xtb/solvent_xtb_train_20.xyz",
}


@pytest.mark.shared
@pytest.mark.parametrize("model", every(2, list(SHARED)))
def test_models_of_others_pass(model: str, shared_data: Path) -> None:
    from ase.io import read

    potential = Potential.of_file(shared_data / model, dtype="float64")
    frames = [atoms for atoms in read(shared_data / SHARED[model], ":") if 1 < len(atoms) < 16]
    smallest = min(frames, key=len)
    of = Subject(
        network=potential.network,
        weights=potential.weights,
        facts=potential.facts,
        dtype=potential.dtype,
        device=potential.device,
    )
    [one] = [replace(structure(smallest, model), head=potential.head)]
    failed: list[CheckRecord] = checks.examined(of, [one]).failed
    assert failed == []
