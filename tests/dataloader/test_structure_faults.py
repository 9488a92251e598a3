"""What a structure can have wrong, in every kind of file: xyz refuses at once, an LMDB drops,
counts and names keys.
"""

import faulthandler
import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from record_files import (
    BOX,
    NOWHERE,
    OPEN,
    PERIODIC,
    SLAB,
    WATER,
    Record,
    Write,
    changed,
    frame,
    moved,
    opened,
    path_for,
    plain_row,
    record,
    write_dicts,
    write_geometric,
    write_rows,
    write_xyz,
)

from conftest import HANGING, TINY
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.labels import TO_EVALUATE, LabelKeys, find_labels
from dataloader.needs import ModelFacts

FACTS = ModelFacts(
    atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
)

# A warning of numpy's would be a second line on stderr.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

LMDBS = pytest.mark.parametrize(
    "write", [write_dicts, write_geometric], ids=["dicts", "torch_geometric"]
)
FILES = pytest.mark.parametrize(
    "write", [write_xyz, write_dicts, write_geometric], ids=["xyz", "dicts", "torch_geometric"]
)


def dataset(path: Path, **options: Any) -> Dataset:
    return Dataset([opened(path, **options)], FACTS, torch.float64)


# Every structure that is refused: what is changed, and what the message says of it.
FAULTS: dict[str, tuple[Record, str]] = {
    "periodic with a zero cell": (
        record(cell=NOWHERE),
        "periodic in direction(s) abc but the cell has a zero vector",
    ),
    "a singular cell": (
        record(cell=np.array([[10.0, 0, 0], [20, 0, 0], [0, 0, 10]])),
        "cell is singular",
    ),
    "a cell of 0.5 Å": (record(cell=0.5 * np.eye(3)), "volume per atom is 0.0417 Å³"),
    "a cell of NaN": (record(cell=changed(BOX, (1, 1), np.nan)), "cell is not finite"),
    "a position of NaN": (
        record(positions=moved(1, 2, np.nan)),
        "position of atom 1 is not finite",
    ),
    "an infinite position": (
        record(positions=moved(2, 0, -np.inf)),
        "position of atom 2 is not finite",
    ),
    "an atom 1e8 Å away": (
        record(cell=NOWHERE, pbc=OPEN, positions=moved(1, 0, 1e8)),
        "lies more than 1e+05 Å away",
    ),
    "atomic number 0": (
        record(numbers=np.array([8, 0, 1])),
        "atomic number 0 is no element (expected 1 to 118)",
    ),
    "atomic number 150": (record(numbers=np.array([8, 1, 150])), "atomic number 150 is no element"),
    "no atoms": (
        record(numbers=np.zeros(0, int), positions=np.zeros((0, 3)), forces=np.zeros((0, 3))),
        "no atoms",
    ),
    "an energy of NaN": (record(energy=np.nan), "energy is NaN"),
    "an infinite force": (
        record(forces=changed(np.zeros((3, 3)), (2, 1), np.inf)),
        "forces of atom 2 are not finite",
    ),
    "no energy": (record(energy=None), "energy missing"),
    "no forces": (record(forces=None), "forces missing"),
    "forces of two components": (
        record(forces=np.zeros((3, 2))),
        "has shape (3, 2), expected (3, 3) in eV/Å",
    ),
    "energies per atom": (
        record(energy=np.array([1.0, 2.0, 3.0])),
        "has 3 values, expected one energy of the whole",
    ),
    "energy as text": (record(energy="high"), "is text ('high'), expected numbers"),
    "a stress of five numbers": (
        record(REF_stress=np.arange(5.0)),
        "REF_stress has 5 numbers, expected 3×3, nine, or six",
    ),
    "a stress that is not symmetric": (
        record(REF_stress=np.arange(9.0)),
        "REF_stress is not symmetric",
    ),
    "half a stress of NaN": (
        record(REF_stress=np.array([1.0, 1, 1, 0, 0, np.nan])),
        "stress is not finite",
    ),
    "two energies that differ": (
        record(REF_energy=-400.0),
        "are both there and differ: say which with --energy_key",
    ),
}
# The distance of two atoms shows in the neighbour list: in an LMDB when it is indexed, else
# when the graph is built.
TOO_CLOSE = {"in one place": 0.0, "1e-6 Å apart": 1e-6, "0.09 Å apart": 0.09}


INFINITE = np.array([[1.0, 0, 0], [0, np.inf, 0], [0, 0, 1]])


