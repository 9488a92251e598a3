"""The index of one shard: what is known of its records without reading them, on what that
depends, where it lies.

The index lies beside the shard, or in a per-user folder where that place cannot be written. It
holds for one size, one last transaction and one hash of sampled rows of the shard, and for one
choice of label names and model inputs. Of a file that was written at another time all records are
compared: one that is written anew may have all of these, and a copy has the same records.
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader import array_file
from dataloader.array_file import Contents, Damaged
from dataloader.cache_folder import cache_folder
from dataloader.labels import LabelKeys
from dataloader.needs import FeatureSpec
from dataloader.quantities import added

# 2 did not know of stated units, spellings of names and labels that are NaN; 3 had no digests; 4
# knew two constraints that hold atoms, and took a cell for Å beside positions in another unit; 5
# did not know what all records were, byte for byte
FORMAT = 6


@dataclass(frozen=True)
class IndexRecipe:
    """What an index depends on besides the file."""

    keys: LabelKeys
    features: tuple[FeatureSpec, ...] = ()

    def digest(self) -> str:
        """Eight letters for a file name."""
        depends = [
            FORMAT,
            asdict(self.keys),
            [asdict(spec) for spec in self.features],
            [asdict(q) for q in added()],
        ]
        text = json.dumps(depends, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class ShardIndex:
    """The index of one shard: arrays with a row for every sound record, counts of the rest.

    Attributes:
        path: of the shard.
        place: file of the index; None where it is kept nowhere.
        keys: of the records, (n,) uint64, or bytes where a key has leading zeros.
        n_atoms, free_components: (n,) uint32; components of forces on free atoms.
        labels: (n,) uint32, the bits of row_facts.
        max_force: (n,) float32, eV/Å, largest length of a force; NaN where there are none.
        elements: (n,) uint32 into ``element_sets``.
        heads: (n,) uint16 into ``head_names``.
        unusable_rows, unusable_kinds: of labels that are there and give no number: the row, and an
            index into ``unusable``, which has quantity and reason.
        refused_rows: (n_refused,) uint64, in order: which of all records of the shard are
            faulty and have no row here.
    """

    def __init__(self, path: Path, place: Path | None, contents: Contents) -> None:
        self.path = path
        self.place = place
        self.header = contents.header
        arrays = self._arrays = contents.arrays
        self.keys, self.n_atoms, self.free_components = (
            arrays[n] for n in ("keys", "n_atoms", "free_components")
        )
        self.labels = arrays["labels"]
        self.max_force = arrays["max_force"]
        self.elements = arrays["elements"]
        self.heads = arrays["heads"]
        self.element_sets = arrays["element_sets"]
        self.head_names: list[str | None] = contents.header["heads"]
        self.unusable_rows = arrays["unusable_rows"]
        self.unusable_kinds = arrays["unusable_kinds"]
        self.refused_rows = arrays["refused_rows"]
        self.unusable: list[tuple[str, str]] = [
            (quantity, reason) for quantity, reason in contents.header["unusable"]
        ]
        self.faults: dict[str, tuple[int, list[str]]] = {
            k: (n, o) for k, (n, o) in contents.header["faults"].items()
        }

    def check(self) -> None:
        """See whether the arrays fit each other.

        Raises:
            Damaged: they do not.
        """
        columns = (
            self.n_atoms,
            self.free_components,
            self.labels,
            self.max_force,
            self.elements,
            self.heads,
        )
        if any(len(column) != len(self) for column in columns) or len(self.unusable_rows) != len(
            self.unusable_kinds
        ):
            raise Damaged("arrays of unequal length")
        for numbers, n in (
            (self.elements, len(self.element_sets)),
            (self.heads, len(self.head_names)),
            (self.unusable_rows, len(self)),
            (self.unusable_kinds, len(self.unusable)),
        ):
            if len(numbers) and int(numbers.max()) >= n:
                raise Damaged("numbers of what is not there")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_records(self) -> int:
        """Records of the shard, faulty ones included."""
        return len(self.keys) + sum(count for count, _ in self.faults.values())

    @property
    def identity(self) -> str:
        """What tells the shard from others: size, last transaction and
        hashes of the sampled rows.
        """
        about = [self.header["state"], self.header["sampled"]]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @property
    def records(self) -> str:
        """Number and checksum of all records, by which shards of one ``identity`` differ; no
        matter in which parts they were indexed.
        """
        return json.dumps(self.header["content"])

    @property
    def sha256(self) -> str | None:
        """The sha256 of the shard's file; None where nobody has asked for it."""
        kept = self.header["sha256"]
        return None if kept is None else str(kept)

    def keep_sha256(self, digest: str) -> None:
        """Put the sha256 of the shard's file into the index, also where it lies."""
        if self.header["sha256"] != digest:
            self.header["sha256"] = digest
            self._write([self.place])

    def keep_time(self, written_at: int, elsewhere: Sequence[Path]) -> Path | None:
        """Put the time at which the shard's file was written into the index, also where it lies, or
        in another place where that one cannot be written.

        Returns:
            Where the index is now.
        """
        self.header["written_at"] = written_at
        return self._write([self.place, *elsewhere]) or self.place

    def _write(self, wanted: Sequence[Path | None]) -> Path | None:
        """Write the index into the first of some places that can be written; None where none can,
        or it is kept nowhere.
        """
        columns = {name: [array] for name, array in self._arrays.items()}
        for place in wanted:
            if place is not None:
                with contextlib.suppress(OSError):
                    workplace(place).mkdir(parents=True, exist_ok=True)
                    write_whole(place, self.header, columns)
                    with contextlib.suppress(OSError):  # somebody works there
                        workplace(place).rmdir()
                    return place
        return None

    def record_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which records of the shard some rows are, counted in the order of its
        keys, faulty ones included.
        """
        # sound ones before each faulty
        before = self.refused_rows.astype(np.int64) - np.arange(len(self.refused_rows))
        return rows + np.searchsorted(before, rows, side="right")

    def key(self, row: int) -> bytes:
        """The LMDB's key of a row."""
        return key_bytes(self.keys[row])


