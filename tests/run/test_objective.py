"""What a run minimises by epoch, in which units, by which weights of structures,
and by what it is judged.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from torch import Tensor

from conftest import waters
from dataloader.batch import Label
from dataloader.needs import ModelFacts
from losses import LOSSES, SHAPES, Loss, LossSettings, NamedLoss, Shape, error_sums
from model_utils import train_mace
from model_utils.errors import InputError
from model_utils.files import checkpoint
from model_utils.metrics import metrics
from model_utils.run import objective, spread
from model_utils.run.advice import loss_advice
from model_utils.run.best_metric import Judge, of_heads
from model_utils.run.data import open_data
from model_utils.run.divisible import is_a_sum
from model_utils.run.weight_schedule import schedules_of
from model_utils.settings import reading, terms
from model_utils.settings.options import TrainOptions

NAMES = ("energy", "forces", "stress")
FACTS = ModelFacts(
    atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
)


def options_of(tmp_path: Path, **settings: Any) -> TrainOptions:
    needed = {
        "input_json": "model.json",
        "xyz_train": ["a.xyz"],
        "output_checkpoint": str(tmp_path / "run"),
    }
    return reading.from_plain(TrainOptions, needed | settings, tmp_path / "settings.yaml")


# schedules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("energy=constant:0=3", [3, 3, 3, 3, 3]),
        ("energy=piecewise:0=1,2=25", [1, 1, 25, 25, 25]),
        ("energy=linear:0=100,4=0", [100, 75, 50, 25, 0]),
        ("energy=linear:0=1,1=3,3=5", [1, 3, 4, 5, 5]),
    ],
)
def test_a_schedule_is_a_function_of_the_epoch(text: str, expected: list[float]) -> None:
    schedule = schedules_of([text], NAMES)["energy"]
    assert [schedule.at(epoch) for epoch in range(5)] == expected
    assert schedule.last == schedule.at(1000)
    assert schedule.largest == max(weight for _, weight in schedule.points)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["energi=linear:0=1"], "no quantity 'energi'; there are energy, forces, stress"),
        (["energy=linar:0=1"], "did you mean linear?"),
        (["energy=linear:0=1,x=2"], "'x=2' is no EPOCH=WEIGHT"),
        (["energy=linear:0=-1"], "-1 is no weight; expected a number, 0 or larger"),
        (["energy=linear:0=nan"], "nan is no weight"),
        (["energy=linear:0=1,5=2,5=3"], "epoch 5 does not come after the one before"),
        (["energy=linear:3=1"], "it begins at epoch 3; give the weight from epoch 0 on"),
        (["energy=linear:0=1", "energy=constant:0=1"], "energy has a schedule already"),
    ],
)
def test_a_schedule_that_cannot_be_understood(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        schedules_of(texts, NAMES)


def test_steps_have_the_weights_of_their_epoch_and_validations_the_last(tmp_path: Path) -> None:
    options = options_of(
        tmp_path, weight_schedule=["energy=piecewise:0=1,5=25", "forces=linear:0=100,10=10"]
    )
    [stage] = objective.stages(options)
    assert [stage.loss_in(epoch).text() for epoch in (0, 5, 10)] == [
        "1 E² + 100 F²",
        "25 E² + 55 F²",
        "25 E² + 10 F²",
    ]
    assert stage.loss.text() == "25 E² + 10 F²"


def test_a_quantity_is_needed_that_has_a_weight_in_some_epoch(tmp_path: Path) -> None:
    options = options_of(tmp_path, weight_schedule=["stress=linear:0=1,5=0", "energy=constant:0=0"])
    assert objective.trained_on(options) == {"forces", "stress"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"weight_schedule": ["stress=constant:0=1"], "loss": "weighted"},
            "no weight of the stress to be scheduled",
        ),
        (
            {"weight_schedule": ["energy=linear:0=1,2=0"], "loss": "terms", "forces_weight": 0},
            "ends with are 0",
        ),
    ],
)
def test_schedules_that_contradict_something(settings: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        objective.loss_of(options_of(tmp_path, **settings).loss)


def test_a_schedule_and_a_second_stage_are_two_ways(tmp_path: Path) -> None:
    options = options_of(tmp_path, weight_schedule=["energy=constant:0=1"], stage_two=True)
    with pytest.raises(
        InputError, match="--stage_two and --weight_schedule both change the weights of the loss"
    ):
        objective.trained_on(options)


# units


def test_units_divide_errors_and_balanced_weights_are_shares(tmp_path: Path) -> None:
    options = options_of(tmp_path, energy_weight=1.0, forces_weight=3.0)
    units = objective.Units(spread={"energy": 0.5, "forces": 2.0})
    errors = {"energy": torch.tensor([3.0]), "forces": torch.tensor([[4.0, 0, 0]])}
    zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in errors.items()}
    one = torch.ones(1, dtype=torch.float64)
    labels = {name: Label(value, one > 0, one) for name, value in zeros.items()}

    def value(units: objective.Units) -> float:
        loss = objective.loss_of(options.loss, units)
        return float(
            loss.total(
                error_sums(errors, labels, one, loss), {"energy": 1, "forces": 1, "stress": 0}
            )
        )

    assert value(units) == pytest.approx((3 / 0.5) ** 2 + 3 * (4 / 2) ** 2 / 3, rel=1e-14)
    assert value(replace(units, balanced=True)) == pytest.approx(value(units) / 4, rel=1e-14)
    assert objective.loss_of(options.loss, units).text() == "1 (E/0.5)² + 3 (F/2)²"
    huber = options_of(tmp_path, loss="huber", forces_weight=3.0)
    assert objective.loss_of(huber.loss, units).text() == "1 huber(E/0.5) + 3 huber(F/2)"
    assert (
        objective.loss_of(options_of(tmp_path, loss="virials").loss).text()
        == "1 E² + 100 F² + 1 (V/N S)²"
    )


# losses that are no sum


class Root(Loss):
    def total(self, sums: Tensor, rows: Any) -> Tensor:
        return super().total(sums, rows).sqrt()


def rooted(settings: LossSettings) -> Loss:
    return Root(terms=LOSSES["mse"].build(settings).terms)


def of_all_rows(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """Errors in units of the batch's own, which has no gradient: the value is
    additive, its gradient is not.
    """
    return error**2 / (error**2).mean().detach()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_ours_is_a_sum_over_structures(name: str) -> None:
    assert is_a_sum(
        LOSSES[name].build(LossSettings(weights={"energy": 1.0, "forces": 10.0, "stress": 2.0}))
    )


def test_a_loss_that_is_no_sum_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_a_sum(rooted(LossSettings(weights={"energy": 1.0, "forces": 10.0})))
    monkeypatch.setitem(SHAPES, "relative", Shape(of=of_all_rows, text="relative({})"))
    assert not is_a_sum(Loss.of(shapes={"forces": "relative"}))


@pytest.mark.parametrize(
    ("settings", "parts", "asked"),
    [
        ({}, 2, "--step_parts 2"),
        ({"accumulate_batches": 3}, 1, "--accumulate_batches 3"),
        ({}, 1, None),
    ],
)
def test_it_is_refused_where_a_step_is_in_parts(
    settings: Any, parts: int, asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "root", NamedLoss(build=rooted, own_shapes=True))
    options = options_of(tmp_path, loss="root", **settings)
    [stage] = objective.stages(options)
    assert not stage.loss.divisible
    if asked is None:
        objective.require_divisible(stage.loss, options, parts)
        return
    words = f"--loss root is not a sum over structures, so that a step in parts ({asked})"
    with pytest.raises(InputError, match=re.escape(words)):
        objective.require_divisible(stage.loss, options, parts)


# judging


def test_the_mean_over_heads_counts_each_head_once() -> None:
    """Of the first head there are three structures in two files, of the second one."""
    loss = Loss.of(energy=1.0, forces=1.0)

    def part(errors: list[float]) -> Any:
        energy = torch.tensor(errors)
        ones = torch.ones(len(errors), dtype=torch.float64)
        label = Label(torch.zeros(len(errors), dtype=torch.float64), ones > 0, ones)
        return metrics(error_sums({"energy": energy}, {"energy": label}, ones, loss).tolist(), loss)

    by_source = {"a, head x": part([1.0, 1.0]), "b, head x": part([4.0]), "b, head y": part([10.0])}
    heads = of_heads(by_source, loss)
    assert heads["x"]["energy_rmse_per_atom"] == pytest.approx(np.sqrt(18 / 3))
    everything = part([1.0, 1.0, 4.0, 10.0])
    score = Judge(metric="energy_mae_per_atom", over="heads").score(everything, by_source, loss)
    assert score == pytest.approx((6 / 3 + 10) / 2)
    assert Judge(metric="energy_mae_per_atom").score(everything, by_source, loss) == pytest.approx(
        16 / 4
    )
    with pytest.raises(
        InputError,
        match="--best_metric stress_rmse: no structure of the validation data has a label",
    ):
        Judge(metric="stress_rmse").score(everything, by_source, loss)


# through the command


def frames(path: Path, n: int, seed: int = 0, *, weight: float | None = None) -> Path:
    """Waters, every second one of type ``pair``, which may have a weight of its own in the file."""
    made: list[Atoms] = waters(n, seed)
    for number, atoms in enumerate(made):
        atoms.info["config_type"] = "pair" if number % 2 else "single"
        if weight is not None and number % 2:
            atoms.info["config_weight"] = weight
    write(path, made, format="extxyz")
    return path


@pytest.fixture
def train(tiny_json: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train for two epochs; the folder of the run."""
    frames(tmp_path / "train.xyz", 4)
    frames(tmp_path / "valid.xyz", 3, seed=1)

    def run(
        name: str, *more: object, train_xyz: Path = tmp_path / "train.xyz", code: int = 0
    ) -> Path:
        words = [
            "--input_json",
            tiny_json,
            "--xyz_train",
            train_xyz,
            "--xyz_val",
            tmp_path / "valid.xyz",
        ]
        words += [
            "--epochs",
            2,
            "--batch_size",
            2,
            "--no_export_mace_model",
            "--output_checkpoint",
            tmp_path / name,
        ]
        assert train_mace.main([*map(str, words), *map(str, more)]) == code
        return tmp_path / name

    return run


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("perf", "by_source")}
        for line in lines
    ]


