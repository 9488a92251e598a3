"""Small files that ask for endless time or memory, and what is no file: one line, exit 2
or 3, little of either.

Each command runs in a child that may compute for five seconds and take one GB, whatever the
machine does beside it.
"""

import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hostile_files as hostile
import pytest
from test_bad_input import furnished

import metadata
import read_model
from dataloader import pack
from dataloader.labels import TO_EVALUATE, LabelKeys
from dataloader.xyz import stream_xyz
from model_utils import evaluate, finetune, resume, train_mace

Main = Callable[[Sequence[str]], int]
# of CPU; of memory; of waiting for nothing, which ends the child
SECONDS, BYTES, HANGING = 5, 2**30, 120


COMMANDS: dict[str, Main] = {
    "train_mace": train_mace.main,
    "finetune": finetune.main,
    "resume": resume.main,
    "evaluate": evaluate.main,
    "metadata": metadata.main,
    "read_model": read_model.main,
    "pack": pack.main,
}
FIT = (
    "metadata fit --input_json {place}/m.json --xyz_train {place}/t.xyz "
    "--output_json {place}/o.json"
)
READERS = {  # {file} is the hostile one, {place} a folder of sound ones
    "weights": [
        "evaluate --input_model {file} --xyz_path {place}/t.xyz",
        "resume --input_model {file}",
        "finetune --input_model {file} --xyz_train {place}/t.xyz --output_checkpoint {place}/r",
        "read_model show --input_model {file}",
    ],
    "config": ["train_mace --config {file}", "pack {file}"],
    "mace_config": [
        "metadata init --mace_config {file} --xyz_train {place}/t.xyz --output_json {place}/o.json"
    ],
    "model.json": [
        "train_mace --input_json {file} --xyz_train {place}/t.xyz --output_checkpoint {place}/r",
        "metadata fit --input_json {file} --xyz_train {place}/t.xyz --output_json {place}/o.json",
        "read_model verify --input_model {place}/none.pt --input_json {file}",
    ],
    "energies": [f"{FIT} --E0s {{file}}", f"{FIT} --linear_references {{file}}"],
    "xyz": [
        "train_mace --input_json {place}/m.json --xyz_train {file} --output_checkpoint {place}/r",
        "metadata init --r_max 4 --xyz_train {file} --output_json {place}/o.json",
        "metadata check --xyz_train {file}",
        "pack --input {file} --output_dir {place}/packed",
    ],
    "lmdb": [
        (
            "train_mace --input_json {place}/m.json --data_format lmdb --lmdb_train {file} "
            "--output_checkpoint {place}/r"
        ),
        "pack --input {file} --output_dir {place}/packed",
    ],
    "ids": [
        (
            "pack --input {place}/t.xyz --output_dir {place}/packed --id_key sid --split train=0.5 "
            "valid=0.5 --valid_ids {file}"
        )
    ],
}

FILES: dict[str, tuple[str, hostile.Make]] = {
    **{
        f"weights: {n}": ("weights", hostile.of_text("x.pt", make))
        for n, make in hostile.PICKLES.items()
    },
    "weights: a header of 2^60 bytes": (
        "weights",
        hostile.of_text("x.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    ),
    **{
        f"--config: {n}": ("config", hostile.of_text("c.yaml", t))
        for n, t in hostile.yamls().items()
    },
    **{
        f"--mace_config: {n}": ("mace_config", hostile.of_text("c.yaml", hostile.yamls()[n]))
        for n in ("aliases", "a key twice", "nested", "a long number")
    },
    **{
        f"model.json: {n}": ("model.json", hostile.of_text("x.json", t))
        for n, t in hostile.jsons().items()
    },
    **{
        f"energies: {n}": ("energies", hostile.of_text("e.json", t))
        for n, t in hostile.jsons().items()
    },
    **{f"xyz: {n}": ("xyz", hostile.of_text("x.xyz", t)) for n, t in hostile.xyzs().items()},
    **{f"lmdb: {n}": ("lmdb", make) for n, make in hostile.lmdbs().items()},
    **{
        f"{what} in the place of {name}": (kind, make)
        for kind, name in (
            *(
                ("weights", "x.pt"),
                ("weights", "x.safetensors"),
                ("config", "c.yaml"),
                ("mace_config", "c.yaml"),
            ),
            *(
                ("model.json", "x.json"),
                ("energies", "e.json"),
                ("xyz", "x.xyz"),
                ("lmdb", "x.lmdb"),
                ("ids", "ids"),
            ),
        )
        for what, make in hostile.no_files(name).items()
        if what == "a pipe" or name in ("x.pt", "c.yaml", "x.xyz", "x.lmdb")
    },
}


def readers_of(name: str) -> list[str]:
    """One command for each file, in turn; a pipe, at which anyone might wait, is given to
    all, as all are in full.
    """
    readers = READERS[FILES[name][0]]
    if os.environ.get("BATTERY") == "full" or name.startswith("a pipe"):
        return readers
    return [readers[list(FILES).index(name) % len(readers)]]


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_one_line(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, make = FILES[name]
    place = furnished(tmp_path_factory.mktemp("place"))
    file = make(tmp_path_factory.mktemp("hostile"))
    for command in readers_of(name):
        program, *arguments = command.format(file=file, place=place).split()
        code, lines = bounded(COMMANDS[program], arguments, place / "said")
        assert code in (2, 3), (command, code, lines)
        assert len(lines) == 1, (command, lines)
        assert lines[0].startswith("error: "), lines


def test_large_honest_frames_are_read(tmp_path: Path) -> None:
    """A Hessian of 100 atoms in the comment, and a frame of 20,000 atoms;
    descriptors of 500 columns.
    """
    hessian = " ".join(["-0.1234567890123456789"] * 90_000)
    path = tmp_path / "large.xyz"
    path.write_text(
        f'1\nProperties=species:S:1:pos:R:3:soap:R:500 energy=-1 hessian="{hessian}"\n'
        f"H 0 0 0 {'0.5 ' * 500}\n"
        f"20000\nProperties=species:S:1:pos:R:3 energy=-1\n"
        + "".join(f"H {i % 20}.0 {i // 20 % 20}.0 {i // 400}.0\n" for i in range(20_000))
    )
    frames = list(stream_xyz(path, LabelKeys(), TO_EVALUATE))
    assert [frame.structure.n_atoms for frame in frames] == [1, 20_000]


def bounded(main: Main, arguments: Sequence[str], said: Path) -> tuple[int, list[str]]:
    """Exit code (negative: of a signal) and lines on stderr of a command in a child with
    little time and memory.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _limit()
            descriptor = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
            os.dup2(descriptor, 2)
            sys.stderr = os.fdopen(descriptor, "w", buffering=1)
            code = main(list(arguments))
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.read_text().splitlines()


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(HANGING)
