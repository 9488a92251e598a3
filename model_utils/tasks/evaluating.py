"""What evaluate.py does: a model, judged on structures by the one evaluation that there is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dataloader.dataset import Dataset
from losses import Loss
from model_utils import runtime
from model_utils.errors import InputError
from model_utils.files.lasting import lasting
from model_utils.metrics import Metrics
from model_utils.physics.records import PhysicsReport
from model_utils.ranks import joining
from model_utils.ranks.group import Group
from model_utils.run import loading
from model_utils.run.advice.crowding import Crowding
from model_utils.run.budget import with_measured_evaluation_budget
from model_utils.run.evaluation import OnBatch
from model_utils.settings.options import EvaluateOptions
from model_utils.tasks import evaluation_report, opened_models, physics_check, reporting
from model_utils.tasks.breakdown import Breakdown
from model_utils.tasks.calibration import Calibration
from model_utils.tasks.opened_models import OpenedModel
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


def evaluate(options: EvaluateOptions, loss: Loss | None = None) -> Evaluation:
    """Load and verify the model, predict every structure, print the errors, write them where asked.

    Args:
        options: of the evaluation.
        loss: that is given beside the errors, with units and shapes of its own; squared errors with
            the weights of the options unless given.

    Raises:
        InputError: an output is there already, or model or data cannot be used.
        VerificationError: the weights file is damaged or not of its model.json.
    """
    group = joining.group_of()
    runtime.start_log()
    names = "\0".join(str(lasting(path)) for path in options.input_model).encode()
    models = group.of_first(lambda: names).decode().split("\0")
    options = replace(options, input_model=tuple(map(Path, models)))
    group.once(lambda: evaluation_report.refuse_existing(options))
    group.once(lambda: reporting.refuse_without_libraries(options.reporting))
    baseline = _baseline(options, group)
    opened = opened_models.opened(options)
    if baseline is None:
        group.connect(opened.device)
    data = opened.data(options)
    if baseline is not None:
        baseline.refuse_others(data)
    breakdown = Breakdown(
        data,
        keep_rows=options.output_table is not None,
        keep_frames=options.output_xyz is not None,
        by_type=options.output_json is not None or options.reporting.report is not None,
    )
    physics = physics_check.examined(options.physics_checks, opened.subject(data), data, group)
    collected = reporting.collected_of(options.reporting, data)
    calibration = Calibration(len(opened.members)) if opened.is_committee else None
    seen = reporting.seen_by(breakdown, calibration, collected)
    total, by_source = _judged(options, opened, data, seen, group, loss)
    if group.rank.is_first:
        evaluation_report.print_all(total, by_source, breakdown, calibration, physics)
        content = evaluation_report.content_of(options, total, by_source, breakdown, physics)
        if calibration is not None:
            content["committee"] = calibration.as_content(options.input_model)
        page = None
        if collected is not None:
            content = reporting.extended(options, content, (total, collected), baseline)
            subject = reporting.subject(options, opened.loaded, opened.dtype, opened.device)
            page = reporting.page(options, subject, content, collected, data)
        evaluation_report.write(options, content, breakdown, page)
    return Evaluation(total=total, by_source=by_source, physics=physics)


def _judged(
    options: EvaluateOptions,
    opened: OpenedModel,
    data: Dataset,
    on_batch: OnBatch,
    group: Group,
    loss: Loss | None = None,
) -> tuple[Metrics, dict[str, Metrics]]:
    """Errors of a model on all structures and on those of each source; ``on_batch``
    sees every prediction.
    """
    network = opened.network
    weights = opened.weights
    loss = loss or evaluation_report.loss_of(options.loss)
    batches = with_measured_evaluation_budget(
        options.batches, network, weights, data, opened.device, group
    )
    evaluator = loading.evaluator(
        data,
        batches,
        opened.device,
        Crowding(opened.device).watch,
        everything=options.output_xyz is not None,
        prepare=network.prepared,
        group=group,
    )
    return evaluator(network, weights, loss, on_batch)


def _baseline(options: EvaluateOptions, group: Group) -> Baseline | None:
    """The model that --compare_with names, judged before the other, so that a mistake in
    its name costs nothing.

    Raises:
        InputError: it cannot be read, or does not take the structures.
    """
    if options.reporting.compare_with is None:
        return None
    of_baseline = reporting.options_of_baseline(options)
    opened = opened_models.opened(of_baseline)
    group.connect(opened.device)
    try:
        data = opened.data(of_baseline)
    except InputError as error:
        raise InputError(
            f"the baseline, {options.reporting.compare_with}: {error} (--compare_head names the "
            "head of it that judges all structures)"
        ) from None
    collected = reporting.collected_without_points(data)
    total, _ = _judged(of_baseline, opened, data, collected, group)
    return Baseline(total=total, collected=collected, data=data)
