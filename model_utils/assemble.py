"""From options to the objects a run is made of: data sets, training state, plan. Nothing below this takes options."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from ase.data import atomic_numbers as number_of_symbol
from torch import nn

from dataloader.batch import ModelFacts
from dataloader.dataset import Dataset, split
from dataloader.errors import InputError
from dataloader.labels import LabelKeys
from dataloader.loader import EpochBatches, Loader, evaluation_plan
from dataloader.packing import Budget
from dataloader.sources import DataFormat, Source, SourceSpec, open_sources
from losses import Loss, Metrics, metrics
from model_utils import model_loader
from model_utils.ema import ExponentialMovingAverage
from model_utils.evaluation import OnBatch, evaluate
from model_utils.fit import FitPlan, StageTwo
from model_utils.models.network import Network, Parameters
from model_utils.options import BatchOptions, EvaluateOptions, LabelOptions, TrainDataOptions, TrainOptions
from model_utils.runtime import log
from model_utils.train_state import Tally, TrainState
from optimizer import Schedule, ScheduleSettings, build_optimizer

Role = Literal["train", "val", "test"]
DEFAULT_BATCH_SIZE = 10


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data sets of a run."""

    train: Dataset
    valid: Dataset
    test: Dataset | None
    was_split: bool  # valid was split off train


def open_training_data(options: TrainDataOptions, facts: ModelFacts, dtype: torch.dtype, seed: int) -> TrainingData:
    """Open, check and split the data; says what was found and what was left out.

    Raises:
        InputError: a file, a structure or a label cannot be used.
    """
    opened = {role: _open(options, specs_of(options, role), facts) for role in ("train", "val", "test")}
    elements = numbers_of(options.elements)

    def dataset(role: str, *, free_atoms_only: bool) -> Dataset:
        found = Dataset(opened[role], facts, dtype, elements=elements, free_atoms_only=free_atoms_only)
        describe(role, found)
        return found

    train = dataset("train", free_atoms_only=options.train_on_free_atoms)
    if len(train) == 0:
        raise InputError("no structure is left to train on; look at the files and at --elements")
    test = dataset("test", free_atoms_only=options.eval_on_free_atoms) if opened["test"] else None
    if opened["val"]:
        valid = dataset("val", free_atoms_only=options.eval_on_free_atoms)
        if len(valid) == 0:
            raise InputError("no structure is left to validate on; look at the files and at --elements")
        return TrainingData(train=train, valid=valid, test=test, was_split=False)
    train, valid = split(train, options.valid_fraction, seed)
    valid.free_atoms_only = options.eval_on_free_atoms
    log.info("%d of these structures are set aside for validation (seed %d), %d remain", len(valid), seed, len(train))
    return TrainingData(train=train, valid=valid, test=test, was_split=True)


def open_evaluation_data(options: EvaluateOptions, facts: ModelFacts, dtype: torch.dtype) -> Dataset:
    """Open and check the structures to evaluate; labels may be absent."""
    data_format: DataFormat = "xyz" if options.xyz_path else "lmdb"
    keys = _keys(options)
    paths = options.xyz_path or options.lmdb_path
    specs = [SourceSpec(path=path, format=data_format, keys=keys, head=options.head) for path in paths]
    sources = open_sources(specs, require_labels=False, max_dropped=options.max_dropped, features=facts.features)
    found = Dataset(
        sources, facts, dtype, elements=numbers_of(options.elements), free_atoms_only=options.eval_on_free_atoms
    )
    describe("evaluate", found)
    if len(found) == 0:
        raise InputError("no structure is left to evaluate; look at the files and at --elements")
    return found


