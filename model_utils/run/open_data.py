"""From options to data sets: which files, how they are read, what is said of them, what is set aside for validation."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from ase.data import atomic_numbers as number_of_symbol

from dataloader import atomic_energies
from dataloader.data_file import Census, Source, SourceSpec
from dataloader.dataset import Dataset, sample, split
from dataloader.errors import InputError
from dataloader.filters import Filters
from dataloader.formats import format_of
from dataloader.labels import NOT_READ, TO_EVALUATE, LabelKeys, LabelNames, LabelNeeds, key_flag, name_of
from dataloader.needs import ModelFacts
from dataloader.quantities import QUANTITIES, STRESS
from dataloader.record import EVERYTHING, Keep
from dataloader.sources import open_sources
from model_utils.runtime import log
from model_utils.settings import terms
from model_utils.settings.options import (
    DataOptions,
    EvaluateOptions,
    FilterOptions,
    Role,
    TrainingOptions,
)

USUAL = "auto"  # of a source's label: the usual names, whatever the run's own key


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data sets of a run."""

    train: Dataset
    valid: Dataset
    test: Dataset | None
    was_split: bool  # valid was split off train
    seed: int  # of split and samples
    train_samples: int | None = None  # drawn from the LMDBs
    valid_samples: int | None = None

    def with_facts(self, facts: ModelFacts) -> "TrainingData":
        """The same data for a model of the same elements and cutoff with other reference energies."""
        sets = {name: getattr(self, name) for name in ("train", "valid", "test")}
        changed = {name: found.with_facts(facts) for name, found in sets.items() if found is not None}
        return dataclasses.replace(self, **changed)


def training_data(training: TrainingOptions, facts: ModelFacts, dtype: torch.dtype, seed: int) -> TrainingData:
    """Open, check and split the data; says what was found and what was left out.

    Raises:
        InputError: a file, a structure or a label cannot be used.
    """
    options = training.data
    needs = label_needs(training)
    opened = {role: _open(options, specs_of(options, role), facts, needs) for role in ("train", "val", "test")}
    elements = numbers_of(options.filters.elements)

    def dataset(role: str, *, free_atoms_only: bool) -> Dataset:
        found = Dataset(
            opened[role],
            facts,
            dtype,
            elements=elements,
            free_atoms_only=free_atoms_only,
            max_neighbors=options.filters.max_neighbors,
        )
        if all(source.in_memory for source in found.sources):
            _ = found.n_edges  # the graphs are kept; two atoms in one place are refused now and not in the first epoch
        describe(role, found)
        return found

    samples = {"train": options.lmdb_train_samples, "val": options.lmdb_val_samples}

    def sampled(role: str, found: Dataset) -> Dataset:
        n = samples[role]
        if n is None:
            return found
        if all(source.in_memory for source in found.sources):
            raise InputError(f"--lmdb_{role}_samples {n} is given but no LMDB to draw from; name one or leave it out")
        drawn = sample(found, n, seed)
        log.info("%s: %d of these structures are drawn (seed %d)", role, len(drawn), seed)
        return drawn

    train = sampled("train", dataset("train", free_atoms_only=options.train_on_free_atoms))
    if len(train) == 0:
        raise InputError("no structure is left to train on; look at the files and at --elements")
    stress_key = options.labels.stress_key
    wants_stress = stress_key or training.loss.stress_weight > 0
    names = [name_of(STRESS.name, names) for source in train.sources for names in source.census.label_names]
    if wants_stress and stress_key != NOT_READ and all(name is None or "absent" in name for name in names):
        looked = stress_key or "the usual names"
        raise InputError(
            f"no structure to train on has a stress (looked for {looked}); name it with --stress_key, or leave "
            "--stress_key and --stress_weight out"
        )
    test = dataset("test", free_atoms_only=options.eval_on_free_atoms) if opened["test"] else None
    if opened["val"]:
        valid = sampled("val", dataset("val", free_atoms_only=options.eval_on_free_atoms))
        if len(valid) == 0:
            raise InputError("no structure is left to validate on; look at the files and at --elements")
        return TrainingData(
            train=train,
            valid=valid,
            test=test,
            was_split=False,
            seed=seed,
            train_samples=options.lmdb_train_samples,
            valid_samples=options.lmdb_val_samples,
        )
    if options.lmdb_val_samples is not None:
        raise InputError("--lmdb_val_samples is given but no validation LMDB; name one with --lmdb_val")
    train, valid = split(train, options.valid_fraction, seed)
    valid.free_atoms_only = options.eval_on_free_atoms
    log.info("%d of these structures are set aside for validation (seed %d), %d remain", len(valid), seed, len(train))
    return TrainingData(
        train=train, valid=valid, test=test, was_split=True, seed=seed, train_samples=options.lmdb_train_samples
    )


