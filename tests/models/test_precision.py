"""Whatever precision a model comes from and goes to: all that a run writes opens in every
command that takes it.
"""

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from torch import nn

import read_model
from conftest import LONG
from model_utils import evaluate, finetune, model_loader, resume, train_mace
from model_utils.errors import VerificationError
from model_utils.files import checkpoint
from model_utils.models import build
from model_utils.models import description as model_json
from model_utils.models.build import ENERGIES, SCALE
from model_utils.models.mace_import import _unsafe_loading_during_import
from model_utils.run import training

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
METALS = {  # no number of it is one of single precision
    "model_class": "ScaleShiftMACE",
    "r_max": 3.3,
    "atomic_numbers": [29, 79],
    "atomic_energies": {"Cu": 0.1234567891, "Au": -1.0987654321},
    "avg_num_neighbors": 12.1,
    "atomic_inter_scale": 1.1011446781,
    "atomic_inter_shift": 0.0123456789,
    "hidden_irreps": "4x0e+4x1o+4x2e",  # with couplings of e3nn among the tensors
    "max_ell": 2,
    "correlation": 2,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
    "distance_transform": "Agnesi",
    "pair_repulsion": True,
}


def metals(n: int, seed: int) -> list[Atoms]:
    """Rattled cells of four atoms, labelled by EMT."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        atoms = bulk("Cu", a=3.8, cubic=True)
        atoms.numbers[:] = rng.choice([29, 79], len(atoms))
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        frames.append(atoms)
    return frames


_prototypes: dict[tuple[str, torch.dtype], nn.Module] = {}


@pytest.fixture(autouse=True)
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is built once and copied from then on, in a tenth of the time; all
    weights are drawn or loaded.
    """
    real = build._built

    def built(
        description: model_json.ModelDescription,
        dtype: torch.dtype,
        where: str,
        **acceleration: object,
    ) -> nn.Module:
        key = (description.hash(), dtype)
        if key not in _prototypes:
            _prototypes[key] = real(description, dtype, where, **acceleration)
        return model_loader.copied(_prototypes[key])

    monkeypatch.setattr(build, "_built", built)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network's model.json and data."""
    folder = tmp_path_factory.mktemp("metals")
    (folder / "metals.json").write_text(json.dumps(METALS))
    write(folder / "train.xyz", metals(6, 1), format="extxyz")
    write(folder / "val.xyz", metals(2, 2), format="extxyz")
    return folder


@pytest.fixture
def source(material: Path) -> Callable[[str], Path]:
    """A model trained for an epoch in a precision, once per module."""

    def trained(precision: str) -> Path:
        folder = material / precision
        if not folder.exists():
            words = [
                "--input_json",
                str(material / "metals.json"),
                "--dtype",
                precision,
                "--no_export_mace_model",
            ]
            assert (
                train_mace.main([*words, *data(material), "--output_checkpoint", str(folder)]) == 0
            )
        return folder / f"{precision}_model.pt"

    return trained


def data(material: Path) -> list[str]:
    words = ["--xyz_train", str(material / "train.xyz"), "--xyz_val", str(material / "val.xyz")]
    return [*words, "--batch_size", "3", "--epochs", "2", "--lr", "1e-3", "--step", "reference"]


WHOLE = os.environ.get("PRECISION") == "full"  # every command on every file of every run
SHARE = 8  # else an eighth of them, another one in each run
GIVEN = '{"Cu": 0.3333333333}'
STAGES = ["--stage_two", "--start_stage_two", "1"]
RUNS = {  # precision of the source, of the run, --E0s, more
    "widened": ("float32", "float64", "keep", ["--ema"]),
    "widened, shifted": ("float32", "float64", "shift", STAGES),
    "widened, given": ("float32", "float64", GIVEN, ["--ema", *STAGES]),
    "narrowed": ("float64", "float32", "keep", STAGES),
    "narrowed, shifted": ("float64", "float32", "shift", ["--ema"]),
    "narrowed, given": ("float64", "float32", GIVEN, []),
}


