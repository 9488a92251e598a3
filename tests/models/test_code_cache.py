"""Compiled kernels that are damaged, or that somebody else could have written, are not
loaded but compiled again.
"""

import ctypes
import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import wait_until
from dataloader import cache_folder, file_lock, work_folder
from model_utils import runtime
from model_utils.models.fast import code_cache, compiler
from model_utils.models.fast.code_cache import Unfit

FULL = os.environ.get("BATTERY") in ("full", "product")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
OTHERS = 65534  # a user that is not the one of the tests


class Cache:
    """A cache with a library of one function in it, and how often that was compiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiled = 0

    @property
    def library(self) -> Path:
        (path,) = self.folder.glob("*.so")
        return path

    @property
    def seal(self) -> Path:
        return self.library.with_suffix(".sha256")


@pytest.fixture(scope="module")
def prebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny library, compiled once for all tests."""
    folder = tmp_path_factory.mktemp("prebuilt")
    (folder / "tiny.cpp").write_text('extern "C" int answer() { return 42; }\n')
    compiler._run(
        ["g++", "-shared", "-fPIC", str(folder / "tiny.cpp"), "-o", str(folder / "tiny.so")]
    )
    return folder / "tiny.so"


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged as a warning."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: (
        said.append(record.getMessage()) if record.levelno >= logging.WARNING else None
    )  # type: ignore[method-assign]
    runtime.log.addHandler(handler)
    yield said
    runtime.log.removeHandler(handler)


@pytest.fixture
def cache(tmp_path: Path, prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache in which the library lies; what compiles copies it, into a new file each time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "g++")
    made = Cache(tmp_path / "cache" / "mace-pretrain")

    def compile_anew(_compiler: str, _precision: str, work: Path) -> Path:
        made.compiled += 1
        return Path(shutil.copyfile(prebuilt, work / "made.so"))

    monkeypatch.setattr(compiler, "_compiled", compile_anew)
    assert compiler.build("float64").answer() == 42
    assert made.compiled == 1
    return made


def put(path: Path, content: bytes, mode: int = 0o600) -> None:
    """In the place of a file, another one: one that is loaded is never changed, which
    would change this process.
    """
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def flipped(place: float) -> Callable[[Cache], None]:
    """One bit of the library, at a place from 0 (first byte) to 1 (last byte)."""

    def damage(cache: Cache) -> None:
        content = bytearray(cache.library.read_bytes())
        content[round(place * (len(content) - 1))] ^= 0x10
        put(cache.library, bytes(content))

    return damage


def other_seal(text: str) -> Callable[[Cache], None]:
    """Another text in the place of the seal; {sha} stands for the digest that fits, {name}
    for the library's name.
    """

    def damage(cache: Cache) -> None:
        digest = hashlib.sha256(cache.library.read_bytes()).hexdigest()
        put(
            cache.seal,
            text.format(sha=digest, name=cache.library.name, folder=cache.folder).encode(),
        )

    return damage


def linked(kind: str) -> Callable[[Cache], None]:
    """A file moved out of the folder, with a link in its place."""

    def damage(cache: Cache) -> None:
        path: Path = getattr(cache, kind)
        elsewhere = cache.folder.parent / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)

    return damage


