"""Compile the sources in ``cpp/`` on first use, for one precision, and keep the result for this
user, compiler and CPU.

The compiled library is code: it lies in a directory of mode 0700 that belongs to the user
(``$XDG_CACHE_HOME`` or ``~/.cache``), never in a run's folder, and is loaded only where its digest
fits (``code_cache``). Its name is the hash of all that it depends on, so a node with another CPU or
another compiler makes its own; one process at a time compiles, and the others wait for it.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dataloader import processors, work_folder
from dataloader.cache_folder import cache_folder
from dataloader.work_folder import WorkFolder
from model_utils.models.fast import code_cache
from model_utils.runtime import log

FOLDER = Path(__file__).with_name("cpp")
REALS = {"float32": "float", "float64": "double"}  # C's names of the precisions
# never -ffast-math: linked, it switches denormal numbers off for the whole process
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC"]
COMPILERS = ("g++", "c++", "clang++")
CPU_FACTS = (  # lines of /proc/cpuinfo on x86 and on ARM
    "vendor_id",
    "cpu family",
    "model",
    "flags",
    "Features",
    "CPU implementer",
    "CPU part",
)
LONGEST = 300  # s, for a compiler on a busy machine


class BuildError(Exception):
    """No compiler, or none that makes a library that loads; says why."""


def build(precision: str) -> ctypes.CDLL:
    """The compiled kernels of one precision, from the cache where they are there and whole.

    Args:
        precision: float32 or float64.

    Raises:
        BuildError: they cannot be made here.
    """
    compiler = _compiler()
    name = f"kernels-{precision}-{_key(compiler)}.so"
    try:
        folder = code_cache.private_folder(cache_folder())
        _require_programs(folder)
        return _kept(compiler, precision, folder / name)
    except OSError as error:
        log.warning(
            "the kernels of the fast step are compiled for this process alone: %s; name another "
            "place for them with XDG_CACHE_HOME",
            error,
        )
    with tempfile.TemporaryDirectory(prefix="mace-pretrain-") as temporary:
        try:
            _require_programs(Path(temporary))
        except OSError as error:
            raise BuildError(f"{error}, and TMPDIR names no other place") from None
        return _loaded(_compiled(compiler, precision, Path(temporary)))


def _require_programs(folder: Path) -> None:
    """Refuse a folder whose file system is mounted so that no code in it runs, before minutes are
    spent on compiling.

    Raises:
        PermissionError: it is.
    """
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise PermissionError(f"no program may run in {folder} (noexec)")


def _kept(compiler: str, precision: str, library: Path) -> ctypes.CDLL:
    """The library from its place in the cache, where it is made when there is
    none that may be loaded.

    Raises:
        OSError: it cannot be kept there.
    """
    if _why_not(library) is None:
        return _loaded(library)
    work = taken(library.with_suffix(".building"))
    try:
        reason = _why_not(library)  # another process may have made it by now
        if reason is not None:
            if library.exists():
                log.warning("%s %s; it is compiled again", library, reason)
            work.clear()
            code_cache.keep(_compiled(compiler, precision, work.path), library)
    except code_cache.Unfit as unfit:
        raise PermissionError(f"{library} {unfit}") from None
    finally:
        work.finish()
    return _loaded(library)


def _why_not(library: Path) -> str | None:
    """Why a library must not be loaded, or cannot be; None where all is well."""
    try:
        code_cache.check(library.with_suffix(".sha256"))
        ctypes.CDLL(str(library))
    except code_cache.Unfit as unfit:
        return str(unfit)
    except OSError as error:
        return f"does not load ({error})"
    return None


def _loaded(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{library} does not load: {error}") from None


def taken(path: Path) -> WorkFolder:
    """The folder in which one process at a time compiles.

    Raises:
        OSError: it cannot be made, or another process has been compiling for
            longer than that can take.
    """
    end = time.monotonic() + 2 * LONGEST
    waiting = False
    while (folder := work_folder.take(path)) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{work_folder.holder(path)} has not finished compiling {path.stem}")
        if not waiting:
            log.info(
                "waiting for %s, which compiles the kernels of the fast step",
                work_folder.holder(path),
            )
            waiting = True
        time.sleep(work_folder.LOOK_EVERY)
    return folder


def _compiler() -> str:
    """The path of the C++ compiler: ``$CXX`` where it is set, else the first that is installed.

    Raises:
        BuildError: there is none.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(COMPILERS)
    for name in wanted:
        path = shutil.which(name)
        if path is not None:
            return path
    raise BuildError(f"no C++ compiler found (looked for {', '.join(wanted)})")


def _key(compiler: str) -> str:
    """A hash of all that decides what the compiler makes."""
    version = _output([compiler, "--version"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.[ch]*"))]
    parts = [*texts, compiler, version, " ".join(FLAGS), platform.machine(), _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    """What -march=native looks at: model and instruction sets."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        first_core = text.split("\n\n")[0].splitlines()
        return "\n".join(line for line in first_core if line.split("\t")[0].strip() in CPU_FACTS)
    return platform.processor()


def _compiled(compiler: str, precision: str, work: Path) -> Path:
    """A library that loads, made in an own folder in ``work``.

    Raises:
        BuildError: the compiler makes none.
        OSError: there is no place.
    """
    start = time.monotonic()
    log.info(
        "compiling the kernels of the fast step in %s: some ten seconds",
        precision,
    )
    folder = Path(tempfile.mkdtemp(dir=work, prefix="build-"))
    library = folder / "kernels.so"
    objects = {source: str(folder / f"{source.stem}.o") for source in _sources()}
    own = [compiler, *FLAGS, f"-DREAL={REALS[precision]}", "-c"]
    with ThreadPoolExecutor(processors.n_cores()) as pool:
        list(pool.map(_run, ([*own, str(source), "-o", to] for source, to in objects.items())))
    # first without an OpenMP of its own: torch's is loaded, and two would wait
    # for each other's threads
    reason: OSError | None = None
    for openmp in ([], ["-fopenmp"]):
        _run([compiler, "-shared", *objects.values(), "-o", str(library), *openmp])
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            reason = error
            continue
        log.info("compiled the kernels of the fast step in %.1f s", time.monotonic() - start)
        return library
    raise BuildError(f"what {compiler} makes of {FOLDER} does not load: {reason}")


def _sources() -> list[Path]:
    """The largest first: what takes long must not be begun when all others are done."""
    return sorted(FOLDER.glob("*.cpp"), key=lambda path: path.stat().st_size, reverse=True)


def _run(command: list[str]) -> None:
    """Run a compiler.

    Raises:
        BuildError: with the first line of its output that speaks of an error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} failed: {error}") from None
    if done.returncode:
        first = next(
            (line for line in done.stderr.splitlines() if "error" in line),
            done.stderr.strip()[:200],
        )
        raise BuildError(f"{command[0]} failed: {first}")


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} failed: {error}") from None
