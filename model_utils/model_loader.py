"""The one door to models: build from a description, load with every check, save the pair of files."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataloader import durable, input_files
from dataloader.errors import InputError
from model_utils.errors import VerificationError
from model_utils.files import checkpoint, pair, trusted
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.outputs import Outputs, real, sidecar
from model_utils.files.pair import PairWriter, export_bare_module, refuse_other_description, write_description
from model_utils.models import description as model_json
from model_utils.models import pickled, pickled_compared
from model_utils.models.architecture import build_module, network, preparation
from model_utils.models.description import ModelDescription
from model_utils.models.mace_description import MaceDescription
from model_utils.models.versions import written_here
from model_utils.models.weights import buffers_of, check_buffers, copied, fill_in_precision, load_tensors, trainable
from model_utils.runtime import log

__all__ = [
    "LoadedModel",
    "PairWriter",
    "build",
    "build_as",
    "build_module",
    "check_descriptions",
    "check_sidecar",
    "copied",
    "export_bare_module",
    "load",
    "load_tensors",
    "network",
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


def build(description: ModelDescription, dtype: torch.dtype, seed: int, where: str = "model.json") -> nn.Module:
    """A module with fresh weights, drawn by the seed alone, on the CPU.

    Raises:
        InputError: this installation cannot build the structure.
    """
    reason = description.why_untrainable()
    if reason is not None:
        raise InputError(reason)
    torch.manual_seed(seed)
    module = build_module(description, dtype, where)
    check_buffers(module, description, "freshly built model")
    return module


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
        path: our ``*_checkpoint.pt`` (raw weights) or ``*_model.pt`` (best weights), safetensors with their JSON,
            or a file of mace: a pickled module, or with ``input_json`` a training's checkpoint or a bare state_dict.
        dtype: working precision; the file's own unless given.
        input_json: a model.json that the file's own description must equal.
        trust_pickle: see ``weights_file``.
        restore_sidecar: see ``check_sidecar``.
        elements: see ``weights_file``.

    Raises:
        InputError: a file cannot be read, or is of another kind.
        VerificationError: digest, hash, sidecar, names, shapes, buffers or the pickled network do not agree.
    """
    expected = None if input_json is None else model_json.read(input_json)
    file = weights_file(path, expected, input_json, trust_pickle=trust_pickle, elements=elements)
    if file.is_ours:
        check_sidecar(file, restore=restore_sidecar)
    return _opened(file, dtype)


def prove(
    writer: PairWriter, parameters: Mapping[str, Tensor], module: nn.Module, train_state: Mapping[str, Any]
) -> None:
    """Make both files of a run as they would be now, in memory, and open them as every command does.

    What this toolkit would refuse afterwards is refused here, before it has cost a training. Takes as long as
    loading the two files, which is mostly the building of the network: 2 s for 128x0e and 89 elements (3.8 million
    weights), 3 s for 128x0e+128x1o+128x2e.

    Raises:
        VerificationError: one of them does not open.
    """
    try:
        for file in writer.in_memory(parameters, module, train_state):
            _opened(file)
    except VerificationError as error:
        raise VerificationError(f"before the first step, of what would be written: {error}") from None


def _opened(file: WeightsFile, dtype: torch.dtype | None = None) -> LoadedModel:
    """Build the network of a file, fill it, and compare with all that the file says of it."""
    module = to_be_filled(file.description, file.dtype, str(file.path))
    described = {} if dtype in (None, file.dtype) else buffers_of(module)
    if file.is_ours:
        load_tensors(module, file.tensors, file.description, str(file.path))
    else:
        file = _fitted(module, file)
    if file.module is not None:
        _must_be(file.module, module, file)
    if dtype is not None and dtype != file.dtype:
        filled = module
        module = to_be_filled(file.description, dtype, str(file.path))
        fill_in_precision(module, filled, described)
    return LoadedModel(module=module, description=file.description, file=file)


