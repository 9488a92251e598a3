"""What a model.json must know of the data, in one pass and memory independent of
the number of structures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from dataloader.atomic_energies import add_isolated, undetermined
from dataloader.errors import InputError
from dataloader.neighbors import MAX_NEIGHBORS, GraphFault, build_graph
from dataloader.quantities import ENERGY, FORCES
from dataloader.structure import Structure, symbols

ROWS_PER_BLOCK = 4096
LEAST_FORCE = 1e-3  # eV/Å; what relaxations and symmetry leave of forces is smaller
LEAST_SPREAD = 1e-5  # eV/atom; of a thousand atoms at room temperature it is 1e-3
MAX_Z = len(chemical_symbols)
NO_ATOMS = np.zeros(MAX_Z, dtype=np.int64)  # by atomic number


class TriangularFactor:
    """R of a QR factorisation of rows that arrive one by one.

    It answers every least-squares question about the rows (RᵀR = AᵀA) in n² numbers, and without
    squaring the condition number as summing AᵀA would.
    """

    def __init__(self, n_columns: int) -> None:
        self._factor = np.zeros((0, n_columns))
        self._rows: list[NDArray[np.float64]] = []

    def add(self, row: NDArray[np.float64]) -> None:
        """Take a row, (n_columns,), into the factorisation."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_BLOCK:
            self._reduce()

    def _reduce(self) -> None:
        if self._rows:
            self._factor = np.asarray(
                np.linalg.qr(np.vstack([self._factor, *self._rows]), mode="r")
            )
            self._rows = []

    def value(self) -> NDArray[np.float64]:
        """R of the QR factorisation of all rows so far, (at most n_columns, n_columns)."""
        self._reduce()
        return self._factor


@dataclass
class HeadSums:
    """What is kept of the structures of one head."""

    structures: int = 0
    energies: int = 0
    # counts per Z, energy
    compositions: TriangularFactor = field(default_factory=lambda: TriangularFactor(MAX_Z + 1))
    fractions: TriangularFactor = field(
        default_factory=lambda: TriangularFactor(MAX_Z + 2)
    )  # 1, counts/N per Z, energy/N
    force_squares: float = 0.0
    force_components: int = 0
    isolated: dict[int, float] = field(default_factory=dict)  # Z: eV

    def has(self, z: int) -> bool:
        """Whether a structure with an energy has the element."""
        return bool(self.compositions.value()[:, z].any())


@dataclass
class DataSums:
    """Everything ``collect`` keeps."""

    heads: dict[str, HeadSums] = field(default_factory=dict)
    edges: int = 0
    atoms_with_neighbors: int = 0
    atoms: int = 0
    atoms_by_number: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(MAX_Z, dtype=np.int64)
    )

    @property
    def elements(self) -> set[int]:
        """Atomic numbers that occur."""
        return set(self.atoms_by_number.nonzero()[0].tolist())

    @property
    def avg_num_neighbors(self) -> float:
        """Edges per atom that has any; mace leaves atoms without neighbours out of the mean."""
        return self.edges / self.atoms_with_neighbors if self.atoms_with_neighbors else 1.0


class Facts(NamedTuple):
    """What statistics need of one structure, about a kilobyte: to make it
    costs, to add it does not.

    Attributes:
        identifier: a name under which a person finds the structure again.
        head: that it names, if any.
        isolated: the structure itself where it is an isolated atom, of which
            nothing else is needed.
        labels: quantities that it has labels of.
        counts: (MAX_Z,), atoms by atomic number.
        n_atoms: of the structure.
        energy: eV; None where there is none.
        force_square: sum of the squares of the force components that count, (eV/Å)²; None
            where there are no forces.
        force_components: how many those are.
        n_edges: directed edges within the cutoff.
        atoms_with_neighbors: atoms that have any.
        config_type: the word that a weight may be given for.
    """

    identifier: str
    head: str | None
    isolated: Structure | None = None
    labels: tuple[str, ...] = ()
    counts: NDArray[np.int64] = NO_ATOMS
    n_atoms: int = 0
    energy: float | None = None
    force_square: float | None = None
    force_components: int = 0
    n_edges: int = 0
    atoms_with_neighbors: int = 0
    config_type: str | None = None


