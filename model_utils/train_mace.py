"""Train a MACE model from a model.json: ``python model_utils/train_mace.py --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: import our modules from the checkout, not from beside this script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from model_utils import cli
from model_utils.options import TrainOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    return cli.run(TrainOptions, train, argv)


def train(options: TrainOptions) -> None:
    """Build the network the JSON describes, fit it, keep a resumable checkpoint and the best weights."""
    # torch is imported only now: --help and mistakes in flags are answered in a fraction of a second
    from model_utils import assemble, closing, model_loader, open_data, run_files, runtime, starting
    from model_utils.fit import fit
    from model_utils.models import description as model_json
    from model_utils.outputs import Outputs

    description = model_json.read(options.input_json)
    outputs = Outputs.named(options.output_checkpoint, options.output_model)
    checkpoint = starting.find_run(options, outputs, description)
    dtype = runtime.dtype_of(options.dtype, starting.default_dtype(checkpoint))
    device = runtime.start(
        device=options.device,
        dtype=dtype,
        threads=options.threads,
        seed=options.seed,
        deterministic=options.deterministic,
    )
    starting.announce(options, outputs, description)

    data = open_data.training_data(options, description.facts(), dtype, options.seed)
    module = model_loader.build(description, dtype, options.seed, str(options.input_json))
    writer = model_loader.PairWriter(outputs, description, module, runtime.code_version())
    batches = assemble.training_batches(options, data, device)
    state = assemble.training_state(options, module, device, batches)
    plan = assemble.fit_plan(options)
    config = cli.as_plain(options)
    if options.dry_run:
        starting.rehearse(state, batches, plan, data)
        return
    if checkpoint is not None:
        run_files.continue_from(checkpoint, module, state, config, data)

    files = starting.open_files(options, outputs, description, writer, config, data, checkpoint)
    validate = assemble.Evaluator(data.valid, options, device)
    hooks = files.hooks(state.network, validate, starting.progress_bar(), starting.time_limit(options, files))
    fit(state, batches, plan, hooks)
    closing.report_best(options, outputs, data, files, plan.loss_of_stage(state.progress.stage), device)


if __name__ == "__main__":
    sys.exit(main())
