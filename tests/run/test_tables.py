"""What a plug-in may add, added from here and used through the functions of a run; and
mace's own universal loss.
"""

import ast
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import losses
import optimizer
from conftest import ROOT
from dataloader.batch import Label
from dataloader.batching import Budget
from losses import LOSSES, SHAPES, Loss, LossSettings, NamedLoss, Shape, Term, error_sums
from model_utils.errors import InputError
from model_utils.models import architecture
from model_utils.run import loggers, objective, optimization
from model_utils.run.beginnings.resumed_rate import RateChange, change_rate
from model_utils.run.fit_plan import FitPlan, Stage
from model_utils.run.loggers import LOGGERS
from model_utils.run.step_counts import StepCounts
from model_utils.run.table_entry import entry_of
from model_utils.run.train_state import Progress
from model_utils.settings import reading
from model_utils.settings.declared import declared
from model_utils.settings.options import ConvertOptions, TrainOptions
from model_utils.settings.table_names import FORMS_OF_STEP, NamesOf
from model_utils.tasks import conversion
from optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerSettings,
    Schedule,
    ScheduleKind,
    ScheduleSettings,
    ScheduleTime,
    build_optimizer,
)

# six batches to an epoch
Batches: Any = SimpleNamespace(
    n_batches=lambda epoch: 6, structures_per_epoch=6, budget=Budget(structures=1)
)


def options_of(tmp_path: Any, **settings: Any) -> TrainOptions:
    """The options of a run, some of them other than by default and as if no flag
    had been read for them.
    """
    place = str(tmp_path)
    options = reading.parse(
        TrainOptions, ["--input_json", place, "--output_checkpoint", place, "--xyz_train", place]
    )
    assert options is not None
    for name, value in settings.items():
        group = next(
            group
            for group in ("loss", "optimizer", "stage_two", "run")
            if hasattr(getattr(options, group), name)
        )
        changed = dataclasses.replace(getattr(options, group), **{name: value})
        options = dataclasses.replace(options, **{group: changed})
    return options