def facts_of(
    structure: Structure, r_max: float, *, free_atoms_only: bool, max_neighbors: int = MAX_NEIGHBORS
) -> Facts:
    """Look at one structure.

    Args:
        structure: to train on, or an isolated atom.
        r_max: cutoff in Å, for the neighbours.
        free_atoms_only: count only the force components that the loss will count.
        max_neighbors: see ``neighbors.build_graph``.

    Raises:
        InputError: its neighbours show that it is broken.
    """
    if structure.is_isolated_atom:
        return Facts(structure.identifier, structure.head, isolated=structure)
    try:
        graph = build_graph(structure, r_max, max_neighbors)
    except GraphFault as fault:
        raise InputError(f"{structure.identifier}: {fault}") from None
    forces = _counted_forces(structure, free_atoms_only)
    return Facts(
        structure.identifier,
        structure.head,
        labels=tuple(structure.labels),
        counts=np.bincount(structure.atomic_numbers, minlength=MAX_Z),
        n_atoms=structure.n_atoms,
        energy=structure.energy if structure.teaches(ENERGY.name) else None,
        force_square=None if forces is None else float(np.square(forces).sum()),
        force_components=0 if forces is None else forces.size,
        n_edges=graph.n_edges,
        atoms_with_neighbors=len(np.unique(graph.receivers)),
        config_type=structure.config_type,
    )


def _counted_forces(structure: Structure, free_atoms_only: bool) -> NDArray[np.float64] | None:
    """Forces of all atoms, or of the free ones, eV/Å; None where there are none to learn from."""
    if structure.forces is None or not structure.teaches(FORCES.name):
        return None
    if structure.free_atoms is None or not free_atoms_only:
        return structure.forces
    return structure.forces[structure.free_atoms]


def collect(facts: Iterable[Facts], default_head: str) -> DataSums:
    """Add what was found of structures, in their order: sums of floats and factors depend on
    it in their last bits.

    Args:
        facts: of every structure, isolated atoms, which give E0s, among them.
        default_head: of structures that name none.

    Raises:
        InputError: two isolated-atom frames of one element disagree, or one has no energy.
    """
    sums = DataSums()
    for of_structure in facts:
        head = sums.heads.setdefault(of_structure.head or default_head, HeadSums())
        if of_structure.isolated is not None:
            add_isolated(head.isolated, of_structure.isolated)
            continue
        _add_labels(head, of_structure)
        sums.edges += of_structure.n_edges
        sums.atoms_with_neighbors += of_structure.atoms_with_neighbors
        sums.atoms += of_structure.n_atoms
        sums.atoms_by_number += of_structure.counts
    return sums


def _add_labels(head: HeadSums, facts: Facts) -> None:
    head.structures += 1
    if facts.energy is not None:
        counts = facts.counts.astype(float)
        head.energies += 1
        head.compositions.add(np.append(counts, facts.energy))
        n = facts.n_atoms
        head.fractions.add(np.concatenate([[1.0], counts / n, [facts.energy / n]]))
    if facts.force_square is not None:
        head.force_squares += facts.force_square
        head.force_components += facts.force_components


@dataclass(frozen=True, kw_only=True)
class ReferenceEnergies:
    """E0s of one head with where they came from."""

    values: dict[int, float]  # Z: eV
    origin: str  # a sentence for the log
    absent: tuple[int, ...] = ()  # elements that no structure has; theirs are 0
    warning: str = ""


def reference_energies(head: HeadSums, elements: Sequence[int], method: str) -> ReferenceEnergies:
    """E0s of one head; 0 for elements that none of its structures has.

    ``isolated`` takes the IsolatedAtom frames. ``lstsq`` fits total energies by composition.
    ``average`` is the same fit where compositions do not determine every element, with the shortest
    solution, as mace's "average". ``auto`` takes isolated atoms where there are some, fits the
    elements that have none, and falls back to average.

    Raises:
        InputError: the method cannot give a value for every element.
    """
    isolated = (
        {z: head.isolated[z] for z in elements if z in head.isolated}
        if method in ("auto", "isolated")
        else {}
    )
    missing = [z for z in elements if z not in isolated]
    if missing and head.energies == 0 and method != "isolated":
        raise InputError(
            "no energies to fit E0s to; name them with --energy_key or give --E0s as JSON"
        )
    absent = [z for z in missing if not head.has(z)] if head.energies else []
    missing = [z for z in missing if z not in absent]
    values = {**isolated, **dict.fromkeys(absent, 0.0)}
    if not missing:
        return ReferenceEnergies(
            values=values, origin="from IsolatedAtom frames", absent=tuple(absent)
        )
    if method == "isolated":
        raise InputError(
            f"no IsolatedAtom frame of {symbols(missing)}; add them, or let --E0s auto "
            "fit these elements"
        )
    fitted, rank = _fit(head, missing, isolated)
    origin = f"least squares over {head.energies} energies"
    warning = ""
    if rank < len(missing):
        if method == "lstsq":
            raise InputError(
                f"compositions determine only {rank} of {len(missing)} E0s; use --E0s average, or "
                "add isolated atoms"
            )
        origin = (
            f"average: compositions determine only {rank} of {len(missing)} elements, "
            "shortest solution taken"
        )
        warning = undetermined("E0s", rank, fitted)
    if isolated:
        origin = (
            f"from IsolatedAtom frames for {symbols(list(isolated))}; {origin} for "
            f"{symbols(missing)}"
        )
    values |= fitted
    return ReferenceEnergies(values=values, origin=origin, absent=tuple(absent), warning=warning)