def specs_of(options: TrainDataOptions, role: Role) -> list[SourceSpec]:
    """The files of one role, from the flags and from the YAML's list of sources."""
    keys, specs = _keys(options), []
    formats: tuple[DataFormat, ...] = ("xyz", "lmdb")
    for data_format in formats:
        paths: Sequence[Path] = getattr(options, f"{data_format}_{role}")
        specs += [SourceSpec(path=path, format=data_format, keys=keys) for path in paths]
    for source in options.sources:
        if source.role == role:
            own = LabelKeys(
                energy=source.energy_key or keys.energy,
                forces=source.forces_key or keys.forces,
                stress=source.stress_key or keys.stress,
                free_energy=keys.free_energy,
            )
            guessed: DataFormat = "lmdb" if source.path.suffix == ".lmdb" or source.path.is_dir() else "xyz"
            specs.append(
                SourceSpec(
                    path=source.path, format=source.format or guessed, keys=own, head=source.head, weight=source.weight
                )
            )
    return specs


def _keys(options: LabelOptions) -> LabelKeys:
    return LabelKeys(
        energy=options.energy_key,
        forces=options.forces_key,
        stress=options.stress_key,
        free_energy=options.free_energy,
    )


def _open(options: TrainDataOptions, specs: Sequence[SourceSpec], facts: ModelFacts) -> list[Source]:
    return open_sources(specs, require_labels=True, max_dropped=options.max_dropped, features=facts.features)


def numbers_of(elements: Sequence[str]) -> list[int] | None:
    """Atomic numbers of --elements; None where the option was not given.

    Raises:
        InputError: a word is neither a symbol nor a number of an element.
    """
    numbers = []
    for word in elements:
        number = number_of_symbol.get(word, int(word) if word.isdecimal() and len(word) < 4 else 0)
        if not 0 < number < 119:
            raise InputError(f"--elements {word} is no element; expected symbols or atomic numbers, for example H C O")
        numbers.append(int(number))
    return numbers or None


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
        for rule, count in getattr(source, "pbc_rules", {}).items():
            log.info("  pbc %s: %d records", rule, count)
        if source.isolated_atoms:
            log.info("  %d IsolatedAtom frame(s) give reference energies and are left out", len(source.isolated_atoms))
        if source.dropped:
            log.warning("  dropped %s", source.drop_report())  # type: ignore[attr-defined]
    for reason, count in dataset.left_out.items():
        log.info("  %d structures left out: %s", count, reason)
    if dataset.free_atoms_only and any(
        dataset.sources[s].structure(int(i)).free_atoms is not None for s, i in dataset.places[:1]
    ):
        log.info("  records say which atoms were fixed: only force components of free atoms count")


def budget_of(options: BatchOptions) -> Budget:
    """Limits of a batch: a number of structures, or a budget of atoms or edges."""
    budgeted = options.max_atoms_per_batch is not None or options.max_edges_per_batch is not None
    size = options.batch_size if options.batch_size is not None or budgeted else DEFAULT_BATCH_SIZE
    return Budget(structures=size, atoms=options.max_atoms_per_batch, edges=options.max_edges_per_batch)


def training_batches(options: TrainOptions, data: TrainingData, device: torch.device) -> EpochBatches:
    """The training batches, made by workers where asked."""
    loader = Loader(data.train, num_workers=options.num_workers, pin_memory=device.type == "cuda")
    return EpochBatches(data.train, budget_of(options), options.seed, loader)


class Evaluator:
    """Evaluates one data set again and again, source by source; the batches' plan is made once."""

    def __init__(self, dataset: Dataset, options: BatchOptions, device: torch.device) -> None:
        self.device = device
        self.parts = {name: dataset.subset(indices) for name, indices in dataset.by_source().items() if len(indices)}
        self.plans = {name: evaluation_plan(part, budget_of(options)) for name, part in self.parts.items()}
        pinned = device.type == "cuda"
        self.loaders = {
            name: Loader(part, num_workers=options.num_workers, pin_memory=pinned) for name, part in self.parts.items()
        }

    def __call__(
        self, network: Network, parameters: Parameters, loss: Loss, on_batch: Mapping[str, OnBatch] | None = None
    ) -> tuple[Metrics, dict[str, Metrics]]:
        """Metrics of the whole data set and of each source."""
        sums = {
            name: evaluate(
                network,
                parameters,
                self.loaders[name].batches(self.plans[name]),
                loss,
                self.device,
                None if on_batch is None else on_batch[name],
            )
            for name in self.parts
        }
        total = torch.stack(list(sums.values())).sum(dim=0)
        return metrics(total.tolist(), loss), {name: metrics(s.tolist(), loss) for name, s in sums.items()}


