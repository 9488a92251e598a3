"""pack.py: records equal to their source, nothing in two splits, continued after a
kill as if it never was.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from lmdb_material import dict_row, labelled, put

from conftest import ROOT, living, wait_until, waters
from dataloader import pack
from dataloader.data_file import SourceSpec
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_shards.lmdb_record import PACKED
from dataloader.lmdb_shards.lmdb_source import LmdbSource
from dataloader.needs import ModelFacts
from dataloader.neighbors import build_graph
from dataloader.packed.duplicates import components, fingerprint
from dataloader.sources import open_sources

N = 60


def source(path: Path) -> LmdbSource:
    return LmdbSource(
        path, LabelKeys(), needs=TO_TRAIN, max_dropped=0.001, keep=("origin", "sid", "group")
    )


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """An LMDB with identifiers, groups of four, and each fifth structure once more
    under another identifier.
    """
    rows = {}
    for i, atoms in enumerate(labelled(N)):
        rows[str(i).encode()] = dict_row(atoms, sid=f"id{i}", group=i // 4)
        if i % 5 == 0:
            rows[str(1000 + i).encode()] = dict_row(atoms, sid=f"copy{i}", group=1000 + i)
    return put(tmp_path / "planted.lmdb", rows)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def go(*arguments: object, code: int = 0) -> str:
        assert pack.main([str(argument) for argument in arguments]) == code
        return "".join(capsys.readouterr())

    return go


def contents(folder: Path) -> list[Any]:
    found = source(folder)
    return [found.structure(i) for i in range(len(found))]


def test_packed_records_equal_their_source(
    shared_data: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    inputs = [shared_data / "oc20/s2ef_val_20_data.lmdb", shared_data / "lips/data.lmdb"]
    frames = read(shared_data / "mptrj/mptrj-random-1k.xyz", ":60")
    write(tmp_path / "mptrj.xyz", frames, format="extxyz")
    run(
        "--input",
        *inputs,
        tmp_path / "mptrj.xyz",
        "--output_dir",
        tmp_path / "p",
        "--rows_per_shard",
        50,
        "--r_max",
        4,
    )
    packed = source(tmp_path / "p")
    assert packed.census.layouts == {PACKED: 280}
    originals = [s.structure(i) for s in map(source, inputs) for i in range(len(s))]
    for i, theirs in enumerate(originals):
        ours = packed.structure(i)
        assert ours.extra["origin"] == theirs.identifier
        for name in ("atomic_numbers", "positions", "cell", "forces", "stress", "free_atoms"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.energy, ours.pbc) == (theirs.energy, theirs.pbc)
    for atoms, i in zip(frames, range(220, 280), strict=True):
        ours = packed.structure(i)
        np.testing.assert_array_equal(ours.positions, atoms.positions)
        np.testing.assert_array_equal(ours.forces, atoms.get_forces())
        np.testing.assert_allclose(ours.stress, atoms.get_stress(voigt=False), rtol=0, atol=0)
    for i in (0, 19, 20, 219, 220, 279):
        for cutoff in (4.0, 3.0, 4.5):  # as stored, cut from it, computed
            ours, alone = packed.structure(i), build_graph(packed.structure(i), cutoff)
            bare = build_graph(Atoms_free(ours), cutoff)
            for name in ("positions", "senders", "receivers", "shifts"):
                np.testing.assert_array_equal(getattr(alone, name), getattr(bare, name))


def Atoms_free(structure: Any) -> Any:
    import dataclasses

    return dataclasses.replace(structure, edges=None)


def test_nothing_is_in_two_splits(planted: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    out = run(
        *(
            "--input",
            planted,
            "--output_dir",
            tmp_path / "p",
            "--id_key",
            "sid",
            "--group_key",
            "group",
        ),
        *(
            "--split",
            "train=0.6",
            "valid=0.2",
            "test=0.2",
            "--rows_per_shard",
            10,
            "--stages",
            5,
            20,
        ),
    )
    assert "12 structures repeat 12 others: planted.lmdb key 1000 = planted.lmdb key 0" in out
    advice = out.partition("read it with ")[2].splitlines()[0].split()
    assert advice[:6:2] == ["--lmdb_train", "--lmdb_val", "--lmdb_test"]
    assert all(len(source(Path(path))) for path in advice[1:6:2])
    parts = {name: contents(tmp_path / "p" / name) for name in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == N + 12
    assert all(len(part) >= 8 for part in parts.values())
    for what in (lambda s: s.extra["sid"], lambda s: s.extra["group"], fingerprint):
        seen = [{what(s) for s in part} for part in parts.values()]
        assert sum(map(len, seen)) == len(set().union(*seen))
    report = json.loads((tmp_path / "p" / "report.json").read_text())
    assert report["leaks"] == 0
    assert report["repeated"] == 12
    stages = [
        {s.extra["sid"] for s in contents(tmp_path / "p" / "train" / f"stage_{n}.json")}
        for n in (5, 20)
    ]
    assert [len(stage) for stage in stages] == [5, 20]
    assert stages[0] < stages[1] < {s.extra["sid"] for s in parts["train"]}


def test_id_files_are_the_validation_and_test_sets(
    planted: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    (tmp_path / "valid.txt").write_text("id0\nid7\n")
    (tmp_path / "test.txt").write_text("id20\n\nid33\n")
    common = (
        "--input",
        planted,
        "--output_dir",
        tmp_path / "p",
        "--id_key",
        "sid",
        "--valid_ids",
        tmp_path / "valid.txt",
    )
    out = run(*common, "--test_ids", tmp_path / "test.txt", "--drop_duplicates")
    assert "2 left out: the same structure, identifier or group as a record of an ID file" in out
    ids = {
        name: {s.extra["sid"] for s in contents(tmp_path / "p" / name)}
        for name in ("train", "valid", "test")
    }
    assert ids["valid"] == {"id0", "id7"}
    assert ids["test"] == {"id20", "id33"}
    assert not {"copy0", "copy20"} & ids["train"]
    (tmp_path / "test.txt").write_text("copy0\n")
    out = run(
        *common[:2],
        "--output_dir",
        tmp_path / "q",
        *common[4:],
        "--test_ids",
        tmp_path / "test.txt",
        code=2,
    )
    assert "the ID files of valid and test name records that are the same structure" in out
    (tmp_path / "test.txt").write_text("nobody\n")
    out = run(
        *common[:2],
        "--output_dir",
        tmp_path / "q2",
        *common[4:],
        "--test_ids",
        tmp_path / "test.txt",
        code=2,
    )
    assert "1 of the 1 identifiers of the ID file of test are no sid of any record" in out


@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_continued_it_gives_the_identical_manifest(
    after: int, planted: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    arguments = [
        "--input",
        str(planted),
        "--split",
        "train=0.7",
        "test=0.3",
        "--rows_per_shard",
        "7",
        "--r_max",
        "3",
    ]
    run(*arguments, "--output_dir", tmp_path / "whole")
    # of the training shards the first ones are written; on all others it works until it is killed
    without_end = (
        "import sys, time; sys.path.insert(0, '.')\n"
        "from dataloader import pack; from dataloader.packed import shard_writer\n"
        "write = shard_writer._write_shard\n"
        "def some(task, **words):\n"
        f"    if task.split != 'train' or task.number >= {after}: time.sleep(3600)\n"
        "    return write(task, **words)\n"
        "shard_writer._write_shard = some; sys.exit(pack.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", without_end, *arguments, "--output_dir", str(tmp_path / "cut")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    notes = tmp_path / "cut" / "packing"  # one of each shard that is whole
    wait_until(lambda: len(list(notes.glob("train-*.json"))) == after, f"{after} shards")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not living(process.pid), "the end of all children")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*/*.lmdb")}
    assert len(made) == after
    assert not list((tmp_path / "cut").glob("*/manifest.json"))
    run(*arguments, "--output_dir", tmp_path / "cut")
    for name in ("train/manifest.json", "test/manifest.json", "report.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in made} == made, "they are not written again"
    assert not (tmp_path / "cut" / "packing").exists()


def test_a_shard_that_was_changed_is_refused(
    planted: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    run("--input", planted, "--output_dir", tmp_path / "p")
    shard = tmp_path / "p" / "shard_00000.lmdb"
    content = bytearray(shard.read_bytes())
    content[content.rfind(b"origin") + 20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="is not the shard that was packed: its sha256 is"):
        source(tmp_path / "p")
    (tmp_path / "p" / "manifest.json").write_text(
        json.dumps({"format": 1, "shards": [{"file": "../planted.lmdb", "sha256": "0", "rows": 1}]})
    )
    with pytest.raises(InputError, match="expected the name of a file beside it"):
        source(tmp_path / "p")


def test_a_folder_with_something_else_is_left_alone(
    planted: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").write_text("x")
    assert "holds something else than an unfinished packing" in run(
        "--input", planted, "--output_dir", tmp_path / "p", code=2
    )
    assert [entry.name for entry in (tmp_path / "p").iterdir()] == ["thesis.tex"]


def test_stored_edges_train_like_computed_ones(
    planted: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    import torch

    run("--input", planted, "--output_dir", tmp_path / "p", "--r_max", 3)
    facts = ModelFacts(
        atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
    )
    ours, theirs = (
        Dataset([source(path)], facts, torch.float64) for path in (tmp_path / "p", planted)
    )
    one, other = ours.batch([0, 5, 9]), theirs.batch([0, 5, 9])
    for name in ("positions", "senders", "receivers", "shifts", "cell"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_what_belongs_together_is_found_through_chains() -> None:
    a = np.array([1, 1, 2, 3, 0, 0], dtype=np.uint64)
    b = np.array([7, 8, 8, 9, 0, 0], dtype=np.uint64)
    assert components([a, b]).tolist() == [0, 0, 0, 3, 4, 5]
    chain = np.arange(1, 1001, dtype=np.uint64)
    assert components([chain // 2 + 1, (chain + 1) // 2 + 1]).tolist() == [0] * 1000


def test_the_origin_and_tiny_noise_make_no_other_structure() -> None:
    atoms: Atoms = labelled(1)[0]
    import dataclasses

    from dataloader.structure import Structure

    base = Structure(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        pbc=(True,) * 3,
        identifier="",
    )
    assert fingerprint(base) == fingerprint(
        dataclasses.replace(base, positions=base.positions + 1.0, labels={"energy": 3.0})
    )
    assert fingerprint(base) != fingerprint(
        dataclasses.replace(base, positions=base.positions * 1.01)
    )


def test_a_split_to_which_nothing_falls_says_what_stays_together(
    run: Callable[..., str], tmp_path: Path
) -> None:
    frames = labelled(6)
    for atoms in frames:
        atoms.info["run"] = "the only one"
    write(tmp_path / "some.xyz", frames, format="extxyz")
    words = ["--input", tmp_path / "some.xyz", "--output_dir", tmp_path / "out"]
    said = run(*words, "--split", "train=0.5", "valid=0.5", "--group_key", "run", code=2)
    assert "no structure falls to train" in said or "no structure falls to valid" in said
    assert "6 of the 6 structures are one such set" in said
    assert "--group_key" in said


@pytest.mark.parametrize("kind", ["xyz", "lmdb"])
def test_elements_are_those_that_were_asked_for(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words and numbers of a training; another choice is another packing."""
    frames = waters(12)
    for atoms in frames[8:]:
        atoms.numbers[0] = 16
    write(tmp_path / "all.xyz", frames, format="extxyz")
    data = tmp_path / "all.xyz"
    if kind == "lmdb":
        data = tmp_path / "all"
        assert pack.main(["--input", str(tmp_path / "all.xyz"), "--output_dir", str(data)]) == 0
    words = ["--input", str(data), "--output_dir", str(tmp_path / "some")]
    assert pack.main([*words, "--elements", "H", "O"]) == 0
    assert "4 × an element outside --elements" in capsys.readouterr().out
    spec = SourceSpec(path=tmp_path / "some", format="lmdb")
    (source,) = open_sources([spec], needs=TO_TRAIN, max_dropped=0.0)
    assert len(source) == 8
    assert source.elements.within([1, 8]).all()
    assert pack.main([*words, "--elements", "8", "1"]) == 0
    assert pack.main(words) == 2
    # where it leaves out nothing it is the packing of before there was a choice
    again = ["--input", str(tmp_path / "some"), "--output_dir", str(tmp_path / "again")]
    assert pack.main(again) == 0
    assert pack.main([*again, "--elements", "H", "O"]) == 0
