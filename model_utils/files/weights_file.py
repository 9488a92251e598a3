"""Recognise a weights file, whoever wrote it, and read it: tensors, description,
and what else it says.

Ours are ``*_checkpoint.pt`` and ``*_model.pt``. Of mace there are the pickled module, the
checkpoint of ``mace_run_train`` and a bare state_dict; and there are safetensors with a
model.json beside them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloader import input_files
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint, trusted
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.outputs import sidecar
from model_utils.files.sidecar import require_description
from model_utils.models import description as model_json
from model_utils.models import pickled
from model_utils.models.description import ModelDescription
from model_utils.models.mace_description import MaceDescription
from model_utils.models.sandbox import SandboxedObject, class_name, tensors_of
from model_utils.models.weights import to_be_filled


def weights_file(
    path: Path,
    expected: ModelDescription | None = None,
    where: Path | None = None,
    *,
    trust_pickle: bool = False,
    elements: Sequence[int] = (),
) -> WeightsFile:
    """Recognise and read a weights file; the sandboxed unpickler executes nothing of it.

    Args:
        path: the file.
        expected: the description it must have; of a file that holds none, its description.
        where: the file of ``expected``, for messages.
        trust_pickle: where the sandboxed unpickler refuses the file, execute it
            in a process of its own.
        elements: atomic numbers of a module of mace that does not hold them.

    Raises:
        InputError: it cannot be read, or holds something else.
        VerificationError: it is damaged, or of another description.
    """
    if path.is_dir():
        there = ", ".join(map(str, sorted(path.glob("*_model.pt"))))
        raise InputError(
            f"{path} is a directory; expected a *_checkpoint.pt or *_model.pt"
            f"{there and f', such as {there}'}"
        )
    if path.suffix == ".safetensors":
        return _of_safetensors(path, expected, where)
    content = trusted.load(path) if trust_pickle else checkpoint.load_sandboxed(path)
    if checkpoint.is_ours(content):
        file = checkpoint.verified(path, content)
    elif pickled.is_mace_module(content):
        file = _of_mace_module(path, content, expected, elements)
    elif tensors := _stored_tensors(content):
        return _of_tensors_alone(path, content, tensors, expected)
    else:
        raise InputError(
            f"{path} holds {_what(content)}, no MACE model; expected *_model.pt, "
            "*_checkpoint.pt or .model"
        )
    if expected is not None and where is not None:
        require_description(file, expected, where, "give the one the weights were trained with")
    return file


def _of_mace_module(
    path: Path, module: SandboxedObject, expected: ModelDescription | None, elements: Sequence[int]
) -> WeightsFile:
    """A pickled module of mace, which is its own description."""
    tensors = tensors_of(module)
    description = pickled.description_of(module, str(path), expected, elements)
    if isinstance(description, MaceDescription) and description.use_reduced_cg:
        # mace stores what was asked for; the weights tell whether the package
        # that reduces was there
        full = pickled.description_of(module, str(path), expected, elements, reduced=False)
        description = full if _fits(full, tensors, path) else description
    return dataclasses.replace(_of_mace(path, "module", tensors, description, {}), module=module)


def _of_tensors_alone(
    path: Path, content: object, tensors: dict[str, Tensor], expected: ModelDescription | None
) -> WeightsFile:
    """A checkpoint of mace_run_train or a bare state_dict, whose structure
    ``expected`` must give.
    """
    if expected is None:
        raise InputError(
            f"{path} holds weights without the structure of their network; name its "
            "model.json with --input_json (`read_model.py export` makes one from the .model "
            "of the same training)"
        )
    assert isinstance(content, dict)
    kind = "training" if "optimizer" in content else "state_dict"
    epoch = {"epoch": content["epoch"]} if "epoch" in content else {}
    return _of_mace(path, kind, tensors, expected, epoch)


def _of_safetensors(
    path: Path, expected: ModelDescription | None, where: Path | None
) -> WeightsFile:
    """Tensors of a safetensors file, with the model.json beside it unless another is given."""
    tensors, stored_hash = read_safetensors(path)
    where = where or sidecar(path)
    description = expected or model_json.read(where)
    if stored_hash is not None and stored_hash != description.hash():
        raise VerificationError(
            f"{where} (hash {description.hash()[:12]}…) is not the model.json of {path} "
            f"({stored_hash[:12]}…)"
        )
    return _of_mace(path, "safetensors", tensors, description, {})


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Tensors, and the hash of their model.json where the file holds it.

    Raises:
        InputError: there is no such file.
        VerificationError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        input_files.require_regular(path)
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, metadata.get("model_json_hash")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise VerificationError(
            f"{path} is damaged or no safetensors file: {error!s:.100}"
        ) from None


def _of_mace(
    path: Path,
    kind: str,
    tensors: dict[str, Tensor],
    description: ModelDescription,
    content: Mapping[str, Any],
) -> WeightsFile:
    """A weights file that another program wrote; its weights must have a precision
    in which mace computes.
    """
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise InputError(f"{path} holds no weights")
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if not kinds <= {torch.float32, torch.float64}:
        raise InputError(
            f"{path} holds weights in "
            f"{', '.join(sorted(str(k).removeprefix('torch.') for k in kinds))}; expected float32 "
            "or float64, in which mace computes"
        )
    return WeightsFile(
        path=path,
        kind=kind,
        tensors=tensors,
        description=description,
        weights="as saved",
        content=content,
    )


def _stored_tensors(content: object) -> dict[str, Tensor]:
    """The state_dict in a checkpoint of mace_run_train, or a bare one."""
    if not isinstance(content, dict):
        return {}
    inner = content.get("model", content)
    tensors = inner if isinstance(inner, dict) else {}
    return (
        dict(tensors)
        if tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values())
        else {}
    )


def _what(content: object) -> str:
    """What a file holds that is no model, in a few words."""
    if isinstance(content, SandboxedObject):
        return f"a {class_name(content)}"
    if isinstance(content, dict):
        return f"a dict with {', '.join(sorted(map(str, content))[:4]) or 'nothing in it'}"
    return f"a {type(content).__name__}"


def _fits(description: ModelDescription, tensors: Mapping[str, Tensor], path: Path) -> bool:
    """Whether the tensors have the names and shapes of the network that a description describes."""
    module = to_be_filled(description, torch.float32, str(path))
    current, _ = pickled.without_obsolete(tensors, description)
    _, _, faults = pickled.fit_tensors(module, current)
    return not faults
