"""What a logger is told of a run when it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told of the run when it is opened.

    Attributes:
        where: gives the folder of the checkpoint, which may be moved while the run lasts; loggers
            read ``folder``.
        name: of the run.
        step: optimizer steps done at the checkpoint that the run goes on from; 0 for a new run.
        n_records: number of records in metrics.jsonl at that checkpoint; 0 for a new run.
        settings: every option by its name, as plain values.
    """

    where: Callable[[], Path]
    name: str
    step: int = 0
    n_records: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint, where it is now; a logger that opens a file there asks for
        it just before.
        """
        return self.where()
