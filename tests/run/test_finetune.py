"""finetune.py: the source to the last bit before the first step, what is frozen
stays, what changes is said.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase.io import read, write

from conftest import TINY, in_the_battery, waters
from model_utils import evaluate, finetune, model_loader, resume, train_mace
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.models import description as model_json
from model_utils.models import reference
from model_utils.tasks.same_bits import differences

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model trained for two epochs on first.xyz."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "first.xyz", waters(10), format="extxyz")
    words = [
        "--input_json",
        str(folder / "tiny.json"),
        "--xyz_train",
        str(folder / "first.xyz"),
        "--batch_size",
        "4",
    ]
    words += ["--epochs", "2", "--dtype", "float64", "--no_export_mace_model"]
    assert train_mace.main([*words, "--output_checkpoint", str(folder / "source")]) == 0
    return folder


@pytest.fixture
def source(trained: Path, tmp_path: Path) -> Path:
    """The model, and its data beside."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "source" / "source_model.pt"


@pytest.fixture
def run(source: Path, water_xyz: Make, tmp_path: Path) -> Callable[..., Path]:
    """Fine-tune it on other waters."""

    def go(name: str, *flags: str, code: int = 0) -> Path:
        words = [
            "--input_model",
            str(source),
            "--xyz_train",
            str(water_xyz("second.xyz", 10, seed=5)),
        ]
        words += [
            "--xyz_val",
            str(water_xyz("val.xyz", 4, seed=6)),
            "--batch_size",
            "4",
            "--epochs",
            "2",
        ]
        folder = tmp_path / name
        arguments = [*words, "--no_export_mace_model", "--output_checkpoint", str(folder), *flags]
        assert finetune.main(arguments) == code
        return folder

    return go


def tensors(folder: Path, kind: str = "checkpoint") -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / f"{folder.name}_{kind}.pt").tensors


