"""A dense solid and a long cutoff: more than 500 neighbours per atom are refused,
and allowed by a flag.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from lmdb_material import write_dicts

import metadata
from dataloader import pack
from dataloader.errors import InputError
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_shards import index_building, kept_edges
from dataloader.lmdb_shards.lmdb_source import Filters, LmdbSource
from model_utils import evaluate, train_mace

R_MAX = 12.5  # Å; copper has some 680 neighbours within it
Main = Callable[[Sequence[str]], int]


def coppers(n: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n):
        atoms = bulk("Cu")
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.set_cell(atoms.cell.array + rng.normal(0, 0.02, (3, 3)), scale_atoms=True)
        atoms.calc = EMT()
        atoms.get_potential_energy(), atoms.get_forces()
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    frames = coppers(6)
    write(folder / "cu.xyz", frames, format="extxyz", write_results=True)
    write_dicts(folder / "cu.lmdb", read(folder / "cu.xyz", ":"))
    fields = {
        "model_class": "ScaleShiftMACE",
        "r_max": R_MAX,
        "atomic_numbers": [29],
        "atomic_energies": [0.0],
    }
    fields |= {
        "avg_num_neighbors": 690.0,
        "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0,
        "num_interactions": 1,
    }
    fields |= {
        "hidden_irreps": "2x0e",
        "max_ell": 1,
        "correlation": 1,
        "radial_MLP": [4],
        "MLP_irreps": "2x0e",
    }
    (folder / "model.json").write_text(json.dumps(fields))
    return folder


def commands(place: Path, out: Path) -> list[tuple[Main, list[str]]]:
    model = ["--input_json", str(place / "model.json")]
    run = [
        *model,
        "--epochs",
        "1",
        "--batch_size",
        "2",
        "--valid_fraction",
        "0.4",
        "--no_export_mace_model",
    ]
    xyz, lmdb = ["--xyz_train", str(place / "cu.xyz")], ["--lmdb_train", str(place / "cu.lmdb")]
    budget = ["--max_edges_per_batch", "2000"]
    return [
        (
            metadata.main,
            ["init", *xyz, "--r_max", str(R_MAX), "--output_json", str(out / "x.json")],
        ),
        (metadata.main, ["fit", *lmdb, *model, "--output_json", str(out / "l.json")]),
        (train_mace.main, [*run, *xyz, "--output_checkpoint", str(out / "x")]),
        (
            pack.main,
            ["--input", *xyz[1:], "--r_max", str(R_MAX), "--output_dir", str(out / "packed")],
        ),
        (
            train_mace.main,
            [
                *run,
                "--lmdb_train",
                str(out / "packed"),
                *budget,
                "--output_checkpoint",
                str(out / "p"),
            ],
        ),
        (
            evaluate.main,
            ["--input_model", str(out / "x/x_model.pt"), "--xyz_path", str(place / "cu.xyz")],
        ),
    ]


def test_refused_by_default_and_allowed_by_the_flag(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, words in commands(place, tmp_path):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert re.search(r"6\d\d neighbours per atom, at most 500 are expected", error), words
        assert "--max_neighbors allows more" in error
        assert len(error.splitlines()) == 1
        assert main([*words, "--max_neighbors", "700"]) == 0, (words, capsys.readouterr().err)
        capsys.readouterr()


def test_check_finds_it_and_takes_the_flag(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "check",
        "--xyz_train",
        str(place / "cu.xyz"),
        "--input_json",
        str(place / "model.json"),
    ]
    metadata.main(words)
    assert "at most 500 are expected" in capsys.readouterr().out
    metadata.main([*words, "--max_neighbors", "700"])
    assert "are expected" not in capsys.readouterr().out


def test_counts_that_were_kept_where_more_were_allowed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_building, "KEPT_FROM", 1)

    def source(limit: int) -> LmdbSource:
        filters = Filters(max_neighbors=limit)
        return LmdbSource(
            place / "cu.lmdb", LabelKeys(), needs=TO_TRAIN, max_dropped=0.0, filters=filters
        )

    assert source(700).edges(R_MAX).max() == 682
    assert kept_edges._kept(source(700).indexes[0], R_MAX) is not None
    with pytest.raises(InputError, match=r"cu\.lmdb key 0: 682 neighbours per atom, at most 500"):
        source(500).edges(R_MAX)
