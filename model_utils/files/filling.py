"""Weights of a file put into a freshly built module, and the module compared with all
that the file says of it.
"""

import dataclasses
from itertools import islice

from torch import nn

from model_utils.errors import VerificationError
from model_utils.files import checkpoint
from model_utils.files.checkpoint import WeightsFile
from model_utils.models import pickled, pickled_compared
from model_utils.models.sandbox import SandboxedObject
from model_utils.models.versions import written_here
from model_utils.models.weights import check_buffers, load_tensors, written_and_read


def fill(module: nn.Module, file: WeightsFile) -> WeightsFile:
    """Fill a module with the weights of a file, which must be those of its description to
    the last name and shape.

    Args:
        module: built from the file's description, in its precision.
        file: ours or one of mace.

    Returns:
        The file; one of mace with the complete state of the module as its tensors.

    Raises:
        VerificationError: names, shapes, buffers or the network that is pickled in
            the file do not agree.
    """
    if file.is_ours:
        load_tensors(module, file.tensors, file.description, str(file.path))
    else:
        file = _filled_by_mace(module, file)
    if file.module is not None:
        _compare_pickled(file.module, module, file)
    return file


def _filled_by_mace(module: nn.Module, file: WeightsFile) -> WeightsFile:
    """Put tensors that mace stored into a module built today; the file then
    has the complete state.
    """
    tensors, contradictions = pickled.without_obsolete(file.tensors, file.description)
    state, absent, faults = pickled.fit_tensors(module, tensors)
    faults = [*contradictions, *faults]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise VerificationError(
            f"{file.path}: weights do not fit model.json: {'; '.join(faults[:3])}{more}"
        )
    module.load_state_dict(state)
    check_buffers(module, file.description, str(file.path))
    return dataclasses.replace(file, tensors=state, content={**file.content, "absent": absent})


def _compare_pickled(stored: SandboxedObject, module: nn.Module, file: WeightsFile) -> None:
    """Refuse a file whose pickled network is not the module that its
    description and its weights make.

    Raises:
        VerificationError: naming the first attribute that is another.
    """
    strict = written_here(file.content.get("code_version", {}), file.description)
    found = list(
        islice(pickled_compared.differences(stored, checkpoint.sandboxed(module), strict=strict), 1)
    )
    # files of before 2026-11-26 have the text of code that was written and read once
    if found and strict:
        reread = checkpoint.sandboxed(written_and_read(module))
        found = list(islice(pickled_compared.differences(stored, reread, strict=strict), 1))
    if found:
        (difference,) = found
        raise VerificationError(
            f"{file.path}: the network in it, with which mace would compute, is not that of its "
            f"model.json: {difference}; take the file from where it came, or make one of its "
            "weights anew (`read_model.py convert`)"
        )
