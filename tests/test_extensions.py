"""From plug-ins alone, without touching the product: each idea trains, resumes and is
evaluated by real commands.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plugged import IDEAS, PAIRS, PAIRS_JSON, restored_tables  # noqa: F401

from conftest import waters
from dataloader.errors import InputError
from model_utils import evaluate, plugins, resume, train_mace
from model_utils.files import checkpoint
from model_utils.settings import reading
from model_utils.settings.options import TrainOptions

pytestmark = pytest.mark.usefixtures("restored_tables")


@pytest.fixture
def words(tmp_path: Path, tiny_json: Path, water_xyz: Callable[..., Path]) -> list[str]:
    flags = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz("train.xyz", 6)),
        "--plugin",
        str(IDEAS),
    ]
    flags += [
        "--xyz_val",
        str(water_xyz("val.xyz", 2, seed=1)),
        "--batch_size",
        "3",
        "--no_export_mace_model",
    ]
    return [*flags, "--output_checkpoint", str(tmp_path / "run")]


def without_plugin(words: list[str]) -> list[str]:
    place = words.index("--plugin")
    return words[:place] + words[place + 2 :]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--forces_loss", "log_cosh"], "log_cosh(F)"),
        (["--scheduler", "inverse_root", "--lr", "0.01"], "lr 0.00707"),
        (["--optimizer", "momentum", "--lr", "1e-6"], "training is over: epochs done"),
        (["--loggers", "lines"], "lines.txt: a line for each record"),
    ],
)
def test_an_idea_trains_and_resumes(
    flags: list[str],
    said: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_mace.main([*words, *flags, "--epochs", "2"]) == 0
    assert said in capsys.readouterr().out
    again = ["--input_model", str(tmp_path / "run"), "--epochs", "3"]
    assert resume.main([*again, "--plugin", str(IDEAS)]) == 0
    assert (
        checkpoint.read(tmp_path / "run" / "run_checkpoint.pt").content["train_state"]["epoch"] == 3
    )


def test_the_logger_heard_of_everything(words: list[str], tmp_path: Path) -> None:
    assert train_mace.main([*words, "--loggers", "lines", "--epochs", "1"]) == 0
    kinds = [line.split()[0] for line in (tmp_path / "run" / "lines.txt").read_text().splitlines()]
    assert kinds == ["valid", "train", "valid", "final"]


def test_a_checkpoint_knows_the_plug_in_and_asks_for_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mace.main([*words, "--forces_loss", "log_cosh", "--epochs", "1"]) == 0
    model = tmp_path / "run" / "run_model.pt"
    assert [p["name"] for p in checkpoint.read(model).content["plugins"]] == ["ideas.py"]
    plugins._loaded.clear()  # as in another process
    capsys.readouterr()
    again = ["--input_model", str(tmp_path / "run"), "--epochs", "2"]
    assert resume.main(again) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "was made with --plugin ideas.py" in line
    assert "name that file again with --plugin" in line
    other = tmp_path / "ideas.py"
    other.write_text("# another\n")
    assert resume.main([*again, "--plugin", str(other)]) == 2
    assert "is not the file that made" in capsys.readouterr().err


def test_a_model_asks_for_the_plug_in_of_its_network_alone(
    words: list[str], tmp_path: Path
) -> None:
    """A loss shape is no part of it; a network, and a quantity that it gives, are."""
    assert train_mace.main([*words, "--forces_loss", "log_cosh", "--epochs", "1"]) == 0
    model = tmp_path / "run" / "run_model.pt"
    [stored] = checkpoint.read(model).content["plugins"]
    assert "losses.SHAPES" in stored["adds"]
    plugins._loaded.clear()  # as in another process
    data = ["--xyz_path", str(tmp_path / "val.xyz")]
    assert evaluate.main(["--input_model", str(model), *data]) == 0
    networks = {**stored, "adds": ["model_utils.models.architecture.ARCHITECTURES"]}
    unknown = {name: stored[name] for name in ("name", "sha256")}  # as it was stored once
    for entry in (networks, unknown):
        with pytest.raises(InputError, match="was made with --plugin"):
            plugins.compare([entry], model, of_models=True)


def test_an_entry_that_is_none_of_its_table_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from losses import SHAPES\nSHAPES['cubed'] = lambda e, label, d: e.abs() ** 3\n"
    )
    asked = [*without_plugin(words), "--plugin", str(mine), "--forces_loss", "cubed"]
    assert train_mace.main(asked) == 2
    assert "'cubed' of losses.SHAPES is of type function, expected losses.Shape" in (
        capsys.readouterr().err
    )
    mine.write_text(
        "from losses import SHAPES, Shape\n"
        "SHAPES['averaged'] = Shape(of=lambda e, label, d: (e.abs() ** 3).mean(), text='{}³')\n"
    )
    assert train_mace.main([*asked[:-1], "averaged"]) == 2
    error = capsys.readouterr().err
    assert "the loss shape 'averaged' gives numbers of shape ()" in error
    assert "one for each, not yet averaged" in error


def test_in_the_file_of_settings_that_was_typed(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "ideas.py").write_bytes(IDEAS.read_bytes())
    (tmp_path / "run.yaml").write_text("plugin: [ideas.py]\nforces_loss: log_cosh\n")
    options = reading.parse(
        TrainOptions, [*without_plugin(words), "--config", str(tmp_path / "run.yaml")]
    )
    assert options is not None
    assert options.loss.forces_loss == "log_cosh"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def broken(:\n", "line 1: invalid syntax"),
        (
            "import nowhere_at_all\n",
            "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        (
            "from losses import SHAPES\nSHAPES['mse'] = SHAPES['mae']\n",
            "replaces 'mse' of losses.SHAPES",
        ),
        (
            "from dataloader import quantities\nquantities.add(quantities.ENERGY)\n",
            "there is a quantity energy already",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_one_line(
    code: str, said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(code)
    assert train_mace.main([*without_plugin(words), "--plugin", str(tmp_path / "mine.py")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "mine.py") in line
    assert said in line
    assert not (tmp_path / "run").exists()


def npz(path: Path, n: int, seed: int) -> Path:
    """Single waters with energies, forces and the dipoles of fixed charges."""
    frames = waters(2 * n, seed)[::2]
    charges = np.array([-0.8, 0.4, 0.4])
    np.savez(
        path,
        numbers=frames[0].numbers,
        positions=np.stack([atoms.positions for atoms in frames]),
        REF_energy=np.array([atoms.info["REF_energy"] for atoms in frames]),
        REF_forces=np.stack([atoms.arrays["REF_forces"] for atoms in frames]),
        REF_dipole=np.stack([charges @ atoms.positions for atoms in frames]),
    )
    return path


def test_a_format_an_architecture_and_a_quantity_that_it_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS_JSON))
    flags = [
        "--plugin",
        str(PAIRS),
        "--input_json",
        str(tmp_path / "pairs.json"),
        "--quantity_weights",
        "dipole=10",
    ]
    flags += [
        "--train_file",
        str(npz(tmp_path / "train.npz", 12, 0)),
        "--batch_size",
        "4",
        "--lr",
        "0.05",
    ]
    flags += [
        "--valid_file",
        str(npz(tmp_path / "val.npz", 4, 1)),
        "--dtype",
        "float64",
        "--epochs",
        "30",
    ]
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "dipole from REF_dipole" in said
    assert "D rmse" in said
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    dipoles = [record["dipole_rmse"] for record in records if record["kind"] == "valid"]
    assert dipoles[-1] < 0.1 * dipoles[0]

    best = ["--input_model", str(tmp_path / "run" / "run_model.pt"), "--plugin", str(PAIRS)]
    out = [
        "--output_json",
        str(tmp_path / "errors.json"),
        "--output_xyz",
        str(tmp_path / "predicted.xyz"),
    ]
    assert evaluate.main([*best, "--data", str(tmp_path / "val.npz"), *out]) == 0
    assert json.loads((tmp_path / "errors.json").read_text())["dipole_rmse"] == pytest.approx(
        min(dipoles), rel=1e-6
    )
    assert "mace_dipole" in (tmp_path / "predicted.xyz").read_text()


def test_packed_and_indexed_a_quantity_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataloader import pack

    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS_JSON))
    data = npz(tmp_path / "train.npz", 8, 0)
    packing = [
        "--plugin",
        str(PAIRS),
        "--input",
        str(data),
        "--output_dir",
        str(tmp_path / "packed"),
    ]
    assert pack.main(packing) == 0
    results = []
    for name, source in (("a", data), ("b", tmp_path / "packed")):
        flags = [
            "--plugin",
            str(PAIRS),
            "--input_json",
            str(tmp_path / "pairs.json"),
            "--dtype",
            "float64",
        ]
        flags += [
            "--train_file",
            str(source),
            "--valid_file",
            str(source),
            "--quantity_weights",
            "dipole=10",
        ]
        flags += ["--batch_size", "4", "--epochs", "1", "--output_checkpoint", str(tmp_path / name)]
        assert train_mace.main(flags) == 0
        results.append(checkpoint.read(tmp_path / name / f"{name}_model.pt").tensors)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
