"""Through the real commands: bad input ends in one line on stderr and its exit code, and
nothing is written over.
"""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

import metadata
import read_model
from conftest import HANGING, ROOT, TINY
from dataloader.errors import InputError
from model_utils import evaluate, train_mace
from model_utils.files import checkpoint
from model_utils.settings import reading
from model_utils.settings.options import CommonOptions, TrainOptions

NETWORK = TINY | {"hidden_irreps": "4x0e", "correlation": 1, "num_interactions": 1}
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
Refused = Callable[..., str]
# A warning of numpy's would be a second line on stderr.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def frame(
    seed: int = 0, *, energy: object = -457.2, words: str = "", positions: np.ndarray | None = None
) -> str:
    """One water with labels, as extended XYZ."""
    rng = np.random.default_rng(seed)
    places = WATER + rng.normal(0, 0.02, (3, 3)) if positions is None else positions
    rows = np.hstack([places, rng.normal(0, 0.1, (3, 3))])
    lines = [
        f"{symbol} {' '.join(map(repr, row.tolist()))}"
        for symbol, row in zip("OHH", rows, strict=True)
    ]
    head = f'Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy={energy} pbc="F F F" {words}'
    return "\n".join(["3", head, *lines, ""])


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder; tmp_path has the test's name in it, which would stand in the
    messages that are looked at.
    """
    return tmp_path_factory.mktemp("x")


@pytest.fixture
def place(folder: Path) -> Path:
    """A folder with a model.json and six structures."""
    return furnished(folder)


def furnished(folder: Path) -> Path:
    (folder / "m.json").write_text(json.dumps(NETWORK))
    (folder / "t.xyz").write_text("".join(map(frame, range(6))))
    return folder


def training(place: Path, *flags: object, out: str = "run") -> list[str]:
    """Arguments of a run of two steps; a flag given again wins."""
    usual = [
        "--input_json",
        place / "m.json",
        "--xyz_train",
        place / "t.xyz",
        "--output_checkpoint",
        place / out,
    ]
    return [
        str(word)
        for word in (*usual, "--epochs", 1, "--batch_size", 2, "--valid_fraction", 0.34, *flags)
    ]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail: its exit code, one line, no traceback, these words in it."""

    def run(
        main: Callable[[list[str]], int],
        argv: list[str],
        *words: str,
        code: int | tuple[int, ...] = 2,
    ) -> str:
        capsys.readouterr()
        returned = main(argv)
        return judged(returned, capsys.readouterr().err, *words, code=code)

    return run


def judged(returned: int, stderr: str, *words: str, code: int | tuple[int, ...] = 2) -> str:
    assert "Traceback" not in stderr, stderr
    assert returned in (code if isinstance(code, tuple) else (code,)), stderr
    lines = stderr.splitlines(keepends=True)
    stderr = "".join(line for line in lines if not line.startswith("note: "))
    assert stderr.startswith("error: "), stderr
    assert stderr.endswith("\n")
    line = stderr.rstrip("\n")
    assert len(line.splitlines()) == 1, stderr
    assert line.isprintable(), "no escape codes from a file"
    assert len(line) < 1000
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"
    return line


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification times of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


@contextmanager
def untouched(folder: Path, *, new: tuple[str, ...] = ()) -> Iterator[None]:
    """Every file stays as it was, to the byte and the nanosecond; at most the
    named ones may be new.
    """
    before = contents(folder)
    yield
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) <= set(new)


# model.json


def texts() -> dict[str, Any]:
    good = json.dumps(NETWORK)

    def with_(**changes: object) -> str:
        fields = {**NETWORK, **changes}
        return json.dumps({name: value for name, value in fields.items() if value is not ...})

    return {
        "cut off": (good[:90], "is not a model.json", "line 1"),
        "empty": ("", "is not a model.json"),
        "a list": ("[1, 2]", "expected an object", "list"),
        "NaN": (good.replace("3.0", "NaN"), "NaN is not a number"),
        "infinite": (good.replace("3.0", "1e999"), "r_max", "finite"),
        "a key twice": (good[:-1] + ', "r_max": 9.0}', "'r_max' stands twice"),
        "an unknown field": (with_(rmax=3.0), "unknown field 'rmax'; did you mean 'r_max'?"),
        "no r_max": (with_(r_max=...), "r_max is missing"),
        "no avg_num_neighbors": (
            with_(avg_num_neighbors=...),
            "avg_num_neighbors is missing",
            "metadata.py fit",
        ),
        "no scale": (
            with_(atomic_inter_scale=...),
            "atomic_inter_scale is missing",
            "metadata.py fit",
        ),
        "no elements": (with_(atomic_numbers=...), "atomic_numbers is missing", "metadata.py fit"),
        "no E0s": pytest.param(with_(atomic_energies=...), "is missing", "metadata.py fit"),
        "an E0 too few": (
            with_(atomic_energies={"H": -13.6}),
            "atomic_energies name [1] but atomic_numbers are [1, 8]",
        ),
        "a number as text": (with_(r_max="3"), "r_max: input should be a valid number (found '3')"),
        "a truth for a number": (
            with_(r_max=True),
            "r_max: input should be a valid number (found True)",
        ),
        "a cutoff below zero": (with_(r_max=-1.0), "r_max: input should be greater than"),
        "a cutoff of a metre": (
            with_(r_max=1e10),
            "r_max: input should be less than or equal to 50",
        ),
        "a cutoff of nothing": pytest.param(
            with_(r_max=1e-10),
            "r_max",
        ),
        "too many channels": (
            with_(hidden_irreps="99999x0e"),
            "hidden_irreps",
            "1 to 4096 channels",
        ),
        "too many layers": (
            with_(num_interactions=10**6, correlation=[1]),
            "num_interactions",
            "12",
        ),
        "too wide a radial network": (with_(radial_MLP=[10**9]), "radial_MLP", "4096"),
        "too high an order": (
            with_(max_ell=11, correlation=6),
            "max_ell 11 with correlation 6 is too large",
        ),
        "5000 digits": (good.replace("3.0", "9" * 5000), "is not a model.json"),
        "nested without end": ("[" * 100_000, "nested too deeply"),
        "two megabytes": (" " * 2**21, "it has more than 1048576 bytes; expected a model.json"),
        "binary": (bytes(range(256)), "is not text", "read_model.py export"),
        "no such gate": (with_(gate="relu"), "gate", "'silu'", "found 'relu'"),
        "irreps that are none": (
            with_(hidden_irreps="128x0"),
            "'128x0' is no irrep, expected for example 128x0e",
        ),
        "escape codes": (with_(**{"\x1b[31mred\n": 1}), "unknown field"),
        "no correlation": pytest.param(with_(correlation=[]), "correlation"),
        "elements in lists": pytest.param(with_(atomic_numbers=[[1], 8]), "atomic_numbers"),
        "heads in lists": pytest.param(
            with_(heads=[["a"]], atomic_energies={"a": [1.0, 2.0]}), "input should be"
        ),
        "elements and nothing": pytest.param(with_(atomic_numbers=[1, None]), "atomic_numbers"),
        "no directions": (with_(max_ell=0), "max_ell: input should be greater than or equal to 1"),
        "an embedding that is none": pytest.param(
            with_(embedding_specs={"total_charge": 1}), "embedding_specs"
        ),
        "what this machine cannot build": pytest.param(
            with_(use_reduced_cg=True), "use_reduced_cg"
        ),
    }


