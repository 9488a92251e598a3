"""Evaluate a trained model on labelled structures: ``python model_utils/evaluate.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils.ranks import joining
from model_utils.run.interruption import leave
from model_utils.settings import cli
from model_utils.settings.options import EvaluateOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    return cli.run(EvaluateOptions, evaluate, argv, processes="together")


def evaluate(options: EvaluateOptions) -> None:
    """Load and verify the model, predict every structure, print the errors, write them where asked."""
    # torch is imported only now: --help and mistakes in flags are answered in a fraction of a second
    from model_utils import model_loader, runtime
    from model_utils.run import announcement, assemble, open_data
    from model_utils.tasks import evaluation_report
    from model_utils.tasks.breakdown import Breakdown

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
    loss = evaluation_report.loss_of(options.loss)
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


if __name__ == "__main__":
    leave(main())
