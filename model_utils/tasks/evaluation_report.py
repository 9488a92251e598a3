"""What evaluate.py says and writes: which weights, the table, where the errors are, the files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dataloader import durable
from dataloader.errors import InputError
from losses import Loss, Term
from model_utils.errors import cannot_write
from model_utils.files.apart import refuse_shared_places
from model_utils.metrics import Metrics
from model_utils.model_loader import LoadedModel
from model_utils.physics.records import PhysicsReport
from model_utils.run.error_table import table
from model_utils.runtime import dtype_name, log
from model_utils.settings import terms
from model_utils.settings.options import EvaluateOptions, PrintedLossOptions
from model_utils.tasks.breakdown import Breakdown
from model_utils.tasks.calibration import Calibration


def refuse_existing(options: EvaluateOptions) -> None:
    """Raise InputError where an output file is there already, is another output too, or is what is
    read, before anything slow begins.
    """
    outputs = {
        flag: getattr(options, flag) for flag in ("output_json", "output_table", "output_xyz")
    }
    outputs["report"] = options.reporting.report
    for flag, path in outputs.items():
        if path is not None and path.exists() and not options.overwrite:
            raise InputError(f"--{flag} {path} is there already; give another name or --overwrite")
    refuse_shared_places(
        {f"--{flag}": path for flag, path in outputs.items()},
        [
            *(("--input_model", path) for path in options.input_model),
            *(("the data", path) for _, path in options.files()),
            ("--input_json", options.input_json),
        ],
    )


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
    """Say what is known to be wrong with what the network computes, for example where
    its forces are no slope.
    """
    for warning in loaded.description.warnings():
        log.warning("%s", warning)


def loss_of(options: PrintedLossOptions) -> Loss:
    """The loss that is printed among the metrics."""
    return Loss(
        terms={name: Term(weight=weight) for name, weight in terms.weights(options).items()}
    )


def print_all(
    total: Metrics,
    by_source: Mapping[str, Metrics],
    breakdown: Breakdown,
    calibration: Calibration | None = None,
    physics: PhysicsReport | None = None,
) -> None:
    """The table, with a row per source where there are several, where the errors are, and
    what was found besides.
    """
    rows = {"all": total} if len(by_source) == 1 else {**by_source, "all": total}
    lines = [*table(rows).splitlines(), *breakdown.lines()]
    lines += calibration.lines() if calibration else []
    lines += physics.lines() if physics else []
    for line in lines:
        log.info("%s", line)


def content_of(
    options: EvaluateOptions,
    total: Metrics,
    by_source: Mapping[str, Metrics],
    breakdown: Breakdown,
    physics: PhysicsReport | None,
) -> dict[str, Any]:
    """What --output_json holds: metrics as top-level keys, by source, by
    element, by config_type.
    """
    models = [str(path) for path in options.input_model]
    return {
        **total.as_plain(),
        "by_source": {source: metrics.as_plain() for source, metrics in by_source.items()},
        **breakdown.as_plain(),
        **({} if physics is None else {"physics": physics.as_plain()}),
        "input_model": models[0] if len(models) == 1 else models,
    }


def write(
    options: EvaluateOptions,
    content: Mapping[str, Any],
    breakdown: Breakdown,
    page: str | None = None,
) -> None:
    """The files that were asked for: metrics as JSON, a row per structure as CSV,
    predictions as xyz, the report.

    Raises:
        InputError: one cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    writers: dict[str, tuple[Path | None, Callable[[Path], None]]] = {
        "output_json": (options.output_json, lambda path: durable.write_text(path, text)),
        "output_table": (options.output_table, breakdown.write_table),
        "output_xyz": (options.output_xyz, breakdown.write_frames),
        "report": (options.reporting.report, lambda path: durable.write_text(path, page or "")),
    }
    for flag, (path, write_to) in writers.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_to(path)
        except OSError as error:
            raise cannot_write(f"--{flag} {path}", error) from None
        log.info("wrote %s", path)