def loss_of(options: TrainOptions) -> Loss:
    """The loss of stage one."""
    return Loss(
        energy_weight=options.energy_weight,
        forces_weight=options.forces_weight,
        stress_weight=options.stress_weight,
        energy_loss=options.energy_loss,
        forces_loss=options.forces_loss,
        stress_loss=options.stress_loss,
        huber_delta=options.huber_delta,
    )


def fit_plan(options: TrainOptions) -> FitPlan:
    """How long to train and what to do when; a stage two that never starts is one warning."""
    stage_two = None
    if options.stage_two:
        start = options.start_stage_two or max(options.epochs // 4 * 3, 1)
        one, stress = loss_of(options), options.stage_two_stress_weight
        two = Loss(
            energy_weight=options.stage_two_energy_weight,
            forces_weight=options.stage_two_forces_weight,
            stress_weight=one.stress_weight if stress is None else stress,
            energy_loss=one.energy_loss,
            forces_loss=one.forces_loss,
            stress_loss=one.stress_loss,
            huber_delta=one.huber_delta,
        )
        stage_two = StageTwo(start=start, loss=two, lr=options.stage_two_lr)
        if start >= options.epochs:
            log.warning("stage two never starts: it begins after epoch %d of %d", start, options.epochs)
    return FitPlan(
        epochs=options.epochs,
        loss=loss_of(options),
        max_steps=options.max_steps,
        stage_two=stage_two,
        accumulate=options.accumulate_batches,
        clip_grad=options.clip_grad,
        patience=options.patience,
        validate_every=options.validate_every,
        validate_every_steps=options.validate_every_steps,
        checkpoint_every_steps=options.checkpoint_every_steps,
        checkpoint_every_minutes=options.checkpoint_every_minutes,
        log_every_steps=options.log_every_steps,
    )


def training_state(options: TrainOptions, module: nn.Module, device: torch.device, batches: EpochBatches) -> TrainState:
    """A fresh state around a built module, which is moved to the device."""
    module.to(device)
    parameters = model_loader.trainable(module)
    moved = build_optimizer(
        module,
        kind=options.optimizer,
        lr=options.lr,
        weight_decay=options.weight_decay,
        amsgrad=options.amsgrad,
        beta1=options.beta1,
        beta2=options.beta2,
    )
    return TrainState(
        network=model_loader.network(module, options.step),
        parameters=parameters,
        optimizer=moved,
        schedule=Schedule(moved, schedule_settings(options, batches)),
        ema=ExponentialMovingAverage(parameters, options.ema_decay) if options.ema else None,
        tally=Tally.empty(device),
        device=device,
    )


def schedule_settings(options: TrainOptions, batches: EpochBatches) -> ScheduleSettings:
    """The schedule; cosine and onecycle end where the run ends."""
    steps_per_epoch = math.ceil(len(batches.plan(0)) / options.accumulate_batches)
    steps = min(options.epochs * steps_per_epoch, options.max_steps or options.epochs * steps_per_epoch)
    horizon = steps if options.scheduler_unit == "step" else steps / steps_per_epoch
    return ScheduleSettings(
        kind=options.scheduler,
        unit=options.scheduler_unit,
        factor=options.lr_gamma if options.scheduler == "exponential" else options.lr_factor,
        patience=options.scheduler_patience,
        period=options.lr_step,
        min_lr=options.min_lr,
        warmup=options.warmup,
        horizon=float(horizon),
    )
