"""Small files that ask for endless time or memory, and what is no file: one line, exit 2 or 3, little of either.

Each command runs in a child that may compute for five seconds and take one GB, whatever the machine does beside it.
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

import metadata
import read_model
from dataloader import pack
from model_utils import evaluate, finetune, resume, train_mace
from test_bad_input import furnished

Main = Callable[[Sequence[str]], int]
Words = Callable[[Path, Path], list[str]]  # of the hostile file and a folder of sound ones
SECONDS, BYTES, HANGING = 5, 2**30, 120  # of CPU; of memory; of waiting for nothing, which ends the child


def _fit(flag: str, file: Path, place: Path) -> list[str]:
    return ["fit", "--input_json", f"{place}/m.json", "--xyz_train", f"{place}/t.xyz", flag, str(file)]


READERS: dict[str, list[tuple[Main, Words]]] = {
    "weights": [
        (evaluate.main, lambda f, p: ["--input_model", f"{f}", "--xyz_path", f"{p}/t.xyz"]),
        (resume.main, lambda f, p: ["--input_model", f"{f}"]),
        (finetune.main, lambda f, p: ["--input_model", f"{f}", "--xyz_train", f"{p}/t.xyz", "--output_checkpoint", f"{p}/r"]),
        (read_model.main, lambda f, p: ["show", "--input_model", f"{f}"]),
    ],
    "config": [
        (train_mace.main, lambda f, p: ["--config", f"{f}"]),
        (pack.main, lambda f, p: [f"{f}"]),
    ],
    "mace_config": [
        (metadata.main, lambda f, p: ["init", "--mace_config", f"{f}", "--xyz_train", f"{p}/t.xyz", "--output_json", f"{p}/o.json"]),
    ],
    "model.json": [
        (train_mace.main, lambda f, p: ["--input_json", f"{f}", "--xyz_train", f"{p}/t.xyz", "--output_checkpoint", f"{p}/r"]),
        (metadata.main, lambda f, p: ["fit", "--input_json", f"{f}", "--xyz_train", f"{p}/t.xyz", "--output_json", f"{p}/o.json"]),
        (read_model.main, lambda f, p: ["verify", "--input_model", f"{p}/none.pt", "--input_json", f"{f}"]),
    ],
    "energies": [
        (metadata.main, lambda f, p: [*_fit("--E0s", f, p), "--output_json", f"{p}/o.json"]),
        (metadata.main, lambda f, p: [*_fit("--linear_references", f, p), "--output_json", f"{p}/o.json"]),
    ],
    "xyz": [
        (train_mace.main, lambda f, p: ["--input_json", f"{p}/m.json", "--xyz_train", f"{f}", "--output_checkpoint", f"{p}/r"]),
        (metadata.main, lambda f, p: ["init", "--r_max", "4", "--xyz_train", f"{f}", "--output_json", f"{p}/o.json"]),
        (metadata.main, lambda f, p: ["check", "--xyz_train", f"{f}"]),
        (pack.main, lambda f, p: ["--input", f"{f}", "--output_dir", f"{p}/packed"]),
    ],
    "lmdb": [
        (train_mace.main, lambda f, p: ["--input_json", f"{p}/m.json", "--data_format", "lmdb", "--lmdb_train", f"{f}", "--output_checkpoint", f"{p}/r"]),
        (pack.main, lambda f, p: ["--input", f"{f}", "--output_dir", f"{p}/packed"]),
    ],
    "ids": [
        (pack.main, lambda f, p: ["--input", f"{p}/t.xyz", "--output_dir", f"{p}/packed", "--id_key", "sid", "--split", "train=0.5", "valid=0.5", "--valid_ids", f"{f}"]),
    ],
}  # fmt: skip

FILES: dict[str, tuple[str, hostile.Make]] = {
    **{f"weights: {n}": ("weights", lambda d, m=m: hostile.of_text("x.pt", m())(d)) for n, m in hostile.PICKLES.items()},
    "weights: a header of 2^60 bytes": ("weights", hostile.of_text("x.safetensors", struct.pack("<Q", 2**60) + b"{}")),
    **{f"--config: {n}": ("config", hostile.of_text("c.yaml", t)) for n, t in hostile.yamls().items()},
    **{f"--mace_config: {n}": ("mace_config", hostile.of_text("c.yaml", t)) for n, t in hostile.yamls().items()},
    **{f"model.json: {n}": ("model.json", hostile.of_text("x.json", t)) for n, t in hostile.jsons().items()},
    **{f"energies: {n}": ("energies", hostile.of_text("e.json", t)) for n, t in hostile.jsons().items()},
    **{f"xyz: {n}": ("xyz", hostile.of_text("x.xyz", t)) for n, t in hostile.xyzs().items()},
    **{f"lmdb: {n}": ("lmdb", make) for n, make in hostile.lmdbs().items()},
    **{
        f"{kind}: {what}": (kind, make)
        for kind, name in (
            *(("weights", "x.pt"), ("weights", "x.safetensors"), ("config", "c.yaml"), ("mace_config", "c.yaml")),
            *(("model.json", "x.json"), ("energies", "e.json"), ("xyz", "x.xyz"), ("lmdb", "x.lmdb"), ("ids", "ids")),
        )
        for what, make in hostile.no_files(name).items()
    },
}  # fmt: skip


def readers_of(name: str) -> list[tuple[Main, Words]]:
    """One command for each file, in turn; a pipe, at which anyone might wait, is given to all, as all are in full."""
    readers = READERS[FILES[name][0]]
    if os.environ.get("BATTERY") == "full" or name.endswith("a pipe"):
        return readers
    return [readers[list(FILES).index(name) % len(readers)]]


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_one_line(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, make = FILES[name]
    place = furnished(tmp_path_factory.mktemp("place"))
    file = make(tmp_path_factory.mktemp("hostile"))
    for main, words in readers_of(name):
        arguments = words(file, place)
        code, lines = bounded(main, arguments, place / "said")
        assert code in (2, 3), (arguments, code, lines)
        assert len(lines) == 1, (arguments, lines)
        assert lines[0].startswith("error: "), lines


def bounded(main: Main, arguments: Sequence[str], said: Path) -> tuple[int, list[str]]:
    """Exit code (negative: of a signal) and lines on stderr of a command in a child with little time and memory."""
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
