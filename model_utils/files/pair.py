"""The pair of files of a run, its checkpoint and its best model, and the model.json beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dataloader import durable, input_files
from dataloader.errors import InputError
from dataloader.limits import MODEL_JSON_BYTES
from model_utils import plugins
from model_utils.files import checkpoint
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.outputs import Outputs
from model_utils.metrics import Metrics
from model_utils.models.description import ModelDescription
from model_utils.models.weights import copied


def write_description(
    outputs: Outputs, description: ModelDescription, source: Path | None, *, overwrite: bool
) -> None:
    """Write the canonical model.json beside both weights files.

    Where the place is the input itself (a user keeps model.json in the run's folder), the author's
    text stays as ``<name>_model.input.json``.

    Raises:
        InputError: another file with other content is there, and ``overwrite`` is not given.
    """
    text = description.canonical_text()
    for path in outputs.model_jsons:
        if path.exists():
            if holds(path, text):
                continue
            if source is not None and path.samefile(source):
                durable.write(
                    path.with_suffix(".input.json"), input_files.read_bytes(path, MODEL_JSON_BYTES)
                )
            elif not overwrite:
                raise InputError(
                    f"{path} is there with other content than the model of this run; move it away "
                    "or give --overwrite"
                )
        durable.write_text(path, text)


def refuse_other_description(
    outputs: Outputs, description: ModelDescription, source: Path | None
) -> None:
    """Refuse a place where another model.json lies, before anything is written.

    Raises:
        InputError: another file with other content is there, and it is not the ``source`` itself.
    """
    for path in outputs.model_jsons:
        known = source is not None and source.exists() and path.exists() and path.samefile(source)
        if path.exists() and not known and not holds(path, description.canonical_text()):
            raise InputError(
                f"{path} is there with other content than the model of this run; move it away "
                "or give --overwrite"
            )


def holds(path: Path, text: str) -> bool:
    """Whether a file has exactly this text."""
    return input_files.holds(path, text.encode())


class PairWriter:
    """Writes a run's checkpoint and its best model, with the description in both.

    The module under ``model`` is a copy made on the CPU before training, filled with the
    best weights: a module that was moved from CUDA does not open on a CPU, since e3nn
    keeps the device in it.
    """

    def __init__(
        self,
        outputs: Outputs,
        description: ModelDescription,
        module: nn.Module,
        version: Mapping[str, str],
        source_hashes: Sequence[str] = (),
    ) -> None:
        self.outputs = outputs
        self.description = description
        self._module = copied(module)
        self._unwritten: dict[str, Any] | None = None  # a best model that a full disk refused
        self._stage_one: bytes | None = (
            None  # the best model of stage one, as its file will be, where a full disk refused it
        )
        self._common: dict[str, Any] = {
            "model_json_text": description.canonical_text(),
            "model_json_hash": description.hash(),
            "model_json_history": [*source_hashes, description.hash()],
            "code_version": dict(version),
            "run_name": outputs.run_name,
        }
        if plugins.loaded():
            self._common["plugins"] = plugins.loaded()

    @property
    def code_version(self) -> Mapping[str, str]:
        """Versions of what computes, as both files have them."""
        version: Mapping[str, str] = self._common["code_version"]
        return version

    def begin_with(self, module: nn.Module) -> None:
        """Take all tensors of the module as they are before the first step; frozen ones
        are never written again.
        """
        self._module.load_state_dict(
            {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        )

    def in_memory(
        self, parameters: Mapping[str, Tensor], module: nn.Module, train_state: Mapping[str, Any]
    ) -> list[WeightsFile]:
        """Both files as they would be now, made and read back without touching the disk.

        Raises:
            VerificationError: one of them would not be read.
        """
        best = self._best_content(parameters, weights="raw", epoch=0, step=0, metrics={})
        files = {
            self.outputs.checkpoint: checkpoint.checkpoint_bytes(
                self._checkpoint_content(module, train_state)
            ),
            self.outputs.model: checkpoint.model_bytes(best, self._module),
        }
        return [checkpoint.read(path, data) for path, data in files.items()]

    def save_checkpoint(self, module: nn.Module, train_state: Mapping[str, Any]) -> None:
        """Raw weights and the whole training state; never averaged weights.

        Before it, a best model that waits.

        Raises:
            OSError: not written; what was there is untouched.
            NonFiniteError: a number of the state is none.
        """
        self._write_best()
        checkpoint.write_checkpoint(
            self.outputs.checkpoint, self._checkpoint_content(module, train_state)
        )

    def _checkpoint_content(
        self, module: nn.Module, train_state: Mapping[str, Any]
    ) -> dict[str, Any]:
        tensors = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        return {
            "model_state_dict": tensors,
            "weights": "raw",
            "train_state": train_state,
            **self._common,
        }

    def save_best(
        self, parameters: Mapping[str, Tensor], *, metrics: Metrics, **facts: Any
    ) -> None:
        """The best weights so far, averaged ones where there is an average.

        Args:
            parameters: the weights.
            metrics: their errors of the validation data.
            facts: ``weights``, ``epoch``, ``step``, ``stage`` and ``score`` (the metric that the
                run judges by, and its value), as plain values.

        Raises:
            OSError: not written; the next checkpoint tries it again.
        """
        self._unwritten = self._best_content(parameters, metrics=metrics.as_plain(), **facts)
        self._write_best()

    def save_kept(self, path: Path, parameters: Mapping[str, Tensor], **facts: Any) -> None:
        """Weights that are kept beside the best, with what is known of them.

        Args:
            path: of the file.
            parameters: the weights.
            facts: ``weights``, ``epoch``, ``step``, ``metrics`` and more, as plain values.

        Raises:
            OSError: not written, or a best model waits that would be lost.
        """
        self._write_best()
        checkpoint.write_model(path, self._best_content(parameters, **facts), self._module)

    def _best_content(self, parameters: Mapping[str, Tensor], **facts: Any) -> dict[str, Any]:
        own = self._module.state_dict()
        for name, tensor in parameters.items():
            own[name].copy_(tensor.detach().cpu())
        return {"model_state_dict": dict(own), **facts, **self._common}

    def _write_best(self) -> None:
        if self._stage_one is not None:
            durable.write(self.outputs.stage_one_model, self._stage_one)
            self._stage_one = None
        if self._unwritten is not None:
            checkpoint.write_model(self.outputs.model, self._unwritten, self._module)
            self._unwritten = None

    def keep_stage_one(self, best_step: int) -> None:
        """Keep the best model of stage one under its own name.

        A run that was killed in its second stage before a checkpoint left that stage's best model;
        the one of stage one is then kept already.

        Raises:
            OSError: not written; the next checkpoint tries it again.
        """
        model = self.outputs.model
        if self._unwritten is not None:
            self._stage_one = checkpoint.model_bytes(self._unwritten, self._module)
            self._unwritten = None
        elif model.exists() and checkpoint.read(model).content["step"] == best_step:
            self._stage_one = model.read_bytes()
        self._write_best()


def export_bare_module(outputs: Outputs, module: nn.Module) -> None:
    """The best model as mace's calculator opens it; the module must be on the CPU
    and never have left it.
    """
    checkpoint.write_bare_module(outputs.bare_module, module)
