"""What evaluate.py says and writes: which weights, the table, each structure of a small set, the JSON."""

import dataclasses
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from losses import Loss, Metrics, Prediction
from model_utils import durable
from model_utils.model_loader import LoadedModel
from model_utils.options import EvaluateOptions
from model_utils.report import per_structure_lines, table
from model_utils.runtime import dtype_name, log

SMALL_SET = 10  # structures; up to here each one's errors are printed


def refuse_existing(options: EvaluateOptions) -> None:
    """Raise InputError where an output file is there already, before anything slow begins."""
    path = options.output_json
    if path is not None and path.exists() and not options.overwrite:
        raise InputError(f"--output_json {path} is there already; give another name or --overwrite")


def say_what_is_used(loaded: LoadedModel, dtype: torch.dtype, device: torch.device) -> None:
    """Which weights, from when, in which precision, where."""
    kinds = {"model": "best weights", "checkpoint": "latest weights"}
    log.info(
        "%s: %s (%s) of %s; model.json hash %s…; %s on %s",
        loaded.file.path,
        kinds.get(loaded.file.kind, f"weights of mace ({loaded.file.kind})"),
        loaded.file.weights,
        loaded.file.when(),
        loaded.description.hash()[:12],
        dtype_name(dtype),
        device,
    )


def warn_of_wrong_forces(loaded: LoadedModel) -> None:
    """Say where mace's own forces are known not to be the slope of its energies."""
    if loaded.description.radial_type == "chebyshev":
        log.warning("radial_type chebyshev: torch does not differentiate it, so these forces lack the radial part")


def loss_of(options: EvaluateOptions) -> Loss:
    """The loss that is printed among the metrics."""
    return Loss(
        energy_weight=options.energy_weight, forces_weight=options.forces_weight, stress_weight=options.stress_weight
    )


class StructureErrors:
    """Energy error and force RMSE of every structure, kept only where the set is small."""

    def __init__(self, data: Dataset) -> None:
        self.rows: list[tuple[str, float | None, float | None]] = []
        self._data = data

    def __call__(self, batch: Batch, prediction: Prediction) -> None:
        """Take the structures of one batch."""
        if len(self._data) <= SMALL_SET:
            self.rows += [_row(self._data.name(i), k, batch, prediction) for k, i in enumerate(batch.index)]


def _row(name: str, k: int, batch: Batch, prediction: Prediction) -> tuple[str, float | None, float | None]:
    labels, atoms = batch.labels, slice(int(batch.ptr[k]), int(batch.ptr[k + 1]))
    energy = float(prediction.energy[k].double() - labels.energy[k]) if labels.energy_mask[k] else None
    counted = labels.forces_mask[atoms]
    forces = None
    if prediction.forces is not None and bool(counted.any()):
        difference: Tensor = (prediction.forces[atoms].double() - labels.forces[atoms])[counted]
        forces = float(difference.square().mean().sqrt())
    return name, energy, forces


def print_all(total: Metrics, by_source: Mapping[str, Metrics], errors: StructureErrors) -> None:
    """The table, with a row per source where there are several, and each structure of a small set."""
    rows = {"all": total} if len(by_source) == 1 else {**by_source, "all": total}
    for line in [*table(rows).splitlines(), *per_structure_lines(errors.rows)]:
        log.info("%s", line)


def write(options: EvaluateOptions, total: Metrics, by_source: Mapping[str, Metrics]) -> None:
    """The metrics as JSON: of all structures at the top level, of each source below."""
    if options.output_json is None:
        return
    content = {
        **dataclasses.asdict(total),
        "by_source": {source: dataclasses.asdict(found) for source, found in by_source.items()},
        "input_model": str(options.input_model),
    }
    try:
        options.output_json.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(
            options.output_json, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
    except OSError as error:
        raise InputError(f"cannot write --output_json {options.output_json}: {error.strerror}") from None
    log.info("wrote %s", options.output_json)
