"""finetune.py --resume goes on with the fine-tuning that its command asks for, and no other; new
data get the head that is left beside the replayed one; E0s that are not given are said.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase.io import write

from conftest import TINY, waters
from model_utils import finetune, model_loader, resume, train_mace
from model_utils.files import checkpoint
from model_utils.models import description as model_json

Tune = Callable[..., str]
TWO_HEADS = {
    "heads": ["pt_head", "Default"],
    "atomic_energies": [[-13.6, -430.0], [-14.0, -431.0]],
    "atomic_inter_scale": [1.0, 1.0],
    "atomic_inter_shift": [0.0, 0.0],
}


def bare(path: Path, seed: int, **fields: object) -> Path:
    """A module of mace with drawn weights."""
    described = path.with_suffix(".json")
    described.write_text(json.dumps({**TINY, **fields}))
    module = model_loader.build(model_json.read(described), torch.float64, seed)
    checkpoint.write_bare_module(path, module)
    return path


@pytest.fixture
def tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tune:
    """Fine-tune a model on waters at one place; what is said."""
    bare(tmp_path / "first.model", 3)
    bare(tmp_path / "second.model", 4)
    write(tmp_path / "new.xyz", waters(8, seed=5), format="extxyz")
    write(tmp_path / "old.xyz", waters(6, seed=9), format="extxyz")

    def go(model: str, *words: str, code: int = 0) -> str:
        argv = ["--input_model", str(tmp_path / model), "--xyz_train", str(tmp_path / "new.xyz")]
        argv += ["--valid_fraction", "0.25", "--no_export_mace_model", "--epochs", "1"]
        assert finetune.main([*argv, "--output_checkpoint", str(tmp_path / "run"), *words]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return go


def text_of(tmp_path: Path) -> str:
    return checkpoint.read(tmp_path / "run/run_checkpoint.pt").description.canonical_text()


OTHERS = {
    "E0s": (["--E0s", "keep"], "--E0s is keep"),
    "E0s, given": (["--E0s", '{"H": -13.0, "O": -430}'], '--E0s is {"H": -13.0, "O": -430}'),
    "a head": (["--E0s", "shift", "--add_head", "more"], "--add_head is more"),
    "what is replayed": (
        ["--E0s", "shift", "--replay", "old.xyz", "--replay_labels", "source"],
        "--replay is old.xyz",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_fine_tuning_is_refused(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tune("first.model", "--E0s", "shift")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    words, sentence = OTHERS[case]
    text = tune("first.model", *words, "--resume", "auto", "--epochs", "2", code=2)
    assert sentence in text
    assert "a new fine-tuning at another --output_checkpoint" in text
    unchanged = {path: path.read_bytes() for path in before if path.suffix != ".log"}
    assert all(before[path] == content for path, content in unchanged.items())


def test_another_source_is_refused(tune: Tune, tmp_path: Path) -> None:
    tune("first.model")
    resumed = ("--resume", "auto", "--epochs", "2")
    assert "second.model is another model, but the run" in tune("second.model", *resumed, code=2)
    assert "third.model is not there, but the run" in tune("third.model", *resumed, code=2)
    tune("first.model", *resumed)
    assert checkpoint.read(tmp_path / "run/run_checkpoint.pt").content["train_state"]["epoch"] == 2


def test_a_source_is_noted_by_a_name_that_holds(tune: Tune, tmp_path: Path) -> None:
    """Not through a link as ``latest``, which leads to another run later."""
    (tmp_path / "latest").symlink_to(tmp_path)
    tune("latest/first.model")
    state = checkpoint.read(tmp_path / "run/run_checkpoint.pt").content["train_state"]
    assert state["source"]["path"] == str(tmp_path / "first.model")
    (tmp_path / "newer").mkdir()
    bare(tmp_path / "newer/first.model", 5)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(tmp_path / "newer")
    text = tune("latest/first.model", "--resume", "auto", "--epochs", "2")
    assert "is not what it was as the run of" in text
    assert "goes on with its own weights" in text


def test_energies_may_be_written_otherwise(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is which they are: a file that has others now is refused."""
    (tmp_path / "E0.json").write_text('{"H": -13.0, "O": -430.5}')
    monkeypatch.chdir(tmp_path)
    tune("first.model", "--E0s", "E0.json")
    resumed = ("--resume", "auto", "--epochs")
    tune("first.model", "--E0s", str(tmp_path / "E0.json"), *resumed, "2")
    tune("first.model", "--E0s", '{"O":-430.50,"H":-13}', *resumed, "3")
    (tmp_path / "E0.json").write_text('{"H": -12.0, "O": -430.5}')
    text = tune("first.model", "--E0s", "E0.json", *resumed, "4", code=2)
    assert "--E0s is E0.json, but the run of" in text
    assert "began with other energies" in text