def weights_file(
    path: Path,
    expected: ModelDescription | None = None,
    where: Path | None = None,
    *,
    trust_pickle: bool = False,
    elements: Sequence[int] = (),
) -> WeightsFile:
    """Recognise and read a weights file; a file of mace is read through inert stubs, nothing of it is executed.

    Args:
        path: the file.
        expected: the description it must have; of a file that holds none, its description.
        where: the file of ``expected``, for messages.
        trust_pickle: where the inert reading refuses the file, execute it in a process of its own.
        elements: atomic numbers of a module of mace that does not hold them.

    Raises:
        InputError: it cannot be read, or holds something else.
        VerificationError: it is damaged, or of another description.
    """
    if path.suffix == ".safetensors":
        return _of_safetensors(path, expected, where)
    content = trusted.load(path) if trust_pickle else checkpoint.load_inert(path)
    if checkpoint.is_ours(content):
        file = checkpoint.verified(path, content)
    elif pickled.is_mace_module(content):
        tensors = pickled.tensors_of(content)
        description = pickled.description_of(content, str(path), expected, elements)
        if isinstance(description, MaceDescription) and description.use_reduced_cg:
            full = pickled.description_of(content, str(path), expected, elements, reduced=False)
            description = full if _fits(full, tensors, path) else description
        file = dataclasses.replace(_of_mace(path, "module", tensors, description, {}), module=content)
    elif tensors := _stored_tensors(content):
        if expected is None:
            raise InputError(
                f"{path} holds weights without the structure of their network; name its model.json with --input_json "
                "(`read_model.py export` makes one from the .model of the same training)"
            )
        assert isinstance(content, dict)
        kind = "training" if "optimizer" in content else "state_dict"
        return _of_mace(path, kind, tensors, expected, {k: v for k, v in content.items() if k == "epoch"})
    else:
        raise InputError(
            f"{path} holds {_what(content)}, no MACE model; expected *_model.pt, *_checkpoint.pt or .model"
        )
    if expected is not None and where is not None:
        _must_equal(file, expected, where, "give the one the weights were trained with")
    return file


def _of_safetensors(path: Path, expected: ModelDescription | None, where: Path | None) -> WeightsFile:
    """Tensors of a safetensors file, with the model.json beside it unless another is given."""
    tensors, stored_hash = read_safetensors(path)
    where = where or sidecar(path)
    description = expected or model_json.read(where)
    if stored_hash is not None and stored_hash != description.hash():
        raise VerificationError(
            f"{where} (hash {description.hash()[:12]}…) is not the model.json of {path} ({stored_hash[:12]}…)"
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
        raise VerificationError(f"{path} is damaged or no safetensors file: {error!s:.100}") from None


def build_as(description: ModelDescription, like: nn.Module) -> nn.Module:
    """A module to be filled with stored tensors, in the precision of another one."""
    return to_be_filled(description, next(like.parameters()).dtype)


def to_be_filled(description: ModelDescription, dtype: torch.dtype, where: str = "model.json") -> nn.Module:
    """A module on the CPU whose weights mean nothing yet; torch's generator is left as it was.

    Raises:
        InputError: this installation cannot build the structure.
    """
    generator = torch.random.get_rng_state()
    try:
        return build_module(description, dtype, where)
    finally:
        torch.random.set_rng_state(generator)


def _of_mace(
    path: Path, kind: str, tensors: dict[str, Tensor], description: ModelDescription, content: Mapping[str, Any]
) -> WeightsFile:
    if not any(tensor.is_floating_point() for tensor in tensors.values()):
        raise InputError(f"{path} holds no weights")
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if not kinds <= {torch.float32, torch.float64}:
        raise InputError(
            f"{path} holds weights in {', '.join(sorted(str(k).removeprefix('torch.') for k in kinds))}; expected "
            "float32 or float64, in which mace computes"
        )
    return WeightsFile(
        path=path, kind=kind, tensors=tensors, description=description, weights="as saved", content=content
    )


def _stored_tensors(content: object) -> dict[str, Tensor]:
    """The state_dict in a checkpoint of mace_run_train, or a bare one."""
    if not isinstance(content, dict):
        return {}
    inner = content.get("model", content)
    tensors = inner if isinstance(inner, dict) else {}
    return dict(tensors) if tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values()) else {}


