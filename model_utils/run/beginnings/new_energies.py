"""Reference energies of a fine-tuned model, by head: given, of isolated atoms, or fitted
to the source's errors.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dataloader import atomic_energies, progress
from dataloader.data_file import Source
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.quantities import ENERGY
from dataloader.sources import Adjusted
from dataloader.structure import Structure, symbols
from model_utils import model_loader
from model_utils.models import description as model_json
from model_utils.run.beginnings.finetuning import Origin, predicted
from model_utils.run.data import open_data
from model_utils.runtime import dtype_of, log
from model_utils.settings import terms
from model_utils.settings.energies import given_energies
from model_utils.settings.options import FinetuneOptions, TrainOptions

FITTED = 1000  # structures of each head
OF_DATA = ("shift", "isolated")
_SHIFT = "--E0s shift fits them to what the model leaves of the data"
ELSEWHERE = {  # words of mace_run_train and of metadata.py
    "foundation": "--E0s keep takes those of the model",
    **dict.fromkeys(("estimated", "average", "lstsq", "auto"), _SHIFT),
}


def with_given(origin: Origin, options: FinetuneOptions) -> Origin:
    """The origin with energies that --E0s gives as JSON or file: for all of the source's
    heads, or by head for any.

    Raises:
        InputError: they are of elements or heads that the model does not have.
    """
    if options.E0s in ("keep", *OF_DATA):
        return origin
    if options.E0s in ELSEWHERE:
        raise InputError(
            f"--E0s {options.E0s} is a word for it elsewhere: here {ELSEWHERE[options.E0s]}"
        )
    heads = origin.description.heads
    elements = origin.description.atomic_numbers
    given = given_energies(
        options.E0s, "keep, shift, isolated", terms.label_keys(options.data.labels)
    )
    given.refuse_other_heads(heads, "--E0s")
    if options.add_head and options.data.head == options.add_head and given.for_all:
        raise InputError(_gives_none(options.add_head))
    foreign = sorted(given.elements - set(origin.source.description.atomic_numbers))
    if foreign:
        raise InputError(f"--E0s names {symbols(foreign)}, which the source does not have")
    rows = []
    by_head: dict[str, set[int]] = {}
    for head, row in zip(heads, origin.description.atomic_energies, strict=True):
        values = (
            given.of(head)
            if head in origin.source.description.heads
            else given.by_head.get(head, {})
        )
        if values:
            by_head[head] = set(values)
        rows.append([values.get(z, before) for z, before in zip(elements, row, strict=True)])
    changed = _with(origin, rows)
    return dataclasses.replace(changed, given=by_head, given_by_name=frozenset(given.by_head))


def _gives_none(added: str) -> str:
    """What is wrong where energies for all heads leave out the one that is trained."""
    return (
        f"--E0s gives energies for every head of the source, and --add_head adds "
        f"{added}: give them by head, as '{{\"{added}\": {{…}}}}'"
    )


def warn_of_not_given(origin: Origin, data: Dataset) -> None:
    """Warn of elements of the data to train on for which no energy was given, where it was for
    others: theirs are the source's.

    Raises:
        InputError: they were given for all heads of the source, and the data are of one that
            is added.
    """
    occurring = data.elements_by_head()
    for_all = set(origin.given) - origin.given_by_name
    added = set(origin.description.heads) - set(origin.source.description.heads)
    left_out = sorted(added & set(occurring))
    if for_all and left_out and not set(origin.given) & set(occurring):
        raise InputError(_gives_none(left_out[0]))
    for head, given in origin.given.items():
        if head not in occurring and head in origin.given_by_name:
            continue
        if head not in occurring:
            log.warning(
                "warning: head %s gets the energies of --E0s, and no structure to train on is of "
                "it: what it predicts is shifted by the change; give them by head, as "
                "'{\"HEAD\": {…}}'",
                head,
            )
            continue
        lacking = sorted(occurring.get(head, set()) - set(given))
        if lacking:
            log.warning(
                "warning: head %s: --E0s gives none of %s: they keep the source's E0s, which may "
                "be of another method",
                head,
                symbols(lacking),
            )


def of_data(origin: Origin, options: FinetuneOptions, train: TrainOptions) -> Origin:
    """The origin with reference energies that the new data give, and with the data,
    which are opened for it.

    A head of which the data have nothing keeps its own, and so does the one whose
    structures are replayed.

    Raises:
        InputError: the data cannot be used, or give none.
    """
    facts = origin.description.facts()
    dtype = dtype_of(train.device.dtype, origin.source.file.dtype)
    opened = open_data.training_data(train, facts, dtype, train.run.seed)
    origin = dataclasses.replace(origin, data=opened)
    replayed = options.replay_head if options.replay is not None else None
    heads = [head for head in origin.description.heads if head != replayed]
    if options.E0s == "isolated":
        return _isolated(origin, opened.train, heads, options)
    return _shifted(origin, opened.train, heads, train.run.step)


def _isolated(
    origin: Origin, data: Dataset, heads: Sequence[str], options: FinetuneOptions
) -> Origin:
    """E0s of the IsolatedAtom frames; says which elements of the data have none.

    Raises:
        InputError: there are no such frames, they are of another head, or it cannot be told of
            which they are.
    """
    atoms = isolated_atoms(data, options)
    occurring = data.elements_by_head()
    new = [head for head in heads if head in occurring]
    by_head, nameless = atomic_energies.isolated_of_heads(atoms, heads, new)
    if nameless:
        raise InputError(
            f"--E0s isolated: IsolatedAtom frames of {symbols(nameless)} name no head, and the "
            f"structures are of {', '.join(new)}; write `head` into the frames"
        )
    unknown = sorted(set(by_head) - set(origin.description.heads))
    if unknown:
        raise InputError(
            f"--E0s isolated: IsolatedAtom frames name head {unknown[0]!r}, which the "
            "model does not have"
        )
    idle = sorted(set(by_head) - set(new))
    if not set(by_head) & set(new):
        held = (
            f"IsolatedAtom frames of head {', '.join(idle)} alone, of which no new structure is: "
            "write the head of the structures into them"
            if idle
            else "no IsolatedAtom frame: add them"
        )
        raise InputError(
            f"--E0s isolated: the training data hold {held}, give --E0s a "
            "file of isolated atoms or JSON, or let --E0s shift fit the source's errors"
        )
    for head in sorted(set(idle) & set(heads)):
        log.warning(
            "warning: IsolatedAtom frames of %s are of head %s, of which no new structure is: it "
            "keeps its E0s",
            symbols(sorted(by_head[head])),
            head,
        )
    elements = origin.description.atomic_numbers
    rows = []
    for head, row in zip(origin.description.heads, origin.description.atomic_energies, strict=True):
        values = by_head.get(head, {}) if head in new else {}
        rows.append([values.get(z, before) for z, before in zip(elements, row, strict=True)])
        without = atomic_energies.lacking(sorted(occurring.get(head, ())), values)
        if without and head in heads:
            log.warning(
                "warning: head %s: no IsolatedAtom frame of %s: they keep the source's E0s, which "
                "may be of another method",
                head,
                without,
            )
    return _with(origin, rows)


def isolated_atoms(data: Dataset, options: FinetuneOptions) -> list[Structure]:
    """The isolated atoms of the data. Those that name no head and were given none are of the one
    that all structures of their file name, or of none: the head that a fine-tuning chose for
    structures is not theirs, since their energies may be of the method of the head that is added.
    """
    asked = {entry.path for entry in options.data.files("train") if entry.head is not None}
    atoms: list[Structure] = []
    for source in data.sources:
        own = source
        is_told = options.data.head is not None or source.path in asked
        if isinstance(source, Adjusted):
            own = source.source
            is_told = is_told or source.spec.head_of_all
        if is_told:
            atoms += source.isolated_atoms
            continue
        beside = _only_head(own)
        atoms += [
            dataclasses.replace(adjusted, head=atom.head or beside)
            for adjusted, atom in zip(source.isolated_atoms, own.isolated_atoms, strict=True)
        ]
    return atoms


def _only_head(source: Source) -> str | None:
    """The head that all usable structures of a file name; None where there are several, or some
    name none.
    """
    named = {source.heads.values[number] for number in np.unique(source.heads.ids).tolist()}
    return named.pop() if len(named) == 1 else None


def _shifted(origin: Origin, data: Dataset, heads: Sequence[str], step: str) -> Origin:
    """E0s shifted by a least-squares fit of label − prediction to compositions; elements that do
    not occur keep theirs.

    Raises:
        InputError: no structure has an energy.
    """
    # this is on the CPU, where not every form has kernels
    form = step if step == "reference" else "fast"
    network = model_loader.build_network(origin.source.module, form, origin.source.description)
    own = data.shares()[0]
    numbers = data.head_numbers()[own]
    rows = [list(row) for row in origin.description.atomic_energies]
    fitted = 0
    for position, head in enumerate(origin.description.heads):
        of_head = own[numbers == position] if head in heads else own[:0]
        chosen = of_head[
            np.linspace(0, len(of_head) - 1, min(FITTED, len(of_head))).astype(int)
        ].tolist()
        compositions = []  # numbers of atoms by element, for each structure
        residuals = []  # label − prediction, eV
        for i in progress.over(chosen, "errors of the source", len(chosen)):
            batch = data.batch([i])
            label = batch.labels[ENERGY.name]
            if bool(label.mask[0]) and float(label.weight[0]) > 0:
                energy = predicted(network, origin.in_source(batch))[ENERGY.name]
                residuals.append(float(label.value[0]) - float(energy[0]))
                compositions.append(
                    np.bincount(batch.species.numpy(), minlength=len(rows[position]))
                )
        if residuals:
            change = _fit(np.array(compositions, dtype=float), np.array(residuals), origin, head)
            rows[position] = (np.array(rows[position]) + change).tolist()
            fitted += 1
    if not fitted:
        raise InputError(
            "--E0s shift: no structure of the training data has an energy with a weight"
        )
    return _with(origin, rows)


def _fit(
    counts: NDArray[np.float64], residuals: NDArray[np.float64], origin: Origin, head: str
) -> NDArray[np.float64]:
    """Shift of every E0 of a head (eV); says how much of the error goes, and what
    compositions do not determine.
    """
    present = counts.any(axis=0)
    fitted, _, rank, _ = np.linalg.lstsq(counts[:, present], residuals, rcond=None)
    change = np.zeros(counts.shape[1])
    change[present] = fitted
    elements = np.array(origin.description.atomic_numbers)[present].tolist()
    name = f"head {head}: " if len(origin.description.heads) > 1 else ""
    if rank < present.sum():
        text = atomic_energies.undetermined(
            "shifts of E0s", int(rank), dict(zip(elements, fitted.tolist(), strict=True))
        )
        log.warning(
            "warning: %s%s",
            name,
            text.replace("or --E0s with", "and --E0s isolated, or --E0s with"),
        )
    log.info(
        "%sE0 shift fitted to %d structures: error per configuration %.3f → %.3f eV (rms)",
        name,
        len(residuals),
        np.sqrt(np.mean(np.square(residuals))),
        np.sqrt(np.mean(np.square(residuals - counts @ change))),
    )
    return change


def _with(origin: Origin, rows: Sequence[Sequence[float]]) -> Origin:
    """An origin whose model has these reference energies (eV), by head and
    element; says what changes.
    """
    description = origin.description
    if [list(row) for row in rows] == description.atomic_energies:
        return origin
    for head, before, after in zip(
        description.heads, description.atomic_energies, rows, strict=True
    ):
        for number, a, b in zip(description.atomic_numbers, before, after, strict=True):
            if a != b:
                log.info("E0 of %s (%s): %.6f → %.6f eV", symbols([number]), head, a, b)
    fields: Mapping[str, object] = {
        **json.loads(description.canonical_text()),
        "atomic_energies": [*map(list, rows)],
    }
    return dataclasses.replace(
        origin, description=model_json.parse(json.dumps(fields), str(origin.source.file.path))
    )
