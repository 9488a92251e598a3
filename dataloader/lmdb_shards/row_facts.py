"""What an index says of some records: sizes, labels and faults, looked at for whole groups
of structures at once.

Most records are sound, and that is seen for hundreds of them together. What is in doubt is looked
at by itself: only `decode` and `fault_of` find a fault, so that a record is kept or refused as it
would be if it were read alone.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import RowError
from dataloader.labels import LabelError, LabelKeys
from dataloader.lmdb_shards.lmdb_record import Decoded, decode, fault_of
from dataloader.lmdb_shards.similar_rows import Group, Patterns, has_a_kind
from dataloader.needs import FeatureSpec
from dataloader.neighbors import surely_apart
from dataloader.quantities import QUANTITIES
from dataloader.quantities import added as added_quantities
from dataloader.record import Reading
from dataloader.structure import surely_sound

SHOWN_OFFENDERS = 3
MOST_REASONS = 200
# Bits of `labels`:
ENERGY, FORCES, STRESS, CHARGED, OPEN_SHELL, ISOLATED, FREE_MASK, PERIODIC = (
    1 << i for i in range(8)
)
_FIRST_ADDED = 8  # bit of the first quantity beside energy, forces and stress


def label_bit(quantity: str) -> int:
    """The bit that says whether a record has a label of a quantity."""
    own = {"energy": ENERGY, "forces": FORCES, "stress": STRESS}
    names = [added.name for added in added_quantities()]
    return own[quantity] if quantity in own else 1 << (_FIRST_ADDED + names.index(quantity))


UNKNOWN = "is NaN"  # of a label: how programs write what they do not know

_ROWS = 4096  # records that are looked at together
_BYTES = 32 * 2**20  # of their values
_ATOMS = 2**18  # of structures that wait for others like them


def facts_of(
    values: Iterable[bytes],
    again: Callable[[int], bytes],
    key: Callable[[int], str],
    n: int,
    labels: LabelKeys,
    features: tuple[FeatureSpec, ...],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and columns of the index of ``n`` records.

    Args:
        values: the records.
        again: one of them by its number.
        key: the key of one of them, to name it as an offender.
        n: how many there are.
        labels: names of the labels.
        features: inputs that the model takes.
    """
    patterns = Patterns(labels, features)
    waiting = _Waiting()
    facts = _Facts(n)

    def look_at(groups: Sequence[Group]) -> None:
        for group in groups:
            sound = _surely_sound(group)
            facts.keep(group, sound)
            for row in group.rows[~sound].tolist():
                look_at_one(row, again(row), alone=True)

    def look_at_one(row: int, value: bytes, *, alone: bool) -> None:
        try:
            decoded = decode(value, "", labels, features)
        except (RowError, LabelError) as error:
            facts.refuse(row, str(error))
            return
        if alone or not waiting.take(row, decoded):
            facts.keep_or_refuse(row, decoded)

    for first, chunk in _chunks(values):
        groups, others = patterns.read(chunk)
        look_at([group._replace(rows=group.rows + first) for group in groups])
        for row in others:
            look_at_one(first + row, chunk[row], alone=False)
        if waiting.n_atoms > _ATOMS:
            look_at(waiting.groups())
    look_at(waiting.groups())
    return facts.header(key), facts.columns()


