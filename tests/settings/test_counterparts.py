"""What is written for other toolkits: a case for every row of the table, and what a
file of settings answers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_utils.errors import InputError
from model_utils.settings import counterparts, reading
from model_utils.settings.options import FinetuneOptions, TrainOptions
from model_utils.settings.taken import LOSSES

NEEDED = {"train_file": "t.xyz", "output_checkpoint": "run"}
HERE = Path(__file__).parent


def written(folder: Path, settings: Mapping[str, Any]) -> str:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    return str(path)


def taken(
    folder: Path, settings: Mapping[str, Any], *flags: str, kind: type = TrainOptions
) -> dict[str, Any]:
    """Options of a file of settings, by name."""
    options = reading.parse(kind, [*flags, "--config", written(folder, settings)])
    assert options is not None
    return reading.as_plain(options)


def network(plain: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(plain["network"]))


# a whole loss where there is one of the name, else the shape of all terms
HUBER_OPTIONS: dict[str, Any] = (
    {"loss": "huber"}
    if "huber" in LOSSES.names()
    else {f"{quantity}_loss": "huber" for quantity in ("energy", "forces", "stress")}
)
STAGES = {"num_epochs": 10, "stage_splits": [0.7, 0.3]}
# key of a YAML: (its section's content, options that it becomes, fields of the
# network that it becomes)
KEYS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "model.drop_force_head": (
        {"drop_force_head": True, "target": "mace"},
        {},
        {"model_class": "ScaleShiftMACE"},
    ),
    "model.target": ({"target": "scale_shift_mace"}, {}, {"model_class": "ScaleShiftMACE"}),
    "model.seed": ({"seed": 42, "target": "MACE"}, {"seed": 42}, {}),
    "model.dtype": ({"dtype": "float64", "target": "MACE"}, {"dtype": "float64"}, {}),
    "model.num_layers": ({"num_layers": 3}, {}, {"num_interactions": 3}),
    "model.num_channels": ({"num_channels": 16}, {}, {"hidden_irreps": "16x0e+16x1o"}),
    "model.max_L": ({"num_channels": 16, "max_L": 2}, {}, {"hidden_irreps": "16x0e+16x1o+16x2e"}),
    "model.node_symmetry": (
        {"num_channels": 16, "node_symmetry": 0},
        {},
        {"hidden_irreps": "16x0e"},
    ),
    "model.l_max": ({"l_max": 2}, {}, {"max_ell": 2}),
    "model.lmax": ({"lmax": 2}, {}, {"max_ell": 2}),
    "model.num_rbf": ({"num_rbf": 10}, {}, {"num_bessel": 10}),
    "model.num_radial_basis": ({"num_radial_basis": 10}, {}, {"num_bessel": 10}),
    "model.num_cutoff_basis": ({"num_cutoff_basis": 6}, {}, {"num_polynomial_cutoff": 6}),
    "model.activation": ({"activation": "silu"}, {}, {"gate": "silu"}),
    "dataset.train_dataset_paths": (
        {"train_dataset_paths": ["/a.xyz"]},
        {"train_file": ["/a.xyz"]},
        {},
    ),
    "dataset.valid_dataset_paths": (
        {"valid_dataset_paths": "/b.xyz"},
        {"valid_file": ["/b.xyz"]},
        {},
    ),
    "dataset.test_dataset_paths": ({"test_dataset_paths": "/c.xyz"}, {"test_file": ["/c.xyz"]}, {}),
    "dataset.graph_cutoff_angstrom": ({"graph_cutoff_angstrom": 4.5}, {}, {"r_max": 4.5}),
    "dataset.batch_size": ({"batch_size": 16}, {"batch_size": 16}, {}),
    "dataset.info_file": ({"info_file": "/i.json"}, {"info_file": "/i.json"}, {}),
    "train.num_epochs": ({"num_epochs": 7}, {"epochs": 7}, {}),
    "train.loss": ({"loss": "HuberLoss"}, HUBER_OPTIONS, {}),
    "train.extended_metrics": ({"extended_metrics": True}, {}, {}),
    "train.parallel": ({"parallel": True}, {}, {}),
    "train.dtype": ({"dtype": "bfloat16"}, {"dtype": None}, {}),
    "train.save_path": (
        {"save_path": "/m.safetensors"},
        {"output_safetensors": "/m.safetensors"},
        {},
    ),
    "train.stage_splits": (
        STAGES,
        {"stage_two": True, "start_stage_two": 7, "stage_two_follows_schedule": True}
        | {"stage_two_energy_weight": 1.0, "stage_two_forces_weight": 100.0},
        {},
    ),
    "train.energy_weights": (
        {**STAGES, "energy_weights": [1.0, 25.0]},
        {"energy_weight": 1.0, "stage_two_energy_weight": 25.0, "stage_two_forces_weight": 100.0},
        {},
    ),
    "train.forces_weights": (
        {**STAGES, "forces_weights": [25.0, 1.0], "energy_weight": 2.0},
        {"forces_weight": 25.0, "stage_two_forces_weight": 1.0, "stage_two_energy_weight": 2.0},
        {},
    ),
    "train.tensorboard": ({"tensorboard": "./runs/x"}, {"loggers": ["tensorboard"]}, {}),
    "train.wandb": ({"wandb": "project"}, {"loggers": ["wandb"]}, {}),
    "train.final_learning_rate": ({"final_learning_rate": "1e-4"}, {"min_lr": 1e-4}, {}),
    "train.init_learning_rate": ({"init_learning_rate": 0.001}, {}, {}),
    "train.warmup_steps": (
        {"warmup_steps": 400},
        {"warmup": 400.0, "scheduler_unit": "step"},
        {},
    ),
    "train.transition_steps": ({"transition_steps": 360000}, {}, {}),
    "train.random_seed": ({"random_seed": 42}, {"seed": 42}, {}),
    "train.use_ema_params_for_eval": ({"use_ema_params_for_eval": True}, {}, {}),
    "train.run_eval_at_start": ({"run_eval_at_start": True}, {}, {}),
    "train.eval_num_graphs": ({"eval_num_graphs": 100}, {}, {}),
    "train.peak_learning_rate": ({"peak_learning_rate": 0.02}, {"lr": 0.02}, {}),
    "train.grad_norm": ({"grad_norm": 500}, {"clip_grad": 500.0}, {}),
    "train.num_gradient_accumulation_steps": (
        {"num_gradient_accumulation_steps": 4},
        {"accumulate_batches": 4},
        {},
    ),
    "train.local_model_output_dir": (
        {"local_model_output_dir": "/c"},
        {"output_checkpoint": "/c"},
        {},
    ),
    "train.restore_checkpoint_if_exists": (
        {"restore_checkpoint_if_exists": True},
        {"resume": "auto"},
        {},
    ),
    "train.restore_optimizer_state": ({"restore_optimizer_state": True}, {}, {}),
    "exp_name": ({"exp_name": "demo"}, {"run_dir": str(Path.cwd() / "runs" / "demo")}, {}),
    "resume": ({"resume": True}, {"resume": "auto"}, {}),
    "scheduler.name": ({"scheduler": {"name": "onecycle"}}, {"scheduler": "onecycle"}, {}),
    "scheduler.t_max": (
        {"scheduler": {"name": "cosine", "t_max": 50}},
        {"scheduler_length": 50.0},
        {},
    ),
    "scheduler.eta_min": (
        {"scheduler": {"name": "cosine", "eta_min": "1e-6"}},
        {"min_lr": 1e-6},
        {},
    ),
    "scheduler.step_size": ({"scheduler": {"name": "step", "step_size": 30}}, {"lr_step": 30}, {}),
    "optim.name": (
        {"name": "adamw", "lr": "1e-3", "weight_decay": 0.0},
        {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        {},
    ),
    "data.name": ({"name": "em", "valid_fraction": 0.3}, {"valid_fraction": 0.3}, {}),
    "loss.name": ({"name": "HuberLoss"}, HUBER_OPTIONS, {}),
    "loss.normalize_y": ({"normalize_y": True}, {"loss_units": "spread"}, {}),
    "loss.balance_eh_loss": ({"balance_eh_loss": True}, {"loss_units": "balanced"}, {}),
    "scheduler.gamma": ({"scheduler": {"name": "step", "gamma": 0.1}}, {"lr_factor": 0.1}, {}),
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages of loggers that there seem to be, whatever is installed here."""
    names = {"tensorboard", "wandb"}
    monkeypatch.setattr(
        "model_utils.settings.taken.find_spec", lambda name: name if name in names else None
    )
    return names


