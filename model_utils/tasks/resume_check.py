"""Does a run of these settings survive a kill? A straight run against one that is killed and
resumed, as processes.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from dataloader.progress import ProgressBar
from model_utils.errors import InputError, VerificationError, cannot_write
from model_utils.files import checkpoint
from model_utils.files.digest import digest
from model_utils.files.outputs import Outputs
from model_utils.runtime import log, start_log
from model_utils.settings import reading
from model_utils.settings.options import VerifyResumeOptions
from model_utils.tasks.same_bits import differences

TRAIN = Path(__file__).parents[1] / "train_mace.py"
SHOWN = 5  # differences


def verify(options: VerifyResumeOptions) -> None:
    """Run some steps straight, as many with a kill in the middle, and compare the two.

    Raises:
        InputError: a run fails by itself, or ends before it can be killed.
        VerificationError: the two differ, or a planted fault was not noticed.
    """
    start_log()
    folder = options.output.output_checkpoint
    straight = Outputs.named(folder / "straight" / "run_checkpoint.pt", None)
    killed = Outputs.named(folder / "killed" / "run_checkpoint.pt", None)
    command = _command(options, folder)

    log.info("%d steps straight, in %s", options.steps, straight.checkpoint.parent)
    _run([*command, str(straight.checkpoint), "--overwrite"], straight, options.steps)
    log.info(
        "%d steps with a kill -9 in the middle, in %s", options.steps, killed.checkpoint.parent
    )
    step = _run_and_kill(
        [*command, str(killed.checkpoint), "--overwrite"], killed, options.steps // 2
    )
    saved_step = checkpoint.read(killed.checkpoint).content["train_state"]["step"]
    log.info("killed after step %d, the checkpoint is of step %d", step, saved_step)
    if options.planted_fault is not None:
        if not plant(killed.checkpoint, options.planted_fault):
            raise InputError(
                f"--planted_fault {options.planted_fault}: the checkpoint of step {saved_step} has "
                "nothing of it to forget; give other --steps"
            )
        log.info("planted: the checkpoint forgets its %s", options.planted_fault)
    _run([*command, str(killed.checkpoint), "--resume", "auto"], killed, options.steps)
    _judge(differences(straight, killed), options.planted_fault)


def _judge(differing: Sequence[str], planted_fault: str | None) -> None:
    """Say what differs, and whether it should.

    Raises:
        VerificationError: the runs differ, or a planted fault was not noticed.
    """
    for text in differing[:SHOWN]:
        log.info("  %s", text)
    if len(differing) > SHOWN:
        log.info("  and %d more", len(differing) - SHOWN)
    if bool(differing) == (planted_fault is not None):
        log.info(
            "the planted fault was found"
            if differing
            else "equal to the last bit: records, state, best model"
        )
    elif differing:
        raise VerificationError(
            f"the resumed run differs from the straight one; first {differing[0]}"
        )
    else:
        raise VerificationError(f"the planted fault ({planted_fault}) was not noticed")


def _command(options: VerifyResumeOptions, folder: Path) -> list[str]:
    """The training command up to the place of its checkpoint; its settings are written into a file.

    Raises:
        InputError: the file cannot be written.
    """
    settings = folder / "settings.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(yaml.safe_dump(_settings(options)), encoding="utf-8")
    except OSError as error:
        remedy = "give a folder as --output_checkpoint"
        raise cannot_write(settings, error, remedy) from None
    return [sys.executable, str(TRAIN), "--config", str(settings), "--output_checkpoint"]


def _settings(options: VerifyResumeOptions) -> dict[str, Any]:
    """Settings of the two runs: the user's, with so many checkpoints that the
    kill falls between two.
    """
    every = {
        "max_steps": options.steps,
        "checkpoint_every_steps": max(options.steps // 4, 1),
        "log_every_steps": 1,
    }
    ours = {"config", "steps", "planted_fault", "resume", "overwrite", "run_dir"}
    ours |= {"output_checkpoint", "output_model", "output_safetensors"}
    plain = {**reading.as_plain(options), **every, "export_mace_model": False}
    return {
        name: value
        for name, value in plain.items()
        if name not in ours and value is not None and value != []
    }


def _run(command: Sequence[str], outputs: Outputs, steps: int) -> None:
    """A run to its end, with progress by what it records."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ProgressBar(outputs.checkpoint.parent.name, steps, "steps") as progress:
        while True:
            with suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=1.0)
                break
            progress.update(_steps_recorded(outputs.metrics) - progress.done)
    if process.returncode:
        raise InputError(f"a run ended with {process.returncode}: {err.strip() or out[-300:]}")


