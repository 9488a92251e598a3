"""Training and judging from Python, by the functions that the commands are made of.

.. code-block:: python

    from model_utils import api

    run = api.train({"input_json": "m.json", "train_file": "train.xyz", "run_dir": "runs/demo"})
    run.best_model.module            # torch module with the best weights, on the CPU
    run.metrics["valid"]             # errors of the best model, eV and eV/Å
    run.test("held_out.xyz")         # errors on other data
    api.opened("runs/demo/latest")   # the same for a run that is there

Settings are named as flags and keys of a YAML are (Parameters.md). What a command ends with an
exit code for is raised here: `InputError`, `VerificationError`, `NonFiniteError`, `SaveError`,
`Preempted` (``model_utils.errors``). Signals are met as in a command, so a training is called
from the main thread. Nothing here is imported slowly before it is used: the commands answer
``--help`` through this module.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_utils.errors import InputError
from model_utils.ranks import joining
from model_utils.run.interruption import Interruption
from model_utils.settings import reading, sections
from model_utils.settings.options import (
    EvaluateOptions,
    FinetuneOptions,
    ResumeOptions,
    TrainingOptions,
    TrainOptions,
)

if TYPE_CHECKING:
    from model_utils.tasks.evaluating import Evaluation
    from model_utils.tasks.finished_run import Run


def options_of(settings: Mapping[str, Any] | str | Path) -> TrainOptions | FinetuneOptions:
    """Options of a training, or of a fine-tuning where ``input_model`` or ``model:
    {pretrained: …}`` is among them.

    Args:
        settings: by name, flat or in the sections model, dataset and train; or a YAML file of them.
            Relative paths are taken from the folder of the file, or from where Python runs.

    Raises:
        InputError: a name is unknown, a value is not allowed, or something is missing.
    """
    if not isinstance(settings, Mapping | str | Path):
        raise InputError(
            f"settings are {settings!r:.60}; expected a mapping of settings or the path of a YAML "
            "file of them"
        )
    if isinstance(settings, str | Path):
        path = Path(settings)
        content = reading.settings_in(path)
    else:
        path = Path("settings")
        content = settings
    is_from_a_model = content.get("input_model") is not None or sections.begins_with_a_model(
        content
    )
    if is_from_a_model:
        return reading.of_settings(FinetuneOptions, content, path)
    return reading.of_settings(TrainOptions, content, path)


def train(options: TrainingOptions | Mapping[str, Any] | str | Path) -> "Run":
    """Train a network, or fine-tune a trained one; with ``resume: auto``, go on with
    the run that is there.

    Args:
        options: ``TrainOptions`` or ``FinetuneOptions``, or what ``options_of`` takes.

    Returns:
        The run, by its files. Of a dry run it has none.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see
            ``model_utils.errors``.
    """
    chosen = options if isinstance(options, TrainingOptions) else options_of(options)
    with Interruption(give_up=joining.giving_up()) as stop, _left_as_it_was():
        from model_utils.tasks import whole_run

        group = joining.group_of(stop)
        if isinstance(chosen, FinetuneOptions):
            return whole_run.fine_tune(chosen, stop, group)
        assert isinstance(chosen, TrainOptions)
        return whole_run.train(chosen, stop, group)


def resume(options: ResumeOptions) -> "Run":
    """Go on with a run as it was, but for what the options change.

    Raises:
        InputError, VerificationError, NonFiniteError, SaveError, Preempted: see
            ``model_utils.errors``.
    """
    with Interruption(give_up=joining.giving_up()) as stop, _left_as_it_was():
        from model_utils.tasks import whole_run

        return whole_run.resume(options, stop, joining.group_of(stop))


def evaluate(options: EvaluateOptions) -> "Evaluation":
    """Judge a model on structures.

    Raises:
        InputError, VerificationError: see ``model_utils.errors``.
    """
    with _left_as_it_was():
        from model_utils.tasks import evaluating

        return evaluating.evaluate(options)


def opened(path: str | Path) -> "Run":
    """The run whose folder or ``*_checkpoint.pt`` a path names.

    Raises:
        InputError: there is none, or several.
        VerificationError: its checkpoints are damaged.
    """
    from model_utils.tasks.finished_run import Run

    return Run.opened(Path(path))


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Give back what a run sets for the whole process; torch is imported here."""
    from model_utils import process_state

    with process_state.left_as_it_was():
        yield
