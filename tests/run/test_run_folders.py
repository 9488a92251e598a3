"""--run_dir: a folder for each run, which one goes on, what is kept of it; commands that
repeat and compare runs.
"""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.io import write

import read_model
from conftest import LONG, TINY, in_the_battery, waters
from model_utils import finetune, resume, train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint, run_lock
from model_utils.files.outputs import Outputs
from model_utils.run.folder import run_folders, run_record
from model_utils.settings import invoked, reading
from model_utils.settings.options import TrainOptions
from model_utils.tasks.exported_weights import ExportedWeights
from model_utils.tasks.same_bits import differences

OF_A_RUN = {  # ending of a file's name: the row of docs/other_toolkits.md that promises it
    "_checkpoint.pt": "last.pth",
    "_model.pt": "best.pth",
    "config.resolved.yaml": "config.resolved.yaml",
    "metrics.jsonl": "metrics.jsonl",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "train.xyz", waters(8), format="extxyz")
    write(folder / "val.xyz", waters(3, seed=1), format="extxyz")
    data = ["--xyz_train", str(folder / "train.xyz"), "--xyz_val", str(folder / "val.xyz")]
    return [
        "--input_json",
        str(folder / "tiny.json"),
        *data,
        "--batch_size",
        "4",
        "--no_export_mace_model",
    ]


