"""The worst structures in 3D, by chemiscope's own viewer, which is put into the page whole.

Only numbers and elements reach the viewer: it writes text into the page as HTML, and
names in data are anyone's.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from dataloader.frames import bare_atoms
from dataloader.structure import Structure
from model_utils.errors import InputError
from model_utils.report.libraries import needed

Floats = NDArray[np.float64]

MOST_ATOMS = 5_000  # of a structure; a larger one is named and not drawn
LONGEST_ARROW = 2.0  # Å, of the largest force error of all structures
ARROW_COLOR = 0xC0267E
SCRIPT = ("sphinx", "static", "chemiscope.min.js")
ERROR_NAME = "force error"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A structure to draw with the errors of its forces.

    Attributes:
        structure: as it was read.
        forces_error: (n_atoms, 3), prediction minus label in eV/Å, zero where there is no label;
            None of a structure without forces.
        errors: numbers that stand beside it, by name.
    """

    structure: Structure
    forces_error: Floats | None
    errors: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """What a page needs of the viewer.

    Attributes:
        script: the viewer's JavaScript.
        data: its structures, as JSON without ``<``.
    """

    script: str
    data: str


def viewer(structures: Sequence[Drawn]) -> Viewer:
    """The viewer with some structures in their order.

    Raises:
        InputError: chemiscope is not installed, or has no viewer for pages where it was looked for.
    """
    (chemiscope,) = needed("chemiscope", what="--report")
    path = Path(str(chemiscope.__file__)).parent.joinpath(*SCRIPT)
    try:
        script = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"chemiscope has no viewer at {path} ({error.strerror}); install the version that "
            "constraints.txt has, or give --worst 0 for a page without structures"
        ) from None
    data = json.dumps(_dataset(chemiscope, structures), allow_nan=False)
    return Viewer(
        script=script.replace("</script", r"<\/script"), data=data.replace("<", r"\u003c")
    )


def _dataset(chemiscope: Any, drawn: Sequence[Drawn]) -> Any:
    frames = [_plain_atoms(one.structure) for one in drawn]
    names = sorted({name for one in drawn for name in one.errors})
    properties: dict[str, Any] = {
        name: {"target": "structure", "values": [one.errors.get(name, 0.0) for one in drawn]}
        for name in names
    }
    settings: dict[str, Any] = {"target": "structure"}
    shapes = None
    if any(one.forces_error is not None for one in drawn):
        errors = [_errors_of(one) for one in drawn]
        lengths = np.concatenate([np.linalg.norm(error, axis=1) for error in errors])
        properties[ERROR_NAME] = {"target": "atom", "values": lengths.tolist(), "units": "eV/Å"}
        shapes = {ERROR_NAME: _arrows(np.concatenate(errors), float(lengths.max(initial=0.0)))}
        settings["structure"] = [
            {"shape": [ERROR_NAME], "unitCell": True, "environments": {"activated": False}}
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chemiscope.create_input(
            structures=frames,
            properties=properties,
            shapes=shapes,
            settings=settings,
            environments=chemiscope.all_atomic_environments(frames),
            metadata={"name": "worst structures"},
        )


def _plain_atoms(structure: Structure) -> Atoms:
    """Elements, positions and cell alone."""
    atoms = bare_atoms(structure)
    cell = atoms.cell if structure.periodic else None
    return Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=cell, pbc=structure.periodic
    )


def _errors_of(one: Drawn) -> Floats:
    return np.zeros((one.structure.n_atoms, 3)) if one.forces_error is None else one.forces_error


def _arrows(errors: Floats, longest: float) -> dict[str, Any]:
    """An arrow for each atom along the error of its force (n_atoms, 3)."""
    scale = LONGEST_ARROW / longest if longest > 0 else 0.0
    return {
        "kind": "arrow",
        "parameters": {
            "global": {
                "baseRadius": 0.07,
                "headRadius": 0.16,
                "headLength": 0.25,
                "color": ARROW_COLOR,
            },
            "atom": [{"vector": [round(float(x) * scale, 4) for x in row]} for row in errors],
        },
    }
