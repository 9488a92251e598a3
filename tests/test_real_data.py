"""Real files of other people through the real commands; the answers were measured independently."""

import json
from pathlib import Path

import pytest
import torch
from ase.io import read, write

from conftest import TINY
from model_utils import evaluate, model_loader, train_mace
from model_utils.files.outputs import Outputs
from model_utils.model_loader import PairWriter
from model_utils.models import description as model_json


def write_json(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({**TINY, **changes}))
    return path


SOLVENT = {
    "atomic_numbers": [1, 6, 8],
    "atomic_energies": {"H": -10.7072, "C": -48.8474, "O": -102.5712},
    "r_max": 4.0,
}


def test_metrics_do_not_depend_on_batches(shared_data: Path, tmp_path: Path) -> None:
    from losses import Loss, sum_names
    from model_utils.metrics import metrics

    description = model_json.read(write_json(tmp_path / "m.json", **SOLVENT))
    module = model_loader.build(description, torch.float64, seed=3)
    outputs = Outputs.named(tmp_path / "x_checkpoint.pt", None)
    writer = PairWriter(outputs, description, module, {})
    writer.save_best(
        model_loader.trainable(module),
        weights="raw",
        epoch=1,
        step=1,
        metrics=metrics([1.0] * len(sum_names()), Loss.of()),
    )
    path, found = tmp_path / "clusters.xyz", []
    write(path, read(shared_data / "solvent_xtb" / "solvent_xtb_test.xyz", ":250"), format="extxyz")
    for flags in (
        ["--batch_size", "1"],
        ["--batch_size", "7"],
        ["--batch_size", "32"],
        ["--max_edges_per_batch", "4000"],
    ):
        out = tmp_path / f"{len(found)}.json"
        common = [
            "--input_model",
            str(outputs.model),
            "--xyz_path",
            str(path),
            "--energy_key",
            "energy_xtb",
        ]
        assert (
            evaluate.main(
                [*common, "--forces_key", "forces_xtb", "--output_json", str(out), *flags]
            )
            == 0
        )
        found.append(
            {k: v for k, v in json.loads(out.read_text()).items() if isinstance(v, int | float)}
        )
    assert found[0]["n_configs"] == 250
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-12)


@pytest.mark.parametrize(
    ("file", "fields", "records"),
    [
        ("oc20/s2ef_val_20_data.lmdb", {"r_max": 4.0, "atomic_numbers": list(range(1, 84))}, 20),
        ("lips/data.lmdb", {"r_max": 4.0, "atomic_numbers": [3, 15, 16]}, 200),
    ],
)
def test_one_epoch_on_real_lmdbs_uses_every_record(
    shared_data: Path, tmp_path: Path, file: str, fields: dict[str, object], records: int
) -> None:
    numbers = fields["atomic_numbers"]
    assert isinstance(numbers, list)
    model = write_json(
        tmp_path / "m.json", **fields, atomic_energies=[0.0] * len(numbers), hidden_irreps="2x0e"
    )
    flags = ["--input_json", str(model), "--lmdb_train", str(shared_data / file), "--epochs", "1"]
    flags += ["--max_edges_per_batch", "40000", "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main(flags) == 0
    final = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ][-1]
    assert final["train"]["n_configs"] + final["valid"]["n_configs"] == records
