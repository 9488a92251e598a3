"""Compile ``kernels.cpp`` on first use and keep the result for this user, compiler and CPU.

The compiled library is code: it lies in a directory of mode 0700 that belongs to the user (``$XDG_CACHE_HOME`` or
``~/.cache``), never in a run's folder. Its name is the hash of all that it depends on, so a node with another CPU or
another compiler makes its own; it appears by an atomic rename, and a lock lets several processes wait for one of them.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dataloader.cache_folder import cache_folder
from model_utils.runtime import log

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC"]  # never -ffast-math: linked, it
# switches denormal numbers off for the whole process
COMPILERS = ("g++", "c++", "clang++")
LONGEST = 300  # s, for a compiler on a busy machine


class BuildError(Exception):
    """No compiler, or none that makes a library that loads; says why."""


def build() -> ctypes.CDLL:
    """The compiled kernels, from the cache where they are there.

    Raises:
        BuildError: they cannot be made here.
    """
    compiler = _compiler()
    with _cache() as folder:
        library = folder / f"kernels-{_key(compiler)}.so"
        with _lock(library.with_suffix(".lock")):
            if not library.exists():
                _compile(compiler, library)
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise BuildError(f"{library} does not load: {error}") from None


def _compiler() -> str:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(COMPILERS)
    for name in wanted:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler found (looked for {', '.join(wanted)})")


def _key(compiler: str) -> str:
    version = _output([compiler, "--version"])
    parts = [SOURCE.read_text(encoding="utf-8"), compiler, version, " ".join(FLAGS), platform.machine(), _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    """What -march=native looks at: model and instruction sets."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        names = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
        return "\n".join(line for line in lines if line.split("\t")[0].strip() in names)
    return platform.processor()


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    """The user's own directory; where there can be none, one for this process alone."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or not os.access(folder, os.W_OK):
            raise PermissionError
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="mace-pretrain-") as private:
            yield Path(private)
    else:
        yield folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process compiles, others wait; without locks on this file system all compile, and the last rename wins."""
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, library: Path) -> None:
    start = time.monotonic()
    log.info("compiling the kernels of the fast step, once for this machine: some ten seconds")
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        built, done = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        _run([compiler, *FLAGS, "-c", str(SOURCE), "-o", str(built)])
        # first without an OpenMP of its own: torch's is loaded, and two would wait for each other's threads
        for openmp in ([], ["-fopenmp"]):
            _run([compiler, "-shared", str(built), "-o", str(done), *openmp])
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(done))
                os.replace(done, library)
                log.info("compiled the kernels of the fast step in %.1f s: %s", time.monotonic() - start, library)
                return
    raise BuildError(f"what {compiler} makes of {SOURCE.name} does not load")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} failed: {error}") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise BuildError(f"{command[0]} failed: {first}")


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} failed: {error}") from None