def weights_of(run: Path) -> dict[str, Tensor]:
    return checkpoint.read(run / f"{run.name}_checkpoint.pt").tensors


def test_weights_of_types_change_the_loss_by_what_they_say(tmp_path: Path) -> None:
    """Of a batch of both types, by hand; as a list and as mace_run_train takes them."""
    path = frames(tmp_path / "both.xyz", 4, weight=0.5)

    def loss_of(*weights: str) -> float:
        options = options_of(tmp_path, xyz_train=[str(path)], config_type_weights=list(weights))
        data = open_data.training_data(replace_fraction(options), FACTS, torch.float64, seed=0)
        both = data.train.batch(range(len(data.train)))
        errors = {
            "energy": both.sizes * torch.arange(1.0, len(both.sizes) + 1),
            "forces": torch.zeros(both.n_atoms, 3),
        }
        predicted = {name: value + both.labels[name].value for name, value in errors.items()}
        loss = objective.loss_of(options.loss)
        types = [data.train.structure(i).config_type for i in range(len(data.train))]
        value = float(loss.total(error_sums(predicted, both.labels, both.sizes, loss), both.rows))
        by_hand = {"single": 1.0, "pair": 0.5}  # what the frames say
        for word in (
            weights[0].strip("{}").split(",") if weights[:1] and weights[0][0] == "{" else weights
        ):
            name, _, weight = word.replace('"', "").replace(": ", "=").partition("=")
            by_hand[name] *= float(weight)
        expected = sum(
            by_hand[kind] * (number + 1) ** 2 for number, kind in enumerate(types)
        ) / len(types)
        assert value == pytest.approx(expected, rel=1e-12)
        return value

    values = [loss_of(), loss_of("pair=3", "single=2"), loss_of('{"pair": 3,"single": 2}')]
    assert values[0] != values[1] == values[2]


