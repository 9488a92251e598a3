"""Who hears of a run: what each logger is told, one that fails, and a table that is
cut as metrics.jsonl is.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ase.io import write

from conftest import waters
from dataloader.quantities import QUANTITIES
from model_utils import train_mace
from model_utils.errors import InputError, StopRequested
from model_utils.files import checkpoint
from model_utils.metrics import Metrics, error_names
from model_utils.run import fit, loggers
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.loggers import LOGGERS, LoggedRun, LoggerKind, Loggers
from model_utils.run.loggers.csv_file import CsvFile

METHODS = ("opened", "train", "validation", "final", "close")


def errors_of(loss: float) -> Metrics:
    names = [name for quantity in QUANTITIES.values() for name in error_names(quantity).values()]
    return Metrics(loss=loss, errors=dict.fromkeys(names, loss / 2), n_configs=3, n_atoms=9)


def train_record(step: int, *, whole: bool = True) -> TrainRecord:
    return TrainRecord(
        epoch=step // 2,
        step=step,
        lr=0.01,
        metrics=errors_of(1.0 / step),
        gradient_norm=2.0,
        gradient_norm_max=3.0,
        clipped_share=0.5,
        whole_epoch=whole,
        seconds=1.0,
    )


def validation_record(step: int, *sources: str) -> ValidationRecord:
    return ValidationRecord(
        epoch=step // 2,
        step=step,
        lr=0.01,
        metrics=errors_of(2.0),
        by_source={source: errors_of(3.0) for source in sources or ("a.xyz",)},
        weights="raw",
        best=True,
        seconds=1.0,
    )


FINAL = FinalRecord(
    epoch=2, step=4, sets={"train": errors_of(1.0), "valid": errors_of(2.0)}, rows={}
)


@dataclass
class Notebook:
    """A logger that writes down what it hears, and raises where it is told to."""

    fails_at: str = ""
    fails_too: str = ""
    error: BaseException = field(
        default_factory=lambda: ConnectionError("the server\ndoes not answer")
    )
    heard: list[str] = field(default_factory=list)

    def note(self, method: str) -> None:
        self.heard.append(method)
        if method in (self.fails_at, self.fails_too):
            raise self.error

    def opened(self, run: LoggedRun) -> "Notebook":
        self.note("opened")
        return self

    def train(self, record: TrainRecord) -> None:
        self.note("train")

    def validation(self, record: ValidationRecord) -> None:
        self.note("validation")

    def final(self, record: FinalRecord) -> None:
        self.note("final")

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Notebook]:
    """Put a notebook into the table, as a plug-in does."""

    def add(name: str, *, at_once: bool = False, **settings: Any) -> Notebook:
        notebook = Notebook(**settings)
        monkeypatch.setitem(LOGGERS, name, LoggerKind(opened=notebook.opened, at_once=at_once))
        return notebook

    return add


def whole_run(names: list[str], folder: Path) -> None:
    run = Loggers(names, LoggedRun(where=lambda: folder, name="run"))
    for step in (2, 4):
        run.train(train_record(step))
        run.validation(validation_record(step))
    run.final(FINAL)
    run.close()
    run.close()


def test_every_logger_hears_everything_and_is_closed_once(
    added: Callable[..., Notebook], tmp_path: Path
) -> None:
    first, second = added("first"), added("second")
    whole_run(["first", "second"], tmp_path)
    expected = ["opened", "train", "validation", "train", "validation", "final", "close"]
    assert first.heard == second.heard == expected


@pytest.mark.parametrize("name", ["tensorboard", "csv"])
def test_a_folder_that_was_moved_is_not_made_anew(name: str, tmp_path: Path) -> None:
    """Somebody moves the run's folder, and back, just when a logger opens its file: the logger
    is lost, and nothing stays where the folder was for a moment.
    """
    places = iter([tmp_path / "for a moment"])
    (tmp_path / "run").mkdir()
    run = Loggers([name], LoggedRun(where=lambda: next(places, tmp_path / "run"), name="run"))
    run.train(train_record(2))
    run.close()
    assert [place.name for place in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "error", [ConnectionError("the server\ndoes not answer"), SystemExit(3), KeyError("x")]
)
def test_one_that_raises_warns_once_and_is_left_out(
    method: str,
    error: BaseException,
    at_once: bool,
    added: Callable[..., Notebook],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = added("broken", at_once=at_once, fails_at=method, error=error)
    sound = added("sound", at_once=at_once)
    whole_run(["broken", "sound"], tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: the logger broken failed and is left out from now on: ")
    assert type(error).__name__ in warnings[0]
    assert "\n" not in warnings[0]
    assert broken.heard.count(method) == 1, "it is not asked again"
    assert (broken.heard[-1] == "close") == (method != "opened"), "what was opened is closed"
    assert sound.heard[-2:] == ["final", "close"]


def test_one_that_cannot_be_closed_either_warns_once(
    added: Callable[..., Notebook], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = added("broken", fails_at="train", fails_too="close")
    whole_run(["broken"], tmp_path)
    assert broken.heard == ["opened", "train", "close"]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_a_request_to_stop_is_no_fault_of_a_logger(
    added: Callable[..., Notebook], tmp_path: Path
) -> None:
    added("asked", at_once=True, fails_at="final", error=StopRequested("SIGTERM"))
    with pytest.raises(StopRequested):
        whole_run(["asked"], tmp_path)


def test_the_console_is_always_there_and_each_logger_once() -> None:
    assert loggers.chosen([]) == ("console",)
    assert loggers.chosen(["csv", "console", "csv"]) == ("console", "csv")
    with pytest.raises(InputError, match="the logger 'cvs' is not known; did you mean csv"):
        loggers.chosen(["cvs"])


def test_a_package_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        LOGGERS, "far", LoggerKind(opened=lambda run: Notebook(), package="no_such_package")
    )
    with pytest.raises(
        InputError, match="the logger far needs the package no_such_package, which is not installed"
    ):
        loggers.chosen(["far"])


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def filled(path: Path, *, step: int = 0, n_records: int = 0) -> CsvFile:
    """Before the first step, then an epoch of two steps at a time, with a line of its
    first step: 3 records each.
    """
    table = CsvFile(path, step=step, n_records=n_records)
    if not step:
        table.validation(validation_record(0))
    for epoch_end in range(step + 2, 5, 2):
        table.train(train_record(epoch_end - 1, whole=False))
        table.train(train_record(epoch_end))
        table.validation(validation_record(epoch_end, "a.xyz", 'b, "c"\n.xyz'))
    return table


def test_the_table_has_a_row_for_each_record_source_and_set(tmp_path: Path) -> None:
    table = filled(tmp_path / "metrics.csv")
    table.final(FINAL)
    table.close()
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(row["record"], row["kind"], row["set"]) for row in rows[:6]] == [
        ("1", "valid", "all"),
        ("2", "train_steps", "all"),
        ("3", "train", "all"),
        ("4", "valid", "all"),
        ("4", "valid", "a.xyz"),
        ("4", "valid", 'b, "c"?.xyz'),
    ]
    assert [(row["kind"], row["set"], row["step"]) for row in rows[-2:]] == [
        ("final", "train", "4"),
        ("final", "valid", "4"),
    ]
    assert float(rows[2]["forces_rmse"]) == 0.25
    assert (
        rows[2]["gradient_norm"],
        rows[2]["best"],
        rows[3]["best"],
        rows[3]["gradient_norm"],
    ) == (
        "2.0",
        "",
        "1",
        "",
    )


@pytest.mark.parametrize(
    ("step", "n_records", "kept"),
    [(2, 4, 6), (2, 3, 3), (4, 7, 11), (0, 0, 0)],
    ids=["after an epoch", "within its last step", "after the last", "before the first record"],
)
def test_rows_after_the_checkpoint_are_cut(
    step: int, n_records: int, kept: int, tmp_path: Path
) -> None:
    """A step has records on both sides of a checkpoint that was written within it."""
    path = tmp_path / "metrics.csv"
    table = filled(path)
    table.final(FINAL)
    table.close()
    whole = path.read_text()
    path.write_text(whole + '9,"torn')
    CsvFile(path, step=step, n_records=n_records).close()
    assert len(rows_of(path)) == kept
    assert whole.startswith(path.read_text())


def test_a_table_of_other_columns_is_gone_on_with(tmp_path: Path) -> None:
    """As where a plug-in's quantity was added since."""
    path = tmp_path / "metrics.csv"
    path.write_text("record,kind,step,old\n1,valid,0,5\nnonsense,valid,0,5\n")
    table = CsvFile(path, step=2, n_records=3)
    table.train(train_record(4))
    table.close()
    first, second = rows_of(path)
    assert (first["record"], first["kind"], first["step"], first["loss"]) == ("1", "valid", "0", "")
    assert (second["record"], second["step"]) == ("4", "4")


