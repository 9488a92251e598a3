"""metrics.jsonl cut or edited by hand, then resumed: whole lines, each step once,
as in the unbroken run.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import every
from model_utils import resume, train_mace
from model_utils.files import checkpoint
from model_utils.run import training

# whole lines, bytes that the checkpoint knows: what lies there then
Edit = Callable[[list[bytes], int], bytes]


def _extra_record(lines: list[bytes], known: int) -> bytes:
    """As of a run that was killed after its last save."""
    return b"".join(lines) + lines[-1].replace(b'"step": 5', b'"step": 6')


def _as_long(line: bytes, other: bytes) -> bytes:
    """The same record with blanks, so that it has the bytes of a longer one."""
    assert len(line) <= len(other)
    return line[:-2].ljust(len(other) - 2) + b"}\n"


EDITS: dict[str, Edit] = {
    "cut within the last line": lambda lines, known: b"".join(lines)[:-20],
    "cut within an earlier line": lambda lines, known: b"".join(lines)[: len(lines[0]) + 30],
    "without the last line end": lambda lines, known: b"".join(lines)[:-1],
    "without its first line": lambda lines, known: b"".join(lines[1:]),
    "without a line, and longer than the checkpoint knows": lambda lines, known: b"".join(
        lines[1:] + [lines[-1].replace(b'"step": 5', b'"step": 6')] * 3
    ),
    "without a line, and a later one that ends where the checkpoint knows": lambda lines, known: (
        b"".join(lines[1:]) + _as_long(b'{"kind": "valid", "epoch": 1, "step": 6}\n', lines[0])
    ),
    "a number made longer": lambda lines, known: b"".join(lines).replace(
        b'"lr": 0.01', b'"lr": 0.01000', 1
    ),
    "a line of prose": lambda lines, known: b"".join(
        [lines[0], b"here the loss jumps\n", *lines[1:]]
    ),
    "a later record": _extra_record,
    "a later record, torn": lambda lines, known: _extra_record(lines, known)[:-9],
    "line ends of another system": lambda lines, known: b"".join(lines).replace(b"\n", b"\r\n"),
    "emptied": lambda lines, known: b"",
    "removed": lambda lines, known: b"removed",
}
TRUSTED = ("a later record", "a later record, torn")  # a line ends where the checkpoint says
LOST = {  # indices of the lines that cannot be had again
    **{
        "cut within the last line": {5},
        "cut within an earlier line": {1, 2, 3, 4, 5},
        "without its first line": {0},
    },
    **{
        "without a line, and longer than the checkpoint knows": {0},
        "without a line, and a later one that ends where the checkpoint knows": {0},
        "emptied": set(range(6)),
        "removed": set(range(6)),
    },
}


@pytest.fixture(scope="module")
def flags(material: Path) -> list[str]:
    words = [
        "--input_json",
        material / "tiny.json",
        "--xyz_train",
        material / "train.xyz",
        "--batch_size",
        "4",
    ]
    words += ["--xyz_val", material / "val.xyz", "--no_export_mace_model", "--epochs", "2", "--ema"]
    return [str(word) for word in (*words, "--log_every_steps", "2")]


@pytest.fixture(scope="module")
def runs(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run stopped after five of its eight steps, and the same resumed."""
    folder = tmp_path_factory.mktemp("runs")
    assert (
        train_mace.main([*flags, "--max_steps", "5", "--output_checkpoint", str(folder / "run")])
        == 0
    )
    shutil.copytree(folder / "run", folder / "plain")
    moved = ["--output_checkpoint", str(folder / "plain" / "run_checkpoint.pt"), "--resume", "auto"]
    assert train_mace.main([*flags, *moved]) == 0
    return folder / "run", folder / "plain"


def records(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]
    return [{k: v for k, v in record.items() if k != "perf"} for record in found]


def known_of(folder: Path) -> int:
    """Bytes of the records that the checkpoint knows."""
    return int(
        checkpoint.read(folder / "run_checkpoint.pt").content["train_state"]["metrics_offset"]
    )


def edited(edit: str, stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run with other records."""
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    file, known = folder / "metrics.jsonl", known_of(folder)
    file.write_bytes(EDITS[edit](file.read_bytes()[:known].splitlines(keepends=True), known))
    if edit == "removed":
        file.unlink()
    return folder


@pytest.mark.parametrize("edit", every(2, list(EDITS)))
def test_records_that_were_cut_or_edited(
    edit: str,
    runs: tuple[Path, Path],
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped, plain = runs
    folder = edited(edit, stopped, tmp_path)
    capsys.readouterr()
    assert train_mace.main([*flags, "--output_checkpoint", str(folder), "--resume", "auto"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert ("was cut or edited since the checkpoint" in said.out) == (edit not in TRUSTED)
    assert ("bytes after the checkpoint are cut off" in said.out) == (edit in TRUSTED)
    expected = [
        record for number, record in enumerate(records(plain)) if number not in LOST.get(edit, ())
    ]
    assert records(folder) == expected


def test_what_was_mended_is_saved_before_the_next_record(
    runs: tuple[Path, Path], flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at its first step, the run is not mended once more, by an offset in a
    file that has grown since.
    """
    folder = edited("cut within an earlier line", runs[0], tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", killed)
    assert train_mace.main([*flags, "--output_checkpoint", str(folder), "--resume", "auto"]) == 130
    assert known_of(folder) == (folder / "metrics.jsonl").stat().st_size > 0


def test_records_go_along_to_another_place(runs: tuple[Path, Path], tmp_path: Path) -> None:
    stopped, plain = runs
    folder = edited("a later record", stopped, tmp_path)
    words = [
        "--input_model",
        str(folder),
        "--output_checkpoint",
        str(tmp_path / "new"),
        "--max_steps",
        "99",
    ]
    assert resume.main(words) == 0
    assert records(tmp_path / "new") == records(plain)
