"""A network that the YAML describes: completed from the data as metadata.py init does, and
found again; dipm's YAML.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.io import write

import metadata
from conftest import LONG, TINY, in_the_battery, waters
from model_utils import model_loader, train_mace
from model_utils.files import checkpoint
from model_utils.models import description
from model_utils.run.loggers import LOGGERS
from model_utils.tasks import describe_data

ROWS = ("python scripts/train.py train.yaml", "dataset_info.json")
MODEL = {"r_max": 3.0, "hidden_irreps": "4x0e+4x1o", "max_ell": 1, "correlation": 2}
MODEL |= {"radial_MLP": [8], "MLP_irreps": "4x0e"}
SHORT = ["--max_steps", "1", "--batch_size", "4", "--no_export_mace_model"]

Written = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A YAML of a training on waters and single atoms, with another content
    of its section model.
    """
    frames = waters(10)
    atoms = [
        a
        for a in (frames[0][[0]], frames[0][[1]])
        if a.info.update({"config_type": "IsolatedAtom"}) is None
    ]
    for atom, energy in zip(atoms, (-430.0, -13.6), strict=True):
        atom.info["REF_energy"] = energy
    write(tmp_path / "train.xyz", [*atoms, *frames], format="extxyz")
    write(tmp_path / "val.xyz", waters(4, seed=1), format="extxyz")

    def go(model: Mapping[str, Any] = MODEL, **settings: Any) -> str:
        content = {
            "model": dict(model),
            "train_file": "train.xyz",
            "valid_file": "val.xyz",
            **settings,
        }
        content = {name: value for name, value in content.items() if value is not None}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return str(tmp_path / "train.yaml")

    return go


def measured_by_metadata(folder: Path, *flags: str) -> description.ModelDescription:
    """The model.json that metadata.py init makes of the same data, with the
    section's own fields put in.
    """
    path = folder / f"by_metadata{len(flags)}.json"
    words = [
        "--train_file",
        str(folder / "train.xyz"),
        "--r_max",
        "3",
        "--output_json",
        str(path),
        *flags,
    ]
    assert metadata.main(["init", *words]) == 0
    return description.parse(json.dumps({**json.loads(path.read_text()), **MODEL}), "metadata")