def cases(table: Mapping[str, Any]) -> list[Any]:
    """Rows of a table as parameters: (what is given, words of the message), marked
    where a fault is known.
    """
    rows = []
    for name, row in table.items():
        values, marks = (row.values, row.marks) if hasattr(row, "marks") else (row, ())
        rows.append(pytest.param(values[0], values[1:], id=name, marks=marks))
    return rows


@pytest.mark.parametrize(("content", "words"), cases(texts()))
def test_model_json(
    content: str | bytes, words: tuple[str, ...], place: Path, refused: Refused
) -> None:
    path = place / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with untouched(place, new=("run/train.log",)):
        refused(train_mace.main, training(place, "--input_json", path), str(path), *words)


def test_model_json_that_is_a_directory_or_absent(place: Path, refused: Refused) -> None:
    refused(
        train_mace.main,
        training(place, "--input_json", place),
        str(place),
        "Is a directory",
        "model.json",
    )
    absent = place / "no.json"
    refused(
        train_mace.main,
        training(place, "--input_json", absent),
        str(absent),
        "No such file",
        "model.json",
    )
    assert not (place / "run").exists()


def test_model_json_that_asks_for_100_gigabytes(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> None:
        raise AssertionError("it was taken for a network that can be built")

    monkeypatch.setattr("model_utils.model_loader.build_module", build)
    large = NETWORK | {
        "hidden_irreps": "4096x0e+4096x1o",
        "num_interactions": 12,
        "radial_MLP": [4096] * 16,
    }
    (place / "m.json").write_text(json.dumps(large))
    refused(train_mace.main, training(place), str(place / "m.json"), "hidden_irreps")


# YAML

GOOD_YAML = (
    "input_json: m.json\n"
    "xyz_train: t.xyz\n"
    "output_checkpoint: run\n"
    "epochs: 1\n"
    "valid_fraction: 0.34\n"
)
NOT_CAUGHT = (
    "reading.py:_read_yaml: PyYAML's constructors raise ValueError, KeyError, "
    "AttributeError too: a traceback"
)
NO_FILE = "cli.py:_one_line: a value refused by our converters is reported without the YAML file"

YAMLS: dict[str, Any] = {
    "not YAML": ("lr: [1, 2\nepochs: }", "is not YAML", "line 2"),
    "tabs": (f"{GOOD_YAML}\tlr: 1\n", "is not YAML"),
    "binary": (bytes(range(256)), "is not YAML"),
    "an unknown key": (f"{GOOD_YAML}epoch: 3\n", "unknown setting 'epoch'", "did you mean epochs?"),
    "a key with dashes": (f"{GOOD_YAML}--lr: 3\n", "unknown setting '--lr'", "did you mean lr?"),
    "mace's key": (
        f"{GOOD_YAML}max_num_epochs: 3\n",
        "'max_num_epochs'",
        "mace_run_train's: use --epochs",
    ),
    "a number as key": (f"{GOOD_YAML}1: 3\n", "unknown setting 1"),
    "a key twice": (
        f"{GOOD_YAML}lr: 1\nlr: 2\n",
        "'lr' stands twice",
        f"line {GOOD_YAML.count(chr(10)) + 2}",
    ),
    "a list": ("- a\n- b\n", "holds a list, expected lines like `lr: 0.01`"),
    "a word": ("hello\n", "holds a str, expected lines like `lr: 0.01`"),
    "a mapping for a number": (f"{GOOD_YAML}lr: {{a: 1}}\n", "lr", "expected a plain value"),
    "a list for a number": (f"{GOOD_YAML}lr: [1, 2]\n", "lr"),
    "a choice that is none": (f"{GOOD_YAML}scheduler: cos\n", "scheduler", "did you mean cosine?"),
    "below the range": (f"{GOOD_YAML}lr: -1\n", "lr", "Must be > 0"),
    "an alias bomb": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "aliases (*name) are not supported",
    ),
    "a list of itself": (f"{GOOD_YAML}lr: &a [*a]\n", "aliases (*name) are not supported"),
    "Python": (
        f"{GOOD_YAML}lr: !!python/object/apply:os.mkdir [ran]\n",
        "could not determine a constructor",
    ),
    "nested without end": ("[" * 20_000, "is not YAML"),
    "a source without a path": (f"{GOOD_YAML}sources: [{{role: train}}]\n", "path is missing"),
    "an empty path": (
        "input_json: m.json\nxyz_train: t.xyz\noutput_checkpoint: ''\n",
        "output_checkpoint in",
        "is empty",
    ),
    "a source's unknown key": (
        f"{GOOD_YAML}sources: [{{path: t.xyz, rol: train}}]\n",
        "sources have no entry 'rol'",
        "did you mean role?",
    ),
    "a source's role": (
        f"{GOOD_YAML}sources: [{{path: t.xyz, role: trian}}]\n",
        'Did you mean "train"?',
    ),
    "words for a number": pytest.param(f"{GOOD_YAML}lr: fast\n", "lr", "'fast'"),
    "NaN": pytest.param(f"{GOOD_YAML}lr: .nan\n", "lr", "finite"),
    "half an epoch": pytest.param(f"{GOOD_YAML}patience: 1.5\n", "patience", "whole number"),
    "nothing for a number": pytest.param(f"{GOOD_YAML}lr: null\n", "lr"),
    "no such day": pytest.param(f"{GOOD_YAML}energy_key: 2020-99-99\n", "is not YAML"),
    "a tag that lies": pytest.param(f"{GOOD_YAML}lr: !!float fast\n", "is not YAML"),
    "5000 digits": pytest.param(f"{GOOD_YAML}seed: {'9' * 5000}\n", "is not YAML"),
    "a source that is no file": pytest.param(f"{GOOD_YAML}sources: 3\n", "sources"),
}


