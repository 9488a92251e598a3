"""What evaluate.py does: a model, judged on structures by the one evaluation that there is."""

from collections.abc import Mapping
from dataclasses import dataclass

from losses import Loss, Metrics
from model_utils import model_loader, runtime
from model_utils.ranks import joining
from model_utils.run import announcement, assemble, open_data
from model_utils.settings.options import EvaluateOptions
from model_utils.tasks import evaluation_report
from model_utils.tasks.breakdown import Breakdown


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of it.

    Attributes:
        total: errors on all structures.
        by_source: errors on the structures of each file and head.
    """

    total: Metrics
    by_source: Mapping[str, Metrics]


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
    loaded = model_loader.load(
        options.input_model,
        dtype=runtime.DTYPES.get(options.device.dtype or ""),
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
    )
    dtype = runtime.dtype_of(options.device.dtype, loaded.file.dtype)
    device = runtime.start(device=options.device.device, dtype=dtype, threads=options.device.threads, seed=0)
    group.connect(device)
    evaluation_report.say_what_is_used(loaded, dtype, device)
    evaluation_report.warn_of_wrong_forces(loaded)

    data = open_data.evaluation_data(options, loaded.description.facts(), dtype)
    module = loaded.module.to(device)
    network = model_loader.build_network(module, options.step, loaded.description)
    announcement.announce_step(network)
    weights = model_loader.trainable(module)
    loss = loss or evaluation_report.loss_of(options.loss)
    wants_frames = options.output_xyz is not None
    breakdown = Breakdown(data, keep_rows=options.output_table is not None, keep_frames=wants_frames)
    batches = assemble.with_measured_evaluation_budget(options.batches, network, weights, data, device, group)
    evaluator = assemble.evaluator(
        data, batches, device, everything=wants_frames, prepare=network.prepared, group=group
    )
    total, by_source = evaluator(network, weights, loss, breakdown)
    if group.rank.is_first:
        evaluation_report.print_all(total, by_source, breakdown)
        evaluation_report.write(options, total, by_source, breakdown)
    return Evaluation(total=total, by_source=by_source)