def pipe(cache: Cache) -> None:
    path = cache.library
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, tuple[Callable[[Cache], None], str]] = {
    "truncated": (lambda c: put(c.library, c.library.read_bytes()[:5000]), "its digest is another"),
    "empty": (lambda c: put(c.library, b""), "its digest is another"),
    "zeros": (
        lambda c: put(c.library, bytes(len(c.library.read_bytes()))),
        "its digest is another",
    ),
    "longer": (lambda c: put(c.library, c.library.read_bytes() + b"\0"), "its digest is another"),
    **{
        f"bit at {place}": (flipped(place), "its digest is another")
        for place in (0.0, 0.1, 0.5, 0.9, 1.0)
    },
    "open to the group": (lambda c: c.library.chmod(0o720), "can be written by other users"),
    "open to all": (lambda c: c.library.chmod(0o702), "can be written by other users"),
    "a link": (linked("library"), "cannot be read"),
    "a pipe": (pipe, "is no file"),
    # as a kill leaves it, and as it was made before
    "without a digest": (lambda c: c.seal.unlink(), "has no digest"),
    "an empty digest": (other_seal(""), "has a damaged digest"),
    "another digest": (other_seal("0" * 64 + "  {name}\n"), "its digest is another"),
    "half a digest": (other_seal("0123456"), "has a damaged digest"),
    "the digest of nothing": (other_seal("{sha}  \n"), "has a damaged digest"),
    "a digest without an end": (other_seal("{sha}  {name}"), "has a damaged digest"),
    "a digest with another end": (other_seal("{sha}  {name}\v"), "has a damaged digest"),
    "the digest of a path": (other_seal("{sha}  {folder}/{name}\n"), "has a damaged digest"),
    "the digest of a place above": (
        other_seal("{sha}  ../mace-pretrain/{name}\n"),
        "has a damaged digest",
    ),
    "a digest that is no text": (lambda c: put(c.seal, b"\xff\xfe" * 40), "has a damaged digest"),
    "a digest open to all": (lambda c: c.seal.chmod(0o666), "can be written by other users"),
    "a linked digest": (linked("seal"), "cannot be read"),
}


@needs_compiler
@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_compiled_again_and_that_is_said(
    name: str, cache: Cache, lines: list[str]
) -> None:
    damage, reason = DAMAGES[name]
    content, library = cache.library.read_bytes(), cache.library
    damage(cache)
    with pytest.raises(Unfit, match=reason):
        code_cache.check(library.with_suffix(".sha256"))
    assert compiler.build("float64").answer() == 42
    assert cache.compiled == 2
    assert len(lines) == 1
    assert str(library) in lines[0]
    assert "it is compiled again" in lines[0]
    assert library.read_bytes() == content
    assert not library.is_symlink()
    assert stat.S_IMODE(library.stat().st_mode) & 0o022 == 0
    code_cache.check(library.with_suffix(".sha256"))
    assert compiler.build("float64").answer() == 42
    assert cache.compiled == 2
    assert len(lines) == 1
    assert {path.suffix for path in cache.folder.iterdir()} == {".so", ".sha256"}