def test_it_begins_with_the_source_in_its_precision(
    run: Callable[..., Path], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("run", "--lr", "1e-30", "--weight_decay", "0")
    shown = capsys.readouterr().out
    assert "step 0: energies and forces of 10 structures are the source's to " in shown
    before, after = checkpoint.read(source).tensors, tensors(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (folder / "run_model.json").read_bytes() == source.with_name(
        "source_model.json"
    ).read_bytes()
    assert not (folder / "run_source_model.json").exists()
    assert checkpoint.read(folder / "run_checkpoint.pt").content["train_state"]["source"][
        "path"
    ] == str(source)


def test_the_source_itself_may_be_the_best(run: Callable[..., Path], source: Path) -> None:
    folder = run("run", "--lr", "10", "--clip_grad", "0", "--epochs", "1")
    best = checkpoint.read(folder / "run_model.pt")
    assert best.content["step"] == 0
    assert all(torch.equal(best.tensors[n], t) for n, t in checkpoint.read(source).tensors.items())


def test_frozen_parameters_are_bit_equal_and_the_others_moved(
    run: Callable[..., Path], source: Path
) -> None:
    folder = run("run", "--freeze", "node_embedding.*", "interactions.0.*", "--lr", "0.01", "--ema")
    before = checkpoint.read(source).tensors
    trainable = set(model_loader.trainable(model_loader.load(source).module))
    for kind in ("checkpoint", "model"):
        after = tensors(folder, kind)
        for name in before:
            frozen = (
                name.startswith(("node_embedding.", "interactions.0.")) or name not in trainable
            )
            assert torch.equal(before[name], after[name]) == frozen, (kind, name)


def test_a_rate_of_its_own_acts_on_its_group_alone(run: Callable[..., Path], source: Path) -> None:
    folder = run("run", "--lr", "1e-30", "--weight_decay", "0", "--lr_of", "readouts.*=0.01")
    before, after = checkpoint.read(source).tensors, tensors(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("readouts.") for name in moved)


def test_given_reference_energies(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("run", "--E0s", '{"O": -431.25}')
    shown = capsys.readouterr().out
    assert "E0 of O (Default): -430.000000 → -431.250000 eV" in shown
    assert "E0 of H" not in shown
    found = json.loads((folder / "run_model.json").read_text())
    assert found["atomic_energies"] == [[-13.6, -431.25]]
    assert json.loads((folder / "run_source_model.json").read_text())["atomic_energies"] == [
        [-13.6, -430.0]
    ]
    history = checkpoint.read(folder / "run_checkpoint.pt").content["model_json_history"]
    assert len(set(history)) == 2


def test_fitted_reference_energies(
    run: Callable[..., Path], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels 3 eV per oxygen higher: waters leave one combination open, and the smallest
    shift that fits is taken.
    """
    frames = read(tmp_path / "first.xyz", index=":")
    for atoms in frames:
        atoms.info["REF_energy"] += 3.0 * (atoms.numbers == 8).sum()
    write(tmp_path / "shifted.xyz", frames, format="extxyz")
    run(
        "run",
        "--E0s",
        "shift",
        "--xyz_train",
        str(tmp_path / "shifted.xyz"),
        "--xyz_val",
        str(tmp_path / "shifted.xyz"),
    )
    shown = capsys.readouterr().out
    assert (
        "warning: the compositions determine only 1 of 2 shifts of E0s, and the shortest "
        "that fit were taken"
    ) in shown
    assert "E0 shift fitted to 10 structures" in shown


def test_energies_are_fitted_where_a_form_has_no_kernels(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The fit is on the CPU, before there is a device: another form gives the same energies."""
    run("run", "--E0s", "shift", "--step", "oeq", code=2)
    shown = capsys.readouterr()
    assert "E0 shift fitted to 10 structures" in shown.out
    assert "--step oeq needs the package openequivariance" in shown.err


def test_what_does_not_fit_the_source(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "iron.xyz").write_text(
        "1\nREF_energy=-1.0 Properties=species:S:1:pos:R:3:REF_forces:R:3\nFe 0 0 0 0 0 0\n"
    )
    for flags, said in (
        (["--xyz_train", str(tmp_path / "iron.xyz")], "element Fe (Z=26) is not in model.json"),
        (["--E0s", '{"Fe": -1.0}'], "--E0s names Fe, which the source does not have"),
        (
            ["--E0s", "whatever"],
            "there is no such file; expected keep, shift, isolated, a file of isolated atoms",
        ),
        (["--E0s", "estimated"], "is a word for it elsewhere: here --E0s shift fits them"),
        (["--E0s", "foundation"], "here --E0s keep takes those of the model"),
        (["--freeze", "nothing.*"], "--freeze nothing.*: no parameter has such a name"),
        (["--freeze", "*"], "--freeze leaves nothing to train"),
        (["--lr_of", "readouts.*"], "is not PATTERN=RATE"),
        (["--lr_of", "nothing.*=0.1"], "--lr_of nothing.*: no trainable parameter"),
    ):
        run("run", *flags, code=2)
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run" / "run_checkpoint.pt").exists()


def test_the_gate_finds_a_wrong_transfer(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_utils.run.beginnings.finetuning import Origin

    put = Origin.put_into

    def wrongly(self: Origin, module: torch.nn.Module) -> None:
        put(self, module)
        with torch.no_grad():
            module.get_parameter("readouts.0.linear.weight").mul_(1.001)

    monkeypatch.setattr(Origin, "put_into", wrongly)
    run("run", code=3)
    assert "before its first step the model deviates from" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["finetune", "resume"])
def test_resumed_it_equals_the_unbroken_run(
    run: Callable[..., Path], tmp_path: Path, by: str
) -> None:
    flags = [
        "--freeze",
        "node_embedding.*",
        "--lr_of",
        "readouts.*=0.01",
        "--E0s",
        '{"H": -13.5}',
        "--lr",
        "0.001",
    ]
    whole = run("whole/run", *flags)
    folder = run("part/run", *flags, "--epochs", "2", "--max_steps", "3")
    if by == "finetune":
        run("part/run", *flags, "--resume", "auto")
    else:
        assert resume.main(["--input_model", str(folder), "--max_steps", "100"]) == 0
    outputs = [Outputs.named(f / "run_checkpoint.pt", None) for f in (whole, folder)]
    # stopped by --max_steps, the part validated once more and has another horizon; weights
    # and moments are the same
    found = [
        text
        for text in differences(*outputs)
        if not text.startswith("metrics.jsonl") and "horizon" not in text
    ]
    assert [text for text in found if "scheduler" not in text] == []


def test_from_a_mace_model(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared_data / "solvent_xtb"
    words = [
        "--input_model",
        str(data / "mace01_swa.model"),
        "--xyz_train",
        str(data / "solvent_xtb_train_20.xyz"),
    ]
    words += [
        "--energy_key",
        "energy_xtb",
        "--forces_key",
        "forces_xtb",
        "--epochs",
        "1",
        "--no_export_mace_model",
    ]
    assert finetune.main([*words, "--output_checkpoint", str(tmp_path / "run")]) == 0
    assert (
        "step 0: energies and forces of 16 structures are the source's to"
        in capsys.readouterr().out
    )
    shutil.rmtree(tmp_path / "run")
    assert reference.ReferenceNetwork.kind == "reference"


@pytest.mark.parametrize(
    "first", ["RealAgnosticResidualInteractionBlock", "RealAgnosticDensityInteractionBlock"]
)
def test_a_narrower_table_gives_the_same_energies(
    first: str, water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From six elements to the two of water; only those rows of the weights go along."""
    fields = {**TINY, "atomic_numbers": [3, 1, 6, 8, 9, 14], "interaction_cls_first": first}
    fields["atomic_energies"] = [-1.0, -13.6, -2.0, -430.0, -3.0, -4.0]
    path, wide = tmp_path / "wide.json", tmp_path / "wide.model"
    path.write_text(json.dumps(fields))
    description = model_json.read(path)
    checkpoint.write_bare_module(wide, model_loader.build(description, torch.float64, 3))
    words = [
        "--input_model",
        str(wide),
        "--xyz_train",
        str(water_xyz("w.xyz", 8)),
        "--epochs",
        "1",
        "--elements",
        "H",
        "O",
    ]
    assert (
        finetune.main(
            [*words, "--output_checkpoint", str(tmp_path / "run"), "--no_export_mace_model"]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "the new model has H, O of the source's 6 elements" in shown
    assert "step 0: energies and forces of 7 structures are the source's to" in shown
    assert json.loads((tmp_path / "run/run_model.json").read_text())["atomic_numbers"] == [1, 8]
    assert finetune.main([*words, "Fe", "--output_checkpoint", str(tmp_path / "other")]) == 2
    assert "--elements Fe: the source does not have it" in capsys.readouterr().err


@pytest.mark.parametrize("readout", ["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"])
def test_a_second_head_begins_as_a_copy_and_replays(
    readout: str, water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two heads with reference energies of their own; structures of both in every batch."""
    path, plain = tmp_path / "one.json", tmp_path / "one.model"
    path.write_text(json.dumps({**TINY, "readout_cls": readout}))
    checkpoint.write_bare_module(plain, model_loader.build(model_json.read(path), torch.float64, 3))
    new, old = str(water_xyz("new.xyz", 8)), str(water_xyz("old.xyz", 8, seed=4))
    (tmp_path / "run.yaml").write_text(
        "sources:\n"
        f"  - {{path: {new}, head: Default}}\n"
        f"  - {{path: {old}, head: replay, weight: 0.5}}\n"
    )
    words = [
        "--input_model",
        str(plain),
        "--config",
        str(tmp_path / "run.yaml"),
        "--add_head",
        "replay",
    ]
    words += ["--E0s", '{"O": -431.0}', "--epochs", "1", "--lr", "1e-3", "--no_export_mace_model"]
    assert finetune.main([*words, "--output_checkpoint", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "heads: Default (the source's) and replay, a copy" in shown
    assert "step 0: energies and forces of 14 structures are the source's to" in shown
    found = json.loads((tmp_path / "run/run_model.json").read_text())
    assert found["heads"] == ["Default", "replay"]
    assert found["atomic_energies"] == [[-13.6, -431.0], [-13.6, -430.0]]
    assert found["atomic_inter_scale"] == [1.0, 1.0]
    assert resume.main(["--input_model", str(tmp_path / "run"), "--epochs", "2"]) == 0


def replayed(folder: Path) -> dict[str, object]:
    (found,) = cli_config(folder)["sources"]
    return found


def cli_config(folder: Path) -> dict[str, list[dict[str, object]]]:
    return yaml.safe_load((folder / "config.resolved.yaml").read_text())


def test_replay_in_one_line(
    run: Callable[..., Path], water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head of its own with the source's E0s, as many structures as asked for, named in the
    tables and in the log.
    """
    old = str(water_xyz("old.xyz", 20, seed=4))
    flags = [
        "--replay",
        old,
        "--replay_ratio",
        "0.5",
        "--replay_weight",
        "0.25",
        "--E0s",
        '{"O": -431.0}',
    ]
    folder = run("run", *flags)
    shown = capsys.readouterr().out
    assert "heads: Default (the source's) and replay, a copy" in shown
    assert "an epoch takes 5 of the 20 of" in shown
    assert "step 0: energies and forces of 30 structures are the source's to" in shown
    found = json.loads((folder / "run_model.json").read_text())
    assert found["atomic_energies"] == [[-13.6, -431.0], [-13.6, -430.0]]
    content = checkpoint.read(folder / "run_checkpoint.pt").content["train_state"]
    assert content["samples"] == 2 * (10 + 5)
    table = [line.split()[1:] for line in shown.rpartition("meV/Å³")[2].splitlines()]
    assert table[1][:2] == ["head", "configs"]
    assert [row[:4] for row in table if old in row] == [["train", old, "replay", "20"]]
    assert (replayed(folder)["ratio"], replayed(folder)["weight"], replayed(folder)["head"]) == (
        0.5,
        0.25,
        "replay",
    )
    log = (folder / "train.log").read_text()
    assert "source " in log
    assert "E0 of O (Default): -430.000000 → -431.000000 eV" in log


@pytest.mark.parametrize("labels", ["file", "source"])
def test_replay_resumed_equals_the_unbroken_run(
    run: Callable[..., Path], water_xyz: Make, tmp_path: Path, labels: str
) -> None:
    """Which of 7 structures an epoch takes, and the labels of the source, are as they were."""
    flags = [
        "--replay",
        str(water_xyz("old.xyz", 7, seed=4)),
        "--replay_ratio",
        "0.4",
        "--replay_labels",
        labels,
    ]
    flags += ["--lr", "0.001", "--epochs", "3", "--scheduler", "constant"]
    whole = run("whole/run", *flags)
    part = run("part/run", *flags, "--max_steps", "6")
    (tmp_path / "moved").mkdir()
    shutil.move(part, tmp_path / "moved" / "run")
    assert resume.main(["--input_model", str(tmp_path / "moved/run"), "--max_steps", "100"]) == 0
    outputs = [
        Outputs.named(f / "run_checkpoint.pt", None) for f in (whole, tmp_path / "moved/run")
    ]
    found = [
        text
        for text in differences(*outputs)
        if not text.startswith("metrics.jsonl") and "horizon" not in text
    ]
    assert [text for text in found if "scheduler" not in text] == []


def test_the_source_labels_what_is_replayed(
    run: Callable[..., Path], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Structures without labels, whose labels are then the source's own: before the first
    step its error is zero.
    """
    bare = waters(6, seed=9)
    for atoms in bare:
        atoms.info.clear()
        del atoms.arrays["REF_forces"]
    write(tmp_path / "bare.xyz", bare, format="extxyz")
    flags = ["--replay", str(tmp_path / "bare.xyz"), "--valid_fraction", "0.3"]
    folder = run("file", *flags, code=2)
    assert "energy missing" in capsys.readouterr().err
    run("dry", *flags, "--replay_labels", "source", "--dry_run")
    assert not (tmp_path / "dry").exists()
    folder = run("run", *flags, "--replay_labels", "source", "--lr", "1e-30", "--weight_decay", "0")
    kept = read(folder / "run_replay.xyz", index=":")
    assert len(kept) == 6
    network = model_loader.load(source)
    evaluated = tmp_path / "predicted.xyz"
    words = [
        "--input_model",
        str(source),
        "--xyz_path",
        str(tmp_path / "bare.xyz"),
        "--output_xyz",
        str(evaluated),
    ]
    assert evaluate.main(words) == 0
    for ours, theirs in zip(kept, read(evaluated, index=":"), strict=True):
        assert ours.info["REF_energy"] == pytest.approx(theirs.info["mace_energy"], rel=1e-12)
        assert np.abs(ours.arrays["REF_forces"] - theirs.arrays["mace_forces"]).max() < 2e-8
    assert network.description.heads == ["Default"]


def test_what_replay_refuses(
    run: Callable[..., Path], water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = str(water_xyz("old.xyz", 6, seed=4))
    for flags, said in (
        (
            ["--replay", old, "--replay_head", "Default", "--E0s", "shift"],
            "give a new --replay_head, or keep the",
        ),
        (["--replay", old, "--add_head", "second"], "leave --add_head out"),
        (["--replay", old, "--replay_head", ""], "--replay_head is empty"),
        (["--replay", old, "--replay_ratio", "1e9"], "--replay_ratio. Must be <= 1000"),
        (["--replay", str(tmp_path / "second.xyz")], "is what the run trains on already"),
        (["--replay_ratio", "2"], "--replay_ratio is given but not what to replay"),
        (
            ["--replay", old, "--elements", "H", "O"],
            "--replay_head replay: a head is not copied together with --elements",
        ),
        (["--replay", str(tmp_path / "no.xyz")], "no.xyz does not exist"),
        (
            ["--replay", str(tmp_path / "no.xyz"), "--replay_labels", "source"],
            "no.xyz does not exist",
        ),
    ):
        run("run", *flags, code=2)
        shown = capsys.readouterr().err
        assert said in shown
        assert len(shown.splitlines()) == 1
    folder = run("one", "--replay", old, "--replay_head", "Default")
    assert json.loads((folder / "one_model.json").read_text())["heads"] == ["Default"]
    for source, said in (
        ("ratio: 1", "every source has a ratio"),
        ("ratio: 1, role: val", "only files to train on have"),
    ):
        (tmp_path / "all.yaml").write_text(f"sources:\n  - {{path: {old}, {source}}}\n")
        words = [
            "--input_model",
            "x.pt",
            "--config",
            str(tmp_path / "all.yaml"),
            "--output_checkpoint",
            "r",
        ]
        assert finetune.main(words) == 2
        assert said in capsys.readouterr().err


@in_the_battery
def test_what_does_not_begin_leaves_replayed_labels_as_they_were(
    run: Callable[..., Path], water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are written before training begins, so a run that does not
    begin must take them back.
    """
    flags = ["--replay", str(water_xyz("old.xyz", 6, seed=4)), "--replay_labels", "source"]
    wrong = ["--freeze", "nothing.*"]
    folder = run("run", *flags, *wrong, code=2)
    assert not (folder / "run_replay.xyz").exists()
    run("run", *flags, "--max_edges_per_batch", "auto")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "run_replay.xyz" in before
    others = ["--replay", str(water_xyz("others.xyz", 6, seed=8)), "--replay_labels", "source"]
    run("run", *others, *wrong, "--overwrite", code=2)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run(
        "run",
        *flags,
        "--max_edges_per_batch",
        "auto",
        "--resume",
        "auto",
        "--epochs",
        "3",
        "--dry_run",
    )
    run("run", *flags, "--max_edges_per_batch", "auto", "--resume", "auto", "--epochs", "3")
    run("run", *others, "--overwrite")
    assert (folder / "run_replay.xyz").read_bytes() != before["run_replay.xyz"]
    assert not list(folder.glob("*before*"))

    mine = tmp_path / "mine" / "mine_replay.xyz"
    mine.parent.mkdir()
    shutil.copy(tmp_path / "old.xyz", mine)
    capsys.readouterr()
    run("mine", *flags, code=2)
    assert f"{mine} is there already" in capsys.readouterr().err
    run("mine", *flags, "--overwrite", "--xyz_train", str(mine), code=2)
    assert f"{mine} is read, and this run would write over it" in capsys.readouterr().err
    assert mine.read_bytes() == (tmp_path / "old.xyz").read_bytes()


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_source_is_never_written_over(
    run: Callable[..., Path], source: Path, overwrite: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    run("source", *(["--overwrite"] if overwrite else []), code=2)
    assert (
        "is the source, and this run would write over it; give another" in capsys.readouterr().err
    )
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
