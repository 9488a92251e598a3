"""What ``metadata.py check`` does: opens data, lets ``data_check`` judge them, prints and writes the findings."""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import data_check, parallel
from dataloader.data_check import Finding, Looked, Set
from dataloader.errors import InputError
from dataloader.labels import TO_EVALUATE
from dataloader.progress import Progress
from dataloader.sources import Source, open_sources
from dataloader.structure import Structure
from model_utils.files import durable
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.run.open_data import Role, filters_of, specs_of
from model_utils.runtime import log, start_log
from model_utils.settings.options import CheckOptions

ROWS_AT_ONCE = 1000
PAIRED = 600  # structures that are compared with one another
NAMES: dict[Role, str] = {"train": "training", "val": "validation", "test": "test"}
DEFAULTS = (128, 3, 2)  # channels, max_ell, layers where no model.json is given


def check(options: CheckOptions) -> None:
    """Print a table of findings and write them as JSON.

    Raises:
        InputError: at the end, where there are errors among them.
    """
    start_log(None)
    if options.output_json is not None and options.output_json.exists() and not options.overwrite:
        raise InputError(f"--output_json {options.output_json} is there already; give another name or --overwrite")
    model = model_json.read(options.input_json) if options.input_json is not None else None
    r_max = options.r_max or (model.r_max if model is not None else 5.0)
    findings: list[Finding] = []
    sets, isolated = [], []
    for role, name in NAMES.items():
        sources = _opened(options, role, name, findings)
        isolated += [atom for source in sources for atom in source.isolated_atoms]
        if sum(map(len, sources)):
            sets.append(_looked_at(sources, name, options, r_max))
    if sets:
        findings += _judged(sets, model, isolated, options)
    _print(findings)
    if options.output_json is not None:
        content = {"findings": [dataclasses.asdict(finding) for finding in findings], "looked_at": _sizes(sets)}
        try:
            durable.write_text(options.output_json, json.dumps(content, indent=1, default=float))
        except OSError as error:
            raise InputError(f"cannot write --output_json {options.output_json}: {error.strerror}") from None
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise InputError(f"{len(errors)} error(s) found in the data, the first: {errors[0].data}: {errors[0].text}")


def _sizes(sets: Sequence[Set]) -> dict[str, list[int]]:
    return {data.name: [len(data), data.total] for data in sets}


def _opened(options: CheckOptions, role: Role, name: str, findings: list[Finding]) -> list[Source]:
    """The sources of one role; what cannot be opened is a finding."""
    found = []
    for spec in specs_of(options, role):
        try:
            filters = filters_of(options, keep_charges=True)
            (source,) = open_sources([spec], needs=TO_EVALUATE, max_dropped=1.0, filters=filters)
        except InputError as error:
            findings.append(Finding(level="error", check="reading", text=str(error), data=name))
            continue
        if source.dropped:
            text = f"{source.path}: {source.dropped.total()} records cannot be used: {source.drop_report()}"  # type: ignore[attr-defined]
            findings.append(Finding(level="error", check="reading", text=text, data=name))
        found.append(source)
    return found


class _Slice(NamedTuple):
    places: NDArray[np.int64]  # (n, 2): source, structure