def test_what_is_replayed_is_part_of_it(tune: Tune, tmp_path: Path) -> None:
    old = ("--replay", str(tmp_path / "old.xyz"))
    tune("first.model", *old)
    text = tune("first.model", "--resume", "auto", "--epochs", "2", code=2)
    assert "--replay is left out, but the run of" in text
    tune("first.model", *old, "--resume", "auto", "--epochs", "2")


def test_the_head_of_a_run_stays(tune: Tune, tmp_path: Path) -> None:
    """Earlier versions gave new data the source's first head."""
    bare(tmp_path / "two.model", 5, **TWO_HEADS)
    words = ("--replay", str(tmp_path / "old.xyz"), "--replay_head", "pt_head")
    tune("two.model", *words, "--head", "pt_head")
    tune("two.model", *words, "--resume", "auto", "--epochs", "2")
    config = checkpoint.read(tmp_path / "run/run_checkpoint.pt").content["train_state"]["config"]
    assert config["head"] == "pt_head"


def test_the_source_may_move_and_go_and_change(tune: Tune, tmp_path: Path) -> None:
    tune("first.model")
    shutil.move(tmp_path / "first.model", tmp_path / "moved.model")
    resumed = ("--resume", "auto", "--epochs")
    tune("moved.model", *resumed, "2")
    tune("first.model", *resumed, "3")
    shutil.copy(tmp_path / "second.model", tmp_path / "first.model")
    said = tune("first.model", *resumed, "4")
    assert "first.model is not what it was as the run of" in said
    assert checkpoint.read(tmp_path / "run/run_checkpoint.pt").content["train_state"]["epoch"] == 4


@pytest.mark.parametrize("model", ["first.model", "second.model", "wide.model"])
def test_a_run_of_before_it_was_noted(tune: Tune, tmp_path: Path, model: str) -> None:
    """Of such a run the structure of the source is known."""
    bare(tmp_path / "wide.model", 4, hidden_irreps="8x0e")
    tune("first.model")
    path = tmp_path / "run/run_checkpoint.pt"
    content = checkpoint.read(path).content
    state = dict(content["train_state"])
    state["source"] = {key: state["source"][key] for key in ("path", "model_json_hash")}
    kept = {k: v for k, v in content.items() if k not in ("format_version", "kind", "digest")}
    checkpoint.write_checkpoint(path, {**kept, "train_state": state})
    code = 2 if model == "wide.model" else 0
    text = tune(model, "--E0s", "shift", "--resume", "auto", "--epochs", "2", code=code)
    assert code == 0 or "wide.model is another model" in text


