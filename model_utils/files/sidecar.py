"""The model.json beside a weights file: the one inside the file rules, and what lies
beside is compared with it.
"""

import os
from pathlib import Path

from dataloader import durable
from model_utils.errors import InputError, VerificationError
from model_utils.files import pair
from model_utils.files.checkpoint import WeightsFile
from model_utils.files.outputs import Outputs, real, sidecar
from model_utils.models import description as model_json
from model_utils.models.description import ModelDescription
from model_utils.runtime import log


def check_sidecar(file: WeightsFile, *, restore: bool) -> None:
    """The model.json inside a weights file rules: one beside it that differs is refused,
    a missing one is said.

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
        raise VerificationError(
            f"{error}; the one inside {file.path} rules: remove the damaged one"
        ) from None
    edited = "it was edited after training: restore it, or remove it to have it written again"
    require_description(file, beside, path, edited)


def check_descriptions(file: WeightsFile, outputs: Outputs) -> None:
    """Compare what lies where a continued run writes its model.json with the one inside its
    checkpoint, which rules.

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
                f"{path} is there with other content than the model of the run that goes on there; "
                "move it away, or give another --output_checkpoint"
            )


def require_description(
    file: WeightsFile, other: ModelDescription, path: Path, remedy: str
) -> None:
    """Refuse a model.json that is not the one of a weights file.

    Args:
        file: the weights file.
        other: what the model.json describes.
        path: where it lies, for the message.
        remedy: what to do about it, the end of the message.

    Raises:
        VerificationError: with both hashes and the first fields that differ.
    """
    if other.hash() != file.description.hash():
        differences = model_json.differing_fields(file.description, other)
        raise VerificationError(
            f"{path} (hash {other.hash()[:12]}…) is not the model.json of {file.path} "
            f"({file.description.hash()[:12]}…): {'; '.join(differences[:3])}; {remedy}"
        )
