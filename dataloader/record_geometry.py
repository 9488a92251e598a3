"""Elements, positions, cell and periodic directions of a record, under the names
that people give them.
"""

from collections.abc import Callable

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from numpy.typing import NDArray

from dataloader.entry_values import RecordError, any_array, are_truths, first_present, numeric
from dataloader.names import Entries
from dataloader.structure import volume_of

NUMBER_NAMES = ("atomic_numbers", "numbers", "z", "Z")
SPECIES_NAMES = ("species", "symbols", "symbol", "elements", "element")
POSITION_NAMES = ("pos", "positions")
FRACTIONAL_NAMES = (
    "frac_pos",
    "scaled_positions",
    "frac_coords",
    "fractional",
    "scaled_pos",
    "direct",
    "frac_positions",
)
LATTICE_NAMES = ("Lattice", "cell")  # what they hold is a cell, or the record is refused
NEAR_LATTICE_NAMES = ("unit_cell", "lattice_vectors", "cell_vectors", "box", "box_vectors")
PBC_NAMES = ("pbc", "periodic", "periodicity", "periodic_boundary_conditions")

Pbc = tuple[bool, bool, bool]
PbcRule = Callable[[Entries, NDArray[np.float64]], tuple[Pbc, str]]  # where a record stores none


def atomic_numbers_of(entries: Entries) -> NDArray[np.int64]:
    """(n_atoms,), from numbers or from symbols."""
    by_number = first_present(entries, NUMBER_NAMES)
    by_symbol = first_present(entries, SPECIES_NAMES)
    if by_number is None and by_symbol is None:
        raise RecordError(f"{NUMBER_NAMES[0]} missing")
    numbers = None if by_number is None else _whole(numeric(entries, by_number))
    if by_symbol is None:
        assert numbers is not None
        return numbers
    try:
        of_symbols = _from_symbols(entries[by_symbol], by_symbol)
    except RecordError:
        if numbers is not None:  # a column of another meaning: types, labels of sites
            return numbers
        raise
    if numbers is not None and not np.array_equal(numbers, of_symbols):
        raise RecordError(f"{by_number} and {by_symbol} are both there and differ")
    return of_symbols


def _whole(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    if numbers.ndim != 1:
        raise RecordError(f"atomic numbers have shape {numbers.shape}, expected one for each atom")
    if not (np.abs(numbers) < 2**31).all() or (numbers != np.round(numbers)).any():
        raise RecordError("atomic numbers are not whole")
    return numbers.astype(np.int64)  # OC20 stores them as float32


def _from_symbols(stored: object, name: str) -> NDArray[np.int64]:
    symbols = any_array(stored, name)
    if symbols.ndim != 1 or symbols.dtype.kind not in "OUS":
        raise RecordError(f"{name} holds no element symbols; name a column of atomic numbers Z")
    spelled = [str(symbol).capitalize() for symbol in symbols]
    unknown = next((s for s in spelled if number_of_symbol.get(s, 0) < 1), None)
    if unknown is not None:
        raise RecordError(f"{unknown!r} is no element symbol")
    return np.array([number_of_symbol[s] for s in spelled], dtype=np.int64)


def positions_of(entries: Entries, n_atoms: int) -> NDArray[np.float64]:
    """(n_atoms, 3), Cartesian."""
    name = first_present(entries, POSITION_NAMES)
    if name is None:
        fractional = first_present(entries, FRACTIONAL_NAMES)
        if fractional is not None:
            raise RecordError(
                f"{fractional} and no {POSITION_NAMES[0]}: expected Cartesian positions in Å "
                "under the name pos"
            )
        raise RecordError(f"{POSITION_NAMES[0]} missing")
    positions = numeric(entries, name)
    if positions.shape != (n_atoms, 3):
        raise RecordError(f"positions have shape {positions.shape} for {(n_atoms,)} atomic numbers")
    return positions


def cell_of(entries: Entries) -> NDArray[np.float64]:
    """(3, 3), rows are the lattice vectors; zero where the record has none.

    OC20 stores (1, 3, 3).
    """
    cells: dict[str, NDArray[np.float64]] = {}
    for name in entries.present(LATTICE_NAMES):
        cells[name] = _nine(entries, name)
    if not cells:
        for name in entries.present(NEAR_LATTICE_NAMES):
            if not _says_something_else(any_array(entries[name], name)):
                cells[name] = _nine(entries, name)
    names = list(cells)
    for other in names[1:]:
        if not np.allclose(cells[names[0]], cells[other], rtol=1e-8, atol=1e-8, equal_nan=True):
            raise RecordError(f"{names[0]} and {other} are both there and differ; keep one")
    return cells[names[0]] if names else np.zeros((3, 3))


def _says_something_else(array: NDArray[np.generic]) -> bool:
    """Whether an entry that is called like a cell is none: a name (``fcc``), a number of a cell."""
    return array.dtype.kind not in "iuf" or (array.size == 1 and array.dtype.kind in "iu")


def _nine(entries: Entries, name: str) -> NDArray[np.float64]:
    cell = numeric(entries, name)
    if cell.size != 9:
        raise RecordError(
            f"{name} has shape {cell.shape}, expected (3, 3): the nine numbers of three lattice "
            'vectors, one after another, as in Lattice="ax ay az bx by bz cx cy cz"'
        )
    return cell.reshape(3, 3)


def periodicity_of(entries: Entries, cell: NDArray[np.float64], rule: PbcRule) -> tuple[Pbc, str]:
    """Periodic directions and the rule that gave them: what the record says,
    else what its format says.
    """
    stated = {name: _pbc(entries[name], name) for name in entries.present(PBC_NAMES)}
    if not stated:
        return rule(entries, cell)
    if len(set(stated.values())) > 1:
        raise RecordError(f"{' and '.join(stated)} are both there and differ; keep one")
    return next(iter(stated.values())), "as stored"


def _pbc(stored: object, name: str) -> Pbc:
    values = any_array(stored, name).reshape(-1)
    if values.size not in (1, 3) or values.dtype.kind not in "biuf" or not are_truths(values):
        shown = " ".join(map(str, values[:6]))
        raise RecordError(f'{name} is {shown!r:.40}, expected three of T and F: {name}="T T F"')
    stated = [bool(value) for value in values.tolist()]
    x, y, z = stated * 3 if len(stated) == 1 else stated
    return x, y, z


def periodic_with_a_lattice(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """The rule of extended XYZ: periodic in three directions where there is
    a lattice (ASE's rule).
    """
    periodic = bool(cell.any()) or not np.isfinite(cell).all()
    return (periodic,) * 3, "not stored; periodic where there is a Lattice"


def periodic_with_a_volume(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """The rule of plain dicts and ASE rows: periodic where the cell has a volume; one not
    finite is refused later.
    """
    periodic = volume_of(cell, (True, True, True)) > 0 or not np.isfinite(cell).all()
    return (periodic,) * 3, "not stored; periodic where the cell has a volume"


def periodic_with_a_cell(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """The rule of torch_geometric rows, which store no periodicity: periodic in three directions,
    but for molecules, which have no entry of a cell.

    Taken periodic in three directions OC20 rows reproduce the edges stored in them exactly,
    taken as clusters 60 %.
    """
    if not entries.present(LATTICE_NAMES):
        return (False, False, False), "not stored; torch_geometric rows without a cell are open"
    return (True, True, True), "not stored; torch_geometric rows are periodic in three directions"
