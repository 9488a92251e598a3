"""A network that the file of settings describes, made complete: what data say of it is
measured once and kept.

The measuring is that of ``metadata.py init``. Its result is a small JSON file (``--info_file``, or
``dataset_info.json`` beside the checkpoint, or in the folder of the experiment) that says of which
data and cutoff it is, and is found again; one of other data is never taken.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from dataloader import durable, input_files, plain_json
from dataloader.errors import InputError
from dataloader.limits import MODEL_JSON_BYTES
from model_utils.errors import cannot_write
from model_utils.files.outputs import Outputs
from model_utils.models import description as model_json
from model_utils.models.architecture import ARCHITECTURES, USUAL, refuse_elsewhere
from model_utils.models.description import ModelDescription
from model_utils.ranks.group import Group
from model_utils.run.beginnings import resuming
from model_utils.runtime import find_device, log
from model_utils.settings import reading
from model_utils.settings.declared import MAY_CHANGE, composed, flat, names_of
from model_utils.settings.options import FilterOptions, MetadataInitOptions, TrainOptions
from model_utils.settings.table_names import unknown
from model_utils.tasks import describe_data

INFO = "dataset_info.json"
FORMAT = "mace-pretrain dataset info 1"
SCALES = ("atomic_inter_scale", "atomic_inter_shift")
MEASURED = ("atomic_numbers", "heads", "atomic_energies", "avg_num_neighbors", *SCALES)
ENDS = 2**16  # bytes of a file's beginning and end that its fingerprint has
BESIDE_DATA = (".index", "lock.mdb", "-lock")  # endings of files that come and go beside data


def refuse_unknown_class(options: TrainOptions) -> None:
    """Refuse a class of networks that there is not, before anything else is looked at.

    Raises:
        InputError: naming those that there are.
    """
    name = _given(options).get("model_class", USUAL)
    refuse_elsewhere(name, f"section model of {options.input_json}")
    if name not in ARCHITECTURES:
        raise InputError(
            f"target {name!r:.60} in {options.input_json}: "
            f"{unknown(str(name), list(ARCHITECTURES))}; a --plugin adds others"
        )


def described(
    options: TrainOptions, outputs: Outputs, group: Group
) -> tuple[TrainOptions, ModelDescription]:
    """The description of the network that the file of settings describes, in full or
    without what data say.

    Args:
        options: of the run.
        outputs: place of the run, which nobody else writes.
        group: the processes of the run, which measure together; what they have is the same in all.

    Returns:
        The options, in which the network has become the file of the run's own
        model.json; and the description.

    Raises:
        InputError: a field is wrong, the data cannot be used, or what was kept is of other data.
    """
    given = _given(options)
    known = group.of_first(lambda: _known(options, outputs, given))
    if not known:
        known = _measured_together(options, outputs, given, group)
    fields = {**json.loads(known), **given}
    if not model_json.scales_energies(fields):
        fields = {
            name: value for name, value in fields.items() if name not in SCALES or name in given
        }
    description = model_json.parse(json.dumps(fields), f"section model of {options.input_json}")
    plain = {
        **reading.as_plain(options),
        "network": None,
        "input_json": str(outputs.model_jsons[0]),
    }
    return reading.from_plain(TrainOptions, plain, options.input_json), description


def _given(options: TrainOptions) -> dict[str, Any]:
    """The fields as the file of settings has them; those of a network that is left
    unsaid have its defaults.
    """
    assert options.inline.network is not None
    given: dict[str, Any] = plain_json.loads(options.inline.network)
    return {"model_class": USUAL, "r_max": describe_data.R_MAX, **given}


def _known(options: TrainOptions, outputs: Outputs, given: Mapping[str, Any]) -> bytes:
    """What data say of the network, as JSON, where nothing has to be measured; else nothing."""
    stored = (
        resuming.newest_checkpoint(outputs.checkpoint)
        if options.output.resume is not None
        else None
    )
    # measured as the run began; whether it is this network is compared by its hash
    if stored is not None:
        complete = json.loads(stored.description.canonical_text())
        return json.dumps({name: complete[name] for name in MEASURED if name in complete}).encode()
    if not _lacks(given):
        return b"{}"
    path = _info_file(options, outputs)
    kept = _kept(path, _measured_of(options, given), must_fit=options.inline.info_file is not None)
    if kept is None:
        return b""
    log.info("E0s, neighbours, scale and shift are those of %s", path)
    return json.dumps(kept).encode()


def _info_file(options: TrainOptions, outputs: Outputs) -> Path:
    """Where the result is kept; runs of one experiment, which often have the same
    data, keep it together.
    """
    folder = outputs.checkpoint.parent
    if outputs.record.exists():
        folder = folder.parent
    return options.inline.info_file or folder / INFO


def _measured_together(
    options: TrainOptions, outputs: Outputs, given: Mapping[str, Any], group: Group
) -> bytes:
    """What data say of the network, as JSON, measured by all processes and kept by the first."""
    path = _info_file(options, outputs)
    asked = _asked(options, given, path)
    network = {name: value for name, value in given.items() if value is not None}
    group.connect(find_device(options.device.device))
    sums = describe_data.measure(asked, network, group)

    def finish() -> bytes:
        assert sums is not None, "the first process has them"
        network.setdefault("heads", describe_data.heads_of(sums))
        measured = describe_data.measured_fields(sums, network, asked, describe_data.Stated()) | {
            "heads": network["heads"]
        }
        if not options.run.dry_run:
            _keep(path, _measured_of(options, given), measured)
        return json.dumps(measured).encode()

    return group.of_first(finish)


def _keep(path: Path, of: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(
            path, json.dumps({"format": FORMAT, "of": of, "measured": measured}, indent=2) + "\n"
        )
    except OSError as error:
        raise cannot_write(f"--info_file {path}", error, "give another") from None
    log.info("kept in %s for later runs", path)


def _lacks(given: Mapping[str, Any]) -> bool:
    """Whether something is left to the data."""
    needed = {*MEASURED} - {"heads"}
    if not model_json.scales_energies(given):
        needed -= {*SCALES}
    return any(given.get(name) is None for name in needed)


def _kept(path: Path, of: Mapping[str, Any], *, must_fit: bool) -> dict[str, Any] | None:
    """What a file has of the same data; None where there is none.

    Raises:
        InputError: the file that was named is of something else.
    """
    try:
        content = plain_json.loads(input_files.read_text(path, MODEL_JSON_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read --info_file {path}: {error}; remove it or give another"
        ) from None
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not isinstance(content.get("of"), dict)
    ):
        raise InputError(
            f"--info_file {path} is not one of this program ({FORMAT!r}); remove it or give another"
        )
    others = sorted(
        name for name in {*of, *content["of"]} if of.get(name) != content["of"].get(name)
    )
    if not others:
        measured: dict[str, Any] = content["measured"]
        return measured
    if must_fit:
        raise InputError(
            f"--info_file {path} was measured of something else: {', '.join(others)} differ; "
            "remove it to have it measured anew, or give another"
        )
    log.info("%s is of something else (%s): measured anew", path, ", ".join(others))
    return None


def _asked(options: TrainOptions, given: Mapping[str, Any], path: Path) -> MetadataInitOptions:
    """Options of ``metadata.py init`` for the data of a run."""
    values = {
        **flat(options.data),
        "valid_fraction": _set_aside(options),
        "common": options.common,
        "output_json": path,
        "overwrite": True,
        "seed": options.run.seed,
        "E0s": _given_energies(given) or "auto",
    }
    return composed(MetadataInitOptions, values)


def _given_energies(given: Mapping[str, Any]) -> str | None:
    """E0s that the file gives, as ``--E0s`` of ``metadata.py`` takes them;
    None where it gives none.
    """
    energies = given.get("atomic_energies")
    numbers = given.get("atomic_numbers")
    if isinstance(energies, list) and isinstance(numbers, list) and len(energies) == len(numbers):
        energies = dict(zip(map(str, numbers), energies, strict=True))
    return json.dumps(energies) if isinstance(energies, dict) else None


def _set_aside(options: TrainOptions) -> float:
    """Share of the training structures that the run sets aside for validation, and
    that must not be measured.
    """
    return 0.0 if options.data.files("val") else options.data.valid_fraction


def _measured_of(options: TrainOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the result depends on: the data, which of them count and by
    which names, and the cutoff.
    """
    values = flat(options.data)
    lists = {
        name
        for name, value in values.items()
        if isinstance(value, tuple) and value and isinstance(value[0], Path)
    }
    # how much may be faulty says nothing; files are known by their content, wherever they lie
    names = {*values} - {
        *names_of(FilterOptions, MAY_CHANGE),
        *lists,
        "sources",
        "valid_fraction",
        "lmdb_val_samples",
    }
    plain = {
        name: values[name] if not isinstance(values[name], tuple) else list(values[name])
        for name in sorted(names)
        if values[name] not in (None, ())
    }
    contents = {
        name: _fingerprint(value) for name, value in values.items() if isinstance(value, Path)
    }
    return {
        "r_max": given["r_max"],
        "given": {name: given[name] for name in MEASURED if given.get(name) is not None},
        "seed": options.run.seed
        if _set_aside(options) or options.data.lmdb_train_samples
        else None,
        "set_aside": _set_aside(options),
        "settings": {**plain, **contents},
        "sources": [
            {**reading.as_plain(source), "path": source.path.name}
            for source in options.data.sources
        ],
        "files": [_fingerprint(source.path) for source in options.data.files("train")],
    }


def _fingerprint(path: Path) -> list[list[Any]]:
    """Name, size and sha256 of both ends of every file that a name means, which may lie
    elsewhere another time.
    """
    return [[file.name, file.stat().st_size, _ends(file)] for file in _files_of(path)]


def _files_of(path: Path) -> Iterator[Path]:
    """The files of a name: itself, those in the folder, those that a pattern fits."""
    for name in [path] if path.exists() else sorted(map(Path, glob(str(path)))):
        inside = sorted(name.rglob("*")) if name.is_dir() else [name]
        for file in inside:
            if (
                file.is_file()
                and not file.name.startswith(".")
                and not file.name.endswith(BESIDE_DATA)
            ):
                yield file


def _ends(path: Path) -> str:
    with input_files.opened(path) as file:
        size = path.stat().st_size
        digest = hashlib.sha256(file.read(ENDS))
        if size > ENDS:
            file.seek(max(size - ENDS, ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()
