"""From options to data sets: which files, how they are read, what is said of them, what is set aside for validation."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from ase.data import atomic_numbers as number_of_symbol

from dataloader import atomic_energies
from dataloader.batch import ModelFacts
from dataloader.dataset import Dataset, sample, split
from dataloader.errors import InputError
from dataloader.labels import LabelKeys
from dataloader.lmdb_shards.lmdb_file import SHARD_ENDINGS
from dataloader.lmdb_shards.lmdb_source import Filters
from dataloader.packed import packed_manifest
from dataloader.sources import DataFormat, Source, SourceSpec, open_sources
from model_utils.runtime import log
from model_utils.settings.options import EvaluateOptions, FilterOptions, LabelOptions, TrainDataOptions

Role = Literal["train", "val", "test"]
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

    def with_facts(self, facts: ModelFacts) -> "TrainingData":
        """The same data for a model of the same elements and cutoff with other reference energies."""
        sets = {name: getattr(self, name) for name in ("train", "valid", "test")}
        changed = {name: found.with_facts(facts) for name, found in sets.items() if found is not None}
        return dataclasses.replace(self, **changed)


def training_data(options: TrainDataOptions, facts: ModelFacts, dtype: torch.dtype, seed: int) -> TrainingData:
    """Open, check and split the data; says what was found and what was left out.

    Raises:
        InputError: a file, a structure or a label cannot be used.
    """
    opened = {role: _open(options, specs_of(options, role), facts) for role in ("train", "val", "test")}
    elements = numbers_of(options.elements)

    def dataset(role: str, *, free_atoms_only: bool) -> Dataset:
        found = Dataset(opened[role], facts, dtype, elements=elements, free_atoms_only=free_atoms_only)
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
    wants_stress = options.stress_key or getattr(options, "stress_weight", 0) > 0
    found = [names[2] for source in train.sources for names in source.label_names if names[2]]
    if wants_stress and all("absent" in name for name in found):
        looked = options.stress_key or "the usual names"
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
            train=train, valid=valid, test=test, was_split=False, seed=seed, train_samples=options.lmdb_train_samples
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
    data_format: DataFormat = "xyz" if options.xyz_path else "lmdb"
    keys = label_keys(options)
    paths = options.xyz_path or options.lmdb_path
    specs = [SourceSpec(path=path, format=data_format, keys=keys, head=options.head) for path in paths]
    sources = open_sources(
        specs,
        require_labels=False,
        max_dropped=options.max_dropped,
        features=facts.features,
        filters=filters_of(options),
    )
    found = Dataset(
        sources, facts, dtype, elements=numbers_of(options.elements), free_atoms_only=options.eval_on_free_atoms
    )
    describe("evaluate", found)
    if len(found) == 0:
        raise InputError("no structure is left to evaluate; look at the files and at --elements")
    return found


def specs_of(options: TrainDataOptions, role: Role) -> list[SourceSpec]:
    """The files of one role, from the flags and from the YAML's list of sources."""
    keys, specs = label_keys(options), list[SourceSpec]()
    formats: tuple[DataFormat, ...] = ("xyz", "lmdb")
    for data_format in formats:
        paths: Sequence[Path] = getattr(options, f"{data_format}_{role}")
        specs += [SourceSpec(path=path, format=data_format, keys=keys, head=options.head) for path in paths]
    for source in options.sources:
        if source.role == role:
            own = LabelKeys(
                energy=_own_name(source.energy_key, keys.energy),
                forces=_own_name(source.forces_key, keys.forces),
                stress=_own_name(source.stress_key, keys.stress),
                free_energy=keys.free_energy and source.energy_key != USUAL,
            )
            specs.append(
                SourceSpec(
                    path=source.path,
                    format=source.format or format_of(source.path),
                    keys=own,
                    head=source.head or options.head,
                    weight=source.weight,
                    ratio=source.ratio,
                )
            )
    return specs


def _own_name(given: str | None, otherwise: str | None) -> str | None:
    return None if given == USUAL else given or otherwise


def format_of(path: Path) -> DataFormat:
    """xyz or lmdb, by the name."""
    is_lmdb = path.suffix in SHARD_ENDINGS or packed_manifest.is_name(path.name) or path.is_dir()
    return "lmdb" if is_lmdb or any(character in str(path) for character in "*?[") else "xyz"


def label_keys(options: LabelOptions) -> LabelKeys:
    """Names of the labels that the user gave."""
    return LabelKeys(
        energy=options.energy_key,
        forces=options.forces_key,
        stress=options.stress_key,
        free_energy=options.free_energy,
    )


def _open(options: TrainDataOptions, specs: Sequence[SourceSpec], facts: ModelFacts) -> list[Source]:
    return open_sources(
        specs,
        require_labels=True,
        max_dropped=options.max_dropped,
        features=facts.features,
        filters=filters_of(options),
    )


def filters_of(options: FilterOptions, *, keep_charges: bool = False) -> Filters:
    """Which records of LMDBs are used."""
    return Filters(
        max_atoms=options.max_atoms,
        max_force=options.max_force,
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


def describe(role: str, dataset: Dataset) -> None:
    """Log what a data set holds: counts, label names, rules that were applied, what was left out and why."""
    for source in dataset.sources:
        names: Counter[str] = Counter()
        for (energy, forces, stress), count in source.label_names.items():
            found = [
                f"{what} from {name}"
                for what, name in zip(("energy", "forces", "stress"), (energy, forces, stress), strict=True)
                if name
            ]
            names[", ".join(found) or "no labels"] += count
        labels = "; ".join(f"{text}{f' ({n})' if len(names) > 1 else ''}" for text, n in names.items())
        log.info("%s: %s: %d structures, %d atoms; %s", role, source.path, len(source), source.n_atoms.sum(), labels)
        for layout, count in getattr(source, "layouts", {}).items():
            log.info("  layout %s: %d records", layout, count)
        for rule, count in getattr(source, "pbc_rules", {}).items():
            log.info("  pbc %s: %d records", rule, count)
        if source.isolated_atoms:
            log.info("  %d IsolatedAtom frame(s) are left out", len(source.isolated_atoms))
        if source.dropped:
            log.warning("  dropped %d: %s", source.dropped.total(), source.drop_report())  # type: ignore[attr-defined]
        if source.left_out:
            log.info("  left out %d: %s", source.left_out.total(), source.left_out_report())  # type: ignore[attr-defined]
        for text in getattr(source, "warnings", ()):
            log.warning("  %s", text)
    own, shares = dataset.shares()
    for share in shares:
        path = dataset.sources[int(dataset.places[share.rows[0], 0])].path
        log.info("  an epoch takes %d of the %d of %s beside %d others", share.taken, len(share.rows), path, len(own))
    for reason, count in dataset.left_out.items():
        log.info("  %d structures left out: %s", count, reason)
    if dataset.free_atoms_only and any(
        dataset.sources[s].structure(int(i)).free_atoms is not None for s, i in dataset.places[:1]
    ):
        log.info("  records say which atoms were fixed: only force components of free atoms count")
