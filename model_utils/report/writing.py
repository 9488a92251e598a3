"""What a report shows, put together from an evaluation: facts, errors,
curves, groups, structures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.quantities import FORCES, QUANTITIES, Quantity
from model_utils.files.run_names import METRICS
from model_utils.metrics import error_names
from model_utils.report import curves, figures, records, tables
from model_utils.report.collected import Collected, Worst
from model_utils.report.libraries import needed
from model_utils.report.page import Image, Part, Section, rendered
from model_utils.report.statistics import FEWEST
from model_utils.report.tables import Table
from model_utils.report.viewer import MOST_ATOMS, Drawn, Viewer, viewer
from model_utils.run.log_lines import milli
from model_utils.runtime import log

LIBRARIES = ("matplotlib", "jinja2", "chemiscope")
KINDS = {  # of groups: what the page calls them
    "by_element": ("Forces by element", "element"),
    "by_config_type": ("By config_type", "config_type"),
    "by_head": ("By head", "head"),
    "by_size": ("By size", "atoms"),
    "by_force_magnitude": ("Forces by length of the label", "label"),
}
MOST_BARS = 40
LEARNING_METRICS = ("loss", "energy_rmse_per_atom", "forces_rmse")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a report is of.

    Attributes:
        models: paths of the weights file, or of those of a committee.
        weights: which of its weights, from when.
        model_json_hash: of the network.
        computed: precision and device.
        data: files of the structures.
        baseline: path of the model that it is compared with; None without one.
    """

    models: tuple[Path, ...]
    weights: str
    model_json_hash: str
    computed: str
    data: tuple[Path, ...]
    baseline: Path | None


def require_libraries(*, structures: bool) -> None:
    """Raise InputError where a library that the page needs is not installed,
    before anything slow begins.
    """
    names = LIBRARIES if structures else LIBRARIES[:2]
    needed(*names, what="--report")


def page(subject: Subject, content: Mapping[str, Any], collected: Collected, data: Dataset) -> str:
    """The whole page.

    Args:
        subject: what was judged on what.
        content: the numbers, as --output_json has them with groups and intervals.
        collected: of the same evaluation.
        data: the structures.
    """
    sections = [
        _errors(content),
        *_compared(content),
        *_committee(content),
        *_checked(content),
        *_learned(subject.models[0]),
        *_parity(collected),
        _groups(content),
    ]
    worst = collected.worst()
    return rendered(
        title=f"Errors of {_named(subject)}",
        facts=_facts(subject, content),
        sections=sections,
        viewer=_viewer(worst, data),
        worst=_worst_table(worst, data),
    )


def _facts(subject: Subject, content: Mapping[str, Any]) -> Table:
    rows = [
        ["model" if len(subject.models) == 1 else "committee", ", ".join(map(str, subject.models))],
        ["weights", subject.weights],
        ["model.json hash", subject.model_json_hash],
        ["computed in", subject.computed],
        ["data", ", ".join(map(str, subject.data))],
        ["structures, atoms", f"{content['n_configs']}, {content['n_atoms']}"],
    ]
    if subject.baseline is not None:
        rows.append(["compared with", str(subject.baseline)])
    return Table(heads=[], rows=rows, text_columns=2)


def _errors(content: Mapping[str, Any]) -> Section:
    intervals = content["intervals"]
    note = (
        f"Intervals: {intervals['draws']} sets of structures drawn with replacement (studentised "
        "bootstrap). They hold for structures that are independent of one another; of frames of "
        f"one trajectory they are too narrow. None is given of fewer than {FEWEST} structures, or "
        "where a few make up most of the error. Of some tens of structures that differ by far in "
        "their errors they are a little narrow: nine in ten hold the true one."
    )
    parts = [Part(tables=[tables.total(content)])]
    if len(content["by_source"]) > 1:
        parts.append(Part(title="By source", tables=[tables.by_source(content)]))
    return Section(title="Errors", parts=parts, notes=[note])


def _compared(content: Mapping[str, Any]) -> Iterator[Section]:
    if "delta" not in content:
        return
    note = (
        "Both models on the same structures; delta is new minus baseline. p: how often an exchange "
        "of the two models' results, at random in each structure, gives a delta as large. Told "
        f"apart: p below {tables.SIGNIFICANT:g}; of many comparisons some fall below it by chance."
    )
    yield Section(
        title="Against the baseline",
        parts=[Part(tables=[tables.comparison(content)])],
        notes=[note],
    )


def _named(subject: Subject) -> str:
    """The model, or how many there are."""
    if len(subject.models) == 1:
        return subject.models[0].name
    return f"a committee of {len(subject.models)}"


def _committee(content: Mapping[str, Any]) -> Iterator[Section]:
    """How the errors of a committee compare with its spread, where several models were judged."""
    if "committee" not in content:
        return
    note = (
        "Spread: the standard deviation over the models (divided by their number). An error over "
        "spread above 1 says that the models agree more than they are right; a rank correlation "
        "near 1, that large spreads are where the large errors are."
    )
    yield Section(
        title="Committee",
        parts=[Part(tables=[tables.committee(content["committee"])])],
        notes=[note],
    )