def key_bytes(stored: Any) -> bytes:
    """A key from its entry in an array of keys."""
    return bytes(stored) if isinstance(stored, bytes) else str(int(stored)).encode()


def digest_of(value: bytes) -> str:
    """What an index keeps of a sampled record."""
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def places(path: Path, recipe: IndexRecipe) -> list[Path]:
    """Where the index of a shard may lie: beside it, or in the user's cache folder."""
    ending = f"{recipe.digest()}.index"
    absolute = Path(os.path.realpath(path))
    beside = absolute.with_name(f"{absolute.name}.{ending}")
    name = f"{hashlib.sha256(str(absolute).encode()).hexdigest()[:16]}-{absolute.name}.{ending}"
    return [beside, cache_folder() / "lmdb_index" / name]


def workplace(place: Path) -> Path:
    """Where the parts of a file lie until it is whole."""
    return place.with_name(f"{place.name}.building")


def write_whole(
    place: Path, header: Mapping[str, Any], columns: Mapping[str, Sequence[NDArray[Any]]]
) -> None:
    """Write an index, or what belongs to one, in its work folder, and give it its name: a kill
    leaves nothing beside.

    Raises:
        OSError: it cannot be written; the work folder is gone, for one.
    """
    array_file.write(place, header, columns, made_in=workplace(place))


def outdated(path: Path) -> list[Path]:
    """Indexes of earlier versions beside a shard, which are not used any more."""
    of_earlier_versions = []
    absolute = Path(os.path.realpath(path))
    for place in sorted(absolute.parent.glob(f"{glob.escape(absolute.name)}.*.index")):
        with contextlib.suppress(OSError, Damaged, KeyError, TypeError):
            if array_file.look(place).header["format"] < FORMAT:
                of_earlier_versions.append(place)
    return of_earlier_versions
