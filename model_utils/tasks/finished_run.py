"""A training that is over, as Python has it: its files, its best model, its errors, and errors on other data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataloader import input_files
from losses import Metrics
from model_utils import model_loader
from model_utils.errors import InputError
from model_utils.files.outputs import Outputs
from model_utils.model_loader import LoadedModel
from model_utils.run import resume_settings, resuming
from model_utils.run.stored_run import StoredRun
from model_utils.settings import cli
from model_utils.settings.options import EvaluateOptions
from model_utils.tasks import evaluating

Metric = Mapping[str, float | int | None]


@dataclass(frozen=True)
class Run:
    """A run by its files; nothing is read before it is asked for.

    Attributes:
        outputs: names of all that it wrote.
    """

    outputs: Outputs

    @classmethod
    def opened(cls, path: Path) -> "Run":
        """The run whose folder or checkpoint a path names.

        Raises:
            InputError: there is none, or several.
        """
        return cls(resume_settings.stored_run(path).outputs())

    @property
    def folder(self) -> Path:
        """Where checkpoint and records lie."""
        return self.outputs.checkpoint.parent

    @property
    def model_path(self) -> Path:
        """The file of the best weights, which every command takes."""
        return self.outputs.model

    @property
    def state(self) -> StoredRun:
        """The newest checkpoint: raw weights, settings, step, history.

        Raises:
            VerificationError: it is damaged.
        """
        stored = resuming.newest_run(self.outputs.checkpoint)
        if stored is None:
            raise InputError(f"there is no {self.outputs.checkpoint} any more")
        return stored

    @cached_property
    def best_model(self) -> LoadedModel:
        """The best weights in a module on the CPU, with their description: averaged ones where there was an EMA.

        Raises:
            InputError, VerificationError: the file is gone or damaged.
        """
        return model_loader.load(self.outputs.model)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Errors of the best model by data set (``train``, ``valid``, ``test``), eV and eV/Å; empty before the end."""
        final = [record for record in self.records if record.get("kind") == "final"]
        sets = final[-1] if final else {}
        return {name: errors for name, errors in sets.items() if isinstance(errors, dict) and name != "perf"}

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of ``metrics.jsonl``, in order."""
        with input_files.opened(self.outputs.metrics) as file:
            return [json.loads(line) for line in file]

    def test(self, data: str | Path | Sequence[str | Path], **settings: Any) -> Metrics:
        """Errors of the best model on other data, by the one evaluation that there is.

        Args:
            data: one or more files of any format.
            settings: further options of ``evaluate.py``, as ``energy_key`` or ``device``; names of labels, what
                counts and how much fits into memory are those of the training unless given.

        Raises:
            InputError: the data cannot be used.
        """
        paths = [data] if isinstance(data, str | Path) else list(data)
        config = self.state.config
        same = ("energy_key", "forces_key", "stress_key", "charge_key", "spin_key", "head", "batch_size", "device")
        plain = {
            **{name: config[name] for name in same if config.get(name) is not None},
            **{f"{term}_weight": config[f"{term}_weight"] for term in ("energy", "forces", "stress")},
            "data": [str(path) for path in paths],
            "input_model": str(self.outputs.model),
            **settings,
        }
        return evaluating.evaluate(cli.from_plain(EvaluateOptions, plain, self.outputs.checkpoint)).total
