"""Whether a fine-tuning that goes on at its place is the one that its command asks for."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_utils import model_loader
from model_utils.errors import InputError
from model_utils.files.content import file_hash
from model_utils.files.lasting import lasting
from model_utils.files.outputs import real
from model_utils.model_loader import LoadedModel
from model_utils.run.beginnings.stored_run import StoredRun
from model_utils.runtime import log
from model_utils.settings import terms
from model_utils.settings.energies import given_energies
from model_utils.settings.options import FinetuneOptions

# what decides which model is made of the source; data that are replayed are compared as all data
ASKED = ("add_head", "copy_head", "replay_labels", "replay_head")
E0S = ("keep", "shift", "isolated")  # that are no numbers


def record_of(options: FinetuneOptions, source: LoadedModel) -> dict[str, Any]:
    """What a checkpoint keeps of the model that a fine-tuning began with, and of what was made
    of it.
    """
    path = source.file.path
    return {
        "path": os.path.abspath(lasting(path)),
        "named": os.path.abspath(path),
        "model_json_hash": source.description.hash(),
        "sha256": file_hash(path),
        "asked": _asked(options),
    }


def _asked(options: FinetuneOptions) -> dict[str, Any]:
    return {
        "replay": options.replay is not None,
        "E0s": _energies(options),
        **{name: getattr(options, name) for name in ASKED},
    }


def _energies(options: FinetuneOptions) -> str:
    """The word of --E0s, or the numbers that it gives, however and wherever they are written."""
    if options.E0s in E0S:
        return options.E0s
    given = given_energies(options.E0s, ", ".join(E0S), terms.label_keys(options.data.labels))
    return json.dumps([given.for_all, given.by_head], sort_keys=True)


def require_same_source(stored: StoredRun, options: FinetuneOptions) -> None:
    """Refuse to go on with a fine-tuning by a command that asks for another one.

    The source itself is not needed any more: it may be gone, or lie elsewhere. One that has
    changed in its place, as the best model of a training does, is said.

    Raises:
        InputError: the run there did not begin with another model, began with another one, or made
            something else of it; or a file of E0s cannot be read.
        VerificationError: the file that is given is damaged.
    """
    before = stored.source
    if before is None:
        raise InputError(
            f"{stored.path} is of a training that began with a model.json; give another "
            "--output_checkpoint, or go on with resume.py"
        )
    for name, now in _asked(options).items():
        then = before.get("asked", {}).get(name, now)
        if now != then and name == "E0s":
            shown = then if then in E0S else "other energies"
            _refuse(f"--E0s is {options.E0s}", stored, shown)
        if now != then:
            word = getattr(options, name)
            shown = "data to replay" if then is True else f"{then or 'none'}"
            _refuse(f"--{name} is {word or 'left out'}", stored, shown)
    _require_same_file(options, stored, before)


def _require_same_file(
    options: FinetuneOptions, stored: StoredRun, before: Mapping[str, Any]
) -> None:
    path = options.input_model
    # a link that was named may lead to another run by now
    is_same_place = real(path) == real(Path(before["path"])) or (
        os.path.abspath(path) == before.get("named")
    )
    if not path.exists():
        if not is_same_place:
            _refuse(f"--input_model {path} is not there", stored, before["path"])
        return
    if _is_same(options, before):
        return
    if not is_same_place:
        _refuse(f"--input_model {path} is another model", stored, before["path"])
    log.warning(
        "warning: %s is not what it was as the run of %s began; that goes on with its own weights",
        *(path, stored.path),
    )


def _is_same(options: FinetuneOptions, before: Mapping[str, Any]) -> bool:
    """Whether a file is the source that a run began with; of a run that noted no digest, whether
    it has the same structure.
    """
    path = options.input_model
    if "sha256" in before:
        return path.is_file() and file_hash(path) == before["sha256"]
    opened = model_loader.load(
        path, input_json=options.input_json, trust_pickle=options.trust.trust_pickle
    )
    return opened.description.hash() == before["model_json_hash"]


def _refuse(now: str, stored: StoredRun, then: str) -> None:
    raise InputError(
        f"{now}, but the run of {stored.path} began with {then}; give that, or start a new "
        "fine-tuning at another --output_checkpoint"
    )
