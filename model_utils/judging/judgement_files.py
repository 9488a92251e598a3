"""The files of a judgement: relaxed crystals, metrics by structure and by
model, a summary, a table.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import write as write_frames
from scipy.stats import spearmanr

from dataloader import durable, input_files, plain_json
from dataloader.errors import InputError
from model_utils.files.csv_cells import csv_text
from model_utils.judging import matching
from model_utils.judging.candidates import inputs_of
from model_utils.judging.judged import Judged
from model_utils.judging.judgement import JudgedByModel
from model_utils.judging.metrics import METRICS, TRUSTED, Value
from model_utils.report.statistics import CONFIDENCE
from model_utils.runtime import log
from model_utils.settings.options import JudgeOptions
from model_utils.simulation.relaxed_frames import CONVERGED, ENERGY, ENERGY_OF, HOLE_MARK, mark_of

# of the model, and of the one that it is compared with
RELAXED = ("relaxed.extxyz", "relaxed_compared.extxyz")
METRICS_FILE = "metrics.json"
SUMMARY = "metrics_summary.json"
TABLE = "structures.csv"
LARGEST = 2**28  # bytes of a summary
COLUMNS = (
    "number",
    "id",
    "formula",
    "n_atoms",
    "successful",
    "converged",
    "steps",
    "energy",
    "fmax",
    "energy_above_hull_per_atom",
    "self_consistent_energy_above_hull",
    "stable",
    "unique",
    "first_of_equals",
    "novel",
    "novel_unique_stable",
    "rmsd_from_relaxation",
    "displacement_in_relaxation",
    "structure_validity",
    "comp_validity",
    "trusted",
    "left_out_of_trusted",
    "reason",
)
COMPARED = "compared_"  # before the columns of the other model


def read_summary(path: Path) -> dict[str, Any]:
    """The summary that a judgement wrote.

    Args:
        path: of ``metrics_summary.json``.

    Raises:
        InputError: it is not there, damaged, or something else.
    """
    try:
        content = plain_json.loads(input_files.read_bytes(path, LARGEST), _no_number)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; judge.py writes it"
        ) from None
    except ValueError as error:  # of bytes that are no text, too
        raise InputError(f"{path} is damaged: {error}; judge.py writes it anew") from None
    metrics = content.get("metrics") if isinstance(content, dict) else None
    if not isinstance(metrics, dict) or not isinstance(content.get("count"), int):
        raise InputError(
            f"{path} is no summary of a judgement (count and metrics); judge.py writes it anew"
        )
    assert isinstance(content, dict)
    return content


def say_damaged(folder: Path) -> None:
    """Warn of a summary that cannot be read; it is written anew from the
    relaxations that are kept.
    """
    if (folder / SUMMARY).exists():
        try:
            read_summary(folder / SUMMARY)
        except InputError as error:
            log.warning("warning: %s", error)


def write(folder: Path, options: JudgeOptions, models: Sequence[JudgedByModel]) -> None:
    """Write everything that one or two models say of the same candidates;
    the summary comes last.
    """
    for name, model in zip(RELAXED, models, strict=False):
        durable.write_text(folder / name, _frames(model))
    for name in RELAXED[len(models) :]:
        (folder / name).unlink(missing_ok=True)
    durable.write_text(folder / METRICS_FILE, _json(_by_structure_and_model(options, models)))
    durable.write_text(folder / TABLE, _table(models))
    durable.write_text(folder / SUMMARY, _json(summary(options, models)))
    for line in _lines(models):
        log.info("%s", line)
    log.info(
        "wrote %s: %s", folder, ", ".join((*RELAXED[: len(models)], METRICS_FILE, SUMMARY, TABLE))
    )


def summary(options: JudgeOptions, models: Sequence[JudgedByModel]) -> dict[str, Any]:
    """What ``metrics_summary.json`` holds."""
    return {
        "count": len(models[0].candidates),
        "relaxed": options.relax,
        **_of_model(models[0]),
        "settings": _settings(options),
        **(
            {"compared": _of_model(models[1]), "comparison": _comparison(*models)}
            if len(models) > 1
            else {}
        ),
    }


def _of_model(model: JudgedByModel) -> dict[str, Any]:
    known = model.references
    return {
        "metrics": {name: value.as_plain() for name, value in model.values.items()},
        "trusted": {"count": model.n_trusted, "left_out": model.left_out},
        "model": model.as_plain(),
        "references": None if known is None else known.as_plain(model.missing),
        **(
            {"no_references": model.values["frac_stable_structures"].reason}
            if known is None
            else {}
        ),
    }


def _settings(options: JudgeOptions) -> dict[str, Any]:
    """What decides the numbers besides candidates, models and references."""
    return {
        "structure_matcher": options.structure_matcher,
        "stability_threshold": options.stability_threshold,
        "hole_below": options.hole_below,
        "fmax": options.minimizing.fmax,
        "max_steps": options.minimizing.max_steps,
        "confidence": CONFIDENCE,
        "draws": options.draws,
        "draws_seed": options.draws_seed,
    }


def _comparison(first: JudgedByModel, second: JudgedByModel) -> dict[str, Any]:
    """The model against the one that it is compared with, on the same candidates."""
    delta = {}
    for name, value in first.values.items():
        other = second.values[name].value
        delta[name] = None if value.value is None or other is None else value.value - other
    pairs = [
        (a, b)
        for a, b in zip(first.candidates, second.candidates, strict=True)
        if a.energy_above_hull is not None and b.energy_above_hull is not None
    ]
    shifts = [
        matching.rmsd(a.after, b.after)
        for a, b in zip(first.candidates, second.candidates, strict=True)
        if a.after is not None and b.after is not None
    ]
    return {
        "delta": delta,
        "rank_correlation_of_energy_above_hull": _rank_correlation(pairs),
        "avg_rmsd_between_relaxed": sum(shifts) / len(shifts) if shifts else None,
        "count": len(pairs),
    }


def _rank_correlation(pairs: Sequence[tuple[Judged, Judged]]) -> float | None:
    """Spearman's, of energies above the hull by two models; None of fewer than
    three, or of equal ones.
    """
    columns = [
        [judged.energy_above_hull for judged in column] for column in zip(*pairs, strict=True)
    ]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in columns):
        return None
    return float(spearmanr(columns[0], columns[1]).statistic)


def _by_structure_and_model(
    options: JudgeOptions, models: Sequence[JudgedByModel]
) -> dict[str, Any]:
    return {
        "descriptions": {name: metric.description for name, metric in METRICS.items()},
        "trusted": (
            f"names with {TRUSTED} are of the candidates that converged and are no "
            "holes of the model"
        ),
        "relaxed": options.relax,
        "models": [
            {**_of_model(model), "structures": [judged.as_plain() for judged in model.candidates]}
            for model in models
        ],
    }


def _frames(model: JudgedByModel) -> str:
    """Crystals as they were judged, as extended XYZ; those that are no
    structures at all have no frame.
    """
    mark = mark_of(model.calculator)
    frames = [_frame(judged, mark) for judged in model.candidates if judged.before is not None]
    text = io.StringIO()
    if frames:
        write_frames(text, frames, format="extxyz")
    return text.getvalue()


def _frame(judged: Judged, mark: str) -> Atoms:
    """A crystal with what is known of it under names that no reader takes for labels.

    Args:
        judged: the candidate.
        mark: of what computed its energy.
    """
    last = judged.before if judged.after is None else judged.after
    assert last is not None
    atoms = Atoms(last.numbers, last.positions, cell=last.cell, pbc=last.pbc)
    atoms.info["id"] = judged.identifier
    atoms.info |= judged.origin | inputs_of(last)
    atoms.info[CONVERGED] = judged.converged
    atoms.info["steps"] = judged.steps
    if judged.energy is not None:
        atoms.info[ENERGY] = judged.energy
        atoms.info[ENERGY_OF] = mark
    if judged.is_hole:
        atoms.info[HOLE_MARK] = True
    if judged.energy_above_hull is not None:
        atoms.info["energy_above_hull"] = judged.energy_above_hull
    if judged.reason:
        atoms.info["reason"] = judged.reason
    return atoms


def _table(models: Sequence[JudgedByModel]) -> str:
    """A row for each candidate; columns of the other model come after."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    heads = [*COLUMNS, *(f"{COMPARED}{name}" for name in COLUMNS[4:] if len(models) > 1)]
    table.writerow(heads)
    for rows in zip(*(model.candidates for model in models), strict=True):
        cells = [
            _cells(judged.as_plain(), COLUMNS if k == 0 else COLUMNS[4:])
            for k, judged in enumerate(rows)
        ]
        table.writerow([cell for of_model in cells for cell in of_model])
    return text.getvalue()


def _cells(plain: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [
        csv_text(plain[name]) if isinstance(plain[name], str) else plain[name] for name in names
    ]


def _lines(models: Sequence[JudgedByModel]) -> list[str]:
    """The metrics for the log."""
    lines = []
    for model in models:
        lines.append(
            f"{', '.join(str(path) for path in model.paths)}: {len(model.candidates)} candidates"
        )
        for name in METRICS:
            lines.append(
                f"  {name}: {_said(model.values[name])}; trusted "
                f"{_said(model.values[f'{name}{TRUSTED}'])}"
            )
        for reason, count in model.left_out.items():
            lines.append(f"  not trusted: {count} × {reason}")
    return lines


def _said(value: Value) -> str:
    """A metric in words."""
    if value.value is None:
        return f"not known ({value.reason})"
    if value.hits is None:
        return f"{value.value:.4g} (mean of {value.count})"
    return f"{value.value:.3f} ({value.hits} of {value.count})"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of a summary")