def _run_and_kill(command: Sequence[str], outputs: Outputs, at: int) -> int:
    """Start a run and kill it once its records reach a step; returns the step."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        with ProgressBar(outputs.checkpoint.parent.name, at, "steps") as progress:
            while process.poll() is None:
                step = _steps_recorded(outputs.metrics)
                progress.update(step - progress.done)
                if step >= at:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return step
                time.sleep(0.002)
    finally:
        process.kill()
    assert process.stderr is not None  # a pipe, as asked for above
    raise InputError(
        f"the run ended with {process.returncode} before it could be killed at step {at}: "
        f"{process.stderr.read().strip() or 'give more --steps'}"
    )


def _steps_recorded(metrics: Path) -> int:
    """The step of the last whole record of metrics.jsonl; 0 where there is none."""
    if not metrics.exists():
        return 0
    lines = metrics.read_bytes().split(b"\n")[:-1]  # the last one may be half written
    return int(json.loads(lines[-1]).get("step", 0)) if lines else 0


def plant(path: Path, item: str) -> bool:
    """Let a checkpoint forget one item of its state; its digest is made anew, so that
    only the run can notice. Returns whether there was anything to forget: at the end of an epoch
    the position within it is 0.
    """
    content = dict(checkpoint.read(path).content)
    before = digest(content["train_state"])
    FORGET[item](content["train_state"])
    is_other = digest(content["train_state"]) != before
    for name in ("format_version", "kind"):
        content.pop(name)
    checkpoint.write_checkpoint(path, content)
    return is_other


# What a checkpoint can forget: each changes the state of a run (``train_state``) in place.


def _moments(state: dict[str, Any]) -> None:
    state["optimizer"]["state"] = {}


def _schedule(state: dict[str, Any]) -> None:
    state["scheduler"] |= {
        "steps": 0,
        "epochs": 0,
        "waited": 0,
        "reductions": 0,
        "best": float("inf"),
    }


def _held_rate(state: dict[str, Any]) -> None:
    state["scheduler"]["held"] = None


def _average(state: dict[str, Any]) -> None:
    shadow = state["ema_state_dict"]["shadow"]
    state["ema_state_dict"]["shadow"] = {
        name: torch.zeros_like(tensor) for name, tensor in shadow.items()
    }


def _updates(state: dict[str, Any]) -> None:
    state["ema_state_dict"]["updates"] = 0


def _tally(state: dict[str, Any]) -> None:
    tally = state["tally"]
    tally["sums"] = dict.fromkeys(tally["sums"], 0.0)
    tally["gradient"] = torch.zeros_like(tally["gradient"])


def _generators(state: dict[str, Any]) -> None:
    state["rng"]["torch"] = torch.Generator().manual_seed(9).get_state()


def _with(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Forget single numbers: they become what is given."""
    return lambda state: state.update(values)


FORGET: dict[str, Callable[[dict[str, Any]], None]] = {
    "moments": _moments,
    "schedule": _schedule,
    "held_rate": _held_rate,
    "average": _average,
    "average_updates": _updates,
    "epoch_sums": _tally,
    "generators": _generators,
    "epoch": _with(epoch=0),
    "position": _with(steps_in_epoch=0),
    "step": _with(step=1),
    "samples": _with(samples=0),
    "stage": _with(stage=1),
    "best_loss": _with(best_loss=0.0),
    "best_epoch": _with(best_epoch=99),
    "best_step": _with(best_step=99),
    "waited": _with(waited=99),
    "validated_step": _with(validated_step=3),
    "validation_due": _with(validation_due=True),
    "metrics_offset": _with(metrics_offset=0),
}
