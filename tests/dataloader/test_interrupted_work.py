"""Indexing and packing by several processes at once, and killed at every
call that changes a file.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmdb_material import in_child, labelled, write_dicts

from conftest import wait_until
from dataloader import array_file, file_lock, pack, processors, work_folder
from dataloader.errors import InputError
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_shards import index_building, index_turns, kept_edges, lmdb_index
from dataloader.lmdb_shards.lmdb_index import open_indexes
from dataloader.lmdb_shards.lmdb_source import LmdbSource
from dataloader.lmdb_shards.shard_index import IndexRecipe, places
from dataloader.packed import packing as packing_module
from dataloader.packed import shard_writer

FULL = os.environ.get("BATTERY") in ("full", "product")
RECIPE = IndexRecipe(LabelKeys())
N = 30
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _kept_from_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(index_building, "KEPT_FROM", 10)
    monkeypatch.setattr(index_building, "MIN_PART", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shards(folder: Path, n: int = 1) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write_dicts(folder / f"{k}.lmdb", labelled(N, seed=k)) for k in range(n)]


def sizes(paths: list[Path]) -> list[list[int]]:
    return [index.n_atoms.tolist() for index in open_indexes(paths, RECIPE)]


def expected(n: int = 1) -> list[list[int]]:
    return [[len(atoms) for atoms in labelled(N, seed=k)] for k in range(n)]


def indexing(paths: list[Path]) -> int:
    found = LmdbSource(paths[0].parent, LabelKeys(), needs=TO_TRAIN, max_dropped=0.0)
    return 0 if found.edges(3.0).all() and len(found) == N * len(paths) else 3


# ---- killed


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def changes(event: str, words: tuple[Any, ...], folder: str) -> bool:
    """Whether an audited call is about to change something in a folder."""
    if not words or not isinstance(words[0], str | os.PathLike):
        return False
    name = os.fspath(words[0])
    # durable names them relative to an open folder
    half_written = name.startswith(".") and name.endswith(".tmp")
    if not name.startswith(folder) and not half_written:
        return False
    if event == "open":
        return bool((words[2] or 0) & WRITING)
    return event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate")


def killed_at(n: int, folder: Path, task: Callable[[], int], *, worker: bool) -> int:
    """Do a task in a process that is killed before its n-th change in a folder, or the
    first of its workers is.

    Returns:
        Its exit code; 0 where there are not so many changes.
    """

    def doomed() -> int:
        parent, count = os.getpid(), 0

        def hook(event: str, words: tuple[Any, ...]) -> None:
            nonlocal count
            if changes(event, words, str(folder)) and (os.getpid() != parent) == worker:
                count += 1
                if count == n:
                    folder.with_name("killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            return task()
        except InputError:
            return 2

    return in_child(doomed)


def boundaries(*, worker: bool) -> range:
    """Numbers of the changes at which a process is killed: all of them, or in
    the default tests a few.
    """
    if FULL:
        return range(1, 400)
    return range(1 + 2 * worker, 400, 12)


def was_killed(folder: Path) -> bool:
    """Whether the last `killed_at` for a folder killed anybody; a worker's death may
    be made good by another.
    """
    mark = folder.with_name("killed")
    killed = mark.exists()
    mark.unlink(missing_ok=True)
    return killed


@pytest.mark.parametrize("worker", [False, True])
def test_indexing_killed_at_any_call_goes_on_and_leaves_nothing(
    worker: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one worker makes all parts, in the same order everywhere
    monkeypatch.setattr(processors, "n_cores", lambda: 1)
    folder, reached = tmp_path / "data", 0
    shards(tmp_path / "data", 2)
    for n in boundaries(worker=worker):
        paths = [folder / "0.lmdb", folder / "1.lmdb"]
        code = killed_at(n, folder, lambda paths=paths: indexing(paths), worker=worker)  # type: ignore[misc]
        assert code in ((0, 2) if worker else (0, -signal.SIGKILL))
        killed = was_killed(folder)
        reached += killed
        assert indexing(paths) == 0
        assert sizes(paths) == expected(2)
        left = {
            path.name.partition(".lmdb")[2].replace(RECIPE.digest(), "R")
            for path in folder.iterdir()
        }
        assert left == {"", ".R.index", ".R.index.edges-3.0"}
        if not killed:
            break
        for made in folder.glob("*.index*"):
            made.unlink()
    assert reached > (12 if FULL else 1)


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """Words of a packing but for its folder, and the files that it gives."""
    folder = tmp_path_factory.mktemp("packing")
    write_dicts(folder / "some.lmdb", labelled(N))
    words = [
        "--input",
        str(folder / "some.lmdb"),
        "--split",
        "train=0.7",
        "test=0.3",
        "--rows_per_shard",
        "9",
    ]
    assert pack.main([*words, "--stages", "5", "--output_dir", str(folder / "whole")]) == 0
    return [*words, "--stages", "5"], files(folder / "whole")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("worker", [False, True])
def test_packing_killed_at_any_call_goes_on_and_leaves_nothing(
    worker: bool,
    tmp_path: Path,
    packing: tuple[list[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processors, "n_cores", lambda: 1)
    words, whole = packing
    output, reached = tmp_path / "packed", 0
    for n in boundaries(worker=worker):
        command = [*words, "--output_dir", str(output)]
        code = killed_at(n, output, lambda command=command: pack.main(command), worker=worker)  # type: ignore[misc]
        assert code in ((0, 2) if worker else (0, -signal.SIGKILL))
        killed = was_killed(output)
        reached += killed
        assert pack.main(command) == 0
        assert files(output) == whole
        shutil.rmtree(output)
        if not killed:
            break
    assert reached > (12 if FULL else 1)


BARE: dict[str, Callable[[Path], object]] = {
    "the folder": lambda output: output.mkdir(),
    "the work folder": lambda output: (output / "packing").mkdir(parents=True),
    "the lock": lambda output: put(output / "packing" / "lock", "process 1 on nowhere"),
    "half a temporary file": lambda output: put(
        output / "packing" / ".asked.json.node.12.tmp", "{"
    ),
    "an older temporary file": lambda output: put(
        output / "packing" / "asked.json.node.12.tmp", "{"
    ),
    "an empty first file": lambda output: put(output / "packing" / "asked.json", ""),
    "half a first file": lambda output: put(output / "packing" / "asked.json", '{"data": ['),
}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.mark.parametrize("state", BARE)
def test_a_packing_that_was_killed_before_its_first_word_begins_anew(
    state: str, tmp_path: Path, packing: tuple[list[str], dict[str, bytes]]
) -> None:
    words, whole = packing
    BARE[state](tmp_path / "packed")
    assert pack.main([*words, "--output_dir", str(tmp_path / "packed")]) == 0
    assert files(tmp_path / "packed") == whole


def test_a_packing_that_was_killed_at_its_last_step_is_packed_already(
    tmp_path: Path, packing: tuple[list[str], dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    words, whole = packing
    output = tmp_path / "packed"
    assert pack.main([*words, "--output_dir", str(output)]) == 0
    put(output / "packing" / "train.plan", "x")
    assert pack.main([*words, "--output_dir", str(output)]) == 0
    assert "is packed already" in capsys.readouterr().out
    assert files(output) == whole


def test_a_folder_of_the_name_with_other_files_is_refused_and_left_alone(
    tmp_path: Path, packing: tuple[list[str], dict[str, bytes]]
) -> None:
    put(tmp_path / "packed" / "packing" / "thesis.tex", "x")
    assert pack.main([*packing[0], "--output_dir", str(tmp_path / "packed")]) == 2
    assert files(tmp_path / "packed") == {"packing/thesis.tex": b"x"}


# ---- several at once


def together(tasks: list[Callable[[], Any]]) -> list[int | None]:
    """Exit codes of processes that run at the same time."""
    processes = [CONTEXT.Process(target=lambda task=task: sys.exit(task())) for task in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture
def refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file for each process that has asked for work which another has."""
    folder, take = tmp_path / "refusals", work_folder.take
    folder.mkdir()

    def noting(path: Path, **more: bool) -> work_folder.WorkFolder | None:
        taken = take(path, **more)
        if taken is None:
            (folder / str(os.getpid())).touch()
        return taken

    monkeypatch.setattr(index_turns, "take", noting)
    monkeypatch.setattr(packing_module, "take", noting)
    return folder


