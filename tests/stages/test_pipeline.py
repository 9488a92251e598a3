"""pipeline.py run: what is missing is done, what fails is recorded, a kill changes nothing."""

import errno
import json
import signal
from pathlib import Path

import pytest
import yaml

from conftest import every
from model_utils.files import content
from stages.conftest import Play, made

# of the five stages in their order
COMMANDS = ["finetune", "evaluate", "generate", "judge", "judge"]
STAGES = ["finetune", "compare", "generate", "relax", "judge"]


def test_the_summary_has_the_keys_and_the_tree_of_the_contract(play: Play) -> None:
    assert play.run("--max_epochs", 2, "--num_gen", 3) == 0
    summary = play.summary()
    assert summary["checkpoint"] == "finetune_outputs/finetuned_checkpoint.pt"
    assert set(summary["metrics"]) >= {"baseline", "finetuned", "delta"}
    assert summary["generation_dir"] == "generation/results"
    assert {"count", "metrics", "relaxed"} <= set(summary["generation_eval"])
    assert summary["generation_eval"]["count"] == 3
    assert (play.run_dir / summary["checkpoint"]).read_text() == "model.pt after 2 epochs"
    assert play.states() == dict.fromkeys(STAGES, "done")
    assert summary["versions"]["python"]
    assert summary["model"]["is"] == "fine-tuned"
    assert "Each candidate" in (play.run_dir / "report.html").read_text()


def test_repeated_it_does_nothing_and_says_the_same(play: Play) -> None:
    assert play.run() == 0
    assert play.starts() == COMMANDS
    before = (play.run_dir / "summary.json").read_bytes()
    assert play.run() == 0
    assert play.starts() == []
    assert (play.run_dir / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "begun"),
    [
        ("epochs: 3", "epochs: 4", COMMANDS[:2] + COMMANDS[3:]),
        ("seed: 1", "seed: 2", COMMANDS[2:]),
        ("references: [references.xyz]", "stability_threshold: 0.05", ["judge"]),
        ("references: [references.xyz]", "fmax: 0.01", ["judge", "judge"]),
        ("xyz_test: [test.xyz]", "xyz_test: [train.xyz]", COMMANDS[:2]),
    ],
)
def test_a_changed_setting_does_its_stage_again_and_what_follows(
    play: Play, old: str, new: str, begun: list[str]
) -> None:
    assert play.run() == 0
    play.starts()
    config = play.folder / "p.yaml"
    config.write_text(config.read_text().replace(old, new))
    assert play.run() == 0
    assert play.starts() == begun


def test_what_decides_is_the_content_of_files_and_not_their_place(play: Play) -> None:
    assert play.run() == 0
    play.starts()
    (play.folder / "train.xyz").rename(play.folder / "moved.xyz")
    config = play.folder / "p.yaml"
    config.write_text(config.read_text().replace("train.xyz", "moved.xyz"))
    assert play.run() == 0
    assert play.starts() == []
    (play.folder / "references.xyz").write_text("other references")
    assert play.run() == 0
    assert play.starts() == ["judge"]


def test_a_changed_script_of_another_program_does_the_generation_again(play: Play) -> None:
    script = play.folder / "diffuse.py"
    script.write_text("# first")
    config = play.folder / "p.yaml"
    command = f"python '{script}' --out {{output_dir}}"
    external = f'generator: external\n  external_command: "{command}"'
    config.write_text(config.read_text().replace("composition: [C]", external))
    assert play.run() == 0
    play.starts()
    assert play.run() == 0
    assert play.starts() == []
    script.write_text("# second")
    assert play.run() == 0
    assert play.starts()[0] == "generate"


