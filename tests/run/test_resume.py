"""resume.py: what may change and what it says; one writer per run; a requeued
job repeats its command.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from lmdb_material import write_ase

from conftest import ROOT, TINY, waters
from model_utils import resume, train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint, run_lock
from model_utils.files.outputs import Outputs
from model_utils.run import fit
from model_utils.tasks.same_bits import differences

Make = Callable[..., Path]


def flags_in(folder: Path) -> list[str]:
    """A run of three epochs of three steps, on data in a folder."""
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "train.xyz", waters(10), format="extxyz")
    write(folder / "val.xyz", waters(4, seed=1), format="extxyz")
    words = [
        "--input_json",
        str(folder / "tiny.json"),
        "--xyz_train",
        str(folder / "train.xyz"),
        "--batch_size",
        "4",
    ]
    return [*words, "--xyz_val", str(folder / "val.xyz"), "--no_export_mace_model", "--epochs", "3"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return flags_in(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stopped_once(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train_mace.main([*flags, "--max_steps", "5", "--output_checkpoint", str(folder)]) == 0
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """The run, stopped after five of its nine steps, in a folder of the test's own."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def state_of(folder: Path) -> dict[str, object]:
    return dict(checkpoint.read(folder / "run_checkpoint.pt").content["train_state"])


def outputs_in(folder: Path) -> Outputs:
    return Outputs.named(folder / "run_checkpoint.pt", None)


def test_from_another_folder_by_directory_or_file(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped, tmp_path / "copy" / "run")
    monkeypatch.chdir(tmp_path / "copy")
    assert resume.main(["--input_model", "run", "--max_steps", "9"]) == 0
    assert (
        resume.main(["--input_model", str(stopped / "run_checkpoint.pt"), "--max_steps", "9"]) == 0
    )
    assert state_of(stopped)["step"] == 9
    assert differences(outputs_in(stopped), outputs_in(tmp_path / "copy" / "run")) == []