@FILES
def test_an_infinite_stress_is_refused_without_a_warning(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(REF_stress=INFINITE)])
    with pytest.raises(InputError, match="stress is not finite"):
        opened(path)


@pytest.mark.parametrize("fault", FAULTS)
def test_xyz_refuses_at_once_and_names_file_and_frame(fault: str, tmp_path: Path) -> None:
    bad, message = FAULTS[fault]
    path = write_xyz(tmp_path / "some.xyz", [record(), bad, record()])
    with pytest.raises(InputError) as refused:
        opened(path)
    assert str(refused.value).startswith(f"{path} frame 1: ")
    assert message in str(refused.value)


@LMDBS
@pytest.mark.parametrize("fault", FAULTS)
def test_lmdb_drops_and_counts_by_reason_with_keys(
    fault: str, write: Write, tmp_path: Path
) -> None:
    bad, message = FAULTS[fault]
    path = write(tmp_path / "some.lmdb", [record(), bad, record(), bad])
    source = opened(path, max_dropped=0.5)
    assert [source.identifier(i) for i in range(len(source))] == [
        "some.lmdb key 0",
        "some.lmdb key 2",
    ]
    assert list(source.census.dropped.values()) == [2]
    report = source.census.drop_report()
    assert report.startswith("2 × ")
    assert report.endswith("(keys 1, 3)")
    assert message.split(" (")[0] in report, "brackets hold what differs between records"


@LMDBS
@pytest.mark.parametrize("fault", ["no forces", "a position of NaN"])
def test_lmdb_with_more_than_max_dropped_is_refused(
    fault: str, write: Write, tmp_path: Path
) -> None:
    bad, message = FAULTS[fault]
    path = write(tmp_path / "some.lmdb", [record(), bad, record()])
    with pytest.raises(InputError) as refused:
        opened(path, max_dropped=0.3)
    for words in (
        f"{path}: 1 of 3 records cannot be used",
        f"1 × {message} (key 1)",
        "--max_dropped 0.3",
    ):
        assert words in str(refused.value)
    assert len(opened(path, max_dropped=0.34)) == 2


@LMDBS
def test_lmdb_of_which_nothing_is_left_is_refused_whatever_may_be_dropped(
    write: Write, tmp_path: Path
) -> None:
    path = write(tmp_path / "some.lmdb", [record(), record()])
    with pytest.raises(
        InputError, match=r"2 of 2 records cannot be used .*forces missing.*--forces_key"
    ):
        opened(path, max_dropped=0.999, forces="dft_forces")


@pytest.mark.parametrize("distance", TOO_CLOSE.values(), ids=TOO_CLOSE)
def test_xyz_with_atoms_too_close_is_refused(distance: float, tmp_path: Path) -> None:
    path = write_xyz(tmp_path / "some.xyz", [record(), record(positions=moved(1, 0, distance))])
    with pytest.raises(InputError) as refused:
        _ = dataset(path).n_edges
    for words in (
        f"{path}: some.xyz#1: ",
        "atoms 0 and 1 are",
        "Å apart (expected at least 0.1 Å)",
    ):
        assert words in str(refused.value)


@LMDBS
@pytest.mark.parametrize("distance", TOO_CLOSE.values(), ids=TOO_CLOSE)
def test_lmdb_drops_atoms_too_close(distance: float, write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "some.lmdb", [record(), record(positions=moved(1, 0, distance))])
    assert opened(path, max_dropped=0.5).census.dropped == {"two atoms closer than 0.1 Å": 1}


@FILES
def test_atoms_too_close_across_the_border_of_the_cell_are_seen(
    write: Write, tmp_path: Path
) -> None:
    path = write(path_for(write, tmp_path), [record(), record(positions=moved(1, 0, 9.95))])
    with pytest.raises(InputError, match=r"0\.05 Å apart|1 of 2 records.*closer than 0\.1 Å"):
        _ = dataset(path).n_edges


@FILES
def test_more_than_500_neighbours_per_atom_are_refused(write: Write, tmp_path: Path) -> None:
    crowded = record(
        numbers=np.array([1]),
        positions=[[0.0, 0, 0]],
        forces=np.zeros((1, 3)),
        cell=1.1 * np.eye(3),
    )
    path = write(path_for(write, tmp_path), [crowded | {"positions": np.zeros((1, 3))}])
    facts = ModelFacts(
        atomic_numbers=(1,), heads=("Default",), atomic_energies=((0.0,),), r_max=6.0
    )
    with pytest.raises(
        InputError, match=r"some\.(xyz#0|lmdb key 0): \d+ neighbours per atom, at most 500"
    ):
        _ = Dataset([opened(path)], facts, torch.float64).n_edges


