"""Continue a stored run: find its newest valid checkpoint, take over its state, say what changes and what it costs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dataloader import durable, input_files
from model_utils import runtime
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.outputs import Outputs, damaged, is_previous, real
from model_utils.models.versions import code_version
from model_utils.models.weights import load_tensors
from model_utils.run.assemble import DEFAULT_BATCH_SIZE
from model_utils.run.data_identity import require_same_data
from model_utils.run.fit import FitPlan
from model_utils.run.resumed_rate import RateChange, change_rate
from model_utils.run.train_state import TrainState
from model_utils.runtime import log
from model_utils.settings.declared import FIXED, names_of
from model_utils.settings.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a resumed run is to do otherwise than the unbroken one, and where it comes from."""

    begin_with: Path | None = None  # the checkpoint to read; that of the output place unless given
    lr: float | None = None
    reset_scheduler: bool = False
    resume_best: bool = False
    ema: bool | None = None

    def as_plain(self) -> dict[str, Any]:
        """Those that are asked for, by the names of their flags."""
        asked = {"lr": self.lr, "ema": self.ema}
        switches = {"reset_scheduler": self.reset_scheduler, "resume_best": self.resume_best}
        return {k: v for k, v in asked.items() if v is not None} | {k: v for k, v in switches.items() if v}


def newest_checkpoint(path: Path) -> WeightsFile | None:
    """The newest valid generation of a checkpoint; None where there is none at all.

    Args:
        path: ``X_checkpoint.pt``, or ``X_checkpoint.prev.pt`` for that one only.

    Raises:
        VerificationError: generations are there and every one is damaged; never a silent restart.
    """
    previous = [] if is_previous(path.name) else [checkpoint.previous_generation(path)]
    generations = [p for p in (path, *previous) if p.exists()]
    for position, generation in enumerate(generations):
        try:
            return _a_checkpoint(checkpoint.read(generation))
        except VerificationError as error:
            if position == len(generations) - 1:
                raise
            log.warning("warning: %s; using %s, the generation before", error, generations[position + 1].name)
    return None


NEEDED = {
    **{"optimizer": dict, "scheduler": dict, "config": dict, "history": list, "computed_on": dict, "data": dict},
    **{"epoch": int, "step": int, "metrics_offset": int, "dtype": str, "rng": dict, "tally": dict},
}


def require_complete(file: WeightsFile) -> WeightsFile:
    """Raise VerificationError where a checkpoint lacks something that a run needs to go on."""
    state = file.content["train_state"]
    missing = [name for name, kind in NEEDED.items() if not isinstance(state.get(name), kind)]
    if missing:
        raise VerificationError(f"{file.path} is not as we write it: {', '.join(missing)} missing or of another kind")
    return file


def resumed_run(outputs: Outputs, begin_with: Path | None) -> WeightsFile | None:
    """The checkpoint from which a run goes on at a place.

    Args:
        outputs: the place.
        begin_with: a checkpoint elsewhere (or an older one) to begin with. Where this very continuation was begun at
            the place before, as by a job that was requeued, it is what lies there that goes on.

    Raises:
        InputError: the place holds another run.
        VerificationError: there are only damaged checkpoints.
    """
    if begin_with is None or _same_run(begin_with, outputs.checkpoint):
        return newest_checkpoint(begin_with or outputs.checkpoint)
    begun = newest_checkpoint(outputs.checkpoint)
    if begun is None:
        outputs.refuse_another_run()
        return newest_checkpoint(begin_with)
    if not any(_same_run(Path(entry["from"]), begin_with) for entry in begun.content["train_state"]["history"]):
        outputs.refuse_another_run()
    return begun


def _same_run(one: Path, other: Path) -> bool:
    first, second = Outputs.of_checkpoint(one, {}), Outputs.of_checkpoint(other, {})
    return real(first.checkpoint) == real(second.checkpoint)


def set_aside_damaged(used: WeightsFile, outputs: Outputs) -> None:
    """Rename a damaged newest generation, or the next save would make it the generation before."""
    newest = outputs.checkpoint
    if newest.exists() and real(used.path) != real(newest):
        try:
            checkpoint.read(newest)
        except VerificationError:
            os.replace(newest, damaged(newest))


def _a_checkpoint(file: WeightsFile) -> WeightsFile:
    if file.kind != "checkpoint":
        raise InputError(
            f"{file.path} holds best weights only, no state to continue from; give the *_checkpoint.pt of the run"
        )
    return file


def refuse_contradictions(file: WeightsFile, config: Mapping[str, Any]) -> None:
    """A command line that asks for other settings than those of the run it continues is a mistake.

    Raises:
        InputError: naming the first one.
    """
    stored = file.content["train_state"]["config"]
    fixed = names_of(TrainOptions, FIXED)  # the others are no part of what a step computes
    for name, now in config.items():
        if name not in fixed or name not in stored or now is None or stored[name] == now:
            continue
        if now == _effective(name, stored, file.content["train_state"]):  # the default, written out
            continue
        raise InputError(
            f"--{name} is {_shown(now)}, but the run of {file.path} has {_shown(stored[name])}; give that, start a new "
            "run elsewhere, or change what may change with resume.py (--lr, --ema, --epochs, --reset_scheduler)"
        )


