"""From options to data sets: which files, how they are read, what is set aside for validation."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from ase.data import atomic_numbers as number_of_symbol

from dataloader import atomic_energies
from dataloader.data_file import Source, SourceSpec
from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.filters import Filters
from dataloader.formats import format_of
from dataloader.labels import NOT_READ, TO_EVALUATE, LabelKeys, LabelNames, LabelNeeds, key_flag
from dataloader.needs import ModelFacts
from dataloader.quantities import STRESS
from dataloader.record import EVERYTHING, Keep
from dataloader.sources import open_sources
from model_utils.run.data import chosen, data_log
from model_utils.run.objective import trained_on
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
    lists: Mapping[str, str] = field(default_factory=dict)  # of identifiers, by role

    def with_facts(self, facts: ModelFacts) -> "TrainingData":
        """Data for a model of equal elements and cutoff with other reference energies;
        nothing is read again.
        """
        return dataclasses.replace(
            self,
            train=self.train.with_facts(facts),
            valid=self.valid.with_facts(facts),
            test=None if self.test is None else self.test.with_facts(facts),
        )


def training_data(
    training: TrainingOptions, facts: ModelFacts, dtype: torch.dtype, seed: int
) -> TrainingData:
    """Open, check and split the data; says what they hold and what was left out.

    Args:
        training: every setting.
        facts: what the data must fit: elements, cutoff, heads, reference energies (eV).
        dtype: working precision of the batches.
        seed: of split and samples.

    Raises:
        InputError: a file, a structure or a label cannot be used.
    """
    options = training.data
    needs = label_needs(training)
    sources = {
        role: _open(options, specs_of(options, role), facts, needs)
        for role in ("train", "val", "test")
    }

    def dataset(role: str, *, free_atoms_only: bool) -> Dataset:
        return _described_dataset(
            role, sources[role], facts, dtype, options.filters, free_atoms_only=free_atoms_only
        )

    pools: dict[str, Dataset | None] = {
        "train": dataset("train", free_atoms_only=options.train_on_free_atoms),
        "test": dataset("test", free_atoms_only=options.eval_on_free_atoms)
        if sources["test"]
        else None,
        "val": dataset("val", free_atoms_only=options.eval_on_free_atoms)
        if sources["val"]
        else None,
    }
    parts = chosen.parts_of(pools, options, seed)
    train = parts["train"]
    assert train is not None
    _require_stress(train, training)
    _require_config_types(train, options)
    valid = parts["val"]
    was_split = valid is None
    if valid is None:
        train, valid = chosen.set_aside(train, options, seed)
    test = parts["test"]
    # of whichever files they are: a list may have taken them of the training data
    for part in (valid, test):
        if part is not None:
            part.free_atoms_only = options.eval_on_free_atoms
    return TrainingData(
        train=train,
        valid=valid,
        test=test,
        was_split=was_split,
        seed=seed,
        train_samples=options.lmdb_train_samples,
        valid_samples=options.lmdb_val_samples,
        lists={role: str(path) for role, path in options.splits.lists().items()},
    )


def _described_dataset(
    role: str,
    sources: Sequence[Source],
    facts: ModelFacts,
    dtype: torch.dtype,
    filters: FilterOptions,
    *,
    free_atoms_only: bool,
) -> Dataset:
    """The usable structures of opened sources; says what they hold.

    Raises:
        InputError: a structure cannot be used, as where two atoms lie in one place.
    """
    dataset = Dataset(
        sources,
        facts,
        dtype,
        elements=numbers_of(filters.elements),
        free_atoms_only=free_atoms_only,
        max_neighbors=filters.max_neighbors,
    )
    if _is_in_memory(dataset):
        # the graphs are kept; two atoms in one place are refused now and not in the first epoch
        _ = dataset.n_edges
    data_log.describe(role, dataset)
    return dataset


def _is_in_memory(dataset: Dataset) -> bool:
    return all(source.in_memory for source in dataset.sources)


def _require_stress(train: Dataset, training: TrainingOptions) -> None:
    """Refuse training data without a single stress where one is named or has a weight.

    Raises:
        InputError: saying what was looked for.
    """
    stress_key = training.data.labels.stress_key
    is_wanted = bool(stress_key) or STRESS.name in trained_on(training)
    if not is_wanted or stress_key == NOT_READ:
        return
    if not any(source.census.has_label(STRESS.name) for source in train.sources):
        raise InputError(
            "no structure to train on has a stress (looked for "
            f"{stress_key or 'the usual names'}); name it with --stress_key, or leave --stress_key "
            "and --stress_weight out"
        )


def _require_config_types(train: Dataset, options: DataOptions) -> None:
    """Say how many structures a weight of a config_type is for; refuse one that is for none.

    Raises:
        InputError: no structure has the type, where all could be looked at
            without reading files again.
    """
    weights = dict(terms.config_type_weights(options))
    if not weights:
        return
    looked_at = [i for i in range(len(train)) if train.in_memory(i)]
    counts = Counter(train.structure(i).config_type for i in looked_at)
    for name, weight in weights.items():
        if not counts[name] and len(looked_at) == len(train):
            raise terms.no_such_type(name, weight, counts)
        unseen = len(train) - len(looked_at)
        more = (
            f", and those among {unseen} of LMDBs, which were not looked through" if unseen else ""
        )
        log.info("config_type %s: weight %g for %d structures%s", name, weight, counts[name], more)


def evaluation_data(options: EvaluateOptions, facts: ModelFacts, dtype: torch.dtype) -> Dataset:
    """Open and check the structures to evaluate; labels may be absent.

    Args:
        options: every setting of evaluate.py.
        facts: what the structures must fit: elements, cutoff, heads, reference energies (eV).
        dtype: working precision of the batches.

    Raises:
        InputError: a file, a structure or a label cannot be used, or nothing would
            come of the evaluation.
    """
    keys = terms.label_keys(options.labels)
    keep: Keep = EVERYTHING if options.output_xyz is not None else ()
    specs = [
        SourceSpec(
            path=path,
            format=name or format_of(path),
            keys=keys,
            head=options.head,
            head_of_all=True,
            keep=keep,
        )
        for name, path in options.files()
    ]
    sources = open_sources(
        specs,
        needs=TO_EVALUATE,
        max_dropped=options.filters.max_dropped,
        features=facts.features,
        filters=filters_of(options.filters),
    )
    dataset = Dataset(
        sources,
        facts,
        dtype,
        elements=numbers_of(options.filters.elements),
        free_atoms_only=options.eval_on_free_atoms,
        max_neighbors=options.filters.max_neighbors,
    )
    data_log.describe("evaluate", dataset)
    data_log.say_other_heads(sources)
    if len(dataset) == 0:
        raise InputError("no structure is left to evaluate; look at the files and at --elements")
    data_log.say_zero_energies(dataset, "evaluated", "take a head that was trained on such ones")
    if not any(is_labelled(names) for source in sources for names in source.census.label_names):
        _say_nothing_is_compared(options, sources)
    return dataset


def is_labelled(names: LabelNames) -> bool:
    """Whether some label was found, and not one that is absent or cannot be used."""
    return any(name is not None and " (" not in name for name in names)


def _say_nothing_is_compared(options: EvaluateOptions, sources: Sequence[Source]) -> None:
    """Structures without labels are predicted and not compared.

    Raises:
        InputError: they lie in LMDBs and no predictions are to be written:
            nothing would come of it.
    """
    there = next((names for source in sources if (names := source.census.first_names())), ())
    has = f"the first has: {', '.join(there) or 'nothing'}"
    large = any(not source.in_memory for source in sources)
    if large and options.output_xyz is None and options.output_table is None:
        raise InputError(
            f"no record of {', '.join(str(source.path) for source in sources)} has an energy, "
            f"forces or a stress ({has}): there is nothing to compare with; name the labels with "
            "--energy_key, --forces_key, or write predictions with --output_xyz"
        )
    log.info("no structure has a label (%s): this is inference, nothing is compared", has)


def specs_of(options: DataOptions, role: Role) -> list[SourceSpec]:
    """The files of one role, from the flags and from the YAML's list of sources."""
    keys = terms.label_keys(options.labels)
    type_weights = terms.config_type_weights(options)
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
            head_of_all=bool(source.head_of_all),
            weight=source.weight,
            ratio=source.ratio,
            type_weights=type_weights,
            keep=tuple(
                name
                for name in (options.splits.id_key, options.splits.group_key)
                if name is not None
            ),
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
    weighted = trained_on(options)
    keys = terms.label_keys(options.data.labels)
    for quantity in sorted(weighted):
        if keys.of(quantity) == NOT_READ:
            raise InputError(
                f"{key_flag(quantity)} none: it is not looked for; --{quantity}_weight: it is "
                "trained on; give it the weight 0, or name the label"
            )
    required = frozenset() if options.data.allow_missing_labels else frozenset(weighted)
    return LabelNeeds(required=required, judged=frozenset(weighted))


def _open(
    options: DataOptions, specs: Sequence[SourceSpec], facts: ModelFacts, needs: LabelNeeds
) -> list[Source]:
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
    for word in chain.from_iterable(
        atomic_energies.OC22 if word.casefold() == "oc22" else [word] for word in elements
    ):
        number = number_of_symbol.get(word, int(word) if word.isdecimal() and len(word) < 4 else 0)
        if not 0 < number < 119:
            raise InputError(
                f"--elements {word} is no element; expected symbols or atomic numbers, for "
                "example H C O, or oc22"
            )
        numbers.append(int(number))
    return numbers or None
