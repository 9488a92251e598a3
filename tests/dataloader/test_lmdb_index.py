"""The index: made once, kept, made again when the file is another, interrupted without
harm; filters and samples.
"""

import faulthandler
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmdb_material import dict_row, labelled, put, write_dicts

from conftest import HANGING, ROOT, living, wait_until
from dataloader import array_file, parallel
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_file import state_of
from dataloader.lmdb_shards import index_building
from dataloader.lmdb_shards.lmdb_index import open_indexes
from dataloader.lmdb_shards.lmdb_source import Filters, LmdbSource
from dataloader.lmdb_shards.shard_index import IndexRecipe, places
from dataloader.needs import ModelFacts
from dataloader.neighbors import build_graph
from dataloader.selection import sample

FULL = os.environ.get("BATTERY") in ("full", "product")
RECIPE = IndexRecipe(LabelKeys())
N = 60


@pytest.fixture(autouse=True)
def _kept_from_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Indexes of a few records are kept too, in parts of seven; the cache
    folder is the test's own.
    """
    monkeypatch.setattr(index_building, "KEPT_FROM", 10)
    monkeypatch.setattr(index_building, "MIN_PART", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write_dicts(tmp_path / "data" / "some.lmdb", labelled(N))


def source(path: Path, *, max_dropped: float = 0.001, **filters: Any) -> LmdbSource:
    keys = filters.pop("keys", LabelKeys())
    return LmdbSource(
        path, keys, needs=TO_TRAIN, max_dropped=max_dropped, filters=Filters(**filters)
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each later call of the indexing reads; children tell through a pipe."""
    reading, writing = os.pipe()
    index_rows = index_building.index_rows

    def count(file: Path, keys: Any, recipe: IndexRecipe) -> Any:
        os.write(writing, len(keys).to_bytes(4, "little"))
        return index_rows(file, keys, recipe)

    monkeypatch.setattr(index_building, "index_rows", count)
    os.set_blocking(reading, False)

    class Reader(list):  # type: ignore[type-arg]
        def total(self) -> int:
            try:
                data = os.read(reading, 2**16)
            except BlockingIOError:
                return 0
            return sum(int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4))

    return Reader()


def test_an_index_holds_what_the_records_hold(path: Path) -> None:
    found = source(path)
    assert len(found) == N
    assert found.n_atoms.tolist() == [len(atoms) for atoms in labelled(N)]
    assert found.free_components.tolist() == [3 * len(atoms) for atoms in labelled(N)]
    assert [found.elements[i] for i in (0, N - 1)] == [frozenset({1, 8})] * 2
    assert [found.heads[i] for i in (0, N - 1)] == [None, None]
    np.testing.assert_array_equal(found.structure(33).positions, labelled(N)[33].positions)
    edges = found.edges(3.0)
    assert edges.tolist() == [build_graph(found.structure(i), 3.0).n_edges for i in range(N)]


