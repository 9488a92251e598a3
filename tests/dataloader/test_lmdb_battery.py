"""Damaged and hostile LMDBs in number: rows, files, workers that die.

``BATTERY=full``: as many as the README says.
"""

import faulthandler
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from lmdb_material import ase_row, dict_row, in_child, labelled, put, write_dicts

from conftest import HANGING, ROOT, in_the_battery
from dataloader import parallel
from dataloader.dataset import Dataset
from dataloader.errors import InputError, RowError
from dataloader.labels import TO_TRAIN, LabelError, LabelKeys
from dataloader.lmdb_shards import index_building, lmdb_source
from dataloader.lmdb_shards.lmdb_record import decode, fault_of, record_of
from dataloader.lmdb_shards.lmdb_source import Filters, LmdbSource
from dataloader.lmdb_shards.shard_index import IndexRecipe, places
from dataloader.loader import Loader
from dataloader.needs import ModelFacts
from dataloader.packed import packed_rows
from dataloader.structure import Structure

FULL = os.environ.get("BATTERY") in ("full", "product")
ROWS, FILES = (100_000, 10_000) if FULL else (6_000, 60)
MEMORY = 3 * 2**30  # of the child's address space; an import of torch and numpy takes one of them
SLOWEST = 5.0  # s of processor time for one row, which others on the machine do not change


def packed(atoms: Atoms) -> bytes:
    results = atoms.calc.results
    what = {"energy": results["energy"], "forces": results["forces"], "stress": np.eye(3)}
    return packed_rows.dumps(
        Structure(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.array(atoms.cell),
            pbc=(True,) * 3,
            identifier="",
            labels=what,
        ),
        extra={"sid": 3},
    )


def seeds(shared: Path | None) -> list[bytes]:
    atoms = labelled(2)[1]
    rows = [ase_row(atoms, charge=1, spin=2), dict_row(atoms), packed(atoms)]
    if shared is not None:
        import lmdb

        path = str(shared / "oc20/s2ef_val_20_data.lmdb")
        with (
            lmdb.open(path, subdir=False, readonly=True, lock=False) as environment,
            environment.begin() as reading,
        ):
            rows.append(reading.get(b"3"))
    return rows