@pytest.mark.parametrize("row", KEYS)
def test_a_key_of_a_yaml(row: str, tmp_path: Path) -> None:
    content, options, fields = KEYS[row]
    section = row.partition(".")[0] if row.count(".") and not row.startswith("scheduler") else ""
    own = {**NEEDED, **({} if fields or section == "model" else {"input_json": "m.json"})}
    own = {name: value for name, value in own.items() if name not in options}
    if "run_dir" in options:
        del own["output_checkpoint"]
    in_its_section = {section: content, **own} if section else {**content, **own}
    plain = taken(tmp_path, in_its_section)
    assert {name: plain[name] for name in options} == options
    if fields:
        assert {name: network(plain)[name] for name in fields} == fields
    if section in ("dataset", "train"):
        assert (
            reading.as_plain(
                reading.parse(TrainOptions, ["--config", written(tmp_path, {**content, **own})])
            )
            == plain
        ), "flat"


def test_pretrained_is_a_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {
        "model": {"pretrained": "/w.model", "drop_force_head": True, "dtype": "float32"},
        "train": NEEDED,
    }
    plain = taken(tmp_path, settings, kind=FinetuneOptions)
    assert (plain["input_model"], plain["dtype"]) == ("/w.model", "float32")
    settings["dataset"] = {"graph_cutoff_angstrom": 4.0}
    assert "network" not in taken(tmp_path, settings, kind=FinetuneOptions)
    assert "the cutoff is that of the pretrained model" in capsys.readouterr().err
    settings["model"]["hidden_irreps"] = "8x0e"
    with pytest.raises(
        InputError, match="gives hidden_irreps beside pretrained, whose network stays"
    ):
        taken(tmp_path, settings, kind=FinetuneOptions)


