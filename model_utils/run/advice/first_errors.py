"""What the errors before the first step say of the reference energies."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.data_check.references import BOUND
from dataloader.dataset import Dataset
from model_utils.metrics import Metrics
from model_utils.models.description import ModelDescription
from model_utils.runtime import log

LARGE = 1.0  # eV/atom
LOOKED_AT = 200  # structures


def advise(
    errors: Iterable[Metrics],
    data: Dataset,
    description: ModelDescription,
    model_json: Path,
    *,
    is_fine_tuned: bool,
) -> None:
    """One line where they are those of other reference energies, and not of fresh weights.

    A model without a shift whose E0s are those of free atoms begins with the binding energies as
    its errors, which is no fault.

    Args:
        errors: of all validation structures, and of each part.
        data: validation structures.
        description: of the network, with its E0s, scales and shifts.
        model_json: its file, for the advice.
        is_fine_tuned: whether the weights are of a trained model.
    """
    largest = max(of_part["energy_rmse_per_atom"] or 0.0 for of_part in errors)
    if largest <= max(LARGE, 2 * max(description.energy_scales())):
        return
    has_shift = any(shift != 0.0 for shift in description.energy_shifts())
    has_references = all(any(row) for row in data.facts.atomic_energies)
    if not is_fine_tuned and not has_shift and has_references:
        bindings = _above_e0s(data)
        if len(bindings) and BOUND[0] <= bindings.min() and bindings.max() <= BOUND[1]:
            log.info(
                "the first errors are %.3g eV/atom, which may be the binding energy: a model "
                "without shift whose E0s are those of free atoms begins so; `metadata.py fit` puts "
                "a shift in, `metadata.py check --input_json %s` looks at the E0s",
                *(largest, model_json),
            )
            return
    log.warning(
        "warning: the first errors are %.3g eV/atom: E0s of another method or unit than the data "
        "have? `metadata.py check --input_json %s` compares them with the data, %s",
        largest,
        model_json,
        "`finetune.py --E0s shift` fits them"
        if is_fine_tuned
        else "`metadata.py fit` makes a model.json with theirs",
    )


def _above_e0s(data: Dataset) -> NDArray[np.float64]:
    """Energies of some structures above the E0s of their heads, eV per atom."""
    facts = data.facts
    chosen = np.unique(np.linspace(0, len(data) - 1, LOOKED_AT).astype(int))
    heads = data.head_numbers()
    above = []
    for index in chosen.tolist():
        structure = data.structure(index)
        if structure.energy is not None:
            energies = dict(
                zip(facts.atomic_numbers, facts.atomic_energies[heads[index]], strict=True)
            )
            of_atoms = sum(energies[int(z)] for z in structure.atomic_numbers)
            above.append((structure.energy - of_atoms) / structure.n_atoms)
    return np.array(above)