def mutated(row: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, doubled; of a zlib row also what is inside, so that more
    than its checksum is met.
    """
    inside = row[:1] == b"\x78" and rng.random() < 0.9
    data = bytearray(zlib.decompress(row) if inside else row)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == 1 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[place : place + rng.randrange(1, 9)]
        elif kind == 3:
            data[place:place] = bytes(
                rng.choices(b'[]{}",:0123456789e-\x00\xff', k=rng.randrange(1, 9))
            )
        else:
            data[place : place + 4] = rng.choice(
                (b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"1e99", b"9999")
            )
    return zlib.compress(bytes(data), 1) if inside else bytes(data)


def test_mutated_rows_are_refused_or_read_and_nothing_else(request: pytest.FixtureRequest) -> None:
    """In one child with a memory limit: a signal, another exception, two lines or a second
    for one row would show.
    """
    try:
        shared: Path | None = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        shared = None
    rows = seeds(shared)

    def task() -> int:
        rng = random.Random(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for n in range(ROWS):
            row = mutated(rows[n % len(rows)], rng)
            began = time.process_time()
            try:
                found = decode(row, "x", LabelKeys())
                fault_of(found.structure)
            except (RowError, LabelError) as error:
                if "\n" in str(error) or not str(error):
                    return 2
            if time.process_time() - began > SLOWEST:
                return 3
        return 4 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 300 * 2**10 else 0

    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10 + 8 * MEMORY
    assert in_child(task, limit) == 0


def test_bombs_are_refused_quickly_and_cheaply() -> None:
    bombs = [
        zlib.compress(bytes(2**28), 9),
        zlib.compress(b"[" + b"[]," * (2**21 + 9) + b"0]"),
        zlib.compress(b'{"numbers": [' + b"0," * (2**21 - 9) + b"0]}"),
        packed_rows._HEADER.pack(packed_rows.MAGIC, 0, 2**32 - 1, 2**32 - 1, 0),
    ]

    def task() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for bomb in bombs:
            began = time.process_time()
            try:
                record_of(bomb)
                decode(bomb, "x", LabelKeys())
                return 2
            except (RowError, LabelError):
                pass
            if time.process_time() - began > SLOWEST:
                return 3
        return 4 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 300 * 2**10 else 0

    assert in_child(task) == 0


# ---- files


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        kind, place = rng.randrange(4), rng.randrange(len(data))
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:  # where pages say what they are and where things lie
            place = place // 4096 * 4096 + rng.randrange(0, 64)
            data[place : place + 4] = rng.randbytes(4)
        elif kind == 2:
            data[place : place + 64] = rng.randbytes(64)
        else:
            page, other = place // 4096 * 4096, rng.randrange(len(data)) // 4096 * 4096
            data[page : page + 4096] = data[other : other + 4096]
    return bytes(data[: len(content)])


def everything(path: Path, *, verify: bool) -> int:
    """0 read, 2 refused in a sentence; the process ends by a signal where LMDB takes it down."""
    try:
        source = LmdbSource(
            path, LabelKeys(), needs=TO_TRAIN, max_dropped=0.5, filters=Filters(verify=verify)
        )
        for i in range(len(source)):
            source.structure(i)
    except InputError as error:
        return 2 if "\n" not in str(error) and path.name in str(error) else 3
    return 0


@pytest.mark.parametrize("verify", [False, True])
def test_mutated_files_end_no_process(
    verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, indexed and read in a child: with --verify against the index of the sound
    file, without it anew.
    """
    monkeypatch.setattr(index_building, "KEPT_FROM", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_dicts(tmp_path / "some.lmdb", labelled(60))
    content, rng = path.read_bytes(), random.Random(2)
    index = places(path, IndexRecipe(LabelKeys()))[0]
    assert everything(path, verify=True) == 0
    kept = index.read_bytes()
    codes = []
    for _ in range(FILES // 2):
        path.write_bytes(damaged(content, rng))
        if verify:
            index.write_bytes(kept)
        else:
            index.unlink(missing_ok=True)
            shutil.rmtree(index.with_name(f"{index.name}.building"), ignore_errors=True)
        codes.append(in_child(lambda: everything(path, verify=verify)))
    signals = [code for code in codes if code < 0]
    assert set(codes) - set(signals) <= {0, 2}
    assert len(signals) <= (0 if verify else 0.001 * len(codes))
    assert codes.count(2) > len(codes) / 10
    if verify:
        assert codes.count(0) <= 0.05 * len(codes), "only what the damage left as it was"


def test_the_hostile_pickles_of_the_reader_fire_no_event_here_either(tmp_path: Path) -> None:
    """The layouts are told apart before anything is unpickled: an opcode that runs
    code is refused by name.
    """

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'fired'}",)

    rows = [pickle.dumps(Bomb(), protocol) for protocol in range(6)]
    for row in rows:
        with pytest.raises(RowError):
            record_of(row)
    assert not (tmp_path / "fired").exists()
    pickle.loads(rows[2])
    assert (tmp_path / "fired").exists(), "the oracle fires"


# ---- workers


def test_a_worker_that_dies_names_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicts(tmp_path / "some.lmdb", labelled(12))
    facts = ModelFacts(
        atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
    )
    data = Dataset(
        [LmdbSource(path, LabelKeys(), needs=TO_TRAIN, max_dropped=0)], facts, torch.float64
    )
    read = lmdb_source.LmdbFile.get

    def dying(self: lmdb_source.LmdbFile, key: bytes) -> bytes:
        value = read(self, key)
        if key == b"7":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGBUS)
        return value

    monkeypatch.setattr(lmdb_source.LmdbFile, "get", dying)
    loader = Loader(data, num_workers=2)
    with pytest.raises(InputError, match=r"ended by SIGBUS while reading .*some\.lmdb"):
        list(loader.batches([np.array([i]) for i in range(12)]))


@in_the_battery
def test_a_file_that_is_cut_while_it_is_read_ends_with_a_sentence_and_code_2(
    tmp_path: Path, tiny_json: Path
) -> None:
    """The real command, a worker, a shard cut to its first pages between the look
    at it and the reading.
    """
    frames = labelled(400)
    path = put(
        tmp_path / "train.lmdb",
        {str(i).encode(): dict_row(a, pad=np.zeros(500)) for i, a in enumerate(frames)},
    )
    code = (
        "import os, sys; from model_utils import train_mace; from model_utils.run import "
        "open_data\n"
        "look = open_data.training_data\n"
        "def cutting(*a, **k):\n"
        f"    found = look(*a, **k); os.truncate({str(path)!r}, 16384); return found\n"
        "open_data.training_data = cutting; sys.exit(train_mace.main(sys.argv[1:]))"
    )
    flags = ["--input_json", str(tiny_json), "--lmdb_train", str(path), "--num_workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--output_checkpoint", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=HANGING,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert str(path) in line


def test_a_process_ends_with_workers_at_hand(tmp_path: Path) -> None:
    """Workers outlive SIGTERM, which is how Python ends the children of a process that is over."""
    path = write_dicts(tmp_path / "some.lmdb", labelled(4))
    code = (
        "import sys, torch, numpy as np\n"
        "from pathlib import Path\n"
        "from dataloader.needs import ModelFacts\n"
        "from dataloader.dataset import Dataset\n"
        "from dataloader.labels import TO_TRAIN, LabelKeys\n"
        "from dataloader.lmdb_shards.lmdb_source import LmdbSource\n"
        "from dataloader.loader import Loader\n"
        "facts = ModelFacts(atomic_numbers=(1, 8), heads=('D',), atomic_energies=((0.0, 0.0),), "
        "r_max=3.0)\n"
        "source = LmdbSource(Path(sys.argv[1]), LabelKeys(), needs=TO_TRAIN, max_dropped=0)\n"
        "loader = Loader(Dataset([source], facts, torch.float64), num_workers=1)\n"
        "batches = loader.batches([np.array([i]) for i in range(4)])\n"
        "print(next(batches).n_structures)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGING)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr[-1000:]


def test_a_child_that_is_killed_asks_for_memory(tmp_path: Path) -> None:
    def dying(_: int) -> None:
        parallel.note(str(tmp_path / "a.lmdb"))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match=r"killed while reading .*a\.lmdb: is there enough memory"):
        list(parallel.in_children(dying, [0]))


def test_children_end_with_the_generator() -> None:
    def slow(n: int) -> int:
        time.sleep(0.05 if n == 0 else 60)
        return os.getpid()

    working = parallel.in_children(slow, [0, 1, 2], processes=3)
    _, child = next(working)
    working.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