def flags(*words: str) -> dict[str, Any]:
    options = reading.parse(
        TrainOptions, ["--input_json", "m.json", "--train_file", "t.xyz", *words]
    )
    assert options is not None
    return reading.as_plain(options)


TWO_WEIGHTS = "--weight_schedule energy=piecewise:0=1,100=25 forces=piecewise:0=25,100=1"
HUBER = "--loss huber"
RATE = ["--resume", "--resume_best", "--lr", "1e-4"]
FLAGS: dict[str, tuple[list[str], dict[str, Any]]] = {  # row: flags, options that they become
    "scripts/train.py --config FILE --exp_name NAME": (
        ["--exp_name", "demo"],
        {
            "run_dir": str(Path.cwd() / "runs" / "demo"),
            "output_checkpoint": str(Path.cwd() / "runs" / "demo"),
        },
    ),
    "--resume": (["--exp_name=demo", "--resume"], {"resume": "auto"}),
    "--resume --lr RATE": (
        ["--exp_name=demo", "--resume", "--lr", "1e-4"],
        {"resume": "auto", "lr": 1e-4},
    ),
    "--resume --resume_best --lr RATE": (
        ["--exp_name", "demo", *RATE],
        {"resume": "auto", "resume_best": True, "lr": 1e-4},
    ),
    "--resume --resume_new_lr": (
        ["--exp_name", "demo", "--resume", "--resume_new_lr"],
        {"resume_new_lr": True},
    ),
    "--resume --resume_reset_scheduler": (
        ["--exp_name", "demo", "--resume", "--resume_reset_scheduler"],
        {"resume_reset_scheduler": True},
    ),
    "MSELoss()": (["--output_checkpoint", "run"], {"loss": "terms"}),
    "HuberLoss()": (
        ["--output_checkpoint", "run", *HUBER.split()],
        {"loss": "huber"},
    ),
    "piecewise_constant_schedule(1.0, {100: 25.0})": (
        ["--output_checkpoint", "run", *TWO_WEIGHTS.split(), "--epochs", "200"],
        {"weight_schedule": ["energy=piecewise:0=1,100=25", "forces=piecewise:0=25,100=1"]},
    ),
    "--train_ids FILE --val_ids FILE": (
        [
            "--output_checkpoint",
            "run",
            "--train_ids",
            "a.txt",
            "--val_ids",
            "b.txt",
            "--id_key",
            "sid",
        ],
        {"train_ids": str(Path.cwd() / "a.txt"), "val_ids": str(Path.cwd() / "b.txt")},
    ),
    "--normalize_y": (
        ["--output_checkpoint", "run", "--loss_units", "spread"],
        {"loss_units": "spread"},
    ),
    "--balance_eh_loss": (
        ["--output_checkpoint", "run", "--loss_units", "balanced"],
        {"loss_units": "balanced"},
    ),
    "log_metrics_to_table": (
        ["--output_checkpoint", "run", "--loggers", "rich"],
        {"loggers": ["rich"]},
    ),
    "remote_storage_sync_fun": (
        ["--output_checkpoint", "run", "--sync", 'rsync -a "$RUN_FOLDER" host:'],
        {"sync": 'rsync -a "$RUN_FOLDER" host:'},
    ),
    "get_default_mlip_optimizer(OptimizerConfig(…))": (
        [
            *(
                "--output_checkpoint",
                "run",
                "--optimizer",
                "adamw",
                "--lr",
                "1e-3",
                "--weight_decay",
                "1e-6",
            ),
            *("--clip_grad", "5", "--accumulate_batches", "2", "--warmup", "3", "--ema"),
        ],
        {
            "optimizer": "adamw",
            "clip_grad": 5.0,
            "accumulate_batches": 2,
            "warmup": 3.0,
            "ema": True,
        },
    ),
}


