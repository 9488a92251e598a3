"""Whatever befalls a weights file on its way, it loads as it was written or is refused in
one line that names it.
"""

import io
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from conftest import HANGING
from model_utils import evaluate, resume, train_mace
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.checkpoint import digest
from model_utils.run import optimization, training
from model_utils.run.beginnings import resume_settings
from model_utils.run.data import open_data
from reliability.conftest import amount

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")

SLOWEST = 5.0  # s of processor time for one file, which others on the machine do not change
MEMORY = 4 * 2**30  # bytes above what the process has; nobody's file may ask for more
# what the commands import when they are called
PRELOADED = (open_data, optimization, resume_settings, training)


@dataclass(frozen=True, kw_only=True)
class Real:
    """A weights file, and another one of its kind to take pieces from."""

    name: str
    data: bytes
    other: bytes
    weights: bytes  # of its largest tensor
    allowed: frozenset[str]  # digests of both

    @property
    def directory(self) -> int:
        """Where the zip's directory begins."""
        return zipfile.ZipFile(io.BytesIO(self.data)).start_dir


@pytest.fixture(scope="module")
def run(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny network with two checkpoints and two best models."""
    folder = tmp_path_factory.mktemp("real") / "run"
    flags = [
        "--input_json",
        str(material / "tiny.json"),
        "--xyz_train",
        str(material / "train.xyz"),
        "--ema",
    ]
    flags += [
        "--xyz_val",
        str(material / "val.xyz"),
        "--batch_size",
        "4",
        "--epochs",
        "3",
        "--stage_two",
    ]
    flags += [
        "--start_stage_two",
        "1",
        "--no_export_mace_model",
        "--output_checkpoint",
        str(folder),
    ]
    assert train_mace.main(flags) == 0
    return folder


@pytest.fixture(scope="module")
def files(run: Path) -> list[Real]:
    found = []
    for names in (("checkpoint", "checkpoint.prev"), ("model", "stage_one_model")):
        paths = [run / f"run_{name}.pt" for name in names]
        allowed = frozenset(content_digest(path) for path in paths)
        assert len(allowed) == 2
        data, other = (path.read_bytes() for path in paths)
        weights = (
            max(checkpoint.read(paths[0]).tensors.values(), key=torch.Tensor.numel)
            .numpy()
            .tobytes()
        )
        found.append(
            Real(name=paths[0].name, data=data, other=other, weights=weights, allowed=allowed)
        )
    return found


def content_digest(path: Path) -> str:
    return digest(checkpoint.read(path).content)


# --- mutants


def flipped(rng: random.Random, real: Real) -> bytes:
    data = bytearray(real.data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def some(rng: random.Random, length: int, longest: int = 1 << 16) -> slice:
    """A piece, short ones as often as long ones."""
    size = min(int(2 ** rng.uniform(0, longest.bit_length() - 1)), length)
    begin = rng.randrange(length - size + 1)
    return slice(begin, begin + size)


def overwritten(rng: random.Random, real: Real) -> bytes:
    data, piece = bytearray(real.data), some(rng, len(real.data))
    n = piece.stop - piece.start
    data[piece] = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
    return bytes(data)


def cut(rng: random.Random, real: Real) -> bytes:
    return real.data[: rng.randrange(len(real.data))]


def cut_in_front(rng: random.Random, real: Real) -> bytes:
    return real.data[some(rng, len(real.data)).stop :]


def removed(rng: random.Random, real: Real) -> bytes:
    piece = some(rng, len(real.data))
    return real.data[: piece.start] + real.data[piece.stop :]


def doubled(rng: random.Random, real: Real) -> bytes:
    piece, at = some(rng, len(real.data)), rng.randrange(len(real.data))
    return real.data[:at] + real.data[piece] + real.data[at:]


def moved(rng: random.Random, real: Real) -> bytes:
    data, size = bytearray(real.data), rng.choice([16, 64, 512, 4096])
    one, two = (rng.randrange(0, len(data) - size, rng.choice([1, 64])) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
    return bytes(data)


def appended(rng: random.Random, real: Real) -> bytes:
    more = [
        real.data,
        real.other,
        real.data[real.directory :],
        real.data[-22:],
        rng.randbytes(rng.randrange(1, 4096)),
    ]
    return real.data + rng.choice([*more, bytes(rng.randrange(1, 1 << 17))])


def put_in_front(rng: random.Random, real: Real) -> bytes:
    return rng.choice([rng.randbytes(rng.randrange(1, 4096)), real.other]) + real.data


def spliced(rng: random.Random, real: Real) -> bytes:
    at = rng.randrange(len(real.data))
    return (
        real.data[:at] + real.other[at if rng.random() < 0.7 else rng.randrange(len(real.other)) :]
    )


def patched(rng: random.Random, real: Real) -> bytes:
    """A piece of the other file at its place, as a torn write would leave it."""
    data, piece = bytearray(real.data), some(rng, min(len(real.data), len(real.other)))
    data[piece] = real.other[piece]
    return bytes(data)


def directory_edited(rng: random.Random, real: Real) -> bytes:
    data = bytearray(real.data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        data[rng.randrange(real.directory, len(data))] = rng.choice(
            [0, 1, 0xFF, rng.randrange(256)]
        )
    return bytes(data)


def header_edited(rng: random.Random, real: Real) -> bytes:
    data = bytearray(real.data)
    record = rng.choice(zipfile.ZipFile(io.BytesIO(real.data)).infolist())
    data[record.header_offset + rng.randrange(30 + len(record.filename))] = rng.randrange(256)
    return bytes(data)


Records = list[tuple[str, bytes]]


def records_of(data: bytes) -> Records:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(record.filename, archive.read(record)) for record in archive.infolist()]


def with_content(records: Records) -> Records:
    """Those that are not empty."""
    return [(name, content) for name, content in records if content]


def zipped(records: Records, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these records with a right checksum for each: past it only
    the digest stands guard.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return buffer.getvalue()


def records_swapped(rng: random.Random, real: Real) -> bytes:
    records = records_of(real.data)
    (i, (one, a)), (j, (two, b)) = rng.sample(list(enumerate(records)), 2)
    records[i], records[j] = (one, b), (two, a)
    return zipped(records)


def records_of_the_other(rng: random.Random, real: Real) -> bytes:
    records, others = records_of(real.data), dict(records_of(real.other))
    chosen = rng.sample(range(len(records)), rng.randrange(1, len(records)))
    for i in chosen:
        name = records[i][0]
        records[i] = (name, others.get(name, records[i][1]))
    return zipped(records)


def records_left_out(rng: random.Random, real: Real) -> bytes:
    records = records_of(real.data)
    del records[rng.randrange(len(records))]
    return zipped(records)


def records_doubled(rng: random.Random, real: Real) -> bytes:
    """Two records of one name: which is read depends on the reader."""
    records = records_of(real.data)
    name, content = rng.choice(with_content(records))
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    records.insert(rng.randrange(len(records) + 1), (name, bytes(damaged)))
    return zipped(records)


def records_renamed(rng: random.Random, real: Real) -> bytes:
    records = records_of(real.data)
    i, j = rng.sample(range(len(records)), 2)
    name, content = records[i]
    folder, _, last = name.partition("/")
    records[i] = (
        rng.choice([f"{folder}/{last}x", f"x/{last}", f"../{name}", records[j][0], "data.pkl"]),
        content,
    )
    return zipped(records)


def records_compressed(rng: random.Random, real: Real) -> bytes:
    return zipped(
        records_of(real.data),
        rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    )


def record_damaged(rng: random.Random, real: Real) -> bytes:
    records = records_of(real.data)
    i = records.index(rng.choice(with_content(records)))
    content = bytearray(records[i][1])
    for _ in range(rng.choice([1, 1, 2, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    records[i] = (
        records[i][0],
        bytes(content[: rng.choice([len(content)] * 3 + [len(content) // 2])]),
    )
    return zipped(records)


def pickle_damaged(rng: random.Random, real: Real) -> bytes:
    """Bytes of the pickle itself changed: numbers, opcodes, names, lengths."""
    records = records_of(real.data)
    i = next(i for i, (name, _) in enumerate(records) if name.endswith("/data.pkl"))
    content = bytearray(records[i][1])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(content))
        if rng.random() < 0.3:  # a small whole number: sizes, strides, offsets, steps
            at = rng.choice(
                [k + 1 for k in range(len(content) - 1) if content[k : k + 1] in (b"K", b"M")]
            )
        elif rng.random() < 0.2:
            piece = some(rng, len(content), 256)
            content[piece] = content[some(rng, len(content), 256)]
            at = min(at, len(content) - 1)
        content[at] = rng.choice([0, 1, 0xFF, rng.randrange(256), *b"(.)]}tRbKMJX\x8a\x94hjq\x93"])
    records[i] = (records[i][0], bytes(content))
    return zipped(records)


def name_damaged(rng: random.Random, real: Real) -> bytes:
    """One letter of a key or another text in the pickle."""
    records = records_of(real.data)
    i = next(i for i, (name, _) in enumerate(records) if name.endswith("/data.pkl"))
    content = bytearray(records[i][1])
    texts = [
        k for k in range(len(content) - 5) if content[k] == ord("X") and 0 < content[k + 1] < 60
    ]
    begin = rng.choice([k for k in texts if content[k + 2 : k + 5] == bytes(3)])
    content[begin + 5 + rng.randrange(content[begin + 1])] = rng.choice(b"abcmxyz019._")
    records[i] = (records[i][0], bytes(content))
    return zipped(records)


def weights_damaged(rng: random.Random, real: Real) -> bytes:
    """A bit of a tensor, whose record keeps the checksum that it had."""
    data, flip = bytearray(real.data), 1 << rng.randrange(8)
    begin = real.data.index(real.weights)
    data[begin + rng.randrange(len(real.weights))] ^= flip
    return bytes(data)


KINDS: tuple[Callable[[random.Random, Real], bytes], ...] = (
    *(
        flipped,
        overwritten,
        cut,
        cut_in_front,
        removed,
        doubled,
        moved,
        appended,
        put_in_front,
        spliced,
        patched,
    ),
    *(
        directory_edited,
        header_edited,
        records_swapped,
        records_of_the_other,
        records_left_out,
        records_doubled,
    ),
    *(
        records_renamed,
        records_compressed,
        record_damaged,
        name_damaged,
        pickle_damaged,
        pickle_damaged,
    ),
    weights_damaged,
)


def mutant(number: int, files: Sequence[Real]) -> tuple[Real, str, bytes]:
    """The file a mutant is made of, the kind of damage, and its bytes; the same for the
    same number and files.
    """
    rng = random.Random(number)
    make = KINDS[number % len(KINDS)]
    real = files[0] if rng.random() < 0.75 else files[1]  # models take four times as long
    return real, make.__name__, make(rng, real)


# --- reading them


@dataclass(frozen=True, kw_only=True)
class Read:
    """What became of a mutant."""

    number: int
    kind: str
    outcome: str  # refused, same, other, or what went wrong
    seconds: float


def read_all(numbers: Sequence[int], files: Sequence[Real], folder: Path) -> Iterator[Read]:
    """Read mutants in a child, and in the next child go on behind one that killed or stopped it."""
    left = list(numbers)
    while left:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _read_and_never_return(left, files, folder, writing)
        os.close(writing)
        hung = False
        with os.fdopen(reading, "rb") as stream:
            while left and not hung:
                hung = not select.select([stream], [], [], HANGING)[0]
                line = b"" if hung else stream.readline()
                if not line:
                    break
                yield Read(**json.loads(line))
                left.pop(0)
                while left and (line := _buffered(stream)):
                    yield Read(**json.loads(line))
                    left.pop(0)
            if left:
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if left:
            number = left.pop(0)
            outcome = (
                "hung" if hung else f"the process ended with {os.waitstatus_to_exitcode(status)}"
            )
            yield Read(number=number, kind=mutant(number, files)[1], outcome=outcome, seconds=0.0)


def _buffered(stream: Any) -> bytes:
    """A line that has arrived already."""
    return stream.readline() if b"\n" in stream.peek(1) else b""


def _read_and_never_return(
    numbers: Sequence[int], files: Sequence[Real], folder: Path, pipe: int
) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit(), memory_limit()))
    try:
        for number in numbers:
            real, kind, data = mutant(number, files)
            path = folder / f"mutant_{real.name}"
            path.write_bytes(data)
            began = time.process_time()
            outcome = outcome_of(path, real)
            found = Read(
                number=number, kind=kind, outcome=outcome, seconds=time.process_time() - began
            )
            os.write(pipe, json.dumps(found.__dict__).encode() + b"\n")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def memory_limit() -> int:
    """Of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    return pages * resource.getpagesize() + MEMORY


def outcome_of(path: Path, real: Real) -> str:
    try:
        content = checkpoint.read(path).content
    except (InputError, VerificationError) as error:
        return "refused" if path.name in str(error) else f"refused without its name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "same" if digest(content) in real.allowed else "other"


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: a mutant is written for every read."""
    folder = Path("/dev/shm") / f"mutants-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        folder = tmp_path
    yield folder
    for path in folder.glob("mutant_*"):
        path.unlink()
    if folder != tmp_path:
        folder.rmdir()


def test_no_mutant_loads_as_something_else(
    files: list[Real],
    small_folder: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    began = time.monotonic()
    found = list(read_all(range(amount(360, 50_000)), files, small_folder))
    bad = [
        read for read in found if read.outcome not in ("refused", "same") or read.seconds > SLOWEST
    ]
    outcomes = Counter(read.outcome for read in found)
    show(
        "mutants read in process",
        record_property,
        cases=len(found),
        refused=outcomes["refused"],
        same=outcomes["same"],
        failures=len(bad),
        slowest=round(max(read.seconds for read in found), 2),
        seconds=round(time.monotonic() - began, 1),
    )
    for read in bad[:20]:
        (tmp_path / f"{read.number}_{read.kind}.pt").write_bytes(mutant(read.number, files)[2])
    assert not bad, f"{Counter((read.kind, read.outcome) for read in bad)}, in {tmp_path}"
    assert {read.number for read in found} == set(range(amount(360, 50_000)))
    assert outcomes["refused"] > 0.7 * len(found), "the others fell between the records"
    assert {read.kind for read in found if read.outcome == "refused"} == {
        make.__name__ for make in KINDS
    }


class AnyDigest(str):
    """Equals every digest."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


@pytest.mark.parametrize("guards", ["no digest", "no digest and no checksum"])
def test_without_the_guards_mutants_load_as_something_else(
    guards: str,
    files: list[Real],
    small_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """The mutants above would be found: each guard alone keeps some of them out."""
    monkeypatch.setattr(checkpoint, "digest", lambda value: AnyDigest())
    kinds = [records_swapped, records_of_the_other, record_damaged, pickle_damaged]
    if guards == "no digest and no checksum":
        monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: None)
        kinds = [flipped, overwritten, patched, weights_damaged]
    numbers = [number for number in range(amount(300, 3000)) if KINDS[number % len(KINDS)] in kinds]
    found = Counter(read.outcome for read in read_all(numbers, files, small_folder))
    show(f"mutants, {guards}", record_property, cases=len(numbers), other=found["other"])
    assert found["other"] > 0


def itself() -> list[Any]:
    """A list that holds itself."""
    endless: list[Any] = []
    endless.append(endless)
    return endless


STRANGE: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"abc",
    "a set": lambda: {1},
    "a complex number": lambda: 1j,
    "half a character": lambda: "\udcff",
    "a list in itself": itself,
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a conjugate": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "a tensor without data": lambda: torch.zeros(3, device="meta"),
    "a tensor of 32 GiB over one number": lambda: torch.zeros(1).expand(2**33),
}