def is_second() -> bool:
    """In a process of the tests below, or a worker of it."""
    return "SECOND" in os.environ


def made(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("other", ["list", "cache folder", "hashes"])
def test_two_processes_index_one_shard_once(
    other: str, tmp_path: Path, refusals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first goes on with its work when the second has seen that it is taken."""
    paths = shards(tmp_path / "data", 2)
    index_part = index_building._index_part

    def slowly(part: Any, recipe: IndexRecipe) -> None:
        (tmp_path / f"{part.path.name}-{part.begin}-{os.getpid()}").touch()
        if part.path == paths[0] and not is_second():
            wait_until(lambda: made(refusals) or (tmp_path / "ended").exists(), "the other process")
        index_part(part, recipe)

    monkeypatch.setattr(index_building, "_index_part", slowly)

    def first() -> int:
        return sizes(paths) != expected(2)

    def second() -> int:
        wait_until(lambda: list(tmp_path.glob("0.lmdb-*")), "the first part")
        os.environ["SECOND"] = "1"
        if other == "cache folder":
            os.environ["XDG_CACHE_HOME"] = str(tmp_path / "other_cache")
        its = paths if other == "cache folder" else paths[:1]
        hashed = other == "hashes"
        indexes = open_indexes(its, RECIPE, hashed=hashed)
        (tmp_path / "ended").touch()
        same = [index.n_atoms.tolist() for index in indexes] == expected(len(its))
        return not same or (indexes[0].sha256 is None) == hashed

    assert together([first, second]) == [0, 0]
    parts = [path.name.rsplit("-", 1)[0] for path in tmp_path.glob("?.lmdb-*")]
    assert sorted(parts) == sorted({*parts}), "a part was made twice"
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(
        [*(path.name for path in paths), *(places(path, RECIPE)[0].name for path in paths)]
    )


def test_two_processes_count_edges_of_one_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is in the midst of its parts when the first finishes and removes
    the folder of the parts.
    """
    paths = shards(tmp_path / "data")
    sizes(paths)
    kept = places(paths[0], RECIPE)[0]
    kept = kept.with_name(f"{kept.name}.edges-3.0")
    count = kept_edges.count_edges

    def second() -> int:
        def waiting(*words: Any) -> int:
            (tmp_path / "begun").touch()
            wait_until(kept.exists, "the counts of the first")
            return count(*words)

        monkeypatch.setattr(kept_edges, "count_edges", waiting)
        return indexing(paths)

    def first() -> int:
        wait_until((tmp_path / "begun").exists, "the other process")
        return indexing(paths)

    assert together([first, second]) == [0, 0]
    assert array_file.read(kept).arrays["n_edges"].all()
    assert not list(paths[0].parent.glob("*.building"))


def test_many_shards_are_made_a_number_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not more than a process may have open files."""
    held: list[int] = []
    completed = lmdb_index._completed

    def counting(mine: Any, *words: Any, **more: Any) -> Any:
        held.append(len(mine))
        return completed(mine, *words, **more)

    monkeypatch.setattr(index_turns, "MOST_AT_ONCE", 2)
    monkeypatch.setattr(lmdb_index, "_completed", counting)
    assert sizes(shards(tmp_path / "data", 3)) == expected(3)
    assert held == [2, 1]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(file_lock.fcntl, "flock", refused)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_one_that_is_overtaken_uses_what_the_other_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stops in the midst of its parts until the first has finished and removed them."""
    paths = shards(tmp_path / "data")
    index = places(paths[0], RECIPE)[0]
    index_part = index_building._index_part

    def second() -> int:
        def waiting(part: Any, recipe: IndexRecipe) -> None:
            (tmp_path / "begun").touch()
            wait_until(index.is_file, "the index")
            wait_until(
                lambda: not index.with_name(f"{index.name}.building").exists(),
                "the end of the other",
            )
            index_part(part, recipe)

        monkeypatch.setattr(index_building, "_index_part", waiting)
        return sizes(paths) != expected()

    def first() -> int:
        wait_until((tmp_path / "begun").exists, "the other process")
        return sizes(paths) != expected()

    assert together([first, second]) == [0, 0]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(
        [paths[0].name, index.name]
    )


def test_another_users_unfinished_work_leads_to_the_users_own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose folder cannot be written, here because it is none."""
    paths = shards(tmp_path / "data")
    work = places(paths[0], RECIPE)[0]
    work.with_name(f"{work.name}.building").write_text("x")
    assert sizes(paths) == expected()
    assert places(paths[0], RECIPE)[1].is_file()


def packed(words: list[str], output: Path) -> Callable[[], int]:
    return lambda: pack.main([*words, "--output_dir", str(output)])


@pytest.mark.parametrize("same", [True, False])
def test_two_packings_into_one_folder(
    same: bool,
    tmp_path: Path,
    refusals: Path,
    packing: tuple[list[str], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same settings the second waits and finds it done, with others it is
    refused; the first goes on.
    """
    words, whole = packing
    output, write = tmp_path / "packed", shard_writer._write_shard

    def slowly(task: Any, **more: Any) -> Any:
        (tmp_path / f"{task.split}-{task.number}-{os.getpid()}").touch()
        if not is_second():
            wait_until(lambda: made(refusals) or (tmp_path / "ended").exists(), "the other process")
        return write(task, **more)

    monkeypatch.setattr(shard_writer, "_write_shard", slowly)

    def second() -> int:
        wait_until(lambda: list(tmp_path.glob("train-*")), "the first shard")
        os.environ["SECOND"] = "1"
        code = pack.main([*words, *([] if same else ["--seed", "77"]), "--output_dir", str(output)])
        (tmp_path / "ended").touch()
        return code

    assert together([packed(words, output), second]) == [0, 0 if same else 2]
    assert files(output) == whole
    shards_made = [
        path.name.rsplit("-", 1)[0]
        for path in [*tmp_path.glob("train-*"), *tmp_path.glob("test-*")]
    ]
    assert sorted(shards_made) == sorted({*shards_made}), "a shard was written twice"


@pytest.mark.usefixtures("no_locks")
def test_two_packings_without_locks_both_end_well(
    tmp_path: Path, packing: tuple[list[str], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, whole = packing
    output, write = tmp_path / "packed", shard_writer._write_shard

    def second() -> int:
        def waiting(task: Any, **more: Any) -> Any:
            (tmp_path / "begun").touch()
            wait_until(lambda: (output / "report.json").exists(), "the report of the other")
            wait_until(lambda: not (output / "packing").exists(), "the end of the other")
            return write(task, **more)

        monkeypatch.setattr(shard_writer, "_write_shard", waiting)
        return pack.main([*words, "--output_dir", str(output)])

    def first() -> int:
        wait_until((tmp_path / "begun").exists, "the other process")
        return pack.main([*words, "--output_dir", str(output)])

    assert together([first, second]) == [0, 0]
    assert files(output) == whole


def test_a_disk_that_is_full_is_one_line(
    tmp_path: Path, packing: tuple[list[str], dict[str, bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    """LMDB's own error, in a worker; when there is room again the packing goes on."""
    import resource

    words, whole = packing

    def small_disk() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return pack.main([*words, "--output_dir", str(tmp_path / "packed")])

    assert in_child(small_disk) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write {tmp_path / 'packed' / 'train' / 'shard_0000'}")
    assert line.endswith(
        "; make room and start again with the same settings, it goes on where it was"
    )
    assert pack.main([*words, "--output_dir", str(tmp_path / "packed")]) == 0
    assert files(tmp_path / "packed") == whole


def test_who_has_a_folder_is_said(tmp_path: Path) -> None:
    taken = work_folder.take(tmp_path / "work")
    assert taken is not None
    assert taken.alone
    assert work_folder.take(tmp_path / "work") is None
    assert f"process {os.getpid()} on " in work_folder.holder(tmp_path / "work")
    (tmp_path / "work" / "part").touch()
    taken.release()
    assert (tmp_path / "work" / "part").exists(), "for whoever goes on"
    again = work_folder.take(tmp_path / "work")
    assert again is not None
    again.finish()
    assert not (tmp_path / "work").exists()
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(OSError, match="File exists"):
        work_folder.take(tmp_path / "file")
