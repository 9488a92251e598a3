"""What evaluate.py does: a model, judged on structures by the one evaluation that there is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dataloader.dataset import Dataset
from losses import Loss, Metrics
from model_utils import model_loader, runtime
from model_utils.model_loader import LoadedModel
from model_utils.models.network import Network, Parameters
from model_utils.physics.records import PhysicsReport
from model_utils.physics.subject import Subject
from model_utils.ranks import joining
from model_utils.ranks.group import Group
from model_utils.run import announcement, assemble, open_data
from model_utils.run.evaluation import OnBatch
from model_utils.settings.options import EvaluateOptions
from model_utils.tasks import evaluation_report, physics_check, reporting
from model_utils.tasks.breakdown import Breakdown
from model_utils.tasks.reporting import Baseline


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of it.

    Attributes:
        total: errors on all structures.
        by_source: errors on the structures of each file and head.
        physics: what ``--physics`` found, in the first process.
    """

    total: Metrics
    by_source: Mapping[str, Metrics]
    physics: PhysicsReport | None = None

    def require_physics(self) -> None:
        """Raise VerificationError where a check of ``--physics`` failed."""
        physics_check.require_passed(self.physics)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model that is going to be judged, in the precision and on the device where that is done."""

    loaded: LoadedModel
    dtype: torch.dtype
    device: torch.device
    network: Network
    weights: Parameters

    def subject(self, data: Dataset) -> Subject:
        """The model as the checks of its physics take it."""
        return Subject(
            network=self.network, weights=self.weights, facts=data.facts, dtype=self.dtype, device=self.device
        )

    def data(self, options: EvaluateOptions) -> Dataset:
        """The structures of the options, as this model takes them."""
        return open_data.evaluation_data(options, self.loaded.description.facts(), self.dtype)


def evaluate(options: EvaluateOptions, loss: Loss | None = None) -> Evaluation:
    """Load and verify the model, predict every structure, print the errors, write them where asked.

    Args:
        options: of the evaluation.
        loss: that is given beside the errors, with units and shapes of its own; squared errors with the weights of
            the options unless given.

    Raises:
        InputError: an output is there already, or model or data cannot be used.
        VerificationError: the weights file is damaged or not of its model.json.
    """
    group = joining.group_of()
    runtime.start_log(None)
    group.once(lambda: evaluation_report.refuse_existing(options))
    group.once(lambda: reporting.refuse_without_libraries(options.reporting))
    baseline = _baseline(options, group)
    opened = _opened(options)
    if baseline is None:
        group.connect(opened.device)
    data = opened.data(options)
    if baseline is not None:
        baseline.refuse_others(data)
    breakdown = Breakdown(data, keep_rows=options.output_table is not None, keep_frames=options.output_xyz is not None)
    physics = physics_check.examined(options.physics_checks, opened.subject(data), data, group)
    collected = reporting.collected_of(options.reporting, data)
    total, by_source = _judged(options, opened, data, reporting.seen_by(breakdown, collected), group, loss)
    if group.rank.is_first:
        evaluation_report.print_all(total, by_source, breakdown, physics)
        content = evaluation_report.content_of(options, total, by_source, breakdown, physics)
        page = None
        if collected is not None:
            content = reporting.extended(options, content, (total, collected), baseline)
            subject = reporting.subject(options, opened.loaded, opened.dtype, opened.device)
            page = reporting.page(options, subject, content, collected, data)
        evaluation_report.write(options, content, breakdown, page)
    return Evaluation(total=total, by_source=by_source, physics=physics)


def _opened(options: EvaluateOptions) -> _Opened:
    """Load and verify the model; set up precision and device."""
    loaded = model_loader.load(
        options.input_model,
        dtype=runtime.DTYPES.get(options.device.dtype or ""),
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
    )
    dtype = runtime.dtype_of(options.device.dtype, loaded.file.dtype)
    device = runtime.start(device=options.device.device, dtype=dtype, threads=options.device.threads, seed=0)
    evaluation_report.say_what_is_used(loaded, dtype, device)
    evaluation_report.warn_of_wrong_forces(loaded)
    module = loaded.module.to(device)
    network = model_loader.build_network(module, options.step, loaded.description)
    announcement.announce_step(network)
    weights = model_loader.trainable(module)
    return _Opened(loaded=loaded, dtype=dtype, device=device, network=network, weights=weights)


def _judged(
    options: EvaluateOptions, opened: _Opened, data: Dataset, on_batch: OnBatch, group: Group, loss: Loss | None = None
) -> tuple[Metrics, dict[str, Metrics]]:
    """Errors of a model on all structures and on those of each source; ``on_batch`` sees every prediction."""
    network = opened.network
    weights = opened.weights
    loss = loss or evaluation_report.loss_of(options.loss)
    batches = assemble.with_measured_evaluation_budget(options.batches, network, weights, data, opened.device, group)
    evaluator = assemble.evaluator(
        data,
        batches,
        opened.device,
        everything=options.output_xyz is not None,
        prepare=network.prepared,
        group=group,
    )
    return evaluator(network, weights, loss, on_batch)


def _baseline(options: EvaluateOptions, group: Group) -> Baseline | None:
    """The model that --compare_with names, judged before the other, so that a mistake in its name costs nothing."""
    if options.reporting.compare_with is None:
        return None
    of_baseline = reporting.options_of_baseline(options)
    opened = _opened(of_baseline)
    group.connect(opened.device)
    data = opened.data(of_baseline)
    collected = reporting.collected_without_points(data)
    total, _ = _judged(of_baseline, opened, data, collected, group)
    return Baseline(total=total, collected=collected, data=data)
