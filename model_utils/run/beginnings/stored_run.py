"""A stored run: what its checkpoint says of it, under names and of known kinds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_utils.errors import VerificationError
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.generations import previous_generation
from model_utils.files.outputs import Outputs, real, written_at
from model_utils.models.description import ModelDescription
from model_utils.runtime import DTYPES

# settings that may change at a named place, and tell runs of an experiment apart
LENGTHS = ("epochs", "max_steps", "patience")
# by which runs are told apart, and which a continuation may change
CHANGEABLE = ("lr", "ema", *LENGTHS)
KINDS = {  # entry of train_state: its kind; a run cannot go on without these
    "optimizer": dict,
    "scheduler": dict,
    "config": dict,
    "history": list,
    "computed_on": dict,
    "data": dict,
    "epoch": int,
    "step": int,
    "metrics_offset": int,
    "dtype": str,
    "rng": dict,
    "tally": dict,
}


@dataclass(frozen=True, kw_only=True)
class KnownRecords:
    """What of metrics.jsonl a run knows as its own when it is opened: nothing of a new run."""

    offset: int = 0  # bytes of the file when the checkpoint was written
    step: int = 0  # optimizer steps behind that checkpoint


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as one of its checkpoints has it.

    Attributes:
        file: the checkpoint, of whichever generation, with the raw weights.
        config: every setting by the name of its flag, as plain values.
        epoch: finished epochs.
        step: optimizer steps behind it.
        is_over: whether the run had come to its end.
        has_ema: whether weights were averaged.
        dtype: working precision.
        threads: of the process that computed last; None where the checkpoint does not say.
        computed_on: what decided the last bits (``TrainState.computed_on``).
        code_version: of the code that computed last (``versions.code_version``).
        data: files, counts and hash of the data sets (``data_identity``), by train, valid and test.
        loss_units: spread of the labels by quantity, where the loss has it as its units.
        source: path and hash of the model that a fine-tuning began with; None of a
            run from fresh weights.
        earlier_hashes: of the descriptions before this one.
        history: one entry for each continuation with changes or at another place.
        metrics_offset: bytes of metrics.jsonl when the checkpoint was written.
        state: what ``TrainState.load_state_dict`` takes.
    """

    file: WeightsFile
    config: Mapping[str, Any]
    epoch: int
    step: int
    is_over: bool
    has_ema: bool
    dtype: torch.dtype
    threads: int | None
    computed_on: Mapping[str, Any]
    code_version: Mapping[str, str]
    data: Mapping[str, Mapping[str, Any]]
    loss_units: Mapping[str, float]
    source: Mapping[str, Any] | None
    earlier_hashes: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...]
    metrics_offset: int
    state: Mapping[str, Any]

    @classmethod
    def of_checkpoint(cls, file: WeightsFile) -> "StoredRun":
        """The run of a verified checkpoint.

        Raises:
            VerificationError: it lacks something that a run needs to go on.
        """
        state = file.content["train_state"]
        missing = [name for name, kind in KINDS.items() if not isinstance(state.get(name), kind)]
        if "dtype" not in missing and state["dtype"] not in DTYPES:
            missing.append("dtype")
        if missing:
            raise VerificationError(
                f"{file.path} is not as we write it: {', '.join(missing)} missing "
                "or of another kind"
            )
        own_hash = file.description.hash()
        return cls(
            file=file,
            config=state["config"],
            epoch=state["epoch"],
            step=state["step"],
            is_over=state.get("finished") is not None,
            has_ema=state.get("ema_state_dict") is not None,
            dtype=DTYPES[state["dtype"]],
            threads=state["computed_on"].get("threads"),
            # of a run before there were parts
            computed_on={"step_parts": 1, **state["computed_on"]},
            code_version=file.content["code_version"],
            data=state["data"],
            loss_units=state.get("loss_units", {}),
            source=state.get("source"),  # of a run before there was fine-tuning it is not there
            earlier_hashes=tuple(h for h in file.content["model_json_history"] if h != own_hash),
            history=tuple(state["history"]),
            metrics_offset=state["metrics_offset"],
            state=state,
        )

    @property
    def path(self) -> Path:
        """Where the checkpoint lies."""
        return self.file.path

    @property
    def description(self) -> ModelDescription:
        """Structure of the network."""
        return self.file.description

    def original(self) -> Path | None:
        """The checkpoint of another run that lies where this one was written: that of which it is
        a copy, or one that was begun there since. None of a run that lies there itself, or was
        moved; and where this user may not look.
        """
        there = written_at(self.config)
        own = self.outputs().checkpoint
        if there is None or real(there) == real(own):
            return None
        is_there = any(os.path.exists(path) for path in (there, previous_generation(there)))
        return there if is_there else None

    def outputs(self) -> Outputs:
        """The places of its files, which may have been moved since it was written."""
        return Outputs.of_checkpoint(self.path, self.config)
