"""The only module that reads or writes ``.pt`` files: their keys, their digests, and
loading without running code.
"""

import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor, nn

from dataloader import durable, input_files
from dataloader.limits import ZIP_RECORDS
from model_utils import plugins
from model_utils.errors import InputError, NonFiniteError, VerificationError
from model_utils.files.digest import digest, non_finite
from model_utils.files.entries import SAYS_WHEN, missing
from model_utils.files.generations import previous_generation
from model_utils.files.odd_tensors import refuse_odd_tensors
from model_utils.files.pickle_walk import PickleWalk, is_called
from model_utils.files.sharing import refuse_unfolding
from model_utils.models import description as model_json
from model_utils.models.architecture import architecture_of, namespaces
from model_utils.models.description import ModelDescription
from model_utils.models.sandbox import SandboxedObject, class_name, sandboxed_class, tensors_of

FORMAT_VERSION = 1
COMPILED = "._compiled_main"
MODULE_NAMESPACES = (  # of what a module of mace pickles
    "mace.",
    "e3nn.",
    "torch.",
    "collections.",
    "_codecs.",
    "numpy.",
    "opt_einsum_fx.",
)


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What our readers take from a ``*_checkpoint.pt`` or a ``*_model.pt``."""

    path: Path
    kind: str  # "checkpoint" or "model"; of mace: "module", "training" or "state_dict"
    tensors: dict[str, Tensor]
    description: ModelDescription
    weights: str  # "raw" or "ema"; "as saved" in files of mace, which do not say
    content: Mapping[str, Any]  # everything else that stands in the file
    module: SandboxedObject | None = None  # the network as it was pickled, where the file holds one

    @property
    def is_ours(self) -> bool:
        """Whether this toolkit wrote the file."""
        return self.kind in SAYS_WHEN

    def when(self) -> str:
        """From which moment of a training the weights are, as far as the file says."""
        stored = self.content.get("train_state", self.content)
        known = [f"{name} {stored[name]}" for name in ("epoch", "step") if name in stored]
        return ", ".join(known) or "an unknown moment"

    @property
    def dtype(self) -> torch.dtype:
        """Precision the weights were trained in: that of most numbers, for some cutoffs of
        mace-torch are float64.
        """
        numbers: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            if tensor.is_floating_point():
                numbers[tensor.dtype] += tensor.numel()
        return numbers.most_common(1)[0][0]


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a resumable state; the file before it stays as ``*.prev.pt``.

    Args:
        path: ``*_checkpoint.pt``.
        content: tensors, numbers, text, lists, tuples and dicts only, so that it loads
            with an empty allow-list.

    Raises:
        OSError: it could not be written; the old generations are untouched.
        NonFiniteError: a tensor holds a number that is none; nothing was written.
    """
    bad = next(non_finite(content), None)
    if bad is not None:
        raise NonFiniteError(
            f"{bad} is not finite; the checkpoint before it stays, resume from that with a lower lr"
        )
    durable.write(path, checkpoint_bytes(content), previous=previous_generation(path))


def checkpoint_bytes(content: Mapping[str, Any]) -> bytes:
    """What ``write_checkpoint`` writes."""
    return serialise(_sealed("checkpoint", content))


def write_model(path: Path, content: Mapping[str, Any], module: nn.Module) -> None:
    """Write best weights with, under ``model``, the CPU module that holds them.

    The digest covers everything but the module, which our own readers never unpickle.
    """
    durable.write(path, model_bytes(content, module))


def model_bytes(content: Mapping[str, Any], module: nn.Module) -> bytes:
    """What ``write_model`` writes."""
    return serialise({**_sealed("model", content), "model": module})


def write_bare_module(path: Path, module: nn.Module) -> None:
    """Write the module alone, as mace's MACECalculator opens it."""
    durable.write(path, serialise(module))


def is_best_model(path: Path) -> bool:
    """Whether a weights file holds no training state, by a look at its names;
    False where it is damaged.
    """
    try:
        with input_files.opened(path) as stream, zipfile.ZipFile(stream) as archive:
            [record] = [
                record for record in archive.infolist() if record.filename.endswith("/data.pkl")
            ]
            if record.compress_type != zipfile.ZIP_STORED:  # else a few kB unfold to any size
                return False
            return b"train_state" not in archive.read(record)
    except Exception:  # zipfile raises half a dozen types on damaged directories
        return False


