"""Models that mace wrote: read without executing anything, rebuilt from their JSON,
converted, and refused by name.
"""

import csv
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write

import parity_cases
import read_model
from conftest import ROOT, every, in_the_battery
from dataloader.dataset import Dataset
from dataloader.labels import TO_EVALUATE
from dataloader.sources import SourceSpec, open_sources
from model_utils import evaluate, model_loader
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models import lammps, pickled
from model_utils.models.build import build_module
from model_utils.models.mace_import import _unsafe_loading_during_import
from model_utils.models.network import predict
from model_utils.models.sandbox import SandboxedObject

Make = Callable[..., Path]

MODELS = [
    "mace_mp/mace_mp_small.model",
    "mace_run/model_run-1234_swa.model",
    "mof/test.model",
    "solvent_xtb/mace01.model",
    "solvent_xtb/mace01_swa.model",
]


def trusted(path: Path) -> torch.nn.Module:
    """The module as mace itself opens it: only here, to compare with."""
    with _unsafe_loading_during_import():
        module = torch.load(path, map_location="cpu", weights_only=False)
    assert isinstance(module, torch.nn.Module)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_real_model_is_read(shared_data: Path, name: str) -> None:
    loaded = model_loader.load(shared_data / name)
    theirs = {
        k: v
        for k, v in trusted(shared_data / name).state_dict().items()
        if "_compiled_main" not in k
    }
    ours = loaded.module.state_dict()
    assert all(
        torch.equal(ours[k].reshape(-1), v.reshape(-1)) for k, v in theirs.items() if k in ours
    )
    assert not [k for k in theirs if k not in ours and theirs[k].numel()]
    absent = loaded.file.content["absent"]
    assert all(k.endswith("_zeroed") or "._w3j_" in k for k in absent)


def test_reading_executes_nothing(shared_data: Path) -> None:
    """An audit hook in a process of its own sees no import, no code and no process
    while the pickle is read.
    """
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(shared_data / "mace_mp/mace_mp_small.model")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["89"], done.stdout + done.stderr


WATCHED = """
import sys
from pathlib import Path
from model_utils.files import checkpoint
from model_utils.models import pickled
import torch.utils.serialization.config, torch.serialization  # what torch.load imports by itself
watching = False
def hook(event, arguments):
    runs = event in ("exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn")
    if watching and (runs or event.startswith(("subprocess", "socket"))):
        print("EVENT", event, arguments)
sys.addaudithook(hook)
checkpoint.load_sandboxed(Path(sys.argv[1]))  # imports of torch.load itself
watching = True
content = checkpoint.load_sandboxed(Path(sys.argv[1]))
watching = False
print(len(pickled.description_of(content, "it").atomic_numbers))
"""