@pytest.mark.parametrize("what", STRANGE)
def test_contents_we_never_write_are_refused(what: str, run: Path, tmp_path: Path) -> None:
    """In a file that is whole: each once met the digest, which has no rule for it."""
    content = {
        **checkpoint.read(run / "run_checkpoint.pt").content,
        "more": STRANGE[what](),
        "digest": "0" * 64,
    }
    torch.save(content, tmp_path / "strange_checkpoint.pt")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit(), before[1]))
    try:
        with pytest.raises(VerificationError, match="strange_checkpoint"):
            checkpoint.read(tmp_path / "strange_checkpoint.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# --- the commands


def ended(command: Callable[[Sequence[str]], int], arguments: list[str], said: Path) -> int:
    """Exit code of a command in a child of its own, whose stderr goes to a file."""
    child = os.fork()
    if child == 0:
        try:
            error, nothing = (
                os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY),
                os.open(os.devnull, os.O_WRONLY),
            )
            os.dup2(error, 2)
            os.dup2(nothing, 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.alarm(int(HANGING))
            code = command(arguments)
            sys.stderr.flush()
            os._exit(code)
        finally:
            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_commands_refuse_mutants_in_one_line(
    files: list[Real],
    material: Path,
    small_folder: Path,
    record_property: Callable[[str, object], None],
) -> None:
    began, bad, codes, number = time.monotonic(), [], Counter[int](), 0
    while codes.total() < amount(15, 500):
        real, kind, data = mutant(number, files)
        path = small_folder / f"mutant_{real.name}"
        path.write_bytes(data)
        if outcome_of(path, real) != "same":
            to_evaluate = codes.total() % 2 == 0
            arguments = ["--input_model", str(path)]
            arguments += ["--xyz_path", str(material / "val.xyz")] if to_evaluate else []
            said = small_folder / "mutant_stderr"
            code = ended(evaluate.main if to_evaluate else resume.main, arguments, said)
            stderr = said.read_text(encoding="utf-8")
            codes[code] += 1
            if code not in (2, 3) or len(stderr.splitlines()) != 1 or path.name not in stderr:
                bad.append((number, kind, code, stderr))
        number += 1
    show(
        "mutants given to the commands",
        record_property,
        cases=codes.total(),
        failures=len(bad),
        codes=dict(codes),
        seconds=round(time.monotonic() - began, 1),
    )
    assert bad == []


def show(name: str, record_property: Callable[[str, object], None], **figures: object) -> None:
    for key, value in figures.items():
        record_property(key, value)
    print(f"{name}: {', '.join(f'{value} {key}' for key, value in figures.items())}")