@pytest.mark.parametrize("validation", ["val.xyz", None], ids=["named", "set aside"])
def test_what_is_measured_is_what_metadata_measures(
    validation: str | None, written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all training structures; where some are set aside for validation, of the others."""
    assert (
        train_mace.main(
            [written(valid_file=validation), *SHORT, "--output_checkpoint", str(tmp_path / "run")]
        )
        == 0
    )
    set_aside = ["--valid_fraction", "0.0"] if validation else ["--valid_fraction", "0.1"]
    expected = measured_by_metadata(tmp_path, *set_aside)
    text = (tmp_path / "run" / "run_model.json").read_text()
    assert text == expected.canonical_text()
    assert expected.atomic_energies == [[-13.6, -430.0]]
    content = checkpoint.read(tmp_path / "run" / "run_checkpoint.pt").content
    assert content["model_json_hash"] == expected.hash()
    assert content["train_state"]["config"]["network"] is None
    assert content["train_state"]["config"]["input_json"] == str(
        tmp_path / "run" / "run_model.json"
    )
    assert (tmp_path / "run" / "dataset_info.json").exists()
    log = (tmp_path / "run" / "train.log").read_text()
    assert "head Default: E0s" in log


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that data are measured."""
    made: list[str] = []
    measure = describe_data.measure

    def counted(*words: Any) -> Any:
        made.append("measured")
        return measure(*words)

    monkeypatch.setattr(describe_data, "measure", counted)
    return made


def test_it_is_measured_once_and_found_again(
    written: Written, tmp_path: Path, measurements: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By another network on the same data, from a copy of the file at another place, and
    by a run that goes on.
    """
    info = tmp_path / "kept" / "info.json"
    first = [written(info_file=str(info)), *SHORT, "--output_checkpoint", str(tmp_path / "a")]
    assert train_mace.main(first) == 0
    assert measurements == ["measured"]
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "train.xyz").write_bytes((tmp_path / "train.xyz").read_bytes())
    other = {**MODEL, "hidden_irreps": "8x0e"}
    words = [written(other, info_file=str(info), train_file="moved/train.xyz"), *SHORT]
    assert train_mace.main([*words, "--output_checkpoint", str(tmp_path / "b")]) == 0
    assert train_mace.main([*first, "--resume", "--max_steps", "2"]) == 3, (
        "the YAML has another network now"
    )
    assert "hidden_irreps: '4x0e+4x1o' against '8x0e'" in capsys.readouterr().err
    written(info_file=str(info))
    info.unlink()
    assert train_mace.main([*first, "--resume", "--max_steps", "2"]) == 0
    assert measurements == ["measured"]


OTHERS: dict[str, dict[str, Any]] = {
    "r_max": {"model": {**MODEL, "r_max": 2.5}},
    "files": {"train_file": "val.xyz"},
    "settings": {"head": "Default"},
    "seed": {"valid_file": None},
    "given": {"model": {**MODEL, "avg_num_neighbors": 7.0}},
}


def test_what_was_measured_of_other_data_is_never_taken(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "info.json"
    place = ["--output_checkpoint", str(tmp_path / "a"), "--dry_run", *SHORT]
    assert train_mace.main([written(info_file=str(info)), *place]) == 0
    assert not info.exists(), "a dry run writes nothing"
    assert train_mace.main([written(info_file=str(info)), *place, "--no_dry_run"]) == 0
    capsys.readouterr()
    for what, other in OTHERS.items():
        model = other.get("model", MODEL)
        more = {name: value for name, value in other.items() if name != "model"}
        assert train_mace.main([written(model, info_file=str(info), **more), *place]) == 2, what
        assert f"was measured of something else: {what}" in capsys.readouterr().err
    (tmp_path / "train.xyz").write_text(
        (tmp_path / "train.xyz").read_text().replace("-13.6", "-13.5")
    )
    assert train_mace.main([written(info_file=str(info)), *place]) == 2, "edited to the same size"
    for text in ("{", "[]", '{"format": "another"}'):
        info.write_text(text)
        assert train_mace.main([written(info_file=str(info)), *place]) == 2
        assert f"--info_file {info}" in capsys.readouterr().err


def test_a_complete_network_is_not_measured(
    written: Written, tmp_path: Path, measurements: list[str]
) -> None:
    place = [*SHORT, "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main([written(TINY), *place]) == 0
    assert measurements == []
    expected = description.parse(json.dumps(TINY), "tiny")
    assert (tmp_path / "run" / "run_model.json").read_text() == expected.canonical_text()


@in_the_battery
def test_what_is_given_is_kept(written: Written, tmp_path: Path) -> None:
    """Given E0s are those to which scale and shift are fitted."""
    energies = {"H": -13.0, "O": -431.0}
    model = {**MODEL, "atomic_energies": energies, "avg_num_neighbors": None, "target": "MACE"}
    assert (
        train_mace.main([written(model), *SHORT, "--output_checkpoint", str(tmp_path / "run")]) == 0
    )
    made = description.read(tmp_path / "run" / "run_model.json")
    expected = measured_by_metadata(tmp_path, "--E0s", json.dumps(energies))
    assert made.hash() == expected.hash()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"target": "GemNet"}, "target 'GemNet' in .*train.yaml: 'GemNet' is not known"),
        (
            {"target": "Equiformer V2"},
            "section model of .*train.yaml: model_class 'Equiformer V2' cannot be had here: mace",
        ),
        ({**MODEL, "hidden_irrep": "8x0e"}, "hidden_irrep"),
        ({**MODEL, "r_max": "long"}, "r_max"),
    ],
)
def test_a_network_that_is_none(
    model: dict[str, Any],
    said: str,
    written: Written,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_mace.main([written(model), "--run_dir", str(tmp_path / "demo")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
    assert not (tmp_path / "demo").exists() or list((tmp_path / "demo").iterdir()) == []


DIPM = """
model:
  target: MACE
  num_layers: 2
  num_channels: 4
  l_max: 1
  correlation: 2
  avg_num_neighbors: null
  seed: 42
dataset:
  train_dataset_paths: ./train.xyz
  valid_dataset_paths: ./val.xyz
  test_dataset_paths: ./val.xyz
  graph_cutoff_angstrom: 3.0
  batch_size: 16
  info_file: ./checkpoints/dataset_info.json
train:
  num_epochs: 10
  final_learning_rate: 1e-4
  dtype: bfloat16
  loss: MSELoss
  local_model_output_dir: ./checkpoints
  restore_checkpoint_if_exists: true
  restore_optimizer_state: true
  save_path: ./mace.safetensors
  stage_splits: [0.7, 0.3]
  energy_weights: [1.0, 25.0]
  forces_weights: [25.0, 1.0]
  tensorboard: ./runs/mace
  wandb: mace_train
"""


def test_the_yaml_of_dipm_trains_with_mace(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written()  # the data
    has_wandb = "wandb" in LOGGERS  # of which the package is an extra
    (tmp_path / "train.yaml").write_text(
        DIPM.replace("  wandb: mace_train\n", "") if has_wandb else DIPM
    )
    for _ in range(2 if LONG else 1):  # the second time all is there
        assert train_mace.main([str(tmp_path / "train.yaml"), "--no_export_mace_model"]) == 0
    folder = tmp_path / "checkpoints"
    log = (folder / "train.log").read_text()
    assert "loss: 1 E² + 25 F²" in log
    assert "stage two begins after epoch 7" in log
    assert "(25 E² + 1 F²)" in log
    final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"train", "valid", "test"} <= set(final)
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "checkpoints_stage_one_model.pt").exists()
    exported = model_loader.load(tmp_path / "mace.safetensors")
    best = model_loader.load(folder / "checkpoints_model.pt")
    assert exported.description == best.description
    assert all(
        (exported.module.state_dict()[name] == value).all()
        for name, value in best.module.state_dict().items()
    )
    state = checkpoint.read(folder / "checkpoints_checkpoint.pt").content["train_state"]
    assert (state["epoch"], state["config"]["seed"], state["dtype"]) == (10, 42, "float32")
    rates = {
        record["lr"]
        for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if "lr" in record
    }
    assert rates == {0.01}, "the second stage has weights of its own, and the rate of the schedule"


def test_pretrained_begins_with_a_model(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train_mace.main([written(TINY), *SHORT, "--output_checkpoint", str(tmp_path / "run")]) == 0
    )
    model = {"pretrained": "run/run_model.pt", "drop_force_head": True}
    assert (
        train_mace.main([written(model), *SHORT, "--output_checkpoint", str(tmp_path / "tuned")])
        == 0
    )
    shown = capsys.readouterr()
    assert "step 0: energies and forces of" in shown.out
    assert "forces of MACE are the slope of its energy" in shown.err
    source = checkpoint.read(tmp_path / "tuned" / "tuned_checkpoint.pt").content["train_state"][
        "source"
    ]
    assert source["path"] == str(tmp_path / "run" / "run_model.pt")