def test_moved_data_are_found_where_the_flag_says(tmp_path: Path) -> None:
    stopped = tmp_path / "run"
    assert (
        train_mace.main(
            [*flags_in(tmp_path), "--max_steps", "5", "--output_checkpoint", str(stopped)]
        )
        == 0
    )
    (tmp_path / "moved").mkdir()
    for name in ("train.xyz", "val.xyz"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    assert resume.main(["--input_model", str(stopped), "--max_steps", "9"]) == 2
    moved = [
        "--xyz_train",
        str(tmp_path / "moved/train.xyz"),
        "--xyz_val",
        str(tmp_path / "moved/val.xyz"),
    ]
    assert resume.main(["--input_model", str(stopped), "--max_steps", "9", *moved]) == 0


@pytest.mark.parametrize("data", ["train.xyz", "shards"])
def test_sources_keep_their_names_however_a_run_goes_on(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume.py knows where relative paths led to, and records have them as they were typed:
    of a file, and of a folder of LMDBs.
    """
    monkeypatch.chdir(tmp_path)
    flags_in(tmp_path)
    (tmp_path / "shards").mkdir()
    for number in range(2):
        frames = waters(5, seed=number)
        for atoms in frames:
            labels = {
                "energy": atoms.info.pop("REF_energy"),
                "forces": atoms.arrays.pop("REF_forces"),
            }
            atoms.calc = SinglePointCalculator(atoms, **labels)
        write_ase(tmp_path / "shards" / f"{number}.aselmdb", frames)
    words = ["--input_json", "tiny.json", "--train_file", data, "--valid_file", "./val.xyz"]
    words += ["--batch_size", "4", "--no_export_mace_model", "--epochs"]
    assert train_mace.main([*words, "3", "--output_checkpoint", "whole"]) == 0
    assert train_mace.main([*words, "1", "--output_checkpoint", "run"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for epochs in ("2", "3"):
        assert resume.main(["--input_model", "../run", "--epochs", epochs]) == 0
    whole = Outputs.named(tmp_path / "whole/whole_checkpoint.pt", None)
    run = outputs_in(tmp_path / "run")
    found = differences(whole, run)
    assert [text for text in found if "scheduler.horizon" not in text] == []
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    names = [set(record["by_source"]) for record in records if record["kind"] == "valid"]
    assert names == [{"val.xyz"}] * 4


def test_other_test_data_have_their_own_name(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number) / "test.xyz", waters(4, seed=number), format="extxyz")
    words = [*flags_in(tmp_path), "--output_checkpoint", str(tmp_path / "run")]
    words += ["--xyz_test", str(tmp_path / "1/test.xyz"), "--max_steps", "2"]
    assert train_mace.main(words) == 0
    of_others = ["--xyz_test", str(tmp_path / "2/test.xyz"), "--max_steps", "3"]
    assert resume.main(["--input_model", str(tmp_path / "run"), *of_others]) == 0
    data = state_of(tmp_path / "run")["data"]
    assert isinstance(data, dict)
    assert data["test"]["files"] == [str(tmp_path / "2/test.xyz")]


def test_other_data_are_refused(
    stopped: Path, water_xyz: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(water_xyz("other.xyz", 10, seed=7))
    assert resume.main(["--input_model", str(stopped), "--xyz_train", other]) == 3
    assert "the train data are not those of the run" in capsys.readouterr().err


def test_labels_that_were_changed_are_said_to_be(
    stopped: Path, water_xyz: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = read(water_xyz("train.xyz", 10), ":")
    frames[3].info["REF_energy"] += 0.5
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "train.xyz", frames, format="extxyz")
    other = str(tmp_path / "other" / "train.xyz")
    assert resume.main(["--input_model", str(stopped), "--xyz_train", other]) == 3
    said = capsys.readouterr().err
    assert "train.xyz, whose labels, positions, weights or order have changed" in said


def test_lr_keeps_moments_and_the_schedule_follows(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(stopped)["optimizer"]["state"]  # type: ignore[index]
    assert (
        resume.main(
            ["--input_model", str(stopped), "--max_steps", "6", "--lr", "1e-9", "--resume_new_lr"]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "--lr 1e-09: the rate is now 1e-09" in shown
    assert f"goes on writing {stopped / 'run_checkpoint.pt'} and what lies beside it" in shown
    assert "will write" not in shown
    assert "the optimizer's moments are kept" in shown
    state = state_of(stopped)
    assert state["scheduler"]["base_rates"] == [1e-9]  # type: ignore[index]
    assert state["config"]["lr"] == 1e-9  # type: ignore[index]
    after = state["optimizer"]["state"]  # type: ignore[index]
    assert float(after[0]["step"]) == float(before[0]["step"]) + 1


def test_best_weights_with_fresh_moments(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        resume.main(
            ["--input_model", str(stopped), "--max_steps", "6", "--resume_best", "--lr", "1e-12"]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "moments start anew" in shown
    assert "moments are kept" not in shown
    best, now = (
        checkpoint.read(stopped / "run_model.pt").tensors,
        checkpoint.read(stopped / "run_checkpoint.pt").tensors,
    )
    assert all(torch.allclose(now[name], best[name], rtol=1e-5, atol=1e-8) for name in best)
    moments = state_of(stopped)["optimizer"]["state"]  # type: ignore[index]
    assert float(moments[0]["step"]) == 1


def test_average_begun_and_ended(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main(["--input_model", str(stopped), "--max_steps", "6", "--ema"]) == 0
    assert "EMA begins with the weights of now" in capsys.readouterr().out
    state = state_of(stopped)
    assert state["ema_state_dict"]["updates"] == 1  # type: ignore[index]
    assert resume.main(["--input_model", str(stopped), "--max_steps", "7", "--no_ema"]) == 0
    assert "EMA ends" in capsys.readouterr().out
    assert state_of(stopped)["ema_state_dict"] is None


def rates_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rate that each later optimizer step of this process takes."""
    taken: list[float] = []
    step = torch.optim.Adam.step

    def recorded(optimizer: torch.optim.Adam, *words: object) -> object:
        taken.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *words)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    return taken


def test_a_longer_run_does_not_stand_still_and_goes_on_from_the_rate_that_is_named(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    cosine = [
        *flags,
        "--scheduler",
        "cosine",
        "--scheduler_unit",
        "step",
        "--output_checkpoint",
        str(folder),
    ]
    assert train_mace.main([*cosine, "--epochs", "2"]) == 0
    assert state_of(folder)["scheduler"]["horizon"] == 6.0  # type: ignore[index]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    words = ["--input_model", str(folder), "--epochs"]
    assert resume.main([*words, "3"]) == 2
    error = capsys.readouterr().err
    assert "cosine schedule has come down to rate 0 by step 6 and stays there" in error
    assert "--lr" in error
    assert "--reset_scheduler" in error
    assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    taken = rates_of_steps(monkeypatch)
    assert resume.main([*words, "3", "--lr", "1e-3"]) == 0
    assert taken == pytest.approx([1e-3, 0.75e-3, 0.25e-3], rel=1e-12)
    assert taken[0] == 1e-3
    shown = capsys.readouterr().out
    assert (
        "cosine schedule: 0.001 now, 0.00025 in the last step, until step 9, the end of the run"
        in shown
    )
    assert resume.main([*words, "4", "--resume_reset_scheduler"]) == 0
    assert taken[3:] == pytest.approx([1e-3, 0.75e-3, 0.25e-3], rel=1e-12)
    scheduler = state_of(folder)["scheduler"]
    assert (scheduler["steps"], scheduler["horizon"]) == (3, 3.0)  # type: ignore[index]


def test_a_broken_off_command_goes_on_where_it_is_repeated(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside SLURM too: a rate that was set once decays from there, and is not set again."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    words = ["--input_model", str(stopped), "--lr", "1e-4", "--max_steps", "9"]
    after_step = fit._Run._after_step

    def stop(run: fit._Run) -> None:
        after_step(run)
        if run.state.progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fit._Run, "_after_step", stop)
    assert resume.main(words) == 75
    assert "--lr 0.0001: the rate is now" in capsys.readouterr().out
    assert resume.main(words) == 0
    assert "--lr: applied already; this continues what it began" in capsys.readouterr().out
    assert resume.main([*words[:-1], "10", "--epochs", "4"]) == 0
    assert "--lr 0.0001: the rate is now" in capsys.readouterr().out, (
        "another end is another command"
    )


def test_at_another_place_with_records_and_best_model(stopped: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    elsewhere = tmp_path / "elsewhere"
    words = [
        "--input_model",
        str(stopped),
        "--output_checkpoint",
        str(elsewhere),
        "--max_steps",
        "9",
    ]
    assert resume.main(words) == 0
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
    assert resume.main(["--input_model", str(stopped), "--max_steps", "9"]) == 0
    there = Outputs.named(elsewhere, None)
    assert differences(outputs_in(stopped), there) == []
    assert resume.main([*words, "--max_steps", "10"]) == 0, (
        "the same command in a requeued job goes on there"
    )
    # three epochs are nine steps
    assert checkpoint.read(there.checkpoint).content["train_state"]["step"] == 9


def test_a_place_of_another_run_is_refused(
    stopped: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert train_mace.main([*flags, "--epochs", "1", "--output_checkpoint", str(other)]) == 0
    assert resume.main(["--input_model", str(stopped), "--output_checkpoint", str(other)]) == 2
    assert "belongs to another run" in capsys.readouterr().err


def test_a_requeued_job_applies_its_changes_once(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 9999))
    words = ["--input_model", str(stopped), "--resume_best", "--max_steps"]
    assert resume.main([*words, "6"]) == 0
    assert resume.main([*words, "8"]) == 0
    assert "--resume_best: applied already" in capsys.readouterr().out
    assert float(state_of(stopped)["optimizer"]["state"][0]["step"]) == 3  # type: ignore[index]


def test_a_damaged_newest_generation_is_named_skipped_and_set_aside(
    stopped: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole" / "run"
    assert train_mace.main([*flags, "--output_checkpoint", str(whole)]) == 0
    newest = stopped / "run_checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-50])
    assert resume.main(["--input_model", str(stopped), "--max_steps", "10"]) == 0
    shown = capsys.readouterr()
    assert f"{newest} is cut off" in shown.out + shown.err
    assert (stopped / "run_checkpoint.damaged.pt").exists()
    ours, theirs = (
        checkpoint.read(folder / "run_checkpoint.pt").tensors for folder in (stopped, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch_size", "8"], "--batch_size cannot change in a resumed run"),
        (["--resume_new_lr"], "add --lr"),
        (["--epochs", "1", "--max_steps", "2"], "--max_steps 2 counts the whole run"),
        (["--seed", "5"], "--seed cannot change in a resumed run"),
    ],
)
def test_contradictions(
    stopped: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    assert resume.main(["--input_model", str(stopped), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_inputs_that_are_no_checkpoint(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, said in (
        (stopped / "run_model.pt", "holds best weights only"),
        (empty, "no *_checkpoint.pt in"),
        (tmp_path / "absent", "there is no"),
    ):
        assert resume.main(["--input_model", str(path)]) == 2
        assert said in capsys.readouterr().err
    shutil.copy(stopped / "run_checkpoint.pt", stopped / "two_checkpoint.pt")
    assert resume.main(["--input_model", str(stopped)]) == 2
    assert "several runs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["resume", "auto"])
def test_an_edited_sidecar_is_named_by_its_field(
    command: str, stopped: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "run_model.json"
    whole = path.read_text()
    words = ["--input_model", str(stopped), "--max_steps", "6"]
    main = resume.main
    if command == "auto":
        words, main = (
            [*flags, "--output_checkpoint", str(stopped), "--resume", "auto", "--max_steps", "6"],
            train_mace.main,
        )
    edited = json.dumps({**json.loads(whole), "r_max": 4.0})
    for text, said in ((edited, "r_max"), ("{", "remove the damaged one")):
        path.write_text(text)
        before = {path.name: path.read_bytes() for path in stopped.iterdir()}
        assert main(words) == 3
        error = capsys.readouterr().err
        assert said in error
        assert str(path) in error
        assert "--overwrite" not in error
        assert len(error.splitlines()) == 1
        assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
    path.write_text(json.dumps(json.loads(whole)))  # in other lines, the same
    assert main(words) == 0
    assert path.read_text() == whole


def test_a_place_with_another_description_is_not_written_over(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "other_model.json").write_text("{}")
    assert (
        resume.main(
            ["--input_model", str(stopped), "--output_checkpoint", str(other), "--max_steps", "6"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "move it away, or give another --output_checkpoint" in error
    assert "--overwrite" not in error


def test_other_settings_with_resume_auto_are_refused(
    stopped: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--output_checkpoint", str(stopped), "--resume", "auto"]
    assert train_mace.main([*words, "--lr", "0.5"]) == 2
    assert "--lr is 0.5, but the run of" in capsys.readouterr().err
    assert train_mace.main(words) == 0


def test_what_is_not_bitwise_is_said(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stopped / "run_checkpoint.pt"
    content = dict(checkpoint.read(path).content)
    content.pop("kind"), content.pop("format_version")
    content["code_version"] = {**content["code_version"], "torch": "2.12.0"}
    content["train_state"]["computed_on"] |= {"threads": 512, "cpu_capability": "AVX3"}
    checkpoint.write_checkpoint(path, content)
    assert resume.main(["--input_model", str(stopped), "--max_steps", "9"]) == 0
    shown = capsys.readouterr().out
    for words in ("torch 2.12.0 → ", "threads 512 → ", "cpu capability AVX3 → "):
        assert f"not bitwise: {words}" in shown


def test_one_writer_per_run(
    stopped: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = outputs_in(stopped).lock
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(InputError, match=rf"being written by process {holder.pid} on"),
            run_lock.held(lock, wait=False),
        ):
            pass
        words = [*flags, "--output_checkpoint", str(stopped), "--overwrite"]
        assert train_mace.main(words) == 2
        assert f"process {holder.pid} on" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.wait()
    assert lock.exists(), "a killed process leaves its lock behind"
    with run_lock.held(lock, wait=False):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


HOLD = """
import sys, time
from pathlib import Path
from model_utils.files import run_lock
with run_lock.held(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(3600)  # until it is killed
"""


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    import socket

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover = tmp_path / f".run_checkpoint.pt.{socket.gethostname()}.{dead.pid}.tmp"
    alive = tmp_path / f".run_checkpoint.pt.{socket.gethostname()}.{os.getpid()}.tmp"
    for path in (leftover, alive):
        path.write_bytes(b"half")
    with run_lock.held(tmp_path / ".run.lock", wait=False):
        assert (leftover.exists(), alive.exists()) == (False, True)


def test_a_checkpoint_by_another_name(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, copy = tmp_path / "runs", tmp_path / "copy"
    last, best = folder / "last.pth", folder / "best.pth"
    words = [*flags, "--output_checkpoint", str(last), "--output_model", str(best)]
    assert train_mace.main([*words, "--max_steps", "3"]) == 0
    names = {"last.pth", "last.prev.pth", "best.pth", "last_model.json", "best_model.json"}
    names |= {"metrics.jsonl", "train.log", "config.resolved.yaml"}
    assert {path.name for path in folder.iterdir()} == names
    shutil.copytree(folder, copy)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert resume.main(["--input_model", str(copy / "last.pth"), "--max_steps", "4"]) == 0
    assert {path.name for path in copy.iterdir()} == names, (
        "the best model keeps the name that it was given"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, (
        "a copy writes into its own folder"
    )
    last.write_bytes(last.read_bytes()[:-9])
    assert resume.main(["--input_model", str(folder), "--max_steps", "4"]) == 0
    assert {path.name for path in folder.iterdir()} == {*names, "last.damaged.pth"}
    assert checkpoint.read(last).content["train_state"]["step"] == 4
    capsys.readouterr()
    assert (
        train_mace.main(
            [*flags, "--output_checkpoint", str(folder / "other.pth"), "--resume", "auto"]
        )
        == 2
    )
    assert "last.pth of another run beside" in capsys.readouterr().err