@pytest.mark.parametrize("row", FLAGS)
def test_flags(row: str) -> None:
    words, options = FLAGS[row]
    plain = flags(*words)
    assert {name: plain[name] for name in options} == options
    assert all(word in counterparts.table() for word in (TWO_WEIGHTS, HUBER)), (
        "as the documents say"
    )


def test_the_weights_of_a_piecewise_schedule() -> None:
    """Those of mlip: energy 1, then 25 from epoch 100 on; forces 25, then 1."""
    from model_utils.run.objective import weight_schedules

    options = reading.parse(
        TrainOptions,
        [
            "--input_json",
            "m.json",
            "--train_file",
            "t.xyz",
            "--output_checkpoint",
            "run",
            *TWO_WEIGHTS.split(),
        ],
    )
    assert options is not None
    schedules = weight_schedules(options.loss)
    weights = {
        quantity: [schedule.at(epoch) for epoch in (0, 99, 100)]
        for quantity, schedule in schedules.items()
    }
    assert weights == {"energy": [1.0, 1.0, 25.0], "forces": [25.0, 25.0, 1.0]}


ELSEWHERE = {  # rows that a test of runs, commands or Python exercises, and which
    "python scripts/train.py train.yaml": "tasks/test_inline_model.py",
    "model.pretrained": "test_pretrained_is_a_fine_tuning",
    "runs/NAME/RUN_ID/": "run/test_run_folders.py",
    "config.resolved.yaml": "run/test_run_folders.py",
    "metrics.jsonl": "run/test_run_folders.py",
    "last.pth": "run/test_run_folders.py",
    "best.pth": "run/test_run_folders.py",
    "scripts/eval.py": "test_api.py",
    "scripts/infer.py": "test_api.py",
    "scripts/plot_loss.py": "test_api.py",
    "plug-ins that register themselves": "test_api.py",
    "TrainingLoop(…).run()": "test_api.py",
    "training_loop.training_state": "test_api.py",
    "training_loop.best_model": "test_api.py",
    "training_loop.test(data)": "test_api.py",
    "save_model_to_zip(model)": "test_api.py",
    "load_parameters_from_checkpoint(path)": "test_api.py",
    "should_parallelize=True": "ranks/test_run_folders.py",
    "TrainingIOHandler.Config(local_model_output_dir=…)": "test_api.py",
    "dataset_info.json": "tasks/test_inline_model.py",
    "io_handler.attach_logger(function)": "test_api.py",
    "log_metrics_to_line": "test_api.py",
}


def test_every_row_has_a_case() -> None:
    rows = [row.theirs for row in counterparts.COUNTERPARTS]
    assert len(set(rows)) == len(rows) > 60
    assert {*KEYS, *FLAGS, *ELSEWHERE} == set(rows)
    assert {row.theirs for row in counterparts.COUNTERPARTS if row.take is not None} == {
        *KEYS,
        "model.pretrained",
    }
    tests = {
        name: (HERE.parent / name).read_text()
        for name in ELSEWHERE.values()
        if name.endswith(".py")
    }
    for row, name in ELSEWHERE.items():
        if name.endswith(".py"):
            assert f'"{row}"' in tests[name], f"{name} does not name the row {row}"


