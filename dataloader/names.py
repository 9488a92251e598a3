"""Names of a record, whatever their case: ``lattice``, ``Lattice`` and ``LATTICE`` are one."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache

from dataloader.units import is_general, stated_quantity

# letters; of shorter names the case may tell two things apart: y and Y, z and Z
SHORTEST_FOLDED = 3


class Entries(Mapping[str, object]):
    """A record's names and values, and which of them are spellings of one usual name."""

    __slots__ = ("_shape", "_values")

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._shape = _shape_of(tuple(values))

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "Entries":
        """Entries of a mapping; what has been made into entries before is given back."""
        return values if isinstance(values, cls) else cls(values)

    def __getitem__(self, name: str) -> object:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def present(self, names: tuple[str, ...], *, exact: bool = False) -> list[str]:
        """The names as this record spells them, in order, of those that have a value.

        Args:
            names: usual names.
            exact: in this spelling only.
        """
        spellings = names if exact else self._shape.spellings(names)
        values = self._values
        return [name for name in spellings if values.get(name) is not None]

    def stating_units(self) -> tuple[str, ...]:
        """The names of entries that say in which unit another one is."""
        return self._shape.stating_units


class _Shape:
    """What the names of a record alone decide; the records of a file share a few of them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._by_folded: dict[str, list[str]] = {}
        for name in names:
            if isinstance(name, str):
                self._by_folded.setdefault(folded(name), []).append(name)
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.stating_units = tuple(
            name for name in names if isinstance(name, str) and states_unit(name)
        )

    def spellings(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the record that are spellings of usual names, in the order of these,
        usual spellings first.
        """
        known = self._known.get(names)
        if known is None:
            known = tuple(
                spelling
                for name in names
                for spelling in sorted(
                    self._by_folded.get(folded(name), ()), key=lambda there: there != name
                )
            )
            self._known[names] = known
        return known


@lru_cache(maxsize=256)
def _shape_of(names: tuple[str, ...]) -> _Shape:
    return _Shape(names)


def folded(name: str) -> str:
    """A name without its case; short ones keep theirs."""
    return name.casefold() if len(name) >= SHORTEST_FOLDED else name


class WantedNames(Collection[str]):
    """Names that a reader looks at, in any case, with all that state a unit; for
    readers that skip the others.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._folded = frozenset(map(folded, self._names))
        self._answers: dict[object, bool] = {}  # the same few names come in every row

    def __contains__(self, name: object) -> bool:
        answer = self._answers.get(name)
        if answer is None:
            answer = isinstance(name, str) and (
                name in self._names or folded(name) in self._folded or states_unit(name)
            )
            if len(self._answers) < 10_000:
                self._answers[name] = answer
        return answer

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def without(self, names: Iterable[str]) -> "WantedNames":
        """The wanted names without some of them."""
        return WantedNames(self._names - set(names))


def states_unit(name: str) -> bool:
    """Whether an entry of this name says in which unit another one is."""
    return "unit" in name.casefold() and (stated_quantity(name) is not None or is_general(name))
