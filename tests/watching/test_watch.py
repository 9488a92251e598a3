"""watch.py follows the records of runs that are written, killed, cut to a checkpoint,
continued and replaced.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from model_utils import watch
from model_utils.watching import live, places
from model_utils.watching.places import Plan
from model_utils.watching.status import Limits, Status, duration, status_of
from model_utils.watching.tail import Tail
from model_utils.watching.view import view

LIMITS = Limits(no_improvement=20, silence=600.0)


def train(epoch: int, **changes: Any) -> dict[str, Any]:
    perf = {"seconds": 10.0, "atoms_per_s": 1000.0}
    record = {
        "kind": "train",
        "epoch": epoch,
        "step": 5 * epoch,
        "lr": 0.01,
        "loss": 3.0,
        "forces_rmse": 0.25,
    }
    return {**record, "energy_rmse_per_atom": 0.012, "gradient_norm": 4.0, "perf": perf, **changes}


def valid(epoch: int, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "valid",
        "epoch": epoch,
        "step": 5 * epoch,
        "lr": 0.01,
        "loss": 2.0,
        "best": True,
    }
    return {
        **record,
        "energy_rmse_per_atom": 0.011,
        "forces_rmse": 0.5,
        "perf": {"seconds": 2.0},
        **changes,
    }


def run_of(n_epochs: int) -> list[dict[str, Any]]:
    return [record for k in range(1, n_epochs + 1) for record in (train(k), valid(k))]


def text_of(records: Sequence[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def status(records: Sequence[Any], plan: Plan = Plan(epochs=100), **changes: Any) -> Status:  # noqa: B008
    return status_of(records, plan, **{"ending": None, "silent": 3.0, "limits": LIMITS, **changes})


# ---- the file


def test_every_way_a_file_changes_gives_the_records_that_are_in_it(tmp_path: Path) -> None:
    """Grown, torn, cut to a checkpoint and grown beyond where it was, replaced, gone and
    back: after each look.
    """
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    rng = random.Random(3)
    text = ""
    for number in range(400):
        lines = text.splitlines(keepends=True)
        what = rng.choice(["grow", "grow", "tear", "cut", "replace", "remove"])
        if what in ("grow", "tear"):
            whole = [line for line in lines if line.endswith("\n")]
            text = "".join(whole) + text_of([train(number), valid(number)])
            text = text[: -rng.randrange(1, 40)] if what == "tear" else text
        elif what == "cut":  # and go on with records of equal length
            text = "".join(lines[: len(lines) // 2]) + text_of(
                [train(number)] * rng.randrange(0, 20)
            )
        elif what == "replace":
            text = text_of([train(number)] * rng.randrange(0, 9))
        if what == "remove":
            path.unlink(missing_ok=True)
            text = ""
        elif what == "replace":
            (tmp_path / "new").write_text(text)
            os.replace(tmp_path / "new", path)
        else:
            path.write_text(text)
        if rng.random() < 0.7:
            tail.look()
            whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            assert list(tail.records) == [json.loads(line) for line in whole], (number, what)
            assert tail.n_bad_lines == 0


def test_what_is_no_record_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    bad = b'\n{"kind": 3}\n[1]\nnull\nnonsense\n\xff\xfe\n' + b"[" * 100_000 + b"\n{}\n"
    path.write_bytes(text_of([train(1)]).encode() + bad + text_of([valid(1)]).encode())
    tail = Tail(path)
    tail.look()
    assert [record["kind"] for record in tail.records] == ["train", "valid"]
    assert tail.n_bad_lines == 7


# ---- what they say


def test_progress_rates_and_time_left() -> None:
    now = status(run_of(4))
    assert (now.epoch, now.step, now.share_done) == (4, 20, 0.04)
    assert now.seconds_per_epoch == pytest.approx(12.0)
    assert now.seconds_left == pytest.approx(96 * 12.0)
    assert now.atoms_per_second == pytest.approx(1000.0)
    assert now.warnings == []


def test_a_validation_every_second_epoch_takes_half_a_validation_of_each() -> None:
    records = [r for k in range(1, 5) for r in ([train(k), valid(k)] if k % 2 == 0 else [train(k)])]
    assert status(records).seconds_per_epoch == pytest.approx(11.0)


def test_a_run_in_steps_counts_within_its_epoch() -> None:
    """Records of steps say what passed since their epoch began."""
    records = [
        train(1, kind="train_steps", step=100 * k, perf={"seconds": 50.0 * k, "atoms_per_s": 10.0})
        for k in (1, 2, 3)
    ]
    now = status(records, Plan(max_steps=1000))
    assert (now.step, now.share_done) == (300, 0.3)
    assert now.seconds_left == pytest.approx(700 * 0.5)


def test_the_end_that_comes_first_counts() -> None:
    records = run_of(4)
    assert status(records, Plan(epochs=100, max_steps=40)).seconds_left == pytest.approx(
        20 * 10.0 / 5
    )
    assert status(records, Plan()).seconds_left is None
    assert status([], Plan(epochs=3)).share_done == 0.0


WARNED = {
    "no improvement": (
        [*run_of(3), *(r for k in range(4, 24) for r in (train(k), valid(k, best=False)))],
        {},
        "no better model for 20 epochs, since epoch 3",
    ),
    "gradient norm": (
        [*run_of(8), *(train(k, gradient_norm=4.0 * 2.0 ** (k - 7)) for k in (9, 10, 11))],
        {},
        "the gradient norm rises: 32, 8.0 times",
    ),
    "slower": (
        [
            *run_of(8),
            *(train(k, perf={"seconds": 40.0, "atoms_per_s": 250.0}) for k in (9, 10, 11)),
        ],
        {},
        "slower than it was (250 atoms/s, usually 1e+03): it waits for data",
    ),
    "silent": (
        run_of(3),
        {"silent": 1200.0},
        "no record for 20 min: it waits for data, is stuck, or was killed",
    ),
    "no number": ([train(1, loss=None)], {}, "the loss is no number"),
    "stopped": (run_of(3), {"has_writer": False, "silent": 1e6}, "no process writes it"),
}


@pytest.mark.parametrize("what", WARNED)
def test_warnings(what: str) -> None:
    records, changes, sentence = WARNED[what]
    [warning] = status(records, **changes).warnings
    assert warning.startswith(sentence)


def test_warnings_that_are_not_due() -> None:
    assert status(run_of(22)[:-1]).warnings == []
    assert status(run_of(3), silent=500.0).warnings == []
    slow = [train(k, perf={"seconds": 3000.0, "atoms_per_s": 9.0}) for k in (1, 2)]
    assert status(slow, silent=4000.0).warnings == [], "its records always take long"
    assert status([*run_of(3), {"kind": "final"}], silent=1e6).warnings == [], "it has ended"


def test_a_stopped_run_has_no_time_left() -> None:
    assert status(run_of(3)).seconds_left is not None
    assert status(run_of(3), has_writer=False).seconds_left is None
    ended = [*run_of(3), {"kind": "final"}]
    assert status(ended, has_writer=False).warnings == []


def test_a_finished_run_that_goes_on_is_not_finished() -> None:
    ended = [*run_of(3), {"kind": "final"}]
    assert status(ended).ending == "finished"
    assert status([*ended, train(4)]).ending is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(43, "43 s"), (720, "12 min"), (11100, "3 h 05"), (187200, "2 d 04 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- the command


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment with two runs, of which the second is the latest."""
    for number, name in enumerate(("early", "late"), 1):
        folder = tmp_path / "demo" / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(text_of(run_of(number)))
        (folder / "config.resolved.yaml").write_text("epochs: 8\nmax_steps: null\n")
        (folder / "run.json").write_text(
            json.dumps({"created": f"2026-01-0{number}", "finished": None})
        )
        (folder / ".run.lock").touch()  # as while it is written
    return tmp_path / "demo"