def serialise(value: object) -> bytes:
    """The bytes that ``torch.save`` writes, made in memory so that a full
    disk meets our own write.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _sealed(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    content = {"format_version": FORMAT_VERSION, "kind": kind, **content}
    return {**content, "digest": digest(content)}


def read(path: Path, data: bytes | None = None) -> WeightsFile:
    """Read one of our own weights files, verified.

    Args:
        path: the file.
        data: its content, where it is not written yet.

    Raises:
        InputError: there is no such file, or it is none of ours.
        VerificationError: it is damaged, or its model.json does not match its hash.
    """
    content = load_sandboxed(path, data)
    if not is_ours(content):
        raise InputError(f"{path} is not a *_checkpoint.pt or *_model.pt of this toolkit")
    return verified(path, content)


def is_ours(content: object) -> TypeGuard[dict[str, Any]]:
    """Whether what a file holds is what we write."""
    return isinstance(content, dict) and {"format_version", "digest", "model_json_text"} <= set(
        content
    )


def verified(path: Path, content: dict[str, Any]) -> WeightsFile:
    """One of our files from what ``load_sandboxed`` gave.

    Raises:
        VerificationError: it is damaged, or its model.json does not match its hash.
    """
    stored = content.pop("digest")
    module = content.pop("model", None)
    if _digest_of_read(path, content) != stored:
        raise VerificationError(
            f"{path} is damaged: its content does not match the digest stored in it"
        )
    if type(content["format_version"]) is not int or content["format_version"] > FORMAT_VERSION:
        raise VerificationError(
            f"{path} has format {content['format_version']}, this version reads up to "
            f"{FORMAT_VERSION}; update the toolkit"
        )
    absent = list(missing(content))
    if absent:
        raise VerificationError(
            f"{path} is not as we write it: {', '.join(absent)} missing or of another kind"
        )
    plugins.compare(content.get("plugins", []), path, of_models=True)
    text = content["model_json_text"]
    if hashlib.sha256(text.encode()).hexdigest() != content["model_json_hash"]:
        raise VerificationError(
            f"{path}: the model.json inside does not match its hash "
            f"{content['model_json_hash'][:12]}…"
        )
    try:
        description = model_json.parse(text, f"model.json inside {path}")
    except InputError as error:  # of a newer toolkit, or forged
        raise VerificationError(
            f"{error}; update the toolkit, or take the weights file from where it came"
        ) from None
    return WeightsFile(
        path=path,
        kind=content["kind"],
        tensors=content["model_state_dict"],
        description=description,
        weights=content["weights"],
        content=content,
        module=None
        if module is None
        else _as_verified(path, module, content["model_state_dict"], description),
    )


def _as_verified(
    path: Path, module: object, tensors: Mapping[str, Tensor], description: ModelDescription
) -> SandboxedObject:
    """The pickled network in a file, which other programs compute with: its tensors
    are those of the digest.

    Raises:
        VerificationError: naming the first that is another.
    """
    own = architecture_of(description).namespaces
    if not isinstance(module, SandboxedObject) or not class_name(module).startswith(own):
        family = own[0].partition(".")[0]
        raise VerificationError(
            f"{path} is not as we write it: its `model` is no network of {family}"
        )
    theirs = tensors_of(module)
    for name in {**tensors, **theirs}:
        if COMPILED in name:  # constants of compiled functions, which are pickled with the code
            continue
        if name not in theirs or name not in tensors:
            raise VerificationError(
                f"{path}: {name} is in {'its `model`' if name in theirs else 'the weights'} alone"
            )
        if theirs[name].dtype != tensors[name].dtype or not torch.equal(
            theirs[name], tensors[name]
        ):
            raise VerificationError(
                f"{path}: {name} of its `model`, which mace would compute with, is not that of the "
                "verified weights; take the file from where it came"
            )
    return module


class DamagedFile(VerificationError):
    """A file that is not whole."""


def _begins_as_zip(stream: BinaryIO) -> bool:
    return _rewound(stream).read(2) == b"PK"


def load_sandboxed(path: Path, data: bytes | None = None) -> object:
    """What a file holds, read by a sandboxed unpickler: objects are
    ``SandboxedObject``, no code runs.

    ``torch.load`` checks no CRC, so that is done here.

    Args:
        path: the file.
        data: its content, where it is not written yet.

    Raises:
        InputError: there is no such file, or it is TorchScript.
        VerificationError: it is damaged, or asks for something else than a network.
    """
    try:
        # opened once: a training beside replaces the file, and what is checked must be what is read
        with _opened(path, data) as stream:
            return _whole(path, stream)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; expected a "
            "*_checkpoint.pt or *_model.pt"
        ) from None


def _whole(path: Path, stream: BinaryIO) -> object:
    """The content of an archive, which is looked through before it is read."""
    try:
        size = stream.seek(0, os.SEEK_END)
        with zipfile.ZipFile(stream) as archive:
            _refuse_foreign_records(path, archive, size)
            walk = _walked(archive)
        return _loaded(stream, walk, size)
    except zipfile.BadZipFile:
        # torch's old form is none
        kind = DamagedFile if _begins_as_zip(stream) else VerificationError
        raise kind(
            f"{path} is cut off or not a weights file: it is no complete zip archive"
        ) from None
    except (OSError, InputError, VerificationError):
        raise
    except _Refused as error:
        raise VerificationError(f"{path} is damaged or foreign: {error}") from None
    except Exception as error:  # zipfile raises half a dozen more types on damaged directories
        raise VerificationError(f"{path} is damaged: {_first_line(error)}") from None


class _Refused(Exception):
    """What is in the archive is not read; the message is a phrase."""


def _refuse_foreign_records(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    """Raise where the records are not as torch writes them, before any of them is read."""
    records = archive.infolist()
    if len(records) > ZIP_RECORDS:
        raise VerificationError(
            f"{path} has {len(records)} records; expected at most {ZIP_RECORDS}"
        )
    if any("/code/" in record.filename for record in records):
        raise InputError(
            f"{path} is TorchScript, made for LAMMPS or by compilation: it is code, not a module; "
            "give the eager .model it was made from"
        )
    if (
        any(r.compress_type != zipfile.ZIP_STORED for r in records)
        or sum(r.file_size for r in records) > size
    ):
        raise VerificationError(
            f"{path} is not as we write it: a record is compressed or larger than the file"
        )
    # torch reads another of the two
    if len({record.filename.casefold() for record in records}) < len(records):
        raise VerificationError(f"{path} is not as we write it: two records have one name")
    damaged = archive.testzip()
    if damaged is not None:
        raise DamagedFile(f"{path} is damaged: record {damaged} fails its checksum")


def _walked(archive: zipfile.ZipFile) -> PickleWalk:
    """What the pickle of an archive would do."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _Refused(f"it has {len(pickles)} records data.pkl, expected one")
    try:
        return PickleWalk(archive.read(pickles[0]))
    except ValueError as error:
        raise _Refused(str(error)) from None


