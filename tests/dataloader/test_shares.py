"""Indexing and packing by shares: the same bytes whoever did which share, in any
order, killed and continued.
"""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmdb_material import dict_row, in_child, labelled, put
from test_interrupted_work import FULL, boundaries, files, killed_at, no_locks, together, was_killed

from conftest import in_the_battery
from dataloader import index, pack, processors, work_folder
from dataloader.lmdb_shards import index_building
from dataloader.packed import packing, survey
from dataloader.portion import WHOLE, Portion, portion_of

N = 26

__all__ = ["no_locks"]  # a fixture


def in_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "n_cores", lambda: 1)
    monkeypatch.setattr(survey, "ROWS_AT_ONCE", 7)


@pytest.fixture(autouse=True)
def _many_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_many_pieces(monkeypatch)
    monkeypatch.setattr(index_building, "KEPT_FROM", 10)
    monkeypatch.setattr(index_building, "MIN_PART", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with groups of four and repeated structures."""
    folder = tmp_path_factory.mktemp("data")
    for k in range(2):
        rows = {}
        for i, atoms in enumerate(labelled(N, seed=k)):
            rows[str(i).encode()] = dict_row(atoms, sid=f"{k}-{i}", group=f"{k}-{i // 4}")
            if i % 6 == 0:
                rows[str(100 + i).encode()] = dict_row(
                    atoms, sid=f"copy{k}-{i}", group=f"copy{k}-{i}"
                )
        put(folder / f"{k}.lmdb", rows)
    return folder


@pytest.fixture(scope="module")
def words(data: Path) -> list[str]:
    words = [
        "--input",
        str(data),
        "--split",
        "train=0.7",
        "test=0.3",
        "--id_key",
        "sid",
        "--group_key",
        "group",
    ]
    return [*words, "--rows_per_shard", "8", "--stages", "5", "--r_max", "3"]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process packs, with slices as large as they are."""
    output = tmp_path_factory.mktemp("whole") / "packed"
    assert pack.main([*words, "--output_dir", str(output)]) == 0
    return files(output)


def share(words: list[str], output: Path, text: str, *more: str) -> int:
    return pack.main([*words, "--output_dir", str(output), "--share", text, *more])


def finish(words: list[str], output: Path) -> int:
    return pack.main([*words, "--output_dir", str(output), "--finish"])


@pytest.mark.parametrize(
    "order",
    [[0], pytest.param([2, 0, 1], marks=in_the_battery), [7, 2, 5, 0, 1, 6, 3, 4]],
    ids=["1", "3", "8"],
)
def test_shares_in_any_order_pack_what_one_process_packs(
    order: list[int], words: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "packed"
    assert [share(words, output, f"{k}/{len(order)}") for k in order] == [0] * len(order)
    if len(order) > 1:
        assert not (output / "report.json").exists()
        assert [share(words, output, f"{k}/{len(order)}") for k in reversed(order)] == [0] * len(
            order
        )
    assert files(output) == whole


@pytest.fixture(scope="module")
def half(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both of two shares have looked, and 1/2 has written its shards."""
    output = tmp_path_factory.mktemp("half") / "packed"
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_many_pieces(monkeypatch)
        assert [share(words, output, text) for text in ("0/2", "1/2")] == [0, 0]
    return output


@pytest.mark.parametrize(
    ("phase", "worker"),
    [
        pytest.param("look", True, marks=in_the_battery),
        ("write", False),
        pytest.param("look", False, marks=in_the_battery),
        pytest.param("write", True, marks=in_the_battery),
    ],
)
def test_a_share_killed_at_any_call_goes_on(
    phase: str, worker: bool, words: list[str], half: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    output, reached = tmp_path / "packed", 0
    killed_share, others = {"look": ("1/2", ["1/2", "0/2"]), "write": ("0/2", [])}[phase]
    for n in boundaries(worker=worker):
        if phase == "write":
            shutil.copytree(half, output)
        code = killed_at(n, output, lambda: share(words, output, killed_share), worker=worker)
        assert code in ((0, 2) if worker else (0, -signal.SIGKILL))
        killed = was_killed(output)
        reached += killed
        assert [share(words, output, text) for text in (*others, killed_share)] == [0] * (
            len(others) + 1
        )
        assert files(output) == whole
        shutil.rmtree(output)
        if not killed:
            break
    assert reached > (4 if FULL else 0)


@pytest.mark.parametrize("locks", [True, False])
def test_shares_at_the_same_time_wait_for_each_other_and_the_last_finishes(
    locks: bool,
    words: list[str],
    whole: dict[str, bytes],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if not locks:
        request.getfixturevalue("no_locks")
    output = tmp_path / "packed"

    def beside(k: int) -> Callable[[], int]:
        return lambda: share(words, output, f"{k}/3", "--wait_for_shares")

    assert together([beside(k) for k in range(3)]) == [0, 0, 0]
    assert files(output) == whole
    assert finish(words, output) == 0, "it is packed already"
    assert share(words, output, "0/5") == 0
    assert files(output) == whole


@pytest.mark.parametrize("read", [1, 2])
def test_a_sibling_that_begins_between_two_looks_is_no_stranger(
    read: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what it packs, and how many shares there are, after this one has read that
    nothing is begun.
    """
    output = tmp_path / "packed"
    begun = packing.Packing.begun.fget
    reads: list[Any] = []

    def then_begins(self: packing.Packing) -> Any:
        content = begun(self)
        reads.append(content)
        if len(reads) == read:
            self.work.mkdir(parents=True, exist_ok=True)
            packing.write_json(self.work / packing.ASKED, self.asked, self.work)
            packing.write_json(self.work / packing.SHARES, {"shares": 2}, self.work)
        return content

    with monkeypatch.context() as patched:
        patched.setattr(packing.Packing, "begun", property(then_begins))
        assert share(words, output, "0/2") == 0
    assert reads[read - 1] is None


def test_a_folder_that_a_sibling_leaves_empty_between_two_looks_is_none(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "packed"
    (output / "packing").mkdir(parents=True)
    is_dir = Path.is_dir
    left: list[Path] = []

    def then_leaves(self: Path) -> bool:
        answer = is_dir(self)
        if self == output / "packing" and not left:
            left.append(self)
            self.rmdir()
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_dir", then_leaves)
        assert share(words, output, "0/2") == 0
    assert left


def test_a_share_that_begins_last_does_not_wait_for_those_that_wait_for_it(
    words: list[str], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw that nothing was begun, and when it came to begin, the others were at work."""
    output = tmp_path / "packed"
    assert share(words, output, "0/2") == 0
    others = work_folder.take(output / "packing", shared=True)
    assert others is not None
    begun = packing.Packing.begun.fget
    looks: list[int] = []
    pauses: list[float] = []

    def late(self: packing.Packing) -> Any:
        looks.append(1)
        return None if len(looks) == 1 else begun(self)

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        assert len(pauses) < 20, "it waits"

    with monkeypatch.context() as patched:
        patched.setattr(packing.Packing, "begun", property(late))
        patched.setattr(packing.time, "sleep", sleep)
        assert share(words, output, "1/2", "--wait_for_shares") == 0
    assert pauses
    others.release()
    assert share(words, output, "0/2") == 0
    assert files(output) == whole


def test_one_process_takes_over_what_shares_have_begun(
    words: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "packed"
    assert share(words, output, "1/3") == 0
    looked = {path: path.stat().st_mtime_ns for path in (output / "packing").glob("look-*")}
    assert looked
    assert in_child(lambda: share(words, output, "0/2")) == 0, (
        "another number of shares is no other work"
    )
    assert {path: path.stat().st_mtime_ns for path in looked} == looked, (
        "nothing is looked at twice"
    )
    assert pack.main([*words, "--output_dir", str(output)]) == 0
    assert files(output) == whole


def test_what_is_missing_is_named(
    words: list[str], whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "packed"
    assert finish(words, output) == 2
    assert "nothing of --output_dir" in capsys.readouterr().err
    assert not output.exists()
    for k in (0, 2):
        assert share(words, output, f"{k}/4") == 0
    assert (
        "share 2/4: its structures are looked through; shares 1/4, 3/4 have not yet"
        in capsys.readouterr().out
    )
    assert finish(words, output) == 2
    assert (
        "error: --finish: shares 1/4, 3/4 have not looked through everything yet"
        in capsys.readouterr().err
    )
    for k in (3, 1, 0, 3):
        assert share(words, output, f"{k}/4") == 0
    assert finish(words, output) == 2
    assert "error: --finish: share 2/4 has not written everything yet" in capsys.readouterr().err
    damaged = output / "packing" / "train-shard_00000.lmdb.json"
    damaged.write_text(damaged.read_text()[:-9])
    assert finish(words, output) == 2
    assert (
        "error: --finish: shares 0/4, 2/4 have not written everything yet"
        in capsys.readouterr().err
    )
    part = output / "packing" / "look-00000005"
    part.write_bytes(part.read_bytes()[:-70])
    assert finish(words, output) == 2
    assert (
        "error: --finish: share 1/4 has not looked through everything yet"
        in capsys.readouterr().err
    )
    for k in (1, 0, 2, 3):
        assert share(words, output, f"{k}/4") == 0
    assert files(output) == whole


def test_slices_of_another_size_do_not_count(
    words: list[str], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a version that cut otherwise."""
    assert share(words, tmp_path / "packed", "1/2") == 0
    monkeypatch.setattr(survey, "ROWS_AT_ONCE", 11)
    assert pack.main([*words, "--output_dir", str(tmp_path / "packed")]) == 0
    assert files(tmp_path / "packed") == whole


def test_siblings_with_other_data_or_settings_are_refused(
    words: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "packed"
    assert share(words, output, "0/2") == 0
    before = files(output)
    put(tmp_path / "other.lmdb", {b"0": dict_row(labelled(1)[0], sid="x", group="x")})
    for more in (
        ["--seed", "7"],
        ["--r_max", "4"],
        ["--input", str(tmp_path / "other.lmdb")],
        ["--drop_duplicates"],
    ):
        capsys.readouterr()
        assert share([*words, *more], output, "1/2") == 2
        assert (
            "holds something else than an unfinished packing of these data"
            in capsys.readouterr().err
        )
    assert finish([*words, "--seed", "7"], output) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert files(output) == before


WRONG = {
    "8/8": "'8/8' is no share; they are counted from 0, and the last of 8 is 7/8",
    "x/y": "'x/y' is no share; expected NUMBER/SHARES, for example 3/64",
    "0/0": "'0/0' is no share; there are 1 to",
    "-1/4": "",
    "1/4/2": "expected NUMBER/SHARES",
    "1.0/4": "expected NUMBER/SHARES",
    "٣/٤": "expected NUMBER/SHARES",
    "/64": "expected NUMBER/SHARES",  # what is left of an empty $SLURM_ARRAY_TASK_ID
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("command", [pack, index], ids=["pack", "index"])
def test_what_is_no_share_is_one_line(
    command: Any, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {
        pack: ["--input", "x.lmdb", "--output_dir", str(tmp_path / "p")],
        index: ["--lmdb_train", "x.lmdb"],
    }
    assert command.main([*needed[command], "--share", text]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--share" in line
    assert WRONG[text] in line


def test_flags_that_contradict_each_other(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, text in (
        (["--share", "0/2", "--finish"], "--finish and --share are two things"),
        (["--wait_for_shares"], "--wait_for_shares is given but no --share"),
    ):
        assert pack.main([*words, "--output_dir", str(tmp_path / "p"), *more]) == 2
        assert text in capsys.readouterr().err


def test_shares_cover_everything_once() -> None:
    assert portion_of(None) == WHOLE
    assert portion_of(" 3/64") == Portion(3, 64)
    for size in (1, 2, 5, 9):
        shares = [Portion(number, size).of(range(7)) for number in range(size)]
        assert sorted(item for share in shares for item in share) == list(range(7))


# ---- indexing


@pytest.mark.parametrize("size", [2, pytest.param(8, marks=in_the_battery)])
def test_shares_index_what_one_process_indexes(size: int, data: Path, tmp_path: Path) -> None:
    def indexes(folder: Path, *shares: str) -> dict[str, bytes]:
        for path in data.glob("*.lmdb"):
            shutil.copy2(path, folder)
        shutil.copy2(data / "0.lmdb", folder / "2.lmdb")
        for text in shares:
            assert index.main(["--lmdb_train", str(folder), "--r_max", "3", "--share", text]) == 0
        return files(folder)

    folders = [tmp_path / name for name in ("one", "many")]
    for folder in folders:
        folder.mkdir()
    one = indexes(folders[0], "0/1")
    assert len(one) == 9, "of three shards an index and the counts of edges"
    assert indexes(folders[1], *(f"{k}/{size}" for k in reversed(range(size)))) == one


def test_a_name_that_is_nowhere_is_refused_by_one_process_and_said_by_a_share(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("*.index*"))
    asked = ["--lmdb_train", str(tmp_path / "data"), "--forces_key", "F"]
    assert index.main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has F, the name given with --forces_key; the first has: atomic_numbers" in line
    assert index.main([*asked, "--share", "0/2"]) == 0
    assert "these are the shards of this share" in "".join(capsys.readouterr())
    assert index.main(["--xyz_train", "a.xyz"]) == 2
    assert "no LMDB to index; name them with --lmdb_train" in capsys.readouterr().err
