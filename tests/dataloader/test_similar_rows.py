"""Rows read a block at a time give the index that they give one by one, and what is
called sound at a glance is.
"""

import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.labels import LabelKeys
from dataloader.lmdb_shards import row_facts, similar_rows
from dataloader.lmdb_shards.lmdb_record import decode
from dataloader.lmdb_shards.similar_rows import Patterns
from dataloader.neighbors import MIN_DISTANCE, closest_pair, surely_apart
from dataloader.structure import Structure, geometry_fault, surely_sound

KEYS = LabelKeys()


def record(rng: np.random.Generator, i: int) -> dict[str, Any]:
    """A crystal of six or seven atoms, as a dict."""
    n = 6 + i % 2
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:n]
    return {
        "pos": grid * 2.5 + rng.normal(0, 0.1, (n, 3)),
        "cell": 5.0 * np.eye(3) + rng.normal(0, 0.1, (3, 3)),
        "atomic_numbers": rng.integers(1, 20, n),
        "energy": float(rng.normal()),
        "forces": rng.normal(0, 1, (n, 3)),
        "sid": 1000 + i,
    }


def with_float32(rng: np.random.Generator, i: int) -> dict[str, Any]:
    found = {
        k: v.astype(np.float32) if isinstance(v, np.ndarray) else v
        for k, v in record(rng, i).items()
    }
    return found | {
        "energy": np.float32(rng.normal()),
        "fixed": rng.integers(0, 2, len(found["pos"])).astype(bool),
    }


def with_stress(rng: np.random.Generator, i: int) -> dict[str, Any]:
    stress = rng.normal(0, 1, (3, 3))
    stress = stress + stress.T + (0.1 * rng.normal(0, 1, (3, 3)) if i % 7 == 0 else 0.0)
    return record(rng, i) | {
        "stress": stress,
        "pbc": np.array([True] * 3),
        "id": f"agm{i:06d}",
        "charge": i % 3 - 1,
    }


def transposed(rng: np.random.Generator, i: int) -> dict[str, Any]:
    """Cells whose bytes lie column by column; those of the first rows are symmetric."""
    found = record(rng, i)
    found["cell"] = np.asfortranarray(5.0 * np.eye(3) if i < 2 else found["cell"])
    return found


def cluster(rng: np.random.Generator, i: int) -> dict[str, Any]:
    """Without a cell; every fifth row has one of zeros, every seventh a real one."""
    found = record(rng, i)
    if i % 7:
        found["cell"] = np.zeros((3, 3))
    if i % 5:
        del found["cell"]
    return found


KINDS: dict[str, Callable[[np.random.Generator, int], dict[str, Any]]] = {
    kind.__name__: kind for kind in (record, with_float32, with_stress, transposed, cluster)
}


def rows_of(kind: str, protocol: int, n: int = 400) -> list[bytes]:
    rng = np.random.default_rng(3)
    return [pickle.dumps(KINDS[kind](rng, i), protocol) for i in range(n)]


