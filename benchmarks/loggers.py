"""What loggers cost a run: ``python benchmarks/loggers.py`` trains with every one on and
a record for each step.

Prints the processor time of the training thread inside calls of loggers as a share of that inside
optimizer steps. W&B is among them where it is installed (offline); a plug-in's function, which
takes 5 ms for each record in a thread of its own, always.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from model_utils import train_mace
from model_utils.run import fit
from model_utils.run.loggers import LOGGERS, Loggers, hook

DATA = ROOT / "configs" / "quickstart"
spent: dict[str, float] = {}


def timed(what: str, act: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose processor time in this thread is added up."""

    def call(*words: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return act(*words, **named)
        finally:
            spent[what] = spent.get(what, 0.0) + time.thread_time() - began

    return call


def timed_methods(name: str, opened: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a logger, whose methods are timed by themselves too."""

    def open_timed(run: Any) -> Any:
        logger = opened(run)
        for method in ("train", "validation"):
            setattr(logger, method, timed(name, getattr(logger, method)))
        return logger

    return open_timed


def main() -> None:
    """Train for a few epochs and print the share."""
    os.environ.setdefault("WANDB_MODE", "offline")
    LOGGERS["slow"] = hook(lambda category, values, epoch: time.sleep(0.005))
    names = [
        name for name, kind in LOGGERS.items() if kind.package is None or find_spec(kind.package)
    ]
    for method in ("train", "validation"):
        setattr(Loggers, method, timed("loggers", getattr(Loggers, method)))
    for name in names:
        LOGGERS[name] = replace(LOGGERS[name], opened=timed_methods(name, LOGGERS[name].opened))
    fit._Run._optimizer_step = timed("steps", fit._Run._optimizer_step)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--config",
            ROOT / "configs" / "quickstart.yaml",
            "--output_checkpoint",
            Path(folder) / "run",
        ]
        words += ["--epochs", 3, "--threads", 1, "--log_every_steps", 1, "--loggers", *names]
        words += ["--no_export_mace_model"]
        code = train_mace.main([str(word) for word in words])
    share = spent["loggers"] / spent["steps"]
    print(json.dumps({"code": code, "loggers": names, **spent, "share": share}))


if __name__ == "__main__":
    main()