def _chunks(values: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Records in bounded memory, with the number of the first."""
    first = 0
    chunk = list[bytes]()
    n_bytes = 0
    for value in values:
        chunk.append(value)
        n_bytes += len(value)
        if len(chunk) == _ROWS or n_bytes >= _BYTES:
            yield first, chunk
            first = first + len(chunk)
            chunk = []
            n_bytes = 0
    yield first, chunk


def _surely_sound(group: Group) -> NDArray[np.bool_]:
    """Which structures have no fault; those that get False may have none either."""
    periodic = group.like.structure.periodic
    sound = surely_sound(group.positions, group.cells, group.numbers, periodic=periodic)
    for values in (group.energies, group.forces):
        if values is not None:
            sound &= np.isfinite(values).reshape(len(values), -1).all(axis=1)
    sound[sound] = surely_apart(group.positions[sound], group.cells[sound] if periodic else None)
    return sound


def _group(rows: Sequence[int], group: Sequence[Decoded]) -> Group:
    structures = [decoded.structure for decoded in group]

    def stacked(name: str) -> Any:
        values = [getattr(s, name) for s in structures]
        return None if values[0] is None else np.array(values)

    names = ("atomic_numbers", "positions", "cell", "energy", "forces", "free_atoms")
    return Group(np.array(rows), group[0], *map(stacked, names))


class _Waiting:
    """Structures that were read one by one, until there are others like them."""

    def __init__(self) -> None:
        self.n_atoms = 0
        self._kinds: dict[tuple[object, ...], list[tuple[int, Decoded]]] = defaultdict(list)

    def take(self, row: int, decoded: Decoded) -> bool:
        """Whether the structure is of a kind that is looked at with others."""
        s = decoded.structure
        if not has_a_kind(decoded):
            return False
        present = (*s.labels, s.free_atoms is not None)
        kind = (
            s.n_atoms,
            s.pbc,
            present,
            s.head,
            s.is_isolated_atom,
            s.charge,
            s.spin,
            *decoded.reading[1:],
            *decoded[1:],
        )
        self._kinds[kind].append((row, decoded))
        self.n_atoms += s.n_atoms
        return True

    def groups(self) -> list[Group]:
        """The groups of all structures that were waiting; none waits afterwards."""
        groups = [_group(*zip(*alike, strict=True)) for alike in self._kinds.values()]
        self._kinds.clear()
        self.n_atoms = 0
        return groups


class _Facts:
    """A row of the index for every record that is sound, counts of the rest."""

    def __init__(self, n: int) -> None:
        self._sound = np.zeros(n, dtype=bool)
        self._arrays: dict[str, NDArray[Any]] = {
            "n_atoms": np.zeros(n, "u4"),
            "free_components": np.zeros(n, "u4"),
            "labels": np.zeros(n, "u4"),
            "max_force": np.full(n, np.nan, "f4"),
            "heads": np.zeros(n, "u2"),
        }
        self._elements = np.zeros((n, 2), dtype=np.uint64)
        self._heads: dict[str | None, int] = {}
        kinds = ("names", "pbc_rules", "layouts", "is2re", "notes", "named")
        self._counts: dict[str, Counter[Any]] = {name: Counter() for name in kinds}
        self._unusable: list[tuple[int, str, str]] = []  # row, quantity, reason: of labels
        self._refused: list[tuple[int, str]] = []

    def refuse(self, row: int, fault: str) -> None:
        """Count a record that cannot be used; numbers in brackets at the end of a fault tell
        its like apart no more.
        """
        self._refused.append((row, fault.split(" (")[0]))

    def keep_or_refuse(self, row: int, decoded: Decoded) -> None:
        """One record that was looked at by itself."""
        fault = fault_of(decoded.structure)
        if fault:
            self.refuse(row, fault)
        else:
            self.keep(_group([row], [decoded]), np.ones(1, dtype=bool))

    def keep(self, group: Group, sound: NDArray[np.bool_]) -> None:
        """The sound records of a group."""
        rows = group.rows[sound]
        like = group.like
        n_atoms = group.numbers.shape[1]
        count = len(rows)
        if count == 0:
            return
        self._sound[rows] = True
        self._arrays["n_atoms"][rows] = n_atoms
        self._arrays["labels"][rows] = _bits(like)
        self._arrays["heads"][rows] = self._heads.setdefault(like.structure.head, len(self._heads))
        if group.forces is not None:
            n_free = n_atoms if group.free is None else group.free[sound].sum(axis=1)
            self._arrays["free_components"][rows] = 3 * n_free
            with np.errstate(over="ignore"):
                self._arrays["max_force"][rows] = np.sqrt(
                    np.square(group.forces[sound]).sum(axis=2).max(axis=1)
                )
        self._elements[rows] = _element_bits(group.numbers[sound])
        self._counts["names"][like.reading.names] += 0 if like.structure.is_isolated_atom else count
        self._counts["pbc_rules"][like.reading.pbc_rule] += count
        for note in like.reading.notes:
            self._counts["notes"][note] += count
        self._counts["named"]["charge"] += 0 if like.structure.charge is None else count
        self._counts["named"]["spin"] += 0 if like.structure.spin is None else count
        for quantity, reason in unusable_labels(like.reading):
            self._unusable += [(row, quantity, reason) for row in rows.tolist()]
        self._counts["layouts"][like.layout] += count
        self._counts["is2re"][True] += count if like.is2re else 0

    def header(self, key: Callable[[int], str]) -> dict[str, Any]:
        """What goes into the header of the index; offenders by their keys."""
        faults: dict[str, list[Any]] = {}
        for row, reason in sorted(self._refused):
            if reason not in faults and len(faults) >= MOST_REASONS:
                reason = "other faults"
            entry = faults.setdefault(reason, [0, []])
            entry[0] += 1
            if len(entry[1]) < SHOWN_OFFENDERS:
                entry[1].append(key(row))
        return {
            "heads": list(self._heads),
            "names": [[list(names), count] for names, count in self._counts["names"].items()],
            "pbc_rules": self._counts["pbc_rules"],
            "layouts": self._counts["layouts"],
            "faults": faults,
            "is2re": self._counts["is2re"][True],
            "notes": self._counts["notes"],
            "named": self._counts["named"],
            "unusable": [list(kind) for kind in self._kinds_of_unusable()],
        }

    def _kinds_of_unusable(self) -> dict[tuple[str, str], int]:
        """Quantities and reasons of labels that cannot be used, each with a number."""
        kinds: dict[tuple[str, str], int] = {}
        for _, quantity, reason in self._unusable:
            several = "cannot be used (for many reasons)"
            kind = (quantity, reason if len(kinds) < MOST_REASONS else f"{quantity} {several}")
            kinds.setdefault(kind, len(kinds))
        return kinds

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays of the index, and ``rows``, the numbers of the records that are in it."""
        columns = {name: array[self._sound] for name, array in self._arrays.items()}
        sets, numbers = np.unique(self._elements[self._sound], axis=0, return_inverse=True)
        columns |= {"elements": numbers.reshape(-1).astype("u4"), "element_sets": sets}
        kinds = self._kinds_of_unusable()
        place = np.cumsum(self._sound) - 1  # of a record among the sound ones
        columns["unusable_rows"] = np.array(
            [place[row] for row, _, _ in self._unusable], dtype="u8"
        )
        columns["unusable_kinds"] = np.array(
            [
                kinds.get((quantity, reason), len(kinds) - 1)
                for _, quantity, reason in self._unusable
            ],
            dtype="u2",
        )
        columns["refused_rows"] = np.array(sorted(row for row, _ in self._refused), dtype="u8")
        return columns | {"rows": np.nonzero(self._sound)[0]}


def unusable_labels(reading: Reading) -> Iterator[tuple[str, str]]:
    """Quantity and reason of labels that are there and give no number; a stress that
    is NaN is nobody's loss.

    Numbers in brackets at the end of a reason would tell its like apart.
    """
    for faulty, reason in reading.faults:
        yield faulty, reason.split(" (")[0]
    for quantity, name in zip(QUANTITIES.values(), reading.names, strict=True):
        if quantity.unknown_is_fault and name is not None and "(absent: NaN)" in name:
            yield quantity.name, f"{quantity.name} {UNKNOWN}"


def _bits(decoded: Decoded) -> int:
    s = decoded.structure
    bits = sum(label_bit(quantity) for quantity in s.labels)
    bits |= FREE_MASK if s.free_atoms is not None else 0
    bits |= CHARGED if s.charged else 0
    bits |= OPEN_SHELL if s.open_shell else 0
    bits |= PERIODIC if s.periodic else 0
    return bits | (ISOLATED if s.is_isolated_atom else 0)


def _element_bits(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Atomic numbers (m, n_atoms) as two words of 64 bits each, (m, 2)."""
    bits = np.uint64(1) << (numbers % 64).astype(np.uint64)
    words = [np.where(numbers // 64 == word, bits, np.uint64(0)) for word in range(2)]
    return np.stack([np.bitwise_or.reduce(word, axis=1) for word in words], axis=1)