NOTES: dict[str, tuple[dict[str, Any], str]] = {
    "bfloat16": (
        {"train": {"dtype": "bfloat16"}},
        "there is no mixed precision; computed in float32",
    ),
    "flat": ({"dtype": "bf16"}, "there is no mixed precision"),
    "a head": ({"model": {"drop_force_head": True}}, "forces of MACE are the slope of its energy"),
    "parallel": ({"train": {"parallel": False}}, "torchrun or srun says"),
    "a logger": ({"train": {"tensorboard": "x"}}, "what it writes lies beside the checkpoint"),
    "W&B": ({"train": {"wandb": "x"}}, "WANDB_PROJECT"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_is_answered_is_said_once(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, said = NOTES[case]
    taken(tmp_path, {"input_json": "m.json", **NEEDED, **settings})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ")
    assert said in line


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_whose_package_is_absent_is_answered(
    name: str, installed: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.remove(name)
    plain = taken(tmp_path, {"input_json": "m.json", **NEEDED, "train": {name: "x"}})
    assert plain["loggers"] == []
    assert (
        f"{name}: the package {name} is not installed (pip install {name}); every record "
        "is in metrics.jsonl"
    ) in (capsys.readouterr().err)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shares": (
        {"train": {"stage_splits": [0.7, 0.7]}},
        "stage_splits in section train of .* expected the shares of two",
    ),
    "three stages": ({"stage_splits": [0.3, 0.3, 0.4]}, "expected the shares of two stages"),
    "shares that are none": ({"stage_splits": "half"}, "expected the shares of two stages"),
    "weights without stages": ({"energy_weights": [1, 2]}, "stage_splits is missing"),
    "one weight": (
        {"train": {**STAGES, "energy_weights": 3}},
        "expected the weights of two stages",
    ),
    "twice": (
        {"num_epochs": 3, "epochs": 4},
        "num_epochs and epochs in .* both say epochs; leave one of them out",
    ),
    "twice, in sections": ({"lr": 3, "train": {"peak_learning_rate": 4}}, "both say lr"),
    "moments": (
        {"restore_optimizer_state": False},
        "keeps the optimizer's moments; --resume --resume_best begins",
    ),
    "a model's file": (
        {"train": {"save_path": "m.pt"}},
        "expected a path that ends in .safetensors",
    ),
    "a name": ({"exp_name": "a/b"}, "expected a name; --run_dir takes any folder"),
    "nobody's key": ({"train": {"quux": 1}}, "unknown setting 'quux' in section train of"),
    "a schedule's": (
        {"scheduler": {"name": "cosine", "tmax": 1}},
        "unknown setting 'tmax' of scheduler",
    ),
    "two networks": ({"model": {"target": "MACE"}}, "names input_json and describes a network"),
    "a place": (
        {"run_dir": "r"},
        "--run_dir .* gives the run a folder of its own; leave --output_checkpoint out",
    ),
    "channels": (
        {"input_json": None, "model": {"num_channels": "many"}},
        "num_channels is a whole number from 1 on",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_refused(case: str, tmp_path: Path) -> None:
    settings, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        taken(tmp_path, {"input_json": "m.json", **NEEDED, **settings})


def test_shares_are_of_the_epochs_that_win(tmp_path: Path) -> None:
    settings = {"input_json": "m.json", **NEEDED, **STAGES}
    assert taken(tmp_path, settings)["start_stage_two"] == 7
    assert taken(tmp_path, settings, "--epochs", "100")["start_stage_two"] == 70
    assert taken(tmp_path, settings, "--epochs=3")["start_stage_two"] == 2
    assert taken(tmp_path, {**settings, "num_epochs": None})["start_stage_two"] == 70, (
        "of the default"
    )


def test_paths_are_relative_to_the_file_and_experiments_to_the_command(tmp_path: Path) -> None:
    settings = {
        "dataset": {"train_dataset_paths": ["a.xyz"]},
        "input_json": "m.json",
        "exp_name": "demo",
    }
    plain = taken(tmp_path, settings)
    assert plain["train_file"] == [str(tmp_path / "a.xyz")]
    assert plain["run_dir"] == str(Path.cwd() / "runs" / "demo")


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "model: {atomic_energies: {H: -1.36e1, O: -430.0}, target: mace}\n"
        "train_file: t.xyz\n"
        "output_checkpoint: r\n"
        "stage_splits: [7e-1, 3e-1]\n"
        "energy_weights: [1e0, 1e3]\n"
    )
    options = reading.parse(TrainOptions, [str(tmp_path / "a.yaml")])
    assert options is not None
    assert network(reading.as_plain(options))["atomic_energies"] == {"H": -13.6, "O": -430.0}
    assert options.stage_two.stage_two_energy_weight == 1000.0


@pytest.mark.parametrize(
    "words", [["--resume"], ["--resume", "--ema"], ["--resume", "auto"], ["--resume=auto"]]
)
def test_a_bare_resume_is_auto(words: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, {"input_json": "m.json", **NEEDED})
    for arguments in (["--config", path, *words], [*words, path], [path, *words]):
        if words == ["--resume", "--ema"] and arguments[-1] == path:
            continue
        options = reading.parse(TrainOptions, arguments)
        assert options is not None
        assert options.output.resume == "auto"