@pytest.mark.parametrize("name", RUNS if LONG else list(RUNS)[::3])
def test_every_file_opens_in_every_command(
    name: str,
    source: Callable[[str], Path],
    material: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin, precision, energies, more = RUNS[name]
    words = [
        "--input_model",
        str(source(begin)),
        *data(material),
        "--dtype",
        precision,
        "--E0s",
        energies,
        *more,
    ]
    run = tmp_path / "run"
    assert finetune.main([*words, "--output_checkpoint", str(run)]) == 0
    description = model_json.read(run / "run_model.json")
    files = {name: run / f"run_{name}.pt" for name in ("checkpoint", "checkpoint.prev", "model")}
    files["bare"] = run / "run.model"
    if more and STAGES[0] in more:
        files["stage_one"] = run / "run_stage_one_model.pt"
    turn = list(RUNS).index(name)
    failures = list(opened(files, run / "run_model.json", material, tmp_path, turn))
    failures += list(converted(run / "run_model.pt", material, tmp_path, turn))
    assert failures == [], capsys.readouterr().err
    for path in (files["model"], files["bare"], files["checkpoint"]):
        for dtype in PRECISIONS.values():
            module = model_loader.load(path, dtype=dtype, input_json=run / "run_model.json").module
            for buffer, values in (
                (ENERGIES, description.atomic_energies),
                (SCALE, description.atomic_inter_scale),
                ("radial_embedding.cutoff_fn.r_max", description.r_max),
            ):
                exact = torch.tensor(values, dtype=torch.float64).to(dtype)
                assert torch.equal(module.get_buffer(buffer).reshape(-1), exact.reshape(-1)), (
                    path.name,
                    buffer,
                )


def opened(
    files: dict[str, Path], described: Path, material: Path, tmp_path: Path, turn: int
) -> Iterator[str]:
    """Names of files and commands where a command does not take a file; every run has
    its share of the table.
    """
    frames, out = str(material / "val.xyz"), tmp_path / "out"
    for row, (name, path) in enumerate(files.items()):
        own = ["--input_model", str(path)]
        commands = {
            "show": (read_model.main, ["show", *own]),
            "verify": (read_model.main, ["verify", *own, "--input_json", str(described)]),
            "export": (
                read_model.main,
                ["export", *own, "--output_json", str(out / f"{name}.json")],
            ),
            "diff": (read_model.main, ["diff", *own, "--other_model", str(path)]),
        }
        for dtype in PRECISIONS:
            words = [*own, "--xyz_path", frames, "--dtype", dtype, "--step", "reference"]
            commands[f"evaluate {dtype}"] = (evaluate.main, words)
            words = [
                *own,
                *data(material),
                "--dtype",
                dtype,
                "--output_checkpoint",
                str(out / "dry"),
                "--dry_run",
            ]
            commands[f"finetune {dtype}"] = (finetune.main, words)
        if "checkpoint" in name:
            words = [*own, "--epochs", "3", "--output_checkpoint", str(out / name)]
            commands["resume"] = (resume.main, words)
        for column, (command, (main, words)) in enumerate(commands.items()):
            if (WHOLE or (row + column + turn) % SHARE == 0) and main(words) != 0:
                yield f"{name}: {command}"


def converted(model: Path, material: Path, tmp_path: Path, turn: int) -> Iterator[str]:
    """The same of convert's forms, and where MACECalculator's energies are
    not those of evaluate.py.
    """
    for row, dtype in enumerate(PRECISIONS):
        for column, form in enumerate(("module", "safetensors", "lammps", "mliap")):
            if not WHOLE and (row + column + turn) % SHARE != 0:
                continue
            output = (
                tmp_path / f"{dtype}_{form}.{'safetensors' if form == 'safetensors' else 'model'}"
            )
            words = [
                "convert",
                "--input_model",
                str(model),
                "--dtype",
                dtype,
                "--to",
                form,
                "--output",
                str(output),
            ]
            if read_model.main(words) != 0:
                yield f"convert to {form} in {dtype}"
            elif form in ("module", "safetensors"):
                own, out = ["--input_model", str(output)], tmp_path / f"{dtype}_{form}.xyz"
                words = [*own, "--xyz_path", str(material / "val.xyz"), "--output_xyz", str(out)]
                described = ["--input_json", str(model.with_name("run_model.json"))]
                if evaluate.main([*words, "--step", "reference"]) or read_model.main(
                    ["verify", *own, *described]
                ):
                    yield f"{form} in {dtype}"
                if form == "module":
                    yield from calculated(output, out, dtype)


def calculated(module: Path, predicted: Path, dtype: str) -> Iterator[str]:
    with _unsafe_loading_during_import():
        from mace.calculators import MACECalculator

        calculator = MACECalculator(model_paths=[str(module)], device="cpu", default_dtype=dtype)
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype]
    for atoms in read(predicted, index=":"):
        calculator.calculate(atoms)
        errors = [calculator.results["energy"] - atoms.info["mace_energy"]]
        errors.append(np.abs(calculator.results["forces"] - atoms.arrays["mace_forces"]).max())
        # an xyz has eight digits
        if max(np.abs(errors)) > max(tolerance, 1e-7 if dtype == "float64" else 0):
            yield f"MACECalculator on {module.name}: {errors}"