def runs_in(experiment: Path) -> list[Path]:
    return sorted(path for path in experiment.iterdir() if not path.is_symlink())


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def outputs_of(folder: Path) -> Outputs:
    return Outputs.named(folder, None)


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with one run of two epochs."""
    experiment = tmp_path_factory.mktemp("experiments") / "demo"
    assert train_mace.main([*words, "--epochs", "2", "--run_dir", str(experiment)]) == 0
    return experiment


def test_a_run_has_a_folder_with_its_files_and_record(finished: Path, words: list[str]) -> None:
    """The row "runs/NAME/RUN_ID/"."""
    [folder] = runs_in(finished)
    names = {path.name for path in folder.iterdir()}
    for ending in OF_A_RUN:
        assert ending in names or f"{folder.name}{ending}" in names
    assert {f"{folder.name}_model.json", "run.json", "train.log"} <= names
    assert os.readlink(finished / "latest") == folder.name
    record = record_of(folder)
    content = checkpoint.read(folder / f"{folder.name}_checkpoint.pt").content
    assert record["argv"] == [*words, "--epochs", "2", "--run_dir", str(finished)]
    assert record["model_json_hash"] == content["model_json_hash"]
    assert record["code"] == content["code_version"]
    assert record["data"] == content["train_state"]["data"]
    assert (record["seed"], record["asked"]["epochs"], record["run_id"]) == (123, 2, folder.name)
    [start] = record["starts"]
    assert start["step"] == 0
    assert {"host", "processor", "cores", "memory_bytes", "device", "threads"} <= set(
        start["hardware"]
    )
    assert {"torch", "mace-torch", "e3nn", "python"} <= set(start["packages"])
    assert record["finished"]["why"] == "epochs done"
    log = (folder / "train.log").read_text()
    assert f"will write {folder / 'run.json'}: what was asked" in log


# which run goes on


Choose = Callable[..., Path]


@pytest.fixture
def choose(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """The folder that a command gets in an experiment where nothing is trained; each
    is made an hour later.
    """
    hours = iter(range(24))
    monkeypatch.setattr(
        run_record, "now", lambda: f"2026-01-01T{next(hours):02d}:00:00.000000+00:00"
    )

    def go(*flags: str, **environ: str) -> Path:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            options = reading.parse(
                TrainOptions, [*words, "--run_dir", str(tmp_path / "demo"), *flags]
            )
            assert options is not None
            return run_folders.chosen(options).folder

    return go


def finish(folder: Path) -> None:
    run_record.changed(folder, {"finished": {"why": "epochs done"}})


def test_the_newest_unfinished_one_of_equal_settings(choose: Choose) -> None:
    first = choose()
    second = choose()
    assert first != second, "without --resume every run is new"
    assert choose("--resume") == second
    finish(second)
    assert choose("--resume") == first
    finish(first)
    assert choose("--resume") == second, "all are finished: nothing is left to do"
    assert choose() not in (first, second)


def continued(folder: Path, **settings: Any) -> None:
    """A start that goes on with other settings."""
    run_record.changed(
        folder, {"finished": None}, settings={**record_of(folder)["asked"], **settings}
    )


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_that_was_continued_with_a_change_is_the_run_of_its_settings_of_now(
    choose: Choose, is_finished: bool
) -> None:
    first = choose("--epochs", "4")
    continued(first, lr=1e-3, epochs=5)
    continued(first, lr=1e-3, epochs=5)
    continued(first, lr=1e-4, epochs=5)
    if is_finished:
        finish(first)
    assert len(record_of(first)["changed_to"]) == 2
    assert record_of(first)["asked"]["lr"] == 0.01, "what a repetition begins with"
    assert choose("--resume", "--lr", "1e-4", "--epochs", "5") == first
    assert choose("--resume", "--resume_best", "--lr", "1e-5", "--epochs", "4") == first
    with pytest.raises(
        InputError, match=r"was continued with --lr 0\.0001 --epochs 5; give that to go on"
    ):
        choose("--resume", "--epochs", "4")
    with pytest.raises(InputError, match=r"was continued with --lr 0\.0001; give that"):
        choose("--resume", "--lr", "1e-3", "--epochs", "5")
    assert choose("--resume", "--lr", "0.5", "--epochs", "4") != first, "as in a scan of rates"
    own = choose("--epochs", "4")
    assert choose("--resume", "--epochs", "4") == own


TOLD_APART = {
    "lr": ["--lr", "0.02"],
    "seed": ["--seed", "7"],
    "epochs": ["--epochs", "3"],
    "data": ["--lmdb_val", "other.lmdb"],
    "ema": ["--ema"],
    "length": ["--scheduler", "cosine", "--scheduler_length", "7"],
}
THE_SAME = {
    "workers": ["--num_workers", "2"],
    "threads": ["--threads", "1"],
    "how often it is saved": ["--checkpoint_every_steps", "5"],
    "loggers": ["--loggers", "csv"],
    "time": ["--time_limit", "5"],
    "a dry run": ["--dry_run"],
}


@pytest.mark.parametrize("case", TOLD_APART)
def test_other_settings_are_another_run(case: str, choose: Choose) -> None:
    first = choose()
    other = choose("--resume", *TOLD_APART[case])
    assert other != first
    assert choose("--resume", *TOLD_APART[case]) == other
    assert choose("--resume") == first


@pytest.mark.parametrize("case", THE_SAME)
def test_how_it_is_computed_tells_no_runs_apart(case: str, choose: Choose) -> None:
    first = choose()
    assert choose("--resume", *THE_SAME[case]) == first


def test_another_network_is_another_run(choose: Choose, words: list[str], tmp_path: Path) -> None:
    first = choose()
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(TINY))
    assert choose("--resume", "--input_json", str(copy)) == first, (
        "the same network in another file"
    )
    copy.write_text(json.dumps({**TINY, "r_max": 3.5}))
    assert choose("--resume", "--input_json", str(copy)) != first


def test_jobs_and_tasks_of_a_scheduler(choose: Choose) -> None:
    tasks = [
        {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": k}
        for k in ("0", "1")
    ]
    first, second = (choose("--resume", **task) for task in tasks)
    assert (first.name, second.name) == ("job7_0", "job7_1")
    assert [choose("--resume", **task) for task in tasks] == [first, second], "requeued"
    later = {**tasks[1], "SLURM_ARRAY_JOB_ID": "8"}
    assert choose("--resume", **later) == second, (
        "submitted again: the unfinished run of its number"
    )
    finish(second)
    assert choose("--resume", **tasks[1]) == second, (
        "a job that is requeued when all was done does not begin anew"
    )
    assert choose("--resume", **later) == second, "nor one that is submitted again"
    assert choose(**later).name == "job8_1", "unless a new run is asked for"
    job = {"SLURM_JOB_ID": "12"}
    plain = choose("--resume", **job)
    assert plain.name == "job12", "no task's run is taken by a job without tasks"
    assert choose("--resume", "--lr", "0.5", **job).name == "job12-2", "two runs of one job"
    finish(plain)
    assert choose("--resume", **job) == plain


def test_where_a_change_is_asked_for_a_finished_run_goes_on(choose: Choose, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no run of these settings to continue"):
        choose("--resume", "--resume_best", "--lr", "1e-4")
    first = choose()
    finish(first)
    for words in (
        ["--resume_best", "--lr", "1e-4"],
        ["--resume_new_lr", "--lr", "3"],
        ["--reset_scheduler"],
    ):
        assert choose("--resume", *words, "--epochs", "9") == first
    with pytest.raises(InputError, match=r"\(the newest, 20260101-\d+, has another seed\)"):
        choose("--resume", "--resume_best", "--seed", "8")


def test_what_is_no_record_is_left_aside(choose: Choose, tmp_path: Path) -> None:
    for name, text in (
        ("a", "{"),
        ("b", "[]"),
        ("c", '{"created": 1}'),
        ("d", '{"created": "", "created": ""}'),
    ):
        (tmp_path / "demo" / name).mkdir(parents=True)
        (tmp_path / "demo" / name / "run.json").write_text(text)
    (tmp_path / "demo" / "file").touch()
    first = choose("--resume")
    record = record_of(first)
    assert choose("--resume") == first
    for name in ("asked", "starts", "argv", "command"):
        (first / "run.json").write_text(json.dumps({**record, name: 1}))
        assert choose("--resume") != first, name
        shutil.rmtree(choose("--resume"))


def test_folders_are_whole_from_the_beginning(choose: Choose, tmp_path: Path) -> None:
    """A process that is killed while it makes one leaves no folder that a run
    could take for its own.
    """
    choose()
    assert [path for path in (tmp_path / "demo").iterdir() if path.name.startswith(".")] == []
    taken = {choose().name for _ in range(3)}
    assert len(taken) == 3


def test_flags_that_contradict_it(choose: Choose) -> None:
    for flag in (["--overwrite"], ["--output_model", "x.pt"]):
        with pytest.raises(InputError, match=f"{flag[0]} and --run_dir contradict each other"):
            choose(*flag)


# the command


def test_a_start_that_fails_leaves_no_folder(words: list[str], tmp_path: Path) -> None:
    asked = [*words, "--run_dir", str(tmp_path / "demo"), "--energy_key", "nowhere"]
    assert train_mace.main(asked) == 2
    assert list((tmp_path / "demo").iterdir()) == []
    assert (
        train_mace.main([*words, "--epochs", "1", "--run_dir", str(tmp_path / "demo"), "--dry_run"])
        == 0
    )
    assert list((tmp_path / "demo").iterdir()) == []


def test_from_the_best_model_with_another_rate(
    finished: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As seed's template writes it; the same command again, as of a requeued
    job, changes nothing more.
    """
    [folder] = runs_in(finished)
    assert resume.main(["--input_model", str(finished / "latest"), "--epochs", "2"]) == 0, (
        "nothing is left to do"
    )
    assert os.readlink(finished / "latest") == folder.name
    shown = capsys.readouterr().out
    assert f"continue {folder}" in shown
    assert "latest" not in shown, "which leads to another run later"
    asked = [
        *words,
        "--run_dir",
        str(finished),
        "--resume",
        "--resume_best",
        "--lr",
        "1e-4",
        "--epochs",
        "3",
    ]
    assert train_mace.main([*asked, "--max_steps", "5"]) == 0
    shown = capsys.readouterr().out
    assert f"run {folder} goes on" in shown
    assert "moments start anew" in shown
    assert "the rate is now 0.0001" in shown
    assert train_mace.main([*asked, "--max_steps", "5"]) == 0
    assert runs_in(finished) == [folder]
    state = checkpoint.read(folder / f"{folder.name}_checkpoint.pt").content["train_state"]
    assert state["config"]["lr"] == 1e-4
    changes = [entry["changes"] for entry in state["history"]]
    assert changes[:2] == [{}, {"lr": 1e-4, "resume_best": True}]
    assert state["scheduler"]["base_rates"] == [1e-4]
    assert [start["step"] for start in record_of(folder)["starts"]] == [0, 4, 4, 5]


