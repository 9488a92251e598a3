"""mace-torch's networks of dipoles: its own numbers, trained, resumed, fine-tuned, judged,
converted, asked by ASE.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from lmdb_material import put
from mace.calculators import MACECalculator
from mace.modules import gate_dict, interaction_classes
from mace.modules.models import AtomicDipolesMACE, EnergyDipolesMACE
from plugged import restored_tables  # noqa: F401

import read_model
from conftest import every, waters
from dataloader import pack
from dataloader.errors import InputError
from dataloader.quantities import QUANTITIES
from losses import Loss, sum_names
from model_utils import evaluate, finetune, model_loader, resume, train_mace
from model_utils.calculator import Calculator
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.metrics import metrics
from model_utils.model_loader import PairWriter
from model_utils.models import description as model_json
from model_utils.models.mace_import import o3

# dipoles are a quantity once a network gives them
pytestmark = pytest.mark.usefixtures("restored_tables")

DIPOLES = {
    "model_class": "AtomicDipolesMACE",
    "r_max": 3.0,
    "atomic_numbers": [1, 8],
    "avg_num_neighbors": 2.0,
    "hidden_irreps": "4x0e+4x1o",
    "max_ell": 1,
    "correlation": 2,
    "radial_MLP": [8],
    "MLP_irreps": "4x1o",
}
BOTH = {
    **DIPOLES,
    "model_class": "EnergyDipolesMACE",
    "atomic_energies": {"H": -13.6, "O": -430.0},
    "MLP_irreps": "4x0e+4x1o",
}
KINDS = {"AtomicDipolesMACE": DIPOLES, "EnergyDipolesMACE": BOTH}
LOSSES = {"AtomicDipolesMACE": "dipole", "EnergyDipolesMACE": "energy_forces_dipole"}
# of mace's calculator
MODEL_TYPES = {"AtomicDipolesMACE": "DipoleMACE", "EnergyDipolesMACE": "EnergyDipoleMACE"}
CHARGES = {1: 0.35, 8: -0.7}


def dipolar(
    n: int, seed: int = 0, name: str = "REF_dipole", *, energies: bool = True
) -> list[Atoms]:
    """Waters with the dipoles of fixed charges, e·Å."""
    frames = waters(n, seed)
    for atoms in frames:
        atoms.info[name] = np.array([CHARGES[z] for z in atoms.numbers]) @ atoms.positions
        if not energies:
            del atoms.info["REF_energy"], atoms.arrays["REF_forces"]
    return frames


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for kind, fields in KINDS.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(fields))
    write(tmp_path / "train.xyz", dipolar(12), format="extxyz")
    write(tmp_path / "val.xyz", dipolar(4, 1), format="extxyz")
    write(tmp_path / "bare.xyz", dipolar(4, 2, "dipole", energies=False), format="extxyz")
    return tmp_path


def training(place: Path, kind: str, run: str, *more: str, dtype: str = "float64") -> list[str]:
    words = ["--input_json", f"{kind}.json", "--xyz_train", "train.xyz", "--xyz_val", "val.xyz"]
    paths = [str(place / word) if "." in word else word for word in words]
    place_of_run = ["--output_checkpoint", str(place / run)]
    return [*paths, *place_of_run, "--batch_size", "4", "--lr", "0.02", "--dtype", dtype, *more]


def theirs(fields: dict[str, object]) -> torch.nn.Module:
    """mace-torch's own network by its constructor, with random weights."""
    torch.manual_seed(3)
    cls = AtomicDipolesMACE if fields["model_class"] == "AtomicDipolesMACE" else EnergyDipolesMACE
    return cls(
        r_max=3.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=1,
        interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=2,
        hidden_irreps=o3.Irreps("4x0e+4x1o"),
        MLP_irreps=o3.Irreps(fields["MLP_irreps"]),
        avg_num_neighbors=2.0,
        atomic_numbers=[1, 8],
        correlation=2,
        gate=gate_dict["tanh"],
        atomic_energies=np.array([[-13.6, -430.0]]) if "atomic_energies" in fields else None,
        radial_MLP=[8],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_mace_gives_its_numbers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_default_dtype(torch.float64)
    module = theirs(KINDS[kind])
    torch.save(module, tmp_path / "their.model")
    of_mace = MACECalculator(
        models=[module], model_type=kind.replace("DipolesMACE", "DipoleMACE").replace("Atomic", "")
    )
    loaded = model_loader.load(tmp_path / "their.model")
    assert any("unit of its training data" in record.message for record in caplog.records)
    assert loaded.description.gate == "tanh"
    ours = Calculator(tmp_path / "their.model")
    crystal = Atoms(
        "OHH", [[0, 0, 0], [0.9, 0.1, 0], [0, 0.2, 0.9]], cell=3.1 * np.eye(3), pbc=True
    )
    for atoms in (*waters(3), Atoms("O"), crystal):
        mine = atoms.copy()
        mine.calc = ours
        atoms.calc = of_mace
        if atoms.pbc.any():
            with pytest.warns(UserWarning, match="known up to lattice vectors"):
                dipole = mine.get_dipole_moment()
        else:
            dipole = mine.get_dipole_moment()
        np.testing.assert_allclose(
            dipole, of_mace.get_property("dipole", atoms), rtol=0, atol=1e-10
        )
        if kind == "EnergyDipolesMACE":
            assert mine.get_potential_energy() == pytest.approx(
                atoms.get_potential_energy(), abs=1e-10
            )
            np.testing.assert_allclose(mine.get_forces(), atoms.get_forces(), rtol=0, atol=1e-10)
    if crystal.calc is of_mace and kind == "EnergyDipolesMACE":
        np.testing.assert_allclose(mine.get_stress(), crystal.get_stress(), rtol=0, atol=1e-10)
    for form, ending in (("module", "model"), ("safetensors", "safetensors")):
        output = tmp_path / f"again.{ending}"
        assert (
            read_model.main(
                [
                    "convert",
                    "--input_model",
                    str(tmp_path / "their.model"),
                    "--to",
                    form,
                    "--output",
                    str(output),
                ]
            )
            == 0
        )
        again = Calculator(output)
        atoms = waters(1)[0]
        assert np.array_equal(
            again.get_property("dipole", atoms), ours.get_property("dipole", atoms)
        )
    capsys.readouterr()
    for form in ("lammps", "mliap"):
        words = [
            "convert",
            "--input_model",
            str(tmp_path / "their.model"),
            "--to",
            form,
            "--output",
            str(tmp_path / "x"),
        ]
        assert read_model.main(words) == 2
        assert f"--to {form}: there is no such form of {kind}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", every(2, list(KINDS)))