@pytest.fixture
def polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that comes down as a power of what is left; the power is that of --lr_factor."""

    def power(settings: ScheduleSettings, time: ScheduleTime) -> float:
        return (time.left / time.left_at_start) ** settings.factor

    kind = ScheduleKind(factor=power, has_end=True, uses={"factor": "lr_factor"})
    monkeypatch.setitem(SCHEDULES, "polynomial", kind)


@pytest.mark.usefixtures("polynomial")
def test_a_schedule_that_was_added_runs_resumes_and_has_an_end(tmp_path: Any) -> None:
    options = options_of(tmp_path, scheduler="polynomial", lr_factor=0.5, min_lr=0.2, epochs=4)
    settings = optimization.schedule_settings(options, Batches)
    assert (settings.factor, settings.horizon) == (0.5, 4.0)
    schedule = Schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), settings)
    rates = [schedule.rate()]
    for _ in range(5):
        schedule.after_epoch()
        rates.append(schedule.rate())
    expected = [0.2 + 0.8 * (max(4 - epoch, 0) / 4) ** 0.5 for epoch in range(6)]
    assert rates == pytest.approx(expected, rel=1e-12)

    again = Schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), settings)
    again.load_state_dict(schedule.state_dict())
    assert again.rate() == schedule.rate()


@pytest.mark.usefixtures("polynomial")
def test_a_longer_run_would_stand_still_after_the_end_of_an_added_schedule() -> None:
    """What resumes a run asks the entry whether the schedule ends; it knows no names of kinds."""
    settings = ScheduleSettings(kind="polynomial", factor=1.0, horizon=4)
    schedule = Schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), settings)
    schedule.after_epoch()
    run: Any = SimpleNamespace(schedule=schedule, progress=Progress(epoch=1, step=6))
    plan = FitPlan(epochs=9, stages=(Stage(loss=Loss.of()),))
    stored = {"epochs": 4, "max_steps": None}
    with pytest.raises(
        InputError, match="the polynomial schedule has come down to rate 0 by epoch 4 and stays"
    ):
        change_rate(run, plan, StepCounts(Batches, 1), stored, RateChange())
    notes = change_rate(run, plan, StepCounts(Batches, 1), stored, RateChange(lr=0.5))
    assert notes[-1].startswith("polynomial schedule: 0.5 now, 0.0625 in the last epoch")


def test_an_optimizer_that_was_added_moves_weights(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def momentum(
        groups: list[dict[str, Any]], settings: OptimizerSettings
    ) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.beta1)

    monkeypatch.setitem(OPTIMIZERS, "momentum", momentum)
    options = options_of(tmp_path, optimizer="momentum", lr=0.5, beta1=0.25, lr_of=("bias=0.125",))
    module = nn.Linear(2, 2)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    built = build_optimizer(module, optimization.optimizer_settings(options.optimizer))
    assert [group["momentum"] for group in built.param_groups] == [0.25, 0.25]
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    assert torch.allclose(before["weight"] - module.weight, torch.tensor(0.5))
    assert torch.allclose(before["bias"] - module.bias, torch.tensor(0.125))


def labelled(n_atoms: int, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Label], Tensor]:
    """Prediction, labels and sizes of two fully labelled structures; errors small and large,
    forces up to 400 eV/Å.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    forces = numbers(n_atoms, 3)
    lengths = torch.linspace(0.5, 400.0, n_atoms, dtype=torch.float64)
    lengths[n_atoms // 2] = 200.0  # where δ changes
    forces = forces / forces.norm(dim=1, keepdim=True) * lengths[:, None]
    values = {"energy": 10 * numbers(2), "forces": forces, "stress": numbers(2, 3, 3)}
    sizes = torch.tensor([n_atoms // 3, n_atoms - n_atoms // 3], dtype=torch.float64)
    errors = {name: 0.02 * numbers(*value.shape) for name, value in values.items()}
    errors["energy"] = errors["energy"] * sizes
    prediction = {
        name: (value + errors[name]).requires_grad_(True) for name, value in values.items()
    }
    ones = {name: torch.ones(len(value), dtype=torch.float64) for name, value in values.items()}
    labels = {name: Label(value, ones[name] > 0, ones[name]) for name, value in values.items()}
    return prediction, labels, sizes


def value_of(
    loss: Loss, prediction: dict[str, Tensor], labels: dict[str, Label], sizes: Tensor
) -> Tensor:
    rows = {name: len(label.mask) for name, label in labels.items()}
    return loss.total(error_sums(prediction, labels, sizes, loss), rows)


VOLUMES = torch.tensor([90.0, 240.0], dtype=torch.float64)
WEIGHTS = {"energy": 1.5, "forces": 10.0, "stress": 3.0}
OWN = {
    "weight": [0.5, 3.0],
    "energy_weight": [2.0, 0.25],
    "forces_weight": [1.0, 4.0],
    "stress_weight": [7.0, 0.1],
}
# name: mace's class, our weights by its words, and whether it honours weights of structures
MACES = {
    "weighted": ("WeightedEnergyForcesLoss", ("energy", "forces"), True),
    "forces_only": ("WeightedForcesLoss", ("forces",), True),
    "stress": ("WeightedEnergyForcesStressLoss", ("energy", "forces", "stress"), True),
    "virials": ("WeightedEnergyForcesVirialsLoss", ("energy", "forces", "virials"), True),
    "huber": ("WeightedHuberEnergyForcesStressLoss", ("energy", "forces", "stress"), False),
    "universal": ("UniversalLoss", ("energy", "forces", "stress"), False),
    "l1l2energyforces": ("WeightedEnergyForcesL1L2Loss", ("energy", "forces"), False),
}


class MacesBatch(dict[str, Tensor]):
    """Labels and weights as mace's losses look them up."""

    def __init__(
        self, labels: dict[str, Label], sizes: Tensor, own: dict[str, list[float]]
    ) -> None:
        super().__init__({name: label.value for name, label in labels.items()})
        self["virials"] = -self["stress"] * VOLUMES[:, None, None]
        self.ptr = torch.tensor([0, *sizes.cumsum(0).int().tolist()])
        for name in (*OWN, "virials_weight"):
            values = own.get("stress_weight" if name == "virials_weight" else name, [1.0, 1.0])
            setattr(self, name, torch.tensor(values, dtype=torch.float64))


def with_weights(
    labels: dict[str, Label], sizes: Tensor, own: dict[str, list[float]]
) -> dict[str, Label]:
    """Labels with the weights of the structures, as a batch of ours has them."""
    weighted = {}
    for name, label in labels.items():
        weights = [own.get(word, [1.0, 1.0]) for word in ("weight", f"{name}_weight")]
        weight = torch.tensor(weights, dtype=torch.float64).prod(dim=0)
        rows = weight.repeat_interleave(sizes.long()) if name == "forces" else weight
        weighted[name] = label._replace(weight=rows)
    return weighted


@pytest.mark.parametrize("name", MACES)
def test_a_loss_of_maces_name_is_maces(name: str, tmp_path: Any) -> None:
    from mace.modules import loss as maces

    kind, words, honours_weights = MACES[name]
    own = OWN if honours_weights else {}
    prediction, labels, sizes = labelled(30)
    options = options_of(
        tmp_path, loss=name, **{f"{q}_weight": w for q, w in WEIGHTS.items() if q in _terms(words)}
    )
    ours = objective.loss_of(options.loss)
    rows = {quantity: len(label.mask) for quantity, label in labels.items()}
    value = ours.total(
        error_sums(prediction, with_weights(labels, sizes, own), sizes, ours, VOLUMES), rows
    )

    torch.set_default_dtype(torch.float64)
    their_words = {
        f"{word}_weight": WEIGHTS["stress" if word == "virials" else word] for word in words
    }
    theirs = getattr(maces, kind)(**their_words)
    predicted = {**prediction, "virials": -prediction["stress"] * VOLUMES[:, None, None]}
    expected = theirs(MacesBatch(labels, sizes, own), predicted)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-10, abs=0)
    terms = [prediction[quantity] for quantity in _terms(words)]
    gradients = torch.autograd.grad(value, terms)
    for mine, of_mace in zip(gradients, torch.autograd.grad(expected, terms), strict=True):
        assert float(of_mace.abs().max()) > 0
        assert (mine - of_mace).abs().max() <= 1e-10 * of_mace.abs().max()


def _terms(words: tuple[str, ...]) -> list[str]:
    return ["stress" if word == "virials" else word for word in words]


def test_ef_has_weights_of_one(tmp_path: Any) -> None:
    assert objective.loss_of(options_of(tmp_path, loss="ef").loss).text() == "1 E² + 1 F²"
    with pytest.raises(InputError, match="--loss ef gives the energy the weight 1, and 3 is given"):
        objective.loss_of(options_of(tmp_path, loss="ef", energy_weight=3.0).loss)


def test_a_weight_of_a_term_that_the_loss_lacks_is_refused(tmp_path: Any) -> None:
    options = options_of(tmp_path, loss="weighted", stress_weight=2.0)
    with pytest.raises(
        InputError, match="--loss weighted has no term of the stress, and its weight is given as 2"
    ):
        objective.loss_of(options.loss)
    assert objective.trained_on(options_of(tmp_path, loss="forces_only")) == {"forces"}
    assert objective.trained_on(options_of(tmp_path, loss="virials")) == {
        "energy",
        "forces",
        "stress",
    }


def test_the_shape_of_a_term_sees_the_label() -> None:
    """The same error counts less where the label is large, and δ changes
    exactly at 100, 200 and 300.
    """
    error = torch.full((5, 3), 1.0, dtype=torch.float64)
    label = torch.tensor(
        [[99.999, 0, 0], [100, 0, 0], [0, 200, 0], [0, 0, 300], [0, 0, 0]], dtype=torch.float64
    )
    found = SHAPES["conditional_huber"].of(error, label, 0.01)[:, 0].tolist()
    expected = [delta * (1 - delta / 2) for delta in (0.01, 0.007, 0.004, 0.001, 0.01)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_shape_that_was_added_is_a_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative errors, which only a shape that sees the label can have; a row counts once."""

    def relative(error: Tensor, label: Tensor, delta: float) -> Tensor:
        return error.norm(dim=1) / (label.norm(dim=1) + delta)

    monkeypatch.setitem(SHAPES, "relative", Shape(of=relative, text="relative({})", by_row=True))
    prediction, labels, sizes = labelled(6)
    loss = Loss.of(energy=0.0, forces=2.0, shapes={"forces": "relative"}, huber_delta=0.5)
    forces = labels["forces"].value
    expected = (
        2.0 * ((prediction["forces"] - forces).norm(dim=1) / (forces.norm(dim=1) + 0.5)).mean()
    )
    assert float(value_of(loss, prediction, labels, sizes)) == pytest.approx(
        float(expected), rel=1e-12
    )
    assert loss.text() == "2 relative(F)"


def test_a_whole_loss_that_was_added_has_its_own_total(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Logarithmic(Loss):
        def total(self, sums: Tensor, rows: Any) -> Tensor:
            return super().total(sums, rows).log()

    def build(settings: LossSettings) -> Loss:
        terms = {name: Term(weight=weight) for name, weight in settings.weights.items()}
        return Logarithmic(terms=terms)

    monkeypatch.setitem(LOSSES, "logarithmic", NamedLoss(build=build, own_shapes=True))
    prediction, labels, sizes = labelled(6)
    options = options_of(
        tmp_path, loss="logarithmic", forces_weight=7.0, stage_two=True, start_stage_two=3
    )
    first, second = objective.stages(options)
    plain = Loss.of(energy=1.0, forces=7.0)
    expected = value_of(plain, prediction, labels, sizes).log()
    assert float(value_of(first.loss, prediction, labels, sizes)) == float(expected)
    assert isinstance(second.loss, Logarithmic)
    assert (second.start, second.lr, second.new_best) == (3, 0.001, True)


def test_a_loss_with_shapes_of_its_own_takes_no_other(tmp_path: Any) -> None:
    options = options_of(tmp_path, loss="universal", forces_loss="mae")
    with pytest.raises(
        InputError, match="--loss universal has shapes of its own, and mae is given for the forces"
    ):
        objective.loss_of(options.loss)
    assert (
        "conditional_huber(F)"
        in objective.loss_of(options_of(tmp_path, loss="universal").loss).text()
    )


@pytest.mark.parametrize(
    ("build", "setting", "words"),
    [
        (
            lambda o: objective.loss_of(o.loss),
            {"loss": "univeral"},
            "--loss 'univeral' is not known; did you mean universal? there are",
        ),
        (
            lambda o: optimization.optimizer_settings(o.optimizer),
            {"optimizer": "adamq"},
            "--optimizer 'adamq' is not known; did you mean adam",
        ),
        (
            lambda o: optimization.schedule_settings(o, Batches),
            {"scheduler": "cos"},
            "--scheduler 'cos' is not known",
        ),  # type: ignore[arg-type]
    ],
)
def test_a_name_that_no_table_has(
    build: Callable[[Any], Any], setting: Any, words: str, tmp_path: Any
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        build(options_of(tmp_path, **setting))


def test_an_entry_is_found_by_its_name() -> None:
    assert entry_of({"a": 1}, "a", "--letter") == 1
    with pytest.raises(InputError, match="--letter 'c' is not known; there are a, b"):
        entry_of({"a": 1, "b": 2}, "c", "--letter")


@pytest.mark.parametrize(
    ("option", "table"),
    [
        ("loss", LOSSES),
        ("loggers", {name: kind for name, kind in LOGGERS.items() if name != "console"}),
    ],
)
def test_the_help_of_an_option_names_what_the_table_has(option: str, table: Any) -> None:
    text = (ROOT / "Parameters.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| `--{option}` |"))
    assert [name for name in table if f"`{name}`" not in line] == []


@pytest.mark.parametrize(
    ("module", "table"),
    [
        (optimizer, "SCHEDULES"),
        (optimizer, "OPTIMIZERS"),
        (losses, "SHAPES"),
        (losses, "LOSSES"),
        (loggers, "LOGGERS"),
    ],
)
def test_a_table_is_a_plain_dict_with_its_names_written_out(module: Any, table: str) -> None:
    """So that names can be read from the text, without the seconds that torch takes to import."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    [declared] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table
    ]
    assert isinstance(declared, ast.Dict)
    assert [ast.literal_eval(key) for key in declared.keys if key is not None] == list(
        getattr(module, table)
    )


def test_step_takes_what_families_of_networks_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is imported the names are those of MACE's text; afterwards a
    plug-in's family adds its own.
    """
    of_mace = ("fast", "reference", "cueq", "oeq")
    assert tuple(architecture.ARCHITECTURES["MACE"].forms) == of_mace
    with monkeypatch.context() as bare:
        for module in ("model_utils.models.architecture", "model_utils.models.mace_architecture"):
            bare.delitem(sys.modules, module)
        assert FORMS_OF_STEP.names() == of_mace
    monkeypatch.setitem(
        architecture.ARCHITECTURES,
        "Toy",
        SimpleNamespace(forms={"reference": None, "triton": None}),
    )
    assert FORMS_OF_STEP.names() == (*of_mace, "triton")
    words = ["--input_json", "x", "--output_checkpoint", "y", "--xyz_train", "z", "--step"]
    options = reading.parse(TrainOptions, [*words, "triton"])
    assert options is not None
    assert options.run.step == "triton"
    with pytest.raises(InputError, match="'tritn' is not known; did you mean triton"):
        reading.parse(TrainOptions, [*words, "tritn"])


def test_convert_takes_every_form_that_maces_family_offers() -> None:
    assert tuple(conversion.FORMS) == tuple(architecture.ARCHITECTURES["MACE"].exports)
    assert (
        next(option for option in declared(ConvertOptions) if option.name == "to").marker(NamesOf)
        is not None
    )


@pytest.mark.parametrize("quantity", ["energy", "forces"])
def test_a_form_whose_numbers_are_none_is_never_taken_for_equal(quantity: str) -> None:
    """Of energies and forces either may be NaN; Python's max would pass over the second."""
    expected = {"energy": torch.ones(2), "forces": torch.ones(2, 3)}
    computed = {name: tensor.clone() for name, tensor in expected.items()}
    computed[quantity][0] = torch.nan
    assert not conversion._deviation(expected, computed) <= 1.0