def test_mace_mp_small_gives_its_published_energies(shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / "mace_mp/mace_mp_small.model"
    assert (
        read_model.main(
            ["export", "--input_model", str(model), "--output_json", str(tmp_path / "mp.json")]
        )
        == 0
    )
    assert json.loads((tmp_path / "mp.json").read_text())["hidden_irreps"] == "128x0e"
    convert = [
        "convert",
        "--input_model",
        str(model),
        "--input_json",
        str(tmp_path / "mp.json"),
        "--to",
        "module",
    ]
    assert read_model.main([*convert, "--output", str(tmp_path / "mp.model")]) == 0
    with _unsafe_loading_during_import():
        from mace.calculators import MACECalculator

        calculator = MACECalculator(
            model_paths=[str(tmp_path / "mp.model")], device="cpu", default_dtype="float64"
        )
    for name, energy in (("NaCl.cif", -27.035127799332745), ("benzene.xyz", -76.0605725422795)):
        atoms = read(shared_data / "mof" / name)
        calculator.calculate(atoms)
        assert calculator.results["energy"] == pytest.approx(energy, rel=1e-12)
        if name == "NaCl.cif":
            assert calculator.results["stress"][0] == pytest.approx(
                -0.004783275999053424, rel=1e-10
            )
        else:
            assert calculator.results["forces"][0][1] == pytest.approx(
                -0.0360169762840179, rel=1e-10
            )


@pytest.mark.parametrize(
    ("name", "energy", "forces"),
    [("mace01_swa.model", 20.373, 211.372), ("mace01.model", 291.226, 268.782)],
)
def test_errors_as_published(
    shared_data: Path, tmp_path: Path, name: str, energy: float, forces: float
) -> None:
    data, out = shared_data / "solvent_xtb", tmp_path / "errors.json"
    words = ["--input_model", str(data / name), "--xyz_path", str(data / "solvent_xtb_test.xyz")]
    words += ["--energy_key", "energy_xtb", "--forces_key", "forces_xtb", "--output_json", str(out)]
    assert evaluate.main(words) == 0
    found = json.loads(out.read_text())
    assert 1000 * found["energy_rmse_per_atom"] == pytest.approx(energy, abs=0.01)
    assert 1000 * found["forces_rmse"] == pytest.approx(forces, abs=0.01)
    if name == "mace01_swa.model":
        assert 1000 * found["energy_mae_cfg"] == pytest.approx(551.3, abs=0.05)


@pytest.mark.parametrize("form", ["safetensors", "module", "lammps", "mliap"])
def test_converted_forms(
    shared_data: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared_data / "mof/test.model"
    output = tmp_path / f"out.{form}"
    words = [
        "convert",
        "--input_model",
        str(model),
        "--to",
        form,
        "--output",
        str(output),
        "--dtype",
        "float64",
    ]
    assert read_model.main(words) == 0
    assert "are the source's to" in capsys.readouterr().out
    assert output.stat().st_size > 10_000
    assert not list(tmp_path.glob(".*")), "nothing half done is left"
    assert read_model.main(words) == 2
    assert "is there already" in capsys.readouterr().err
    if form == "safetensors":
        source = model_loader.load(model, dtype=torch.float64).module.state_dict()
        again = model_loader.load(output).module.state_dict()
        assert all(torch.equal(again[name], source[name]) for name in source)


def test_a_conversion_that_is_wrong_is_not_kept(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = lammps.run_torchscript
    monkeypatch.setattr(
        lammps, "run_torchscript", lambda *words: tuple(1.001 * x for x in right(*words))
    )
    words = ["convert", "--input_model", str(shared_data / "mof/test.model"), "--to", "lammps"]
    assert read_model.main([*words, "--output", str(tmp_path / "out.pt")]) == 3
    assert "deviates by 0.001" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_training_checkpoint_needs_its_json(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shared_data / "mace_run"
    checkpoint, module = run / "model_run-1234_epoch-48_swa.pt", run / "model_run-1234_swa.model"
    assert read_model.main(["show", "--input_model", str(checkpoint)]) == 2
    assert "holds weights without the structure" in capsys.readouterr().err
    made = str(tmp_path / "run.json")
    assert read_model.main(["export", "--input_model", str(module), "--output_json", made]) == 0
    assert read_model.main(["show", "--input_model", str(checkpoint), "--input_json", made]) == 0
    assert read_model.main(["verify", "--input_model", str(checkpoint), "--input_json", made]) == 0


def test_verify_names_the_field(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = str(shared_data / "mof/test.model"), tmp_path / "m.json"
    assert read_model.main(["export", "--input_model", model, "--output_json", str(path)]) == 0
    assert read_model.main(["verify", "--input_model", model, "--input_json", str(path)]) == 0
    for field, value in (("avg_num_neighbors", 15.0), ("r_max", 4.5), ("gate", "tanh")):
        changed = json.loads(path.read_text()) | {field: value}
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        assert (
            read_model.main(
                ["verify", "--input_model", model, "--input_json", str(tmp_path / "changed.json")]
            )
            == 3
        )
        assert field in capsys.readouterr().err


def test_diff_and_show(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (
        str(shared_data / "solvent_xtb" / name) for name in ("mace01.model", "mace01_swa.model")
    )
    assert read_model.main(["diff", "--input_model", one, "--other_model", one]) == 0
    assert "equal: structure and all 65 tensors" in capsys.readouterr().out
    assert read_model.main(["diff", "--input_model", one, "--other_model", two]) == 3
    shown = capsys.readouterr()
    assert "in 0 fields and 24 tensors" in shown.err
    assert read_model.main(["show", "--input_model", two]) == 0
    shown = capsys.readouterr()
    for words in (
        "pickled by mace",
        "ScaleShiftMACE, 32x0e, 2 layers",
        "H, C, O",
        "r_max 4 Å",
        "float64",
    ):
        assert words in shown.out


class Bomb:
    """Leaves a file behind where it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_what_is_no_model_is_refused_by_name(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (shared_data / "mof/test.model").read_bytes()
    marker = tmp_path / "executed"
    files = {
        "cut.model": (good[: len(good) // 2], 3, "cut off"),
        "flipped.model": (
            good[:200_000] + bytes([good[200_000] ^ 1]) + good[200_001:],
            3,
            "damaged",
        ),
        "hostile.model": (saved(Bomb(marker)), 3, "system"),
        "linear.model": (saved(torch.nn.Linear(2, 2)), 2, "torch.nn.modules.linear.Linear"),
        "dict.pt": (saved({"a": 1, "b": "x"}), 2, "a dict with a, b"),
        "text.model": (b"hello", 3, "cut off or not a weights file"),
        "pickle.model": (pickle.dumps({"a": 1}), 3, "cut off or not a weights file"),
    }
    for name, (content, code, said) in files.items():
        (tmp_path / name).write_bytes(content)
        assert read_model.main(["show", "--input_model", str(tmp_path / name)]) == code, name
        error = capsys.readouterr().err
        assert said in error and name in error, error  # noqa: PT018
        assert len(error.splitlines()) == 1
    assert not marker.exists()
    compiled = shared_data / "mof/test_compiled.model"
    assert read_model.main(["show", "--input_model", str(compiled)]) == 2
    assert "TorchScript" in capsys.readouterr().err


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


# on a single layer
WITHOUT_EFFECT = ("readout_cls", "gate", "MLP_irreps", "hidden_irreps", "interaction_cls:")
CASES = parity_cases.pairwise(parity_cases.AXES)


@pytest.mark.parametrize("case", every(4, CASES[::3]), ids=parity_cases.name_of)
def test_a_pickled_module_says_what_it_was_built_from(
    case: parity_cases.Case, tmp_path: Path
) -> None:
    """Of a covering array of all options, as mace's constructor made them."""
    description = model_json.parse(
        json.dumps(parity_cases.completed(parity_cases.fields_of(case))), "case"
    )
    checkpoint.write_bare_module(tmp_path / "it.model", build_module(description, torch.float64))
    stub = checkpoint.load_sandboxed(tmp_path / "it.model")
    assert isinstance(stub, SandboxedObject)
    found = model_json.differing_fields(pickled.description_of(stub, "it.model"), description)
    allowed = WITHOUT_EFFECT if description.num_interactions == 1 else ()
    allowed += () if "+" in description.hidden_irreps else ("keep_last_layer_irreps",)
    assert all(text.startswith(allowed) for text in found), found
    loaded = (
        model_loader.load(tmp_path / "it.model") if description.radial_type != "chebyshev" else None
    )
    described = pickled.description_of(stub, "it.model", description)
    assert described.hash() == description.hash() or allowed == ("keep_last_layer_irreps",)
    assert loaded is None or all("._w3j_" in name for name in loaded.file.content["absent"]), (
        "only constants"
    )


def test_tables_and_predictions(shared_data: Path, tmp_path: Path) -> None:
    """The CSV and the xyz hold what the metrics were made of; an unlabelled file is inference."""
    data = shared_data / "solvent_xtb"
    words = [
        "--input_model",
        str(data / "mace01_swa.model"),
        "--xyz_path",
        str(data / "solvent_xtb_train_20.xyz"),
    ]
    words += ["--energy_key", "energy_xtb", "--forces_key", "forces_xtb"]
    outputs = [f"--output_{kind}" for kind in ("json", "table", "xyz")]
    assert evaluate.main([*words, *(w for o in outputs for w in (o, str(tmp_path / o[9:])))]) == 0
    found = json.loads((tmp_path / "json").read_text())
    with (tmp_path / "table").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == found["n_configs"] == 18
    errors = np.array([float(row["energy_error_per_atom"]) for row in rows])
    assert np.sqrt((errors**2).mean()) == pytest.approx(found["energy_rmse_per_atom"], rel=1e-12)
    frames = read(tmp_path / "xyz", index=":", format="extxyz")
    differences = np.concatenate([f.arrays["mace_forces"] - f.arrays["REF_forces"] for f in frames])
    assert np.sqrt((differences**2).mean()) == pytest.approx(found["forces_rmse"], rel=1e-6)
    hydrogen = np.concatenate([f.numbers == 1 for f in frames])
    assert np.sqrt((differences[hydrogen] ** 2).mean()) == pytest.approx(
        found["by_element"]["H"]["forces_rmse"], rel=1e-6
    )

    (tmp_path / "plain.xyz").write_text("2\n\nO 0 0 0\nH 0.9 0 0\n")
    plain = [
        "--input_model",
        str(data / "mace01_swa.model"),
        "--xyz_path",
        str(tmp_path / "plain.xyz"),
    ]
    assert evaluate.main([*plain, "--output_xyz", str(tmp_path / "predicted.xyz")]) == 0
    atoms = read(tmp_path / "predicted.xyz")
    assert atoms.info["mace_energy"] < -50
    assert "REF_energy" not in atoms.info


OWN_CLASS = """
from mace.modules import ScaleShiftMACE


class Note:
    text = "which no reader knows"


class OwnMACE(ScaleShiftMACE):
    factor = 1.0

    def forward(self, *arguments, **words):
        found = super().forward(*arguments, **words)
        return {**found, "energy": self.factor * found["energy"]}
"""


@pytest.fixture
def own_module(
    tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.nn.Module]:
    """A module of a class that somebody derived from mace's."""
    (tmp_path / "own_network.py").write_text(OWN_CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = importlib.import_module("own_network")
    module = model_loader.build(model_json.read(tiny_json), torch.float64, 3)
    module.__class__, module.note = own.OwnMACE, own.Note()
    yield module
    del sys.modules["own_network"]


def test_trust_pickle_opens_what_inert_reading_refuses(
    own_module: torch.nn.Module, water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A derived class, and torch's form of before 2020; the same errors as the plain module's."""
    data, energies = str(water_xyz("w.xyz", 4)), []
    torch.save(own_module, tmp_path / "derived.model")
    own_module.__class__ = own_module.__class__.__bases__[0]
    del own_module.note
    torch.save(own_module, tmp_path / "plain.model")
    torch.save(own_module, tmp_path / "old.model", _use_new_zipfile_serialization=False)
    for name, said in (
        ("derived", "it asks to run code (own_network."),
        ("old", "not a weights file"),
        ("plain", ""),
    ):
        words = ["--input_model", str(tmp_path / f"{name}.model"), "--xyz_path", data]
        if said:
            assert evaluate.main(words) == 3
            assert said in capsys.readouterr().err
        out = tmp_path / f"{name}.json"
        assert evaluate.main([*words, "--trust_pickle", "--output_json", str(out)]) == 0
        shown = capsys.readouterr().out
        assert ("the code in it runs now, with your rights" in shown) == bool(said)
        assert ("was not needed" in shown) != bool(said)
        assert shown.count("warning") == bool(said)
        energies.append(json.loads(out.read_text())["energy_mae_cfg"])
    assert energies[0] == energies[1] == energies[2]


@in_the_battery
def test_trust_pickle_does_not_take_one_network_for_another(
    own_module: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_module.factor = 1.001
    torch.save(own_module, tmp_path / "other.model")
    torch.save(Bomb(tmp_path / "executed"), tmp_path / "bomb.model")
    words = ["show", "--input_model", str(tmp_path / "other.model"), "--trust_pickle"]
    assert read_model.main(words) == 3
    assert (
        "the module computes otherwise than mace's own of its weights (by 0.001)"
        in capsys.readouterr().err
    )
    words[2] = str(tmp_path / "bomb.model")
    assert read_model.main(words[:-1]) == 3
    assert not (tmp_path / "executed").exists(), "never without the flag"
    capsys.readouterr()
    assert read_model.main(words) == 2
    assert (tmp_path / "executed").exists()
    assert "it holds a int, no MACE model" in capsys.readouterr().err


class Doing:
    """Runs a statement where it is unpickled."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (self.statement,)


def of_battery(*values: object) -> object:
    return pytest.param(*values, marks=in_the_battery)


@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        of_battery(
            "import os; os._exit(0)", 3, "executed: its process ended with code 0 and said nothing"
        ),
        of_battery(
            "import os; os.kill(os.getpid(), 9)",
            3,
            "executed: its process ended with code -9 and said nothing",
        ),
        (
            "import os, sys; open(sys.argv[2], 'w').write('x'); os._exit(0)",
            3,
            "executed: what came of it is cut off",
        ),
        ("raise KeyboardInterrupt", 3, "executed: KeyboardInterrupt"),
        of_battery("", 2, "executed: InputError: its model is a NoneType, no weights by name"),
    ],
)
def test_whatever_such_code_does_is_one_line(
    statement: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": Doing(statement)}, tmp_path / "doing.pt")
    assert (
        read_model.main(["show", "--input_model", str(tmp_path / "doing.pt"), "--trust_pickle"])
        == code
    )
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_damaged_file_is_not_executed(
    tiny_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch looks at no checksum: it would open such a file, with other weights in it."""
    path = tmp_path / "any.model"
    checkpoint.write_bare_module(
        path, model_loader.build(model_json.read(tiny_json), torch.float64, 3)
    )
    whole, words = path.read_bytes(), ["show", "--input_model", str(path), "--trust_pickle"]
    with zipfile.ZipFile(path) as archive:
        weights = max(
            (r for r in archive.infolist() if "/data/" in r.filename), key=lambda r: r.file_size
        )
        place = whole.index(archive.read(weights))
    flipped = whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]
    for content, said in ((whole[: len(whole) // 2], "cut off"), (flipped, "fails its checksum")):
        path.write_bytes(content)
        assert read_model.main(words) == 3
        shown = capsys.readouterr()
        assert said in shown.err
        assert "runs now" not in shown.out
    path.write_bytes(whole)
    assert read_model.main(words) == 0


def test_the_mliap_wrapper_computes_our_energies_and_forces(shared_data: Path) -> None:
    """The wrapper's own code on benzene, as LAMMPS calls it."""
    loaded = model_loader.load(shared_data / "mof/test.model", dtype=torch.float64)
    spec = SourceSpec(path=shared_data / "mof/benzene.xyz", format="xyz")
    sources = open_sources([spec], needs=TO_EVALUATE, max_dropped=0.0)
    batch = Dataset(sources, loaded.description.facts(), torch.float64).batch([0])
    network = model_loader.build_network(loaded.module, "reference", loaded.description)
    ours = predict(network, model_loader.trainable(loaded.module), batch, wanted=(), training=False)
    wrapper = lammps.mliap(model_loader.copied(loaded.module), loaded.description.heads[0])
    energy, forces = lammps.run_mliap(wrapper, batch)
    expected = float(ours["energy"][0]) + float(batch.reference_energy[0])
    assert float(energy) == pytest.approx(expected, rel=1e-12)
    largest = float(forces.abs().max())
    assert float((forces - ours["forces"]).abs().max()) < 1e-12 * largest + 1e-12


def test_mliap_inside_lammps(shared_data: Path, tmp_path: Path) -> None:
    """Energy of benzene; the wheel of PyPI (2025.7.22.4.0) has ML-IAP without its Python
    coupling, and is no help.
    """
    try:
        package = importlib.import_module("lammps")
        coupling = importlib.import_module("lammps.mliap")
        machine = package.lammps(cmdargs=["-log", "none", "-screen", "none"])
        coupling.activate_mliappy(machine)
    except (ImportError, OSError, AttributeError) as error:
        pytest.skip(f"no LAMMPS with ML-IAP's Python coupling here ({error})")
    model, atoms = shared_data / "mof/test.model", read(shared_data / "mof/benzene.xyz")
    converted, place = tmp_path / "mliap.pt", tmp_path / "benzene.data"
    words = ["convert", "--input_model", str(model), "--to", "mliap", "--dtype", "float64"]
    assert read_model.main([*words, "--output", str(converted)]) == 0
    atoms.center(vacuum=10.0)
    write(place, atoms, format="lammps-data", specorder=["C", "H"], masses=True)
    machine.commands_list(
        [
            *(
                "units metal",
                "atom_style atomic",
                "atom_modify map yes",
                "newton on",
                "boundary f f f",
            ),
            *(
                f"read_data {place}",
                f"pair_style mliap unified {converted} 0",
                "pair_coeff * * C H",
                "run 0",
            ),
        ]
    )
    words = [
        "--input_model",
        str(model),
        "--xyz_path",
        str(shared_data / "mof/benzene.xyz"),
        "--dtype",
        "float64",
    ]
    assert evaluate.main([*words, "--output_xyz", str(tmp_path / "ours.xyz")]) == 0
    ours = read(tmp_path / "ours.xyz")
    assert machine.get_thermo("pe") == pytest.approx(ours.info["mace_energy"], rel=1e-10)