def _loaded(stream: BinaryIO, walk: PickleWalk, size: int) -> object:
    """The content of an archive that was looked through."""
    try:
        with _only_sandboxed_classes(stream, walk.names):
            stream.seek(0)
            content = torch.load(stream, weights_only=True, map_location="cpu")
        refuse_unfolding(content, size, walk.n_bytes)
        refuse_odd_tensors(content)
        return content
    except OSError:
        raise
    except Exception as error:  # ten types, one meaning
        raise _Refused(_first_line(error)) from None


def _rewound(stream: BinaryIO) -> BinaryIO:
    stream.seek(0)
    return stream


def _opened(path: Path, data: bytes | None) -> BinaryIO:
    return input_files.opened(path) if data is None else io.BytesIO(data)


def sandboxed(module: nn.Module) -> SandboxedObject:
    """A module as the sandboxed unpickler would read it from a file; made here, it is not
    looked through before.
    """
    stream = io.BytesIO(serialise(module))
    with _only_sandboxed_classes(stream, set()):
        stream.seek(0)
        content = torch.load(stream, weights_only=True)
    assert isinstance(content, SandboxedObject)
    return content


@contextmanager
def _only_sandboxed_classes(stream: BinaryIO, names: set[str]) -> Iterator[None]:
    """Let torch read the classes of a pickled network as sandboxed ones, and nothing else.

    The allow-list of the process is emptied for the time being.

    Args:
        stream: the archive.
        names: all globals that its pickle asks for.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        stream.seek(0)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
        known = (*MODULE_NAMESPACES, *namespaces())
        foreign = [
            name for name in unknown if not name.startswith(known) and name != "builtins.getattr"
        ]
        if foreign:
            raise ValueError(f"it asks to run code ({foreign[0]})")
        odd = sorted(name for name in names - set(unknown) if not is_called(name))
        if odd:
            raise ValueError(f"it asks for {odd[0]}, which no network has")
        with torch.serialization.safe_globals([(sandboxed_class(name), name) for name in unknown]):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _digest_of_read(path: Path, content: Mapping[str, Any]) -> str:
    """The digest of what a forged file holds too: other types, tensors larger than their
    storage, endless nesting.
    """
    try:
        return digest(content)
    except Exception as error:  # six types, one meaning
        raise VerificationError(f"{path} is not as we write it: {_first_line(error)}") from None
