"""The generators by name: what each makes of the options is a ``Maker``."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from model_utils.generation import evolving, external, prototypes, symmetric
from model_utils.generation.candidate import Maker
from model_utils.settings.options import GenerateOptions

# of the options and a folder for what a generator needs to write while it works
Generator = Callable[[GenerateOptions, Path], Maker]

GENERATORS: Mapping[str, Generator] = {
    "random": symmetric.prepared,
    "evolve": evolving.prepared,
    "prototypes": prototypes.prepared,
    "external": external.prepared,
}
# the options that single generators look at
LOOKED_AT: Mapping[str, tuple[str, ...]] = {
    "random": ("space_group",),
    "evolve": ("parents", "best", "input_model"),
    "prototypes": ("prototypes", "rattle", "strain"),
    "external": ("external_files", "external_command", "external_time_limit"),
}


def not_looked_at(options: GenerateOptions) -> Iterator[str]:
    """The options that are given and that the chosen generator does not look at."""
    of_others = {
        name
        for generator, names in LOOKED_AT.items()
        if generator != options.generator
        for name in names
    }
    for group in (options.wanted, options.sources):
        for field in fields(group):
            if field.name in of_others and getattr(group, field.name) != field.default:
                yield field.name
