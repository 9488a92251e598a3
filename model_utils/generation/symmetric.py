"""``--generator random``: symmetric random crystals by composition and space group; the only
place that knows pyxtal.

pyxtal (Fredericks et al., Comput. Phys. Commun. 261, 107810 (2021)) fills Wyckoff positions at
random until the composition is reached, within a volume that it estimates from radii.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from model_utils.generation.candidate import Candidate, Maker, NotMade
from model_utils.generation.compositions import (
    Composition,
    as_text,
    drawn_cell,
    elements_of,
    formulas_of,
    refuse_nothing_asked,
)
from model_utils.judging import pymatgen_library
from model_utils.judging.pymatgen_library import EXTRA
from model_utils.report.libraries import needed
from model_utils.settings.options import GenerateOptions

GROUPS = range(1, 231)
DENSEST = 0.9  # of the volume that pyxtal estimates
WIDEST = 1.4
TRIES_OF_PYXTAL = 3  # for one set of Wyckoff positions; another attempt draws others


def prepared(options: GenerateOptions, _: Path) -> Maker:
    """A maker of random crystals.

    Raises:
        InputError: pyxtal is not installed, or the options do not say of what crystals are made.
    """
    needed("pyxtal", what="--generator random", extra=EXTRA)
    formulas = formulas_of(options.wanted)
    elements = elements_of(options.wanted)
    refuse_nothing_asked(formulas, elements, "random")
    groups = options.wanted.space_group or tuple(GROUPS)

    def make(_: int, rng: np.random.Generator) -> Candidate:
        cell = drawn_cell(formulas, elements, options.wanted, rng)
        group = _drawn_group(cell, groups, rng)
        factor = float(rng.uniform(DENSEST, WIDEST))
        atoms = _crystal(cell, group, factor, rng)
        # atoms on special positions may have more symmetry than the group they were drawn in
        own = pymatgen_library.space_group_number(pymatgen_library.crystal(atoms))
        if options.wanted.space_group and own not in groups:
            raise NotMade("of another space group than is asked for")
        return Candidate(atoms=atoms, origin={"space_group": own})

    return make


def _drawn_group(cell: Composition, groups: Sequence[int], rng: np.random.Generator) -> int:
    """A space group whose Wyckoff positions can hold a cell."""
    counts = tuple(cell.values())
    for group in rng.permutation(np.array(groups)).tolist():
        if _fits(group, counts):
            return int(group)
    raise NotMade(f"no space group that is asked for can hold {as_text(cell)}")


@cache
def _fits(group: int, counts: tuple[int, ...]) -> bool:
    """Whether multiplicities of Wyckoff positions add up to the numbers of atoms."""
    return bool(_group(group).check_compatible(list(counts))[0])


@cache
def _group(number: int) -> Any:
    from pyxtal.symmetry import Group

    return Group(number)


def _crystal(cell: Composition, group: int, factor: float, rng: np.random.Generator) -> Atoms:
    """One crystal of pyxtal's.

    Raises:
        NotMade: it found none.
    """
    from pyxtal import pyxtal

    made = pyxtal()
    try:
        made.from_random(
            3,
            group,
            list(cell),
            list(cell.values()),
            factor,
            max_count=TRIES_OF_PYXTAL,
            random_state=rng,
        )
    except Exception as error:
        # its own for compositions, RuntimeError where it takes long, ValueError of bad luck
        raise NotMade(f"pyxtal found no crystal ({type(error).__name__})") from None
    if not made.valid:
        raise NotMade("pyxtal found no crystal")
    atoms = made.to_ase(resort=False)
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
