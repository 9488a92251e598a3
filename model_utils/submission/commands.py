"""The commands that can be submitted: one table."""

from dataclasses import dataclass

from model_utils.settings.command_sections import sections_of
from model_utils.settings.options import PipelineOptions, RelaxOptions
from model_utils.stages.table import STAGES


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A command of ours that can run elsewhere.

    Attributes:
        words: of its command line after the interpreter, the script below model_utils/ first.
        options: of the command.
        place: option that names where its results lie.
        reads_place: whether its input lies there too.
        is_file: whether that option names a file, whose folder comes back.
        fixed: settings that hold wherever it is submitted, so that a restart goes on.
    """

    words: tuple[str, ...]
    options: type
    place: str
    reads_place: bool = False
    is_file: bool = False
    fixed: tuple[tuple[str, str | bool], ...] = ()


def _stage(
    name: str,
    place: str,
    *,
    reads_place: bool = False,
    is_file: bool = False,
    fixed: tuple[tuple[str, str | bool], ...] = (),
) -> Submitted:
    """The command of a stage by itself."""
    return Submitted(
        words=(STAGES[name].script,),
        options=sections_of(PipelineOptions)[STAGES[name].section or name].kind,
        place=place,
        reads_place=reads_place,
        is_file=is_file,
        fixed=fixed,
    )


def commands() -> dict[str, Submitted]:
    """All of them by name."""
    return {
        "pipeline": Submitted(
            words=("pipeline.py", "run"), options=PipelineOptions, place="run_dir"
        ),
        "finetune": _stage("finetune", "output_checkpoint", fixed=(("resume", "auto"),)),
        "compare": _stage("compare", "output_json", is_file=True, fixed=(("overwrite", True),)),
        "generate": _stage("generate", "output_dir"),
        "relax": Submitted(words=("relax.py",), options=RelaxOptions, place="output_dir"),
        "judge": _stage("judge", "results_dir", reads_place=True),
    }
