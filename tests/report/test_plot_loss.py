"""plot_loss.py: seed 003's commands as they stand there, on records of runs."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_utils import plot_loss
from model_utils.errors import InputError
from model_utils.report import curves, records

STEPS = 5  # of an epoch


def run_in(
    folder: Path, epochs: int = 30, *, stage_two_after: int | None = None, level: float = 1.0
) -> Path:
    """A run of so many epochs with a validation every second one."""
    folder.mkdir(parents=True)
    lines = []
    rng = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        loss = (
            level
            * np.exp(-epoch / 10)
            * (100 if stage_two_after and epoch > stage_two_after else 1)
        )
        plain = {"epoch": epoch, "step": STEPS * epoch, "lr": 0.01, "stress_rmse": None}
        lines.append(
            {
                "kind": "train",
                **plain,
                "loss": loss * np.exp(rng.normal(0, 0.3)),
                "forces_rmse": loss,
            }
        )
        if epoch % 2 == 0:
            lines.append(
                {
                    "kind": "valid",
                    **plain,
                    "loss": 1.1 * loss,
                    "best": epoch != epochs,
                    "forces_rmse": loss,
                }
            )
    lines.append({"kind": "final", "valid": {"loss": 1.0}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if stage_two_after is not None:
        settings = f"epochs: {epochs}\nstage_two: true\nstart_stage_two: {stage_two_after}\n"
        (folder / "config.resolved.yaml").write_text(settings)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_seeds_commands_work_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo/1", "exp_a/1", "exp_b/2"):
        run_in(tmp_path / "runs" / name)
    place = "runs/demo/1/artifacts"
    outputs = ["--out_png", f"{place}/loss_curve.png", "--out_csv", f"{place}/loss_long.csv"]
    assert plot_loss.main(["--run_dir", "runs/demo/1", "--smooth", "20", *outputs]) == 0
    assert {path.name for path in Path(place).iterdir()} == {
        "loss_curve.png",
        "loss_curve.svg",
        "loss_long.csv",
    }
    assert Path(place, "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in Path(place, "loss_curve.svg").read_bytes()
    several = [
        "--run_dir",
        "runs/exp_a/1",
        "runs/exp_b/2",
        "--smooth",
        "20",
        "--title",
        "Loss Compare",
    ]
    assert plot_loss.main(several) == 0
    assert {row["run"] for row in table(Path("loss_long.csv"))} == {"1", "2"}
    assert Path("loss_curve.png").exists()


def test_the_table_has_every_record_as_it_is(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", stage_two_after=20)
    assert (
        plot_loss.main(["--run_dir", str(run), "--metric", "loss", "forces_rmse", "--smooth", "3"])
        == 0
    )
    rows = table(run / "artifacts" / "loss_long.csv")
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][:-1]
    for metric in ("loss", "forces_rmse"):
        expected = {(r["kind"], r["epoch"], r["step"], r[metric]) for r in kept}
        own = [row for row in rows if row["metric"] == metric]
        assert {
            (r["kind"], int(r["epoch"]), int(r["step"]), float(r["value"])) for r in own
        } == expected
        assert len(own) == len(expected)
    assert {row["stage"] for row in rows if int(row["epoch"]) <= 20} == {"1"}
    assert {row["stage"] for row in rows if int(row["epoch"]) > 20} == {"2"}
    best = [int(row["epoch"]) for row in rows if row["best"] == "1" and row["metric"] == "loss"]
    assert best[-1] == 28


def curve(value: list[float], stage: list[int] | None = None) -> records.Curve:
    n = len(value)
    return records.Curve(
        kind="train",
        epoch=np.arange(n),
        step=np.arange(n),
        value=np.array(value),
        best=np.zeros(n, dtype=bool),
        stage=np.array(stage or [1] * n),
    )


def test_means_are_centred_and_stay_within_a_stage() -> None:
    stage = [1] * 15 + [2] * 15
    value = [float(k) for k in range(15)] + [1000.0] * 15
    means = curves.smoothed(curve(value, stage), 3)
    assert means == pytest.approx(value), (
        "a straight line is its own centred mean, and stages do not mix"
    )
    bent = [0.0] * 7 + [3.0] + [0.0] * 7
    assert curves.smoothed(curve(bent), 3)[6:9] == pytest.approx([1.0, 1.0, 1.0])
    assert curves.window(20, 12) == 2, "twenty records of twelve would be one flat line"


def test_training_by_steps_is_taken_where_it_is(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", 4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train_steps", "epoch": 4, "step": 18, "lr": 0.1, "loss": 2.0}\n')
    assert plot_loss.main(["--run_dir", str(run), "--by", "step"]) == 0
    assert {row["kind"] for row in table(run / "artifacts" / "loss_long.csv")} == {
        "train_steps",
        "valid",
    }


def test_a_run_that_is_writing_is_drawn_without_its_last_half_line(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", 4)
    whole = len(records.read(run / "metrics.jsonl"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "epo')
    assert len(records.read(run / "metrics.jsonl")) == whole
    assert plot_loss.main(["--run_dir", str(run)]) == 0


def test_names_are_drawn_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``$`` begins mathematics in matplotlib, and text of a folder may be anything."""
    monkeypatch.chdir(tmp_path)
    runs = [str(run_in(tmp_path / name, 4)) for name in (r"a$\frac$", "=cmd", "<b>&")]
    assert plot_loss.main(["--run_dir", *runs, "--title", r"$\nothing{$ <i>"]) == 0
    assert {row["run"] for row in table(Path("loss_long.csv"))} == {r"a$\frac$", "'=cmd", "<b>&"}


def test_a_folder_of_runs_stands_for_them_and_each_is_drawn_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_in(tmp_path / "runs" / name, 4)
    (tmp_path / "runs" / "latest").symlink_to("two")
    png = tmp_path / "both.png"
    assert plot_loss.main(["--run_dir", str(tmp_path / "runs"), "--out_png", str(png)]) == 0
    assert {row["run"] for row in table(tmp_path / "both.csv")} == {"one", "two"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run_dir", "nothing"], "does not exist"),
        (["--run_dir", "empty"], "holds no metrics.jsonl"),
        (["--run_dir", "run", "--metric", "forces_rsme"], "--metric forces_rsme is in no record"),
        (["--run_dir", "run", "--metric", "stress_rmse"], "is in no record"),
        (["--run_dir", "run", "--out_png", "run/model.pt"], "does not end in .png"),
        (["--run_dir", "run/train.log"], "line 1: not a record of a run"),
        (["--run_dir", "fresh"], "no record of an epoch"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_drawn_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_in(tmp_path / "run", 4)
    (tmp_path / "run" / "train.log").write_text("12:00:00 hello\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "metrics.jsonl").touch()
    assert plot_loss.main(flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "loss_long.csv").exists()


@pytest.mark.parametrize("line", ["[1]", "1e999", '{"kind": "train", "loss": 1', "[" * 100_000])
def test_a_line_that_is_no_record_is_said(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1: not a record"):
        records.read(path)


@pytest.mark.parametrize("value", ['"1"', "true", "null", "[1]", "1" + "0" * 400])
def test_what_is_no_number_is_no_point(tmp_path: Path, value: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "train", "epoch": 1, "step": 1, "loss": {value}}}\n')
    of_run: list[Any] = records.read(path)
    assert records.metrics_in(of_run) == []
    assert len(records.curve(of_run, "train", "loss", None).step) == 0