def test_a_training_is_no_fine_tuning(tune: Tune, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    argv = ["--input_json", tmp_path / "tiny.json", "--xyz_train", tmp_path / "new.xyz"]
    argv += ["--epochs", 1, "--no_export_mace_model", "--output_checkpoint", tmp_path / "run"]
    assert train_mace.main(list(map(str, argv))) == 0
    text = tune("first.model", "--resume", "auto", code=2)
    assert "is of a training that began with a model.json" in text


def test_resume_needs_no_source(tune: Tune, tmp_path: Path) -> None:
    tune("first.model", "--E0s", "shift")
    os.remove(tmp_path / "first.model")
    assert resume.main(["--input_model", str(tmp_path / "run"), "--epochs", "2"]) == 0


@pytest.mark.parametrize("replayed", ["pt_head", "Default"])
def test_new_data_get_the_head_that_is_not_replayed(
    tune: Tune, tmp_path: Path, replayed: str
) -> None:
    """Of a source that was itself fine-tuned with replay, whatever the order of its heads."""
    bare(tmp_path / "two.model", 5, **TWO_HEADS)
    words = ("--replay", str(tmp_path / "old.xyz"), "--replay_head", replayed)
    said = tune("two.model", *words)
    config = checkpoint.read(tmp_path / "run/run_checkpoint.pt").content["train_state"]["config"]
    (other,) = {"pt_head", "Default"} - {replayed}
    assert config["head"] == other
    assert f"new.xyz, head {other}" in said or f" {other} " in said
    assert "no structure to train on is of head" not in said


@pytest.mark.parametrize("given", ["json", "file"])
def test_elements_without_an_energy_are_said(tune: Tune, tmp_path: Path, given: str) -> None:
    atom = waters(1)[0][1:2]
    atom.info = {"config_type": "IsolatedAtom", "REF_energy": -13.0, "energy": -13.0}
    write(tmp_path / "atoms.xyz", atom, format="extxyz")
    E0s = '{"H": -13.0}' if given == "json" else str(tmp_path / "atoms.xyz")
    said = tune("first.model", "--E0s", E0s)
    assert "warning: head Default: --E0s gives none of O: they keep the source's E0s" in said
    assert "gives none" not in tune(
        "first.model", "--E0s", '{"H": -13.0, "O": -430.5}', "--overwrite"
    )


def test_energies_for_a_head_that_is_not_trained_are_said(tune: Tune, tmp_path: Path) -> None:
    bare(tmp_path / "two.model", 5, **TWO_HEADS)
    all_heads = '{"H": -13.0, "O": -430.5}'
    said = tune("two.model", "--head", "Default", "--E0s", all_heads)
    assert "warning: head pt_head gets the energies of --E0s, and no structure to train on" in said
    assert "no structure to train on is of head pt_head: its own weights stay" in said
    by_head = f'{{"Default": {all_heads}}}'
    said = tune("two.model", "--head", "Default", "--E0s", by_head, "--overwrite")
    assert "gets the energies of --E0s" not in said


def test_a_head_to_copy_where_none_is_made_is_refused(tune: Tune, tmp_path: Path) -> None:
    bare(tmp_path / "two.model", 5, **TWO_HEADS)
    words = ("--replay", str(tmp_path / "old.xyz"), "--replay_head", "pt_head")
    text = tune("two.model", *words, "--copy_head", "Default", code=2)
    assert "--copy_head Default: no head is made, as the source has --replay_head pt_head" in text


@pytest.mark.parametrize(("own", "replayed"), [("q", "auto"), ("none", None), (None, None)])
def test_replayed_charges_have_their_usual_names(
    tune: Tune, tmp_path: Path, own: str | None, replayed: str | None
) -> None:
    """Where those of the new data have another."""
    frames = waters(8, seed=5)
    for atoms in frames:
        atoms.info["q"] = 0
    write(tmp_path / "new.xyz", frames, format="extxyz")
    words = [] if own is None else ["--charge_key", own]
    tune("first.model", "--replay", str(tmp_path / "old.xyz"), *words)
    config = checkpoint.read(tmp_path / "run/run_checkpoint.pt").content["train_state"]["config"]
    (source,) = config["sources"]
    assert (source["charge_key"], source["spin_key"]) == (replayed, None)
