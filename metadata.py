"""Put what the data say into a model.json, or look for what is wrong with them: ``python
metadata.py init --help``.

Also ``python metadata.py fit --help`` and ``python metadata.py check --help``.
"""

import sys
from collections.abc import Sequence

from model_utils.ranks.rank import compute_as_one_alone
from model_utils.settings import cli
from model_utils.settings.options import CheckOptions, MetadataFitOptions, MetadataInitOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    commands: cli.Commands = {
        "init": (MetadataInitOptions, init),
        "fit": (MetadataFitOptions, fit),
        "check": (CheckOptions, check),
    }
    compute_as_one_alone()  # before numpy is imported
    return cli.run_subcommand(commands, __doc__ or "", argv, processes="together")


def init(options: MetadataInitOptions) -> None:
    """Write a complete model.json from data (and a preset or a mace YAML); without
    data, the network alone.
    """
    from model_utils.tasks import describe_data as describe

    group = describe.start()
    network = describe.network_fields(options)
    if not options.has_data:
        group.once(lambda: describe.write_network(options, network))
        return
    sums = describe.measure(options, network, group)
    if sums is None:  # the first process goes on alone
        return
    stated = describe.stated(options)
    network["heads"] = describe.heads_of(sums, stated.heads)
    describe.write(options, network | describe.measured_fields(sums, network, options, stated))


def fit(options: MetadataFitOptions) -> None:
    """Measure the data and put the numbers into a model.json that is there."""
    from model_utils.tasks import describe_data as describe

    group = describe.start()
    network = describe.existing_fields(options)
    sums = describe.measure(options, network, group)
    if sums is None:  # the first process goes on alone
        return
    stated = describe.Stated(zero_shift=options.zero_shift)
    describe.write(options, network | describe.measured_fields(sums, network, options, stated))


def check(options: CheckOptions) -> None:
    """Say what is wrong with the data, as a table and as JSON."""
    from model_utils.tasks import checking

    checking.check(options)


if __name__ == "__main__":
    sys.exit(main())