def evaluation_data(options: EvaluateOptions, facts: ModelFacts, dtype: torch.dtype) -> Dataset:
    """Open and check the structures to evaluate; labels may be absent."""
    keys = terms.label_keys(options.labels)
    keep: Keep = EVERYTHING if options.output_xyz is not None else ()
    specs = [
        SourceSpec(path=path, format=name or format_of(path), keys=keys, head=options.head, keep=keep)
        for name, path in options.files()
    ]
    sources = open_sources(
        specs,
        needs=TO_EVALUATE,
        max_dropped=options.filters.max_dropped,
        features=facts.features,
        filters=filters_of(options.filters),
    )
    found = Dataset(
        sources,
        facts,
        dtype,
        elements=numbers_of(options.filters.elements),
        free_atoms_only=options.eval_on_free_atoms,
        max_neighbors=options.filters.max_neighbors,
    )
    describe("evaluate", found)
    if len(found) == 0:
        raise InputError("no structure is left to evaluate; look at the files and at --elements")
    if not any(is_labelled(names) for source in sources for names in source.census.label_names):
        _say_nothing_is_compared(options, sources)
    return found


def is_labelled(names: LabelNames) -> bool:
    """Whether some label was found, and not one that is absent or cannot be used."""
    return any(name is not None and " (" not in name for name in names)


def _say_nothing_is_compared(options: EvaluateOptions, sources: Sequence[Source]) -> None:
    """Structures without labels are predicted and not compared.

    Raises:
        InputError: they lie in LMDBs and no predictions are to be written: nothing would come of it.
    """
    there = next((names for source in sources if (names := source.census.first_names())), ())
    has = f"the first has: {', '.join(there) or 'nothing'}"
    large = any(not source.in_memory for source in sources)
    if large and options.output_xyz is None and options.output_table is None:
        raise InputError(
            f"no record of {', '.join(str(source.path) for source in sources)} has an energy, forces or a stress "
            f"({has}): there is nothing to compare with; name the labels with --energy_key, --forces_key, or write "
            "predictions with --output_xyz"
        )
    log.info("no structure has a label (%s): this is inference, nothing is compared", has)


def specs_of(options: DataOptions, role: Role) -> list[SourceSpec]:
    """The files of one role, from the flags and from the YAML's list of sources."""
    keys = terms.label_keys(options.labels)
    return [
        SourceSpec(
            path=source.path,
            format=source.format or format_of(source.path),
            keys=LabelKeys(
                energy=_own_name(source.energy_key, keys.energy),
                forces=_own_name(source.forces_key, keys.forces),
                stress=_own_name(source.stress_key, keys.stress),
                charge=_own_name(source.charge_key, keys.charge),
                spin=_own_name(source.spin_key, keys.spin),
                others=keys.others,
                free_energy=keys.free_energy and source.energy_key != USUAL,
            ),
            head=source.head or options.head,
            weight=source.weight,
            ratio=source.ratio,
        )
        for source in options.files(role)
    ]


def _own_name(given: str | None, otherwise: str | None) -> str | None:
    return None if given == USUAL else given or otherwise


def label_needs(options: TrainingOptions) -> LabelNeeds:
    """Labels that a training needs: those whose loss weight is not zero in one of its stages.

    Raises:
        InputError: a label is trained on and not to be looked for.
    """
    stages = [terms.weights(options.loss)]
    if options.stage_two.stage_two:
        stages.append(terms.stage_two_weights(options.loss, options.stage_two))
    weighted = {quantity for weights in stages for quantity, weight in weights.items() if weight > 0}
    keys = terms.label_keys(options.data.labels)
    for quantity in sorted(weighted):
        if keys.of(quantity) == NOT_READ:
            raise InputError(
                f"{key_flag(quantity)} none: it is not looked for; --{quantity}_weight: it is trained on; give it "
                "the weight 0, or name the label"
            )
    required = frozenset() if options.data.allow_missing_labels else frozenset(weighted)
    return LabelNeeds(required=required, judged=frozenset(weighted))


def _open(options: DataOptions, specs: Sequence[SourceSpec], facts: ModelFacts, needs: LabelNeeds) -> list[Source]:
    return open_sources(
        specs,
        needs=needs,
        max_dropped=options.filters.max_dropped,
        features=facts.features,
        filters=filters_of(options.filters),
    )


