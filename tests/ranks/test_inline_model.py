"""A network in the YAML, measured by several processes together: the same
bytes and bits as by one.
"""

from pathlib import Path

import yaml

from ranks.launching import Launcher, differences

MODEL = {
    "r_max": 3.0,
    "hidden_irreps": "4x0e",
    "max_ell": 1,
    "correlation": 1,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
}


def test_two_processes_measure_what_one_does(
    launcher: Launcher, material: Path, tmp_path: Path
) -> None:
    content = {
        "model": MODEL,
        "lmdb_train": [str(material / "lmdb-train.lmdb")],
        "valid_fraction": 0.3,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    words = [
        "--config",
        tmp_path / "train.yaml",
        "--step_parts",
        2,
        "--epochs",
        1,
        "--batch_size",
        4,
    ]
    for size in (1, 2):
        place = ["--output_checkpoint", tmp_path / f"on{size}" / "run_checkpoint.pt"]
        launcher.run(size, "train_mace", *words, *place, folder=tmp_path)
    one, two = (tmp_path / f"on{size}" for size in (1, 2))
    for name in ("run_model.json", "dataset_info.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert differences(one, two) == []
