"""Look into weights files, ours and mace's: ``python read_model.py
export|verify|show|diff|convert|best --help``.

And into runs: ``python read_model.py reproduce RUN``, ``python read_model.py diff RUN RUN``.
"""

import sys
from collections.abc import Sequence

from model_utils.settings import cli
from model_utils.settings.options import (
    BestOptions,
    ConvertOptions,
    DescribeOptions,
    DiffOptions,
    ExportOptions,
    ReproduceOptions,
    VerifyOptions,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    commands: cli.Commands = {
        "export": (ExportOptions, export),
        "verify": (VerifyOptions, verify),
        "show": (DescribeOptions, show),
        "diff": (DiffOptions, diff),
        "convert": (ConvertOptions, convert),
        "reproduce": (ReproduceOptions, reproduce),
        "best": (BestOptions, best),
    }
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["best"] and len(words) > 1 and not words[1].startswith("-"):
        words.insert(1, "--input_model")  # `best RUN`
    return cli.run_subcommand(commands, __doc__ or "", words)


def export(options: ExportOptions) -> None:
    """Write the model.json of a weights file."""
    from model_utils.tasks import inspecting

    inspecting.export(options)


def verify(options: VerifyOptions) -> None:
    """Check a weights file against a model.json: hash, names, shapes, buffers."""
    from model_utils.tasks import inspecting

    inspecting.verify(options)


def show(options: DescribeOptions) -> None:
    """Say what a weights file is."""
    from model_utils.tasks import inspecting

    inspecting.show(options)


def diff(options: DiffOptions) -> None:
    """Say where two weights files differ, or the runs of two folders."""
    if options.input_model.is_dir() and options.other_model.is_dir():
        from model_utils.tasks import comparing_runs

        comparing_runs.diff(options)
        return
    from model_utils.tasks import inspecting

    inspecting.diff(options)


def convert(options: ConvertOptions) -> None:
    """Write weights in another form."""
    from model_utils.tasks import conversion

    conversion.convert(options)


def reproduce(options: ReproduceOptions) -> None:
    """Print the command that repeats a run."""
    from model_utils.tasks import comparing_runs

    comparing_runs.reproduce(options)


def best(options: BestOptions) -> None:
    """Choose among the models that a run kept."""
    from model_utils.tasks import choosing

    choosing.best(options)


if __name__ == "__main__":
    sys.exit(main())