@needs_compiler
@pytest.mark.parametrize("which", ["library", "seal"])
def test_another_users_file_is_not_loaded(
    which: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = getattr(cache, which)
    theirs, fstat = path.stat().st_ino, os.fstat

    def of_another(descriptor: int) -> Any:
        about = fstat(descriptor)
        fields = list(about)
        fields[stat.ST_UID] = OTHERS if about.st_ino == theirs else about.st_uid
        return os.stat_result(fields)

    if os.getuid() == 0:
        os.chown(path, OTHERS, -1)
    else:
        monkeypatch.setattr(code_cache.os, "fstat", of_another)
    with pytest.raises(Unfit, match="belongs to another user"):
        code_cache.check(cache.seal)
    assert compiler.build("float64").answer() == 42
    assert cache.compiled == 2
    code_cache.check(cache.seal)


@needs_compiler
def test_a_folder_that_others_can_write_is_closed_and_not_believed(
    cache: Cache, lines: list[str]
) -> None:
    cache.folder.chmod(0o777)
    assert compiler.build("float64").answer() == 42
    assert cache.compiled == 2
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert "could be written by other users" in lines[0]
    cache.folder.chmod(0o755)  # others could read: nothing can have been put there
    compiler.build("float64")
    assert cache.compiled == 2


@needs_compiler
@pytest.mark.parametrize("how", ["link", "file", "another user's"])
def test_a_folder_that_is_not_the_users_own_is_not_used(
    how: str, cache: Cache, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = cache.folder.rename(cache.folder.with_name("elsewhere"))
    if how == "link":
        cache.folder.symlink_to(elsewhere)
    elif how == "file":
        cache.folder.write_text("x")
    else:
        cache.folder.mkdir(mode=0o700)
        monkeypatch.setattr(code_cache.os, "getuid", lambda: OTHERS)
    assert compiler.build("float64").answer() == 42
    assert cache.compiled == 2
    assert len(lines) == 1
    assert "for this process alone" in lines[0]
    assert str(cache.folder) in lines[0]


@needs_compiler
def test_without_a_home_it_is_kept_in_a_folder_of_the_users_own(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache_folder.Path, "home", nowhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache_folder._in_temporary.cache_clear()
    try:
        assert compiler.build("float64").answer() == 42
        (kept,) = (tmp_path / f"mace-pretrain-{os.getuid()}").rglob("*.so")
        assert kept.stat().st_uid == os.getuid()
    finally:
        cache_folder._in_temporary.cache_clear()


@needs_compiler
def test_damaged_and_no_compiler_is_one_sentence_and_nothing_is_loaded(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped(0.5)(cache)
    damaged = cache.library.read_bytes()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        compiler.BuildError, match=r"no C\+\+ compiler found \(looked for no-such-compiler\)"
    ):
        compiler.build("float64")
    assert cache.library.read_bytes() == damaged
    monkeypatch.setenv("CXX", "g++")
    assert compiler.build("float64").answer() == 42, "made when a compiler is there again"


@needs_compiler
def test_several_processes_at_once_compile_once(
    cache: Cache, prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that compiles goes on when all others have asked for the folder and not got it."""
    flipped(0.5)(cache)
    refused, take = tmp_path / "refused", work_folder.take

    def noting(path: Path) -> work_folder.WorkFolder | None:
        folder = take(path)
        if folder is None:
            (refused / str(os.getpid())).touch()
        return folder

    def slow(_compiler: str, _precision: str, work: Path) -> Path:
        (tmp_path / f"compiled-{os.getpid()}").touch()
        wait_until(lambda: len(list(refused.iterdir())) == 2, "two that wait")
        return Path(shutil.copyfile(prebuilt, work / "made.so"))

    refused.mkdir()
    monkeypatch.setattr(work_folder, "take", noting)
    monkeypatch.setattr(compiler, "_compiled", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compiler.build, args=("float64",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("compiled-*"))) == 1
    code_cache.check(cache.seal)


@needs_compiler
def test_without_locks_each_makes_its_own_and_all_load(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(file_lock.fcntl, "flock", no_locks)
    flipped(0.5)(cache)
    assert compiler.build("float64").answer() == 42
    assert cache.compiled == 2


def test_a_seal_of_many_files_fits_a_cache_with_folders(tmp_path: Path) -> None:
    """As caches of other compilers have them; sha256sum reads it too."""
    names = ["abc/kernel.so", "abc/kernel.json", "def/launcher.so"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o664)  # under the umask of many machines
    code_cache.seal(tmp_path / "all.sha256", names)
    code_cache.check(tmp_path / "all.sha256")
    for name in names:
        (tmp_path / name).write_text(f"{name} ")
        with pytest.raises(Unfit, match="its digest is another"):
            code_cache.check(tmp_path / "all.sha256")
        (tmp_path / name).write_text(name)
    (tmp_path / names[1]).unlink()
    with pytest.raises(Unfit, match="cannot be read"):
        code_cache.check(tmp_path / "all.sha256")


@needs_compiler
def test_no_damage_passes(cache: Cache) -> None:
    """Bits, blocks and lengths at random, in the library and in its seal."""
    rng = random.Random(4)
    whole = {path: path.read_bytes() for path in (cache.library, cache.seal)}
    for _ in range(20_000 if FULL else 200):
        path = rng.choice(list(whole))
        content = bytearray(whole[path])
        place, kind = rng.randrange(len(content)), rng.randrange(3)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place:]
        else:
            content[place : place + 64] = bytes(64)
        if content == whole[path]:
            continue
        put(path, bytes(content))
        with pytest.raises(Unfit):
            code_cache.check(cache.seal)
        put(path, whole[path])
    code_cache.check(cache.seal)
    assert ctypes.CDLL(str(cache.library)).answer() == 42
