"""What evaluate.py does for people who look: intervals, the comparison of two models, the page."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from losses import Prediction
from model_utils.metrics import Metrics
from model_utils.model_loader import LoadedModel
from model_utils.report import results, tables, writing
from model_utils.report.collected import Collected
from model_utils.report.writing import Subject
from model_utils.run.evaluation import OnBatch
from model_utils.runtime import dtype_name, log
from model_utils.settings.options import EvaluateOptions, ReportOptions


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The model that another one is compared with, judged.

    Attributes:
        total: its errors on all structures.
        collected: its errors structure by structure.
        data: the structures, as it takes them.
    """

    total: Metrics
    collected: Collected
    data: Dataset

    def refuse_others(self, data: Dataset) -> None:
        """Raise InputError unless another model takes the same structures."""
        results.refuse_other_structures(data, self.data)


def refuse_without_libraries(options: ReportOptions) -> None:
    """Raise InputError where the page needs a library that is not installed,
    before anything slow begins.
    """
    if options.report is not None:
        writing.require_libraries(structures=options.worst > 0)


def options_of_baseline(options: EvaluateOptions) -> EvaluateOptions:
    """Settings that judge the model of --compare_with on the structures of the other one."""
    baseline = options.reporting.compare_with
    assert baseline is not None
    return replace(
        options,
        input_model=(baseline,),
        atom_energies=False,
        input_json=None,
        head=options.reporting.compare_head or options.head,
        output_xyz=None,
        output_table=None,
    )


def collected_of(options: ReportOptions, data: Dataset) -> Collected | None:
    """What sees the batches of an evaluation for intervals, comparison and page; None
    where none is asked for.
    """
    if options.report is None and options.compare_with is None:
        return None
    has_page = options.report is not None
    return Collected(data, points=has_page, worst=options.worst if has_page else 0)


def collected_without_points(data: Dataset) -> Collected:
    """What sees the batches of a baseline: its errors alone."""
    return Collected(data, points=False)


def seen_by(*observers: OnBatch | None) -> OnBatch:
    """Several observers, of which some may be absent, as one that sees every batch."""

    def all_of_them(batch: Batch, prediction: Prediction) -> None:
        for observer in observers:
            if observer is not None:
                observer(batch, prediction)

    return all_of_them


def extended(
    options: EvaluateOptions,
    content: Mapping[str, Any],
    new: tuple[Metrics, Collected],
    baseline: Baseline | None,
) -> dict[str, Any]:
    """What --output_json holds, with groups, intervals and the comparison, which is printed."""
    draws = options.reporting.draws
    seed = options.reporting.draws_seed
    whole = results.with_groups(content, new[1], draws, seed)
    if baseline is not None:
        whole["compare_with"] = str(options.reporting.compare_with)
        whole |= results.compared(new, (baseline.total, baseline.collected), draws, seed)
        for line in comparison_lines(whole):
            log.info("%s", line)
    return whole


def comparison_lines(content: Mapping[str, Any]) -> list[str]:
    """The comparison as lines of the log."""
    table = tables.comparison(content)
    cells = [list(table.heads), *(list(row) for row in table.rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(table.heads))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def subject(
    options: EvaluateOptions, loaded: LoadedModel, dtype: torch.dtype, device: torch.device
) -> Subject:
    """What the page says of the model that was judged and of the data."""
    return Subject(
        models=options.input_model,
        weights=f"{loaded.file.weights}, {loaded.file.when()}",
        model_json_hash=loaded.description.hash(),
        computed=f"{dtype_name(dtype)} on {device}",
        data=tuple(path for _, path in options.files()),
        baseline=options.reporting.compare_with,
    )


def page(
    options: EvaluateOptions,
    subject: Subject,
    content: Mapping[str, Any],
    collected: Collected,
    data: Dataset,
) -> str | None:
    """The page as HTML; None where none is asked for."""
    if options.reporting.report is None:
        return None
    return writing.page(subject, content, collected, data)
