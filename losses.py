"""The loss: tensors in, sums and counts out, divided once at the end.

Two tables are open to additions, of a plug-in too: `SHAPES`, what becomes of the errors of
one quantity, and `LOSSES`, whole losses. Their keys are what a user types after
``--forces_loss`` and ``--loss``.

loss = Σ over quantities of  weight · mean over labelled entries of ℓ(error)

with errors of energies per atom, of force components, of the nine stress components, each
divided by the unit of its term, which is 1 unless the spread of the data is taken. A mean is Σ
w·ℓ / number of labelled entries, global over micro-batches and ranks: a mean of batch means
would weigh small batches more. The sums are those of ``model_utils.metrics`` too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from dataloader.batch import Label, Rows
from dataloader.errors import InputError
from dataloader.quantities import DIPOLE, ENERGY, FORCES, QUANTITIES, STRESS, Quantity

# sums that are kept of every quantity
COLUMNS = ("loss", "squared", "absolute", "undivided", "rows")
STRUCTURES = "structures"
ATOMS = "atoms"

# by quantity: (n_rows, *components), in its unit; energies without reference energies
Prediction = Mapping[str, Tensor]


# Shapes of a term


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How errors of one quantity become numbers that are averaged.

    Attributes:
        of: errors (n_rows, numbers), labels (n_rows, numbers) and δ → (n_rows, numbers), or
            (n_rows,) where ``by_row``.
        text: of the term in log lines, with ``{}`` for the quantity's symbol.
        by_row: a row counts as one entry of the mean; otherwise each of its numbers does.
    """

    of: Callable[[Tensor, Tensor, float], Tensor]
    text: str
    by_row: bool = False


