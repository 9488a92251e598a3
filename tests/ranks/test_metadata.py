"""metadata.py in several processes: the files, the words and the refusals of one, and each
works on its own share.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from lmdb_material import labelled, write_dicts

from conftest import ROOT, every, waters
from ranks.launching import Launcher

SIZES = (1, 2, 3)
SMALL_BLOCKS = """
from dataloader import progress
from model_utils.ranks import in_order
from model_utils.tasks import checking
progress.be_quiet()
in_order.FIRST_BLOCK = 1
in_order.LARGEST_BLOCK = 2
checking.ROWS_AT_ONCE = 3
"""
ONLY_THE_FIRST_WRITES = """
import os, sys
def look(event, words):
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and isinstance(words[0], str) and words[2] & written:
        if os.path.abspath(words[0]).startswith(os.getcwd()):
            os.write(2, ("written by rank %d: %s" % (rank, words[0])).encode())
            os._exit(77)
if rank > 0:
    sys.addaudithook(look)
"""
COUNTED = """
import os
from dataloader import statistics
from dataloader.data_check import looking
from dataloader.lmdb_shards.lmdb_source import LmdbSource
def count(owner, name):
    real = getattr(owner, name)
    def counted(*words, **more):
        with open(f"{name}-{rank}", "a") as file:
            file.write(".")
        return real(*words, **more)
    setattr(owner, name, counted)
count(statistics, "build_graph")
count(LmdbSource, "structure")
"""
SHORTER = """
from model_utils.tasks import data_sums
structures = data_sums._structures
data_sums._structures = lambda options: list(structures(options))[: 17 if rank == 1 else None]
"""
LACKING = """
from model_utils.tasks import data_sums
from dataloader.errors import InputError
structures = data_sums._structures
def lacking(options):
    for number, read in enumerate(structures(options)):
        if rank == 1 and number == 4:
            raise InputError("cannot read b.xyz")
        yield read
data_sums._structures = lacking
"""
OTHER_FILE = """
import pathlib
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: not (rank == 1 and path.name == "b.xyz") and exists(path)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Xyz files of two heads with isolated atoms between, of repeated structures and with
    two faults; two shards.
    """
    folder = tmp_path_factory.mktemp("metadata")
    frames = waters(16, seed=3)
    for atoms in frames[::3]:
        atoms.info["head"] = "other"
    frames[5:5] = [isolated("H", -13.1)]
    write(folder / "a.xyz", frames[:9], format="extxyz")
    write(folder / "b.xyz", [*frames[9:], isolated("O", -431.0)], format="extxyz")
    write(folder / "twice.xyz", waters(7, seed=4) * 2, format="extxyz")
    (folder / "shards").mkdir()
    for number in range(2):
        write_dicts(folder / f"shards/{number}.lmdb", labelled(8, seed=number))
    for number in (10, 13):
        frames[number].positions[1] = frames[number].positions[0] + [0.0, 0.0, 1e-4 * number]
    write(folder / "broken.xyz", frames, format="extxyz")
    return folder


def isolated(symbol: str, energy: float) -> Atoms:
    atoms = Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom"})
    atoms.arrays["REF_forces"] = np.zeros((1, 3))
    return atoms


def said_by(
    launcher: Launcher, size: int, folder: Path, *words: object, code: int = 0, before: str = ""
) -> list[str]:
    """What the first process says, without the time of day; the others say nothing."""
    processes = launcher.run(
        size, "metadata", *words, folder=folder, code=code, before=SMALL_BLOCKS + before
    )
    assert [processes.said(rank) for rank in range(1, size)] == [""] * (size - 1)
    return [
        line.partition(" ")[2] if line[2:3] == ":" else line
        for line in processes.said(0).splitlines()
    ]


COMMANDS = {
    "init, xyz": ["init", "--preset", "tiny", "--xyz_train", "a.xyz", "b.xyz"],
    "init, a part of them": [
        "init",
        "--preset",
        "tiny",
        "--xyz_train",
        "a.xyz",
        "b.xyz",
        "--valid_fraction",
        "0.3",
    ],
    "init, LMDB": ["init", "--preset", "tiny", "--lmdb_train", "shards"],
    "init, no data": ["init", "--preset", "tiny", "--elements", "H", "O"],
    "fit": ["fit", "--input_json", "model.json", "--xyz_train", "a.xyz", "--scaling", "std"],
    "check": [
        "check",
        "--train_file",
        "a.xyz",
        "twice.xyz",
        "shards",
        "--valid_file",
        "b.xyz",
        "absent.xyz",
        "--r_max",
        "3",
    ],
}


@pytest.mark.parametrize("command", every(2, list(COMMANDS)))
def test_files_and_words_are_those_of_one_process(
    command: str, launcher: Launcher, data: Path, tmp_path: Path
) -> None:
    words = [str(data / word) if (data / word).exists() else word for word in COMMANDS[command]]
    (tmp_path / "model.json").write_text(
        '{"model_class": "ScaleShiftMACE", "r_max": 3.0, "heads": ["Default", "other"]}'
    )
    written = {}
    for size in SIZES:
        said = said_by(
            launcher,
            size,
            tmp_path,
            *words,
            *("--output_json", "out.json"),
            code=2 if command == "check" else 0,
            before=ONLY_THE_FIRST_WRITES,
        )
        written[size] = (said, (tmp_path / "out.json").read_bytes())
        (tmp_path / "out.json").unlink()
    assert written[1][0]
    assert written[2] == written[1]
    assert written[3] == written[1]


@pytest.mark.parametrize("flag", ["--xyz_train", "--lmdb_train"])
def test_each_process_works_on_its_own_structures(
    flag: str, launcher: Launcher, data: Path, tmp_path: Path
) -> None:
    files = {"--xyz_train": [data / "a.xyz", data / "b.xyz"], "--lmdb_train": [data / "shards"]}[
        flag
    ]
    words = ["init", "--preset", "tiny", flag, *files, "--output_json", "out.json"]
    said_by(launcher, 2, tmp_path, *words, before=COUNTED)
    counts = [len((tmp_path / f"build_graph-{rank}").read_text()) for rank in range(2)]
    assert sum(counts) == 16
    assert min(counts) >= 6
    if flag == "--lmdb_train":
        assert counts == [len((tmp_path / f"structure-{rank}").read_text()) for rank in range(2)]


def test_the_first_fault_is_refused_in_the_words_of_one_process(
    launcher: Launcher, data: Path, tmp_path: Path
) -> None:
    """Two structures are broken, one of them in each process; a file's text is broken for all."""
    text = (data / "a.xyz").read_text().splitlines()
    (tmp_path / "torn.xyz").write_text("\n".join([*text[:30], *text[31:]]) + "\n")
    for path, words in (
        (data / "broken.xyz", "broken.xyz#10: atoms"),
        (tmp_path / "torn.xyz", "torn.xyz frame "),
    ):
        data_words = ["init", "--preset", "tiny", "--xyz_train", path, "--output_json", "out.json"]
        lines = [said_by(launcher, size, tmp_path, *data_words, code=2) for size in SIZES]
        assert len(lines[0]) == 1
        assert words in lines[0][0]
        assert lines[1:] == [lines[0]] * 2
    assert not (tmp_path / "out.json").exists()


