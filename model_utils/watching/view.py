"""A status as lines for a terminal of any width."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dataloader.quantities import QUANTITIES
from dataloader.streams import printable
from model_utils.metrics import error_names
from model_utils.run.log_lines import milli
from model_utils.watching.status import Status, duration, number
from model_utils.watching.tail import Record

BAR = 34  # columns, so that a terminal of 40 holds the share too


def view(statuses: Sequence[tuple[str, Status]]) -> RenderableType:
    """All runs below one another, each under its name."""
    parts = [part for name, status in statuses for part in (*_run(name, status), Text(""))]
    return Group(*parts[:-1])


def _run(name: str, status: Status) -> Iterator[RenderableType]:
    yield Text.assemble((printable(name), "bold"), "  ", _state(status))
    if status.share_done is not None:
        yield Text(_bar(status.share_done))
    yield Text(_progress(status))
    for warning in status.warnings:  # a low terminal cuts off what is last
        yield Text(f"warning: {printable(warning)}", style="yellow")
    errors = _errors(status)
    if errors is not None:
        yield errors


def _state(status: Status) -> str:
    if status.ending is not None:
        return f"ended: {printable(status.ending)}"
    if status.silent is None:
        return "no record yet"
    return f"last record {duration(status.silent)} ago"


def _bar(share: float) -> str:
    """Done and to do, in one line; no more than is done is filled."""
    filled = int(BAR * share)
    return f"{'█' * filled}{'░' * (BAR - filled)} {int(100 * share)} %"


def _progress(status: Status) -> str:
    """``epoch 6 of 100, step 18, lr 0.01, 1620 atoms/s, 0.3 s an epoch,
    gradient norm 15; 28 s left``.
    """
    parts = [
        f"epoch {_of(status.epoch, status.plan.epochs)}",
        f"step {_of(status.step, status.plan.max_steps)}",
    ]
    trained = status.trained or {}
    if (rate := number(trained, "lr")) is not None:
        parts.append(f"lr {rate:.3g}")
    if status.atoms_per_second is not None:
        parts.append(f"{status.atoms_per_second:.3g} atoms/s")
    if status.seconds_per_epoch is not None:
        parts.append(f"{status.seconds_per_epoch:.3g} s an epoch")
    if (norm := number(trained, "gradient_norm")) is not None:
        parts.append(f"gradient norm {norm:.3g}")
    left = "" if status.seconds_left is None else f"; {duration(status.seconds_left)} left"
    return ", ".join(parts) + left


def _of(done: int, total: int | None) -> str:
    return str(done) if total is None else f"{done} of {total}"


def _errors(status: Status) -> Table | None:
    """Losses and errors of the latest training record, the latest validation, and the best."""
    rows = {"train": status.trained, "valid": status.validated, "best": status.best}
    shown = {name: record for name, record in rows.items() if record is not None}
    if not shown:
        return None
    columns = dict(_columns(list(shown.values())))
    table = Table(box=None, pad_edge=False)
    for heading in ("", "epoch", "loss", *columns):
        table.add_column(heading, justify="right" if heading else "left")
    for name, record in shown.items():
        loss = number(record, "loss")
        cells = [milli(number(record, error)) for error in columns.values()]
        epoch = number(record, "epoch")
        table.add_row(
            name,
            "-" if epoch is None else f"{epoch:.0f}",
            "-" if loss is None else f"{loss:.6g}",
            *cells,
        )
    return table


def _columns(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Headings and names of the RMSE that one of the records has."""
    for quantity in QUANTITIES.values():
        error = error_names(quantity)["rmse"]
        if any(number(record, error) is not None for record in records):
            yield f"{quantity.symbol} rmse m{quantity.error_unit}", error
