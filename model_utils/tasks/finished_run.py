"""A training that is over, as Python has it: its files, its best model, its errors,
and errors on other data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataloader import input_files
from losses import Loss
from model_utils import model_loader
from model_utils.errors import InputError
from model_utils.files.outputs import Outputs
from model_utils.metrics import Metrics
from model_utils.model_loader import LoadedModel
from model_utils.process_state import left_as_it_was
from model_utils.run import objective
from model_utils.run.beginnings import resume_settings, resuming
from model_utils.run.beginnings.stored_run import StoredRun
from model_utils.run.objective import Units
from model_utils.settings import reading
from model_utils.settings.declared import names_of
from model_utils.settings.meant import nearest
from model_utils.settings.options import (
    BatchOptions,
    EvaluateOptions,
    FilterOptions,
    LabelOptions,
    PrintedLossOptions,
    ResumeOptions,
)
from model_utils.tasks import evaluating

Metric = Mapping[str, float | int | None]
OF_THE_RUN = {  # settings of evaluate.py that test() does not take: what to do
    "input_model": "it judges the best model of its run; judge another one by api.evaluate",
    "xyz_path": "give the data first",
    "lmdb_path": "give the data first",
}


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
        return cls(resume_settings.stored_run(path).outputs().absolute())

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
        """The best weights in a module on the CPU, with their description: averaged ones
        where there was an EMA.

        Raises:
            InputError, VerificationError: the file is gone or damaged.
        """
        return model_loader.load(self.outputs.model)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Errors of the best model by data set (``train``, ``valid``, ``test``), eV and
        eV/Å; empty before the end.

        Raises:
            InputError: as ``records``.
        """
        final = [record for record in self.records if record.get("kind") == "final"]
        sets = final[-1] if final else {}
        return {
            name: errors
            for name, errors in sets.items()
            if isinstance(errors, dict) and name != "perf"
        }

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of ``metrics.jsonl``, in order.

        Raises:
            InputError: there is none, as after a dry run.
        """
        try:
            with input_files.opened(self.outputs.metrics) as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            raise InputError(
                f"there is no {self.outputs.metrics}; a dry run writes none, and of any other run "
                "it was moved or removed"
            ) from None

    def test(self, data: str | Path | Sequence[str | Path], **settings: Any) -> Metrics:
        """Errors of the best model on other data, by the one evaluation that there is.

        Args:
            data: one or more files of any format.
            settings: further options of ``evaluate.py``, as ``energy_key`` or ``device``; names of
                labels, what counts, how much fits into memory and the loss are those of the
                training unless given.

        Raises:
            InputError: the data cannot be used, or a setting is none of those.
        """
        _refuse_unknown(settings)
        paths = [data] if isinstance(data, str | Path) else list(data)
        with left_as_it_was():
            stored = self.state
            plain = {
                **_as_in_training(stored, settings),
                **settings,
                "data": [str(path) for path in paths],
                "input_model": str(self.outputs.model),
            }
            own_loss = (
                None
                if any(name in settings for name in names_of(PrintedLossOptions))
                else _loss_of(stored)
            )
            return evaluating.evaluate(
                reading.from_plain(EvaluateOptions, plain, self.outputs.checkpoint), own_loss
            ).total


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Raise InputError where ``Run.test`` is given what is no option of an evaluation, or what
    belongs to the run.
    """
    known = names_of(EvaluateOptions)
    for name in settings:
        if name in OF_THE_RUN:
            raise InputError(f"test() takes no {name}: {OF_THE_RUN[name]}")
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else "those of evaluate.py are known"
            raise InputError(f"test() knows no setting {name!r:.60}; {hint}")


def _as_in_training(stored: StoredRun, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an evaluation as the run had them: which structures count, by which
    labels, in which batches.

    Args:
        stored: the run.
        given: options that take their place; one on batches takes that of all of them.
    """
    of_batches = names_of(BatchOptions)
    names = {
        *names_of(LabelOptions),
        *names_of(FilterOptions),
        "head",
        "eval_on_free_atoms",
        "device",
    }
    if not any(name in given for name in of_batches):
        names |= {*of_batches}
    return {
        name: value for name, value in stored.config.items() if name in names and value is not None
    }


def _loss_of(stored: StoredRun) -> Loss:
    """The loss by which the run judged its last validations, in its units."""
    resumed = reading.from_plain(ResumeOptions, {"input_model": str(stored.path)}, stored.path)
    options = resume_settings.train_options(resumed, stored)
    units = Units(spread=stored.loss_units, balanced=options.loss.loss_units == "balanced")
    stages = objective.stages(options, units)
    return stages[min(int(stored.state.get("stage", 1)), len(stages)) - 1].loss
