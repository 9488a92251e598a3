"""A second family of networks, added to the table from outside the product,
through the real commands.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plugged import PAIRS, PAIRS_JSON, restored_tables  # noqa: F401

import metadata
import read_model
from dataloader.errors import InputError
from model_utils import evaluate, finetune, model_loader, plugins, resume, train_mace
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models.architecture import ARCHITECTURES

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _pairs_are_known(restored_tables: None) -> None:  # noqa: F811
    plugins.load([PAIRS])


@pytest.fixture
def pairs_json(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(PAIRS_JSON))
    return path


@pytest.fixture
def train(pairs_json: Path, water_xyz: Make, tmp_path: Path) -> Callable[..., Path]:
    def go(name: str, *flags: str) -> Path:
        words = ["--input_json", str(pairs_json), "--xyz_train", str(water_xyz("train.xyz", 8))]
        words += [
            "--xyz_val",
            str(water_xyz("val.xyz", 3, seed=1)),
            "--batch_size",
            "4",
            "--lr",
            "0.05",
            "--ema",
        ]
        assert train_mace.main([*words, "--output_checkpoint", str(tmp_path / name), *flags]) == 0
        return tmp_path / name

    return go


def test_it_trains_resumes_evaluates_and_exports(
    train: Make, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    whole = train("whole", "--epochs", "4")
    said = capfd.readouterr().out
    assert "Pairs, 6 gaussians" in said
    assert "a toy: nothing that it predicts is physics" in said
    assert "step: reference, since the fast one does not cover this network" in said
    assert not (whole / "whole.model").exists(), "mace's calculator has no use for it"
    parts = train("parts", "--epochs", "2")
    again = ["--input_model", str(parts / "parts_checkpoint.pt"), "--epochs", "4"]
    assert resume.main(again) == 0
    first, second = (
        checkpoint.read(folder / f"{folder.name}_checkpoint.pt") for folder in (whole, parts)
    )
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert first.content["code_version"]["pairs"] == "1"
    assert "mace-torch" not in first.content["code_version"]

    model, metrics = whole / "whole_model.pt", tmp_path / "metrics.json"
    data = ["--xyz_path", str(tmp_path / "val.xyz")]
    assert evaluate.main(["--input_model", str(model), *data, "--output_json", str(metrics)]) == 0
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    errors = [record["forces_rmse"] for record in records if record["kind"] == "valid"]
    assert json.loads(metrics.read_text())["forces_rmse"] == pytest.approx(min(errors), rel=1e-5)
    assert min(errors) < 0.9 * errors[0]

    made, text = tmp_path / "made.json", (whole / "whole_model.json").read_text()
    assert read_model.main(["export", "--input_model", str(model), "--output_json", str(made)]) == 0
    assert made.read_text() == text
    assert set(json.loads(text)) == set(ARCHITECTURES["Pairs"].description.model_fields)
    assert read_model.main(["verify", "--input_model", str(model), "--input_json", str(made)]) == 0
    assert read_model.main(["show", "--input_model", str(model)]) == 0
    plain = [
        "convert",
        "--input_model",
        str(model),
        "--to",
        "safetensors",
        "--output",
        str(tmp_path / "x.safetensors"),
    ]
    assert read_model.main(plain) == 0
    capfd.readouterr()
    assert read_model.main([*plain[:4], "lammps", "--output", str(tmp_path / "x.pt")]) == 2
    assert (
        "--to lammps: there is no such form of Pairs; there is safetensors"
        in capfd.readouterr().err
    )


def test_it_is_fine_tuned_to_other_reference_energies(train: Make, tmp_path: Path) -> None:
    source = train("source", "--epochs", "1") / "source_model.pt"
    words = [
        "--input_model",
        str(source),
        "--xyz_train",
        str(tmp_path / "train.xyz"),
        "--epochs",
        "1",
    ]
    words += [
        "--xyz_val",
        str(tmp_path / "val.xyz"),
        "--output_checkpoint",
        str(tmp_path / "tuned"),
    ]
    assert finetune.main([*words, "--E0s", "shift"]) == 0
    tuned = checkpoint.read(tmp_path / "tuned" / "tuned_model.pt")
    assert tuned.description.hash() != checkpoint.read(source).description.hash()
    assert finetune.main([*words, "--elements", "O", "--overwrite"]) == 2


def test_its_json_is_completed_from_data(tmp_path: Path, water_xyz: Make) -> None:
    path, output = tmp_path / "network.json", tmp_path / "fitted.json"
    path.write_text(json.dumps({"model_class": "Pairs", "r_max": 3.0, "n_gaussians": 4}))
    words = [
        "fit",
        "--input_json",
        str(path),
        "--xyz_train",
        str(water_xyz("train.xyz", 8)),
        "--E0s",
        "average",
    ]
    assert metadata.main([*words, "--output_json", str(output)]) == 0
    fitted = json.loads(output.read_text())
    assert fitted["atomic_numbers"] == [1, 8]
    assert "atomic_inter_scale" not in fitted


def test_what_differs_from_the_json_is_refused(train: Make, pairs_json: Path) -> None:
    path = train("run", "--epochs", "1") / "run_model.pt"
    file = checkpoint.read(path)
    module = model_loader.build(file.description, torch.float32, seed=1)
    wrong = {**file.tensors, "r_max": torch.tensor(2.0)}
    with pytest.raises(
        Exception, match=r"buffer r_max holds \[2.0\] but model.json says r_max = \[3.0\]"
    ):
        model_loader.load_tensors(module, wrong, file.description, "file")
    with pytest.raises(
        InputError, match="--step cueq: there is no such form of Pairs; there is reference"
    ):
        model_loader.build_network(module, "cueq", file.description)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_gausians": 3}, "unknown field 'n_gausians'; did you mean 'n_gaussians'?"),
        ({"n_gaussians": 1}, "n_gaussians: input should be greater than or equal to 2 .found 1."),
        ({"hidden_irreps": "4x0e"}, "unknown field 'hidden_irreps'"),
        ({"atomic_numbers": [1, 1]}, "an element stands twice|atomic_energies name"),
        (
            {"model_class": "Pear"},
            "model_class: input should be 'MACE', 'ScaleShiftMACE', .* or 'Pairs' .found 'Pear'.",
        ),
    ],
)
def test_its_json_is_checked_as_mace_s(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_json.parse(json.dumps({**PAIRS_JSON, **change}), "it.json")


def test_a_family_that_nobody_added_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ARCHITECTURES, "Pairs")
    assert "Pairs" not in ARCHITECTURES
    with pytest.raises(
        InputError,
        match=r"model_class: input should be 'MACE', 'ScaleShiftMACE', .* .found 'Pairs'.",
    ):
        model_json.parse(json.dumps(PAIRS_JSON), "it.json")
