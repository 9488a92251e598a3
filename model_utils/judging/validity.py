"""Whether a crystal can be one at all: by distances and volume, and by charges
(MatterGen's definitions).
"""

import importlib.util
import itertools
import math
from collections import Counter

from ase import Atoms

from model_utils.judging import pymatgen_library

SHORTEST = 0.5  # Å
SMALLEST = 0.1  # Å³, from CDVAE
WITHOUT_SMACT = "smact is not installed: pip install -e '.[pipeline]'"


def has_valid_structure(atoms: Atoms) -> bool:
    """No two sites closer than ``SHORTEST``, and a volume of at least ``SMALLEST``; what a site is
    from its own images does not count, as in MatterGen.
    """
    return (
        atoms.get_volume() >= SMALLEST
        and pymatgen_library.shortest_distance(pymatgen_library.crystal(atoms)) >= SHORTEST
    )


def composition_unknown() -> str:
    """Why charges cannot be judged here; empty where they can."""
    return "" if importlib.util.find_spec("smact") is not None else WITHOUT_SMACT


def has_valid_composition(atoms: Atoms) -> bool:
    """Whether oxidation states balance with more negative ones on more electronegative
    elements; metals may mix.

    The rules are SMACT's (Davies et al., J. Open Source Softw. 4, 1361 (2019)), as
    MatterGen applies them.
    """
    import smact
    from smact.screening import pauling_test

    counts = Counter(atoms.get_chemical_symbols())
    symbols = sorted(counts)
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    divisor = math.gcd(*counts.values())
    elements = [smact.Element(symbol) for symbol in symbols]
    stoichiometry = [(counts[symbol] // divisor,) for symbol in symbols]
    most = max(counts.values()) // divisor
    electronegativities = [element.pauling_eneg for element in elements]
    # where one is not known, nothing is to be tested
    passes = [value is None for value in electronegativities]
    for states in itertools.product(
        *(element.oxidation_states_smact14 or () for element in elements)
    ):
        if not smact.neutral_ratios(states, stoichs=stoichiometry, threshold=most):
            continue
        if any(passes) or pauling_test(states, electronegativities):
            return True
    return False
