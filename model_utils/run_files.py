"""The files of a run while it lasts: what the loop's hooks write, and what a later run continues from."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from dataloader.sources import Source
from losses import Loss, Metrics
from model_utils import checkpoint, durable
from model_utils.assemble import Evaluator
from model_utils.checkpoint import WeightsFile
from model_utils.errors import SaveError, VerificationError
from model_utils.fit import Hooks, TrainRecord, ValidationRecord
from model_utils.model_loader import PairWriter
from model_utils.models.network import Network, Parameters
from model_utils.open_data import TrainingData
from model_utils.outputs import Outputs
from model_utils.report import MetricsFile, ProgressBar, TensorBoard, log_train, log_validation
from model_utils.runtime import dtype_name, log
from model_utils.train_state import TrainState


class RunFiles:
    """Writes checkpoint, best model, metrics and events of one run.

    Args:
        outputs: their places.
        writer: of the pair.
        config: all settings as plain values; they go into the checkpoint and into config.resolved.yaml.
        data: its identity goes into the checkpoint.
        metrics_offset: where a continued run left metrics.jsonl; None begins it.
        tensorboard: write events too.
    """

    def __init__(
        self,
        outputs: Outputs,
        writer: PairWriter,
        config: Mapping[str, Any],
        data: TrainingData,
        *,
        metrics_offset: int | None,
        tensorboard: bool,
    ) -> None:
        self.outputs, self.writer, self.config, self.data = outputs, writer, config, data
        durable.write_text(outputs.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        if data.was_split:
            names = [data.valid.name(i) for i in range(len(data.valid))]
            durable.write_text(outputs.valid_names, "\n".join(names) + "\n")
        self.metrics = MetricsFile(outputs.metrics, offset=metrics_offset)
        self.events = TensorBoard(outputs.tensorboard) if tensorboard else None
        self.identity = data_identity(data)
        self.longest_save = 0.0

    def hooks(
        self, network: Network, validate: Evaluator, progress: ProgressBar, stop: Callable[[], str | None]
    ) -> Hooks:
        """The loop's hooks, writing here."""

        def measure(parameters: Parameters, loss: Loss) -> tuple[Metrics, Mapping[str, Metrics]]:
            return validate(network, parameters, loss)

        return Hooks(
            validate=measure,
            on_step=progress,
            on_train=self.on_train,
            on_validation=self.on_validation,
            on_best=self.on_best,
            on_stage_two=self.on_stage_two,
            save=self.save,
            stop_reason=stop,
            names=self.data.train.names,
        )

    def on_train(self, record: TrainRecord) -> None:
        """A training line."""
        log_train(record)
        self.metrics.train(record)
        if self.events is not None:
            self.events.train(record)

    def on_validation(self, record: ValidationRecord) -> None:
        """A validation line."""
        log_validation(record)
        self.metrics.validation(record)
        if self.events is not None:
            self.events.validation(record)

    def on_best(self, state: TrainState, found: Metrics) -> None:
        """A new best model."""
        progress = state.progress
        self.writer.save_best(
            state.judged, weights=state.judged_kind, epoch=progress.epoch, step=progress.step, metrics=found
        )

    def on_stage_two(self, state: TrainState) -> None:
        """Stage two begins."""
        self.writer.keep_stage_one()
        log.info(
            "stage two begins after epoch %d: loss weights and rate change, the best model starts anew",
            state.progress.epoch,
        )

    def save(self, state: TrainState, reason: str) -> None:
        """Write the checkpoint.

        Raises:
            SaveError: it could not be written; the generations before are untouched.
        """
        began = time.monotonic()
        train_state = {
            **state.state_dict(),
            "config": dict(self.config),
            "dtype": dtype_name(next(iter(state.parameters.values())).dtype),
            "metrics_offset": self.metrics.offset(),
            "reason": reason,
            **self.identity,
        }
        try:
            self.writer.save_checkpoint(state.network.module, train_state)
        except OSError as error:
            raise SaveError(
                f"cannot write {self.outputs.checkpoint}: {error.strerror or error}; older files are intact"
            ) from None
        self.longest_save = max(self.longest_save, time.monotonic() - began)

    def close(self) -> None:
        """Close what is open."""
        self.metrics.close()


def data_identity(data: TrainingData) -> dict[str, Any]:
    """What a continued run compares with its own data: files, counts, a hash of the structures' names and places."""
    parts: dict[str, Any] = {"train": data.train, "valid": data.valid, "test": data.test}
    fingerprints = {
        role: {
            "files": [str(source.path) for source in dataset.sources],
            "structures": len(dataset),
            "sha256": hashlib.sha256(
                dataset.places.tobytes() + b"".join(_content(source) for source in dataset.sources)
            ).hexdigest(),
        }
        for role, dataset in parts.items()
        if dataset is not None
    }
    lmdb = any(not source.in_memory for source in data.train.sources)
    indices = data.train.places[:, 1].tolist() if lmdb and len(data.train) <= 100_000 else None
    return {"data": fingerprints, "lmdb_indices": indices}


def _content(source: Source) -> bytes:
    """What tells one file from another: all of it where it is in memory, else its size and those of its records."""
    if source.in_memory:
        return hashlib.sha256(source.path.read_bytes()).digest()
    data = source.path / "data.mdb" if source.path.is_dir() else source.path
    return str(data.stat().st_size).encode() + source.n_atoms.tobytes()


def newest_checkpoint(path: Path) -> WeightsFile | None:
    """The newest valid generation of a checkpoint; None where there is none at all.

    Raises:
        VerificationError: generations are there and every one is damaged; never a silent restart.
    """
    generations = [p for p in (path, checkpoint.previous_generation(path)) if p.exists()]
    for position, generation in enumerate(generations):
        try:
            file = checkpoint.read(generation)
        except VerificationError as error:
            if position == len(generations) - 1:
                raise
            log.warning("%s; using the generation before", error)
            continue
        return file
    return None


def continue_from(
    file: WeightsFile, module: nn.Module, state: TrainState, config: Mapping[str, Any], data: TrainingData
) -> None:
    """Put a stored run into a freshly assembled one, and say what is not as it was.

    Raises:
        VerificationError: the checkpoint is of another network or of other data.
    """
    from model_utils.models.build import load_tensors

    load_tensors(module, file.tensors, file.description, str(file.path))
    stored = file.content["train_state"]
    mine = data_identity(data)
    for role, fingerprint in stored["data"].items():
        if mine["data"].get(role, {}).get("sha256") != fingerprint["sha256"]:
            raise VerificationError(
                f"{file.path}: the {role} data are not those of the run ({fingerprint['structures']} structures of "
                f"{', '.join(fingerprint['files'])}); give the same files, or start anew with --overwrite"
            )
    state.load_state_dict(stored)
    changed = [
        k for k, v in config.items() if k in stored["config"] and stored["config"][k] != v and k not in _HARMLESS
    ]
    if changed:
        log.warning("not bitwise: settings changed since the checkpoint: %s", ", ".join(changed))
    log.info("continue %s: epoch %d, step %d", file.path, state.progress.epoch + 1, state.progress.step)


_HARMLESS = {"resume", "overwrite", "config", "debug", "num_workers", "time_limit", "tensorboard", "dry_run"}
