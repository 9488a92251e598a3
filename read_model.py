"""Look into weights files: ``python read_model.py export|verify|show --help``."""

import sys
from collections.abc import Sequence

from model_utils import cli
from model_utils.options import ExportOptions, ShowOptions, VerifyOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    commands: cli.Commands = {
        "export": (ExportOptions, export),
        "verify": (VerifyOptions, verify),
        "show": (ShowOptions, show),
    }
    return cli.run_subcommand(commands, __doc__ or "", argv)


def export(options: ExportOptions) -> None:
    """Write the model.json that lies inside a weights file."""
    from model_utils import inspecting

    inspecting.export(options.input_model, options.output_json, overwrite=options.overwrite)


def verify(options: VerifyOptions) -> None:
    """Check a weights file against a model.json: hash, names, shapes, buffers."""
    from model_utils import inspecting

    inspecting.verify(options.input_model, options.input_json)


def show(options: ShowOptions) -> None:
    """Say what a weights file is."""
    from model_utils import inspecting

    inspecting.show(options.input_model)


if __name__ == "__main__":
    sys.exit(main())