def _what(content: object) -> str:
    if isinstance(content, pickled.StubObject):
        return f"a {pickled.class_name(content)}"
    if isinstance(content, dict):
        return f"a dict with {', '.join(sorted(map(str, content))[:4]) or 'nothing in it'}"
    return f"a {type(content).__name__}"


def _fits(description: ModelDescription, tensors: Mapping[str, Tensor], path: Path) -> bool:
    module = to_be_filled(description, torch.float32, str(path))
    return not pickled.fit_tensors(module, pickled.without_obsolete(tensors, description)[0])[2]


def _fitted(module: nn.Module, file: WeightsFile) -> WeightsFile:
    """Put tensors that mace stored into a module built today; the file then has the complete state."""
    tensors, contradictions = pickled.without_obsolete(file.tensors, file.description)
    state, absent, faults = pickled.fit_tensors(module, tensors)
    if faults := [*contradictions, *faults]:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise VerificationError(f"{file.path}: weights do not fit model.json: {'; '.join(faults[:3])}{more}")
    module.load_state_dict(state)
    check_buffers(module, file.description, str(file.path))
    return dataclasses.replace(file, tensors=state, content={**file.content, "absent": absent})


def _must_be(stored: pickled.StubObject, module: nn.Module, file: WeightsFile) -> None:
    """The pickled network of a file is the module that its description and its weights make.

    Raises:
        VerificationError: naming the first attribute that is another.
    """
    strict = written_here(file.content.get("code_version", {}), file.description)
    built = checkpoint.stub_of(copied(module) if strict else module)  # a copy's compiled code has another text
    found = next(pickled_compared.differences(stored, built, strict=strict), None)
    if found is not None:
        raise VerificationError(
            f"{file.path}: the network in it, with which mace would compute, is not that of its model.json: {found}; "
            "take the file from where it came, or make one of its weights anew (`read_model.py convert`)"
        )


def check_sidecar(file: WeightsFile, *, restore: bool) -> None:
    """The model.json inside a weights file rules: one beside it that differs is refused, a missing one is said.

    Args:
        file: one of ours.
        restore: write a missing one again, as commands do that write beside the model.

    Raises:
        VerificationError: the one beside differs, field by field.
    """
    path = sidecar(file.path)
    if path.exists():
        _refuse_edited(file, path)
    elif not restore:
        log.info("%s is absent; the one inside %s is used", path, file.path.name)
    elif os.access(path.parent, os.W_OK):
        try:
            durable.write_text(path, file.content["model_json_text"])
            log.info("%s was absent and is written again from %s", path, file.path.name)
        except OSError as error:
            log.warning("warning: %s is absent and is not written again: %s", path, error.strerror)


def _refuse_edited(file: WeightsFile, path: Path) -> None:
    try:
        beside = model_json.read(path)
    except InputError as error:
        raise VerificationError(f"{error}; the one inside {file.path} rules: remove the damaged one") from None
    edited = "it was edited after training: restore it, or remove it to have it written again"
    _must_equal(file, beside, path, edited)


def check_descriptions(file: WeightsFile, outputs: Outputs) -> None:
    """Compare what lies where a continued run writes its model.json with the one inside its checkpoint, which rules.

    Raises:
        VerificationError: one beside the checkpoint was edited, field by field.
        InputError: at another place there is one of something else.
    """
    text = file.description.canonical_text()
    own = real(file.path).parent
    for path in outputs.model_jsons:
        if not path.exists() or pair.holds(path, text):
            continue
        if real(path).parent == own:
            _refuse_edited(file, path)
        else:
            raise InputError(
                f"{path} is there with other content than the model of the run that goes on there; move it away, or "
                "give another --output_checkpoint"
            )


def _must_equal(file: WeightsFile, other: ModelDescription, path: Path, remedy: str) -> None:
    if other.hash() != file.description.hash():
        differences = model_json.differing_fields(file.description, other)
        raise VerificationError(
            f"{path} (hash {other.hash()[:12]}…) is not the model.json of {file.path} "
            f"({file.description.hash()[:12]}…): {'; '.join(differences[:3])}; {remedy}"
        )