@FILES
def test_an_element_outside_model_json_is_refused_by_name(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(), record(numbers=np.array([26, 1, 1]))])
    where = "some.xyz#1" if write is write_xyz else "some.lmdb key 1"
    with pytest.raises(InputError) as refused:
        dataset(path)
    for words in (
        f"{path}: {where}: ",
        "element Fe (Z=26) is not in model.json, which has H, O",
        "--elements",
    ):
        assert words in str(refused.value)
    kept = Dataset([opened(path)], FACTS, torch.float64, elements=[1, 8])
    assert len(kept) == 1
    assert kept.left_out == {"an element outside --elements": 1}


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, "heavy"])
@pytest.mark.parametrize("name", ["config_weight", "config_energy_weight", "config_forces_weight"])
def test_xyz_refuses_a_weight_that_is_none(name: str, weight: object, tmp_path: Path) -> None:
    path = write_xyz(tmp_path / "some.xyz", [record(**{name: weight})])
    with pytest.raises(
        InputError, match=rf"some\.xyz frame 0: .*({name} is not a number|negative or not finite)"
    ):
        opened(path)


@LMDBS
def test_lmdb_drops_a_negative_weight(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "some.lmdb", [record(), record(config_weight=-1.0)])
    assert len(opened(path, max_dropped=0.5)) == 1


@LMDBS
def test_lmdb_takes_the_head_of_a_record(write: Write, tmp_path: Path) -> None:
    assert (
        opened(write(tmp_path / "some.lmdb", [record(head="Default")])).structure(0).head
        == "Default"
    )


# Records that are none.


