"""Whether a training begins anew or goes on, by its options and what lies at its place."""

from model_utils import model_loader
from model_utils.errors import InputError
from model_utils.files.outputs import Outputs
from model_utils.models.description import ModelDescription
from model_utils.ranks.group import Group
from model_utils.run.beginnings import resuming
from model_utils.run.beginnings.beginning import Continued, Fresh
from model_utils.run.beginnings.continuation import UNCHANGED, Changes, with_asked
from model_utils.settings.options import TrainOptions


def beginning_of_training(
    options: TrainOptions,
    outputs: Outputs,
    description: ModelDescription,
    group: Group,
    changes: Changes = UNCHANGED,
) -> Fresh | Continued:
    """How a training begins: anew, or with --resume where a run is at its place.

    Args:
        options: of the run.
        outputs: its place, which nobody else writes.
        description: of the network.
        group: the processes of the run, of which the first looks at the place.
        changes: what a continued run does otherwise.

    Raises:
        InputError: the place holds another run's files and neither --resume nor --overwrite was
            given, or the settings contradict those of the run.
        VerificationError: the run there is of another network, or all of its
            checkpoints are damaged.
    """
    if options.running.changes_the_run and options.output.resume is None:
        raise InputError(
            "--resume_best, --resume_new_lr and --reset_scheduler say how a run "
            "goes on; add --resume"
        )
    if not group.rank.is_first:
        stored = resuming.run_of_first(group)
        return (
            Fresh(description)
            if stored is None
            else Continued(stored, with_asked(changes, options, stored))
        )
    beginning = _beginning_at(options, outputs, description, changes)
    resuming.say_run(group, beginning.stored if isinstance(beginning, Continued) else None)
    return beginning


def _beginning_at(
    options: TrainOptions, outputs: Outputs, description: ModelDescription, changes: Changes
) -> Fresh | Continued:
    if options.output.resume is None:
        refuse_other_files(options, outputs, description, of_author=True)
        return Fresh(description)
    stored = resuming.run_to_continue(outputs, changes.begin_with)
    if stored is None:
        if options.running.changes_the_run:
            raise InputError(
                f"there is no {outputs.checkpoint} to go on with; leave out what would change it"
            )
        resuming.refuse_remains(outputs)
        return Fresh(description)
    resuming.require_same_network(stored, options, outputs, description)
    asked = with_asked(changes, options, stored)
    if changes.begin_with is None:  # else the settings are those of the run
        resuming.refuse_contradictions(
            stored, options, may_differ=("lr",) if asked.begin_with is not None else ()
        )
    return Continued(stored, asked)


def refuse_other_files(
    options: TrainOptions, outputs: Outputs, description: ModelDescription, *, of_author: bool
) -> None:
    """Refuse a place with files that a new run would replace.

    Args:
        options: of the run; nothing is refused with --overwrite, nor in a dry
            run, which writes nothing.
        outputs: the place.
        description: of the network.
        of_author: whether --input_json is a person's own text, which may lie where
            the canonical one goes.

    Raises:
        InputError: naming the file.
    """
    if options.output.overwrite or options.run.dry_run:
        return
    outputs.refuse_another_run()
    authored = options.input_json if of_author else None
    model_loader.refuse_other_description(outputs, description, authored)
