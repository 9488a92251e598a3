"""From options to the objects a run is made of: batches, evaluator, state, plan. Nothing below this takes options."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.dataset import Dataset
from dataloader.loader import EpochBatches, Loader, Plan, evaluation_plan
from dataloader.packing import Budget
from dataloader.progress import Progress
from losses import SHAPES, Loss, Metrics, Term, metrics
from model_utils import model_loader
from model_utils.errors import InputError, NonFiniteError
from model_utils.files.checkpoint import WeightsFile
from model_utils.models.description import ModelDescription
from model_utils.models.network import Network, Parameters
from model_utils.run.budget import measured_edges
from model_utils.run.ema import ExponentialMovingAverage
from model_utils.run.evaluation import OnBatch, evaluate
from model_utils.run.fit import FitPlan, StageTwo
from model_utils.run.memory import naming
from model_utils.run.open_data import TrainingData
from model_utils.run.step import loss_and_gradients
from model_utils.run.train_state import Tally, TrainState
from model_utils.runtime import log
from model_utils.settings import terms
from model_utils.settings.options import BatchOptions, EvaluateOptions, FinetuneOptions, TrainOptions, rates_by_pattern
from optimizer import Schedule, ScheduleSettings, build_optimizer

DEFAULT_BATCH_SIZE = 10


def with_measured_budget(
    options: TrainOptions,
    module: nn.Module,
    description: ModelDescription,
    dataset: Dataset,
    device: torch.device,
    stored: WeightsFile | None,
) -> TrainOptions:
    """The options with a number in place of ``--max_edges_per_batch auto``: a continued run's, else a measured one."""
    if options.max_edges_per_batch != "auto":
        return options
    if stored is not None:
        return replace(options, max_edges_per_batch=stored.content["train_state"]["config"]["max_edges_per_batch"])
    network = model_loader.network(module.to(device), options.step, description)
    parameters, loss = model_loader.trainable(module), loss_of(options)

    def step(batch: Batch) -> None:
        loss_and_gradients(network, parameters, [batch], loss)

    edges = measured_edges(step, dataset, device, options.batch_size)
    if options.batch_size is None and options.max_atoms_per_batch is None and edges >= dataset.n_edges.sum():
        log.warning(
            "warning: the memory holds all of the training data as one batch, so an epoch is one step; "
            "--batch_size limits batches as well"
        )
    return replace(options, max_edges_per_batch=edges)


Batching = TypeVar("Batching", EvaluateOptions, FinetuneOptions)


def with_measured_evaluation_budget(
    options: Batching, network: Network, parameters: Parameters, dataset: Dataset, device: torch.device
) -> Batching:
    """The same for an evaluation, which needs less memory per edge."""
    if options.max_edges_per_batch != "auto":
        return options

    def step(batch: Batch) -> None:
        evaluate(network, parameters, [batch], Loss.of(), device)

    return replace(options, max_edges_per_batch=measured_edges(step, dataset, device, options.batch_size))


def budget_of(options: BatchOptions) -> Budget:
    """Limits of a batch: a number of structures, or a budget of atoms or edges."""
    assert options.max_edges_per_batch != "auto", "it is measured before"
    budgeted = options.max_atoms_per_batch is not None or options.max_edges_per_batch is not None
    size = options.batch_size if options.batch_size is not None or budgeted else DEFAULT_BATCH_SIZE
    return Budget(structures=size, atoms=options.max_atoms_per_batch, edges=options.max_edges_per_batch)


def training_batches(
    options: TrainOptions, data: TrainingData, device: torch.device, prepare: Callable[[Batch], Batch] | None = None
) -> EpochBatches:
    """The training batches, made by workers where asked; ``prepare`` adds what the network needs besides."""
    loader = Loader(data.train, num_workers=options.num_workers, pin_memory=device.type == "cuda", prepare=prepare)
    return EpochBatches(data.train, budget_of(options), options.seed, loader)