def replace_fraction(options: TrainOptions) -> TrainOptions:
    """One structure of four is set aside for validation, which such tests do not look at."""
    return replace(options, data=replace(options.data, valid_fraction=0.25))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pair"], "pair is not NAME=WEIGHT, for example bulk=2 surface=0.5"),
        (["pair=-1"], "pair=-1: '-1' is no weight; expected a number, 0 or larger"),
        (["pair=1", "pair=2"], "names pair twice"),
        (["{pair"], "is no JSON object"),
    ],
)
def test_weights_of_types_that_are_none(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        terms.config_type_weights(options_of(tmp_path, config_type_weights=words).data)


def test_a_type_that_occurs_nowhere_is_refused(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train("run", "--config_type_weights", "pear=3", code=2)
    assert (
        "pear=3: no structure to train on has that config_type; there are pair, single"
        in capsys.readouterr().err
    )


def test_schedules_and_units_go_on_where_a_run_was_killed(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; and what is judged is the metric that was chosen."""
    # the second epoch has others
    more = ["--weight_schedule", "energy=linear:0=1,2=25", "forces=piecewise:0=5,1=1"]
    more += [
        "--loss_units",
        "balanced",
        "--best_metric",
        "forces_rmse",
        "--ema",
        "--checkpoint_every_steps",
        1,
    ]
    whole = train("whole", *more)
    lines = records(whole)
    best = float("inf")
    for line in lines:
        if line["kind"] == "valid" and line["step"] > 0:
            assert line["best"] == (line["forces_rmse"] < best)
            best = min(best, line["forces_rmse"])
    units = json.loads((whole / "loss_units.json").read_text())
    assert set(units) == {"energy", "forces"}
    weights = iter([(1 / 6, 5 / 6), (13 / 14, 1 / 14)])
    for line in (line for line in lines if line["kind"] == "train"):
        of_energy, of_forces = next(weights)
        expected = of_energy * (line["energy_rmse_per_atom"] / units["energy"]) ** 2
        expected += of_forces * (line["forces_rmse"] / units["forces"]) ** 2
        assert line["loss"] == pytest.approx(expected, rel=1e-9)
    step = fit_step(monkeypatch, dies_at=3)
    with pytest.raises(Killed):
        train("run", *more)
    monkeypatch.setattr(*step)
    assert len(records(tmp_path / "run")) < len(lines)
    resumed = train("run", *more, "--resume", "auto")
    assert records(resumed) == lines
    assert all(
        torch.equal(value, weights_of(whole)[name]) for name, value in weights_of(resumed).items()
    )
    log = (whole / "train.log").read_text()
    assert "the loss is in units of the spread of the labels: energy " in log


class Killed(BaseException):
    """The process is gone."""


def fit_step(monkeypatch: pytest.MonkeyPatch, *, dies_at: int) -> tuple[Any, str, Any]:
    """Let the process die in a step; what undoes it."""
    from model_utils.run import fit

    gradients = fit.loss_and_gradients
    calls = []

    def dying(*words: Any) -> Any:
        calls.append(1)
        if len(calls) == dies_at:
            raise Killed
        return gradients(*words)

    monkeypatch.setattr(fit, "loss_and_gradients", dying)
    return fit, "loss_and_gradients", gradients


def test_the_spread_is_that_of_what_is_trained_on(tmp_path: Path) -> None:
    path = frames(tmp_path / "train.xyz", 5)
    words = {"xyz_train": [str(path)], "xyz_val": [str(path)], "loss_units": "spread"}
    options = options_of(tmp_path, **words)
    train = open_data.training_data(options, FACTS, torch.float32, seed=0).train
    units = spread.units_of(options, train, known={})
    structures = read(path, ":")
    reference = {"H": -13.6, "O": -430.0}
    energies = [
        (a.info["REF_energy"] - sum(reference[s] for s in a.symbols)) / len(a) for a in structures
    ]
    forces = np.concatenate([a.arrays["REF_forces"].reshape(-1) for a in structures])
    assert units.spread == pytest.approx(
        {"energy": np.std(energies), "forces": np.std(forces)}, rel=1e-9
    )
    kept = {"energy": 1.0, "forces": 2.0}
    assert spread.units_of(options, train, known=kept).spread == kept, (
        "a run that goes on has those it began with"
    )
    assert spread.units_of(options_of(tmp_path), train, known={}) == objective.AS_THEY_ARE
    with pytest.raises(InputError, match="the labels of the energy to train on do not differ"):
        spread.spread_of(train.subset(np.array([0])), {"energy"}, seed=0)


FOR_ABSOLUTE = (
    "is a default, for errors in eV/atom and eV/Å; in units of the spread give weights near 1, as"
)
FORCES_99 = f"--forces_weight 100 (99.0% of the loss) {FOR_ABSOLUTE} --forces_weight 1"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, [FORCES_99]),
        ({"loss": "huber"}, [FORCES_99]),
        ({"forces_weight": 1.0}, []),
        ({"loss": "ef"}, []),
        ({"loss": "forces_only"}, []),
        ({"weight_schedule": ["forces=linear:0=100,9=2"]}, []),
        ({"energy_weight": 0.0}, []),
        (
            {"stage_two": True, "forces_weight": 1.0},
            [
                (
                    "--stage_two_energy_weight 1000 (90.9% of the loss), --stage_two_forces_weight "
                    f"100 (9.1% of the loss) {FOR_ABSOLUTE} --stage_two_energy_weight 1 "
                    "--stage_two_forces_weight 1"
                )
            ],
        ),
        (
            {"stage_two": True, "stage_two_energy_weight": 2.0, "stage_two_forces_weight": 1.0},
            [FORCES_99],
        ),
    ],
)
def test_default_weights_are_for_absolute_errors(
    settings: Any, said: list[str], tmp_path: Path
) -> None:
    options = options_of(tmp_path, **settings)
    assert list(loss_advice.default_weights(options)) == said


@pytest.mark.parametrize("units", ["absolute", "spread", "balanced"])
def test_default_weights_are_warned_of_by_the_command(
    units: str, train: Callable[..., Path], tmp_path: Path
) -> None:
    log = (train("run", "--loss_units", units, "--epochs", 1) / "train.log").read_text()
    assert (f"warning: --loss_units {units}: {FORCES_99}" in log) == (units != "absolute")


@pytest.mark.parametrize(
    ("settings", "is_said"),
    [
        ({"loss": "universal"}, True),
        ({"loss": "huber"}, True),
        ({"loss": "universal", "stress_weight": 0.0}, False),
        ({"loss": "universal", "stress_weight": 2.0}, False),
        ({"loss": "huber", "weight_schedule": ["stress=linear:0=0,3=1"]}, False),
        ({"loss": "terms"}, False),
        ({"loss": "weighted"}, False),
        ({"loss": "stress"}, False),
        ({"loss": "universal", "stress_key": "none"}, False),
    ],
)
def test_stresses_that_mace_would_train_on_are_said(
    settings: Any, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = options_of(tmp_path, xyz_train=[str(crystals(tmp_path / "c.xyz"))], **settings)
    train = open_data.training_data(replace_fraction(options), FACTS, torch.float64, seed=0).train
    loss_advice.advise(options, train)
    said = (
        f"the data have labels of the stress, and --loss {settings['loss']} does not train on them"
    )
    assert (said in caplog.text) == is_said


def test_molecules_have_no_stress_to_be_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = options_of(tmp_path, xyz_train=[str(frames(tmp_path / "m.xyz", 4))], loss="universal")
    train = open_data.training_data(replace_fraction(options), FACTS, torch.float64, seed=0).train
    loss_advice.advise(options, train)
    assert "labels of the stress" not in caplog.text


def crystals(path: Path) -> Path:
    """Four waters in cells of different sizes, with a stress each."""
    rng = np.random.default_rng(3)
    made: list[Atoms] = waters(4)
    for number, atoms in enumerate(made):
        atoms.set_cell([5.0 + number, 6.0, 7.0 + number])
        atoms.pbc = True
        half = rng.normal(0, 0.02, (3, 3))
        atoms.info["REF_stress"] = half + half.T
    write(path, made, format="extxyz")
    return path


@pytest.mark.parametrize(
    ("loss", "unit"), [("virials", "V/N stress {:.3g} eV"), ("stress", "stress {:.3g} eV/Å³")]
)
def test_the_unit_of_a_virial_is_the_spread_of_virials(
    loss: str, unit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In units of their spread, labels of virials per atom have the standard deviation
    1, whatever the cells.
    """
    caplog.set_level("INFO")
    path = str(crystals(tmp_path / "crystals.xyz"))
    options = options_of(
        tmp_path,
        xyz_train=[path],
        xyz_val=[path],
        loss_units="spread",
        loss=loss,
        stress_weight=1.0,
    )
    train = open_data.training_data(options, FACTS, torch.float64, seed=0).train
    units = spread.units_of(options, train, known={})
    structures = read(path, ":")
    per_atom = [
        atoms.get_volume() / len(atoms) if loss == "virials" else 1.0 for atoms in structures
    ]
    labels = np.array(
        [
            factor * atoms.info["REF_stress"]
            for factor, atoms in zip(per_atom, structures, strict=True)
        ]
    )
    assert units.spread["stress"] == pytest.approx(np.std(labels), rel=1e-9)
    assert unit.format(np.std(labels)) in caplog.text
    batch = train.batch(range(len(train)))
    # predictions that are off by the labels less their mean: the term is 1 then
    mean = float(labels.mean())
    off = (torch.from_numpy(labels) - mean) / torch.tensor(per_atom)[:, None, None]
    predicted = {"stress": batch.labels["stress"].value + off}
    of_loss = objective.loss_of(options.loss, units)
    sums = error_sums(predicted, batch.labels, batch.sizes, of_loss, batch.volumes)
    assert float(of_loss.total(sums, batch.rows)) == pytest.approx(1.0, rel=1e-9)


def test_a_loss_that_is_no_sum_is_refused_by_the_command(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LOSSES, "root", NamedLoss(build=rooted, own_shapes=True))
    run = train("run", "--loss", "root", "--step_parts", 2, code=2)
    assert "--loss root is not a sum over structures" in capsys.readouterr().err
    assert not (run / "run_checkpoint.pt").exists()