class Bomb:
    """Leaves a file behind where it is unpickled the ordinary way."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


ODD_ROWS: dict[str, tuple[bytes, str]] = {
    "cut off": (pickle.dumps(plain_row(record()))[:200], "cut off"),
    "a list": (pickle.dumps([1, 2]), "record is a list, expected a torch_geometric Data or a dict"),
    "empty": (b"", "row is empty, none of the layouts that are read"),
    "code": (pickle.dumps(Bomb()), "global posix.system is not allowed"),
    "another class": (pickle.dumps(np.poly1d([1.0, 2.0])), "is not allowed"),
    "no positions": (pickle.dumps({"atomic_numbers": np.array([1])}), "pos missing"),
    "no numbers": (pickle.dumps({"pos": WATER}), "atomic_numbers missing"),
    "one position too few": (
        pickle.dumps(plain_row(record(positions=WATER[:2]))),
        "positions have shape (2, 3) for",
    ),
    "half a proton": (
        pickle.dumps(plain_row(record(numbers=np.array([8, 1, 0.5])))),
        "atomic numbers are not whole",
    ),
    "a cell of eight": (
        pickle.dumps(plain_row(record(cell=np.ones(8)))),
        "cell has shape (8,), expected (3, 3)",
    ),
    "two periodicities": (
        pickle.dumps(plain_row(record(pbc=(True, False)))),
        "pbc is 'True False', expected three of T and F",
    ),
    "two fixed of three": (
        pickle.dumps(plain_row(record(fixed=np.ones(2)))),
        "fixed has 2 entries for 3 atoms",
    ),
}


@pytest.mark.parametrize("case", ODD_ROWS)
def test_lmdb_drops_rows_that_are_no_structure(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row, message = ODD_ROWS[case]
    good = pickle.dumps(plain_row(record()))
    source = opened(write_rows(tmp_path / "some.lmdb", [good, row, good]), max_dropped=0.5)
    assert len(source) == 2
    assert message.split(" (")[0] in source.census.drop_report()
    assert "(key 1)" in source.census.drop_report()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"numbers": 8}, id="a single number"),
        pytest.param({"energy": [[1], [2, 3]]}, id="ragged energy"),
        pytest.param({"REF_energy": [[1], [2, 3]]}, id="ragged rival"),
        pytest.param({"pbc": [[1], [2, 3]]}, id="ragged pbc"),
        pytest.param({"fixed": [[1], [2, 3]]}, id="ragged mask"),
        pytest.param({"pbc": "F F F"}, id="pbc as text"),
    ],
)
def test_lmdb_drops_values_of_a_wrong_kind(change: Record, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "some.lmdb", [pickle.dumps(plain_row(record(**c))) for c in ({}, change, {})]
    )
    assert len(opened(path, max_dropped=0.5)) == 2


def test_a_report_of_many_drops_stays_one_line_to_read(tmp_path: Path) -> None:
    cells = [{"cell": (0.5 + 0.001 * i) * np.eye(3)} for i in range(60)]
    path = write_dicts(tmp_path / "some.lmdb", [record(**c) for c in cells])
    with pytest.raises(InputError) as refused:
        opened(path)
    assert len(str(refused.value)) < 1000


# Text that is no extended XYZ.

GOOD = frame(record())
GARBAGE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "holds no frames; expected an extended-XYZ file"),
    "a web page": ("<!DOCTYPE html><html></html>\n", "frame 0"),
    "a git-lfs pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "frame 0"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "extended"),
    "binary": (bytes(range(256)) * 4, "extended"),
    "cut off": (GOOD + GOOD[: len(GOOD) // 2], "frame 1"),
    "a column too few": (
        GOOD.rstrip().rsplit(" ", 1)[0] + "\n",
        "6 columns, expected the 7 that Properties",
    ),
    "a column too many": (
        GOOD + GOOD.rstrip() + " 1.5\n",
        "frame 1: atom 2 has 8 columns, expected the 7 that Properties",
    ),
    "plain xyz with a charge": ("1\n\nO 0 0 0 -0.8\n", "5 columns, expected the 4 of plain xyz"),
    "pbc as words": (GOOD.replace('pbc="T T T"', 'pbc="X Y Z"'), "frame 0: pbc is 'X Y Z'"),
    "pbc of two": (GOOD.replace('pbc="T T T"', 'pbc="T T"'), "frame 0: pbc is 'True True'"),
    "pbc of sevens": (GOOD.replace('pbc="T T T"', 'pbc="7 0 1"'), "frame 0: pbc is '7 0 1'"),
    "no such element": (GOOD.replace("Z:I:1", "species:S:1").replace("\n8 ", "\nQq "), "frame 0"),
    "a lattice of eight": (GOOD.replace('Lattice="10.0 ', 'Lattice="'), "Lattice"),
    "a lattice of words": (GOOD.replace('Lattice="10.0 ', 'Lattice="ten '), "Lattice"),
    "a position as text": (GOOD.replace("0.9375", "north"), "frame 0"),
    "a column of unknown type": (
        GOOD.replace("forces:R:3", "forces:Q:3"),
        "Properties has forces:Q:'3', expected name:type:columns",
    ),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_extended_xyz_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = GARBAGE[case]
    path = tmp_path / "some.xyz"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        opened(path)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value).strip()


def test_frames_behind_a_blank_line_are_not_lost_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(f"{GOOD}\n{GOOD}")
    with pytest.raises(InputError, match=r"line \d+.*blank line"):
        opened(path)


def test_the_frame_named_is_the_one_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(f"{GOOD}{GOOD}three\n{GOOD}")
    with pytest.raises(InputError, match=r"frame 2|line 11"):
        opened(path)


def test_a_frame_that_claims_a_thousand_million_atoms_is_refused_soon(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(GOOD.replace("3\n", "999999999\n", 1))
    answer = answer_of_a_child(lambda: opened(path))
    assert answer.startswith(f"InputError: {path} frame 0"), answer


@pytest.mark.parametrize(
    "fixed",
    [
        pytest.param("fixed=T", id="one for all"),
        pytest.param('fixed="1 0"', id="two of three"),
        pytest.param("fixed=yes", id="text"),
    ],
)
def test_xyz_refuses_a_mask_of_fixed_atoms_that_is_none(fixed: str, tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(GOOD.replace("energy=", f"{fixed} energy="))
    with pytest.raises(InputError, match=r"frame 0: fixed"):
        opened(path)


# Structures that overflow in the neighbour list, or have more than 10⁷ edges there: cell,
# periodicity, positions.
HOSTILE: dict[str, tuple[Any, tuple[bool, bool, bool], Any]] = {
    "an atom 1e8 Å above a slab": (np.diag([10.0, 10, 20]), SLAB, [[0, 0, 0], [0, 0, 1e8]]),
    "an atom 1e8 Å beside a chain": (
        np.diag([10.0, 0, 0]),
        (True, False, False),
        [[0, 0, 0], [0, 1e8, 0]],
    ),
    "a slab with a cell of 1e-4 Å": (np.diag([1e-4, 1e-4, 20]), SLAB, [[0, 0, 0]]),
    "a slab with almost parallel vectors": (
        [[10, 0, 0], [10, 1e-4, 0], [0, 0, 10]],
        SLAB,
        [[0, 0, 0]],
    ),
    "a needle of the right volume": (np.diag([1e-4, 1e-4, 1e12]), PERIODIC, [[0, 0, 0]]),
    "a cell of 1e200 Å": (1e200 * np.eye(3), PERIODIC, [[0, 0, 0]]),
}


def answer_of_a_child(action: Callable[[], object]) -> str:
    """Do it in a forked process that may use 10 s of a processor and 4 GiB more: some of these
    take their process down.

    The children of that process have the same limit.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, -1))
        resource.setrlimit(resource.RLIMIT_CPU, (10, 20))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(HANGING))
        try:
            answer = f"accepted: {action()}"
        except BaseException as error:  # whatever it is, the parent judges it
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode()[:4096])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    status = os.waitpid(pid, 0)[1]
    return (
        f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        if os.WIFSIGNALED(status)
        else answer
    )


