"""The real commands on a tiny network: files, log lines, resuming, determinism, what seed 000
writes as basic usage.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase.io import read
from ase.io import write as write_xyz

import read_model
from conftest import ROOT, TINY, waters
from model_utils import evaluate, model_loader, train_mace
from model_utils.files import checkpoint
from model_utils.models import description as model_json
from model_utils.models.build import build_module

Make = Callable[..., Path]


@pytest.fixture
def run(tiny_json: Path, water_xyz: Make, tmp_path: Path) -> Callable[..., Path]:
    """Train on waters into a folder of the given name; returns the folder."""

    def go(name: str, *flags: str, code: int = 0) -> Path:
        folder = tmp_path / name
        arguments = ["--input_json", str(tiny_json), "--xyz_train", str(water_xyz("train.xyz", 10))]
        arguments += [
            "--xyz_val",
            str(water_xyz("val.xyz", 4, seed=1)),
            "--batch_size",
            "4",
            "--epochs",
            "2",
        ]
        arguments += ["--output_checkpoint", str(folder), *flags]
        assert train_mace.main(arguments) == code
        return folder

    return go


def records(folder: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in found:
        record.pop("perf", None)
    return found


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(path).tensors


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_writes_what_it_announces(run: Callable[..., Path]) -> None:
    folder = run("run", "--ema")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "run_checkpoint.pt",
        "run_checkpoint.prev.pt",
        "run_model.pt",
        "run_model.json",
        "run.model",
        "metrics.jsonl",
        "train.log",
        "config.resolved.yaml",
    }
    log = (folder / "train.log").read_text()
    assert log.count(" train  loss") == 2
    assert log.count(" valid  loss") == 3  # untrained, and after each epoch
    for path in folder.iterdir():
        if "prev" not in path.name:
            assert f"will write {path}" in log
    assert (
        log.index(" model ")
        < log.index(" train: ")
        < log.index(" loss: ")
        < log.index("will write")
    ), "first of what"
    assert (
        "loss: 1 E² + 100 F², means of errors: E of energies per atom (eV), F of "
        "force components (eV/Å)"
    ) in log
    [_, line, _] = [line for line in log.splitlines() if " valid  loss" in line]
    found = records(folder)[2]
    energy = [
        1000 * float(str(found[f"energy_{name}"]))
        for name in ("rmse_per_atom", "mae_per_atom", "mae_cfg")
    ]
    forces = [1000 * float(str(found[f"forces_{name}"])) for name in ("rmse", "mae")]
    assert f"loss {found['loss']:.6g} (1 E² + 100 F²)" in line
    assert "E rmse {:.2f} mae {:.2f} meV/atom, mae {:.2f} meV/config".format(*energy) in line
    assert "F rmse {:.2f} mae {:.2f} meV/Å".format(*forces) in line
    assert "best model: epoch" in log
    kinds = [record["kind"] for record in records(folder)]
    assert kinds == ["valid", "train", "valid", "train", "valid", "final"]


def test_the_checkpoint_holds_the_contracts_keys(run: Callable[..., Path]) -> None:
    folder = run("run", "--ema")
    # torch.distributed adds its own when it is imported
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    content = torch.load(folder / "run_checkpoint.pt", weights_only=True)
    torch.serialization.add_safe_globals(registered)
    for key in (
        "model_state_dict",
        "train_state",
        "model_json_text",
        "model_json_hash",
        "code_version",
        "run_name",
    ):
        assert key in content
    state = content["train_state"]
    for key in (
        "optimizer",
        "scheduler",
        "ema_state_dict",
        "lmdb_indices",
        "config",
        "epoch",
        "step",
        "samples",
        "rng",
    ):
        assert key in state
    assert (state["epoch"], state["step"], state["samples"]) == (2, 6, 20)
    raw, averaged = content["model_state_dict"], state["ema_state_dict"]["shadow"]
    assert any(not torch.equal(raw[name], averaged[name]) for name in averaged), (
        "raw weights are never the average"
    )
    best = checkpoint.read(folder / "run_model.pt")
    assert best.weights == "ema"
    assert_equal({n: best.tensors[n] for n in averaged}, averaged)


def test_the_model_file_opens_as_a_module_and_in_maces_calculator(
    run: Callable[..., Path], water_xyz: Make
) -> None:
    folder = run("run", "--dtype", "float64")
    from model_utils.models.mace_import import _unsafe_loading_during_import

    with _unsafe_loading_during_import():
        from mace.calculators import MACECalculator

        calculator = MACECalculator(
            model_paths=[str(folder / "run.model")], device="cpu", default_dtype="float64"
        )
        inside = torch.load(folder / "run_model.pt", weights_only=False)["model"]
    assert_equal(dict(inside.state_dict()), tensors(folder / "run_model.pt"))
    atoms = read(water_xyz("val.xyz", 4, seed=1), index=0)
    calculator.calculate(atoms)
    out = folder / "errors.json"
    flags = [
        "--input_model",
        str(folder / "run_model.pt"),
        "--xyz_path",
        str(water_xyz("val.xyz", 1, seed=1)),
    ]
    assert evaluate.main([*flags, "--output_json", str(out)]) == 0
    difference = calculator.results["forces"] - atoms.arrays["REF_forces"]
    assert json.loads(out.read_text())["forces_rmse"] == pytest.approx(
        float(np.sqrt((difference**2).mean())), rel=1e-10
    )


def test_same_seed_same_weights_bit_for_bit(run: Callable[..., Path]) -> None:
    first, second, other = run("a"), run("b"), run("c", "--seed", "7")
    assert_equal(tensors(first / "a_checkpoint.pt"), tensors(second / "b_checkpoint.pt"))
    assert records(first) == records(second)
    differs = tensors(other / "c_checkpoint.pt")
    assert any(
        not torch.equal(t, differs[n]) for n, t in tensors(first / "a_checkpoint.pt").items()
    )


def test_the_networks_that_tests_copy_are_those_that_are_built() -> None:
    """See conftest.py: to the last bit, and the generator goes on from the same state."""
    described = model_json.parse(json.dumps(TINY), "tiny")
    found = []
    for build in (build_module, model_loader.build_module, model_loader.build_module):
        torch.manual_seed(4711)
        found.append((build(described, torch.float32).state_dict(), torch.get_rng_state()))
    assert model_loader.build_module is not build_module
    for tensors_of_it, state in found[1:]:
        assert_equal(found[0][0], tensors_of_it)
        assert torch.equal(found[0][1], state)


def test_workers_change_nothing(run: Callable[..., Path]) -> None:
    first, second = run("a"), run("b", "--num_workers", "2")
    assert_equal(tensors(first / "a_checkpoint.pt"), tensors(second / "b_checkpoint.pt"))


def test_accumulation_is_one_large_batch(run: Callable[..., Path]) -> None:
    first = run("a", "--batch_size", "10", "--dtype", "float64", "--epochs", "1")
    second = run(
        "b", "--batch_size", "4", "--accumulate_batches", "3", "--dtype", "float64", "--epochs", "1"
    )
    one, two = tensors(first / "a_checkpoint.pt"), tensors(second / "b_checkpoint.pt")
    assert all(
        torch.allclose(one[name].double(), two[name].double(), rtol=1e-9, atol=1e-12)
        for name in one
    )


@pytest.mark.parametrize(
    "flags",
    [(), ("--ema", "--scheduler", "exponential", "--scheduler_unit", "step", "--lr_gamma", "0.9")],
)
def test_stopped_in_an_epoch_and_resumed_is_as_if_never_stopped(
    run: Callable[..., Path], flags: tuple[str, ...]
) -> None:
    whole = run("whole", "--epochs", "3", *flags)
    part = run("part", "--epochs", "3", "--max_steps", "5", *flags)
    run("part", "--epochs", "3", "--resume", "auto", *flags)
    assert_equal(tensors(whole / "whole_checkpoint.pt"), tensors(part / "part_checkpoint.pt"))


def test_time_limit_saves_and_says_75(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("run", "--epochs", "500", "--time_limit", "0.02", code=75)
    assert "stopped: time limit: saved at step" in capsys.readouterr().err
    state = checkpoint.read(folder / "run_checkpoint.pt").content["train_state"]
    assert state["reason"] == "time limit"
    whole = run("whole", "--epochs", str(state["epoch"] + 1))
    resumed = run("run", "--epochs", str(state["epoch"] + 1), "--resume", "auto")
    assert_equal(tensors(whole / "whole_checkpoint.pt"), tensors(resumed / "run_checkpoint.pt"))
    assert [r for r in records(whole) if r["kind"] == "train"] == [
        r for r in records(resumed) if r["kind"] == "train"
    ]


def test_resume_auto_starts_where_nothing_is(run: Callable[..., Path]) -> None:
    folder = run("run", "--resume", "auto")
    assert "the run starts anew" in (folder / "train.log").read_text()


def test_resume_auto_does_not_begin_beside_a_run_of_another_name(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was renamed: the run in it is to be continued, and its records stay."""
    run("first").rename(tmp_path / "second")
    before = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    capsys.readouterr()
    run("second", "--resume", "auto", "--epochs", "3", code=2)
    checkpoint_there = tmp_path / "second" / "first_checkpoint.pt"
    assert (
        f"continue that one with --output_checkpoint {checkpoint_there}" in capsys.readouterr().err
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()} == before