class Killed(BaseException):
    """The process is gone."""


def test_a_run_that_is_killed_and_resumed_has_the_table_of_an_unbroken_one(
    tiny_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: Callable[..., Notebook]
) -> None:
    """Through the command; a logger of a plug-in beside, which fails in both and does no harm."""
    write(tmp_path / "train.xyz", waters(4), format="extxyz")
    write(tmp_path / "valid.xyz", waters(3, seed=1), format="extxyz")
    broken = added("broken", fails_at="validation")

    def train(name: str, *more: str) -> Path:
        words = [
            "--input_json",
            tiny_json,
            "--xyz_train",
            tmp_path / "train.xyz",
            "--xyz_val",
            tmp_path / "valid.xyz",
        ]
        words += [
            "--epochs",
            2,
            "--batch_size",
            2,
            "--log_every_steps",
            1,
            "--checkpoint_every_steps",
            1,
        ]
        words += [
            "--loggers",
            "csv",
            "broken",
            "--no_export_mace_model",
            "--output_checkpoint",
            tmp_path / name,
        ]
        assert train_mace.main([*map(str, words), *more]) == 0
        return tmp_path / name

    whole = train("whole")
    assert broken.heard == ["opened", "validation", "close"]
    validate = fit._Run.validate

    def validate_and_die(self: Any, **named: Any) -> None:
        validate(self, **named)
        if self.state.progress.step == 2:
            raise Killed

    monkeypatch.setattr(fit._Run, "validate", validate_and_die)
    with pytest.raises(Killed):
        train("run")
    monkeypatch.setattr(fit._Run, "validate", validate)
    stored = checkpoint.read(tmp_path / "run" / "run_checkpoint.pt").content["train_state"]
    assert (stored["step"], stored["steps_in_epoch"]) == (2, 2), (
        "the epoch has ended, and no checkpoint knows it"
    )
    train("run", "--resume", "auto")
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert [row["kind"] for row in rows_of(whole / "metrics.csv")] == [
        *("valid", "train_steps", "train_steps", "train", "valid"),
        *("train_steps", "train_steps", "train", "valid", "final", "final"),
    ]
    log = (whole / "train.log").read_text()
    assert f"will write {whole / 'metrics.csv'}: the records as a table" in log
    assert log.count("the logger broken failed") == 1
