"""All candidates as one model judges them: what the files of a judgement are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_utils import runtime
from model_utils.judging.judged import Judged
from model_utils.judging.metrics import Value
from model_utils.judging.references import References
from model_utils.simulation.calculator import Calculator


@dataclass(frozen=True, kw_only=True)
class JudgedByModel:
    """All candidates as one model judges them.

    Attributes:
        calculator: of the model.
        paths: of its files.
        candidates: in the order of the file.
        references: with the hull of this model; None without references.
        missing: elements of the candidates that are no references by themselves.
        values: metrics by name, the trusted ones too.
        n_trusted: candidates behind the trusted values.
        left_out: of these, by reason.
    """

    calculator: Calculator
    paths: Sequence[Path]
    candidates: Sequence[Judged]
    references: References | None
    missing: Sequence[str]
    values: dict[str, Value]
    n_trusted: int
    left_out: dict[str, int]

    def as_plain(self) -> dict[str, Any]:
        """Which model it is."""
        return {
            "files": [str(path) for path in self.paths],
            "digests": [potential.digest() for potential in self.calculator.potentials],
            "head": self.calculator.potentials[0].head,
            "dtype": runtime.dtype_name(self.calculator.potentials[0].dtype),
        }