def test_a_run_that_could_not_be_opened_does_not_begin(
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fault that every run would have met at its end is met before its first step, and
    nothing is left behind.
    """

    def wrongly(*arguments: object) -> nn.Module:
        module = model_loader.build(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            module.get_buffer(SCALE).mul_(1.0001)
        return module

    class Loader:
        """model_loader with the fault."""

        build = staticmethod(wrongly)

        def __getattr__(self, name: str) -> object:
            return getattr(model_loader, name)

    monkeypatch.setattr(model_loader, "prove", inspect.unwrap(model_loader.prove))
    monkeypatch.setattr(training, "model_loader", Loader())
    words = [
        "--input_json",
        str(material / "metals.json"),
        *data(material),
        "--output_checkpoint",
        str(tmp_path / "r"),
    ]
    assert train_mace.main(words) == 3
    said = capsys.readouterr()
    assert "before the first step, of what would be written:" in said.err
    assert "scale_shift.scale" in said.err
    assert "epoch 1" not in said.out
    assert not (tmp_path / "r").exists()


ALL_ELECTRON = {**METALS, "atomic_energies": {"Cu": -45012.8377, "Au": -535412.2259}}


def test_exported_energies_are_those_that_were_judged(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """E0s of all electrons: mace would add them in single precision."""
    frames = read(material / "train.xyz", index=":")
    for atoms in frames:
        atoms.info["REF_energy"] += sum(
            {29: -45012.8377, 79: -535412.2259}[z] for z in atoms.numbers
        )
    write(tmp_path / "all.xyz", frames, format="extxyz")
    (tmp_path / "all.json").write_text(json.dumps(ALL_ELECTRON))
    words = [
        "--input_json",
        str(tmp_path / "all.json"),
        *data(material),
        "--xyz_train",
        str(tmp_path / "all.xyz"),
    ]
    words += [
        "--xyz_val",
        str(tmp_path / "all.xyz"),
        "--epochs",
        "1",
        "--output_checkpoint",
        str(tmp_path / "run"),
    ]
    assert train_mace.main(words) == 0
    said = capsys.readouterr().out
    assert "run.model for mace's calculator, in float64" in said
    assert 'give default_dtype="float64"' in said
    model = str(tmp_path / "run" / "run_model.pt")
    assert (
        evaluate.main(
            [
                "--input_model",
                model,
                "--xyz_path",
                str(tmp_path / "all.xyz"),
                "--output_xyz",
                str(tmp_path / "p.xyz"),
            ]
        )
        == 0
    )
    files = [tmp_path / "run" / "run.model"]
    for form in ("module", "lammps", "mliap") if LONG else ("module", "lammps"):
        files.append(tmp_path / f"it.{form}")
        words = ["convert", "--input_model", model, "--to", form, "--output", str(files[-1])]
        assert read_model.main(words) == 0
        assert "so the file is float64" in capsys.readouterr().out
        if form == "module" or LONG:
            assert (
                read_model.main(
                    [*words, "--dtype", "float32", "--overwrite", "--output", str(tmp_path / "x")]
                )
                == 0
            )
            assert "adds E0s in float32: its energies differ" in capsys.readouterr().out
    with _unsafe_loading_during_import():
        from mace.calculators import MACECalculator

        for path in files[:2]:
            calculator = MACECalculator(model_paths=[str(path)], device="cpu")
            for atoms in read(tmp_path / "p.xyz", index=":"):
                calculator.calculate(atoms)
                assert abs(calculator.results["energy"] - atoms.info["mace_energy"]) < 1e-5, (
                    path.name
                )


def test_small_reference_energies_keep_the_precision(
    source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "it.model"
    words = [
        "convert",
        "--input_model",
        str(source("float32")),
        "--to",
        "module",
        "--output",
        str(output),
    ]
    assert read_model.main(words) == 0
    assert "warning" not in capsys.readouterr().out
    assert model_loader.load(output).file.dtype == torch.float32


def test_one_layer_is_verified_too(tmp_path: Path) -> None:
    """Its only readout is linear, so that the module does not tell gate and MLP_irreps."""
    fields = {**METALS, "num_interactions": 1, "gate": "tanh", "MLP_irreps": "7x0e"}
    (tmp_path / "it.json").write_text(json.dumps(fields))
    module = model_loader.build(model_json.read(tmp_path / "it.json"), torch.float32, 1)
    checkpoint.write_bare_module(tmp_path / "it.model", module)
    own = ["--input_model", str(tmp_path / "it.model"), "--input_json", str(tmp_path / "it.json")]
    assert read_model.main(["verify", *own]) == 0
    convert = [
        "convert",
        *own,
        "--to",
        "module",
        "--output",
        str(tmp_path / "out.model"),
        "--dtype",
        "float64",
    ]
    assert read_model.main(convert) == 0


@pytest.mark.parametrize("command", ["evaluate", "verify", "show", "export", "diff", "convert"])
def test_what_only_reads_writes_nothing_beside_the_model(
    command: str,
    source: Callable[[str], Path],
    material: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "lone"
    folder.mkdir()
    for name in ("checkpoint", "model"):
        shutil.copy(source("float32").with_name(f"float32_{name}.pt"), folder)
    own = ["--input_model", str(folder / "float32_model.pt")]
    words = {
        "evaluate": ["--xyz_path", str(material / "val.xyz"), "--step", "reference"],
        "verify": ["--input_json", str(material / "float32" / "float32_model.json")],
        "export": ["--output_json", str(tmp_path / "out.json")],
        "diff": ["--other_model", str(folder / "float32_model.pt")],
        "convert": ["--to", "safetensors", "--output", str(tmp_path / "out.safetensors")],
        "show": [],
    }[command]
    main = (
        evaluate.main if command == "evaluate" else lambda words: read_model.main([command, *words])
    )
    before = sorted(path.name for path in folder.iterdir())
    assert main([*own, *words]) == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    if command not in ("show", "diff"):  # these look at no sidecar
        assert (
            "float32_model.json is absent; the one inside float32_model.pt is used"
            in capsys.readouterr().out
        )
    if command == "show":
        words = [
            *own,
            *data(material),
            "--output_checkpoint",
            str(tmp_path / "tuned"),
            "--no_export_mace_model",
        ]
        assert finetune.main(words) == 0
        assert "float32_model.json was absent and is written again" in capsys.readouterr().out
        assert (folder / "float32_model.json").exists()


# --- the network that lies pickled in a file


def edited(path: Path, edit: Callable[[nn.Module], None], to: Path) -> Path:
    """A ``*_model.pt`` with another network under ``model``, and its digest as it was."""
    with _unsafe_loading_during_import():
        content = torch.load(path, map_location="cpu", weights_only=False)
    content["model_state_dict"] = {
        name: tensor.clone() for name, tensor in content["model_state_dict"].items()
    }
    with torch.no_grad():
        edit(content["model"])
    torch.save(content, to)
    return to


def block(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name)


EDITS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "scale": (lambda m: m.get_buffer(SCALE).mul_(2.0), SCALE),
    "E0s": (lambda m: m.get_buffer(ENERGIES).add_(1.0), ENERGIES),
    "a weight": (
        lambda m: m.get_parameter("readouts.0.linear.weight").mul_(1.0001),
        "readouts.0.linear.weight",
    ),
    "neighbours": (
        lambda m: setattr(block(m, "interactions.1"), "avg_num_neighbors", 6.0),
        "avg_num_neighbors is 6.0",
    ),
    "heads": (lambda m: setattr(m, "heads", ["other"]), "heads"),
    "cutoff": (lambda m: block(m, "radial_embedding.cutoff_fn").r_max.mul_(0.9), "cutoff_fn.r_max"),
    "activation": (
        lambda m: setattr(block(m, "readouts.1.non_linearity.acts.0"), "cst", 1.5),
        "cst is 1.5",
    ),
    "a method": (
        lambda m: setattr(block(m, "scale_shift"), "forward", torch.nn.functional.silu),
        "forward is there",
    ),
    "a hook": (
        lambda m: block(m, "scale_shift").register_forward_hook(torch.nn.functional.silu),
        "_forward_hooks",
    ),
    "a class": (
        lambda m: setattr(block(m, "readouts.1"), "__class__", nn.Linear),
        "readouts.1 is a",
    ),
    "a part": (lambda m: m.add_module("pair_repulsion_fn", nn.Identity()), "pair_repulsion_fn"),
    "compiled code": (
        lambda m: (
            m.readouts[0]
            .linear.__dict__["_modules"]
            .update(_compiled_main=m.readouts[1].linear_1.__dict__["_modules"]["_compiled_main"])
        ),
        "compiled code",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_pickled_network_that_is_another_is_refused(
    edit: str, source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = EDITS[edit]
    (tmp_path / "it").mkdir()
    path = edited(source("float64"), change, tmp_path / "it" / "it_model.pt")
    described = str(source("float64").with_name("float64_model.json"))
    assert read_model.main(["verify", "--input_model", str(path), "--input_json", described]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(path) in line


def test_a_network_of_other_versions_is_compared_in_what_both_have(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    """A file of another torch has other compiled code, and may lack attributes;
    numbers must still agree.
    """
    file = checkpoint.read(source("float64"))
    with _unsafe_loading_during_import():
        module = torch.load(source("float64"), map_location="cpu", weights_only=False)["model"]
    content = {k: v for k, v in file.content.items() if k not in ("kind", "format_version")}
    content["code_version"] = {**content["code_version"], "torch": "2.10.0"}
    del module.interactions[0].edge_irreps
    path = tmp_path / "older_model.pt"
    checkpoint.write_model(path, content, module)
    assert model_loader.load(path).description.hash() == file.description.hash()
    module.interactions[1].avg_num_neighbors = 6.0
    checkpoint.write_model(path, content, module)
    with pytest.raises(VerificationError, match=r"interactions\.1\.avg_num_neighbors is 6\.0"):
        model_loader.load(path)


def test_a_bare_module_that_is_another_is_refused(
    source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, path = model_loader.load(source("float64")), tmp_path / "it.model"
    words = [
        "verify",
        "--input_model",
        str(path),
        "--input_json",
        str(source("float64").with_name("float64_model.json")),
    ]
    module = model_loader.copied(loaded.module)
    checkpoint.write_bare_module(path, module)
    assert read_model.main(words) == 0
    with torch.no_grad():
        module.get_buffer(SCALE).mul_(2.0)
    checkpoint.write_bare_module(path, module)
    assert read_model.main(words) == 3
    assert "atomic_inter_scale" in capsys.readouterr().err
    module = model_loader.copied(loaded.module)
    module.interactions[1].avg_num_neighbors = 6.0  # type: ignore[index,union-attr,assignment]
    checkpoint.write_bare_module(path, module)
    assert read_model.main(words) == 3
    assert "interactions.1.avg_num_neighbors is 6.0, expected 12.1" in capsys.readouterr().err
