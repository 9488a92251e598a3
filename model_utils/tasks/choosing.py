"""What read_model.py best does: one of a run's good models, or their average, as the
model of another name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloader import durable
from dataloader.errors import InputError
from model_utils import model_loader
from model_utils.errors import cannot_write
from model_utils.files import checkpoint, kept
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.kept import KeptModel
from model_utils.files.outputs import ENDINGS, Outputs, refuse_names_of_runs, sidecar
from model_utils.files.pair import holds
from model_utils.models.description import ModelDescription
from model_utils.run.beginnings.resume_settings import checkpoint_in
from model_utils.run.beginnings.resuming import newest_run
from model_utils.runtime import log, start_log
from model_utils.settings.options import BestOptions


def best(options: BestOptions) -> None:
    """Choose by a metric among what a run kept, or average the best of them, and write the
    result; nothing is trained.

    Raises:
        InputError: there is no run, no model with such a metric, or the output cannot be written.
        VerificationError: a file is damaged.
    """
    start_log()
    place = _place(options.input_model)
    output = options.output_model or place.model.with_name(
        f"{place.run_name}_by_{options.metric}_model.pt"
    )
    refuse_names_of_runs(output, "--output_model", place)
    models = _models(place)
    ranked = kept.best_of(models, options.metric, len(models))
    if not ranked:
        known = sorted(
            {name for model in models for name, value in model.errors.items() if value is not None}
        )
        raise InputError(
            f"--metric {options.metric}: no model of {options.input_model} has it; there are "
            f"{', '.join(known)}"
        )
    if options.average > len(ranked):
        raise InputError(
            f"--average {options.average}: {options.input_model} has {len(ranked)} models with a "
            f"{options.metric}; train with a larger --keep_best, or average fewer"
        )
    for number, model in enumerate(ranked):
        mark = "  taken" if number < options.average else ""
        log.info(
            "step %d  %s %.6g  %s%s",
            model.step,
            options.metric,
            model.by(options.metric),
            model.path,
            mark,
        )
    _write(output, _chosen(ranked[: options.average], options.metric), overwrite=options.overwrite)
    log.info(
        "wrote %s%s",
        output,
        "" if options.average == 1 else f": the average of {options.average} models",
    )


def _place(run: Path) -> Outputs:
    """Where the files of a run are."""
    path = checkpoint_in(run) if run.is_dir() else run
    stored = newest_run(path)
    if stored is None:
        raise InputError(
            f"there is no {path}; expected the directory of a run or its *_checkpoint.pt"
        )
    return stored.outputs()


def _models(place: Outputs) -> list[KeptModel]:
    """The models that were kept, and the run's best one where it is not among them.

    Raises:
        InputError: there is none at all.
    """
    models = kept.models_in(place.kept)
    if place.model.exists():
        # that of stage one is kept where the second has a best
        stage = 2 if place.stage_one_model.exists() else 1
        best_model = kept.of_file(checkpoint.read(place.model), stage)
        if best_model.step not in {model.step for model in models}:
            models.append(best_model)
    if not models:
        raise InputError(
            f"there is no model of the run at {place.model}; train it, with "
            "--keep_best to keep several"
        )
    return models


def _chosen(models: Sequence[KeptModel], metric: str) -> WeightsFile:
    """The file of one model, or the average of several as it would be read from a file.

    Raises:
        InputError: their networks differ.
    """
    files = [checkpoint.read(model.path) for model in models]
    first = files[0]
    if any(file.description.hash() != first.description.hash() for file in files):
        raise InputError(
            f"the models of {first.path.parent} are not of one network and have no average"
        )
    content: dict[str, Any] = {
        **first.content,
        "chosen_by": metric,
        "chosen_from": [model.step for model in models],
    }
    if len(files) > 1:
        content |= {
            "model_state_dict": averaged([file.tensors for file in files]),
            "weights": f"average of {len(files)} {first.weights}",
            "metrics": {},  # nobody has measured it
        }
        content.pop("score", None)
    return WeightsFile(
        path=first.path,
        kind=first.kind,
        tensors=content["model_state_dict"],
        description=first.description,
        weights=content["weights"],
        content=content,
        module=None,
    )


def averaged(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, formed in float64; one that all have alike stays as
    it is, to the last bit.
    """
    return {name: _mean([tensors[name] for tensors in models]) for name in models[0]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if all(torch.equal(first, other) for other in tensors[1:]):
        return first
    return torch.stack([tensor.to(torch.float64) for tensor in tensors]).mean(dim=0).to(first.dtype)


def _write(path: Path, file: WeightsFile, *, overwrite: bool) -> None:
    """Write a *_model.pt with its module, as a run does, and model.json beside it.

    Raises:
        InputError: something else lies there, or it cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise InputError(
            f"--output_model {path} is no weights file; give a name that ends in .pt or .pth"
        )
    if path.exists() and not overwrite:
        raise InputError(f"--output_model {path} is there; give another name or --overwrite")
    module = model_loader.to_be_filled(file.description, file.dtype, str(file.path))
    model_loader.load_tensors(module, file.tensors, file.description, str(file.path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_sidecar(sidecar(path), file.description, overwrite=overwrite)
        checkpoint.write_model(
            path, {**file.content, "model_state_dict": dict(module.state_dict())}, module
        )
    except OSError as error:
        raise cannot_write(f"--output_model {path}", error) from None


def _write_sidecar(path: Path, description: ModelDescription, *, overwrite: bool) -> None:
    text = description.canonical_text()
    if path.exists() and not holds(path, text) and not overwrite:
        raise InputError(
            f"{path} is there with other content than the model of this run; give another name"
        )
    durable.write_text(path, text)