def index_of(rows: Sequence[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    header, columns = row_facts.facts_of(rows, rows.__getitem__, str, len(rows), KEYS, ())
    # the first of a kind may be met in another order
    header["names"] = sorted(header["names"], key=str)
    return header, columns


def assert_equal_to_one_by_one(rows: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = index_of(rows)
    with monkeypatch.context() as patched:
        patched.setattr(Patterns, "read", lambda self, values: ([], list(range(len(values)))))
        patched.setattr(row_facts._Waiting, "take", lambda self, row, found: False)
        one_by_one = index_of(rows)
    assert at_once[0] == one_by_one[0]
    for name, column in one_by_one[1].items():
        np.testing.assert_array_equal(at_once[1][name], column, err_msg=name)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_gives_the_index_that_rows_give_one_by_one(
    kind: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows as they are, and with bytes changed wherever it may be: numbers,
    names, shapes, opcodes.
    """
    rows, rng = rows_of(kind, protocol), random.Random(protocol)
    assert_equal_to_one_by_one(rows, monkeypatch)
    for i in range(len(rows)):
        changed = bytearray(rows[i])
        for _ in range(rng.choice((0, 1, 1, 3))):
            place = rng.randrange(len(changed))
            changed[place] = rng.choice(
                (rng.randrange(256), changed[place] ^ 1 << rng.randrange(8))
            )
        rows[i] = bytes(changed)
    assert_equal_to_one_by_one(rows, monkeypatch)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_holds_what_decoding_gives(kind: str, protocol: int) -> None:
    rows = rows_of(kind, protocol)
    for group in Patterns(KEYS, ()).read(rows)[0]:
        for i, row in enumerate(group.rows):
            found = decode(rows[row], "", KEYS)
            s, like = found.structure, group.like.structure
            assert (found[1:], s.pbc, s.head) == (group.like[1:], like.pbc, like.head)
            np.testing.assert_array_equal(group.numbers[i], s.atomic_numbers)
            np.testing.assert_array_equal(group.positions[i], s.positions)
            np.testing.assert_array_equal(group.cells[i], s.cell)
            for ours, theirs in (
                (group.energies, s.energy),
                (group.forces, s.forces),
                (group.free, s.free_atoms),
            ):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    np.testing.assert_array_equal(ours[i], theirs)


@pytest.mark.parametrize(
    ("kind", "protocol"), [("record", 4), ("record", 5), ("with_float32", 4), ("with_stress", 4)]
)
def test_similar_rows_are_read_at_once(kind: str, protocol: int) -> None:
    rows = rows_of(kind, protocol)
    groups, others = Patterns(KEYS, ()).read(rows)
    assert sum(len(group.rows) for group in groups) + len(others) == len(rows)
    assert len(others) < 0.3 * len(rows), (
        "rows of two lengths; every seventh stress is not symmetric"
    )


def test_a_length_that_is_no_number_is_never_free() -> None:
    """Shapes, versions and memo numbers are integers too; what changes with
    them is not one number.
    """
    row = rows_of("record", 4, 1)[0]
    pattern = similar_rows._learned(row, KEYS, ())
    assert pattern is not None
    assert set(pattern.holes) == {"pos", "cell", "atomic_numbers", "energy", "forces", "sid"}
    free = {name: hole.end - hole.begin for name, hole in pattern.holes.items()}
    assert free == {
        "pos": 144,
        "cell": 72,
        "atomic_numbers": 48,
        "energy": 8,
        "forces": 144,
        "sid": 2,
    }
    assert int((pattern.fixed == 0).sum()) == sum(free.values())


# ---- sound at a glance

LENGTHS = st.floats(0.05, 12.0)


# the same examples everywhere
@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1), LENGTHS, st.booleans(), st.integers(1, 12), st.floats(0.0, 0.3))
def test_what_is_surely_sound_and_apart_is(
    seed: int, length: float, periodic: bool, n: int, near: float
) -> None:
    """Skewed and flat cells, atoms outside of them, pairs at a given distance across any border."""
    rng = np.random.default_rng(seed)
    cell = (
        length
        * (np.eye(3) + rng.normal(0, 0.4, (3, 3)))
        * rng.choice([0.02, 1.0, 1.0, 1.0, 30.0], (3, 1))
    )
    positions = rng.random((n, 3)) @ cell * rng.choice([1.0, 20.0])
    direction = rng.normal(0, 1, 3)
    positions[-1] = positions[0] + near * direction / np.linalg.norm(direction)
    if periodic:
        positions[-1] += rng.integers(-2, 3, 3) @ cell
    numbers = np.full(n, rng.choice([0, 1, 8, 118, 119], p=[0.05, 0.3, 0.3, 0.3, 0.05]))
    structure = Structure(
        atomic_numbers=numbers, positions=positions, cell=cell, pbc=(periodic,) * 3, identifier="",
    )  # fmt: skip
    if not surely_sound(positions[None], cell[None], numbers[None], periodic=periodic)[0]:
        return
    assert geometry_fault(structure) is None
    if surely_apart(positions[None], cell[None] if periodic else None)[0]:
        closest = closest_pair(structure)
        assert closest is None or closest[0] >= MIN_DISTANCE


def test_most_sound_structures_are_seen_to_be_sound() -> None:
    rng = np.random.default_rng(0)
    rows = [record(rng, 0) for _ in range(50)]
    positions, cells, numbers = (
        np.array([row[name] for row in rows]) for name in ("pos", "cell", "atomic_numbers")
    )
    assert surely_sound(positions, cells, numbers, periodic=True).all()
    assert surely_sound(positions, cells, numbers, periodic=False).all()
    assert surely_apart(positions, cells).all()
    assert surely_apart(positions, None).all()
    positions[7, 1] = positions[7, 0] + 0.99 * MIN_DISTANCE * np.array([0.6, 0.8, 0.0])
    positions[8, 1] = positions[8, 0] + [0.05, 0.0, 0.0] + cells[8, 2]
    assert np.nonzero(~surely_apart(positions, cells))[0].tolist() == [7, 8]
    assert np.nonzero(~surely_apart(positions, None))[0].tolist() == [7]
    positions[3, 0, 0], cells[4], numbers[5, 2] = np.nan, 0.0, 0
    assert np.nonzero(~surely_sound(positions, cells, numbers, periodic=True))[0].tolist() == [
        3,
        4,
        5,
    ]
