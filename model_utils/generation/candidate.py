"""What a generator makes: one crystal with what is to be known of its making, or the
reason why there is none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One crystal.

    Attributes:
        atoms: periodic in three directions; Å.
        origin: how it was made, as the frame says it: ``space_group``, ``parent``, ``operation`` …
    """

    atoms: Atoms
    origin: dict[str, str | int] = field(default_factory=dict)


class NotMade(Exception):
    """An attempt gave nothing; says why, in words by which such attempts are counted."""


class Exhausted(Exception):
    """There is nothing left of which further candidates could be made."""


# makes the candidate of an attempt, which is counted from 0 on; all that is drawn comes from the
# generator, which is of that attempt alone: raises NotMade, or Exhausted
Maker = Callable[[int, np.random.Generator], Candidate]