@pytest.mark.parametrize("write", [write_xyz, write_dicts], ids=["xyz", "dicts"])
@pytest.mark.parametrize(
    "case",
    [
        *[case for case in HOSTILE if "1e200" not in case],
        pytest.param("a cell of 1e200 Å"),
    ],
)
def test_what_kills_the_neighbour_list_is_refused_before(
    case: str, write: Write, tmp_path: Path
) -> None:
    cell, pbc, positions = HOSTILE[case]
    atoms = len(positions)
    odd = record(
        cell=np.array(cell, dtype=float),
        pbc=pbc,
        numbers=np.full(atoms, 8),
        forces=np.zeros((atoms, 3)),
    )
    path = write(path_for(write, tmp_path), [odd | {"positions": np.array(positions, dtype=float)}])
    answer = answer_of_a_child(lambda: dataset(path).n_edges)
    assert answer.startswith(f"InputError: {path}"), answer


# Structures that look odd and are sound.

LONE = {
    "numbers": np.array([8]),
    "positions": np.zeros((1, 3)),
    "forces": np.zeros((1, 3)),
    "energy": -430.5,
}
ODD_BUT_SOUND: dict[str, tuple[Record, int]] = {  # with the number of directed edges within 3 Å
    "a molecule": (record(cell=NOWHERE, pbc=OPEN), 6),
    "one atom": (record(**LONE, cell=NOWHERE, pbc=OPEN), 0),
    "one atom in a large cell": (record(**LONE), 0),
    "one atom and its images": (record(**LONE, cell=2.5 * np.eye(3)), 6),
    "atoms out of reach of each other": (record(positions=4.0 * np.eye(3)), 0),
    "a left-handed cell": (record(cell=BOX[[1, 0, 2]]), 6),
    "a slab without a third vector": (record(cell=np.diag([10.0, 10, 0]), pbc=SLAB), 6),
    "a chain": (record(cell=np.diag([10.0, 0, 0]), pbc=(True, False, False)), 6),
    "atoms 1e5 Å outside a periodic cell": (record(positions=WATER + 1e5), 6),
    "a skewed cell": (record(cell=np.array([[10.0, 0, 0], [1000, 10, 0], [0, 0, 10]])), 6),
    "just far enough apart": (record(positions=moved(1, 0, 0.125)), 6),
}


@FILES
@pytest.mark.parametrize("case", ODD_BUT_SOUND)
def test_odd_but_sound_structures_are_taken(case: str, write: Write, tmp_path: Path) -> None:
    odd, n_edges = ODD_BUT_SOUND[case]
    data = dataset(write(path_for(write, tmp_path), [odd]))
    assert data.n_edges.tolist() == [n_edges]
    assert not data.sources[0].census.dropped
    batch = data.batch([0])
    references = {1: -13.6, 8: -430.0}
    assert batch.reference_energy.item() == pytest.approx(
        sum(references[int(z)] for z in odd["numbers"]), abs=1e-10
    )
    assert batch.labels["energy"].value.tolist() == pytest.approx(
        [odd["energy"] - batch.reference_energy.item()], abs=1e-12
    )


@FILES
def test_neighbours_of_a_left_handed_cell_are_those_of_the_right_handed(
    write: Write, tmp_path: Path
) -> None:
    close = {"positions": moved(1, 0, 9.0)}  # bonded across the border
    right, left = record(**close), record(**close, cell=BOX[[1, 0, 2]])
    data = dataset(write(path_for(write, tmp_path), [right, left]))
    one, two = (sorted(distances(data, i)) for i in (0, 1))
    assert one == pytest.approx(two, abs=1e-12)
    assert min(one) == pytest.approx(np.hypot(0.25, 0.9375), abs=1e-12)
    assert one[2] == pytest.approx(1.0, abs=1e-12), "10 Å - 9 Å"