class Evaluator:
    """Evaluates one data set again and again; the batches' plan is made once, no batch mixes sources.

    Args:
        dataset: the structures.
        options: limits of a batch, workers.
        device: of the network.
        watch: is handed every stream of batches, and may break it off.
        what: the work, as progress names it.
        everything: compute what costs more for every batch, not only where there is a label of it.
        prepare: adds to every batch what the network needs besides.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: BatchOptions,
        device: torch.device,
        watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
        *,
        what: str = "evaluation",
        everything: bool = False,
        prepare: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.what = what
        self.watch = watch
        self.everything = everything
        sources = {name: indices for name, indices in dataset.by_source().items() if len(indices)}
        self.plans = {name: evaluation_plan(dataset, indices, budget_of(options)) for name, indices in sources.items()}
        pinned = device.type == "cuda"
        self.loader = Loader(dataset, num_workers=options.num_workers, pin_memory=pinned, prepare=prepare)

    def __call__(
        self, network: Network, parameters: Parameters, loss: Loss, on_batch: OnBatch | None = None
    ) -> tuple[Metrics, dict[str, Metrics]]:
        """Metrics of the whole data set and of each source.

        Raises:
            NonFiniteError: naming the structures of the first batch whose errors are no numbers.
        """
        with Progress(self.what, len(self.dataset)) as progress, naming(self.dataset.names):

            def watched(plan: Plan) -> Iterator[Batch]:
                for batch in self.watch(self.loader.batches(plan)):
                    yield batch
                    progress.update(batch.n_structures)

            def sums_of(plan: Plan) -> Tensor:
                batches = watched(plan)
                return evaluate(network, parameters, batches, loss, self.device, on_batch, everything=self.everything)

            sums = {name: sums_of(plan) for name, plan in self.plans.items()}
        total = torch.stack(list(sums.values())).sum(dim=0)
        if not torch.isfinite(total).all():
            raise NonFiniteError(
                f"the errors are not finite for the batch of {self._culprits(network, parameters, loss)}; nothing "
                "of it was saved: look at these structures, at energies, scale and shift in model.json, or lower --lr"
            )
        return metrics(total.tolist(), loss), {name: metrics(s.tolist(), loss) for name, s in sums.items()}

    def _culprits(self, network: Network, parameters: Parameters, loss: Loss) -> str:
        for indices in chain.from_iterable(self.plans.values()):
            sums = evaluate(network, parameters, self.loader.batches([indices]), loss, self.device)
            if not torch.isfinite(sums).all():
                return self.dataset.names(indices.tolist())
        return "all structures together"


def loss_of(options: TrainOptions) -> Loss:
    """The loss of stage one."""
    return Loss(terms=_terms(options, terms.weights(options)), huber_delta=options.huber_delta)


def _terms(options: TrainOptions, weights: Mapping[str, float]) -> dict[str, Term]:
    shapes = terms.shapes(options)
    for name, shape in shapes.items():
        if shape not in SHAPES:
            raise InputError(f"the loss shape {shape!r} of the {name} is not known; there are {', '.join(SHAPES)}")
    return {name: Term(weight=weight, shape=shapes[name]) for name, weight in weights.items()}


def fit_plan(options: TrainOptions, *, judge_first: bool = False) -> FitPlan:
    """How long to train and what to do when; a stage two that never starts is one warning."""
    stage_two = None
    if options.stage_two:
        start = options.start_stage_two or max(options.epochs // 4 * 3, 1)
        two = Loss(terms=_terms(options, terms.stage_two_weights(options)), huber_delta=options.huber_delta)
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
        judge_first=judge_first,
    )


def training_state(
    options: TrainOptions,
    module: nn.Module,
    description: ModelDescription,
    device: torch.device,
    batches: EpochBatches,
) -> TrainState:
    """A fresh state around a module with its first weights, which is moved to the device; some may be frozen.

    Raises:
        InputError: a pattern of --freeze or --lr_of fits no parameter, or none is left to train.
    """
    freeze(module, options.freeze)
    rates = rates_by_pattern(options)
    for pattern in rates:
        if not any(fnmatchcase(name, pattern) for name in model_loader.trainable(module)):
            raise InputError(
                f"--lr_of {pattern}: no trainable parameter has such a name; `read_model.py show` lists them"
            )
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
        rates=rates,
    )
    return TrainState(
        network=model_loader.network(module, options.step, description),
        parameters=parameters,
        optimizer=moved,
        schedule=Schedule(moved, schedule_settings(options, batches)),
        ema=ExponentialMovingAverage(parameters, options.ema_decay) if options.ema else None,
        tally=Tally.empty(device),
        device=device,
    )


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of the training by patterns of their names.

    Raises:
        InputError: a pattern fits no parameter, or none is left.
    """
    for pattern in patterns:
        fitting = [p for name, p in module.named_parameters() if fnmatchcase(name, pattern) and p.numel()]
        if not fitting:
            names = ", ".join(sorted({name.rpartition(".")[0] for name in model_loader.trainable(module)})[:6])
            raise InputError(f"--freeze {pattern}: no parameter has such a name; there are those of {names} …")
        for parameter in fitting:
            parameter.requires_grad_(False)
    if patterns:
        left = model_loader.trainable(module)
        if not left:
            raise InputError("--freeze leaves nothing to train; name fewer parameters")
        log.info("%d of the parameters are frozen, %d are trained", *_sizes(module, left))


def _sizes(module: nn.Module, left: Mapping[str, Tensor]) -> tuple[int, int]:
    moved = sum(p.numel() for p in left.values())
    return sum(p.numel() for p in module.parameters()) - moved, moved


def steps_per_epoch(options: TrainOptions, batches: EpochBatches) -> int:
    """Optimizer steps of the first epoch; later ones have about as many where batches have a budget."""
    return math.ceil(len(batches.plan(0)) / options.accumulate_batches)


def schedule_settings(options: TrainOptions, batches: EpochBatches) -> ScheduleSettings:
    """The schedule; cosine and onecycle end where the run ends."""
    per_epoch = steps_per_epoch(options, batches)
    steps = min(options.epochs * per_epoch, options.max_steps or options.epochs * per_epoch)
    horizon = steps if options.scheduler_unit == "step" else steps / per_epoch
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
