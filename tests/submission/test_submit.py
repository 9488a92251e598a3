"""submit.py: what is sent and what is not, secrets in no file, results back; by dpdispatcher
where it is installed.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from stages.conftest import CONFIG

from conftest import ROOT
from model_utils import submit
from model_utils.errors import InputError
from model_utils.settings import reading
from model_utils.settings.options import PipelineOptions
from model_utils.submission import packing, profile, submitting
from model_utils.submission.commands import commands
from model_utils.submission.dispatching import _hidden

with_dpdispatcher = pytest.mark.skipif(
    importlib.util.find_spec("dpdispatcher") is None,
    reason="dpdispatcher is not installed: make test_extras",
)
MACHINE = {"batch_type": "Shell", "context_type": "LocalContext", "remote_root": "remote"}
RESOURCES = {
    "number_node": 1,
    "cpu_per_node": 1,
    "gpu_per_node": 0,
    "queue_name": "",
    "group_size": 1,
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "profile.yaml"
    content = {"machine": MACHINE, "resources": RESOURCES, "python": sys.executable, **changes}
    path.write_text(yaml.safe_dump(content))
    (folder / "remote").mkdir(exist_ok=True)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(CONFIG)
    for name in ("train.xyz", "test.xyz", "references.xyz", "model.pt", "unused.xyz"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_a_job_gets_the_files_that_its_settings_name_and_nothing_else(data: Path) -> None:
    words = [
        "--config",
        str(data / "p.yaml"),
        "--input_model",
        str(data / "model.pt"),
        "--num_gen",
        "3",
    ]
    options = reading.parse(PipelineOptions, words)
    inputs = packing.Inputs()
    settings, result = packing.settings_of(commands()["pipeline"], options, inputs)
    assert result == "pipeline_run"
    assert sorted(path.name for path in inputs.files.values()) == [
        "model.pt",
        "references.xyz",
        "test.xyz",
        "train.xyz",
    ]
    assert str(data) not in packing.settings_text(settings)
    there = data / "there"
    there.mkdir()
    (there / "inputs.tar.gz").write_bytes(packing.archive(inputs.files))
    with tarfile.open(there / "inputs.tar.gz") as tar:
        tar.extractall(there, filter="data")
    (there / "settings.yaml").write_text(packing.settings_text(settings))
    in_job = reading.parse(PipelineOptions, ["--config", str(there / "settings.yaml")])
    assert in_job is not None
    assert in_job.num_gen == 3
    assert in_job.input_model.read_text() == "model.pt"
    section = json.loads(in_job.finetune or "")
    assert (there / section["xyz_train"][0]).read_text() == "train.xyz"
    assert "output_checkpoint" not in section


def test_sources_are_the_projects_own_and_equal_ones_are_equal_bytes() -> None:
    sources = packing.sources()
    assert {"model_utils/pipeline.py", "dataloader/xyz.py", "losses.py"} <= set(sources)
    assert not [
        name
        for name in sources
        if name.startswith(("tests", "configs", ".git")) or "__pycache__" in name
    ]
    few = {name: sources[name] for name in list(sources)[:5]}
    assert packing.archive(few) == packing.archive(few)


def test_folders_and_patterns_are_packed_with_what_lies_in_them(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("a")
    (tmp_path / "b.xyz").write_text("b")
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_text("d")
    (tmp_path / "lmdb" / "lock.mdb").write_text("l")
    inputs = packing.Inputs()
    assert inputs.name_of("data", tmp_path / "*.xyz") == ["inputs/0/a.xyz", "inputs/1/b.xyz"]
    assert inputs.name_of("data", tmp_path / "lmdb") == ["inputs/2/lmdb"]
    assert sorted(inputs.files) == ["inputs/0/a.xyz", "inputs/1/b.xyz", "inputs/2/lmdb/data.mdb"]
    with pytest.raises(InputError, match="which is not there"):
        inputs.name_of("data", tmp_path / "c.xyz")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "other/file"])
def test_an_archive_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "results.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        tar.addfile(member)
    with pytest.raises(InputError, match="expected files below results/"):
        packing.unpack(path, tmp_path / "job", "results")
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot unpack"):
        packing.unpack(path, tmp_path / "job", "results")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"machine": {**MACHINE, "remote_profile": {"password": "s3cret"}}},
            "MACE_SUBMIT_PASSWORD",
        ),
        ({"resources": {**RESOURCES, "envs": {"WANDB_API_KEY": "s3cret"}}}, "is a secret"),
        ({"machine": {**MACHINE, "local_root": "."}}, "leave it out"),
        ({"machin": dict(MACHINE)}, "did you mean machine?"),
        ({"machine": None}, "no section machine"),
        ({"python": "a\nb"}, "one line of words"),
    ],
)
def test_a_profile_that_cannot_be_is_one_line_without_its_secret(
    data: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    words = ["pipeline", "--profile", written(data, **changes), "--config", data / "p.yaml"]
    assert submit.main([str(word) for word in (*words, "--input_model", data / "model.pt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "s3cret" not in lines[0]


def test_credentials_come_from_the_environment_or_a_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("email: a@b\npassword: s3cret\n")
    read = profile.read(written(tmp_path, credentials="mine.yaml"))
    for mode in (0o644, 0o640, 0o604):
        os.chmod(tmp_path / "mine.yaml", mode)
        with pytest.raises(InputError, match="chmod 600"):
            read.machine_with_credentials()
    os.chmod(tmp_path / "mine.yaml", 0o600)
    monkeypatch.setenv("MACE_SUBMIT_EMAIL", "c@d")
    assert read.machine_with_credentials()["remote_profile"] == {
        "email": "c@d",
        "password": "s3cret",
    }
    assert "s3cret" not in json.dumps(read.deciding())
    assert _hidden({"machine": read.machine_with_credentials()}) == {
        "machine": {**read.machine, "remote_profile": {"email": "c@d"}}
    }


def test_a_password_on_the_command_line_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pipeline", "--profile", str(written(data)), "--password", "s3cret"]
    assert submit.main(words) == 2
    assert "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "submit").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_profiles_of_the_project_are_read(path: Path) -> None:
    assert profile.read(path).machine["batch_type"] in ("Shell", "Slurm", "Bohrium")


def failing_job(data: Path, *more: object, **changes: object) -> subprocess.CompletedProcess[str]:
    """Submit a relaxation that ends at once, since its model is none."""
    words = [
        "relax",
        "--profile",
        written(data, **changes),
        "--jobs_dir",
        data / "jobs",
        "--check_every",
        0.5,
    ]
    words += [
        "--input_model",
        data / "model.pt",
        "--data",
        data / "train.xyz",
        "--output_dir",
        "relaxed",
    ]
    command = [sys.executable, str(ROOT / "model_utils" / "submit.py"), *map(str, (*words, *more))]
    environment = {
        **os.environ,
        "MACE_SUBMIT_PASSWORD": "s3cret",
        "HOME": str(data / "home"),
        "RESULT": "relaxed",
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=data)


@pytest.mark.parametrize(
    "name", ["project", "work", "job.json", "results.tar.gz", "settings.yaml", "inputs", ".."]
)
def test_results_never_lie_where_something_of_the_job_lies(data: Path, name: str) -> None:
    words = [
        "--config",
        data / "p.yaml",
        "--input_model",
        data / "model.pt",
        "--run_dir",
        data / "x" / name,
    ]
    options = reading.parse(PipelineOptions, [str(word) for word in words])
    settings, result = packing.settings_of(commands()["pipeline"], options, packing.Inputs())
    assert (settings["run_dir"], result) == ("results", "results")


FAKE_PYTHON = """\
#!/bin/bash
env >> {seen}
mkdir -p "./$RESULT" && echo done > "./$RESULT/file.txt"
exit ${{CODE:-0}}
"""


def work_in(folder: Path, result: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script of a job, whose interpreter notes its environment and leaves a folder."""
    python = folder / "python"
    python.write_text(FAKE_PYTHON.format(seen=folder / "seen.txt"))
    python.chmod(0o755)
    where = profile.read(written(folder, python=str(python)))
    sent = submitting._sent(commands()["pipeline"], where, {}, result, packing.Inputs())
    for name, data in sent.items():
        (folder / name).write_bytes(data)
    before = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        ["bash", "work.sh"],
        cwd=folder,
        env={**before, "RESULT": result, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "result",
    ["plain", "two words ü", "-rf", "--checkpoint-action=exec=touch evil", "$(touch evil)"],
)
def test_a_folder_of_any_name_comes_back(tmp_path: Path, result: str) -> None:
    done = work_in(tmp_path, result)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exit_code").read_text() == "0\n"
    assert packing.unpack(tmp_path / "results.tar.gz", tmp_path / "back", result) == 1
    assert (tmp_path / "back" / result / "file.txt").read_text() == "done\n"
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        ("75", None, True),
        ("143", "99", True),
        ("75", "100", False),
        ("2", None, False),
        ("137", None, False),
    ],
)
def test_a_job_that_was_asked_to_stop_goes_back_into_the_queue(
    tmp_path: Path, code: str, restarts: str | None, requeued: bool
) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/scontrol.txt\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    if restarts is not None:
        slurm["SLURM_RESTART_COUNT"] = restarts
    done = work_in(tmp_path, "results", CODE=code, **slurm)
    asked = tmp_path / "scontrol.txt"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 17\n" if requeued else "")
    assert done.returncode == (0 if code == "2" else int(code))
    assert (tmp_path / "exit_code").exists() == (code == "2")