def _effective(name: str, config: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """What a setting that was left out came to."""
    budgeted = config.get("max_atoms_per_batch") or config.get("max_edges_per_batch")
    known = {"dtype": state["dtype"], "batch_size": None if budgeted else DEFAULT_BATCH_SIZE}
    if config.get("max_edges_per_batch"):
        known["max_edges_per_batch"] = "auto"  # was measured, and stays
    return known.get(name)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def take_over(
    file: WeightsFile,
    module: nn.Module,
    state: TrainState,
    identity: Mapping[str, Any],
    changes: Changes,
    plan: FitPlan,
    steps_per_epoch: int,
) -> list[dict[str, Any]]:
    """Put a stored run into a freshly assembled one, apply the changes, and log all that is not as it was.

    Args:
        file: the checkpoint.
        module: holds fresh weights; gets the stored ones.
        state: around the module.
        identity: of the data at hand.
        changes: asked for.
        plan: how long the run is now.
        steps_per_epoch: optimizer steps of an epoch.

    Returns:
        The run's history with this continuation, for the next checkpoint.

    Raises:
        VerificationError: the checkpoint is of another network or of other data.
        InputError: there is no best model, or the rate would stay 0.
    """
    stored = file.content["train_state"]
    notes = require_same_data(stored, identity, file.path)
    load_tensors(module, file.tensors, file.description, str(file.path))
    state.load_state_dict(stored)
    progress, history = state.progress, list(stored["history"])
    log.info("continue %s: epoch %d, step %d", file.path, progress.epoch + 1, progress.step)
    begun_before = changes.begin_with is not None and not _same_run(changes.begin_with, file.path)
    asked = changes.as_plain()
    entry = {"job": os.environ.get("SLURM_JOB_ID", ""), "changes": asked, "end": [plan.epochs, plan.max_steps]}
    applied = bool(asked) and _applied_before(history, entry, begun_before, over=stored.get("finished") is not None)
    if applied:
        log.info("%s: applied already; this continues what it began", ", ".join(f"--{name}" for name in asked))
        changes = Changes(begin_with=changes.begin_with)
    if changes.resume_best:
        notes.append(_start_from_best(Outputs.of_checkpoint(file.path, stored["config"]).model, module, state))
    if (state.ema is not None) != (stored["ema_state_dict"] is not None):
        notes.append("EMA begins with the weights of now" if state.ema is not None else "EMA ends")
    rate = RateChange(lr=changes.lr, anew=changes.reset_scheduler)
    notes += change_rate(state, plan, steps_per_epoch, stored["config"], rate)
    if changes.lr is not None and not changes.resume_best:
        notes.append("the optimizer's moments are kept")
    for note in notes:
        log.info("  %s", note)
    code = file.content["code_version"]
    code_now = code_version(file.description)
    for reason in runtime.not_bitwise(code, code_now, stored["computed_on"], state.computed_on()):
        log.warning("  not bitwise: %s", reason)
    if changes.begin_with is not None and not begun_before and not applied:
        history.append({"step": progress.step, "from": os.path.abspath(changes.begin_with), **entry})
    return history


def _applied_before(history: list[dict[str, Any]], entry: Mapping[str, Any], begun_before: bool, *, over: bool) -> bool:
    """Whether the last continuation was this very one, which a requeued job or a loop in a script repeats.

    It is where it was begun at another place before, where the job is the same, or where it was broken off and asked
    for the same end of the run.
    """
    last = history[-1] if history else {}
    if last.get("changes") != entry["changes"]:
        return False
    same_job = bool(entry["job"]) and last.get("job") == entry["job"]
    return begun_before or same_job or (not over and last.get("end") == entry["end"])


def _start_from_best(best_model: Path, module: nn.Module, state: TrainState) -> str:
    if not best_model.exists():
        raise InputError(f"--resume_best: there is no {best_model}; leave the flag out to go on from the last weights")
    best = checkpoint.read(best_model)
    load_tensors(module, best.tensors, best.description, str(best_model))
    state.optimizer.state.clear()  # moments of other weights
    if state.ema is not None:
        state.ema.restart(state.parameters)
    return f"weights of {best_model} (epoch {best.content['epoch']}, {best.weights}), moments start anew"


def adopt(source: Outputs, outputs: Outputs) -> None:
    """Bring what belongs to a run to the place where it goes on: best models, and its records so far.

    Raises:
        OSError: a file cannot be written.
    """
    for old, new in ((source.model, outputs.model), (source.stage_one_model, outputs.stage_one_model)):
        if old.exists() and real(old) != real(new):
            durable.write(new, old.read_bytes())
    if source.metrics.exists() and real(source.metrics) != real(outputs.metrics):
        with input_files.opened(source.metrics) as file:
            durable.write(outputs.metrics, file.read())
