"""The safetensors file of a run's best weights: only the run whose it is replaces it."""

import os
from dataclasses import dataclass
from pathlib import Path

from model_utils.errors import InputError
from model_utils.files.outputs import Outputs, real, sidecar
from model_utils.ranks.group import Group
from model_utils.run.beginnings import resume_settings, resuming
from model_utils.settings.declared import composed
from model_utils.settings.options import ConvertOptions, TrainingOptions
from model_utils.settings.options.common import CommonOptions
from model_utils.tasks import conversion

FLAG = "--output_safetensors"
Seen = tuple[int, int, int]  # inode, size and time of change of a file


@dataclass(frozen=True, kw_only=True)
class ExportedWeights:
    """A safetensors file that a run writes at its end.

    Attributes:
        path: of the file; None where none was asked for.
        before: what lay there as this process began and may be replaced; None where nothing did.
    """

    path: Path | None
    before: Seen | None

    def write(self, common: CommonOptions, model: Path) -> None:
        """Write the weights of a model file, and its model.json beside them.

        Args:
            common: options of the command.
            model: the file of the best weights.

        Raises:
            InputError: another run has put a file there since this process began,
                or it cannot be written.
        """
        if self.path is None:
            return
        if _seen(self.path) not in (None, self.before):
            raise InputError(
                f"{FLAG} {self.path} was written by another process meanwhile and stays as it is; "
                f"the best weights are in {model}, write them with `read_model.py convert --to "
                "safetensors` under another name"
            )
        asked = {"common": common, "input_model": model, "to": "safetensors", "output": self.path}
        conversion.convert(composed(ConvertOptions, {**asked, "overwrite": True}))


def of_run(options: TrainingOptions, outputs: Outputs, group: Group) -> ExportedWeights:
    """The safetensors file of a run, before anything slow begins.

    Args:
        options: of the run, whose place is known.
        outputs: its place, which nobody else writes.
        group: the processes of the run, of which the first looks.

    Raises:
        InputError: the name is that of no safetensors file, or a file is there
            that is not this run's.
    """
    path = options.running.output_safetensors
    if path is None or not group.rank.is_first:
        return ExportedWeights(path=None, before=None)
    if path.suffix != ".safetensors":
        raise InputError(f"{FLAG} {path}: expected a path that ends in .safetensors")
    before = _seen(path)
    if not (options.output.overwrite or options.run.dry_run):
        for there in (path, sidecar(path)):
            if there.exists() and not _is_of_run_at(outputs, options, path):
                raise InputError(
                    f"{FLAG} {path}: {there} is there and not of this run; give another name"
                )
    return ExportedWeights(path=path, before=before)


def _is_of_run_at(outputs: Outputs, options: TrainingOptions, path: Path) -> bool:
    """Whether the run that goes on at a place was to write this file."""
    stored = None if options.output.resume is None else resuming.newest_run(outputs.checkpoint)
    named = None if stored is None else resume_settings.safetensors_of(stored.config, outputs)
    return named is not None and real(Path(named)) == real(path)


def _seen(path: Path) -> Seen | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
