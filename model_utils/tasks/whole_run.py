"""A training from its options to its files: what train_mace.py, finetune.py and resume.py do."""

from dataloader.errors import InputError, MissingFileError
from model_utils.files.outputs import Outputs
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.ranks.group import Group
from model_utils.run import training
from model_utils.run.assemble import logger_names
from model_utils.run.beginnings import resume_settings
from model_utils.run.beginnings.continuation import UNCHANGED, Changes
from model_utils.run.beginnings.deciding import beginning_of_training
from model_utils.run.beginnings.from_model import beginning_of_finetuning
from model_utils.run.folder import place
from model_utils.run.interruption import Interruption
from model_utils.runtime import start_log
from model_utils.settings.options import (
    FinetuneOptions,
    ResumeOptions,
    TrainingOptions,
    TrainOptions,
)
from model_utils.tasks import exported_weights, inline_model
from model_utils.tasks.exported_weights import ExportedWeights
from model_utils.tasks.finished_run import Run


def train(options: TrainOptions, stop: Interruption, group: Group) -> Run:
    """A run from a model.json, or from a network that the file of settings describes.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see
            ``model_utils.errors``.
    """
    if options.inline.network is None:
        return _trained(options, model_json.read(options.input_json), stop, group)
    inline_model.refuse_unknown_class(options)
    logger_names(options.run)  # before the data are measured, which may take long
    return _trained(options, None, stop, group)


def fine_tune(options: FinetuneOptions, stop: Interruption, group: Group) -> Run:
    """A run from another model's weights.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see
            ``model_utils.errors``.
    """
    with place.held(options, group) as (placed, outputs):
        exported = exported_weights.of_run(placed, outputs, group)
        with beginning_of_finetuning(placed, outputs, stop, group) as (settings, beginning):
            training.train_in_place(settings, outputs, beginning, stop, group)
            return _finished(settings, outputs, exported, group)


def resume(options: ResumeOptions, stop: Interruption, group: Group) -> Run:
    """A stored run as it was, but for what the options change.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see
            ``model_utils.errors``.
    """
    start_log()  # before the checkpoint is read, of which there may be something to say
    stored = resume_settings.stored_run(options.input_model)
    settings = resume_settings.train_options(options, stored)
    changes = resume_settings.changes(options, stored)
    try:
        return _trained(settings, stored.description, stop, group, changes)
    except MissingFileError as error:
        raise InputError(
            f"{error}: the run was begun with it; where it was moved, name it with --train_file, "
            "--valid_file or --test_file"
        ) from None


def _trained(
    options: TrainOptions,
    description: ModelDescription | None,
    stop: Interruption,
    group: Group,
    changes: Changes = UNCHANGED,
) -> Run:
    """Train as the only writer of the place.

    Args:
        options: every setting.
        description: of the network; None where the file of settings describes it,
            which may need the data.
        stop: signals and the clock.
        group: the processes of the run.
        changes: what a continued run does otherwise.
    """
    with place.held(options, group) as (placed, outputs):
        exported = exported_weights.of_run(placed, outputs, group)
        if description is None:
            placed, description = inline_model.described(placed, outputs, group)
        beginning = beginning_of_training(placed, outputs, description, group, changes)
        training.train_in_place(placed, outputs, beginning, stop, group)
        return _finished(placed, outputs, exported, group)


def _finished(
    options: TrainingOptions, outputs: Outputs, exported: ExportedWeights, group: Group
) -> Run:
    """The run by names that hold when its folders are no longer held and Python runs elsewhere;
    with its weights as safetensors where asked.
    """
    if group.rank.is_first and not options.run.dry_run:
        exported.write(options.common, outputs.model)
    return Run(outputs.absolute())
