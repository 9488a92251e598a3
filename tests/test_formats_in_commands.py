"""Every format of the table in every command that reads data: trained on, evaluated,
packed, measured, checked.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from format_files import FILES, boxed_waters, energy_of, forces_of

import metadata
from conftest import TINY
from dataloader import pack
from dataloader.data_file import SourceSpec
from dataloader.labels import TO_EVALUATE
from dataloader.sources import open_sources
from model_utils import evaluate, resume, train_mace

FRAMES = boxed_waters(4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same structures in a file of every kind, and a model.json."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "m.json").write_text(json.dumps(TINY))
    for name, (_, write_file) in FILES.items():
        write_file(folder / name, FRAMES)
    return folder


def files(place: Path) -> list[str]:
    return [str(place / name) for name in FILES]


def training(place: Path, run: str, *flags: object) -> list[str]:
    words = [
        "--input_json",
        place / "m.json",
        "--output_checkpoint",
        place / run,
        "--epochs",
        1,
        *flags,
    ]
    return list(map(str, [*words, "--dtype", "float64", "--no_export_mace_model"]))


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


@pytest.fixture(scope="module")
def every(place: Path) -> Path:
    """A run that was trained on all of them, each file as often as the others."""
    valid = ["--valid_file", place / "waters.xyz"]
    precision = torch.get_default_dtype()
    assert train_mace.main(training(place, "every", "--train_file", *files(place), *valid)) == 0
    # a fixture of a module comes before the one that restores it for each test
    torch.set_default_dtype(precision)
    return place / "every"


def test_every_format_is_trained_on_as_the_xyz_is(place: Path, every: Path) -> None:
    """In one order of structures the losses agree, as far as programs print digits."""
    before = losses(every)
    copies = [place / f"copy{number}.xyz" for number in range(len(FILES))]
    for path in copies:
        path.write_bytes((place / "waters.xyz").read_bytes())
    valid = ["--xyz_val", place / "waters.xyz"]
    assert train_mace.main(training(place, "same", "--xyz_train", *copies, *valid)) == 0
    assert before
    assert before == pytest.approx(losses(place / "same"), rel=1e-5)


def test_a_run_goes_on_with_files_of_every_format(place: Path, every: Path) -> None:
    moved = ["--train_file", *files(place), "--valid_file", str(place / "waters.xyz")]
    assert resume.main(["--input_model", str(every), "--epochs", "2", *moved]) == 0
    assert len(losses(every)) > 2


def test_every_format_is_evaluated_alike(place: Path, every: Path) -> None:
    words = [
        "--input_model",
        every / "every_model.pt",
        "--data",
        *files(place),
        "--output_json",
        place / "e.json",
    ]
    assert evaluate.main(list(map(str, words))) == 0
    metrics = json.loads((place / "e.json").read_text())["by_source"]
    assert set(metrics) == set(files(place))
    expected = metrics[str(place / "waters.xyz")]
    for name in FILES:
        for key in ("energy_rmse_per_atom", "forces_rmse", "n_configs", "n_atoms"):
            assert metrics[str(place / name)][key] == pytest.approx(expected[key], rel=1e-4), name


def test_structures_without_labels_are_predicted(
    place: Path, every: Path, capsys: pytest.CaptureFixture
) -> None:
    write(place / "POSCAR", FRAMES[0], format="vasp")
    words = [
        "--input_model",
        every / "every_model.pt",
        "--data",
        place / "POSCAR",
        "--output_xyz",
        place / "p.xyz",
    ]
    assert evaluate.main(list(map(str, words))) == 0
    assert "this is inference" in capsys.readouterr().out
    assert read(place / "p.xyz").arrays["mace_forces"].shape == (3, 3)


def test_every_format_is_packed(place: Path) -> None:
    words = ["--input", *files(place), "--output_dir", str(place / "packed")]
    assert pack.main(words) == 0
    (packed,) = open_sources(
        [SourceSpec(path=place / "packed", format="lmdb")], needs=TO_EVALUATE, max_dropped=0
    )
    assert len(packed) == len(FILES) * len(FRAMES)
    for i in range(len(packed)):
        atoms = FRAMES[i % len(FRAMES)]
        assert packed.structure(i).energy == pytest.approx(energy_of(atoms), abs=1e-6)
        np.testing.assert_allclose(packed.structure(i).forces, forces_of(atoms), atol=1e-6)


def test_every_format_is_measured_and_checked(place: Path, capsys: pytest.CaptureFixture) -> None:
    for name, given in {"every": files(place), "one": [str(place / "waters.xyz")]}.items():
        assert (
            metadata.main(
                ["init", "--train_file", *given, "--output_json", str(place / f"{name}.json")]
            )
            == 0
        )
    every, one = (json.loads((place / f"{name}.json").read_text()) for name in ("every", "one"))
    np.testing.assert_allclose(every["atomic_energies"], one["atomic_energies"], atol=1e-4)
    assert every["avg_num_neighbors"] == pytest.approx(one["avg_num_neighbors"])
    capsys.readouterr()
    assert metadata.main(["check", "--train_file", *files(place)]) == 0
    assert "repeat" in capsys.readouterr().out, "the same structures in every file"


def test_sources_of_a_yaml_name_any_format(place: Path, capsys: pytest.CaptureFixture) -> None:
    text = "sources:\n- {path: old.hdf5, format: hdf5, weight: 2.0}\n- {path: OUTCAR, ratio: 0.5}\n"
    text += "- {path: points.log, role: val}\n"
    (place / "s.yaml").write_text(text)
    assert train_mace.main(training(place, "yaml", "--config", place / "s.yaml", "--dry_run")) == 0
    assert "an epoch takes 2 of the 4 of" in capsys.readouterr().out
    (place / "s.yaml").write_text(text.replace("hdf5, weight", "h5, weight"))
    assert train_mace.main(training(place, "none", "--config", place / "s.yaml")) == 2
    error = capsys.readouterr().err
    assert f"format of {place / 'old.hdf5'}" in error
    assert "'h5' is not known; did you mean hdf5? there are xyz, lmdb, hdf5, ase" in error


def test_help_names_every_format(capsys: pytest.CaptureFixture) -> None:
    for command in (train_mace, evaluate):
        assert command.main(["--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "xyz, lmdb, hdf5, ase" in text


def test_data_are_named_once(place: Path, capsys: pytest.CaptureFixture) -> None:
    words = [
        "--input_model",
        "m.pt",
        "--data",
        str(place / "waters.xyz"),
        "--xyz_path",
        str(place / "waters.xyz"),
    ]
    assert evaluate.main(words) == 2
    assert "--data alone" in capsys.readouterr().err


def held(folder: Path) -> set[str]:
    """Files of a folder that this process has open or mapped."""
    names = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.add(os.readlink(link))
        except OSError:  # of the listing itself
            continue
    for line in Path("/proc/self/maps").read_text().splitlines():
        names.add(line.split(maxsplit=5)[-1])
    return {name for name in names if name.startswith(f"{folder}{os.sep}")}


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is let go is let go by those who held it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


Main = Callable[[list[str]], int]
TAKING: dict[str, tuple[Main, list[str], list[str]]] = {  # words, and more that are refused late
    "train": (
        train_mace.main,
        ["--input_json", "m.json", "--output_checkpoint", "kept", "--epochs", "1", "--train_file"],
        ["--energy_key", "nowhere"],
    ),
    "resume": (
        resume.main,
        ["--input_model", "kept", "--epochs", "2", "--train_file"],
        ["--valid_file", "waters.xyz", "--energy_key", "nowhere"],
    ),
    "evaluate": (
        evaluate.main,
        ["--input_model", "kept/kept_model.pt", "--data"],
        ["--energy_key", "nowhere"],
    ),
    "pack": (
        pack.main,
        ["--output_dir", "kept_packed", "--input"],
        ["--forces_key", "nowhere"],
    ),
    "init": (
        metadata.main,
        ["init", "--output_json", "kept.json", "--train_file"],
        ["--energy_key", "nowhere"],
    ),
    "check": (metadata.main, ["check", "--train_file"], ["--energy_key", "nowhere"]),
}


def test_commands_let_files_go_at_once(
    place: Path, without_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are refused; a program that calls them may then replace the files."""
    monkeypatch.chdir(place)
    for name, (main, words, refused) in TAKING.items():
        for more, good in ((refused, False), ([], True)):
            code = main([*words, *FILES, *more])
            assert (code == 0) is good, (name, more, code)
            assert not held(place), (name, more)
