"""A run that is to be replaced, and the replacement is killed: what lies there is the
old run or nothing of it.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ase.io import write

from conftest import in_the_battery, waters
from model_utils import finetune, resume, train_mace
from model_utils.files.outputs import Outputs
from model_utils.run import training
from model_utils.run.beginnings import replaying
from model_utils.tasks.same_bits import differences
from reliability.conftest import FULL, amount

KILLED = 137
Train = Callable[..., Path]


def die(*_: Any, **__: Any) -> NoReturn:
    os._exit(KILLED)  # as a kill: nothing is cleaned up


def killed(command: Callable[[], int], prepare: Callable[[], None]) -> int:
    """The exit code of a command in a child of this process, which was prepared to die."""
    child = os.fork()
    if child == 0:
        prepare()
        os._exit(command())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outputs_in(folder: Path) -> Outputs:
    return Outputs.named(folder / "run_checkpoint.pt", None)


@pytest.fixture
def tuned(train: Train, material: Path, tmp_path: Path) -> list[str]:
    """Words of a fine-tuning with replay whose source labels it, in ``tmp_path/run``, where
    it has run for an epoch.
    """
    source = train("source", "--max_steps", "1") / "source_model.pt"
    write(tmp_path / "old.xyz", waters(5, 7), format="extxyz")
    write(tmp_path / "others.xyz", waters(5, 8), format="extxyz")
    words = [
        "--input_model",
        source,
        "--xyz_train",
        material / "train.xyz",
        "--xyz_val",
        material / "val.xyz",
    ]
    words += [
        "--no_export_mace_model",
        "--replay_labels",
        "source",
        "--output_checkpoint",
        tmp_path / "run",
    ]
    plain = [str(word) for word in words]
    assert finetune.main([*plain, "--replay", str(tmp_path / "old.xyz"), "--epochs", "1"]) == 0
    return plain


@pytest.mark.parametrize("moment", ["labelling", "labelled"][: amount(1, 2)])
def test_a_run_goes_on_with_its_own_labels(moment: str, tuned: list[str], tmp_path: Path) -> None:
    """By every command that continues, in its place and elsewhere."""
    folder, kept, away = tmp_path / "run", tmp_path / "kept", tmp_path / "away" / "run"
    labels = outputs_in(folder).replay.read_bytes()

    def prepare() -> None:
        if moment == "labelling":
            replaying.as_extended_xyz = die
        else:
            training.run_files.opened = die

    again = [*tuned, "--replay", str(tmp_path / "others.xyz"), "--overwrite", "--epochs", "1"]
    assert killed(lambda: finetune.main(again), prepare) == KILLED
    assert outputs_in(folder).replay_before.read_bytes() == labels
    shutil.copytree(folder, kept)
    assert resume.main(["--input_model", str(folder), "--epochs", "2"]) == 0
    assert outputs_in(folder).replay.read_bytes() == labels
    assert not outputs_in(folder).replay_before.exists()
    whole = shutil.copytree(folder, tmp_path / "whole" / "run")
    others = moment == "labelled" or FULL
    for command, words, place in others * (
        (
            finetune,
            [*tuned, "--replay", str(tmp_path / "old.xyz"), "--resume", "auto", "--epochs", "2"],
            folder,
        ),
        (
            resume,
            ["--input_model", str(folder), "--output_checkpoint", str(away), "--epochs", "2"],
            away,
        ),
    ):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        assert command.main(words) == 0
        assert outputs_in(folder).replay.read_bytes() == labels
        found = differences(outputs_in(whole), outputs_in(place))
        assert [text for text in found if "history" not in text] == []


def test_labels_of_a_run_that_is_gone_do_not_come_back(tuned: list[str], tmp_path: Path) -> None:
    """Killed when all of the old run but its labels was removed: what begins then keeps its own."""
    folder = tmp_path / "run"
    outputs = outputs_in(folder)
    for path in (*outputs.of_another_run(), *outputs.model_jsons):
        path.unlink()
    shutil.copy(tmp_path / "old.xyz", outputs.replay_before)
    words = [*tuned, "--replay", str(tmp_path / "others.xyz"), "--resume", "auto"]
    assert finetune.main([*words, "--epochs", "1"]) == 0
    labels = outputs.replay.read_bytes()
    assert finetune.main([*words, "--epochs", "2"]) == 0
    assert outputs.replay.read_bytes() == labels


@in_the_battery
def test_killed_within_the_removal_of_another_run(
    train: Train, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before every file that --overwrite removes: the old run goes on as it was or not at
    all, the new one begins.
    """
    flags = [
        "--batch_size",
        "4",
        "--checkpoint_every_steps",
        "1",
        *(["--export_mace_model"] if FULL else []),
    ]
    new = [*flags, "--seed", "1", "--overwrite"]
    other = train("other/run", "--seed", "1", *flags)
    old = train("run", *flags, "--max_steps", "6")
    n_files = len(outputs_in(old).of_another_run())
    assert n_files >= 6
    kept = shutil.copytree(old, tmp_path / "kept")
    if FULL:
        assert resume.main(["--input_model", str(old), "--max_steps", "8"]) == 0
    continued = shutil.copytree(old, tmp_path / "continued" / "run")
    for n in range(n_files) if FULL else (1, 2):
        shutil.rmtree(old)
        shutil.copytree(kept, old)

        def prepare(n: int = n) -> None:
            unlink = Path.unlink
            left = [n]

            def unlink_or_die(path: Path, missing_ok: bool = False) -> None:
                if path.parent == old and not path.name.startswith("."):
                    left[0] -= 1
                    if left[0] < 0:
                        die()
                unlink(path, missing_ok=missing_ok)

            Path.unlink = unlink_or_die

        words = [
            str(w)
            for w in ("--input_json", material / "tiny.json", "--xyz_train", material / "train.xyz")
        ]
        words += [
            "--xyz_val",
            str(material / "val.xyz"),
            "--epochs",
            "2",
            "--output_checkpoint",
            str(old),
        ]
        assert killed(partial(train_mace.main, [*words, *new]), prepare) == KILLED
        half = shutil.copytree(old, tmp_path / f"half{n}")
        capsys.readouterr()
        code = resume.main(["--input_model", str(old), "--max_steps", "8"])
        stderr = capsys.readouterr().err
        if n < 2:  # its checkpoint is there, or the generation before
            assert code == 0
            assert n or differences(outputs_in(continued), outputs_in(old)) == []
        else:
            assert (code, len(stderr.splitlines())) == (2, 1)
        shutil.rmtree(old)
        shutil.copytree(half, old)
        assert train_mace.main([*words, *new]) == 0
        assert differences(outputs_in(other), outputs_in(old)) == []
