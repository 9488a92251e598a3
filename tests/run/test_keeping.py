"""The good models that a run keeps, and the choice among them without training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from loop_in_memory import state_of

import read_model
from conftest import TINY, in_the_battery, waters
from model_utils import evaluate, model_loader, train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint, kept
from model_utils.files.kept import KeptModel, best_of
from model_utils.files.outputs import Outputs
from model_utils.metrics import Metrics
from model_utils.run import fit
from model_utils.run.beginnings import resuming
from model_utils.run.folder import keeping
from model_utils.run.folder.keeping import Keeper, Kept
from model_utils.tasks.choosing import averaged

METRICS = ("loss", "forces_rmse", "energy_mae_per_atom")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its two best models by each of two metrics; tests write beside it alone."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "train.xyz", waters(4), format="extxyz")
    write(folder / "valid.xyz", waters(3, seed=1), format="extxyz")
    assert train_mace.main([*words_of(folder), "--output_checkpoint", str(folder / "run")]) == 0
    return folder / "run"


def words_of(folder: Path) -> list[str]:
    """Four epochs, in which errors go up and down."""
    words = [
        "--input_json",
        folder / "tiny.json",
        "--xyz_train",
        folder / "train.xyz",
        "--batch_size",
        2,
    ]
    words += [
        "--xyz_val",
        folder / "valid.xyz",
        "--epochs",
        4,
        "--lr",
        0.05,
        "--seed",
        4,
        "--dtype",
        "float64",
    ]
    return [
        str(word)
        for word in [
            *words,
            "--keep_best",
            2,
            "--keep_best_by",
            *METRICS[:2],
            "--no_export_mace_model",
        ]
    ]


def validations(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "valid" and line["step"] > 0]


def best_steps(run: Path, metric: str, n: int) -> list[int]:
    return [
        line["step"]
        for line in sorted(validations(run), key=lambda line: (line[metric], line["step"]))[:n]
    ]


def steps_in(run: Path) -> set[int]:
    return {int(path.name.split("_")[1]) for path in (run / f"{run.name}_kept").iterdir()}


def test_the_best_by_each_metric_stay_and_one_is_chosen_later(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained
    assert steps_in(run) == {*best_steps(run, "loss", 2), *best_steps(run, "forces_rmse", 2)}
    for metric in METRICS[:2]:
        output = tmp_path / f"{metric}_model.pt"
        words = ["best", run, "--metric", metric, "--output_model", output]
        assert read_model.main([str(word) for word in words]) == 0
        chosen = checkpoint.read(output)
        [step] = best_steps(run, metric, 1)
        assert chosen.content["step"] == step
        source = checkpoint.read(run / "run_kept" / f"step_{step}_model.pt")
        assert all(
            torch.equal(value, chosen.tensors[name]) for name, value in source.tensors.items()
        )
    errors = tmp_path / "errors.json"
    words = [
        "--input_model",
        output,
        "--xyz_path",
        run.parent / "valid.xyz",
        "--output_json",
        errors,
    ]
    assert evaluate.main([str(word) for word in words]) == 0
    lowest = min(line["forces_rmse"] for line in validations(run))
    assert json.loads(errors.read_text())["forces_rmse"] == pytest.approx(lowest, rel=1e-6)
    assert "taken" in capsys.readouterr().out


def test_an_average_is_the_mean_of_the_weights(trained: Path) -> None:
    run = trained
    assert read_model.main(["best", str(run), "--metric", "loss", "--average", "2"]) == 0
    first, second = (
        checkpoint.read(run / "run_kept" / f"step_{step}_model.pt").tensors
        for step in best_steps(run, "loss", 2)
    )
    made = model_loader.load(run / "run_by_loss_model.pt")
    assert made.file.weights == "average of 2 raw"
    differs = 0
    for name, value in made.file.tensors.items():
        expected = (
            first[name]
            if torch.equal(first[name], second[name])
            else (first[name] + second[name]) / 2
        )
        assert torch.allclose(value, expected, rtol=0, atol=1e-15), name
        differs += not torch.equal(first[name], second[name])
    assert differs > 5
    module = made.module.state_dict()
    assert all(torch.equal(module[name], value) for name, value in made.file.tensors.items())


def test_what_all_have_alike_stays_to_the_last_bit() -> None:
    value = torch.tensor([0.1, 1e-3, 3e7], dtype=torch.float64)
    models = [{"E0": value, "w": torch.full((1,), k, dtype=torch.float64)} for k in (1.0, 2.0, 6.0)]
    mean = averaged(models)
    assert torch.equal(mean["E0"], value)
    assert mean["w"].item() == 3.0


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("at", [pytest.param(5, marks=in_the_battery), 6])
def test_a_killed_run_keeps_what_the_unbroken_one_keeps(
    at: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies after a validation and before the checkpoint that knows of it: what it
    kept then is made again.
    """
    words = [*words_of(trained.parent), "--output_checkpoint", str(tmp_path / "run")]
    save = fit._Run._save

    def dying(self: Any, reason: str) -> None:
        if self.state.progress.step >= at:
            raise Killed
        save(self, reason)

    monkeypatch.setattr(fit._Run, "_save", dying)
    with pytest.raises(Killed):
        train_mace.main(words)
    monkeypatch.setattr(fit._Run, "_save", save)
    assert train_mace.main([*words, "--resume", "auto"]) == 0
    assert steps_in(tmp_path / "run") == steps_in(trained)
    for step in steps_in(trained):
        mine = checkpoint.read(tmp_path / "run" / "run_kept" / f"step_{step}_model.pt")
        theirs = checkpoint.read(trained / "run_kept" / f"step_{step}_model.pt")
        assert all(torch.equal(value, mine.tensors[name]) for name, value in theirs.tensors.items())
        assert mine.content["metrics"] == theirs.content["metrics"]


