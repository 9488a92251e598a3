"""Work in numbered parts, each a file that is there as a whole or not at all,
whichever process made it.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dataloader import array_file, parallel
from dataloader.array_file import Damaged
from dataloader.errors import START_AGAIN, cannot_write
from dataloader.progress import ProgressBar
from dataloader.work_folder import overtaken

Columns = Mapping[str, NDArray[Any]]


class Parts:
    """The parts of one work, in a folder that is removed when all of it is done.

    Several processes may make parts at the same time, also the same one: what
    they write is the same.

    Args:
        folder: where the files lie.
        name: their names begin with it.
        made_for: what the content depends on, as a text; a part that was made for
            something else does not count.
    """

    def __init__(self, folder: Path, name: str, made_for: str) -> None:
        self.folder = folder
        self.name = name
        self.made_for = made_for

    def path(self, number: int) -> Path:
        """Where a part lies when it is there."""
        return self.folder / f"{self.name}-{number:08d}"

    def read(self, number: int) -> Columns | None:
        """The arrays of a part, mapped and compared with their digests; None where it is
        not there or not whole.
        """
        try:
            contents = array_file.read(self.path(number))
        except (OSError, Damaged):
            return None
        return contents.arrays if contents.header.get("made_for") == self.made_for else None

    def absent(self, numbers: Iterable[int]) -> list[int]:
        """Which of some parts have no file; those that have one are not looked into."""
        try:
            there = set(os.listdir(self.folder))
        except FileNotFoundError:
            there = set()
        return [number for number in numbers if self.path(number).name not in there]

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Which of some parts are still to be made."""
        return [number for number in numbers if self.read(number) is None]

    def make(
        self,
        numbers: Sequence[int],
        work: Callable[[int], Columns],
        what: str,
        sizes: Mapping[int, int],
    ) -> None:
        """Make those of some parts that are not there, in child processes.

        Args:
            numbers: of the parts.
            work: gives the arrays of a part.
            what: the work, as the progress bar names it.
            sizes: structures of each part.

        Raises:
            InputError: what ``work`` raised, or a part cannot be written.
            SaveError: there is no room for it.
        """
        missing = self.missing(numbers)
        with ProgressBar(what, sum(sizes[number] for number in numbers)) as bar:
            bar.begin_at(
                sum(sizes[number] for number in numbers) - sum(sizes[number] for number in missing)
            )
            for done, _ in parallel.in_children(partial(self._make, work=work), missing):
                bar.update(sizes[missing[done]])

    def _make(self, number: int, work: Callable[[int], Columns]) -> None:
        columns = work(number)
        path = self.path(number)
        try:
            with overtaken(self.folder):
                array_file.write(
                    path,
                    {"made_for": self.made_for},
                    {name: [array] for name, array in columns.items()},
                )
        except OSError as error:
            raise cannot_write(path, error, START_AGAIN, room=START_AGAIN) from None
