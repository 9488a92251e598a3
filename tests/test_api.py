"""Training from Python: one run, and everything that can be asked of it; mistakes; and
that the scripts call it.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms
from ase.io import read, write
from plugged import restored_tables  # noqa: F401

from conftest import ROOT, TINY, waters
from model_utils import api, evaluate, model_loader
from model_utils.errors import InputError, Preempted
from model_utils.run import interruption
from model_utils.settings.options import FinetuneOptions, TrainOptions
from model_utils.tasks.finished_run import Run

LOGGER = """
from pathlib import Path
from model_utils.run.loggers import LOGGERS, LoggerKind, hook

def hooked(kind, values, epoch):
    with open(Path(__file__).with_name("hooked.txt"), "a") as file:
        file.write(f"{kind} {epoch}\\n")

LOGGERS["hooked_of_api"] = hook(hooked)

class Counting:
    def __init__(self, run):
        self.path = run.folder / "counted.txt"
    def train(self, record): self.add("train")
    def validation(self, record): self.add("validation")
    def final(self, record): self.add("final")
    def close(self): self.add("closed")
    def add(self, word):
        with open(self.path, "a") as file:
            file.write(word + "\\n")

LOGGERS["counting_of_api"] = LoggerKind(
    opened=Counting, writes="counted.txt", what="a word for each record"
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a network, and a logger that a plug-in adds."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "train.xyz", waters(8), format="extxyz")
    write(folder / "val.xyz", waters(3, seed=1), format="extxyz")
    write(folder / "test.xyz", waters(5, seed=2), format="extxyz")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    settings = {
        "input_json": folder / "tiny.json",
        "train_file": folder / "train.xyz",
        "valid_file": [folder / "val.xyz"],
        "output_checkpoint": folder / "run",
        "output_safetensors": folder / "best.safetensors",
        "epochs": 2,
        "batch_size": 4,
        "ema": True,
        "loggers": ["csv"],
    }
    before = torch.get_default_dtype()
    made = api.train({**settings, "dtype": "float64"})
    assert torch.get_default_dtype() is before
    return made


def test_a_run_and_its_state(run: Run, folder: Path) -> None:
    """Rows "TrainingLoop(…).run()", "training_loop.training_state",
    "load_parameters_from_checkpoint(path)", "TrainingIOHandler.Config(local_model_output_dir=…)".
    """
    assert (run.state.epoch, run.state.step, run.state.is_over) == (2, 4, True)
    assert run.folder == folder / "run"
    assert run.state.config["batch_size"] == 4
    for path in (folder / "run", folder / "run" / "run_checkpoint.pt"):
        again = api.opened(path)
        assert again.model_path == run.model_path == folder / "run" / "run_model.pt"
        assert again.metrics == run.metrics
    with pytest.raises(InputError, match="expected the directory of a run"):
        api.opened(folder / "nowhere")


def test_the_best_model_and_its_errors(run: Run, folder: Path) -> None:
    """Rows "training_loop.best_model", "save_model_to_zip(model)"."""
    best = run.best_model
    assert best.description.model_class == "ScaleShiftMACE"
    assert next(best.module.parameters()).dtype == torch.float64
    exported = model_loader.load(folder / "best.safetensors")
    pairs = zip(
        best.module.state_dict().values(), exported.module.state_dict().values(), strict=True
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert set(run.metrics) == {"train", "valid"}
    validations = [record for record in run.records if record["kind"] == "valid"]
    assert run.metrics["valid"]["loss"] == min(record["loss"] for record in validations[1:])


def test_errors_on_other_data(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows "training_loop.test(data)", "scripts/eval.py": the same numbers as the command gives."""
    errors = run.test(folder / "test.xyz")
    words = [
        "--input_model",
        str(run.model_path),
        "--data",
        str(folder / "test.xyz"),
        "--batch_size",
        "4",
    ]
    output = folder / "errors.json"
    assert evaluate.main([*words, "--output_json", str(output)]) == 0
    by_command = json.loads(output.read_text())
    assert {name: by_command[name] for name in errors.as_plain()} == errors.as_plain()
    assert run.test([folder / "val.xyz"])["forces_rmse"] == pytest.approx(
        run.metrics["valid"]["forces_rmse"], rel=1e-12
    )
    with pytest.raises(InputError, match="energy"):
        run.test(folder / "test.xyz", energy_key="nowhere")
    for name in ("input_model", "xyz_path"):
        with pytest.raises(InputError, match=rf"test\(\) takes no {name}: "):
            run.test(folder / "test.xyz", **{name: run.model_path})


def test_data_are_judged_as_in_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its loss in its units, its labels, its budgets, and what counts of
    atoms that were held.
    """
    held = waters(4, seed=3)
    for atoms in held:
        atoms.info["free_energy"] = atoms.info.pop("REF_energy")
        atoms.set_constraint(FixAtoms(indices=[0]))
        atoms.arrays["REF_forces"][0] *= 100
    write(
        folder / "held.xyz",
        held,
        format="extxyz",
        columns=["symbols", "positions", "REF_forces", "move_mask"],
    )
    settings = {
        "input_json": folder / "tiny.json",
        "train_file": folder / "held.xyz",
        "valid_file": folder / "held.xyz",
    }
    judged = {"energy_key": "free_energy", "eval_on_free_atoms": False, "max_atoms_per_batch": 6}
    loss = {
        "loss": "huber",
        "huber_delta": 0.3,
        "loss_units": "spread",
        "energy_weight": 2.0,
        "forces_weight": 3.0,
    }
    place = {"output_checkpoint": folder / "judged", "export_mace_model": False, "dtype": "float64"}
    made = api.train({**settings, **judged, **loss, **place, "max_steps": 1})
    expected = made.metrics["valid"]
    capsys.readouterr()
    errors = made.test(folder / "held.xyz")
    for name in ("loss", "forces_rmse", "energy_rmse_per_atom"):
        assert errors.as_plain()[name] == pytest.approx(expected[name], rel=1e-12), name
    assert made.test(folder / "held.xyz", forces_weight=1.0, batch_size=2).loss != pytest.approx(
        errors.loss
    )
    assert (
        made.test(folder / "held.xyz", eval_on_free_atoms=True)["forces_rmse"]
        < errors["forces_rmse"] / 2
    )


def test_predictions_without_labels(run: Run, folder: Path) -> None:
    """Row "scripts/infer.py"."""
    bare = waters(3, seed=5)
    for atoms in bare:
        atoms.info.clear()
        del atoms.arrays["REF_forces"]
    write(folder / "bare.xyz", bare, format="extxyz")
    words = ["--input_model", str(run.model_path), "--data", str(folder / "bare.xyz")]
    assert evaluate.main([*words, "--output_xyz", str(folder / "predicted.xyz")]) == 0
    predicted = read(folder / "predicted.xyz", index=":")
    assert all(np.isfinite(atoms.info["mace_energy"]) for atoms in predicted)
    assert all(atoms.arrays["mace_forces"].shape == (len(atoms), 3) for atoms in predicted)


def test_records_as_a_table_and_in_the_log(run: Run) -> None:
    """Rows "scripts/plot_loss.py", "log_metrics_to_line"."""
    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 4
    log = (run.folder / "train.log").read_text()
    assert log.count(" train  loss") == 2
    assert log.count(" valid  loss") == 3


@pytest.mark.usefixtures("restored_tables")
def test_a_logger_of_ones_own(folder: Path) -> None:
    """Rows "io_handler.attach_logger(function)", "plug-ins that register themselves"."""
    plugin = folder / "counting.py"
    plugin.write_text(LOGGER)
    settings = {
        "input_json": folder / "tiny.json",
        "train_file": folder / "train.xyz",
        "max_steps": 1,
    }
    more = {
        "valid_file": folder / "val.xyz",
        "plugin": [plugin],
        "loggers": ["counting_of_api", "hooked_of_api"],
    }
    made = api.train(
        {**settings, **more, "output_checkpoint": folder / "counted", "export_mace_model": False}
    )
    words = (made.folder / "counted.txt").read_text().split()
    assert words[-2:] == ["final", "closed"]
    assert "validation" in words
    assert (folder / "hooked.txt").read_text().split("\n")[-2].startswith("final ")


# the process, which belongs to the program


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> dict[str, object]:
    """A run of one step at a place of its own."""
    return {
        "input_json": folder / "tiny.json",
        "train_file": folder / "train.xyz",
        "valid_file": folder / "val.xyz",
        "output_checkpoint": tmp_path / "own",
        "max_steps": 1,
        "export_mace_model": False,
    }


def test_a_run_has_nothing_of_the_settings_of_another(
    settings: dict[str, object], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    generator = torch.get_rng_state()
    torch.use_deterministic_algorithms(False)
    first = api.train({**settings, "threads": threads + 1, "deterministic": True})
    second = api.train({**settings, "output_checkpoint": tmp_path / "second"})
    assert first.state.computed_on["threads"] == threads + 1
    assert second.state.computed_on["threads"] == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), generator)


def test_judging_leaves_the_precision(run: Run, folder: Path) -> None:
    assert next(run.best_model.module.parameters()).dtype == torch.float64
    before = torch.get_default_dtype()  # what an earlier test left
    torch.set_default_dtype(torch.float32)
    try:
        run.test(folder / "test.xyz")
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_modes_of_torch_do_not_reach_a_run(
    run: Run, settings: dict[str, object], folder: Path
) -> None:
    expected = run.test(folder / "test.xyz")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert run.test(folder / "test.xyz") == expected
        assert api.train(settings).metrics["valid"]["n_configs"] == 3


def test_a_run_stays_where_it_was_made(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    made = api.train({**settings, "output_checkpoint": "own"})
    again = api.opened("own")
    monkeypatch.chdir(elsewhere)
    assert made.folder == again.folder == tmp_path / "own"
    assert made.state.step == again.state.step == 1
    assert made.metrics == again.metrics


def test_an_opened_run_stays_that_run_where_latest_leads_elsewhere(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """Nor does an evaluation say that it was of another one."""
    asked = {name: value for name, value in settings.items() if name != "output_checkpoint"}
    first = api.train({**asked, "run_dir": tmp_path / "nb"})
    latest = tmp_path / "nb" / "latest"
    old = api.opened(latest)
    named = latest / first.model_path.name
    data = str(settings["valid_file"])
    words = ["--input_model", str(named), "--output_json", str(tmp_path / "errors.json")]
    assert evaluate.main([*words, "--data", data]) == 0
    second = api.train({**asked, "run_dir": tmp_path / "nb", "max_steps": 2})
    assert second.folder == latest.resolve() != first.folder
    assert (old.folder, old.metrics) == (first.folder, first.metrics)
    assert old.test(data).as_plain() == first.test(data).as_plain()
    assert json.loads((tmp_path / "errors.json").read_text())["input_model"] == str(old.model_path)


def test_a_dry_run_has_no_records(settings: dict[str, object]) -> None:
    made = api.train({**settings, "dry_run": True})
    with pytest.raises(InputError, match=r"there is no .*metrics\.jsonl; a dry run writes none"):
        _ = made.metrics


# settings


def test_settings_are_those_of_a_yaml(folder: Path) -> None:
    flat = {
        "input_json": "m.json",
        "train_file": ["a.xyz"],
        "output_checkpoint": "run",
        "lr": 0.5,
        "epochs": None,
    }
    options = api.options_of(flat)
    assert isinstance(options, TrainOptions)
    assert (options.optimizer.lr, options.run.epochs) == (0.5, 100)
    assert options.data.train_file == (Path("a.xyz"),)
    sections = {
        "model": {"target": "MACE"},
        "dataset": {"train_dataset_paths": "a.xyz"},
        "train": {"exp_name": "demo"},
    }
    options = api.options_of(sections)
    assert isinstance(options, TrainOptions)
    assert options.running.run_dir == Path.cwd() / "runs" / "demo"
    tuned = api.options_of(
        {"model": {"pretrained": "w.pt"}, "train_file": "a.xyz", "run_dir": "runs"}
    )
    assert isinstance(tuned, FinetuneOptions)
    (folder / "settings.yaml").write_text(
        "input_json: m.json\ntrain_file: a.xyz\noutput_checkpoint: run\n"
    )
    options = api.options_of(folder / "settings.yaml")
    assert isinstance(options, TrainOptions)
    assert options.data.train_file == (folder / "a.xyz",)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 1}, "unknown setting 'learning_rate' in settings; did you mean lr?"),
        ({"input_json": "m.json", "train_file": "a.xyz"}, "output_checkpoint is missing"),
        (
            {"input_json": "m.json", "train_file": "a.xyz", "output_checkpoint": "r", "lr": "fast"},
            "expected a number",
        ),
        ({"input_json": "m.json", "output_checkpoint": "r"}, "no training data"),
    ],
)
def test_mistakes_in_settings(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        api.options_of(settings)


@pytest.mark.parametrize("settings", [None, 5, []])
def test_settings_of_no_kind(settings: Any) -> None:
    with pytest.raises(InputError, match="expected a mapping of settings or the path of a YAML"):
        api.train(settings)


def test_what_ends_a_command_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of time that is over at the first step; what was saved goes on."""
    settings = {
        "input_json": folder / "tiny.json",
        "train_file": folder / "train.xyz",
        "valid_file": folder / "val.xyz",
    }
    settings |= {"output_checkpoint": folder / "limited", "epochs": 1, "export_mace_model": False}
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "RESERVE", 1e9)
        with pytest.raises(Preempted, match="saved at step"):
            api.train({**settings, "time_limit": 10})
    assert api.train({**settings, "resume": "auto"}).state.is_over


def test_the_scripts_are_its_users() -> None:
    for name in ("train_mace", "finetune", "resume", "evaluate"):
        text = (ROOT / "model_utils" / f"{name}.py").read_text()
        assert len(re.findall(r"\bapi\.\w+\(", text)) == 1
        assert "torch" not in text
