"""What a logger is told of a run when it is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told of the run when it is opened.

    Attributes:
        folder: of the checkpoint.
        name: of the run.
        step: optimizer steps done at the checkpoint that the run goes on from; 0 for a new run.
        n_records: number of records in metrics.jsonl at that checkpoint; 0 for a new run.
        settings: every option by its name, as plain values.
    """

    folder: Path
    name: str
    step: int = 0
    n_records: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
