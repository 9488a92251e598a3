"""Options of the physics checks of evaluate.py."""

from dataclasses import dataclass

from model_utils.settings.declared import OF_THE_COMMAND, panel
from model_utils.settings.option_types import Count


@panel("Physics checks", 25, nature=OF_THE_COMMAND)
@dataclass(frozen=True, kw_only=True)
class PhysicsOptions:
    """What is checked of the network besides its errors."""

    physics: bool = False
    """Check what any potential must obey on small structures of the data: rotation, translation, permutation, extensivity, forces and stress as slopes of the energy, smoothness at r_max, dimers, energy in time. Printed, and `physics` in --output_json; where a check fails, the exit code is 3 after everything is written."""
    physics_structures: Count = 3
    """On how many structures at most."""
    physics_max_atoms: Count = 64
    """Of how many atoms at most."""
