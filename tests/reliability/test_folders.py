"""A run knows its folders and is alone in them: moved, removed, or shared with another
run, no file is mixed.
"""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import HANGING, pausing, wait_until
from dataloader import durable
from model_utils import api, evaluate, finetune, resume, train_mace
from model_utils.errors import InputError
from model_utils.files import run_lock
from model_utils.files.held_folder import HeldFolder
from model_utils.files.outputs import Outputs
from model_utils.run.beginnings import resuming
from model_utils.run.folder.run_files import RunFiles
from model_utils.run.train_state import TrainState
from model_utils.tasks.same_bits import differences

Train = Callable[..., Path]


def words_of(material: Path, *flags: object) -> list[str]:
    words = [
        "--input_json",
        material / "tiny.json",
        "--xyz_train",
        material / "train.xyz",
        "--batch_size",
        "4",
    ]
    words += ["--xyz_val", material / "val.xyz", "--epochs", "2", "--threads", "1", *flags]
    return [str(word) for word in words]


def outputs_in(folder: Path, name: str = "run") -> Outputs:
    return Outputs.named(folder / f"{name}_checkpoint.pt", None)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def paused(
    material: Path, tmp_path: Path, *flags: object, step: int = 3
) -> Iterator[tuple[Any, Path]]:
    """A run of the command that stays in a step, and the file that lets it go on."""
    reached, over = tmp_path / "reached", tmp_path / "over"
    command = [*pausing(step, reached, over), *words_of(material, *flags)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            wait_until(lambda: reached.exists() or process.poll() is not None, f"step {step}")
            assert process.poll() is None, process.stderr.read()
            yield process, over
        finally:
            process.kill()


def test_a_moved_run_goes_on_where_it_is_and_leaves_a_new_one_alone(
    material: Path, tmp_path: Path
) -> None:
    """A second run begins and ends at the old path while the first lasts: each has its own
    files, and only those.
    """
    place, moved = tmp_path / "run", tmp_path / "moved"
    flags = (
        "--tensorboard",
        "--checkpoint_every_steps",
        "1",
        "--resume",
        "auto",
        "--output_checkpoint",
        place,
    )
    with paused(material, tmp_path, *flags) as (process, over):
        place.rename(moved)
        assert train_mace.main(words_of(material, *flags)) == 0
        second = content(place)
        with run_lock.run_held(outputs_in(place), wait=False):
            over.touch()
            said, failed = process.communicate(timeout=HANGING)
            assert all(lock.exists() for lock in outputs_in(place).locks), (
                "the first run removed the second's locks"
            )
    assert (process.returncode, failed) == (0, "")
    assert said.count(f"was moved while the run writes it; the run goes on in {moved}") == 1
    assert content(place) == second
    assert differences(outputs_in(place), outputs_in(moved)) == []
    assert {path.name for path in moved.iterdir()} == {path.name for path in place.iterdir()}, (
        "and its locks are gone"
    )
    assert (
        len(list((moved / "tensorboard").iterdir()))
        == len(list((place / "tensorboard").iterdir()))
        == 1
    )
    assert (moved / "train.log").read_text().count("training is over") == 1


def test_a_run_moved_away_and_back_between_any_two_saves(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save, place, away = RunFiles.save, tmp_path / "run", tmp_path / "away"

    def move_and_save(self: RunFiles, state: TrainState, reason: str) -> bool:
        here, there = (place, away) if place.exists() else (away, place)
        here.rename(there)
        return save(self, state, reason)

    flags = ["--batch_size", "4", "--checkpoint_every_steps", "1"]
    whole = train("whole/run", *flags)
    monkeypatch.setattr(RunFiles, "save", move_and_save)
    train("run", *flags)
    folder = place if place.exists() else away
    assert differences(outputs_in(whole), outputs_in(folder)) == []
    assert f"the run goes on in {place}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name in ("run", "away")] == [
        folder.name
    ]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "replace"])
