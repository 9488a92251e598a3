"""Networks of other libraries through the real commands: trained, killed, resumed, tuned,
judged, used, refused.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from ranks import launching
from ranks.launching import Launcher
from reliability.test_killed_commands import kill_in_step

import read_model
from architectures.networks import SMALL, each, fields_of, needs
from conftest import in_the_battery, waters
from model_utils import evaluate, finetune, md, relax, resume, train_mace
from model_utils.calculator import Calculator
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.tasks.same_bits import differences

Make = Callable[..., Path]


@pytest.fixture
def words(water_xyz: Make, tmp_path: Path) -> Callable[[str], list[str]]:
    """Words of a training of two steps an epoch."""
    data = [
        "--xyz_train",
        str(water_xyz("train.xyz", 8)),
        "--xyz_val",
        str(water_xyz("val.xyz", 3, seed=1)),
    ]

    def of(name: str) -> list[str]:
        (tmp_path / "network.json").write_text(json.dumps(fields_of(name)))
        return [
            "--input_json",
            str(tmp_path / "network.json"),
            *data,
            "--batch_size",
            "4",
            "--ema",
            "--threads",
            "1",
        ]

    return of


def outputs(folder: Path) -> Outputs:
    return Outputs.named(folder / f"{folder.name}_checkpoint.pt", None)


@pytest.mark.parametrize("name", each(SMALL))
def test_it_trains_resumes_bit_for_bit_is_judged_and_tuned(
    name: str, words: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder, epochs in (("whole", "4"), ("parts", "2")):
        assert (
            train_mace.main(
                [*words(name), "--epochs", epochs, "--output_checkpoint", str(tmp_path / folder)]
            )
            == 0
        )
    said = capfd.readouterr().out
    assert f"physics of {name}: all laws hold to rounding in float64" in said
    assert (
        f"step: reference, since the fast one does not cover this network: there is none for {name}"
        in said
    )
    assert resume.main(["--input_model", str(tmp_path / "parts"), "--epochs", "4"]) == 0
    assert "not bitwise" not in capfd.readouterr().out
    first, second = (
        checkpoint.read(outputs(tmp_path / folder).checkpoint) for folder in ("whole", "parts")
    )
    assert all(torch.equal(second.tensors[key], tensor) for key, tensor in first.tensors.items())
    assert not (tmp_path / "whole" / "whole.model").exists(), "mace's calculator has no use for it"

    model = outputs(tmp_path / "whole").model
    data = ["--xyz_path", str(tmp_path / "val.xyz"), "--output_json", str(tmp_path / "errors.json")]
    assert evaluate.main(["--input_model", str(model), *data]) == 0
    records = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    errors = [record["forces_rmse"] for record in records if record["kind"] == "valid"]
    assert json.loads((tmp_path / "errors.json").read_text())["forces_rmse"] == pytest.approx(
        min(errors), rel=1e-4
    )

    tuning = [
        "--input_model",
        str(model),
        "--xyz_train",
        str(tmp_path / "train.xyz"),
        "--max_steps",
        "1",
    ]
    tuning += [
        "--xyz_val",
        str(tmp_path / "val.xyz"),
        "--output_checkpoint",
        str(tmp_path / "tuned"),
    ]
    assert finetune.main([*tuning, "--E0s", "shift"]) == 0
    assert (
        "step 0: energies and forces of 8 structures are the source's to" in capfd.readouterr().out
    )
    assert finetune.main([*tuning, "--overwrite", "--add_head", "more"]) == 2
    assert "has one head, found 2 (Default, more)" in capfd.readouterr().err
    for form in ("lammps", "mliap", "module"):
        convert = [
            "convert",
            "--input_model",
            str(model),
            "--to",
            form,
            "--output",
            str(tmp_path / "x.pt"),
        ]
        assert read_model.main(convert) == 2
        assert (
            f"--to {form}: there is no such form of {name}; there is safetensors"
            in capfd.readouterr().err
        )


@pytest.fixture
def trained(words: Callable[[str], list[str]], tmp_path: Path) -> Path:
    flags = ["--epochs", "2", "--dtype", "float64", "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main([*words("PaiNN"), *flags]) == 0
    return outputs(tmp_path / "run").model


@needs("PaiNN")
def test_it_is_used_converted_and_narrowed(trained: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    assert (
        read_model.main(["export", "--input_model", str(trained), "--output_json", str(made)]) == 0
    )
    assert made.read_text() == (tmp_path / "run" / "run_model.json").read_text()
    assert read_model.main(["show", "--input_model", str(trained)]) == 0
    tensors = tmp_path / "x.safetensors"
    plain = [
        "convert",
        "--input_model",
        str(trained),
        "--to",
        "safetensors",
        "--output",
        str(tensors),
    ]
    assert read_model.main(plain) == 0
    water = waters(1)[0]
    for path in (trained, tensors):
        water.calc = Calculator(path)
        energy = water.get_potential_energy()
        forces = water.get_forces()
        assert water.get_potential_energies().sum() == pytest.approx(energy, abs=1e-8)
        moved = water.copy()
        moved.positions[0, 0] += 1e-4
        moved.calc = Calculator(trained)
        assert (moved.get_potential_energy() - energy) / 1e-4 == pytest.approx(
            -forces[0, 0], abs=1e-2
        )
    data = ["--input_model", str(trained), "--data", str(tmp_path / "val.xyz")]
    assert relax.main([*data, "--output_dir", str(tmp_path / "relaxed"), "--max_steps", "2"]) in (
        0,
        2,
    )
    steps = ["--index", "0", "--ensemble", "nve", "--n_steps", "4", "--timestep", "0.2"]
    assert md.main([*data, "--output_dir", str(tmp_path / "dynamics"), *steps]) == 0

    oxygen = tmp_path / "oxygen.xyz"
    pair = Atoms("OO", positions=[[0, 0, 0], [0, 0, 1.3]])
    pair.info["REF_energy"] = -860.5
    pair.arrays["REF_forces"] = np.zeros((2, 3))
    pair.write(oxygen, format="extxyz")
    tuning = [
        "--input_model",
        str(trained),
        "--xyz_train",
        str(oxygen),
        "--xyz_val",
        str(oxygen),
        "--max_steps",
        "1",
    ]
    assert (
        finetune.main([*tuning, "--elements", "O", "--output_checkpoint", str(tmp_path / "narrow")])
        == 0
    )
    assert json.loads((tmp_path / "narrow" / "narrow_model.json").read_text())[
        "atomic_numbers"
    ] == [8]
    assert len(read(oxygen)) == 2


@pytest.mark.parametrize(
    "name",
    [
        case
        if case.id == "PaiNN"
        else pytest.param(*case.values, marks=[*case.marks, in_the_battery])
        for case in (pytest.param(name, marks=needs(name), id=name) for name in SMALL)
    ],
)
def test_killed_with_kill_9_it_ends_as_the_unbroken_run(
    name: str, words: Callable[[str], list[str]], tmp_path: Path
) -> None:
    flags = [*words(name), "--epochs", "3", "--checkpoint_every_steps", "1", "--resume", "auto"]
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "whole" / "run")]) == 0
    broken = [*flags, "--output_checkpoint", str(tmp_path / "broken" / "run")]
    kill_in_step(4, broken, tmp_path / "reached")
    assert train_mace.main(broken) == 0
    both = (
        Outputs.named(tmp_path / place / "run" / "run_checkpoint.pt", None)
        for place in ("whole", "broken")
    )
    assert differences(*both) == []


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    server = Launcher()
    yield server
    server.close()


@needs("PaiNN")
def test_two_processes_give_the_bits_of_one(
    launcher: Launcher, words: Callable[[str], list[str]], tmp_path: Path
) -> None:
    flags = [*words("PaiNN"), "--epochs", "2", "--step_parts", "2"]
    for size in (1, 2):
        place = ["--output_checkpoint", tmp_path / str(size)]
        launcher.run(size, "train_mace", *flags, *place, folder=tmp_path)
    assert launching.differences(tmp_path / "1", tmp_path / "2") == []
