"""The one door to models: build one from its description, load one with every check, prove
what a run would write.

Commands and the loop import models from here. The work is done below: ``files.weights_file``
recognises and reads a file, ``files.filling`` puts it into a module and compares,
``files.sidecar`` looks after the model.json beside it, ``files.pair`` writes the two files of a
run, and ``models`` builds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataloader.quantities import DIPOLE
from model_utils.errors import InputError, VerificationError
from model_utils.files import filling
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.pair import (
    PairWriter,
    export_bare_module,
    refuse_other_description,
    write_description,
)
from model_utils.files.sidecar import check_descriptions, check_sidecar
from model_utils.files.weights_file import read_safetensors, weights_file
from model_utils.models import description as model_json
from model_utils.models.architecture import build_module, build_network, preparation
from model_utils.models.description import ModelDescription
from model_utils.models.weights import (
    buffers_of,
    check_buffers,
    copied,
    fill_in_precision,
    keep_latest,
    load_tensors,
    to_be_filled,
    trainable,
)
from model_utils.runtime import log

FOREIGN_DIPOLES = (
    "its dipoles are in the unit of its training data (e·Å where trained here, Debye by "
    "mace-torch's documents), without what mace-torch adds for charges of atoms (REF_charges) "
    "where frames have them"
)

__all__ = [
    "LoadedModel",
    "PairWriter",
    "build",
    "build_as",
    "build_module",
    "build_network",
    "check_descriptions",
    "check_sidecar",
    "copied",
    "export_bare_module",
    "load",
    "load_tensors",
    "preparation",
    "prove",
    "read_safetensors",
    "refuse_other_description",
    "to_be_filled",
    "trainable",
    "weights_file",
    "write_description",
]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A module with trained weights and what is known of it."""

    module: nn.Module
    description: ModelDescription
    file: WeightsFile


def build(
    description: ModelDescription, dtype: torch.dtype, seed: int, where: str = "model.json"
) -> nn.Module:
    """A module with fresh weights, drawn by the seed alone, on the CPU.

    Raises:
        InputError: this installation cannot build the structure.
    """
    reason = description.why_untrainable()
    if reason is not None:
        raise InputError(reason)
    torch.manual_seed(seed)
    module = build_module(description, dtype, where)
    keep_latest(description, module)
    check_buffers(module, description, "freshly built model")
    return module


def build_as(description: ModelDescription, like: nn.Module) -> nn.Module:
    """A module to be filled with stored tensors, in the precision of another one."""
    return to_be_filled(description, next(like.parameters()).dtype)


def load(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    input_json: Path | None = None,
    trust_pickle: bool = False,
    restore_sidecar: bool = False,
    elements: Sequence[int] = (),
) -> LoadedModel:
    """A module with the weights of a file, on the CPU.

    Args:
        path: our ``*_checkpoint.pt`` (raw weights) or ``*_model.pt`` (best weights), safetensors
            with their JSON, or a file of mace: a pickled module, or with ``input_json`` a
            training's checkpoint or a bare state_dict.
        dtype: working precision; the file's own unless given.
        input_json: a model.json that the file's own description must equal.
        trust_pickle: where the sandboxed unpickler refuses the file, execute it
            in a process of its own.
        restore_sidecar: write a model.json that is absent beside our own file again.
        elements: atomic numbers of a module of mace that does not hold them.

    Raises:
        InputError: a file cannot be read, or is of another kind.
        VerificationError: digest, hash, sidecar, names, shapes, buffers or the
            pickled network do not agree.
    """
    expected = None if input_json is None else model_json.read(input_json)
    file = weights_file(path, expected, input_json, trust_pickle=trust_pickle, elements=elements)
    if file.is_ours:
        check_sidecar(file, restore=restore_sidecar)
    elif DIPOLE.name in file.description.gives():
        log.warning("%s: %s", path, FOREIGN_DIPOLES)
    return _opened(file, dtype)


def prove(
    writer: PairWriter,
    parameters: Mapping[str, Tensor],
    module: nn.Module,
    train_state: Mapping[str, Any],
) -> None:
    """Make both files of a run as they would be now, in memory, and open them
    as every command does.

    What this toolkit would refuse afterwards is refused here, before it has cost a training. Takes
    as long as loading the two files, which is mostly the building of the network: 2 s for 128x0e
    and 89 elements (3.8 million weights), 3 s for 128x0e+128x1o+128x2e.

    Raises:
        VerificationError: one of them does not open.
    """
    try:
        for file in writer.in_memory(parameters, module, train_state):
            _opened(file)
    except VerificationError as error:
        raise VerificationError(
            f"before the first step, of what would be written: {error}"
        ) from None


def _opened(file: WeightsFile, dtype: torch.dtype | None = None) -> LoadedModel:
    """Build the network of a file, fill it, and compare with all that the file says of it."""
    module = to_be_filled(file.description, file.dtype, str(file.path))
    in_another_precision = dtype is not None and dtype != file.dtype
    described = buffers_of(module) if in_another_precision else {}
    file = filling.fill(module, file)
    if dtype is not None and in_another_precision:
        target = to_be_filled(file.description, dtype, str(file.path))
        fill_in_precision(target, module, described)
        module = target
    return LoadedModel(module=module, description=file.description, file=file)