def test_stage_two_keeps_the_best_of_stage_one(run: Callable[..., Path]) -> None:
    folder = run("run", "--epochs", "4", "--stage_two", "--start_stage_two", "2")
    one, two = (
        checkpoint.read(folder / "run_stage_one_model.pt"),
        checkpoint.read(folder / "run_model.pt"),
    )
    assert one.content["epoch"] <= 2 < two.content["epoch"]
    train = [record for record in records(folder) if record["kind"] == "train"]
    assert [record["lr"] for record in train] == [0.01, 0.01, 0.001, 0.001]


def test_patience_ends_the_run(run: Callable[..., Path]) -> None:
    folder = run(
        "run",
        "--epochs",
        "50",
        "--lr",
        "1e-12",
        "--patience",
        "2",
        "--weight_decay",
        "0",
        "--dtype",
        "float32",
    )
    state = checkpoint.read(folder / "run_checkpoint.pt").content["train_state"]
    assert state["epoch"] < 50
    assert state["finished"].startswith("no lower validation loss")


def test_another_runs_place_is_refused_and_untouched(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("run")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run("run", code=2)
    assert "belongs to another run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    run("run", "--overwrite", "--seed", "5")
    assert tensors(folder / "run_checkpoint.pt") is not None


def test_dry_run_writes_nothing(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("run", "--dry_run")
    assert not folder.exists()
    shown = capsys.readouterr().out
    for word in ("parameters", "steps per epoch: 3", "largest batch", "memory", "time"):
        assert word in shown
    assert re.search(
        r"group decay: \d+ parameters, \d+ numbers, weight decay 5e-07, lr 0\.01", shown
    )
    assert "interactions.0: linear_up.weight, conv_tp_weights.layer0.weight" in shown


def test_groups_of_what_decays(
    tiny_json: Path, run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = {
        name: "RealAgnosticResidualNonLinearInteractionBlock" for name in ("interaction_cls",)
    }
    blocks |= {
        "interaction_cls_first": blocks["interaction_cls"],
        "readout_cls": "NonLinearBiasReadoutBlock",
    }
    tiny_json.write_text(json.dumps({**TINY, **blocks}))
    folder = run("run", "--epochs", "1", "--lr_of", "readouts.*=0.001", "--no_export_mace_model")
    capsys.readouterr()
    lines = {}
    for name in ("run_checkpoint.pt", "run_model.pt"):
        assert read_model.main(["show", "--input_model", str(folder / name)]) == 0
        shown = capsys.readouterr().out.splitlines()
        lines[name] = [line[9:] for line in shown if line[9:].startswith("group ")]
    groups = ["decay", "no_decay", "decay readouts.*", "no_decay readouts.*"]
    assert [line.partition(":")[0] for line in lines["run_checkpoint.pt"]] == [
        f"group {name}" for name in groups
    ]
    decays, rates = ["weight decay 5e-07", "no weight decay"], ["lr 0.01", "lr 0.001"]
    ends = [f"{decay}, {rate}" for rate in rates for decay in decays]
    assert [line.partition(" numbers, ")[2] for line in lines["run_checkpoint.pt"]] == ends
    assert [line.partition(" numbers, ")[2] for line in lines["run_model.pt"]] == [
        "weight decay",
        "no weight decay",
    ]
    assert "  interactions.0: alpha, beta" in "\n".join(shown)


def test_outputs_by_file_name(run: Callable[..., Path], tmp_path: Path) -> None:
    run(
        "x",
        "--output_checkpoint",
        str(tmp_path / "a/one_checkpoint.pt"),
        "--output_model",
        str(tmp_path / "b/two.pt"),
    )
    assert (tmp_path / "a/one_checkpoint.pt").exists()
    assert (tmp_path / "a/one_model.json").read_bytes() == (
        tmp_path / "b/two_model.json"
    ).read_bytes()
    assert (tmp_path / "b/two.pt").exists()


def write_lmdb(path: Path, n: int, seed: int = 0) -> Path:
    """Plain-dict records of waters."""
    environment = lmdb.open(str(path), subdir=False, map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i, atoms in enumerate(waters(n, seed)):
            record = {
                "pos": atoms.positions,
                "atomic_numbers": atoms.numbers,
                "cell": np.zeros((3, 3)),
                "energy": atoms.info["REF_energy"],
                "forces": atoms.arrays["REF_forces"],
            }
            transaction.put(str(i).encode(), pickle.dumps(record))
        transaction.put(b"length", pickle.dumps(n))
    environment.close()
    return path


def test_basic_usage_of_seed_000(
    tiny_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The train and evaluate commands of its basic usage, as written there with ``model_utils/``.

    The one that trains as a process of its own; test_bad_input.py runs evaluate.py as one.
    """
    train, val, run = (
        write_lmdb(tmp_path / "train", 12),
        write_lmdb(tmp_path / "val", 4, seed=1),
        tmp_path / "run",
    )
    run.mkdir()
    author = tiny_json.read_text()
    (run / "run_model.json").write_text(author)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [
        *(
            "model_utils/train_mace.py",
            "--data_format",
            "lmdb",
            "--lmdb_train",
            str(train),
            "--lmdb_val",
            str(val),
        ),
        *(
            "--input_json",
            str(run / "run_model.json"),
            "--output_checkpoint",
            str(run),
            "--output_model",
            str(run),
        ),
        *("--batch_size", "32", "--epochs", "2", "--lr", "1e-3"),
    ]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (run / "run_model.input.json").read_text() == author
    assert json.loads((run / "run_model.json").read_text())["schema_version"] == 1
    words = [
        "--input_model",
        str(run / "run_checkpoint.pt"),
        "--data_format",
        "lmdb",
        "--lmdb_path",
        str(val),
    ]
    assert evaluate.main(words) == 0
    shown = capsys.readouterr().out
    assert "latest weights (raw)" in shown
    assert shown.count("ΔE") == 4, "each structure of a small set"


def test_lmdb_and_xyz_of_the_same_structures_train_alike(tiny_json: Path, tmp_path: Path) -> None:
    source = write_lmdb(tmp_path / "train.lmdb", 6)
    write_xyz(tmp_path / "train.xyz", waters(6), format="extxyz")
    common = [
        "--input_json",
        str(tiny_json),
        "--epochs",
        "1",
        "--valid_fraction",
        "0.34",
        "--dtype",
        "float64",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    assert (
        train_mace.main([*common, "--lmdb_train", str(source), "--output_checkpoint", str(one)])
        == 0
    )
    assert (
        train_mace.main(
            [*common, "--xyz_train", str(tmp_path / "train.xyz"), "--output_checkpoint", str(two)]
        )
        == 0
    )
    first, second = tensors(one / "one_checkpoint.pt"), tensors(two / "two_checkpoint.pt")
    assert all(torch.allclose(first[n].double(), second[n].double(), atol=1e-6) for n in first)


def test_heads_weights_and_keys_of_sources_in_the_yaml(tiny_json: Path, tmp_path: Path) -> None:
    description = json.loads(tiny_json.read_text())
    description.update(
        heads=["a", "b"], atomic_energies={h: description["atomic_energies"] for h in "ab"}
    )
    description.update(atomic_inter_scale=[1.0, 1.0], atomic_inter_shift=[0.0, 0.0])
    tiny_json.write_text(json.dumps(description))
    write_xyz(tmp_path / "a.xyz", waters(4), format="extxyz")
    write_xyz(tmp_path / "b.xyz", waters(4, 1, prefix="dft_"), format="extxyz")
    (tmp_path / "two.yaml").write_text(
        "input_json: tiny.json\nepochs: 1\nvalid_fraction: 0.25\noutput_checkpoint: run\nsources:\n"
        "  - {path: a.xyz, head: a, weight: 2.0}\n"
        "  - {path: b.xyz, head: b, energy_key: dft_energy, forces_key: dft_forces}\n"
    )
    assert train_mace.main(["--config", str(tmp_path / "two.yaml")]) == 0
    final = records(tmp_path / "run")[-1]
    assert final["train"]["n_configs"] + final["valid"]["n_configs"] == 8  # type: ignore[index]