def _looked_at(sources: Sequence[Source], name: str, options: CheckOptions, r_max: float) -> Set:
    """Look at all structures of a set, or at a sample of them."""
    total = sum(map(len, sources))
    places = np.concatenate([np.stack([np.full(len(s), n), np.arange(len(s))], axis=1) for n, s in enumerate(sources)])
    if options.samples < total:
        chosen = np.random.default_rng([options.seed, 0]).choice(total, options.samples, replace=False, shuffle=False)
        places = places[np.sort(chosen)]
        log.info("%s: %d of %d structures are looked at (--samples, seed %d)", name, len(places), total, options.seed)
    slices = [_Slice(places[begin : begin + ROWS_AT_ONCE]) for begin in range(0, len(places), ROWS_AT_ONCE)]
    parts: dict[int, tuple[list[Looked], NDArray[np.uint16]]] = {}
    look = partial(_look, sources=sources, r_max=r_max, max_neighbors=options.max_neighbors)
    with Progress(f"check {name}", len(places)) as bar:
        for number, part in parallel.in_children(look, slices):
            parts[number] = part
            bar.update(len(part[0]))
    rows = [row for number in sorted(parts) for row in parts[number][0]]
    columns = {
        column: np.array([row[i] for row in rows], dtype=np.uint64 if column == "fingerprint" else None)
        for i, column in enumerate(Looked._fields)
    }
    paired = [sources[int(s)].structure(int(i)) for s, i in places[: 4 * PAIRED : 1][:PAIRED]]
    return Set(
        name=name,
        total=total,
        names=lambda row: sources[int(places[row, 0])].identifier(int(places[row, 1])),
        looked=columns,
        counts=np.concatenate([parts[number][1] for number in sorted(parts)]),
        sampled=paired,
    )


def _look(
    part: _Slice, sources: Sequence[Source], r_max: float, max_neighbors: int
) -> tuple[list[Looked], NDArray[np.uint16]]:
    structures: list[Structure] = [sources[int(s)].structure(int(i)) for s, i in part.places]
    counts = np.stack([data_check.counts_of(structure) for structure in structures])
    return [data_check.look(structure, r_max, max_neighbors) for structure in structures], counts


def _judged(
    sets: Sequence[Set], model: ModelDescription | None, isolated: Sequence[Structure], options: CheckOptions
) -> list[Finding]:
    found: list[Finding] = []
    fits = [data_check.fit_energies(data) for data in sets]
    for data, fit in zip(sets, fits, strict=True):
        found += data_check.labels(data) + data_check.energies(data, fit) + data_check.energies_and_forces(data, fit)
        found += data_check.scales(data) + data_check.stress_sign(data) + data_check.geometry(data)
    for data in sets[1:]:
        found += data_check.against_other_set(data, sets[0], fits[0])
    for whose, references in _references(model, isolated):
        found += data_check.against_references(sets[0], fits[0], references, whose)
    found += data_check.elements(sets, model.atomic_numbers if model is not None else None)
    found += data_check.repeats(sets)
    channels, max_ell, layers = DEFAULTS if model is None else _size(model)
    found.append(data_check.memory(sets[0], options.batch_size or 10, channels, max_ell, layers))
    return found


def _references(model: ModelDescription | None, isolated: Sequence[Structure]) -> list[tuple[str, dict[int, float]]]:
    """E0s that are given: in the model.json, by isolated atoms."""
    given: list[tuple[str, dict[int, float]]] = []
    if model is not None:
        facts = model.facts()
        given.append(("model.json", dict(zip(facts.atomic_numbers, facts.atomic_energies[0], strict=True))))
    alone = {int(atom.atomic_numbers[0]): atom.energy for atom in isolated if atom.energy is not None}
    return [*given, ("the IsolatedAtom frames", alone)] if alone else given


def _size(model: ModelDescription) -> tuple[int, int, int]:
    channels = int(str(model.hidden_irreps).partition("x")[0])
    return channels, int(model.max_ell), int(model.num_interactions)


def _print(findings: Sequence[Finding]) -> None:
    """A table, errors first."""
    order = {"error": 0, "warning": 1, "note": 2}
    for finding in sorted(findings, key=lambda f: order[f.level]):
        keys = f" ({', '.join(finding.keys)})" if finding.keys else ""
        log.info("%-8s%-11s%-11s%s%s", finding.level, finding.data, finding.check, finding.text, keys)
    counts: dict[str, Any] = {level: sum(f.level == level for f in findings) for level in order}
    log.info("%d error(s), %d warning(s)", counts["error"], counts["warning"])