def mse(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """e²."""
    return error * error


def mae(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """|e|."""
    return error.abs()


def huber(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """e²/2 up to δ and δ(|e| − δ/2) beyond (Huber, Ann. Math. Stat. 35, 73, 1964)."""
    return torch.nn.functional.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=delta
    )


def l2norm(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """Euclidean norm of a row's error (Chanussot et al., ACS Catal. 11, 6059, 2021).

    Its gradient has the same length for every row, so a force error of 70 eV/Å cannot
    make training diverge.
    """
    return torch.linalg.vector_norm(error, dim=1)


def conditional_huber(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """Huber with a δ that shrinks where the label is large, so that violent structures
    weigh less (MACE-MP-0).

    δ is whole below a length of the label's row of 100 (eV/Å for forces), and 0.7, 0.4 and 0.1 of
    it from 100, 200 and 300 on, as in mace-torch's ``conditional_huber_forces``.
    """
    length = torch.linalg.vector_norm(label, dim=1, keepdim=True)  # (n_rows, 1)
    delta_of_row = torch.full_like(length, delta)
    # scalars, so that nothing is copied to a GPU
    for bound, share in DELTA_OF_LARGE_LABELS.items():
        delta_of_row = torch.where(length >= bound, share * delta, delta_of_row)
    size = error.abs()
    linear = delta_of_row * (size - 0.5 * delta_of_row)
    return torch.where(size < delta_of_row, 0.5 * error * error, linear)


# from this length of a row on: part of δ
DELTA_OF_LARGE_LABELS = {100.0: 0.7, 200.0: 0.4, 300.0: 0.1}
SHAPES: dict[str, Shape] = {
    "mse": Shape(of=mse, text="{}²"),
    "huber": Shape(of=huber, text="huber({})"),
    "mae": Shape(of=mae, text="|{}|"),
    "l2norm": Shape(of=l2norm, text="‖{}‖", by_row=True),
    "conditional_huber": Shape(of=conditional_huber, text="conditional_huber({})"),
}


# The loss


@dataclass(frozen=True, kw_only=True)
class Term:
    """The part that one quantity has in the loss.

    Attributes:
        weight: of the mean.
        shape: a name in ``SHAPES``.
        unit: in which errors are taken before they are shaped, in the unit of the
            quantity's own errors.
        as_virial: errors are multiplied by volume / number of atoms: those of a stress become those
            of the virial per atom, in eV.
    """

    weight: float = 0.0
    shape: str = "mse"
    unit: float = 1.0
    as_virial: bool = False

    def text(self, symbol: str) -> str:
        """``100 F²``, ``100 (F/0.8)²``, ``1 huber(V/N S)``."""
        error = f"V/N {symbol}" if self.as_virial else symbol
        error = error if self.unit == 1 else f"{error}/{self.unit:.3g}"
        shape = SHAPES[self.shape].text
        if shape.startswith("{}") and error != symbol:  # nothing of its own around it
            error = f"({error})"
        return f"{self.weight:g} {shape.format(error)}"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The terms of a loss by quantity; one that is not named has the weight 0."""

    terms: Mapping[str, Term]
    # in the unit of the errors: eV per atom, eV/Å, eV/Å³ unless a term has its own
    huber_delta: float = 0.01
    divisible: bool = True  # the loss of a batch is the sum of those of its parts

    @classmethod
    def of(
        cls,
        *,
        energy: float = 1.0,
        forces: float = 100.0,
        stress: float = 0.0,
        shapes: Mapping[str, str] | None = None,
        huber_delta: float = 0.01,
    ) -> "Loss":
        """A loss of energy, forces and stress with these weights; squared errors where
        no other shape is given.
        """
        weights = {ENERGY.name: energy, FORCES.name: forces, STRESS.name: stress}
        shape_of = {name: "mse" for name in weights} | dict(shapes or {})
        terms = {
            name: Term(weight=weight, shape=shape_of[name]) for name, weight in weights.items()
        }
        return cls(terms=terms, huber_delta=huber_delta)

    def weight(self, quantity: str) -> float:
        """The weight of a quantity's term."""
        return self.terms.get(quantity, Term()).weight

    def text(self) -> str:
        """``1 E² + 100 F²``: E of the energy per atom, F of a force component, S
        of a stress component.
        """
        return " + ".join(
            term.text(QUANTITIES[name].symbol)
            for name, term in self.terms.items()
            if term.weight > 0
        )

    @property
    def needs_volumes(self) -> bool:
        """Whether ``error_sums`` must be given the volumes of the structures."""
        return any(term.as_virial for term in self.terms.values())

    def total(self, sums: Tensor, rows: Rows) -> Tensor:
        """The loss from the sums of ``error_sums`` and the labelled rows
        behind them; differentiable.

        A term without a labelled row is zero.
        """
        parts = [
            term.weight
            / max(rows[name] * entries_per_row(QUANTITIES[name], term), 1)
            * sums[position(name, "loss")]
            for name, term in self.terms.items()
        ]
        return reduce(torch.add, parts)


# Whole losses


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What a named loss is built from.

    Attributes:
        weights: of the terms by quantity.
        shapes: names of their shapes by quantity, where the user chooses them;
            squared errors otherwise.
        huber_delta: see `Loss`.
    """

    weights: Mapping[str, float]
    shapes: Mapping[str, str] = field(default_factory=dict)
    huber_delta: float = 0.01


@dataclass(frozen=True, kw_only=True)
class NamedLoss:
    """A whole loss under the name that a user gives after ``--loss``.

    Attributes:
        build: settings → the loss; a `Loss`, or one with another ``total`` of the same sums.
        own_shapes: it brings the shapes of its terms, and takes none from the settings.
        only: quantities that it has a term of; None: of all.
        weights: of terms whose weight is 0 unless the user gives one.
        fixed: weights that the user cannot choose.
        theirs: weights that mace-torch's loss of this name has unless the user gives one,
            where they are 0 here.
        theirs_in_stage_two: the loss of which mace-torch makes its second stage in place of this.
    """

    build: Callable[[LossSettings], Loss]
    own_shapes: bool = False
    only: tuple[str, ...] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)
    theirs: Mapping[str, float] = field(default_factory=dict)
    theirs_in_stage_two: str | None = None


def terms_loss(settings: LossSettings) -> Loss:
    """Every term has the shape that its own option gives it."""
    terms = {
        name: Term(weight=weight, shape=settings.shapes.get(name, "mse"))
        for name, weight in settings.weights.items()
    }
    return Loss(terms=terms, huber_delta=settings.huber_delta)


def shaped(others: str = "mse", **shapes: str) -> Callable[[LossSettings], Loss]:
    """What builds a loss of given shapes.

    Args:
        others: shape of the terms that are not named.
        shapes: of terms by quantity.
    """

    def build(settings: LossSettings) -> Loss:
        of_all = {name: shapes.get(name, others) for name in settings.weights}
        return terms_loss(replace(settings, shapes=of_all))

    return build


def virials_loss(settings: LossSettings) -> Loss:
    """Squared errors; of the stress those of the virial per atom, V/N Δσ:
    mace-torch's ``virials``.
    """
    loss = terms_loss(replace(settings, shapes={}))
    of_virial = replace(loss.terms[STRESS.name], as_virial=True)
    return replace(loss, terms={**loss.terms, STRESS.name: of_virial})


# Those of mace-torch have its names. It multiplies labels and predictions of `universal` with a
# structure's weight before it compares them with δ, and passes weights over in `huber` and in the
# forces of `l1l2energyforces`; here they multiply the term, as in every other loss. With weights of
# 1 the values are equal.
ENERGY_AND_FORCES = (ENERGY.name, FORCES.name)
WITH_STRESS = {STRESS.name: 1.0}
WITH_DIPOLE = {DIPOLE.name: 1.0}
LOSSES: dict[str, NamedLoss] = {
    "terms": NamedLoss(build=terms_loss),
    "mse": NamedLoss(build=shaped("mse"), own_shapes=True),
    "huber": NamedLoss(
        build=shaped("huber"),
        own_shapes=True,
        theirs=WITH_STRESS,
        theirs_in_stage_two="weighted",
    ),
    "universal": NamedLoss(
        build=shaped("huber", forces="conditional_huber"), own_shapes=True, theirs=WITH_STRESS
    ),
    "weighted": NamedLoss(build=shaped("mse"), own_shapes=True, only=ENERGY_AND_FORCES),
    "ef": NamedLoss(
        build=shaped("mse"),
        own_shapes=True,
        only=ENERGY_AND_FORCES,
        fixed={ENERGY.name: 1.0, FORCES.name: 1.0},
        theirs_in_stage_two="weighted",
    ),
    "forces_only": NamedLoss(build=shaped("mse"), own_shapes=True, only=(FORCES.name,)),
    "stress": NamedLoss(build=shaped("mse"), own_shapes=True, weights=WITH_STRESS),
    "virials": NamedLoss(build=virials_loss, own_shapes=True, weights=WITH_STRESS),
    "l1l2energyforces": NamedLoss(
        build=shaped("mae", forces="l2norm"),
        own_shapes=True,
        only=ENERGY_AND_FORCES,
        theirs_in_stage_two="weighted",
    ),
    # mace-torch multiplies the term of these two by 100 besides its weight
    "dipole": NamedLoss(build=terms_loss, only=(DIPOLE.name,), weights=WITH_DIPOLE),
    "energy_forces_dipole": NamedLoss(
        build=terms_loss, only=(*ENERGY_AND_FORCES, DIPOLE.name), weights=WITH_DIPOLE
    ),
}


def entries_per_row(quantity: Quantity, term: Term) -> int:
    """Entries of the mean of a term that one labelled row brings."""
    return 1 if SHAPES[term.shape].by_row else quantity.numbers


# Sums


def sum_names() -> list[str]:
    """Names of the sums in their order, ``<quantity> <column>`` of every quantity,
    then structures and atoms.
    """
    return [*(f"{name} {column}" for name in QUANTITIES for column in COLUMNS), STRUCTURES, ATOMS]


def position(quantity: str, column: str) -> int:
    """Where among the sums one of a quantity stands."""
    return list(QUANTITIES).index(quantity) * len(COLUMNS) + COLUMNS.index(column)


def no_sums(device: torch.device) -> Tensor:
    """All sums zero, (n_sums,), float64."""
    return torch.zeros(len(sum_names()), dtype=torch.float64, device=device)


def error_sums(
    prediction: Prediction,
    labels: Mapping[str, Label],
    sizes: Tensor,
    loss: Loss,
    volumes: Tensor | None = None,
) -> Tensor:
    """Sums over the labelled entries of a batch.

    Args:
        prediction: what was computed; a quantity that is not there has no sums.
        labels: of every quantity.
        sizes: (n_structures,), float64, numbers of atoms.
        loss: shapes of the terms.
        volumes: (n_structures,), float64, Å³; needed where a term is one of virials
            (``Loss.needs_volumes``).

    Returns:
        (n_sums,), float64, on the batch's device, in the order of ``sum_names``; the first of each
        quantity carries the graph. Nothing here waits for a GPU.
    """
    zero = torch.zeros((), dtype=torch.float64, device=sizes.device)
    sums: list[Tensor] = []
    volume_per_atom = None if volumes is None else volumes / sizes
    for name, quantity in QUANTITIES.items():
        if name in prediction:
            sums += _sums_of(quantity, prediction[name], labels[name], sizes, loss, volume_per_atom)
        else:
            sums += [zero] * len(COLUMNS)
    return torch.stack([*sums, torch.full_like(zero, len(sizes)), sizes.sum()])


def _sums_of(
    quantity: Quantity,
    predicted: Tensor,
    label: Label,
    sizes: Tensor,
    loss: Loss,
    volume_per_atom: Tensor | None,
) -> list[Tensor]:
    """The sums of one quantity in the order of ``COLUMNS``, scalars in float64; the
    first carries the graph.
    """
    by_row = (len(label.mask), quantity.numbers)
    # differences in float64: at 10⁵ eV a float32 step is 8 meV
    target = label.value.reshape(by_row)
    difference = predicted.to(torch.float64).reshape(by_row) - target
    undivided = torch.where(label.mask[:, None], difference, 0.0)  # (n_rows, numbers)
    error = undivided / sizes[:, None] if quantity.over_atoms else undivided
    if quantity.over_atoms:
        target = target / sizes[:, None]
    term = loss.terms.get(quantity.name, Term())
    shaped_error = error
    if term.as_virial:
        assert volume_per_atom is not None, "the loss needs volumes"
        shaped_error = shaped_error * volume_per_atom[:, None]
    if term.unit != 1:
        shaped_error = shaped_error / term.unit
    shape = SHAPES[term.shape]
    entries = shape.of(shaped_error, target, loss.huber_delta)
    expected = by_row[:1] if shape.by_row else by_row
    if entries.shape != expected:
        raise InputError(
            f"the loss shape {term.shape!r} gives numbers of shape {tuple(entries.shape)} for "
            f"errors of shape {by_row}, expected {expected}: one for each, not yet averaged"
        )
    per_row = entries if entries.ndim == 1 else entries.sum(dim=1)
    seen = error.detach()  # metrics have no gradient
    return [
        (label.weight * per_row).sum(),
        (seen**2).sum(),
        seen.abs().sum(),
        undivided.detach().abs().sum(),
        label.mask.sum(dtype=torch.float64),
    ]