OTHERS = {
    "fewer structures": (
        SHORTER,
        "init",
        "error: rank 1 of 3 finds fewer structures in the data than rank 0",
    ),
    "a file that cannot be read": (LACKING, "init", "error: rank 1 of 3: cannot read b.xyz"),
    "a file that is absent": (
        OTHER_FILE,
        "check",
        "error: rank 1 of 3 sees other training data than rank 0",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_process_with_other_files_ends_all(
    other: str, launcher: Launcher, data: Path, tmp_path: Path
) -> None:
    before, command, line = OTHERS[other]
    words = [command, "--xyz_train", data / "a.xyz", data / "b.xyz", "--output_json", "out.json"]
    words += ["--preset", "tiny"] if command == "init" else []
    said = said_by(launcher, 3, tmp_path, *words, code=2, before=before)
    assert [line in text for text in said] == [True], said
    assert not (tmp_path / "out.json").exists()


def test_a_file_that_is_there_is_refused_once(
    launcher: Launcher, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.json").write_text("mine")
    for words in (["init", "--preset", "tiny"], ["check"]):
        given = [*words, "--xyz_train", data / "a.xyz", "--output_json", "out.json"]
        assert [
            "there already" in line for line in said_by(launcher, 2, tmp_path, *given, code=2)
        ] == [True]
    assert (tmp_path / "out.json").read_text() == "mine"


@pytest.mark.skipif(
    sys.platform != "linux", reason="what a process was started with is seen in Linux's /proc"
)
@pytest.mark.parametrize(("rank", "users"), [(0, None), (0, "1"), (1, None)])
def test_torchruns_own_number_of_threads_is_taken_back(rank: int, users: str | None) -> None:
    """By the first process, before numpy is imported, and only where torchrun
    was started without one.
    """
    child = (
        "import os, sys, metadata; sys.argv[1:] = ['--help']; metadata.main();"
        "print(os.environ.get('OMP_NUM_THREADS'), 'numpy' in sys.modules)"
    )
    torchrun = (
        "import os, subprocess, sys; os.environ.setdefault('OMP_NUM_THREADS', '1');"
        f"os.environ.update(TORCHELASTIC_RUN_ID='x', RANK='{rank}');"
        f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ |= {"PYTHONPATH": str(ROOT)} | ({} if users is None else {"OMP_NUM_THREADS": users})
    said = subprocess.run(
        [sys.executable, "-c", torchrun], env=environ, capture_output=True, text=True, check=True
    )
    kept = None if users is None and rank == 0 else users or "1"
    assert said.stdout.splitlines()[-1] == f"{kept} False"