def test_a_folder_moved_within_a_save(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun in the folder is ended in it; another at its path is not touched."""
    place, moved = tmp_path / "run", tmp_path / "moved"
    place.mkdir()
    (place / "x.pt").write_bytes(b"old")

    class Moving:
        """``os`` in the middle of whose call the folder is moved and another one made."""

        def __getattr__(self, name: str) -> Any:
            real = getattr(durable_os, name)

            def move(*arguments: Any, **names: Any) -> Any:
                done = real(*arguments, **names)
                if not moved.exists():
                    place.rename(moved)
                    place.mkdir()
                    (place / "x.pt").write_bytes(b"of another")
                return done

            return move if name == call else real

    durable_os = durable.os
    monkeypatch.setattr(durable, "os", Moving())
    durable.write(place / "x.pt", b"new", previous=place / "x.prev.pt")
    assert content(place) == {"x.pt": b"of another"}
    assert content(moved) == {"x.pt": b"new", "x.prev.pt": b"old"}


def test_a_run_whose_folder_is_removed_ends_in_one_line(
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where another run began at its path: nothing of the first comes into its files."""
    save, place = RunFiles.save, tmp_path / "run"

    def remove_and_save(self: RunFiles, state: TrainState, reason: str) -> bool:
        if reason == "epoch":
            shutil.rmtree(place)
            place.mkdir()
            (place / "metrics.jsonl").write_text("of another\n")
        return save(self, state, reason)

    monkeypatch.setattr(RunFiles, "save", remove_and_save)
    assert train_mace.main(words_of(material, "--output_checkpoint", place)) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{place}, a folder of this run, was removed or moved to another file system" in line
    assert content(place) == {"metrics.jsonl": b"of another\n"}


def test_a_folder_that_does_not_answer_for_now_is_not_taken_for_a_removed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HeldFolder(tmp_path) as folder:

        def stale(path: object, **_: object) -> None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

        monkeypatch.setattr(os, "stat", stale)
        assert folder.path() == tmp_path


# ---- two runs and one file


def models_of(folder: Path, first: str, second: str) -> tuple[Outputs, Outputs]:
    """Two runs with their best models in one folder."""
    (folder / "models").mkdir(exist_ok=True)
    runs = []
    for name, model in (("a", first), ("b", second)):
        (folder / name).mkdir(exist_ok=True)
        runs.append(
            Outputs.named(folder / name / f"{name}_checkpoint.pt", folder / "models" / model)
        )
    return runs[0], runs[1]


SHARED = {  # names of two best models in one folder
    "the same": ("x_model.pt", "x_model.pt"),
    "their model.json and .model": ("x_model.pt", "x.pth"),
    "the best of stage one": ("x_model.pt", "x_stage_one_model.pt"),
    "the model.json of a source": ("x_source_model.pt", "x_model.pt"),
}


@pytest.mark.parametrize("names", SHARED.values(), ids=SHARED)
def test_two_runs_with_a_file_in_common(names: tuple[str, str], tmp_path: Path) -> None:
    first, second = models_of(tmp_path, *names)
    with (
        run_lock.run_held(first, wait=False),
        pytest.raises(
            InputError, match=r"_model\.pt|x\.pth.* is being written by process .*--output_model"
        ),
        run_lock.run_held(second, wait=False),
    ):
        pass
    with run_lock.run_held(second, wait=False):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_command_that_trains_keeps_off_a_model_that_another_writes(
    train: Train,
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, model = train("source", "--max_steps", "1"), tmp_path / "models" / "x_model.pt"
    first = Outputs.named(tmp_path / "first", model)
    first.make_folders()
    monkeypatch.setattr(run_lock, "WAIT", 0.0)
    data = ["--xyz_train", material / "train.xyz", "--xyz_val", material / "val.xyz", "--overwrite"]
    commands = {
        train_mace: ["--input_json", material / "tiny.json", *data],
        finetune: ["--input_model", source / "source_model.pt", *data],
        resume: ["--input_model", source, "--epochs", "3"],
    }
    capsys.readouterr()
    for command, words in commands.items():
        place = ["--output_checkpoint", tmp_path / command.__name__, "--output_model", model]
        with run_lock.run_held(first, wait=False):
            assert command.main([str(word) for word in (*words, *place)]) == 2
        assert f"{model} is being written by process {os.getpid()} on" in capsys.readouterr().err
    assert list(model.parent.iterdir()) == []


def test_runs_of_other_names_share_a_folder_of_models(tmp_path: Path) -> None:
    first, second = models_of(tmp_path, "x_model.pt", "y_model.pt")
    with run_lock.run_held(first, wait=False), run_lock.run_held(second, wait=False):
        pass


def test_a_best_model_in_the_folder_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    own = Outputs.named(tmp_path / "b" / "b_checkpoint.pt", None)
    guest = Outputs.named(tmp_path / "a" / "a_checkpoint.pt", tmp_path / "b" / "b_model.pt")
    for first, second in ((own, guest), (guest, own)):
        with (
            run_lock.run_held(first, wait=False),
            pytest.raises(InputError, match="is being written by process"),
            run_lock.run_held(second, wait=False),
        ):
            pass


def test_one_folder_by_two_paths_is_locked_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    outputs = Outputs.named(
        tmp_path / "run" / "run_checkpoint.pt", tmp_path / "link" / "run_model.pt"
    )
    with run_lock.run_held(outputs, wait=False):
        pass


@pytest.mark.parametrize(
    "model",
    ["link/run_checkpoint.pt", "run/../run/run_checkpoint.pt", "run/run_checkpoint.prev.pt"],
)
def test_checkpoint_and_model_are_two_files(model: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(InputError, match="give them different names"):
        Outputs.named(tmp_path / "run", tmp_path / model)


def test_a_lock_is_removed_by_its_holder_alone(tmp_path: Path) -> None:
    """One that was removed by hand, and made again by another run, stays."""
    lock = tmp_path / ".run.lock"
    with run_lock.held(lock, wait=False):
        lock.unlink()
        lock.write_text("of another run")
    assert lock.read_text() == "of another run"


@pytest.mark.parametrize(
    ("name", "code"), [("some/run/run_checkpoint.pt", 2), ("a_program_that_is_not_there", 1)]
)
def test_a_file_that_goes_missing_meanwhile_is_one_line(
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
) -> None:
    """As when its folder is moved while a run begins; what is missing from the start is refused
    where it is looked for.
    """

    def missing(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    monkeypatch.setattr(api, "train", missing)
    words = [*words_of(material), "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main(words) == code
    said = capsys.readouterr().err.splitlines()
    assert (len(said) == 1) is (code == 2), said
    assert name in said[-1]


def test_a_checkpoint_is_read_once(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path a second time it might be another, or gone; several processes compare it."""
    train("run")
    monkeypatch.delattr(resuming, "_sha256")
    assert resume.main(["--input_model", str(tmp_path / "run"), "--epochs", "3"]) == 0


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_files_have_the_mode_of_the_umask(
    umask: int, material: Path, tmp_path: Path, quick_build: None
) -> None:
    """So that a group shares a run, or nobody does."""
    before = os.umask(umask)
    try:
        place = ("--tensorboard", "--output_checkpoint", tmp_path / "run")
        assert train_mace.main(words_of(material, *place)) == 0
    finally:
        os.umask(before)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "run").iterdir()
        if path.is_file()
    }
    assert len(modes) >= 7
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_what_this_user_may_not_read_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As in a colleague's closed folder; root, who runs tests too, may read all."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/home/her/closed/run_model.pt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_utils.model_loader.weights_file", refused)
        words = ["--input_model", "/home/her/closed/run_model.pt", "--data", "x.xyz"]
        assert evaluate.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /home/her/closed/run_model.pt: Permission denied for this user")