def distances(data: Dataset, i: int) -> list[float]:
    batch = data.batch([i])
    vectors = batch.positions[batch.receivers] - batch.positions[batch.senders] + batch.shifts
    found: list[float] = vectors.norm(dim=1).tolist()
    return found


@pytest.fixture(scope="module")
def predicted() -> Callable[[Dataset, Sequence[int]], tuple[torch.Tensor, torch.Tensor]]:
    """Energies and forces of the tiny network in double precision."""
    from model_utils import model_loader
    from model_utils.models import description
    from model_utils.models.network import predict

    fields = TINY | {"hidden_irreps": "4x0e", "correlation": 1, "num_interactions": 2}
    described = description.parse(json.dumps(fields), "tiny")
    module = model_loader.build(described, torch.float64, seed=1)
    network, weights = (
        model_loader.build_network(module, "reference", described),
        model_loader.trainable(module),
    )

    def of(data: Dataset, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        found = predict(network, weights, data.batch(indices), wanted=(), training=False)
        torch.set_default_dtype(before)
        return found["energy"], found["forces"]

    return of


@FILES
def test_atoms_outside_the_cell_have_the_energy_of_wrapped_ones(
    write: Write, predicted: Any, tmp_path: Path
) -> None:
    # another one for each atom
    lattice = 10.0 * np.array([[10_000, -10_000, 3000], [-10_000, 0, 7], [0, 1, -9000]])
    inside = 1.01 * WATER  # not exact in single precision
    data = dataset(
        write(
            path_for(write, tmp_path),
            [record(positions=inside), record(positions=inside + lattice)],
        )
    )
    energy, forces = predicted(data, [0, 1])
    assert energy[0].abs() > 1e-3, "else there is nothing to compare"
    assert energy[1].item() == pytest.approx(energy[0].item(), abs=1e-8)
    assert torch.allclose(forces[:3], forces[3:], atol=1e-8)
    single = Dataset(data.sources, FACTS, torch.float32)  # which has steps of 8 mÅ at 1e5 Å
    assert sorted(distances(single, 1)) == pytest.approx(sorted(distances(data, 0)), abs=1e-5)


@FILES
def test_a_whole_batch_without_edges_has_energies_and_no_forces(
    write: Write, predicted: Any, tmp_path: Path
) -> None:
    apart = record(positions=4.0 * np.eye(3))
    data = dataset(write(path_for(write, tmp_path), [record(**LONE), apart, record(**LONE)]))
    batch = data.batch([0, 1, 2])
    assert batch.n_edges == 0
    energy, forces = predicted(data, [0, 1, 2])
    assert torch.isfinite(energy).all()
    assert energy[0] == energy[2]
    assert forces.shape == (5, 3)
    assert not forces.any()


def test_isolated_atoms_of_an_xyz_are_counted_and_left_out(tmp_path: Path) -> None:
    lone = record(**LONE, cell=None, pbc=OPEN, config_type="IsolatedAtom") | {
        "forces": np.zeros((1, 3))
    }
    del lone["forces"]  # mace's files have none for an isolated atom
    source = opened(write_xyz(tmp_path / "some.xyz", [lone, record()]))
    assert [(s.energy, s.atomic_numbers.tolist()) for s in source.isolated_atoms] == [(-430.5, [8])]
    assert len(source) == 1


# Labels.

MANY = 3  # atoms
FORCES = np.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize(
    ("names", "energy", "forces"),
    [
        ({"energy": -1.0, "forces": FORCES}, "energy", "forces"),
        (
            {"energy": -1.0, "REF_energy": -1.0, "forces": FORCES, "REF_forces": FORCES},
            "REF_energy",
            "REF_forces",
        ),
        ({"y": -1.0, "force": FORCES}, "y", "force"),
        ({"y": -1.0, "energy": -1.0, "force": FORCES, "forces": FORCES}, "energy", "forces"),
        ({"energy": -1.0, "free_energy": -2.0, "forces": FORCES}, "energy", "forces"),
        ({"free_energy": -2.0, "forces": FORCES}, None, "forces"),
        ({"Energy": -1.0, "FORCES": FORCES}, "Energy", "FORCES"),
        ({"dft_energy": -1.0, "dft_forces": FORCES}, None, None),
        ({"Y": -1.0, "force": FORCES}, None, "force"),
    ],
)
def test_labels_are_found_by_their_usual_names(
    names: Record, energy: str | None, forces: str | None
) -> None:
    labels = find_labels(names, LabelKeys(), MANY, 0.0)
    assert labels.names == (energy, forces, None)
    assert labels.values.get("energy") == (None if energy is None else -1.0)


def test_the_free_energy_is_the_energy_only_when_asked() -> None:
    both = {"energy": -1.0, "free_energy": -2.0}
    assert find_labels(both, LabelKeys(), MANY, 0.0).values["energy"] == -1.0
    assert find_labels(both, LabelKeys(free_energy=True), MANY, 0.0).values["energy"] == -2.0
    assert find_labels({"energy": -1.0}, LabelKeys(free_energy=True), MANY, 0.0).values == {}
    assert (
        find_labels(both, LabelKeys(free_energy=True, energy="energy"), MANY, 0.0).values["energy"]
        == -1.0
    )


@pytest.mark.parametrize(
    ("rivals", "flag"),
    [
        ({"REF_energy": -1.0, "energy": -1.001}, "--energy_key"),
        ({"energy": -1.0, "y": -2.0}, "--energy_key"),
        ({"energy": -1.0, "REF_energy": "low"}, "--energy_key"),
        ({"REF_forces": FORCES, "forces": FORCES + 0.001}, "--forces_key"),
        ({"REF_forces": FORCES, "forces": FORCES[:2]}, "--forces_key"),
        ({"REF_stress": np.arange(6.0), "stress": np.ones(6)}, "--stress_key"),
    ],
)
def test_labels_that_disagree_are_an_error(rivals: Record, flag: str) -> None:
    labels = find_labels(rivals, LabelKeys(), MANY, 1000.0)
    (fault,) = labels.faults.values()
    assert f"are both there and differ: say which with {flag}" in fault


def test_a_name_that_was_given_settles_what_disagrees() -> None:
    rivals = {"REF_energy": -1.0, "energy": -2.0, "REF_forces": FORCES, "forces": -FORCES}
    labels = find_labels(rivals, LabelKeys(energy="energy", forces="forces"), MANY, 0.0)
    assert labels.values["energy"] == -2.0
    assert np.array_equal(labels.values["forces"], -FORCES)


@pytest.mark.parametrize("plain", ["energy", "forces"])
def test_results_of_a_calculator_that_differ_from_the_columns_are_an_error(
    plain: str, tmp_path: Path
) -> None:
    """ASE moves `energy` and `forces` into a calculator; `REF_energy` stays in info,
    `REF_forces` in arrays.
    """
    good = record()
    same = record(REF_energy=good["energy"], REF_forces=good["forces"])
    source = opened(write_xyz(tmp_path / "same.xyz", [same]))
    assert list(source.census.label_names) == [("REF_energy", "REF_forces", None)]
    path = write_xyz(tmp_path / "other.xyz", [same | {plain: good[plain] + 1.0}])
    with pytest.raises(
        InputError, match=rf"other\.xyz frame 0: REF_{plain} and {plain} are both there and differ"
    ):
        opened(path)
    chosen = opened(path, **{plain: plain}).structure(0)
    assert np.array_equal(getattr(chosen, plain), good[plain] + 1.0)


@pytest.mark.parametrize("columns", [1, 3])
def test_constraints_never_zero_the_forces(columns: int, tmp_path: Path) -> None:
    masked = record(move_mask=np.zeros((3, columns), dtype=bool))  # nothing may move
    structure = opened(write_xyz(tmp_path / "some.xyz", [masked])).structure(0)
    assert np.array_equal(structure.forces, record()["forces"])
    assert np.abs(structure.forces).max() == 0.5


@FILES
def test_labels_arrive_as_they_were_written(write: Write, tmp_path: Path) -> None:
    structure = opened(write(path_for(write, tmp_path), [record()])).structure(0)
    assert structure.energy == -457.25
    assert np.array_equal(structure.forces, record()["forces"])
    assert structure.stress is None


def test_an_energy_keeps_all_its_digits(tmp_path: Path) -> None:
    energy = -123456.78901234567  # in single precision 8 meV away
    for write in (write_xyz, write_dicts, write_geometric):
        path = write(path_for(write, tmp_path), [record(energy=energy)])
        assert opened(path).structure(0).energy == energy
        path.unlink()


# xx yy zz yz xz xy = 1 2 3 4 5 6
STRESS = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
SPELLINGS = {"3x3": STRESS, "nine": STRESS.reshape(9), "Voigt": np.arange(1.0, 7.0)}


@FILES
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_three_spellings_of_a_stress_are_one(spelling: str, write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(REF_stress=SPELLINGS[spelling])])
    assert np.array_equal(opened(path).structure(0).stress, STRESS)