def _checked(content: Mapping[str, Any]) -> Iterator[Section]:
    """The checks of --physics, where they were made: rows of plain values with the same names."""
    checks = (content.get("physics") or {}).get("checks")
    if isinstance(checks, Mapping):
        checks = [
            {"check": name, **values}
            for name, values in checks.items()
            if isinstance(values, Mapping)
        ]
    if not checks:
        return
    heads = list(dict.fromkeys(name for check in checks for name in check))
    rows = [[_shown(check.get(head)) for head in heads] for check in checks]
    yield Section(title="Physics", parts=[Part(tables=[Table(heads=heads, rows=rows)])])


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "pass" if value else "fail"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _learned(model: Path) -> Iterator[Section]:
    """Curves of the run whose metrics.jsonl lies beside the model."""
    path = model.parent / METRICS
    if not path.exists():
        return
    try:
        run = curves.opened(path, model.parent.name)
    except InputError as error:  # the errors of the model do not depend on it
        log.warning("warning: the report has no learning curves: %s", error)
        return
    metrics = [name for name in LEARNING_METRICS if name in records.metrics_in(run.records)]
    figure = curves.drawn([run], metrics, smooth=1, by="epoch", title=None)
    image = Image(text="learning curves", png=figures.as_png(figure, dpi=90))
    yield Section(title="The run", parts=[Part(images=[image])], notes=[f"From {path}."])


def _parity(collected: Collected) -> Iterator[Section]:
    for name, quantity in QUANTITIES.items():
        points = collected.points[name]
        labels = points.labels()
        if len(labels) == 0:
            continue
        predictions = points.predictions()
        notes = [f"{len(labels)} {_entries(quantity)}."]
        if points.every > 1:
            notes = [f"{len(labels)} {_entries(quantity)}, of every {points.every}th structure."]
        image = Image(
            text=f"{name}: predictions and errors over labels, shares of errors below a size",
            png=figures.parity(quantity, labels, predictions),
        )
        yield Section(title=name.capitalize(), parts=[Part(images=[image])], notes=notes)


def _entries(quantity: Quantity) -> str:
    if quantity.over_atoms:
        return "structures, divided by their numbers of atoms"
    return "components" if quantity.components else "numbers"


def _groups(content: Mapping[str, Any]) -> Section:
    parts = []
    notes = []
    for kind, (title, what) in KINDS.items():
        names = list(content.get(kind, {}))
        if len(names) == 1:
            notes.append(f"{title}: there is only {names[0]}.")
        elif names:
            images = list(_bars(content, kind))
            parts.append(
                Part(title=title, images=images, tables=[tables.of_groups(content, kind, what)])
            )
    return Section(title="Where the errors are", parts=parts, notes=notes)


def _bars(content: Mapping[str, Any], kind: str) -> Iterator[Image]:
    """Force errors of the groups, where there are several; the largest of very many."""
    metric = error_names(FORCES)["rmse"]
    errors = {
        name: errors[metric]
        for name, errors in content[kind].items()
        if errors.get(metric) is not None
    }
    if len(errors) < 2:
        return
    if len(errors) > MOST_BARS:
        largest = sorted(errors, key=lambda name: -errors[name])[:MOST_BARS]
        errors = {name: errors[name] for name in largest}
    intervals = {name: found.get(metric) for name, found in content["intervals"][kind].items()}
    png = figures.groups(errors, intervals, metric, FORCES.unit)
    yield Image(text=f"{metric} {kind.replace('_', ' ')}", png=png)


def _drawable(worst: list[Worst]) -> list[Worst]:
    return [one for one in worst if one.judged.n_atoms <= MOST_ATOMS]


def _viewer(worst: list[Worst], data: Dataset) -> Viewer | None:
    drawable = _drawable(worst)
    if not drawable:
        return None
    return viewer(
        [
            Drawn(
                structure=data.structure(one.judged.index),
                forces_error=one.forces_error,
                errors={f"{name} error": float(error) for name, error in one.judged.errors.items()},
            )
            for one in drawable
        ]
    )


def _worst_table(worst: list[Worst], data: Dataset) -> Table:
    names = [name for name in QUANTITIES if any(name in one.judged.errors for one in worst)]
    heads = ["viewer", "structure", "atoms"]
    for name in names:
        heads.append(f"{name} rmse\n(m{QUANTITIES[name].error_unit})")
    if any(one.forces_error is not None for one in worst):
        heads.append("largest force\nerror (meV/Å)")
    rows = []
    for rank, one in enumerate(_drawable(worst)):
        row = [str(rank), data.name(one.judged.index), str(one.judged.n_atoms)]
        row += [milli(one.judged.errors.get(name)) for name in names]
        if one.forces_error is not None:
            row.append(milli(float(np.linalg.norm(one.forces_error, axis=1).max())))
        rows.append(row)
    left_out = len(worst) - len(rows)
    notes = (
        [f"{left_out} more have above {MOST_ATOMS} atoms and are not drawn."] if left_out else []
    )
    return Table(heads=heads, rows=rows, text_columns=2, notes=notes)