def test_a_failed_stage_is_recorded_and_the_rest_is_there(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play.tell("generate", "fails", "2 no crystal <b>of C</b> could be made")
    assert play.run() == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "generate, relax, judge; first generate: no crystal <b>of C</b> could be made" in said[0]
    summary = play.summary()
    assert summary["generation_dir"] == {"error": "no crystal <b>of C</b> could be made"}
    assert "generation of candidates did not succeed" in summary["generation_eval"]["error"]
    assert set(summary["metrics"]) >= {"baseline", "finetuned", "delta"}
    assert "no crystal &lt;b&gt;of C&lt;/b&gt;" in (play.run_dir / "report.html").read_text()
    play.starts()
    play.untell("generate", "fails")
    assert play.run() == 0
    assert play.starts() == COMMANDS[2:]
    assert play.states() == dict.fromkeys(STAGES, "done")


def test_without_a_fine_tuned_model_the_baseline_takes_its_place_and_that_is_said(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play.tell("finetune", "fails", "4 the loss is no number")
    assert play.run() == 4
    assert "the baseline takes its place" in capsys.readouterr().out
    summary = play.summary()
    assert summary["checkpoint"] == {"error": "the loss is no number"}
    assert "fine-tuning did not succeed" in summary["metrics"]["error"]
    assert summary["model"]["is"] == "baseline"
    assert summary["generation_eval"]["model"] == {"is": "model.pt"}
    play.untell("finetune", "fails")
    play.starts()
    assert play.run() == 0
    # the candidates are the same
    assert play.starts() == ["finetune", "evaluate", "judge", "judge"]
    assert play.summary()["generation_eval"]["model"] == {"is": "model.pt after 3 epochs"}


@pytest.mark.parametrize(
    ("given", "head"),
    [
        ({"head": "new", "compare_head": "old"}, "old"),
        ({"head": "new"}, None),
        ({"compare_head": "old"}, "old"),
    ],
)
def test_a_baseline_that_takes_the_place_has_the_head_of_the_baseline(
    play: Play, given: dict[str, str], head: str | None
) -> None:
    config = play.folder / "p.yaml"
    config.write_text(
        config.read_text() + "".join(f"  {name}: {value}\n" for name, value in given.items())
    )
    play.tell("finetune", "fails", "4 the loss is no number")
    assert play.run() == 4
    assert play.states()["judge"] == "done"
    for stage in ("relax", "judge"):
        settings = yaml.safe_load((play.run_dir / "stages" / f"{stage}.yaml").read_text())
        assert (settings.get("head"), settings.get("compare_head")) == (head, None)
    play.untell("finetune", "fails")
    assert play.run() == 0
    settings = yaml.safe_load((play.run_dir / "stages" / "judge.yaml").read_text())
    assert {name: settings[name] for name in given} == given


def test_a_file_that_cannot_be_read_fails_its_stage_alone(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = content.file_hash

    def denied(path: Path) -> str:
        if path.name == "references.xyz":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return hashed(path)

    monkeypatch.setattr(content, "file_hash", denied)
    assert play.run() == 2
    assert play.states() == {**dict.fromkeys(STAGES, "done"), "judge": "failed"}
    assert "references.xyz: Permission denied" in play.summary()["generation_eval"]["error"]


def test_a_command_that_leaves_nothing_failed(play: Play) -> None:
    (play.commands / "generate.py").write_text("")
    assert play.run() == 1
    assert "left no" in play.summary()["generation_dir"]["error"]


def test_a_command_that_is_killed_failed_and_the_others_go_on(play: Play) -> None:
    (play.commands / "evaluate.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert play.run() == 1
    assert "SIGKILL" in play.summary()["metrics"]["error"]
    assert play.states()["judge"] == "done"


def test_candidates_that_are_not_to_be_relaxed_leave_that_stage_out(play: Play) -> None:
    config = play.folder / "p.yaml"
    config.write_text(config.read_text() + "  relax: false\n")
    assert play.run() == 0
    assert play.starts() == COMMANDS[:-1]
    assert play.states()["relax"] == "left out"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    play = made(tmp_path_factory.mktemp("unbroken") / "work")
    process = play.process()
    process.communicate()
    assert process.returncode == 0
    return play.results()


@pytest.mark.parametrize("command", every(2, ["finetune", "evaluate", "generate", "judge"]))
def test_killed_in_any_stage_and_repeated_it_gives_the_same(
    play: Play, unbroken: dict[str, object], command: str
) -> None:
    """The command that ran goes with its pipeline, and is begun again."""
    process = play.kill_in(command)
    assert process.returncode == -signal.SIGKILL
    begun = play.starts()
    assert play.run() == 0
    assert play.starts() == COMMANDS[len(begun) - 1 :]
    assert play.results() == unbroken


def test_a_stage_that_outlives_its_pipeline_is_waited_for(play: Play) -> None:
    """One that does not end at once where its pipeline was killed must not
    write beside the next one.
    """
    script = play.commands / "generate.py"
    text = script.read_text()
    script.write_text(text.replace("sys.exit(75)", "None"))  # it takes its time
    play.tell("generate", "stops")
    play.tell("generate", "waits")
    process = play.process()
    play.until_running("generate")
    process.kill()
    process.wait()  # its pipes stay open as long as the stage lives
    again = play.process()
    assert again.stdout is not None
    assert any("waiting for the end of a stage" in line for line in again.stdout)
    assert play.starts() == ["finetune", "evaluate", "generate"]
    play.untell("generate", "waits")
    again.communicate()
    assert again.returncode == 0
    assert play.starts() == ["generate", "judge", "judge"]


@pytest.mark.parametrize("number", every(2, [signal.SIGTERM, signal.SIGINT]))
def test_asked_to_stop_it_stops_the_stage_and_goes_on_when_repeated(
    play: Play, unbroken: dict[str, object], number: signal.Signals
) -> None:
    play.tell("generate", "stops")
    process = play.kill_in("generate", number)
    assert process.returncode == 75
    record = json.loads((play.run_dir / "stages" / "generate.json").read_text())
    assert record["state"] == "stopped"
    play.untell("generate", "stops")
    play.starts()
    assert play.run() == 0
    assert play.starts() == COMMANDS[2:]
    assert play.results() == unbroken


def test_a_stage_that_stops_by_its_own_clock_stops_the_pipeline(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play.tell("finetune", "fails", "75 time limit: saved")
    assert play.run() == 75
    assert "stopped: finetune: time limit: saved; repeat the command" in capsys.readouterr().err
    assert play.starts() == ["finetune"]


def test_one_pipeline_in_a_folder_at_a_time(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play.tell("finetune", "waits")
    process = play.process()
    play.until_running("finetune")
    assert play.run() == 2
    assert "is being written by process" in capsys.readouterr().err
    play.untell("finetune", "waits")
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("damage", ["lost", "torn", "other"])
def test_a_lost_or_damaged_summary_is_made_again_from_the_records(
    play: Play, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    assert play.run() == 0
    path = play.run_dir / "summary.json"
    before = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(before[:100] if damage == "torn" else b"[]")
    play.starts()
    capsys.readouterr()
    assert play.run() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert "is made again from the records of the stages" in lines[0]
    assert play.starts() == []
    assert path.read_bytes() == before


def test_a_damaged_record_or_product_does_that_stage_again(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play.run() == 0
    results = play.results()
    for path in ("stages/compare.json", "evaluation/metrics.json"):
        play.starts()
        (play.run_dir / path).write_text("{")
        assert play.run() == 0
        assert f"{path}" in capsys.readouterr().out
        assert play.starts() == ["evaluate"]
        assert play.results() == results


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("finetune: {epocs: 3}", "did you mean epochs?"),
        ("finetun: {epochs: 3}", "did you mean finetune?"),
        ("finetune: [1]", "section finetune of"),
        (
            "finetune: {xyz_train: [train.xyz], xyz_test: [test.xyz], output_checkpoint: x}",
            "given by the pipeline",
        ),
        ("finetune: {xyz_train: [train.xyz]}", "name data in the section compare"),
        (
            "finetune: {xyz_train: [train.xyz], xyz_val: [test.xyz], val_ids: v, id_key: sid}",
            "divides its data by lists of identifiers, which the comparison cannot",
        ),
        ("finetune: {epochs: many}", "whole number"),
        ("judge: {references: [a.xyz], refernces: [b.xyz]}", "section"),
    ],
)
def test_a_mistake_in_the_settings_stops_before_anything_begins(
    play: Play, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (play.folder / "p.yaml").write_text(text)
    assert play.run() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert not play.run_dir.exists()


def test_a_folder_of_something_else_is_left_alone(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    play.run_dir.mkdir()
    (play.run_dir / "thesis.tex").write_text("mine")
    assert play.run() == 2
    assert "thesis.tex, which is no pipeline's" in capsys.readouterr().err
    assert [path.name for path in play.run_dir.iterdir()] == ["thesis.tex"]


def test_a_model_that_is_not_there_is_said_at_once(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    (play.folder / "model.pt").unlink()
    assert play.run() == 2
    assert "--input_model" in capsys.readouterr().err
    assert play.starts() == []


def test_the_summary_holds_where_the_folder_is_moved(play: Play) -> None:
    assert play.run() == 0
    assert str(play.run_dir) not in (play.run_dir / "summary.json").read_text()
    moved = play.run_dir.rename(play.folder / "elsewhere")
    play.starts()
    assert play.run("--run_dir", moved) == 0
    assert play.starts() == []


def test_settings_of_a_stage_give_its_options_again(play: Play) -> None:
    """What a stage is called with is a file of settings by itself: a person can
    run the command alone.
    """
    from model_utils.settings import reading
    from model_utils.settings.options import FinetuneOptions

    assert play.run() == 0
    options = reading.parse(
        FinetuneOptions, ["--config", str(play.run_dir / "stages" / "finetune.yaml")]
    )
    assert options is not None
    assert options.run.epochs == 3
    assert options.data.xyz_train == (Path(play.folder / "train.xyz"),)