@LMDBS
def test_a_stress_with_an_axis_of_one_is_read(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "some.lmdb", [record(stress=STRESS[None])])
    assert np.array_equal(opened(path).structure(0).stress, STRESS)


@FILES
@pytest.mark.parametrize("name", ["virial", "virials", "REF_virial", "REF_virials"])
def test_a_virial_becomes_a_stress(name: str, write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(**{name: -8.0 * STRESS})])
    source = opened(path)
    assert np.allclose(source.structure(0).stress, 0.008 * STRESS, rtol=1e-12), (
        "−virial / V with V = 1000 Å³"
    )
    assert next(iter(source.census.label_names))[2] == name, "which is printed"


@FILES
def test_a_virial_named_as_the_stress_is_still_a_virial(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(dft_virial=-8.0 * STRESS)])
    assert np.allclose(
        opened(path, stress="dft_virial").structure(0).stress, 0.008 * STRESS, rtol=1e-12
    )


@FILES
@pytest.mark.parametrize("pbc", [SLAB, OPEN])
@pytest.mark.parametrize("name", ["REF_stress", "REF_virials"])
def test_a_stress_without_a_volume_is_absent(
    name: str, pbc: tuple[bool, bool, bool], write: Write, tmp_path: Path
) -> None:
    path = write(path_for(write, tmp_path), [record(**{name: STRESS}, pbc=pbc)])
    data = dataset(path)
    assert data.structure(0).stress is None
    assert data.batch([0]).rows["stress"] == 0