@pytest.mark.parametrize(("content", "words"), cases(YAMLS))
def test_yaml(
    content: str | bytes,
    words: tuple[str, ...],
    place: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    path = place / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    # a source's missing path is named as the flag would be
    where = () if words == ("path is missing",) or '"rol"' in words else (str(path),)
    with untouched(place):
        refused(train_mace.main, ["--config", str(path)], *where, *words)
    assert not (place / "run").exists()
    assert not (place / "ran").exists()


def test_yaml_that_is_absent_or_a_directory(place: Path, refused: Refused) -> None:
    absent = place / "no.yaml"
    refused(
        train_mace.main,
        ["--config", str(absent)],
        str(absent),
        "No such file",
        "a YAML file of settings",
    )
    refused(
        train_mace.main,
        ["--config", str(place)],
        str(place),
        "Is a directory",
        "a YAML file of settings",
    )
    refused(train_mace.main, ["--config"], "--config needs a file name")


def test_paths_in_a_yaml_are_relative_to_it(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "below").mkdir()
    (place / "below/c.yaml").write_text(
        "input_json: ../m.json\nxyz_train: [../t.xyz, no.xyz]\noutput_checkpoint: out\n"
    )
    monkeypatch.chdir(place)
    refused(train_mace.main, ["--config", "below/c.yaml"], "below/no.xyz does not exist")
    (place / "no.xyz").write_text(frame())  # beside the caller, not beside the YAML: of no help
    refused(train_mace.main, ["--config", "below/c.yaml"], "below/no.xyz does not exist")
    assert not (place / "out").exists()


def test_the_resolved_settings_can_be_given_back(trained: Path, place: Path) -> None:
    (place / "again.yaml").write_bytes((trained / "run/config.resolved.yaml").read_bytes())
    again = reading.parse(TrainOptions, ["--config", str(place / "again.yaml")])
    assert again is not None
    assert dataclasses.replace(again, common=CommonOptions()) == reading.parse(
        TrainOptions, training(trained)
    )


def test_a_yaml_that_names_a_further_one(place: Path, refused: Refused) -> None:
    (place / "c.yaml").write_text(GOOD_YAML + "config: d.yaml\n")
    line = refused(
        train_mace.main, ["--config", str(place / "c.yaml")], str(place / "c.yaml"), "config"
    )
    assert "did you mean config" not in line


def test_the_last_config_wins_like_any_flag(place: Path) -> None:
    (place / "a.yaml").write_text(GOOD_YAML + "lr: 0.5\n")
    (place / "b.yaml").write_text(GOOD_YAML + "lr: 0.25\n")
    options = reading.parse(
        TrainOptions, ["--config", str(place / "a.yaml"), "--config", str(place / "b.yaml")]
    )
    assert options is not None
    assert options.optimizer.lr == 0.25


# Flags

MACES_FLAGS = {
    "test_dir": "--test_file with the folder",
    "max_num_epochs": "--epochs",
    "default_dtype": "--dtype",
    "foundation_model": "finetune.py --input_model",
    "restart_latest": "--resume auto",
    "swa": "--stage_two",
    "start_swa": "--start_stage_two",
    "swa_lr": "--stage_two_lr",
    "swa_energy_weight": "--stage_two_energy_weight",
    "E0s": "atomic_energies in model.json",
    "r_max": "model.json",
    "num_channels": "hidden_irreps",
    "max_L": "hidden_irreps",
    "hidden_irreps": "model.json",
    "model": "model_class",
    "valid_batch_size": "--batch_size",
    "eval_interval": "--validate_every",
    "virials_key": "--stress_key",
    "work_dir": "--output_checkpoint",
    "wandb": "--loggers wandb",
}


@pytest.mark.parametrize("flag", MACES_FLAGS)
def test_a_flag_of_mace_run_train_is_answered_with_ours(flag: str, refused: Refused) -> None:
    words = (f"unknown flag --{flag}, which is mace_run_train's", MACES_FLAGS[flag])
    refused(train_mace.main, [f"--{flag}", "x"], *words)
    refused(train_mace.main, [f"--{flag}=x"], *words)


FLAGS: dict[str, Any] = {
    "an unknown one": (("--epoch", 3), "unknown flag --epoch", "did you mean --epochs?"),
    "a hyphen": (("--batch-size", 3), "unknown flag --batch-size", "did you mean --batch_size?"),
    "nothing like it": (("--quux", 3), "unknown flag --quux", "--help"),
    "no flag": (("t.xyz",), "'t.xyz'", "--help"),
    "no value": (("--lr",), "--lr"),
    "words for a number": (("--lr", "fast"), "--lr", "expected a number, found 'fast'"),
    "NaN": (("--lr", "nan"), "--lr", "expected a finite number"),
    "infinite": (("--clip_grad", "inf"), "--clip_grad", "expected a finite number"),
    "negative": (("--lr", "-1"), "--lr", "Must be > 0"),
    "zero": (("--epochs", 0), "--epochs", "Must be >= 1"),
    "half an epoch": (("--epochs", "1.5"), "--epochs", "expected a whole number, found '1.5'"),
    "a share of one": (("--valid_fraction", 1), "--valid_fraction", "Must be < 1"),
    "a precision": (("--dtype", "float16"), "--dtype", "float32 or float64"),
    "a device": (("--device", "gpu"), "--device gpu", "cpu, cuda, cuda:N or auto"),
    "a device that is absent": (("--device", "cuda:99"), "--device cuda:99", "CUDA device(s)"),
    "a numbered processor": (("--device", "cpu:7"), "--device cpu:7", "--threads"),
    "a place without a name": (("--output_checkpoint", ""), "--output_checkpoint is empty"),
    "a model without a name": (("--output_model=",), "--output_model is empty"),
    "a duration": (("--time_limit", "soon"), "--time_limit", "'soon'"),
    "a format": (
        ("--data_format", "hdf"),
        "--data_format",
        "did you mean hdf5?",
        "xyz, lmdb, hdf5, ase",
    ),
    "format and files": (
        ("--data_format", "lmdb"),
        "--data_format lmdb",
        "t.xyz",
        "drop one of the two",
    ),
    "resume and overwrite": (
        ("--resume", "auto", "--overwrite"),
        "--resume and --overwrite contradict",
    ),
    "half a stage two": (
        ("--start_stage_two", 3),
        "--start_stage_two",
        "add --stage_two or drop it",
    ),
    "nothing to train on": (("--energy_weight", 0, "--forces_weight", 0), "all loss weights are 0"),
    "one name for two files": (
        ("--output_model", "run/run_checkpoint.pt"),
        "--output_checkpoint",
        "--output_model",
    ),
    "a seed of 30 digits": pytest.param(("--seed", "9" * 30), "--seed"),
    "epochs of 50 digits": pytest.param(("--epochs", "9" * 400), "--epochs"),
    "a rate of 1e300": pytest.param(("--lr", "1e300"), "--lr"),
    "a decay of 1e300": pytest.param(("--weight_decay", "1e300"), "--weight_decay"),
    "a duration of nothing": pytest.param(("--time_limit", "0:00"), "--time_limit"),
    "a key without a name": pytest.param(("--energy_key", ""), "--energy_key", "empty"),
}


@pytest.mark.parametrize(("flags", "words"), cases(FLAGS))
def test_flags(
    flags: tuple[object, ...],
    words: tuple[str, ...],
    place: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    with untouched(place):
        refused(train_mace.main, training(place, "--output_checkpoint", "run", *flags), *words)


def test_a_hundred_million_threads_are_refused(place: Path) -> None:
    with pytest.raises(InputError, match="--threads"):
        reading.parse(TrainOptions, training(place, "--threads", 10**8))


def test_what_is_missing_is_named(place: Path, refused: Refused) -> None:
    refused(train_mace.main, [], "--output_checkpoint is missing")
    refused(train_mace.main, ["--output_checkpoint", str(place / "run")], "--input_json is missing")
    given = ["--output_checkpoint", str(place / "run"), "--input_json", str(place / "m.json")]
    refused(train_mace.main, given, "no training data", "--xyz_train or --lmdb_train")
    refused(evaluate.main, [], "--input_model is missing")
    refused(evaluate.main, ["--input_model", "x.pt"], "--xyz_path or --lmdb_path")
    refused(
        evaluate.main, ["--input_model", "x.pt", "--xyz_path", "a", "--lmdb_path", "b"], "either"
    )


# Data files


def data_files() -> dict[str, Any]:
    good = frame()
    coincident = np.array([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]])
    return {
        "empty": ("", "holds no frames; expected an extended-XYZ file"),
        "binary": (bytes(range(256)), "extended"),
        "gzip": pytest.param(gzip.compress(good.encode()), "unpack"),
        "bzip2": pytest.param(bz2.compress(good.encode()), "unpack"),
        "xz": pytest.param(lzma.compress(good.encode()), "unpack"),
        "a web page": ("<html></html>\n", "frame 0", "<html>"),
        "no such element": pytest.param(good.replace("\nO", "\nQq"), "Qq", "element"),
        "cut off": (good + good[:120], "frame 1", "expected 3"),
        "no forces": (
            good.replace("REF_forces", "dft"),
            "frame 0",
            "forces missing",
            "has: REF_energy, dft",
            "--forces_key",
        ),
        "no energy": (
            good + good.replace("REF_energy", "dft"),
            "frame 1",
            "energy missing",
            "--energy_key",
        ),
        "an energy of NaN": (good + frame(energy="nan"), "frame 1", "energy is NaN"),
        "a position of NaN": (
            good + frame(positions=np.full((3, 3), np.nan)),
            "frame 1",
            "not finite",
        ),
        "a foreign element": (
            good + good.replace("\nO ", "\nFe "),
            "#1",
            "Fe (Z=26) is not in model.json",
            "--elements",
        ),
        "an unknown head": (good + frame(words="head=dft"), "#1", "head 'dft'", "['Default']"),
        "only isolated atoms": (
            "1\nREF_energy=-13.6 config_type=IsolatedAtom\nH 0 0 0\n",
            "no structure is left",
        ),
        "two atoms in one place": pytest.param(
            *(good + frame(positions=coincident), "#1", "0 Å apart"),
        ),
        "two fixed of three": pytest.param(
            *(good + frame(words='fixed="1 0"'), "frame 1", "fixed"),
        ),
    }


@pytest.mark.parametrize(("content", "words"), cases(data_files()))
def test_xyz(content: str | bytes, words: tuple[str, ...], place: Path, refused: Refused) -> None:
    path = place / "bad.xyz"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = ("--xyz_train", path, "--xyz_val", place / "t.xyz")
    where = () if words == ("no structure is left",) else (str(path),)
    with untouched(place, new=("run/train.log",)):
        refused(train_mace.main, training(place, *flags), *where, *words)


@pytest.mark.parametrize(
    "flag", ["--xyz_train", "--xyz_val", "--xyz_test", "--lmdb_train", "--lmdb_val", "--lmdb_test"]
)
def test_data_that_are_absent(flag: str, place: Path, refused: Refused) -> None:
    absent = place / "no.data"
    with untouched(place, new=("run/train.log",)):
        refused(
            train_mace.main,
            training(place, flag, absent),
            f"{absent} does not exist",
            flag[2:].partition("_")[0],
        )


def test_directories_and_texts_in_place_of_data(place: Path, refused: Refused) -> None:
    (place / "none").mkdir()
    with untouched(place, new=("run/train.log",)):
        words = ("without a file to read", "extended-XYZ", "by a pattern")
        refused(
            train_mace.main,
            training(place, "--xyz_val", place / "none"),
            str(place / "none"),
            *words,
        )
    with untouched(place, new=("run/train.log",)):
        refused(
            train_mace.main,
            training(place, "--lmdb_val", place),
            str(place),
            "a directory without a data.mdb",
        )
    (place / "empty").write_text("")
    (place / "page.lmdb").write_text("<!DOCTYPE html>")
    for name, words in {
        "t.xyz": "is not an LMDB",
        "empty": "is empty",
        "page.lmdb": "an HTML page",
    }.items():
        refused(
            train_mace.main, training(place, "--lmdb_val", place / name), str(place / name), words
        )


def water_lmdb(folder: Path) -> Path:
    """Five waters as plain dicts."""
    path = folder / "some.lmdb"
    environment = lmdb.open(str(path), subdir=False, map_size=2**20)
    with environment.begin(write=True) as transaction:
        for i in range(5):
            row = {
                "pos": WATER,
                "atomic_numbers": np.array([8, 1, 1]),
                "energy": -457.0,
                "forces": 0 * WATER,
            }
            transaction.put(str(i).encode(), pickle.dumps(row))
    environment.close()
    return path


def test_lmdb_with_a_mistyped_key_trains_on_nothing(place: Path, refused: Refused) -> None:
    path = water_lmdb(place)
    words = ("5 of 5 records", "forces missing (keys 0, 1, 2)", "--forces_key", "--max_dropped")
    flags = ("--lmdb_train", path, "--xyz_train", place / "t.xyz", "--forces_key", "REF_forces")
    with untouched(place, new=("run/train.log",)):
        refused(train_mace.main, training(place, *flags), str(path), *words)


def test_a_stress_that_no_structure_has_is_refused(place: Path, refused: Refused) -> None:
    refused(
        train_mace.main, training(place, "--stress_key", "dft_stress"), "stress", "--stress_key"
    )


@pytest.mark.parametrize("share", [0, 0.01, 0.99])
def test_a_split_that_leaves_nothing(share: float, place: Path, refused: Refused) -> None:
    refused(
        train_mace.main,
        training(place, "--valid_fraction", share),
        f"--valid_fraction {share:g} of 6 structures",
    )


@pytest.mark.parametrize("what", ["atoms", "edges"])
def test_a_structure_larger_than_the_budget(what: str, place: Path, refused: Refused) -> None:
    size = {"atoms": 3, "edges": 6}[what]
    words = (f"has {size} {what}, more than --max_{what}_per_batch 2", f"at least {size}")
    refused(train_mace.main, training(place, f"--max_{what}_per_batch", 2), "t.xyz#", *words)


@pytest.mark.parametrize("value", ["nan", "7", "'1 2'"])
def test_an_embedded_number_that_is_none(value: str, place: Path, refused: Refused) -> None:
    spin = {"type": "categorical", "per": "graph", "emb_dim": 4, "num_classes": 3}
    (place / "m.json").write_text(json.dumps(NETWORK | {"embedding_specs": {"total_spin": spin}}))
    word = f"total_spin={value}".replace("'", '"')
    (place / "t.xyz").write_text("".join(frame(k, words=word) for k in range(6)))
    with untouched(place, new=("run/train.log",)):
        refused(train_mace.main, training(place), f"{place / 't.xyz'} frame 0", "total_spin")


def test_an_embedded_number_that_an_lmdb_lacks(place: Path, refused: Refused) -> None:
    charge = {"type": "continuous", "per": "graph", "emb_dim": 4}
    (place / "m.json").write_text(
        json.dumps(NETWORK | {"embedding_specs": {"total_charge": charge}})
    )
    refused(
        train_mace.main,
        training(place, "--xyz_train", "--lmdb_train", water_lmdb(place)),
        "total_charge",
    )


# Output places


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model.json, data, and the run that was trained on them."""
    folder = furnished(tmp_path_factory.mktemp("x"))
    before = torch.get_default_dtype()
    assert train_mace.main(training(folder)) == 0
    torch.set_default_dtype(before)
    return folder


@pytest.fixture
def own(trained: Path, folder: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(trained, folder, dirs_exist_ok=True))


def test_another_runs_files_are_refused_and_untouched(own: Path, refused: Refused) -> None:
    words = ("belongs to another run", "--resume auto", "--overwrite", "--output_checkpoint")
    with untouched(own):
        refused(train_mace.main, training(own), str(own / "run/run_checkpoint.pt"), *words)
        refused(
            train_mace.main,
            training(own, out="run/other.pt"),
            str(own / "run/metrics.jsonl"),
            *words,
        )
        elsewhere = training(own, "--output_model", own / "run", out="two")
        refused(train_mace.main, elsewhere, str(own / "run/run_model.pt"), *words)
    (own / "run/run_checkpoint.pt").rename(own / "run/run_checkpoint.prev.pt")
    with untouched(own):
        refused(train_mace.main, training(own), str(own / "run/run_checkpoint.prev.pt"), *words)


def test_another_model_json_is_refused_and_untouched(place: Path, refused: Refused) -> None:
    (place / "run").mkdir()
    (place / "run/run_model.json").write_text("{}")
    with untouched(place):
        refused(
            train_mace.main,
            training(place),
            str(place / "run/run_model.json"),
            "other content",
            "--overwrite",
        )


def test_two_outputs_at_one_place(place: Path, refused: Refused) -> None:
    asked = evaluation(place, place / "no.pt", "--output_json", place / "o.x")
    with untouched(place):
        for flag in ("--output_table", "--output_xyz", "--report"):
            given = [*asked, flag, f"{place}/./o.x"]
            refused(evaluate.main, given, f"--output_json and {flag} are both", "different names")


def test_an_output_at_the_place_of_an_input(own: Path, refused: Refused) -> None:
    words = ("are both", "is read and would be replaced")
    data, model, linked = own / "t.xyz", own / "run/run_model.pt", own / "linked"
    linked.symlink_to(own)
    with untouched(own):
        over = evaluation(own, model, "--overwrite")
        refused(evaluate.main, [*over, "--output_xyz", str(linked / "t.xyz")], "the data", *words)
        refused(evaluate.main, [*over, "--output_json", str(model)], "--input_model", *words)
        init = ["init", "--train_file", str(own / "*.xyz"), "--overwrite", "--output_json"]
        refused(metadata.main, [*init, str(data)], "--output_json and the data", *words)
        export = ["export", "--input_model", str(model), "--overwrite", "--output_json"]
        refused(read_model.main, [*export, str(model)], "--input_model", *words)
        other = own / "other.pt"
        shutil.copy(model, other)
        convert = ["convert", "--input_model", str(other), "--to", "module", "--overwrite"]
        refused(read_model.main, [*convert, "--output", str(other)], "--input_model", *words)
        other.unlink()


@pytest.mark.parametrize("name", ["train.log", "valid_structures.txt"])
def test_another_programs_files_are_refused_and_untouched(
    name: str, place: Path, refused: Refused
) -> None:
    (place / "run").mkdir()
    (place / "run" / name).write_text("three weeks of work\n")
    with untouched(place):
        refused(train_mace.main, training(place), str(place / "run" / name))


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--xyz_train", "no.xyz"), id="data that are absent"),
        pytest.param(("--energy_key", "dft_energy"), id="a mistyped key"),
        pytest.param(("--valid_fraction", 0), id="an impossible split"),
    ],
)
def test_overwriting_with_a_bad_input_keeps_the_old_run(
    flags: tuple[object, ...], own: Path, refused: Refused
) -> None:
    before = contents(own)
    refused(train_mace.main, training(own, "--overwrite", *flags))
    after = contents(own)
    del before["run/train.log"], after["run/train.log"]  # may be added to
    assert after == before


def test_overwriting_leaves_nothing_of_the_old_run(own: Path) -> None:
    before = contents(own / "run")
    assert train_mace.main(training(own, "--overwrite", "--no_export_mace_model")) == 0
    after = contents(own / "run")
    assert set(before) - set(after) == {"run.model"}
    assert (
        checkpoint.read(own / "run/run_checkpoint.prev.pt").content["train_state"]["reason"]
        == "start"
    )
    for name in ("metrics.jsonl", "train.log"):
        assert 0 < len(after[name][0].splitlines()) <= len(before[name][0].splitlines()), (
            "it was begun anew"
        )


def test_overwriting_with_a_mistake_seen_at_once_keeps_the_old_run(
    own: Path, refused: Refused
) -> None:
    (own / "bad.json").write_text("{")
    with untouched(own):
        refused(
            train_mace.main,
            training(own, "--overwrite", "--input_json", own / "bad.json"),
            "bad.json",
        )
        refused(train_mace.main, training(own, "--overwrite", "--device", "gpu"), "--device gpu")
        assert train_mace.main(training(own, "--overwrite", "--dry_run")) == 0


def test_places_that_cannot_hold_a_run(place: Path, refused: Refused) -> None:
    file = place / "t.xyz"
    (place / "folder.pt").mkdir()
    with untouched(place):
        refused(
            train_mace.main,
            training(place, out="t.xyz"),
            f"{file} is a file",
            "a directory or a path ending in .pt",
        )
        refused(
            train_mace.main,
            training(place, "--output_model", file),
            f"{file} is a file",
            "a path ending in .pt",
        )
        refused(
            train_mace.main, training(place, out="folder.pt"), "folder.pt is a directory", "rename"
        )
        refused(
            train_mace.main,
            training(place, out="t.xyz/run"),
            f"{file}/run",
            "Not a directory",
            "--output_checkpoint",
        )
        refused(
            train_mace.main,
            training(place, "--output_model", file / "m.pt"),
            str(file),
            "cannot create",
        )
    assert {path.name for path in place.rglob("*")} <= {"folder.pt", "m.json", "run", "t.xyz"}, (
        "an empty run at most"
    )


@pytest.mark.parametrize(
    "name", ["train.log", "metrics.jsonl", "valid_structures.txt", "run_model.json"]
)
def test_a_directory_in_the_place_of_a_file(name: str, place: Path, refused: Refused) -> None:
    (place / "run" / name).mkdir(parents=True)
    flags = () if name != "metrics.jsonl" else ("--overwrite",)
    refused(train_mace.main, training(place, *flags), str(place / "run" / name))


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a directory in which even root cannot write"
)
def test_a_directory_without_write_permission(place: Path, refused: Refused) -> None:
    refused(
        train_mace.main,
        training(place, "--output_checkpoint", "/proc/self"),
        "/proc/self",
        "--output_checkpoint",
    )


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["too long", "a null byte"])
def test_a_name_that_cannot_exist(name: str, place: Path, refused: Refused) -> None:
    refused(train_mace.main, training(place, out=name), "--output_checkpoint")


# Resuming


def test_resuming_another_model_or_other_data(own: Path, refused: Refused) -> None:
    (own / "other.json").write_text(json.dumps(NETWORK | {"r_max": 4.0}))
    (own / "more.xyz").write_text("".join(map(frame, range(7))))
    flags = ("--resume", "auto", "--epochs", 2)
    with untouched(own):
        other = training(own, *flags, "--input_json", own / "other.json")
        refused(
            train_mace.main,
            other,
            "run_checkpoint.pt",
            "other.json",
            "r_max: 3.0 against 4.0",
            code=3,
        )
    before = contents(own / "run")
    more = training(own, *flags, "--xyz_train", own / "more.xyz")
    refused(
        train_mace.main,
        more,
        "run_checkpoint.pt",
        "the train data are not those of",
        "begin a new run elsewhere",
        code=3,
    )
    after = contents(own / "run")
    assert after["run_checkpoint.pt"] == before["run_checkpoint.pt"]
    assert after["run_model.pt"] == before["run_model.pt"]


def test_resuming_on_other_data_of_the_same_sizes(own: Path, refused: Refused) -> None:
    (own / "t.xyz").write_text("".join(map(frame, range(100, 106))))
    refused(
        train_mace.main,
        training(own, "--resume", "auto", "--epochs", 2),
        "the train data are not those",
        code=3,
    )


def test_resuming_where_every_checkpoint_is_damaged(own: Path, refused: Refused) -> None:
    path = own / "run/run_checkpoint.pt"
    (own / "run/run_checkpoint.prev.pt").unlink()
    path.write_bytes(path.read_bytes()[:-100])
    with untouched(own):
        refused(train_mace.main, training(own, "--resume", "auto"), str(path), "cut off", code=3)
    (own / "run/run_checkpoint.prev.pt").write_bytes(b"")
    with untouched(own):
        refused(train_mace.main, training(own, "--resume", "auto"), "run_checkpoint", code=3)


# evaluate


class Bomb:
    """Leaves a file behind where it is unpickled the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def saved(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def evaluation(folder: Path, model: Path, *flags: object) -> list[str]:
    return [str(word) for word in ("--input_model", model, "--xyz_path", folder / "t.xyz", *flags)]


def test_weights_that_are_no_file(trained: Path, refused: Refused) -> None:
    for path, words in {
        trained / "no_model.pt": "No such file",
        trained / "run": "is a directory",
    }.items():
        refused(
            evaluate.main,
            evaluation(trained, path),
            str(path),
            words,
            "*_checkpoint.pt or *_model.pt",
        )


def damages(good: bytes) -> dict[str, bytes]:
    """What can become of a weights file, and what never was one."""

    def flipped(part: bytes) -> bytes:
        content = bytearray(good)
        content[good.index(part)] ^= 0x10
        return bytes(content)

    energies = np.array([-13.6, -430.0], dtype=np.float32)

    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return {
        "cut off at the end": good[:-100],
        "cut in half": good[: len(good) // 2],
        "empty": b"",
        "a bit flipped in the pickle": flipped(b"model_json_text"),
        "a bit flipped in a tensor": flipped(energies.tobytes()),
        "another zip": other.getvalue(),
        "another network's weights": saved({"model": {"a": torch.zeros(3)}}),
        "a list": saved([1, 2]),
        "a pickle": pickle.dumps({"a": 1}),
    }


DAMAGES = (
    "cut off at the end",
    "cut in half",
    "empty",
    "a bit flipped in the pickle",
    "a bit flipped in a tensor",
)
FOREIGN = ("another zip", "another network's weights", "a list", "a pickle")


@pytest.mark.parametrize("case", [*DAMAGES, *FOREIGN])
@pytest.mark.parametrize("name", ["run_model.pt", "run_checkpoint.pt"])
def test_damaged_and_foreign_weights(
    case: str, name: str, trained: Path, folder: Path, refused: Refused
) -> None:
    path = folder / "x_model.pt"
    path.write_bytes(damages((trained / "run" / name).read_bytes())[case])
    with untouched(folder):
        refused(
            evaluate.main,
            evaluation(trained, path),
            str(path),
            code=3 if case in DAMAGES else (2, 3),
        )


def test_a_foreign_zip_is_called_what_it_is(trained: Path, folder: Path, refused: Refused) -> None:
    path = folder / "x_model.pt"
    path.write_bytes(damages((trained / "run/run_model.pt").read_bytes())["another zip"])
    assert "running code" not in refused(
        evaluate.main, evaluation(trained, path), str(path), code=3
    )


@pytest.mark.parametrize(
    "wrap", ["a bare pickle", "torch's zip", "torch's old format", "with our keys"]
)
def test_code_in_weights_never_runs(
    wrap: str, trained: Path, folder: Path, refused: Refused
) -> None:
    marker, path = folder / "ran", folder / "x_model.pt"
    bomb = Bomb(marker)
    ours = {"format_version": 1, "digest": "", "model_json_text": "{}", "model": bomb}
    contents_of = {
        "a bare pickle": pickle.dumps(bomb),
        "torch's zip": saved(bomb),
        "torch's old format": saved(bomb, zipped=False),
        "with our keys": saved(ours),
    }
    path.write_bytes(contents_of[wrap])
    refused(evaluate.main, evaluation(trained, path), str(path), code=(2, 3))
    assert not marker.exists()
    pickle.loads(contents_of["a bare pickle"])
    assert marker.exists(), "read trustingly, it does run"


def test_a_model_json_beside_that_was_edited(own: Path, refused: Refused) -> None:
    path = own / "run/run_model.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"r_max": 4.5}))
    with untouched(own):
        for name in ("run_model.pt", "run_checkpoint.pt"):
            words = (str(path), "r_max: 3.0 against 4.5", "edited after training")
            refused(evaluate.main, evaluation(own, own / "run" / name), *words, code=3)
    path.write_text("{")
    with untouched(own):
        refused(
            evaluate.main, evaluation(own, own / "run/run_model.pt"), str(path), "rules", code=3
        )


def test_a_model_json_given_that_is_another(own: Path, refused: Refused) -> None:
    other, weights = own / "other.json", own / "run/run_model.pt"
    other.write_text(json.dumps(NETWORK | {"atomic_energies": {"H": -13.6, "O": -431.0}}))
    with untouched(own):
        words = (str(other), str(weights), "atomic_energies")
        refused(evaluate.main, evaluation(own, weights, "--input_json", other), *words, code=3)


def test_nobody_is_told_to_remove_their_own_model_json(own: Path, refused: Refused) -> None:
    (own / "other.json").write_text(json.dumps(NETWORK | {"r_max": 4.0}))
    arguments = evaluation(own, own / "run/run_model.pt", "--input_json", own / "other.json")
    assert "remove it" not in refused(evaluate.main, arguments, "other.json", code=3)


def forged(path: Path, **changes: object) -> bytes:
    """One of our files with other content and a digest that fits it; ``...`` takes an entry out."""
    content = torch.load(path, weights_only=False)
    content = {
        name: value
        for name, value in {**content, **changes}.items()
        if value is not ... and name != "model"
    }
    content.pop("digest")
    return saved({**content, "digest": checkpoint.digest(content)})


def test_weights_that_were_changed_and_saved_again(own: Path, refused: Refused) -> None:
    path = own / "run/run_checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["train_state"]["step"] += 1
    path.write_bytes(saved(content))
    refused(evaluate.main, evaluation(own, path), str(path), "does not match the digest", code=3)


def test_a_file_of_a_newer_toolkit(own: Path, refused: Refused) -> None:
    path = own / "run/run_model.pt"
    path.write_bytes(forged(path, format_version=99))
    refused(
        evaluate.main, evaluation(own, path), str(path), "format 99", "update the toolkit", code=3
    )


def test_a_model_json_inside_that_cannot_be_read(own: Path, refused: Refused) -> None:
    import hashlib

    path = own / "run/run_model.pt"
    text = (
        (own / "run/run_model.json")
        .read_text()
        .replace('"schema_version": 1', '"schema_version": 99')
    )
    path.write_bytes(
        forged(
            path, model_json_text=text, model_json_hash=hashlib.sha256(text.encode()).hexdigest()
        )
    )
    refused(evaluate.main, evaluation(own, path), str(path), "schema_version", code=3)


@pytest.mark.parametrize("key", ["kind", "weights", "model_state_dict", "model_json_hash", "epoch"])
def test_a_file_of_ours_that_lacks_an_entry(key: str, own: Path, refused: Refused) -> None:
    path = own / "run/run_model.pt"
    path.write_bytes(forged(path, **{key: ...}))
    refused(evaluate.main, evaluation(own, path), str(path), key, code=3)


@pytest.mark.parametrize("tensors", [{}, {"a": "b"}], ids=["none", "text"])
def test_a_file_of_ours_without_tensors(tensors: object, own: Path, refused: Refused) -> None:
    path = own / "run/run_model.pt"
    path.write_bytes(forged(path, model_state_dict=tensors))
    refused(evaluate.main, evaluation(own, path), str(path), "model_state_dict", code=3)


def test_weights_that_do_not_fit_their_model_json(own: Path, refused: Refused) -> None:
    path = own / "run/run_model.pt"
    tensors = checkpoint.read(path).tensors
    name = next(name for name in tensors if name.startswith("readouts"))
    path.write_bytes(forged(path, model_state_dict={n: t for n, t in tensors.items() if n != name}))
    refused(evaluate.main, evaluation(own, path), str(path), f"{name} is missing", code=3)
    path.write_bytes(
        forged(path, model_state_dict=tensors | {"r_max": torch.tensor(4.0, dtype=torch.float32)})
    )
    refused(evaluate.main, evaluation(own, path), str(path), "r_max", "[4.0]", "[3.0]", code=3)


def test_structures_that_the_model_cannot_take(own: Path, refused: Refused) -> None:
    (own / "t.xyz").write_text(frame() + frame().replace("\nO ", "\nFe "))
    model = own / "run/run_model.pt"
    refused(
        evaluate.main,
        evaluation(own, model),
        "t.xyz#1",
        "Fe (Z=26) is not in model.json",
        "--elements",
    )
    (own / "t.xyz").write_text(frame())
    refused(
        evaluate.main,
        evaluation(own, model, "--head", "dft"),
        "t.xyz#0",
        "head 'dft'",
        "['Default']",
    )
    refused(
        evaluate.main, evaluation(own, model, "--xyz_path", own / "no.xyz"), "no.xyz does not exist"
    )


def test_results_are_never_written_over(own: Path, refused: Refused) -> None:
    model, file = own / "run/run_model.pt", own / "t.xyz"
    with untouched(own):
        refused(
            evaluate.main,
            evaluation(own, model, "--output_json", file),
            str(file),
            "there already",
            "--overwrite",
        )
        below = file / "errors.json"
        refused(
            evaluate.main,
            evaluation(own, model, "--output_json", below),
            f"cannot write --output_json {below}",
        )
        refused(
            evaluate.main,
            evaluation(own, model, "--output_json", own / "run", "--overwrite"),
            str(own / "run"),
        )


# Numbers that are none


def numbers_in(value: object) -> Iterator[float]:
    """Every number in nested content, tensors included."""
    if isinstance(value, torch.Tensor):
        yield from value.detach().double().reshape(-1).tolist()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from numbers_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, float):
        yield value


def assert_finite(folder: Path) -> None:
    """No file of a run holds a number that is none, but for the loss before
    the first best model.
    """
    for path in folder.glob("*.pt"):
        file = checkpoint.read(path)
        assert all(map(math.isfinite, numbers_in(file.tensors)))
        state = {
            k: v
            for k, v in file.content.get("train_state", {}).items()
            if k not in ("best_loss", "scheduler")
        }
        assert all(map(math.isfinite, numbers_in(state)))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert all(map(math.isfinite, numbers_in(json.loads(line))))


@pytest.mark.parametrize(
    "flags", [(), ("--ema",), ("--dtype", "float64", "--checkpoint_every_steps", 1)]
)
def test_a_rate_that_is_too_large_stops_the_run(
    flags: tuple[object, ...], place: Path, refused: Refused
) -> None:
    words = ("t.xyz#", "not finite after step 1", "nothing of it was saved", "--lr")
    refused(train_mace.main, training(place, "--lr", "1e30", *flags), *words, code=4)
    assert not (place / "run/run_model.pt").exists()
    assert_finite(place / "run")


def test_a_label_that_is_too_large_is_named(place: Path, refused: Refused) -> None:
    (place / "huge.xyz").write_text(frame(energy="1e300"))
    flags = ("--xyz_train", place / "huge.xyz", "--xyz_val", place / "t.xyz", "--batch_size", 1)
    refused(
        train_mace.main, training(place, *flags), "huge.xyz#0", "not finite after step 0", code=4
    )
    assert_finite(place / "run")


def test_a_run_that_diverged_goes_on_from_its_last_good_state(own: Path, refused: Refused) -> None:
    good = checkpoint.read(own / "run/run_checkpoint.pt").tensors
    resumed = training(own, "--resume", "auto", "--epochs", 2)
    refused(
        train_mace.main,
        [*resumed, "--xyz_val", str(own / "t.xyz")],
        "the train data are not those of",
        code=3,
    )
    refused(
        train_mace.main,
        [*resumed, "--clip_grad", "0"],
        "--clip_grad is 0.0, but the run of",
        "resume.py",
    )
    assert train_mace.main(resumed) == 0
    assert checkpoint.read(own / "run/run_checkpoint.prev.pt").tensors.keys() == good.keys()
    assert_finite(own / "run")


def test_a_validation_that_is_not_finite_names_structures(place: Path, refused: Refused) -> None:
    (place / "huge.xyz").write_text(frame(energy="1e300"))
    flags = ("--xyz_val", place / "huge.xyz")
    refused(train_mace.main, training(place, *flags), "huge.xyz#0", code=4)


def test_an_evaluation_that_is_not_finite(own: Path, refused: Refused) -> None:
    (own / "t.xyz").write_text(frame(energy="1e300"))
    out = own / "errors.json"
    refused(
        evaluate.main,
        evaluation(own, own / "run/run_model.pt", "--output_json", out),
        "not finite",
        code=4,
    )
    assert not out.exists()


# As a person starts them: another process, from another directory


def command(folder: Path, *words: object) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANGING,
    )
    return done.returncode, done.stderr


def test_the_scripts_answer_so_too(own: Path) -> None:
    (own / "c.yaml").write_text("epoch: 3\n")
    (own / "bad.xyz").write_text(frame() + frame(energy="nan"))
    marker, bomb = own / "ran", own / "x_model.pt"
    bomb.write_bytes(saved(Bomb(marker)))
    train, judge = ROOT / "model_utils/train_mace.py", ROOT / "model_utils/evaluate.py"
    with untouched(own, new=("two/train.log",)):
        judged(
            *command(own, train, "--config", "../c.yaml"),
            "'epoch' in ../c.yaml",
            "did you mean epochs?",
        )
        bad = training(own, "--xyz_train", own / "bad.xyz", out="two")
        judged(*command(own, train, *bad), f"{own / 'bad.xyz'} frame 1", "energy is NaN")
        judged(*command(own, judge, *evaluation(own, bomb)), str(bomb), "posix.system", code=3)
    assert not marker.exists()


@pytest.mark.parametrize("flag", ["--debug"])
def test_a_traceback_is_shown_where_it_is_asked_for(
    flag: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_mace.main(training(place, "--xyz_train", place / "no.xyz", flag)) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("error: ")


# metadata.py

NETWORKS: dict[str, Any] = {
    "no r_max": ({"r_max": ...}, "r_max is missing"),
    "an unknown field": ({"rmax": 3.0}, "unknown field 'rmax'; did you mean 'r_max'?"),
    "no such gate": ({"gate": "relu"}, "gate", "'silu'"),
    "a cutoff below zero": pytest.param({"r_max": -1.0}, "r_max", "greater"),
    "heads that are a number": pytest.param({"heads": 3}, "heads"),
    "no heads": pytest.param({"heads": []}, "heads"),
    "elements in lists": pytest.param({"atomic_numbers": [[1], 8]}, "atomic_numbers"),
    "element 500": pytest.param({"atomic_numbers": [1, 8, 500]}, "atomic_numbers"),
}


@pytest.mark.parametrize(("change", "words"), cases(NETWORKS))
def test_fitting_a_bad_model_json(
    change: Mapping[str, object], words: tuple[str, ...], place: Path, refused: Refused
) -> None:
    path = place / "bad.json"
    path.write_text(
        json.dumps({name: v for name, v in {**NETWORK, **change}.items() if v is not ...})
    )
    arguments = [
        "fit",
        "--input_json",
        path,
        "--xyz_train",
        place / "t.xyz",
        "--output_json",
        place / "out.json",
    ]
    with untouched(place):
        refused(metadata.main, list(map(str, arguments)), *words)


MACE_YAMLS: dict[str, Any] = {
    "a list": ("- a\n", "expected lines like `r_max: 5.0`"),
    "not YAML": ("a: [1\n", "is not YAML"),
    "another model": (
        "model: BOTNet\n",
        "'BOTNet' is not supported; expected MACE, ScaleShiftMACE, AtomicDipolesMACE",
    ),
    "no such day": pytest.param("r_max: 2020-99-99\n", "is not YAML"),
    "words for a number": pytest.param("r_max: far\n", "r_max"),
    "words for channels": pytest.param("num_channels: many\n", "num_channels"),
    "words for a network": pytest.param("radial_MLP: wide\n", "radial_MLP"),
}


@pytest.mark.parametrize(("content", "words"), cases(MACE_YAMLS))
def test_a_bad_yaml_of_mace(
    content: str, words: tuple[str, ...], place: Path, refused: Refused
) -> None:
    path = place / "mace.yaml"
    path.write_text(content)
    arguments = [
        "init",
        "--mace_config",
        path,
        "--xyz_train",
        place / "t.xyz",
        "--output_json",
        place / "out.json",
    ]
    with untouched(place):
        refused(metadata.main, list(map(str, arguments)), str(path), *words)


E0S: dict[str, Any] = {
    "no file": ("none.json", "--E0s none.json", "JSON like '{\"H\": -13.6}'"),
    "one too few": ('{"H": -13.6}', "--E0s gives none for O"),
    "no element": ('{"Qq": 1}', "'Qq'", "an element symbol or its atomic number"),
    "no number": ('{"H": "low", "O": 1}', "--E0s", "'low'"),
    "infinite": pytest.param('{"H": 1e999, "O": 1}', "--E0s"),
}


@pytest.mark.parametrize(("given", "words"), cases(E0S))
def test_bad_reference_energies(
    given: str, words: tuple[str, ...], place: Path, refused: Refused
) -> None:
    arguments = [
        "init",
        "--E0s",
        given,
        "--xyz_train",
        place / "t.xyz",
        "--output_json",
        place / "out.json",
    ]
    with untouched(place):
        refused(metadata.main, list(map(str, arguments)), *words)


def test_metadata_is_never_written_over(place: Path, refused: Refused) -> None:
    arguments = ["init", "--xyz_train", str(place / "t.xyz"), "--output_json"]
    with untouched(place):
        refused(
            metadata.main,
            [*arguments, str(place / "m.json")],
            str(place / "m.json"),
            "there already",
            "--overwrite",
        )
        refused(
            metadata.main, [*arguments, str(place / "t.xyz/m.json")], "cannot write --output_json"
        )
    refused(metadata.main, ["inti"], "unknown command 'inti'; did you mean init?")
