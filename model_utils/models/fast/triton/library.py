"""Compiled Triton kernels of a network: made by many processes at the start, kept for this
user, loaded where whole.

The folder of a network's kernels is code: it lies in the user's cache (``code_cache``), its name is
a hash of all that it depends on, and its seal holds every file in it. One process at a time
compiles; the others wait for it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dataloader import processors
from dataloader.cache_folder import cache_folder
from model_utils.models.fast import code_cache
from model_utils.models.fast.compiler import BuildError, taken
from model_utils.models.fast.triton import assemble
from model_utils.models.fast.triton.program import Program
from model_utils.runtime import log

LONGEST = 600  # s, for all kernels of a network on a busy machine


def kernels_of(programs: Sequence[Program], architecture: int) -> dict[str, Any]:
    """Kernels that can be launched on the current device, by ``Program.key``.

    Raises:
        BuildError: they cannot be made here.
    """
    name = f"triton-{_key(programs, architecture)}"
    try:
        return _kept(programs, architecture, code_cache.private_folder(cache_folder()) / name)
    except OSError as error:
        log.warning(
            "the Triton kernels of the fast step are compiled for this process alone: %s", error
        )
    with tempfile.TemporaryDirectory(prefix="mace-pretrain-") as folder:
        _compile(programs, architecture, Path(folder))
        return _loaded(programs, architecture, Path(folder))


def _key(programs: Sequence[Program], architecture: int) -> str:
    """A hash of all that decides what is compiled."""
    tasks = sorted(json.dumps(p.task(architecture)) for p in programs)
    parts = [
        version("triton"),
        sys.version,
        Path(assemble.__file__).read_text(encoding="utf-8"),
        *tasks,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _kept(programs: Sequence[Program], architecture: int, folder: Path) -> dict[str, Any]:
    """The kernels from their place in the cache, where they are made when there are
    none that may be loaded.

    Raises:
        OSError: they cannot be kept there.
        BuildError: they cannot be made here.
    """
    seal = folder.with_suffix(".sha256")
    if why_not(folder) is None:
        return _loaded(programs, architecture, folder)
    work = taken(folder.with_suffix(".building"))
    try:
        reason = why_not(folder)  # another process may have made it by now
        if reason is None:
            return _loaded(programs, architecture, folder)
        if folder.exists():
            log.warning("%s %s; its kernels are compiled again", folder, reason)
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        _compile(programs, architecture, folder)
        kernels = _loaded(programs, architecture, folder)  # which may compile code of its own
        code_cache.seal(seal, _files(folder))
        return kernels
    except code_cache.Unfit as unfit:
        raise PermissionError(f"{folder} {unfit}") from None
    finally:
        work.finish()


def why_not(folder: Path) -> str | None:
    """Why the kernels of a folder must not be loaded; None where all is well."""
    try:
        sealed = code_cache.check(folder.with_suffix(".sha256"))
    except code_cache.Unfit as unfit:
        return str(unfit)
    return (
        None if set(_files(folder)) == set(sealed) else "holds files that were not compiled with it"
    )


def _files(folder: Path) -> list[str]:
    """All files of a folder, from its parent."""
    return sorted(
        str(path.relative_to(folder.parent)) for path in folder.rglob("*") if not path.is_dir()
    )


def _compile(programs: Sequence[Program], architecture: int, folder: Path) -> None:
    """Have processes compile all kernels into a folder, which is Triton's cache for them.

    Raises:
        BuildError: one failed; says what it said last.
    """
    start = time.monotonic()
    log.info(
        "compiling %d Triton kernels of the fast step, once for this network and machine",
        len(programs),
    )
    n_processes = min(len(programs), processors.n_cores())
    by_length = sorted(programs, key=lambda p: -len(p.body))
    workers = []
    with tempfile.TemporaryFile() as errors:
        for k in range(n_processes):
            workers.append(_worker(by_length[k::n_processes], architecture, folder, errors))
        try:
            codes = [worker.wait(LONGEST) for worker in workers]
        except subprocess.TimeoutExpired:
            raise BuildError(f"Triton has not finished in {LONGEST} s") from None
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        if any(codes):
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise BuildError(
                f"Triton does not compile them: {said[-1] if said else f'exit code {max(codes)}'}"
            )
    log.info("compiled the Triton kernels of the fast step in %.1f s", time.monotonic() - start)


def _worker(
    programs: Sequence[Program], architecture: int, folder: Path, errors: Any
) -> "subprocess.Popen[bytes]":
    """A process that compiles some of the kernels."""
    tasks = [p.task(architecture) for p in programs]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, assemble.__file__]
    with tempfile.TemporaryFile() as given:
        given.write(json.dumps(tasks).encode())
        given.seek(0)
        return subprocess.Popen(command, stdin=given, stdout=errors, stderr=errors, env=environment)


def _loaded(programs: Sequence[Program], architecture: int, folder: Path) -> dict[str, Any]:
    """The kernels on the current device.

    Raises:
        BuildError: Triton cannot load them.
    """
    kernels = {}
    try:
        _start_driver()
        with triton_cache(folder):
            for p in programs:
                kernel = assemble.compiled(**p.task(architecture))
                kernel.run  # noqa: B018  (loads it, and compiles what hands arguments on)
                kernels[p.key] = kernel
    except Exception as error:  # Triton's, the driver's and the C compiler's have no common kind
        said = str(error).strip().splitlines()
        raise BuildError(
            f"{type(error).__name__}: {said[-1] if said else 'no reason given'}"
        ) from None
    return kernels


def _start_driver() -> None:
    """Have Triton's own code for CUDA, which serves all its users in the process and belongs
    into no folder of ours.
    """
    from triton.runtime import driver

    driver.active  # noqa: B018  (made when it is first asked for)


@contextmanager
def triton_cache(folder: Path) -> Iterator[None]:
    """Have Triton keep what it compiles in a folder meanwhile, whatever other users of
    it in this process do.
    """
    from triton import knobs

    with knobs.cache.scope():
        knobs.cache.dir = str(folder)
        yield