@FILES
def test_a_slab_without_a_stress_counts_none(write: Write, tmp_path: Path) -> None:
    data = dataset(write(path_for(write, tmp_path), [record(pbc=SLAB), record(REF_stress=STRESS)]))
    assert data.batch([0, 1]).rows["stress"] == 1
    assert data.batch([0, 1]).labels["stress"].mask.tolist() == [False, True]


def test_a_stress_treated_as_absent_is_not_said_to_be_used(tmp_path: Path) -> None:
    source = opened(write_xyz(tmp_path / "some.xyz", [record(REF_stress=STRESS, pbc=SLAB)]))
    assert ("energy", "forces", "REF_stress") not in source.census.label_names


def test_xyz_refuses_a_plain_stress_that_is_not_symmetric(tmp_path: Path) -> None:
    path = write_xyz(tmp_path / "some.xyz", [record(stress=np.arange(9.0))])
    with pytest.raises(InputError, match="not symmetric"):
        opened(path)


def test_a_virial_that_disagrees_with_the_stress_is_an_error() -> None:
    agree = {"stress": STRESS, "virials": -1000.0 * STRESS}
    assert find_labels(agree, LabelKeys(), MANY, 1000.0).names[2] == "stress"
    differ = find_labels(agree | {"virials": 1000.0 * STRESS}, LabelKeys(), MANY, 1000.0)
    assert "differ" in differ.faults["stress"]
    assert "stress" not in differ.values


@FILES
def test_without_labels_a_structure_is_for_inference(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(energy=None, forces=None)])
    data = dataset(path, needs=TO_EVALUATE)
    assert not any(data.batch([0]).rows.values())
    with pytest.raises(InputError, match="energy missing"):
        opened(path)


@FILES
def test_a_mistyped_key_trains_on_nothing(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record()])
    with pytest.raises(InputError, match=r"forces missing.*--forces_key"):
        opened(path, forces="REF_force")


@FILES
def test_only_free_atoms_count_where_a_mask_says_so(write: Write, tmp_path: Path) -> None:
    mask = np.array([True, False, False])
    held = record(fixed=mask[:, None] if write is write_xyz else mask)
    path = write(path_for(write, tmp_path), [held])
    data = dataset(path)
    assert data.batch([0]).rows["forces"] == 2
    assert data.batch([0]).labels["forces"].mask.tolist() == [False, True, True]
    everything = Dataset(data.sources, FACTS, torch.float64, free_atoms_only=False)
    assert everything.batch([0]).rows["forces"] == 3


# Several files.


def test_a_file_given_twice_is_evaluated_twice(tmp_path: Path) -> None:
    path = write_xyz(tmp_path / "some.xyz", [record(), record()])
    data = Dataset([opened(path), opened(path)], FACTS, torch.float64)
    assert sorted(np.concatenate(list(data.by_source().values())).tolist()) == [0, 1, 2, 3]