def test_an_index_is_made_once_and_kept_beside_the_data(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = source(path)
    assert places(path, RECIPE)[0].is_file()
    assert not list(path.parent.glob("*.building"))
    reads: Any = counted(monkeypatch)
    second = source(path)
    assert reads.total() == 0
    assert second.n_atoms.tolist() == first.n_atoms.tolist()
    assert (
        second.edges(3.0).tolist() == first.edges(3.0).tolist() == source(path).edges(3.0).tolist()
    )
    source(path, keys=LabelKeys(energy="energy"))
    assert reads.total() > N, "other label names are another index"


def test_a_place_that_cannot_be_written_leads_to_the_users_cache(
    path: Path, tmp_path: Path
) -> None:
    path.parent.chmod(0o555)
    try:
        source(path)
        assert [entry.name for entry in path.parent.iterdir()] == ["some.lmdb"]
        assert places(path, RECIPE)[1].is_file()
        assert len(source(path)) == N
    finally:
        path.parent.chmod(0o755)


def test_small_lmdbs_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = write_dicts(tmp_path / "data" / "small.lmdb", labelled(9))
    assert len(source(path)) == 9
    assert [entry.name for entry in path.parent.iterdir()] == ["small.lmdb"]


def test_another_file_in_the_place_is_indexed_anew(path: Path) -> None:
    assert len(source(path)) == N
    put(path, {b"200": dict_row(labelled(1)[0])})
    assert len(source(path)) == N + 1, "another transaction"
    path.unlink()
    write_dicts(path, labelled(N, seed=5))  # the same size and transaction
    assert source(path).structure(0).energy == labelled(N, seed=5)[0].calc.results["energy"]


def with_another_row(path: Path, row: int, seconds: int) -> None:
    """Write a shard anew with other forces in a row that no sample of an index looks at."""
    frames = labelled(N)
    frames[row].calc.results["forces"] *= 100.0
    path.unlink()
    write_dicts(path, frames)
    then = path.stat().st_mtime + seconds
    os.utime(path, (then, then))


def test_a_shard_that_is_written_anew_with_one_other_record_is_indexed_anew(path: Path) -> None:
    before = source(path)
    state = state_of(path)
    n_edges = before.edges(3.0)
    with_another_row(path, 33, seconds=5)
    assert state_of(path) == state, "size and transaction say nothing"
    after = source(path)
    assert after.indexes[0].identity == before.indexes[0].identity
    assert after.indexes[0].records != before.indexes[0].records
    largest = [of.indexes[0].max_force[33] for of in (before, after)]
    assert largest[1] == pytest.approx(100 * largest[0])
    assert after.edges(3.0).tolist() == n_edges.tolist()


def test_what_all_records_are_does_not_depend_on_how_they_were_cut(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts = source(path).indexes[0]
    assert in_parts.place is not None
    places(path, RECIPE)[0].unlink()
    monkeypatch.setattr(index_building, "KEPT_FROM", 1000)
    at_once = source(path).indexes[0]
    assert at_once.place is None
    assert at_once.records == in_parts.records


def test_a_copy_of_a_shard_keeps_its_index(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(path)
    shutil.copytree(path.parent, tmp_path / "copied", copy_function=shutil.copyfile)
    copied = tmp_path / "copied" / path.name
    os.utime(copied, (1e9, 1e9))
    reads: Any = counted(monkeypatch)
    assert len(source(copied)) == N
    assert reads.total() == 0
    header = array_file.look(places(copied, RECIPE)[0]).header
    assert header["written_at"] == 10**9, "the next time nothing is compared"


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text", "flipped"])
def test_a_damaged_index_is_made_again(damage: str, path: Path) -> None:
    whole = source(path).n_atoms.tolist()
    place = places(path, RECIPE)[0]
    content = place.read_bytes()
    flipped = bytes([content[0] ^ 255]) + content[1:]
    place.write_bytes(
        {
            "cut": content[:-100],
            "empty": b"",
            "zeros": bytes(len(content)),
            "text": b"x" * 99,
            "flipped": flipped,
        }[damage]
    )
    assert source(path).n_atoms.tolist() == whole
    assert place.read_bytes() == content


class Heard(logging.Handler):
    """Keeps what is logged as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def since(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def lines() -> Iterator[Callable[[], list[str]]]:
    heard = Heard()
    logging.getLogger("mace_pretrain").addHandler(heard)
    yield heard.since
    logging.getLogger("mace_pretrain").removeHandler(heard)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    """Change one bit, in a new file in the place of the old one."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.unlink()
    file.write_bytes(content)


def offsets(file: Path) -> dict[str, tuple[int, int]]:
    """First and last byte of everything in a file of arrays; padding, which
    means nothing, is left out.
    """
    content = file.read_bytes()
    head = 35 + int.from_bytes(content[23:31], "little")
    begin = -(-head // 64) * 64
    layout = json.loads(content[35:head])["arrays"]
    sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for _, kind, shape, _, _ in layout]
    arrays = {
        name: (begin + position, begin + position + size - 1)
        for (name, _, _, position, _), size in zip(layout, sizes, strict=True)
        if size
    }
    return {
        "magic": (0, 22),
        "length": (23, 30),
        "digest of the header": (31, 34),
        "header": (35, head - 1),
    } | arrays


def damaging(n: int = N) -> list[Any]:
    """Structures whose records fill every array of an index."""
    rows = {str(i).encode(): dict_row(atoms) for i, atoms in enumerate(labelled(n))}
    rows[b"3"] = pickle.dumps([1])
    rows[b"8"] = dict_row(labelled(n)[8], energy=float("nan"))
    return list(rows.items())


def columns_of(path: Path) -> list[Any]:
    index = source(path, max_dropped=0.2).indexes[0]
    return [json.dumps(index.header)] + [array.tolist() for array in index._arrays.values()]


EVERYTHING = {
    *(
        "magic",
        "length",
        "digest of the header",
        "header",
        "keys",
        "n_atoms",
        "free_components",
        "labels",
        "max_force",
    ),
    *("elements", "heads", "unusable_rows", "unusable_kinds", "refused_rows", "element_sets"),
}


def test_a_flipped_bit_anywhere_in_an_index_is_noticed(tmp_path: Path) -> None:
    """Of everything that is in the file; every byte of it in the battery, here first and last
    ones and some between.
    """
    path = put(tmp_path / "some.lmdb", dict(damaging()))
    source(path, max_dropped=0.2)
    place, copy = places(path, RECIPE)[0], tmp_path / "copy"
    parts = offsets(place)
    assert set(parts) == EVERYTHING
    for first, last in parts.values():
        some = {first, last, *range(first, last + 1, 1 if FULL else 11)}
        for offset in some:
            shutil.copyfile(place, copy)
            flip(copy, offset, offset % 8)
            with pytest.raises(array_file.Damaged):
                array_file.read(copy)


@pytest.mark.parametrize("what", sorted(EVERYTHING) if FULL else ["header", "keys", "max_force"])
def test_an_index_with_a_flipped_bit_is_made_again(what: str, tmp_path: Path, lines: Any) -> None:
    """With one line, and it is the same as before to the byte."""
    (tmp_path / "data").mkdir()
    path = put(tmp_path / "data" / "some.lmdb", dict(damaging()))
    whole, place = columns_of(path), places(path, RECIPE)[0]
    content = place.read_bytes()
    flip(place, offsets(place)[what][1])
    assert columns_of(path) == whole
    (line,) = lines()
    assert line.startswith(str(place))
    assert line.endswith("; it is made again")
    assert place.read_bytes() == content
    assert columns_of(path) == whole
    assert lines() == []


def test_an_index_that_lost_its_end_or_a_block_is_mended(path: Path, lines: Any) -> None:
    source(path)
    place = places(path, RECIPE)[0]
    content = place.read_bytes()
    for damaged in (content[:-70], content[:-2048] + bytes(512) + content[-1536:]):
        place.unlink()
        place.write_bytes(damaged)
        assert len(source(path)) == N
        assert len(lines()) == 1
        assert place.read_bytes() == content


def test_counted_edges_that_are_damaged_are_counted_again(path: Path, lines: Any) -> None:
    whole = source(path).edges(3.0).tolist()
    (place,) = path.parent.glob("*.edges-3.0")
    content, parts = place.read_bytes(), offsets(place)
    for what in parts if FULL else ("header", "n_edges"):
        flip(place, parts[what][1], 2)
        assert source(path).edges(3.0).tolist() == whole
        (line,) = lines()
        assert line.startswith(str(place))
        assert line.endswith("; neighbours are counted again")
        assert place.read_bytes() == content
    assert source(path).edges(3.0).tolist() == whole
    assert lines() == []


def test_damaged_parts_of_an_interrupted_index_are_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part with a flipped bit, an empty one and one that is cut off; the sound
    ones are not made again.
    """
    whole = source(path).n_atoms.tolist()
    place = places(path, RECIPE)[0]
    place.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(index_building, "_assemble", failing)
        with pytest.raises(InputError, match="the disk fell off"):
            source(path)
    parts = sorted(parts_made(place.with_name(f"{place.name}.building")))
    assert len(parts) == -(-N // 7)
    flip(parts[1], len(parts[1].read_bytes()) // 2)
    parts[3].write_bytes(b"")
    parts[4].write_bytes(parts[4].read_bytes()[:-100])
    reads: Any = counted(monkeypatch)
    assert source(path).n_atoms.tolist() == whole
    assert reads.total() == 3 * 7 + index_building.SAMPLED_ROWS


def failing(*_: Any) -> None:
    raise InputError("the disk fell off")


def test_the_hash_of_the_file_outlives_a_damaged_index_and_an_earlier_version(
    path: Path, lines: Any
) -> None:
    """Once kept, --verify compares with it, also where arrays had to be made again or the
    index has another form.
    """
    kept = source(path, verify=True).indexes[0].sha256
    place = places(path, RECIPE)[0]
    flip(place, offsets(place)["n_atoms"][0])
    assert source(path).indexes[0].sha256 == kept
    assert len(lines()) == 1
    contents = array_file.read(place)
    old = place.with_name(f"{path.name}.0123abcd.index")
    columns = {name: [array] for name, array in contents.arrays.items()}
    array_file.write(old, contents.header | {"format": index_building.FORMAT - 1}, columns)
    place.unlink()
    assert source(path).indexes[0].sha256 == kept
    place.unlink()
    put(path, {b"200": dict_row(labelled(1)[0])})
    assert source(path).indexes[0].sha256 is None, "of another version of the file"


def test_a_file_of_the_form_without_digests_is_named_and_not_believed(path: Path) -> None:
    """As every index was written before."""
    source(path)
    place = places(path, RECIPE)[0]
    content = place.read_bytes()
    head = 35 + int.from_bytes(content[23:31], "little")
    layout = json.loads(content[35:head])
    layout["header"]["format"] = 3
    text = json.dumps(layout | {"arrays": [entry[:-1] for entry in layout["arrays"]]}).encode()
    before = b"mace-pretrain arrays 1\n" + len(text).to_bytes(8, "little") + text
    old = place.with_name(f"{path.name}.0123abcd.index")
    old.write_bytes(before + bytes(-len(before) % 64) + content[-(-head // 64) * 64 :])
    assert source(path).census.warnings == [
        f"{old} was made by an earlier version and is not used any more: remove it"
    ]
    contents = array_file.look(old)
    assert contents.arrays["n_atoms"].tolist() == array_file.look(place).arrays["n_atoms"].tolist()
    with pytest.raises(array_file.Damaged, match="has no digests"):
        array_file.read(old)


def test_verify_keeps_the_hash_of_the_whole_file_and_compares(path: Path) -> None:
    assert source(path).indexes[0].sha256 is None, (
        "nobody has asked: it takes reading everything again"
    )
    kept = source(path, verify=True).indexes[0].sha256
    assert kept == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source(path).indexes[0].sha256 == kept
    content = bytearray(path.read_bytes())
    place = content.rfind(b"energy")  # in a row that is not one of the sampled ones, most likely
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not the file that was indexed: its sha256 is"):
        source(path, verify=True)


def test_parts_that_are_there_are_not_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that fails ends the building; what was made before it counts when it goes on.

    Parts are made at once where there are many cores, so those that fail wait for the others.
    """
    whole = source(path).n_atoms.tolist()
    places(path, RECIPE)[0].unlink()
    index_part = index_building._index_part

    def failing(part: Any, recipe: IndexRecipe) -> None:
        if part.begin >= 42:
            wait_until(lambda: len(parts_made(part.file.parent)) == 6, "the parts before")
            raise InputError("the disk fell off")
        index_part(part, recipe)

    monkeypatch.setattr(index_building, "_index_part", failing)
    with pytest.raises(InputError, match="fell off"):
        source(path)
    assert not places(path, RECIPE)[0].exists()
    (work,) = path.parent.glob("*.building")
    assert len(parts_made(work)) == 6
    monkeypatch.setattr(index_building, "_index_part", index_part)
    reads: Any = counted(monkeypatch)
    assert source(path).n_atoms.tolist() == whole
    assert reads.total() <= N - 42 + index_building.SAMPLED_ROWS


def parts_made(work: Path) -> list[Path]:
    """Files of the parts that are whole; a temporary one ends in letters."""
    return list(work.glob("0*[0-9]"))


KILLED = """  # three parts are made, on the others it works until it is killed
import sys, time
from pathlib import Path
from dataloader import array_file
from dataloader.lmdb_shards import index_building, lmdb_index
from dataloader.labels import LabelKeys
index_building.KEPT_FROM, index_building.MIN_PART = 10, 7
index_part = index_building._index_part
def without_end(part, recipe):
    if part.begin >= 21:
        time.sleep(3600)
    index_part(part, recipe)
index_building._index_part = without_end
lmdb_index.open_indexes([Path(sys.argv[1])], lmdb_index.IndexRecipe(LabelKeys()))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_it_is_made_it_leaves_no_child_and_goes_on(
    number: signal.Signals, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    work = places(path, RECIPE)[0].with_name(places(path, RECIPE)[0].name + ".building")
    wait_until(lambda: len(parts_made(work)) == 3, "three parts of the index")
    process.send_signal(number)
    assert process.wait(timeout=HANGING) != 0
    wait_until(lambda: not living(process.pid), "the end of all children")
    assert not places(path, RECIPE)[0].exists()
    assert len(parts_made(work)) == 3
    reads: Any = counted(monkeypatch)
    assert source(path).n_atoms.tolist() == [len(atoms) for atoms in labelled(N)]
    assert reads.total() <= N - 21 + index_building.SAMPLED_ROWS
    assert not list(path.parent.glob("*.building"))


def test_a_child_that_dies_is_a_sentence_with_the_shard(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(task: Any) -> None:
        faulthandler.disable()
        parallel.note(str(path))
        os.kill(os.getpid(), signal.SIGBUS)

    monkeypatch.setattr(index_building, "_survey", dying)
    with pytest.raises(
        InputError, match=r"ended by SIGBUS while reading .*some\.lmdb: the file is damaged"
    ):
        open_indexes([path], RECIPE)


def test_what_is_left_out_is_counted_by_reason_with_the_first_keys(tmp_path: Path) -> None:
    frames = labelled(40)
    rows = {str(i).encode(): dict_row(atoms) for i, atoms in enumerate(frames)}
    rows[b"3"] = dict_row(frames[3], forces=None)
    rows[b"8"] = dict_row(frames[8], energy=float("nan"))
    rows[b"9"] = pickle.dumps([1])
    rows[b"12"] = dict_row(frames[12], forces=np.full((3, 3), 99.0))
    found = source(put(tmp_path / "a.lmdb", rows), max_dropped=0.1, max_atoms=3, max_force=50.0)
    assert dict(found.census.dropped) == {
        "energy is NaN": 1,
        "record is a list, expected a torch_geometric Data or a dict": 1,
        "forces missing": 1,
    }
    assert dict(found.census.left_out) == {"more than 3 atoms": 18, "a force above 50 eV/Å": 1}
    assert "1 × forces missing (key 3)" in found.census.drop_report()
    assert "18 × more than 3 atoms (keys 1, 5, 7)" in found.census.left_out_report()
    assert len(found) == 40 - 3 - 19


def facts() -> ModelFacts:
    return ModelFacts(
        atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
    )


def test_samples_depend_on_the_seed_alone(path: Path) -> None:
    import torch

    def drawn(seed: int) -> list[str]:
        found = sample(Dataset([source(path)], facts(), torch.float64), 20, seed)
        return [found.name(i) for i in range(len(found))]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 20
    assert drawn(1) == sorted(drawn(1), key=lambda name: int(name.split()[-1])), (
        "in the order of the file"
    )
    with pytest.raises(InputError, match=f"61 samples were asked for, but the LMDBs have {N}"):
        sample(Dataset([source(path)], facts(), torch.float64), 61, 1)


def test_an_index_of_an_earlier_version_is_named_and_not_used(path: Path) -> None:
    first = source(path)
    place = places(path, RECIPE)[0]
    contents = array_file.read(place)
    old = place.with_name(f"{path.name}.0123abcd.index")
    columns = {name: [array] for name, array in contents.arrays.items()}
    array_file.write(old, contents.header | {"format": index_building.FORMAT - 1}, columns)
    place.unlink()
    again = source(path)
    assert again.n_atoms.tolist() == first.n_atoms.tolist()
    assert again.census.warnings == [
        f"{old} was made by an earlier version and is not used any more: remove it"
    ]