def _fit(
    head: HeadSums, missing: Sequence[int], known: Mapping[int, float]
) -> tuple[dict[int, float], int]:
    factor = head.compositions.value()
    target = factor[:, -1] - sum(
        (factor[:, z] * e for z, e in known.items()), np.zeros(len(factor))
    )
    solution, _, rank, _ = np.linalg.lstsq(factor[:, list(missing)], target, rcond=None)
    return dict(zip(missing, solution.tolist(), strict=True)), int(rank)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Scale and shift of the interaction energy of one head."""

    scale: float
    shift: float  # eV
    origin: str  # of the scale, for the log
    warning: str = ""  # why it is not what was asked for


def scale_and_shift(head: HeadSums, energies: Mapping[int, float], scaling: str) -> Scaling:
    """Scale and shift (eV) of the interaction energy per atom, as mace computes them.

    The shift is the mean over configurations of (E − ΣE0) / n_atoms. The scale is the root mean
    square of the force components (``rms_forces``), the standard deviation of the same energies
    (``std``), or 1 (``none``, shift 0). What is asked for and no more than numerical noise, as the
    forces of perfect crystals, gives no scale: the other of the two is taken, or 1, with a warning.
    """
    if scaling == "none":
        return Scaling(scale=1.0, shift=0.0, origin="no scaling")
    shift, spread = _mean_and_spread(head, energies)
    rms = (head.force_squares / head.force_components) ** 0.5 if head.force_components else 0.0
    choices = {
        "rms_forces": (
            rms,
            LEAST_FORCE,
            f"rms of the forces, {rms:.4g} eV/Å",
            "rms_forces scaling",
        ),
        "std": (
            spread,
            LEAST_SPREAD,
            f"spread of the energies, {spread:.4g} eV/atom",
            "std scaling",
        ),
    }
    size, least, text, origin = choices.pop(scaling)
    if size >= least:
        return Scaling(scale=size, shift=shift, origin=origin)
    ((other, enough, other_text, other_origin),) = choices.values()
    reason = (
        "there are no forces to take the scale from (--forces_key names their entry)"
        if scaling == "rms_forces" and not head.force_components
        else f"the {text}, is noise and gives no scale"
    )
    if other >= max(enough, LEAST_FORCE):
        warning = f"{reason}: the {other_text}, is taken in its place"
        return Scaling(scale=other, shift=shift, origin=other_origin, warning=warning)
    return Scaling(
        scale=1.0,
        shift=shift,
        origin="no scaling",
        warning=f"{reason}: 1 is taken",
    )


def _mean_and_spread(head: HeadSums, energies: Mapping[int, float]) -> tuple[float, float]:
    """Mean and standard deviation over configurations of (E − ΣE0) / n_atoms, eV."""
    factor = head.fractions.value()
    weights = np.zeros(MAX_Z + 2)
    weights[-1] = 1.0
    for z, energy in energies.items():
        weights[1 + z] = -energy
    residual = factor @ weights  # R-image of (E - ΣE0)/n of every configuration
    ones = factor[:, 0]  # R-image of the column of ones
    shift = float(residual @ ones / (ones @ ones)) if head.energies else 0.0
    spread = float(np.linalg.norm(residual - shift * ones)) / max(head.energies - 1, 1) ** 0.5
    return shift, spread