class Written:
    """In place of a run's writer: makes the files that it is asked for."""

    def save_kept(self, path: Path, parameters: Any, **facts: Any) -> None:
        path.touch()


def test_models_that_are_not_the_best_any_more_go_with_the_next_checkpoint(tmp_path: Path) -> None:
    """Until then a killed run goes on from where they were good."""
    state = state_of()
    keeper = Keeper(tmp_path / "kept", Written(), Kept(2, ("loss",), "loss"), step=0)  # type: ignore[arg-type]

    def there() -> list[int]:
        return sorted(int(path.name.split("_")[1]) for path in (tmp_path / "kept").iterdir())

    for step, loss in enumerate((3.0, 2.0, 4.0, 1.0), start=1):
        state.progress.step = step
        keeper.judged(state, Metrics(loss=loss, errors={}, n_configs=1, n_atoms=1), loss)
    assert there() == [1, 2, 4]
    keeper.checkpoint_written()
    assert there() == [2, 4]


def test_models_of_a_future_that_was_lost_go_with_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from step 3, perhaps with another rate, does not keep what
    it was at step 5 before.
    """
    there = [model(step, loss=loss) for step, loss in ((2, 2.0), (5, 1.0))]
    there = [
        replace(kept_model, path=tmp_path / f"step_{kept_model.step}_model.pt")
        for kept_model in there
    ]
    for kept_model in there:
        kept_model.path.touch()
    monkeypatch.setattr(keeping, "models_in", lambda folder: there)
    keeper = Keeper(tmp_path, Written(), Kept(1, ("loss",), "loss"), step=3)  # type: ignore[arg-type]
    keeper.checkpoint_written()
    assert [path.name for path in tmp_path.iterdir()] == ["step_2_model.pt"]
    state = state_of()
    state.progress.step = 4
    keeper.judged(state, Metrics(loss=1.5, errors={}, n_configs=1, n_atoms=1), 1.5)
    keeper.checkpoint_written()
    assert [path.name for path in tmp_path.iterdir()] == ["step_4_model.pt"]


def model(step: int, stage: int = 1, **errors: float) -> KeptModel:
    return KeptModel(
        path=Path(f"{step}.pt"),
        step=step,
        stage=stage,
        errors=errors,
        score=("loss", errors["loss"]),
    )


def test_losses_of_two_stages_are_not_compared() -> None:
    models = [
        model(1, loss=0.1, forces_rmse=3.0),
        model(2, 2, loss=5.0, forces_rmse=1.0),
        model(3, 2, loss=4.0),
    ]
    assert [m.step for m in best_of(models, "loss", 3)] == [3, 2, 1]
    assert [m.step for m in best_of(models, "forces_rmse", 3)] == [2, 1]


@pytest.mark.parametrize("is_old", [False, True])
def test_the_best_of_a_second_stage_is_compared_with_those_of_its_own_stage(
    is_old: bool, two_stages: Path, tmp_path: Path
) -> None:
    """Its losses are larger than those of stage one; older files say neither stage nor score."""
    run = tmp_path / "run"
    shutil.copytree(two_stages, run)
    file = checkpoint.read(run / "run_model.pt")
    step = file.content["step"]
    last = [line for line in validations(run) if line["step"] > 4]
    assert step == min(last, key=lambda line: line["loss"])["step"]
    score = next(line["loss"] for line in last if line["step"] == step)
    assert (file.content["stage"], file.content["score"]) == (2, ["loss", score])
    assert len(last) > 1
    assert score > min(line["loss"] for line in validations(run) if line["step"] <= 4)
    if is_old:
        content = {
            name: value for name, value in file.content.items() if name not in ("stage", "score")
        }
        checkpoint.write_model(file.path, content, model_loader.load(file.path).module)
    (run / "run_kept" / kept.name_of(step)).unlink()
    assert read_model.main(["best", str(run), "--metric", "loss"]) == 0
    assert checkpoint.read(run / "run_by_loss_model.pt").content["step"] == step


@pytest.fixture(scope="module")
def two_stages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages of two epochs each, which kept every model; the second
    has the larger losses.
    """
    run = tmp_path_factory.mktemp("stages") / "run"
    words = [*words_of(trained.parent), "--output_checkpoint", str(run), "--keep_best", "9"]
    words += ["--stage_two", "--start_stage_two", "2", "--stage_two_forces_weight", "1e6"]
    assert train_mace.main(words) == 0
    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "stress_rmse"], "no model of {run} has it; there are energy_mae_cfg, "),
        (["--average", "9"], " models with a loss; train with a larger --keep_best"),
        (
            ["--output_model", "{run}/x.model"],
            "is no weights file; give a name that ends in .pt or .pth",
        ),
        (
            ["--output_model", "{run}/run_by_x_model.pt"],
            "is there; give another name or --overwrite",
        ),
    ],
)
def test_a_choice_that_cannot_be_made(
    words: list[str], said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained
    (run / "run_by_x_model.pt").touch()
    assert read_model.main(["best", str(run), *(word.format(run=run) for word in words)]) == 2
    assert said.format(run=run) in capsys.readouterr().err


def test_a_choice_never_takes_a_place_where_a_training_writes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the run itself, and of another one that lies there."""
    [step] = best_steps(trained, "forces_rmse", 1)
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    (other / "link.pt").symlink_to(other / "run_model.pt")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    names = [
        "run_model.pt",
        "run_checkpoint.pt",
        "run_checkpoint.prev.pt",
        "run_stage_one_model.pt",
        "link.pt",
    ]
    own = [
        (other, name)
        for name in [*names, f"run_kept/step_{step}_model.pt", "run_kept/step_999_model.pt"]
    ]
    for run, name in [*own, *((trained, name) for name in names)]:
        words = ["best", run, "--output_model", other / name, "--overwrite"]
        assert read_model.main([str(word) for word in words]) == 2, name
        assert (
            "is a file of a run, which a training writes; give another name"
            in capsys.readouterr().err
        )
    for name in names:
        words = [
            "convert",
            "--input_model",
            trained / "run_model.pt",
            "--to",
            "module",
            "--output",
            other / name,
        ]
        assert read_model.main([*map(str, words), "--overwrite"]) == 2, name
        assert f"--output {other / name} is a file of a run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    mine = other / "mine_model.pt"
    mine.touch()  # a choice of before may be replaced
    assert read_model.main(["best", str(other), "--output_model", str(mine), "--overwrite"]) == 0
    assert checkpoint.read(mine).content["step"] == best_steps(trained, "loss", 1)[0]


def test_a_place_with_kept_models_is_another_runs(tmp_path: Path) -> None:
    place = Outputs.named(tmp_path / "run", None)
    place.kept.mkdir(parents=True)
    left = place.kept / kept.name_of(3)
    left.touch()
    with pytest.raises(InputError, match=r"step_3_model\.pt belongs to another run"):
        place.refuse_another_run()
    with pytest.raises(
        InputError, match=r"step_3_model\.pt is there, but no checkpoint to resume it from"
    ):
        resuming.refuse_remains(place)
    place.remove_another_run()
    assert not left.exists()


def test_metrics_to_keep_by_without_a_number_of_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--input_json",
        "m.json",
        "--xyz_train",
        "a.xyz",
        "--output_checkpoint",
        str(tmp_path / "run"),
    ]
    assert train_mace.main([*words, "--keep_best_by", "loss"]) == 2
    assert "add --keep_best" in capsys.readouterr().err
