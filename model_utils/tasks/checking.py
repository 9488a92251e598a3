"""What ``metadata.py check`` does: opens data, lets ``data_check`` judge them, prints
and writes the findings.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader import durable, parallel
from dataloader.data_check import energies, labels, looking, references, repeats, scales, work
from dataloader.data_check.looking import Finding, Level, Looked, Set
from dataloader.data_file import Source
from dataloader.errors import InputError
from dataloader.labels import TO_EVALUATE
from dataloader.portion import Portion
from dataloader.progress import ProgressBar
from dataloader.selection import Selection
from dataloader.sources import open_sources
from dataloader.structure import Structure
from model_utils.errors import cannot_write
from model_utils.files.apart import refuse_shared_places
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.ranks import joining
from model_utils.ranks.group import Group
from model_utils.run.data import chosen
from model_utils.run.data.open_data import filters_of, numbers_of, specs_of
from model_utils.run.data.shared_indexing import index_for_all
from model_utils.runtime import log, own_cores, start_log
from model_utils.settings.options import CheckOptions, Role
from model_utils.tasks import checked_energies

ROWS_AT_ONCE = 1000
PAIRED = 600  # structures that are compared with one another
NAMES: dict[Role, str] = {"train": "training", "val": "validation", "test": "test"}
DEFAULTS = (128, 3, 2)  # channels, max_ell, layers where no model.json is given
R_MAX = 5.0  # Å, likewise
BATCH_SIZE = 10  # structures, for the estimate of memory


def check(options: CheckOptions) -> None:
    """Print a table of findings and write them as JSON.

    Raises:
        InputError: at the end, where there are errors among them.
    """
    start_log()
    group = joining.group_of()
    group.connect(torch.device("cpu"))
    group.once(lambda: _refuse_existing(options))
    model = model_json.read(options.input_json) if options.input_json is not None else None
    findings, sets = _findings(options, model, group)
    if not group.rank.is_first:
        return
    _print(findings)
    if options.output_json is not None:
        _write(options.output_json, findings, sets)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise InputError(
            f"{len(errors)} error(s) found in the data, the first: "
            f"{errors[0].data}: {errors[0].text}"
        )


def _refuse_existing(options: CheckOptions) -> None:
    if options.output_json is not None and options.output_json.exists() and not options.overwrite:
        raise InputError(
            f"--output_json {options.output_json} is there already; give another "
            "name or --overwrite"
        )
    data = [("the data", spec.path) for role in NAMES for spec in specs_of(options.data, role)]
    read = [("--input_json", options.input_json), *data]
    refuse_shared_places({"--output_json": options.output_json}, read)


def _findings(
    options: CheckOptions, model: ModelDescription | None, group: Group
) -> tuple[list[Finding], list[Set]]:
    """What is wrong with the data of every role, and what was looked at; complete in
    the first process alone.
    """
    index_for_all(options.data, list(NAMES), group)
    r_max = options.r_max or (model.r_max if model is not None else R_MAX)
    findings: list[Finding] = []
    pools: dict[str, Selection | None] = {}
    isolated: list[Structure] = []
    elements = numbers_of(options.data.filters.elements)
    all_are_read = True
    for role, name in NAMES.items():
        sources = _opened(options, role, name, findings)
        all_are_read &= len(sources) == len(specs_of(options.data, role))
        _require_equal_sources(sources, name, findings, group)
        isolated += [atom for source in sources for atom in source.isolated_atoms]
        pools[role] = Selection(sources, elements) if sources else None
        findings += _of_what_is_left(pools[role], name)
    sets: list[Set] = []
    paths: dict[str, dict[int, str]] = {}  # names of files by set and number
    parts = _chosen(pools, options) if all_are_read else pools
    if not all_are_read and options.data.splits.lists():
        log.warning("warning: lists of identifiers are not applied: not all data could be read")
    for role, name in NAMES.items():
        data = parts.get(role)
        looked = _looked_at(data, name, options, r_max, group) if data else None
        if data and looked is not None:
            sets.append(looked)
            paths[name] = {number: source.path.name for number, source in enumerate(data.sources)}
    if sets:
        default = options.data.head or (
            model.heads[0] if model is not None else checked_energies.DEFAULT_HEAD
        )
        of_atoms = options.data.head or checked_energies.head_of_nameless_atoms(sets[0], model)
        given = checked_energies.references(model, isolated, of_atoms)
        allow = options.data.allow_missing_labels
        findings += _judged(sets, model, given, paths, default, allow_missing=allow)
        findings += checked_energies.nameless_atoms(isolated, of_atoms, sets[0].name)
        findings.append(_memory(sets[0], model, options.batch_size or BATCH_SIZE))
    return findings, sets


def _of_what_is_left(data: Selection | None, name: str) -> list[Finding]:
    """How many structures --elements leaves out of a set, and whether any is left."""
    if data is None or not data.left_out:
        return []
    counts = ", ".join(f"{count} × {reason}" for reason, count in data.left_out.items())
    left_out = Finding(level="note", check="elements", text=f"left out: {counts}", data=name)
    if len(data):
        return [left_out]
    text = f"no structure is left ({counts}); look at --elements"
    return [Finding(level="error", check="elements", text=text, data=name)]


def _chosen(
    pools: Mapping[str, Selection | None], options: CheckOptions
) -> Mapping[str, Selection | None]:
    """The structures of each role that a training would take.

    Raises:
        InputError: a list or a number does not fit the data.
    """
    splits = options.data.splits  # with a name of identifiers what two sets share is said
    asked = splits.id_key is not None or options.data.lmdb_val_samples is not None
    if not (asked or chosen.are_chosen(options.data)):
        return pools
    return chosen.parts_of(pools, options.data, options.seed)


def _write(path: Path, findings: Sequence[Finding], sets: Sequence[Set]) -> None:
    """The findings, and how many structures of each set were looked at, as JSON."""
    content = {
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "looked_at": _sizes(sets),
    }
    try:
        durable.write_text(path, json.dumps(content, indent=1, default=float))
    except OSError as error:
        raise cannot_write(f"--output_json {path}", error) from None


def _sizes(sets: Sequence[Set]) -> dict[str, list[int]]:
    return {data.name: [len(data), data.total] for data in sets}


def _opened(options: CheckOptions, role: Role, name: str, findings: list[Finding]) -> list[Source]:
    """The sources of one role; what cannot be opened is a finding."""
    opened = []
    for spec in specs_of(options.data, role):
        try:
            filters = filters_of(options.data.filters, keep_charges=True)
            (source,) = open_sources([spec], needs=TO_EVALUATE, max_dropped=1.0, filters=filters)
        except InputError as error:
            findings.append(Finding(level="error", check="reading", text=str(error), data=name))
            continue
        dropped = source.census.dropped
        if dropped:
            text = (
                f"{source.path}: {dropped.total()} records cannot be used: "
                f"{source.census.drop_report()}"
            )
            # as in training, which goes on without a few
            others = len(source) + source.census.left_out.total() + len(source.isolated_atoms)
            total = dropped.total() + others
            is_much = dropped.total() > options.data.filters.max_dropped * total
            level: Level = "error" if is_much else "warning"
            findings.append(Finding(level=level, check="reading", text=text, data=name))
        opened.append(source)
    return opened


def _require_equal_sources(
    sources: Sequence[Source], name: str, findings: Sequence[Finding], group: Group
) -> None:
    """Refuse that a process sees other files than the first: what it looks at would not
    be what it is asked for.

    Raises:
        InputError: in the first process alone, which ends the others.
    """
    seen = {str(source.path): len(source) for source in sources}
    faults = [
        finding.text for finding in findings if finding.data == name and finding.check == "reading"
    ]
    for number, other in enumerate(group.gathered((seen, faults))):
        if other[0] != seen:
            own = [text for text in other[1] if text not in faults]
            found = (
                own[0]
                if own
                else ", ".join(f"{path} with {n} structures" for path, n in other[0].items())
            )
            raise InputError(
                f"rank {number} of {group.rank.size} sees other {name} data than rank 0 "
                f"({found or 'none'}); see that all machines have the same files"
            )


class _Slice(NamedTuple):
    """Structures that one child process looks at in one go."""

    places: NDArray[np.integer]  # (n, 2): source, structure


class _SliceLooked(NamedTuple):
    """What is seen in one go."""

    rows: list[Looked]  # n
    counts: NDArray[np.uint16]  # (n, MAX_Z), atoms of each element


def _looked_at(
    data: Selection, name: str, options: CheckOptions, r_max: float, group: Group
) -> Set | None:
    """Look at all structures of a set, or at a sample of them, in child processes; None
    but in the first process.

    Args:
        data: the structures of the set.
        name: of the set.
        options: how many structures to look at, and with which seed they are drawn.
        r_max: cutoff of neighbours, Å.
        group: the processes that share the structures.
    """
    total = len(data)
    sources = data.sources
    places = data.places
    if options.samples < total:
        chosen = np.random.default_rng([options.seed, 0]).choice(
            total, options.samples, replace=False, shuffle=False
        )
        places = places[np.sort(chosen)]
        log.info(
            "%s: %d of %d structures are looked at (--samples, seed %d)",
            name,
            len(places),
            total,
            options.seed,
        )
    look = partial(
        _look, sources=sources, r_max=r_max, max_neighbors=options.data.filters.max_neighbors
    )
    parts = _shared(look, _slices(places, group.rank.size), f"check {name}", group)
    if not group.rank.is_first:
        return None
    rows = [row for part in parts for row in part.rows]
    columns = {
        column: np.array(
            [row[i] for row in rows], dtype=np.uint64 if column == "fingerprint" else None
        )
        for i, column in enumerate(Looked._fields)
    }
    paired = [
        sources[int(s)].structure(int(i)).taught() for s, i in _neighbours_in_time(places, sources)
    ]
    return Set(
        name=name,
        total=total,
        names=lambda row: sources[int(places[row, 0])].identifier(int(places[row, 1])),
        looked=columns,
        counts=np.concatenate([part.counts for part in parts]),
        files=places[:, 0],
        sampled=paired,
    )


def _slices(places: NDArray[np.integer], n_processes: int) -> list[_Slice]:
    """The places in order, a thousand in each slice, or so few that all processes have some."""
    rows = (
        max(min(ROWS_AT_ONCE, -(-len(places) // n_processes)), 1)
        if n_processes > 1
        else ROWS_AT_ONCE
    )
    return [_Slice(places[begin : begin + rows]) for begin in range(0, len(places), rows)]


def _shared(
    look: Callable[[_Slice], _SliceLooked], slices: Sequence[_Slice], what: str, group: Group
) -> list[_SliceLooked]:
    """What is seen in all slices, in their order; nothing in other processes than the first.

    Every process takes its share of the slices, and shows how far its own are.
    """
    own = Portion(group.rank.number, group.rank.size)
    mine = own.of(slices)
    parts: dict[int, _SliceLooked] = {}
    with ProgressBar(what, sum(len(part.places) for part in mine)) as bar:
        for number, part in parallel.in_children(look, mine, processes=own_cores()):
            parts[number * own.size + own.number] = part
            bar.update(len(part.rows))
    of_all = {
        number: part for of_process in group.gathered(parts) for number, part in of_process.items()
    }
    return [of_all[number] for number in sorted(of_all)]


def _neighbours_in_time(
    places: NDArray[np.integer], sources: Sequence[Source]
) -> NDArray[np.integer]:
    """The first places of every file and head, which follow one another as in a trajectory."""
    heads = np.array([sources[int(s)].heads.ids[int(i)] for s, i in places])
    _, groups = np.unique(np.stack([places[:, 0], heads], axis=1), axis=0, return_inverse=True)
    groups = groups.reshape(-1)
    share = -(-PAIRED // (int(groups.max()) + 1))
    return np.concatenate(
        [places[groups == group][:share] for group in range(int(groups.max()) + 1)]
    )


def _look(
    part: _Slice, sources: Sequence[Source], r_max: float, max_neighbors: int
) -> _SliceLooked:
    structures: list[Structure] = [sources[int(s)].structure(int(i)) for s, i in part.places]
    counts = np.stack([looking.counts_of(structure) for structure in structures])
    return _SliceLooked(
        [looking.look(structure, r_max, max_neighbors) for structure in structures], counts
    )


def _judged(
    sets: Sequence[Set],
    model: ModelDescription | None,
    given: checked_energies.EnergiesByHead,
    paths: Mapping[str, Mapping[int, str]],
    default: str,
    *,
    allow_missing: bool,
) -> list[Finding]:
    """What is wrong with the sets, head by head where labels are concerned: heads share
    nothing but structures.
    """
    findings: list[Finding] = []
    trained = sets[0].by_head(default)
    for data in sets:
        findings += labels.geometry(data)
        for part in data.by_head(default).values():
            findings += _of_one_head(part, paths[data.name], allow_missing=allow_missing)
    for head, train in trained.items():
        fit = energies.fit_energies(train)
        for data in sets[1:]:
            if head in (parts := data.by_head(default)):
                findings += references.against_other_set(parts[head], train, fit)
                findings += scales.against_other_set(parts[head], train)
        own = given.get(head, {})
        findings += references.undetermined(train, fit, own)
        for whose, values in own.items():
            findings += references.against_references(train, fit, values, whose)
    for data in sets:
        for head, part in data.by_head(default).items():
            findings += references.lacking_energies(
                part, given.get(head, {}).get(checked_energies.MODEL_JSON, {})
            )
            for whose, values in given.get(head, {}).items() if data is not sets[0] else ():
                findings += references.against_references(part, None, values, whose)
    by_head = [data.by_head(default) for data in sets]
    for head in dict.fromkeys(head for parts in by_head for head in parts):
        findings += repeats.repeats([parts[head] for parts in by_head if head in parts])
    findings += repeats.elements(sets, model.atomic_numbers if model is not None else None)
    return findings + repeats.heads(sets, model.heads if model is not None else None)


def _of_one_head(data: Set, paths: Mapping[int, str], *, allow_missing: bool) -> list[Finding]:
    """What is wrong with the labels of the structures of one head."""
    fit = energies.fit_energies(data)
    compared = work.compare(data)
    findings = labels.labels(data, allow_missing=allow_missing)
    findings += energies.energies(data, fit, totals=work.says_totals(compared))
    findings += work.energies_and_forces(data, fit, compared)
    findings += references.between_files(data, paths)
    findings += scales.scales(data)
    return findings + scales.stress_sign(data)


def _memory(data: Set, model: ModelDescription | None, batch_size: int) -> Finding:
    """An estimate of what a training step on these structures takes."""
    sizes = None if model is None else model.memory_sizes()
    return repeats.memory(data, batch_size, *(sizes or DEFAULTS))


def _print(findings: Sequence[Finding]) -> None:
    """A table, errors first."""
    order = {"error": 0, "warning": 1, "note": 2}
    for finding in sorted(findings, key=lambda f: order[f.level]):
        keys = f" ({', '.join(finding.keys)})" if finding.keys else ""
        log.info(
            "%-7s %-10s %-10s %s%s", finding.level, finding.data, finding.check, finding.text, keys
        )
    counts: dict[str, Any] = {level: sum(f.level == level for f in findings) for level in order}
    log.info("%d error(s), %d warning(s)", counts["error"], counts["warning"])