def filters_of(options: FilterOptions, *, keep_charges: bool = False) -> Filters:
    """Which records of LMDBs are used."""
    return Filters(
        max_atoms=options.max_atoms,
        max_force=options.max_force,
        max_neighbors=options.max_neighbors,
        verify=options.verify,
        charges="drop" if options.drop_charged else "keep" if keep_charges else "refuse",
    )


def numbers_of(elements: Sequence[str]) -> list[int] | None:
    """Atomic numbers of --elements; None where the option was not given.

    Raises:
        InputError: a word is neither a symbol nor a number of an element.
    """
    numbers = []
    for word in chain.from_iterable(atomic_energies.OC22 if word.casefold() == "oc22" else [word] for word in elements):
        number = number_of_symbol.get(word, int(word) if word.isdecimal() and len(word) < 4 else 0)
        if not 0 < number < 119:
            raise InputError(
                f"--elements {word} is no element; expected symbols or atomic numbers, for example H C O, or oc22"
            )
        numbers.append(int(number))
    return numbers or None


def compare_energies(data: Dataset, remedy: str) -> None:
    """Say what isolated atoms of the data are beside the model's E0s, and which of these no atom can have.

    Args:
        data: to train on, with the facts of the model.
        remedy: how the model gets other E0s.
    """
    facts = data.facts
    own = {
        head: dict(zip(facts.atomic_numbers, row, strict=True))
        for head, row in zip(facts.heads, facts.atomic_energies, strict=True)
    }
    atoms = [atom for source in data.sources for atom in source.isolated_atoms if atom.energy is not None]
    for head, isolated in atomic_energies.isolated_by_head(atoms, facts.heads[0]).items():
        different = atomic_energies.differences(isolated, own.get(head, {}))
        if different:
            text = "IsolatedAtom frames are not what the E0s of head %s are: %s eV; the model's are used (%s)"
            log.warning(f"warning: {text}", head, different, remedy)
        elif set(isolated) & set(own.get(head, {})):
            log.info("IsolatedAtom frames are the E0s of head %s", head)
    for head, energies in own.items():
        low = atomic_energies.impossible(energies)
        if low:
            text = (
                "no atom has so low an E0 as head %s has: %s: of another unit, or fitted to compositions that do not "
            )
            text += "determine it; energies of other compositions, fragments and reactions mean nothing with it (%s)"
            log.warning(f"warning: {text}", head, atomic_energies.shown(low), remedy)


def _label_texts(census: Census) -> str:
    """Which quantities were found under which names, with counts where records differ."""
    names: Counter[str] = Counter()
    for names_of_record, count in census.label_names.items():
        labels = [f"{quantity} from {name}" for quantity, name in zip(QUANTITIES, names_of_record, strict=True) if name]
        names[", ".join(labels) or "no labels"] += count
    return "; ".join(f"{text}{f' ({n})' if len(names) > 1 else ''}" for text, n in names.items())


def describe_source(source: Source, isolated: str = "are left out") -> None:
    """Log what a source says of its records beside their number.

    Args:
        source: an opened one.
        isolated: what becomes of its isolated atoms.
    """
    census = source.census
    for layout, count in census.layouts.items():
        log.info("  layout %s: %d records", layout, count)
    for rule, count in census.pbc_rules.items():
        log.info("  pbc %s: %d records", rule, count)
    if source.isolated_atoms:
        log.info("  %d IsolatedAtom frame(s) %s", len(source.isolated_atoms), isolated)
    if census.dropped:
        log.warning("  dropped %d: %s", census.dropped.total(), census.drop_report())
    if census.left_out:
        log.info("  left out %d: %s", census.left_out.total(), census.left_out_report())
    for text in census.warnings:
        log.warning("  %s", text)


def describe(role: str, dataset: Dataset) -> None:
    """Log what a data set holds: counts, label names, rules that were applied, what was left out and why."""
    for source in dataset.sources:
        labels = _label_texts(source.census)
        log.info("%s: %s: %d structures, %d atoms; %s", role, source.path, len(source), source.n_atoms.sum(), labels)
        describe_source(source)
    own, shares = dataset.shares()
    for share in shares:
        path = dataset.sources[int(dataset.places[share.rows[0], 0])].path
        log.info("  an epoch takes %d of the %d of %s beside %d others", share.taken, len(share.rows), path, len(own))
    for reason, count in dataset.left_out.items():
        log.info("  %d structures left out: %s", count, reason)
        for text, count in source.census.notes.items():
            log.info("  %s: %d structures", text, count)
    if dataset.free_atoms_only and any(
        dataset.sources[s].structure(int(i)).free_atoms is not None for s, i in dataset.places[:1]
    ):
        log.info("  records say which atoms were fixed: only force components of free atoms count")
