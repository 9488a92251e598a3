"""What plot_loss.py does: records of runs to a figure and a table."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dataloader import durable
from dataloader.errors import InputError
from model_utils.errors import cannot_write
from model_utils.files.outputs import real
from model_utils.files.run_names import METRICS
from model_utils.report import curves
from model_utils.report.curves import RunRecords
from model_utils.report.figures import as_png, as_svg
from model_utils.runtime import log, start_log
from model_utils.settings.options.reporting import PlotLossOptions

ARTIFACTS = "artifacts"


def plot(options: PlotLossOptions) -> None:
    """Read the runs, draw their curves, write figure and table.

    Raises:
        InputError: a run has no records, a metric is in none, a file cannot be written, or
            matplotlib is missing.
    """
    start_log()
    _refuse_other_endings(options)
    paths = _all_records(options.run_dir)
    names = _names([path.parent for path in paths])
    runs = [curves.opened(path, name) for path, name in zip(paths, names, strict=True)]
    _say_what_is_averaged(runs, options)
    title = options.title or (names[0] if len(names) == 1 else None)
    figure = curves.drawn(runs, options.metric, smooth=options.smooth, by=options.by, title=title)
    table = curves.long_table(runs, options.metric, options.smooth)
    place = paths[0].parent / ARTIFACTS if len(paths) == 1 else Path()
    png = options.out_png or place / "loss_curve.png"
    _write("--out_png", png, lambda path: durable.write(path, as_png(figure, dpi=150)))
    _write(
        "--out_svg",
        options.out_svg or png.with_suffix(".svg"),
        lambda path: durable.write(path, as_svg(figure)),
    )
    beside = png.with_name("loss_long.csv") if options.out_png is None else png.with_suffix(".csv")
    csv = options.out_csv or beside
    _write("--out_csv", csv, lambda path: durable.write_text(path, table))


def _refuse_other_endings(options: PlotLossOptions) -> None:
    """Figures and tables replace what has their names: a model's file must not be one of them."""
    for flag, ending in (("out_png", ".png"), ("out_svg", ".svg"), ("out_csv", ".csv")):
        path: Path | None = getattr(options, flag)
        if path is not None and path.suffix != ending:
            raise InputError(
                f"--{flag} {path} does not end in {ending}, and a file of that "
                "name would be replaced"
            )


def _all_records(named: Sequence[Path]) -> list[Path]:
    """The metrics.jsonl of each run that is named, by folder or file, or lies in a
    folder of runs; each once.
    """
    paths: dict[Path, Path] = {}
    for name in named:
        for path in _records_of(name):
            paths.setdefault(real(path), path)
    return list(paths.values())


def _records_of(name: Path) -> list[Path]:
    if not name.is_dir():
        if name.exists():
            return [name]
        raise InputError(
            f"--run_dir {name} does not exist; name the folder of a run, or its metrics.jsonl"
        )
    for folder in (name, name / ARTIFACTS):
        if (folder / METRICS).exists():
            return [folder / METRICS]
    runs = sorted(folder / METRICS for folder in name.iterdir() if (folder / METRICS).exists())
    if not runs:
        raise InputError(
            f"--run_dir {name} holds no {METRICS}, nor does a folder in it: name the folder "
            "of a run, which has one after its first epoch"
        )
    return runs


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart."""
    parts = [real(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _say_what_is_averaged(runs: Sequence[RunRecords], options: PlotLossOptions) -> None:
    """One line where a curve is too short for the mean that was asked for."""
    for run in runs:
        for curve in run.curves(options.metric[0])[:1]:
            longest = max(int((curve.stage == stage).sum()) for stage in (1, 2))
            width = curves.window(options.smooth, longest)
            if width < options.smooth:
                log.info(
                    "%s: training is averaged over %d records and not %d, for a "
                    "stage has %d of them",
                    *(run.path, width, options.smooth, longest),
                )


def _write(flag: str, path: Path, write: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise cannot_write(f"{flag} {path}", error) from None
    log.info("wrote %s", path)