def test_a_run_has_three_names(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = experiment / "late"
    shown = []
    for name in (experiment, late, late / "metrics.jsonl"):
        assert watch.main([str(name), "--once"]) == 0
        shown.append(capsys.readouterr().out.replace(str(late), "").partition("ago")[2])
    assert shown[0] == shown[1] == shown[2]
    assert "epoch 2 of 8" in shown[0]
    assert "25 %" in shown[0]
    assert "1 min" not in shown[0]
    assert "72 s left" in shown[0]
    (experiment / "latest").symlink_to("early")
    assert places.metrics_of(experiment) == (experiment / "early" / "metrics.jsonl").resolve()


def test_several_runs(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early = str(experiment / "early")
    late = str(experiment / "late")
    for words in (
        [early, late],
        ["--once", early, late],
        [early, "--once", late],
        ["--runs", early, late],
    ):
        assert watch.main(words) == 0
        out = capsys.readouterr().out
        assert out.index("epoch 1 of 8") < out.index("epoch 2 of 8")


def test_mistakes(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words, sentence in (
        ([], "runs is missing"),
        ([str(tmp_path / "nowhere")], "nowhere is not there; name the folder of a run"),
        ([str(tmp_path / "empty")], "empty holds no run"),
        (["--runs", str(experiment), "--once", "more"], "'more' stands alone"),
    ):
        assert watch.main(words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert sentence in line


def test_a_run_that_has_not_written_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.resolved.yaml").write_text("epochs: 8\n")
    assert watch.main([str(tmp_path), "--once"]) == 0
    assert "no record yet" in capsys.readouterr().out


def test_names_and_words_of_files_cannot_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a\x1b[31m[red]"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(text_of(run_of(2)))
    (folder / "run.json").write_text(json.dumps({"finished": {"why": "\x1b[2J[bold]gone"}}))
    assert watch.main([str(folder), "--once"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]gone" in out


def test_the_view_goes_on_until_all_runs_are_finished(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is cut to its checkpoint, continued, and ends: the view shows the
    file as it is each time.
    """
    from rich.console import Console

    metrics = experiment / "late" / "metrics.jsonl"
    torn = text_of(run_of(1)) + '{"kind": "tr'
    ended = text_of([*run_of(3), {"kind": "final"}])
    steps: Iterator[str | None] = iter([None, text_of(run_of(1)), torn, ended])
    shown: list[tuple[int, str | None]] = []

    def go_on(seconds: float) -> None:
        text = next(steps)
        if text is None:  # the folder is moved away for a while
            experiment.rename(experiment.with_name("away"))
            return
        if not experiment.exists():
            experiment.with_name("away").rename(experiment)
        metrics.write_text(text)

    def kept(statuses: Sequence[tuple[str, Status]]) -> Any:
        shown.extend((of_run.epoch, of_run.ending) for _, of_run in statuses)
        return view(statuses)

    monkeypatch.setattr(live.time, "sleep", go_on)
    monkeypatch.setattr(live, "view", kept)
    screen = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(
        live, "_console", lambda: Console(file=screen, force_terminal=True, width=80)
    )
    assert watch.main([str(experiment)]) == 0
    screen.close()
    assert shown == [(2, None), (0, None), (1, None), (1, None), (3, "finished")]
