"""The generators by name: what each makes of the options is a ``Maker``."""

from collections.abc import Callable, Mapping
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
