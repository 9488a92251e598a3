"""What happens after the last step: the best model's errors on every data set, and the file
for mace's calculator.
"""

import numpy as np
import torch

from dataloader.batching import epoch_order
from dataloader.dataset import OF_HEAD, Dataset
from model_utils import model_loader
from model_utils.errors import SaveError
from model_utils.files.outputs import Outputs
from model_utils.metrics import Metrics
from model_utils.model_loader import LoadedModel
from model_utils.models.architecture import opens_in_mace
from model_utils.models.formed import WORTH_A_WORD, FormingError, forming_error
from model_utils.run import loading
from model_utils.run.assemble import AssembledRun
from model_utils.run.beginnings import resuming
from model_utils.run.fit import FinalRecord
from model_utils.run.folder.silent_files import SilentFiles
from model_utils.runtime import dtype_name, log

COMPARED = 2  # structures
MOST_ATOMS = 256  # of one of them: less than a second of mace's forward pass
# structures: an error is known to a percent then, and all of 10⁸ would take days
MOST_OF_TRAIN = 20_000


def report_best(run: AssembledRun, outputs: Outputs, files: SilentFiles) -> None:
    """Evaluate the best model, as it lies on the disk, on training (at most a sample),
    validation and test data.

    Args:
        run: whose training is over.
        outputs: its place.
        files: get the last record and are closed.

    Raises:
        SaveError: the module or the last record could not be written;
            checkpoint and best model are.
    """
    is_first = run.group.rank.is_first
    resuming.wait_for_file_of_first(run.group, outputs.model)
    best = model_loader.load(outputs.model, restore_sidecar=is_first)
    options = run.options
    failed: str | None = None
    if is_first and options.output.export_mace_model and opens_in_mace(best.description):
        try:
            export_for_mace(outputs, best, run.data.train)  # before it leaves the CPU
        except OSError as error:
            failed = str(error)
    record = _judged(run, best)
    content = best.file.content
    log.info(
        "best model: epoch %d, step %d, %s weights, %s",
        content["epoch"],
        content["step"],
        best.file.weights,
        outputs.model,
    )
    files.final(record)
    try:
        files.close()
    except OSError as error:
        failed = failed or str(error)
    if failed is not None:
        raise SaveError(
            f"{failed}; checkpoint and best model are on the disk, start it again with --resume "
            "auto, or resume.py"
        )


def _judged(run: AssembledRun, best: LoadedModel) -> FinalRecord:
    """Errors of the best model on training (at most a sample), validation and test data."""
    options = run.options
    progress = run.state.progress
    device = run.state.device
    loss = run.plan.stage(progress.stage).loss
    module = best.module.to(device)
    network = model_loader.build_network(module, options.run.step, best.description)
    parameters = model_loader.trainable(module)
    sets = {"train": _some_of(run.data.train, options.run.seed), "valid": run.data.valid}
    if run.data.test is not None:
        sets["test"] = run.data.test
    errors: dict[str, Metrics] = {}
    rows: dict[str, Metrics] = {}
    for name, dataset in sets.items():
        what = f"errors of the best model, {name}"
        evaluator = loading.evaluator(
            dataset, options.batches, device, what=what, prepare=network.prepared, group=run.group
        )
        errors[name], by_source = evaluator(network, parameters, loss)
        # its row is that of the set, with the head where the source has one
        if len(by_source) == 1:
            rows[name + "".join(next(iter(by_source)).partition(OF_HEAD)[1:])] = errors[name]
        else:
            rows[name] = errors[name]
            rows |= {f"{name} {source}": of_source for source, of_source in by_source.items()}
    return FinalRecord(epoch=progress.epoch, step=progress.step, sets=errors, rows=rows)


def export_for_mace(outputs: Outputs, best: LoadedModel, train: Dataset) -> None:
    """Write the module for mace's calculator: in double precision where single
    would form other energies.

    Raises:
        OSError: it could not be written.
    """
    dtype = best.file.dtype
    error = FormingError(per_structure=0.0, per_atom=0.0)
    if dtype == torch.float32:
        error = forming_error(best.module, [train.batch([i]) for i in _largest(train)])
    module = best.module
    if error.matters:
        dtype = torch.float64
        module = model_loader.load(outputs.model, dtype=dtype).module
    model_loader.export_bare_module(outputs, module)
    log.info("wrote %s for mace's calculator, in %s", outputs.bare_module, dtype_name(dtype))
    if error.matters:
        log.warning(
            "warning: mace adds E0s in the module's precision: in float32 its energies would "
            "differ from those judged here by up to %s, so the module is float64; leave "
            'default_dtype out or give default_dtype="float64"',
            error,
        )
    elif error.per_structure > WORTH_A_WORD:
        log.info(
            "mace adds E0s in float32 there: its energies differ from those judged here by up to "
            "%s; `read_model.py convert --to module --dtype float64` and "
            'default_dtype="float64" give them',
            error,
        )


def _largest(train: Dataset) -> list[int]:
    """Structures on which to compare: the largest that are quick to compute,
    and some of the others.
    """
    order = np.argsort(train.n_atoms, kind="stable")
    quick = order[train.n_atoms[order] <= MOST_ATOMS]
    chosen = quick[-COMPARED:] if len(quick) else order[:1]
    spread = quick[np.linspace(0, len(quick) - 1, COMPARED).astype(int)] if len(quick) else chosen
    return sorted({*chosen.tolist(), *spread.tolist()})


def _some_of(train: Dataset, seed: int) -> Dataset:
    """The training data, or where they are many a sample of them."""
    if len(train) <= MOST_OF_TRAIN:
        return train
    log.info(
        "train: %d of %d structures are drawn to judge the best model (seed %d)",
        MOST_OF_TRAIN,
        len(train),
        seed,
    )
    return train.subset(np.sort(epoch_order(len(train), seed, epoch=0)[:MOST_OF_TRAIN]))
