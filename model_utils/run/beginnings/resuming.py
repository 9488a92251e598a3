"""Which stored run goes on at a place: the newest valid checkpoint, and whether it is
the run that was meant.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloader import durable, input_files
from losses import LOSSES
from model_utils import model_loader, plugins
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.generations import damaged, is_previous, previous_generation
from model_utils.files.kept import PATTERN
from model_utils.files.outputs import Outputs, checkpoints_in, real
from model_utils.models.description import ModelDescription, differing_fields
from model_utils.ranks.group import Group
from model_utils.run.beginnings.stored_run import StoredRun
from model_utils.run.budget import DEFAULT_BATCH_SIZE
from model_utils.runtime import dtype_name, log
from model_utils.settings import reading
from model_utils.settings.declared import FIXED, names_of
from model_utils.settings.options import TrainOptions

# settings that a run keeps in its state or its model.json, and that may be left out
HELD = ("dtype", "start_stage_two", "scheduler_length", "network")
LAGGING = (0.5, 2.0, 5.0)  # s until a network file system shows what another machine wrote


def newest_checkpoint(path: Path) -> WeightsFile | None:
    """The newest valid generation of a checkpoint; None where there is none at all.

    Args:
        path: ``X_checkpoint.pt``, or ``X_checkpoint.prev.pt`` for that one only.

    Raises:
        InputError: the file holds best weights and no state.
        VerificationError: generations are there and every one is damaged; never a silent restart.
    """
    previous = [] if is_previous(path.name) else [previous_generation(path)]
    generations = [p for p in (path, *previous) if p.exists()]
    for position, generation in enumerate(generations):
        try:
            return _with_state(checkpoint.read(generation))
        except VerificationError as error:
            if position == len(generations) - 1:
                raise
            log.warning(
                "warning: %s; using %s, the generation before",
                error,
                generations[position + 1].name,
            )
    return None


def _with_state(file: WeightsFile) -> WeightsFile:
    if file.kind != "checkpoint":
        raise InputError(
            f"{file.path} holds best weights only, no state to continue from; give the "
            "*_checkpoint.pt of the run"
        )
    plugins.compare(file.content.get("plugins", []), file.path, of_models=False)
    return file


def newest_run(path: Path) -> StoredRun | None:
    """The run of the newest valid generation of a checkpoint; None where there is none at all.

    Raises:
        InputError, VerificationError: as ``newest_checkpoint``, and where
            something is missing in it.
    """
    file = newest_checkpoint(path)
    return None if file is None else StoredRun.of_checkpoint(file)


def run_to_continue(outputs: Outputs, begin_with: Path | None) -> StoredRun | None:
    """The run that goes on at a place; None where there is none.

    Args:
        outputs: the place.
        begin_with: a checkpoint elsewhere (or an older one) to begin with. Where this very
            continuation was begun at the place before, as by a job that was requeued, it is what
            lies there that goes on.

    Raises:
        InputError: the place holds another run.
        VerificationError: there are only damaged checkpoints.
    """
    if begin_with is None or is_same_run(begin_with, outputs.checkpoint):
        return newest_run(begin_with or outputs.checkpoint)
    begun = newest_run(outputs.checkpoint)
    if begun is None:
        outputs.refuse_another_run()
        return newest_run(begin_with)
    if not any(is_same_run(Path(entry["from"]), begin_with) for entry in begun.history):
        outputs.refuse_another_run()
    return begun


def say_run(group: Group, stored: StoredRun | None) -> None:
    """Tell the other processes which checkpoint the run goes on from, if
    any; called by the first.
    """
    if group.rank.size == 1:
        return  # and nobody reads the file a second time, which may have been moved

    def text() -> bytes:
        file = (
            {}
            if stored is None
            else {"path": os.path.realpath(stored.path), "sha256": _sha256(stored.path)}
        )
        return json.dumps(file).encode()

    group.of_first(text)


def run_of_first(group: Group) -> StoredRun | None:
    """The run that the first process found; the others read its checkpoint, and
    never choose by themselves.

    Raises:
        VerificationError: another file is seen here under its name, as on a network file
            system that lags behind.
    """
    said = json.loads(group.of_first(bytes))
    if not said:
        return None
    path = Path(said["path"])
    _wait_for(path, said["sha256"])
    return StoredRun.of_checkpoint(_with_state(checkpoint.read(path)))


def wait_for_file_of_first(group: Group, path: Path) -> None:
    """See that all processes read the same file under a name; several on one machine always do.

    Raises:
        VerificationError: another file is seen here, or none.
    """
    if group.rank.size > 1:
        said = group.of_first(lambda: _sha256(path).encode()).decode()
        if not group.rank.is_first:
            _wait_for(path, said)


def _wait_for(path: Path, sha256: str) -> None:
    """Wait until a network file system shows what the first process sees."""
    for pause in (*LAGGING, None):
        if path.exists() and _sha256(path) == sha256:
            return
        if pause is not None:
            time.sleep(pause)
    raise VerificationError(
        f"{path} is another file on {socket.gethostname()} than where the run's first process "
        "reads it; give --output_checkpoint a folder that all machines share"
    )


def _sha256(path: Path) -> str:
    with input_files.opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_same_run(checkpoint_path: Path, other_path: Path) -> bool:
    """Whether two paths are generations of one checkpoint."""
    newest = Outputs.of_checkpoint(checkpoint_path, {}).checkpoint
    other_newest = Outputs.of_checkpoint(other_path, {}).checkpoint
    return real(newest) == real(other_newest)


def refuse_remains(outputs: Outputs) -> None:
    """Where --resume finds no checkpoint: the run starts anew, unless it would write over
    what another one left.

    Raises:
        InputError: a best model without checkpoint is there, or records of another run.
    """
    for path in (
        outputs.model,
        outputs.stage_one_model,
        outputs.bare_module,
        *outputs.kept.glob(PATTERN),
    ):
        if path.exists():
            raise InputError(
                f"{path} is there, but no checkpoint to resume it from; fine-tune from it with "
                "finetune.py, move it away, or give --overwrite in place of --resume"
            )
    others = checkpoints_in(outputs.checkpoint.parent) if outputs.metrics.exists() else []
    if others:
        raise InputError(
            f"there is no {outputs.checkpoint}, but {others[0].name} of another run beside, whose "
            f"records would be replaced; continue that one with --output_checkpoint {others[0]}, "
            "or give another place"
        )
    log.info("no checkpoint at %s yet: the run starts anew", outputs.checkpoint)


def require_same_network(
    stored: StoredRun, options: TrainOptions, outputs: Outputs, description: ModelDescription
) -> None:
    """Refuse to continue a run as one of another network, or with a best model that is not its own.

    Raises:
        VerificationError: the model.json is another one.
        InputError: --output_model names a file of something else.
    """
    if stored.description.hash() != description.hash():
        differences = "; ".join(differing_fields(stored.description, description)[:3])
        raise VerificationError(
            f"{stored.path} was trained with another model.json than {options.input_json}: "
            f"{differences}; resume with the one beside the checkpoint"
        )
    model_loader.check_descriptions(stored.file, outputs)
    before = stored.outputs()
    goes_on_in_its_place = real(before.checkpoint) == real(outputs.checkpoint)
    if (
        goes_on_in_its_place
        and outputs.model.exists()
        and real(outputs.model) != real(before.model)
    ):
        raise InputError(
            f"--output_model {outputs.model} is there and not of this run; give another place"
        )


def refuse_contradictions(
    stored: StoredRun, options: TrainOptions, may_differ: Sequence[str] = ()
) -> None:
    """A command line that asks for other settings than those of the run it continues is a mistake.

    Args:
        stored: the run.
        options: of the command line.
        may_differ: names of settings in which a change was asked for.

    Raises:
        InputError: naming the first one.
    """
    fixed = names_of(TrainOptions, FIXED)  # the others are no part of what a step computes
    asked = reading.as_plain(options)
    for name in asked:
        if name not in fixed or name in may_differ or name not in stored.config:
            continue
        is_left_out = asked[name] is None
        now = _meant(name, asked)
        before = _meant(name, stored.config)
        if asked[name] == stored.config[name] or now == before:
            continue
        if is_left_out and name in HELD:
            continue
        if name == "dtype" and now == dtype_name(stored.dtype):
            continue
        if name == "max_edges_per_batch" and now == "auto" and before is not None:
            continue  # was measured, and stays
        remedy = "leave it out" if before is None else "give that"
        raise InputError(
            f"--{name} is {'left out' if is_left_out else _shown(now)}, but the run of "
            f"{stored.path} has {'none' if before is None else _shown(before)}; {remedy}, start a "
            "new run elsewhere, or change what may change with resume.py (--lr, --ema, --epochs, "
            "--reset_scheduler); here --resume_new_lr takes the rate of --lr"
        )


def _meant(name: str, settings: Mapping[str, Any]) -> Any:
    """What a setting comes to: of one that was left out the default, which may be written out
    as well.
    """
    value = settings.get(name)
    if value is not None:
        return value
    is_budgeted = settings.get("max_atoms_per_batch") or settings.get("max_edges_per_batch")
    if name == "batch_size" and not is_budgeted:
        return DEFAULT_BATCH_SIZE
    if name in ("energy_loss", "forces_loss", "stress_loss"):
        return "mse"
    if name == "stress_weight":
        loss = settings.get("loss")
        return LOSSES[loss].weights.get("stress", 0.0) if loss in LOSSES else 0.0
    return None


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def set_aside_damaged(stored: StoredRun, outputs: Outputs) -> None:
    """Rename a damaged newest generation, or the next save would make it the generation before.

    Args:
        stored: the run as it was read, from an older generation perhaps.
        outputs: where it goes on.

    Raises:
        OSError: the file cannot be renamed.
    """
    newest = outputs.checkpoint
    if newest.exists() and real(stored.path) != real(newest):
        try:
            checkpoint.read(newest)
        except VerificationError:
            os.replace(newest, damaged(newest))


def adopt(source: Outputs, outputs: Outputs) -> None:
    """Bring what belongs to a run to the place where it goes on: best models,
    and its records so far.

    Args:
        source: the place of the run until now.
        outputs: the place where it goes on; nothing is done where that is the same.

    Raises:
        OSError: a file cannot be written.
    """
    best_models = {
        source.model: outputs.model,
        source.stage_one_model: outputs.stage_one_model,
    }
    best_models |= {path: outputs.kept / path.name for path in source.kept.glob(PATTERN)}
    for old, new in best_models.items():
        if old.exists() and real(old) != real(new):
            new.parent.mkdir(exist_ok=True)
            durable.write(new, old.read_bytes())
    if source.metrics.exists() and real(source.metrics) != real(outputs.metrics):
        with input_files.opened(source.metrics) as file:
            durable.write(outputs.metrics, file.read())