@with_dpdispatcher
def test_a_job_inherits_no_credentials(data: Path) -> None:
    (data / "home").mkdir()
    python = data / "python"
    python.write_text(FAKE_PYTHON.format(seen=data / "seen.txt"))
    python.chmod(0o755)
    done = failing_job(data, "--wait", python=str(python))
    assert done.returncode == 0, done.stderr
    assert "HOME=" in (data / "seen.txt").read_text()
    assert "s3cret" not in (data / "seen.txt").read_text()


@with_dpdispatcher
def test_a_job_that_fails_says_why_and_no_file_has_the_secret(data: Path) -> None:
    (data / "home").mkdir()
    done = failing_job(data, "--wait")
    assert done.returncode == 3, done.stderr
    assert "relax ended with 3 in its job: inputs/0/model.pt is cut off" in done.stderr
    [job] = (data / "jobs").glob("job_*")
    assert json.loads((job / "job.json").read_text())["state"] == "done"
    again = failing_job(data)
    assert again.returncode == 3
    assert [path.name for path in (data / "jobs").iterdir()] == [job.name]
    assert list((data / "remote").iterdir()) == []
    files = [path for path in data.rglob("*") if path.is_file() and path.suffix != ".gz"]
    assert not [path for path in files if b"s3cret" in path.read_bytes()]
    assert not (data / "dpdispatcher.log").exists(), "the library's log lies with the job"