def test_trains_resumes_to_the_bit_and_is_judged(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--loss", LOSSES[kind], "--quantity_weights", "dipole=100", "--ema"]
    assert train_mace.main(training(place, kind, "whole", *words, "--epochs", "8")) == 0
    said = capsys.readouterr().out
    assert "dipole from REF_dipole" in said
    assert "D of dipole components per atom (e·Å)" in said
    assert train_mace.main(training(place, kind, "parts", *words, "--epochs", "3")) == 0
    assert resume.main(["--input_model", str(place / "parts"), "--epochs", "8"]) == 0
    whole = checkpoint.read(place / "whole" / "whole_checkpoint.pt")
    parts = checkpoint.read(place / "parts" / "parts_checkpoint.pt")
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in whole.tensors.items())
    records = [
        json.loads(line) for line in (place / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    errors = [record["dipole_rmse_per_atom"] for record in records if record["kind"] == "valid"]
    assert min(errors) < 0.5 * errors[0]

    model = str(place / "whole" / "whole_model.pt")
    outputs = ["--output_json", str(place / "e.json"), "--output_xyz", str(place / "p.xyz")]
    assert (
        evaluate.main(["--input_model", model, "--xyz_path", str(place / "val.xyz"), *outputs]) == 0
    )
    content = json.loads((place / "e.json").read_text())
    frames = read(place / "p.xyz", index=":")
    differences = [f.info["mace_dipole"] - f.info["REF_dipole"] for f in frames]
    of_atoms = np.array([d / len(f) for d, f in zip(differences, frames, strict=True)])
    assert content["dipole_rmse_per_atom"] == pytest.approx(np.sqrt((of_atoms**2).mean()), rel=1e-6)
    assert content["dipole_mae_cfg"] == pytest.approx(np.abs(differences).mean(), rel=1e-6)
    assert (content["forces_rmse"] is None) == (kind == "AtomicDipolesMACE")
    exported = Calculator(place / "whole" / "whole.model")
    for frame in frames:
        dipole = exported.get_property("dipole", frame)
        np.testing.assert_allclose(dipole, frame.info["mace_dipole"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", every(2, list(reversed(KINDS))))
def test_is_fine_tuned_from_its_own_numbers(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place / "train.xyz", dipolar(12, 3), format="extxyz")
    words = ["--loss", LOSSES[kind], "--epochs", "1", "--no_export_mace_model"]
    assert train_mace.main(training(place, kind, "first", *words, dtype="float32")) == 0
    capsys.readouterr()
    begin = ["--input_model", str(place / "first" / "first_model.pt")]
    flags = [*begin, *training(place, kind, "tuned", *words, dtype="float32")[2:]]
    assert finetune.main(flags) == 0
    assert "of 12 structures are the source's to" in capsys.readouterr().out
    if kind == "AtomicDipolesMACE":
        elsewhere = [*begin, *training(place, kind, "other", *words, "--E0s", "shift")[2:]]
        assert finetune.main(elsewhere) == 2
        assert "--E0s shift: AtomicDipolesMACE has no energies" in capsys.readouterr().err


def test_a_structure_with_a_dipole_alone_is_enough(place: Path) -> None:
    words = training(
        place,
        "AtomicDipolesMACE",
        "run",
        "--loss",
        "dipole",
        "--epochs",
        "1",
        "--no_export_mace_model",
    )
    words[words.index("--xyz_train") + 1] = str(place / "bare.xyz")
    assert train_mace.main(words) == 0


def saved(folder: Path, kind: str, seed: int = 1) -> Path:
    """A ``*_model.pt`` with random weights."""
    description = model_json.parse(json.dumps(KINDS[kind]), kind)
    outputs = Outputs.named(folder / f"{kind}{seed}_checkpoint.pt", None)
    module = model_loader.build(description, torch.float64, seed=seed)
    writer = PairWriter(outputs, description, module, {})
    errors = metrics([1.0] * len(sum_names()), Loss.of())
    writer.save_best(model_loader.trainable(module), weights="raw", epoch=1, step=1, metrics=errors)
    return outputs.model


REFUSED = {
    "energies of a network without": (
        [],
        "trains on energy, forces, and AtomicDipolesMACE gives dipole only",
    ),
    "a step": (
        ["--loss", "dipole", "--step", "cueq"],
        "--step cueq: there is no such form of AtomicDipolesMACE",
    ),
    "no label": (["--loss", "dipole", "--label_keys", "dipole=mu"], "mu"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_training_cannot_do_is_one_line(
    what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, said = REFUSED[what]
    assert train_mace.main(training(place, "AtomicDipolesMACE", "run", *flags)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in line


def test_a_plain_network_has_no_dipole(
    place: Path, tiny_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = training(place, "AtomicDipolesMACE", "run", "--quantity_weights", "dipole=1")
    words[1] = str(tiny_json)
    assert train_mace.main(words) == 2
    assert (
        "trains on dipole, and ScaleShiftMACE gives energy, forces, stress only"
        in capsys.readouterr().err
    )


def test_a_dipole_in_a_file_is_nothing_to_a_plain_network(
    place: Path, tiny_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even a broken one, or one in another unit."""
    frames = dipolar(4)
    for frame in frames:
        frame.info["dipole"] = "none"
        frame.info["dipole_unit"] = "furlong"
    write(place / "train.xyz", frames, format="extxyz")
    words = training(place, "AtomicDipolesMACE", "run", "--epochs", "1", "--no_export_mace_model")
    words[1] = str(tiny_json)
    assert train_mace.main(words) == 0
    assert "dipole from" not in capsys.readouterr().out
    assert "dipole" not in QUANTITIES


def test_debye_that_is_stated_is_converted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--input_model", str(saved(place, "AtomicDipolesMACE"))]
    errors = []
    for factor, unit in ((1.0, None), (1 / 0.20819433, "Debye")):
        frames = dipolar(4, energies=False)
        for frame in frames:
            frame.info["REF_dipole"] = factor * frame.info["REF_dipole"]
            if unit:
                frame.info["dipole_unit"] = unit
        write(place / "d.xyz", frames, format="extxyz")
        out = place / f"{unit}.json"
        assert (
            evaluate.main([*models, "--xyz_path", str(place / "d.xyz"), "--output_json", str(out)])
            == 0
        )
        errors.append(json.loads(out.read_text())["dipole_rmse_per_atom"])
    assert "dipole converted to e·Å: × 0.208194" in capsys.readouterr().out
    assert errors[1] == pytest.approx(errors[0], rel=1e-6)


def test_a_dipole_of_a_crystal_is_warned_of(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = dipolar(4, energies=False)
    for frame in frames:
        frame.cell = 8.0 * np.eye(3)
        frame.pbc = True
    write(place / "c.xyz", frames, format="extxyz")
    model = saved(place, "AtomicDipolesMACE")
    assert evaluate.main(["--input_model", str(model), "--xyz_path", str(place / "c.xyz")]) == 0
    assert (
        "a dipole of a periodic structure is known up to lattice vectors times e"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("charge", "is_said"), [(1, True), (-2.0, True), (0, False), (None, False)]
)
def test_that_a_dipole_of_an_ion_depends_on_the_origin_is_said(
    charge: float | None, is_said: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where charges are said not to matter: with the network's input they do not,
    with the labels they do.
    """
    frames = dipolar(4, energies=False)
    for frame in frames:
        if charge is not None:
            frame.info["charge"] = charge
    write(place / "ions.xyz", frames, format="extxyz")
    model = saved(place, "AtomicDipolesMACE")
    words = [
        "--input_model",
        str(model),
        "--xyz_path",
        str(place / "ions.xyz"),
        "--charge_key",
        "none",
    ]
    assert evaluate.main(words) == 0
    assert (
        "a dipole of a charged structure depends on the origin" in capsys.readouterr().out
    ) is is_said


def test_committees_of_one_kind(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atomic = [saved(place, "AtomicDipolesMACE", seed) for seed in (1, 2)]
    both = saved(place, "EnergyDipolesMACE")
    with pytest.raises(InputError, match="they are no committee; name models of one kind"):
        Calculator([atomic[0], both])
    words = ["--xyz_path", str(place / "val.xyz"), "--input_model"]
    assert evaluate.main([*words, str(atomic[0]), str(both)]) == 2
    assert "model_class EnergyDipolesMACE and AtomicDipolesMACE" in capsys.readouterr().err
    out = place / "p.xyz"
    assert evaluate.main([*words, *map(str, atomic), "--output_xyz", str(out)]) == 0
    assert "committee of 2: dipole rmse" in capsys.readouterr().out
    committee = Calculator(atomic)
    for frame in read(out, index=":"):
        committee.get_property("dipole", frame)
        np.testing.assert_allclose(
            frame.info["mace_dipole_std"], committee.results["dipole_std"], atol=1e-8
        )


def test_what_a_network_of_dipoles_cannot_be_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ase.calculators.calculator import PropertyNotImplementedError

    from model_utils import md

    model = saved(place, "AtomicDipolesMACE")
    atoms = waters(1)[0]
    atoms.calc = Calculator(model)
    with pytest.raises(PropertyNotImplementedError, match="energy"):
        atoms.get_potential_energy()
    dynamics = [
        "--data",
        str(place / "val.xyz"),
        "--output_dir",
        str(place / "m"),
        "--n_steps",
        "1",
    ]
    assert md.main(["--input_model", str(model), *dynamics, "--timestep", "1"]) == 2
    assert "gives dipole and no energies" in capsys.readouterr().err
    words = ["--input_model", str(model), "--xyz_path", str(place / "val.xyz")]
    assert evaluate.main([*words, "--physics"]) == 2
    assert "--physics checks energies, and the network gives dipole" in capsys.readouterr().err
    assert evaluate.main([*words, "--atom_energies", "--output_xyz", str(place / "q.xyz")]) == 2
    assert "which gives no energies of atoms" in capsys.readouterr().err


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no vectors": ({"hidden_irreps": "4x0e"}, "must begin with scalars and vectors"),
    "readout of scalars": ({"MLP_irreps": "16x0e"}, "expected 16x1o"),
    "energies": ({"atomic_energies": {"H": 1.0, "O": 2.0}}, "AtomicDipolesMACE has no energies"),
    "heads": ({"heads": ["a", "b"], "atomic_energies": [[0.0, 0.0]] * 2}, "has one head"),
    "scale": ({"atomic_inter_scale": 1.0}, "unknown field 'atomic_inter_scale'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_description_that_mace_would_build_otherwise(what: str) -> None:
    fields, said = WRONG[what]
    with pytest.raises(InputError, match=said):
        model_json.parse(json.dumps({**DIPOLES, **fields}), "m.json")


def test_a_description_has_one_text() -> None:
    short = model_json.parse(
        json.dumps({k: v for k, v in DIPOLES.items() if k != "MLP_irreps"}), "m.json"
    )
    assert short.MLP_irreps == "16x1o"
    assert short.atomic_energies == [[0.0, 0.0]]
    again = model_json.parse(short.canonical_text(), "m.json")
    assert again.hash() == short.hash()


def test_in_an_lmdb_and_packed_it_is_the_same(
    place: Path, tiny_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a network that does not know of dipoles has indexed the file before."""
    rows = {}
    for k, atoms in enumerate(dipolar(12)):
        record = {
            "pos": atoms.positions,
            "atomic_numbers": atoms.numbers,
            "dipole": atoms.info["REF_dipole"],
        }
        labels = {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
        rows[str(k).encode()] = pickle.dumps({**record, **labels})
    shard = put(place / "train.lmdb", rows)
    brief = [
        "--epochs",
        "1",
        "--no_export_mace_model",
        "--valid_file",
        str(shard),
        "--batch_size",
        "4",
    ]
    plain = [
        "--input_json",
        str(tiny_json),
        "--train_file",
        str(shard),
        "--output_checkpoint",
        str(place / "plain"),
    ]
    assert train_mace.main([*plain, *brief]) == 0
    assert "dipole" not in QUANTITIES
    packing = [
        "--input",
        str(shard),
        "--output_dir",
        str(place / "packed"),
        "--label_keys",
        "dipole=dipole",
    ]
    assert pack.main(packing) == 0
    results = []
    for name, data in (("xyz", place / "train.xyz"), ("lmdb", shard), ("packed", place / "packed")):
        words = [
            "--input_json",
            str(place / "AtomicDipolesMACE.json"),
            "--train_file",
            str(data),
            "--loss",
            "dipole",
        ]
        words += ["--dtype", "float64", "--output_checkpoint", str(place / name)]
        assert train_mace.main([*words, *brief]) == 0
        results.append(checkpoint.read(place / name / f"{name}_checkpoint.pt").tensors)
    assert "dipole from dipole" in capsys.readouterr().out
    for other in results[1:]:
        assert all(
            torch.allclose(tensor, other[name], rtol=0, atol=1e-7)
            for name, tensor in results[0].items()
        )