def test_a_job_of_a_chain_after_the_last_one_has_nothing_to_do(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run that was continued with another rate goes on with it; both are what
    the command itself does.
    """
    asked = [*words, "--max_steps", "1", "--run_dir", str(tmp_path / "demo"), "--resume"]
    assert train_mace.main(asked) == 0
    [folder] = runs_in(tmp_path / "demo")
    assert train_mace.main(asked) == 0
    assert (
        f"run {folder} of these settings is finished; leave --resume out" in capsys.readouterr().out
    )
    changed = [
        *words,
        "--run_dir",
        str(tmp_path / "demo"),
        "--resume",
        "--lr",
        "1e-3",
        "--max_steps",
        "2",
    ]
    assert train_mace.main([*changed, "--resume_new_lr"]) == 0
    run_record.changed(folder, {"finished": None})
    assert train_mace.main(changed) == 0
    assert f"run {folder} goes on" in capsys.readouterr().out
    assert train_mace.main(asked) == 2
    assert (
        "was continued with --lr 0.001 --max_steps 2; give that to go on" in capsys.readouterr().err
    )
    assert runs_in(tmp_path / "demo") == [folder]


def test_a_run_that_another_process_computes(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [*words, "--max_steps", "1", "--run_dir", str(tmp_path / "demo")]
    assert train_mace.main(asked) == 0
    monkeypatch.setattr(run_lock, "WAIT", 0.0)
    with run_lock.run_held(outputs_of(runs_in(tmp_path / "demo")[0]), wait=False):
        assert train_mace.main([*asked, "--resume"]) == 2
    said = capsys.readouterr().err
    assert "wait for its end, or leave --resume out for a run with a folder of its own" in said
    assert "--output" not in said


def test_changes_are_for_runs_that_go_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [*words, "--epochs", "1", "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main([*place, "--resume_best"]) == 2
    assert "say how a run goes on; add --resume" in capsys.readouterr().err
    assert train_mace.main([*place, "--resume", "--reset_scheduler"]) == 2
    assert "run_checkpoint.pt to go on with" in capsys.readouterr().err


def test_at_a_place_of_its_own(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [*words, "--epochs", "2", "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main([*place, "--max_steps", "2"]) == 0
    assert train_mace.main([*place, "--resume", "--lr", "1e-5"]) == 2
    assert "here --resume_new_lr takes the rate of --lr" in capsys.readouterr().err
    assert train_mace.main([*place, "--resume", "--lr", "1e-5", "--resume_new_lr"]) == 0
    assert "--lr 1e-05: the rate is now 1e-05" in capsys.readouterr().out
    assert resume.main(["--input_model", str(tmp_path / "run"), "--epochs", "3"]) == 0, (
        "no change is made once more"
    )
    assert "the rate is now" not in capsys.readouterr().out


# safetensors


def test_only_its_run_replaces_a_safetensors_file(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best.safetensors"
    asked = [*words, "--output_safetensors", str(file)]
    first = [*asked, "--output_checkpoint", str(tmp_path / "first")]
    assert train_mace.main([*first, "--max_steps", "1"]) == 0
    before = file.read_bytes()
    for more in ([], ["--resume"]):
        assert (
            train_mace.main([*asked, "--output_checkpoint", str(tmp_path / "second"), *more]) == 2
        )
        assert f"{file} is there and not of this run; give another name" in capsys.readouterr().err
    assert train_mace.main([*first, "--max_steps", "4", "--resume"]) == 0
    assert file.read_bytes() != before
    assert (
        resume.main(
            [
                "--input_model",
                str(tmp_path / "first"),
                "--output_checkpoint",
                str(tmp_path / "third"),
            ]
        )
        == 2
    )
    assert "not of this run" in capsys.readouterr().err
    options = reading.parse(TrainOptions, first)
    assert options is not None
    with pytest.raises(
        InputError, match="was written by another process meanwhile and stays as it is"
    ):
        ExportedWeights(path=file, before=None).write(
            options.common, tmp_path / "first" / "first_model.pt"
        )


def test_runs_of_an_experiment_have_safetensors_of_their_own(
    words: list[str], tmp_path: Path
) -> None:
    asked = [
        *words,
        "--run_dir",
        str(tmp_path),
        "--output_safetensors",
        str(tmp_path / "best.safetensors"),
    ]
    options = reading.parse(TrainOptions, asked)
    assert options is not None
    placed = run_folders.with_folder(options, tmp_path / "a")
    assert placed.running.output_safetensors == tmp_path / "a" / "best.safetensors"


def test_a_copy_of_a_run_leaves_the_original_alone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files outside of the folder that was copied are those of the run that is still there."""
    first, copy, out = tmp_path / "first", tmp_path / "copy", tmp_path / "out"
    out.mkdir()
    place = ["--output_checkpoint", str(first), "--output_model", str(out / "best_model.pt")]
    exported = ["--output_safetensors", str(out / "best.safetensors")]
    assert train_mace.main([*words, *place, *exported, "--epochs", "1"]) == 0
    shutil.copytree(first, copy)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    going_on = ["--input_model", str(copy), "--epochs", "2"]
    assert resume.main(going_on) == 2
    said = capsys.readouterr().err
    assert f"was written at {first / 'first_checkpoint.pt'}, where a run lies now, too" in said
    assert resume.main([*going_on, "--output_model", str(copy / "own_model.pt")]) == 0
    assert "best.safetensors is not written: it may be of the run at" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert resume.main(["--input_model", str(first), "--epochs", "2", "--resume_best"]) == 0
    assert "epoch 1, raw" in capsys.readouterr().out


def test_a_copy_of_a_moved_run_leaves_the_other_copys_model_alone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, moved, copy = (tmp_path / name for name in ("first", "moved", "copy"))
    best = tmp_path / "out_model.pt"
    place = ["--output_checkpoint", str(first), "--output_model", str(best)]
    assert train_mace.main([*words, *place, "--epochs", "1"]) == 0
    first.rename(moved)
    shutil.copytree(moved, copy)
    again = ["--epochs", "3", "--resume_best"]
    assert resume.main(["--input_model", str(moved), *again]) == 0
    before = best.read_bytes()
    step = checkpoint.read(best).content["step"]
    capsys.readouterr()
    assert resume.main(["--input_model", str(copy), "--epochs", "2"]) == 2
    assert f"{best} has weights of step {step}" in capsys.readouterr().err
    assert best.read_bytes() == before


def test_a_moved_run_goes_on_though_its_old_place_is_none(words: list[str], tmp_path: Path) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    assert train_mace.main([*words, "--output_checkpoint", str(first), "--epochs", "1"]) == 0
    first.rename(moved)
    first.write_text("a file now")
    assert resume.main(["--input_model", str(moved), "--epochs", "2"]) == 0


def test_safetensors_go_along_with_the_folder_of_their_run(
    words: list[str], tmp_path: Path
) -> None:
    first, moved, again = tmp_path / "first", tmp_path / "moved", tmp_path / "again"
    exported = ["--output_safetensors", str(first / "best.safetensors")]
    place = ["--output_checkpoint", str(first)]
    assert train_mace.main([*words, *place, *exported, "--epochs", "1"]) == 0
    first.rename(moved)
    before = (moved / "best.safetensors").read_bytes()
    assert resume.main(["--input_model", str(moved), "--epochs", "3"]) == 0
    assert (moved / "best.safetensors").read_bytes() != before
    moved.rename(again)
    assert resume.main(["--input_model", str(again), "--epochs", "4"]) == 0
    assert not first.exists()
    assert not moved.exists()


# reproduce and diff


def printed_command(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    return shlex.split(lines[0])[1:]


def test_a_run_is_repeated_bit_for_bit(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run with a record, and (in the battery) of one without, though the model.json of
    its beginning is gone.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(TINY))
    asked = [
        *words,
        "--input_json",
        "mine.json",
        "--ema",
        "--epochs",
        "1",
        "--lr",
        "0.02",
        "--freeze",
        "node_embedding.*",
    ]
    assert train_mace.main([*asked, "--run_dir", "demo"]) == 0
    assert not LONG or train_mace.main([*asked, "--output_checkpoint", "plain"]) == 0
    (tmp_path / "mine.json").unlink()
    for number, run in enumerate(("demo/latest", "plain") if LONG else ("demo/latest",)):
        capsys.readouterr()
        assert read_model.main(["reproduce", run, "--output_checkpoint", f"again{number}"]) == 0
        script, *flags = printed_command(capsys)
        assert script == "model_utils/train_mace.py"
        assert train_mace.main(flags) == 0
        again = outputs_of(tmp_path / f"again{number}")
        assert differences(outputs_of((tmp_path / run).resolve()), again) == [], run


@pytest.mark.parametrize("place", [["--run_dir", "demo"], ["--output_checkpoint", "plain"]])
def test_a_run_that_went_on_otherwise_is_repeated(
    place: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made longer, then by another rate; its schedule has an end, which the length decides."""
    monkeypatch.chdir(tmp_path)
    schedule = ["--scheduler", "cosine", "--min_lr", "1e-4", "--epochs", "1"]
    assert train_mace.main([*words, *schedule, *place]) == 0
    run = Path("demo/latest" if place[0] == "--run_dir" else "plain")
    assert resume.main(["--input_model", str(run), "--epochs", "2"]) == 0
    assert resume.main(["--input_model", str(run), "--lr", "0.002", "--epochs", "3"]) == 0
    capsys.readouterr()
    assert read_model.main(["reproduce", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("python ")]
    assert [Path(command[0]).name for command in commands] == [
        "train_mace.py",
        "resume.py",
        "resume.py",
    ]
    assert train_mace.main(commands[0][1:]) == 0
    for command in commands[1:]:
        assert resume.main(command[1:]) == 0
    again = outputs_of(tmp_path / "repeated")
    assert differences(outputs_of((tmp_path / run).resolve()), again) == []


def test_a_run_whose_first_settings_are_not_kept_is_not_repeated_as_another(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As earlier versions wrote it: one was made longer, then got another rate."""
    place = tmp_path / "plain"
    assert train_mace.main([*words, "--epochs", "1", "--output_checkpoint", str(place)]) == 0
    assert resume.main(["--input_model", str(place), "--epochs", "2"]) == 0
    forget_settings_of_before(place)
    capsys.readouterr()
    assert read_model.main(["reproduce", str(place)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    assert "config.resolved.yaml" in line, "of two epochs, as the run has"
    assert resume.main(["--input_model", str(place), "--lr", "0.002", "--epochs", "3"]) == 0
    capsys.readouterr()
    assert read_model.main(["reproduce", str(place)]) == 0
    first, second = [
        shlex.split(line)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("python")
    ]
    assert first[first.index("--epochs") + 1] == "2"
    assert first[first.index("--lr") + 1] == "0.01"
    assert second[second.index("--epochs") + 1] == "3"
    forget_settings_of_before(place)
    assert read_model.main(["reproduce", str(place)]) == 2
    assert "those of before are not kept" in capsys.readouterr().err


def forget_settings_of_before(place: Path) -> None:
    path = outputs_of(place).checkpoint
    content = dict(checkpoint.read(path).content)
    for entry in content["train_state"]["history"]:
        entry.pop("before", None)
    for name in ("format_version", "kind"):
        del content[name]
    checkpoint.write_checkpoint(path, content)


def test_the_first_command_ends_where_the_run_went_on_otherwise(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "plain"
    begin = [*words, "--max_steps", "1", "--output_checkpoint", str(place)]
    assert train_mace.main(begin) == 0
    assert resume.main(["--input_model", str(place), "--lr", "0.002", "--max_steps", "2"]) == 0
    capsys.readouterr()
    assert read_model.main(["reproduce", str(place)]) == 0
    flags = printed_command(capsys)
    assert [flags[k + 1] for k, flag in enumerate(flags) if flag == "--max_steps"] == ["1"]


def test_a_run_of_a_yaml_with_sources_and_a_place_is_repeated(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own resolved settings have the sources, and neither the place nor what
    a continuation changed.
    """
    monkeypatch.chdir(tmp_path)
    given = dict(zip(words[::2], words[1::2], strict=False))
    settings = {
        "model": {
            "target": "MACE",
            **{name: value for name, value in TINY.items() if name != "model_class"},
        },
        "sources": [{"path": given["--xyz_train"]}],
        "valid_file": given["--xyz_val"],
        "exp_name": "demo",
        "batch_size": 4,
        "max_steps": 1,
        "time_limit": 60,
        "save_path": "best.safetensors",
        "export_mace_model": False,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert train_mace.main(["run.yaml"]) == 0
    assert (
        resume.main(["--input_model", "runs/demo/latest", "--lr", "1e-4", "--max_steps", "2"]) == 0
    )
    capsys.readouterr()
    assert read_model.main(["reproduce", "runs/demo/latest"]) == 0
    _, *flags = printed_command(capsys)
    assert "--time_limit" not in flags
    options = reading.parse(TrainOptions, flags)
    assert options is not None
    plain = reading.as_plain(options)
    run = (tmp_path / "runs/demo/latest").resolve()
    assert [Path(source["path"]) for source in plain["sources"]] == [Path(given["--xyz_train"])]
    assert (plain["lr"], plain["max_steps"], plain["run_dir"], plain["network"]) == (
        0.01,
        1,
        None,
        None,
    )
    assert Path(plain["input_json"]) == run / f"{run.name}_model.json"
    assert Path(plain["output_safetensors"]).parent.name == "repeated"
    assert train_mace.main([*flags, "--dry_run"]) == 0


def test_a_logger_without_its_package_is_refused_before_data_are_measured(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model_utils.run.loggers.find_spec", lambda name: None)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"target": "MACE"}}))
    asked = [str(tmp_path / "run.yaml"), *words[2:], "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main([*asked, "--loggers", "wandb"]) == 2
    shown = capsys.readouterr()
    assert "the logger wandb needs the package wandb" in shown.err
    assert "E0s" not in shown.out
    assert not (tmp_path / "run").exists()


@in_the_battery
def test_a_fine_tuning_is_repeated(
    finished: Path,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    [folder] = runs_in(finished)
    asked = [
        "--input_model",
        str(folder / f"{folder.name}_model.pt"),
        *words[2:],
        "--epochs",
        "1",
        "--E0s",
        "shift",
    ]
    assert finetune.main([*asked, "--run_dir", "tuned"]) == 0
    capsys.readouterr()
    assert read_model.main(["reproduce", "tuned/latest"]) == 0
    script, *flags = printed_command(capsys)
    assert script == "model_utils/finetune.py"
    assert finetune.main(flags) == 0
    assert (
        differences(
            outputs_of((tmp_path / "tuned/latest").resolve()), outputs_of(tmp_path / "repeated")
        )
        == []
    )


def test_what_tells_two_runs_apart(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.xyz"
    write(other, waters(8, seed=3), format="extxyz")
    flags: dict[str, list[str]] = {"a": [], "c": ["--lr", "0.02", "--xyz_train", str(other)]}
    for name, more in flags.items():
        assert (
            train_mace.main(
                [*words, "--max_steps", "1", "--output_checkpoint", str(tmp_path / name), *more]
            )
            == 0
        )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    capsys.readouterr()
    assert read_model.main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "equal: settings, data, versions and model.json" in capsys.readouterr().out
    assert read_model.main(["diff", str(tmp_path / "a"), str(tmp_path / "c")]) == 3
    shown = capsys.readouterr().out
    assert "setting: lr: 0.01 against 0.02" in shown
    assert "data: train sha256:" in shown
    assert "version" not in shown
    assert read_model.main(["diff", str(tmp_path / "a")]) == 2


# secrets


SECRETS = {
    "a flag": (["--api_key", "abc", "--lr", "1"], ["--api_key", "…", "--lr", "1"]),
    "with =": (["--wandb_token=abc"], ["--wandb_token=…"]),
    "a command": (["--sync", "put -k abc", "--lr", "1"], ["--sync", "…", "--lr", "1"]),
    "a command with =": (["--sync=put -k abc"], ["--sync=…"]),
    "in a text": (["--note", "put --password abc --to x"], ["--note", "put --password … --to x"]),
    "in a setting of a text": (["--note", "TOKEN=abc put"], ["--note", "TOKEN=… put"]),
    "in an address": (["--note", "put s3://me:abc@host/x"], ["--note", "put s3://…@host/x"]),
    "names of labels": (["--energy_key", "REF_energy"], ["--energy_key", "REF_energy"]),
}


@pytest.mark.parametrize("case", SECRETS)
def test_secrets_are_not_kept(case: str) -> None:
    words, shown = SECRETS[case]
    assert invoked.without_secrets(words) == shown
    assert "abc" not in json.dumps(
        run_record.kept({words[0].lstrip("-").partition("=")[0]: words[1:]})
    )


def test_a_command_among_the_settings_is_not_kept() -> None:
    assert run_record.kept({"sync": "rsync here there", "lr": 0.1}) == {"lr": 0.1}


def test_a_job_whose_name_is_a_path_makes_none() -> None:
    record = {"job": "../../x y", "task": None, "created": "2026-01-01T00:00:00+00:00"}
    assert run_folders._id(record) == "jobx-y"
