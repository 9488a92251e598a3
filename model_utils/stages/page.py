"""The page of a pipeline: stages, errors of both models, learning curves,
what the candidates are.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataloader import durable, input_files
from dataloader.limits import JSON_BYTES
from model_utils.errors import InputError
from model_utils.files.run_names import METRICS
from model_utils.report import curves, figures, records, tables
from model_utils.report.page import Image, Part, Section, rendered
from model_utils.report.tables import Table
from model_utils.runtime import log
from model_utils.stages import summary
from model_utils.stages.place import Place
from model_utils.stages.planning import Plan
from model_utils.stages.records import Record

MOST_ROWS = 200  # candidates that the page shows; the file has all
CURVES = ("loss", "forces_rmse")


def write(plan: Plan, kept: Mapping[str, Record]) -> None:
    """Write the page; where a library is missing or something cannot be shown,
    that is a line of the log.
    """
    place = plan.place
    content = summary.content_of(plan, kept)
    try:
        text = rendered(
            title=f"Pipeline {place.folder.name}",
            facts=_facts(plan, content),
            sections=list(_sections(place, content, kept)),
            viewer=None,
            worst=None,
        )
        durable.write_text(place.page, text)
    except (InputError, OSError) as error:
        log.warning("warning: no report page: %s", error)


def _facts(plan: Plan, content: Mapping[str, Any]) -> Table:
    model = content["model"]
    rows = [
        ["begun with", str(plan.options.input_model)],
        ["relaxed and judged by", "no model" if model is None else f"the {model['is']} model"],
        ["folder", str(plan.place.folder)],
        [
            "versions",
            ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        ],
    ]
    return Table(heads=[], rows=rows, text_columns=2)


def _sections(
    place: Place, content: Mapping[str, Any], kept: Mapping[str, Record]
) -> Iterator[Section]:
    yield Section(title="Stages", parts=[Part(tables=[_stages(kept)])])
    yield from _learned(place)
    yield from _compared(place, content["metrics"])
    yield from _judged(content["generation_eval"])
    yield from _candidates(place.table)


def _stages(kept: Mapping[str, Record]) -> Table:
    rows = [
        [
            name,
            record.state,
            record.error or "",
            f"{record.seconds:.1f}",
            str(record.starts),
            record.key[:12],
        ]
        for name, record in kept.items()
    ]
    return Table(
        heads=["stage", "state", "why", "seconds", "starts", "key"], rows=rows, text_columns=3
    )


def _learned(place: Place) -> Iterator[Section]:
    path = place.finetuned_model.parent / METRICS
    if not path.exists():
        return
    try:
        run = curves.opened(path, "finetune")
        metrics = [name for name in CURVES if name in records.metrics_in(run.records)]
        figure = curves.drawn([run], metrics, smooth=1, by="epoch", title=None)
        image = Image(text="learning curves", png=figures.as_png(figure, dpi=90))
    except InputError as error:
        yield Section(title="The fine-tuning", parts=[], notes=[f"No curves: {error}"])
        return
    yield Section(title="The fine-tuning", parts=[Part(images=[image])])


def _compared(place: Place, metrics: Mapping[str, Any] | None) -> Iterator[Section]:
    title = "Baseline and fine-tuned model on the same structures"
    if not metrics:
        return
    if "error" in metrics:
        yield Section(title=title, parts=[], notes=[str(metrics["error"])])
    elif {"delta", "p_values", "delta_intervals"} <= set(metrics):
        note = (
            "Intervals of delta and p-values of a paired test, structure by structure; see "
            "evaluation/metrics.json."
        )
        yield Section(title=title, parts=[Part(tables=[tables.comparison(metrics)])], notes=[note])


def _judged(judged: Mapping[str, Any] | None) -> Iterator[Section]:
    title = "The candidates"
    if not judged:
        return
    if "error" in judged:
        yield Section(title=title, parts=[], notes=[str(judged["error"])])
        return
    metrics = judged.get("metrics")
    rows = (
        [[name, _shown(value)] for name, value in metrics.items()]
        if isinstance(metrics, Mapping)
        else []
    )
    note = (
        f"{judged.get('count')} candidates, "
        f"{'relaxed' if judged.get('relaxed') else 'as they were generated'}."
    )
    yield Section(
        title=title,
        parts=[Part(tables=[Table(heads=["metric", "value"], rows=rows)])],
        notes=[note],
    )


def _shown(value: object) -> str:
    """A value of a metric, whatever form it has."""
    if isinstance(value, Mapping):
        value = value.get("value", json.dumps(value, default=str))
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _candidates(path: Path) -> Iterator[Section]:
    """A row for each candidate, from the table that judge.py wrote."""
    try:
        rows = list(csv.reader(io.StringIO(input_files.read_text(path, JSON_BYTES))))
    except (OSError, ValueError, csv.Error):
        return
    if len(rows) < 2:
        return
    heads = rows[0]
    shown = [row for row in rows[1 : MOST_ROWS + 1] if len(row) == len(heads)]
    notes = (
        [f"The first {MOST_ROWS} of {len(rows) - 1}; {path.name} has all."]
        if len(rows) > MOST_ROWS + 1
        else []
    )
    table = Table(heads=heads, rows=shown, text_columns=2, notes=notes)
    yield Section(title="Each candidate", parts=[Part(tables=[table])])
