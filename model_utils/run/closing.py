"""What happens after the last step: the best model's errors on every data set, and the file for mace's calculator."""

import torch

from dataloader.dataset import OF_HEAD
from losses import Loss, Metrics
from model_utils import model_loader
from model_utils.errors import SaveError
from model_utils.files.outputs import Outputs
from model_utils.run.assemble import Evaluator
from model_utils.run.open_data import TrainingData
from model_utils.run.report import table
from model_utils.run.run_files import RunFiles
from model_utils.runtime import log
from model_utils.settings.options import TrainOptions


def report_best(
    options: TrainOptions,
    outputs: Outputs,
    data: TrainingData,
    files: RunFiles,
    loss: Loss,
    device: torch.device,
) -> None:
    """Evaluate the best model, as it lies on the disk, on training, validation and test data.

    Raises:
        SaveError: the module or the last record could not be written; checkpoint and best model are.
    """
    best = model_loader.load(outputs.model)
    failed = None
    if options.export_mace_model:
        try:
            model_loader.export_bare_module(outputs, best.module)  # before it leaves the CPU
            log.info("wrote %s for mace's calculator", outputs.bare_module)
        except OSError as error:
            failed = error
    module = best.module.to(device)
    network = model_loader.network(module, options.step, best.description)
    parameters = model_loader.trainable(module)
    sets = {"train": data.train, "valid": data.valid} | ({"test": data.test} if data.test is not None else {})
    rows, parts = dict[str, Metrics](), dict[str, Metrics]()
    for name, dataset in sets.items():
        rows[name], by_source = Evaluator(dataset, options, device)(network, parameters, loss)
        if len(by_source) == 1:
            parts[name + "".join(next(iter(by_source)).partition(OF_HEAD)[1:])] = rows[name]
        else:
            parts |= {name: rows[name]} | {f"{name} {source}": found for source, found in by_source.items()}
    content = best.file.content
    log.info(
        "best model: epoch %d, step %d, %s weights, %s",
        content["epoch"],
        content["step"],
        best.file.weights,
        outputs.model,
    )
    for line in table(parts).splitlines():
        log.info("%s", line)
    files.metrics.final(rows)
    try:
        files.close()
    except OSError as error:
        failed = failed or error
    if failed is not None:
        raise SaveError(
            f"{failed}; checkpoint and best model are on the disk, start it again with --resume auto, or resume.py"
        )
