"""What read_model.py does: take the model.json out of a weights file, check the two, say what
is there, compare two.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataloader import durable, input_files
from dataloader.errors import InputError
from dataloader.structure import symbols
from model_utils import model_loader
from model_utils.errors import VerificationError, cannot_write
from model_utils.files.apart import refuse_shared_places
from model_utils.files.checkpoint import WeightsFile
from model_utils.models import description as model_json
from model_utils.models.architecture import build_module
from model_utils.models.description import differing_fields
from model_utils.run.data.open_data import numbers_of
from model_utils.run.log_lines import describe_groups
from model_utils.runtime import dtype_name, log, start_log
from model_utils.settings.options import DescribeOptions, DiffOptions, ExportOptions, VerifyOptions
from optimizer import parameter_groups

SHOWN = 20  # differing tensors


def export(options: ExportOptions) -> None:
    """Write the model.json of a weights file.

    Raises:
        InputError: the output is there with other content, is the weights file, or cannot be
            written.
        VerificationError: the weights file is damaged.
    """
    start_log()
    refuse_shared_places(
        {"--output_json": options.output_json}, [("--input_model", options.input_model)]
    )
    loaded = model_loader.load(
        options.input_model,
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
        elements=numbers_of(options.elements) or (),
    )
    text = loaded.description.canonical_text()
    output_json = options.output_json
    if output_json.is_dir():
        raise InputError(f"--output_json {output_json} is a directory; give a file name")
    if (
        output_json.exists()
        and not input_files.holds(output_json, text.encode())
        and not options.overwrite
    ):
        raise InputError(
            f"--output_json {output_json} is there with other content; give another "
            "name or --overwrite"
        )
    try:
        output_json.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(output_json, text)
    except OSError as error:
        raise cannot_write(f"--output_json {output_json}", error) from None
    log.info("wrote %s: every tensor of %s fits it", output_json, options.input_model)


def verify(options: VerifyOptions) -> None:
    """Compare a weights file with a model.json: hash, names and shapes of all tensors, buffers
    that repeat its facts.

    Raises:
        VerificationError: naming what differs first.
    """
    start_log()
    loaded = model_loader.load(
        options.input_model,
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
    )
    absent = loaded.file.content.get("absent", [])
    if absent:
        log.info(
            "derived buffers that the file lacks and that were computed: %s", ", ".join(absent)
        )
    log.info(
        "%s fits %s: hash %s, %d tensors",
        options.input_model,
        options.input_json,
        loaded.description.hash(),
        len(loaded.file.tensors),
    )


def show(options: DescribeOptions) -> None:
    """Say what a weights file is: class, elements, cutoff, size, where the weights come from."""
    start_log()
    input_model = options.input_model
    file = _file(input_model, options.input_json, options.trust.trust_pickle)
    description = file.description
    content = file.content
    if file.is_ours:
        log.info(
            "%s: a %s of run %s, %s weights",
            input_model,
            file.kind,
            content["run_name"],
            file.weights,
        )
    else:
        log.info("%s: %s", input_model, _KINDS[file.kind])
    for line in description.details():
        log.info("%s", line)
    log.info(
        "elements %s; r_max %g Å; heads %s",
        symbols(description.atomic_numbers),
        description.r_max,
        ", ".join(description.heads),
    )
    log.info(
        "%d numbers in %s", sum(t.numel() for t in file.tensors.values()), dtype_name(file.dtype)
    )
    log.info("of %s", file.when())
    log.info("model.json hash %s", description.hash())
    if "code_version" in content:
        log.info(
            "written by %s",
            ", ".join(f"{name} {version}" for name, version in content["code_version"].items()),
        )
    for line in describe_groups(
        _groups(file), {name: tensor.numel() for name, tensor in file.tensors.items()}
    ):
        log.info("%s", line)
    if options.samples:
        _show_samples(file)


def _show_samples(file: WeightsFile) -> None:
    """A line for every record of an LMDB that a run trains or validates on.

    Raises:
        InputError: the file is no checkpoint.
    """
    if file.kind != "checkpoint":
        raise InputError(
            f"--samples: {file.path} is no checkpoint; give the *_checkpoint.pt of the run"
        )
    sets = file.content["train_state"].get("lmdb_indices")
    if not isinstance(sets, dict):
        log.info(
            "samples: none of LMDBs"
            if sets is None
            else "samples: not kept by shard and key in files this old"
        )
        return
    for role, records in sets.items():
        if not isinstance(records, list):
            log.info(
                "%s: too many to list: %s",
                role,
                ", ".join(f"{name} {value}" for name, value in records.items()),
            )
            continue
        for part in records:
            for key, row in zip(part["keys"], part["rows"], strict=True):
                log.info("%s: %s key %s row %d", role, part["shard"], key, row)


def _is_group(stored: object) -> bool:
    """Whether a checkpoint's entry is as torch writes it; a forged one need not be."""
    if not isinstance(stored, Mapping) or not isinstance(stored.get("param_names"), list):
        return False
    numbers = all(isinstance(stored.get(name), float) for name in ("weight_decay", "lr"))
    return (
        numbers
        and "name" in stored
        and all(isinstance(name, str) for name in stored["param_names"])
    )


def _groups(file: WeightsFile) -> Sequence[Mapping[str, Any]]:
    """The optimizer's groups of a checkpoint; of other weights those that a training
    would make, nothing frozen.
    """
    state = file.content.get("train_state")
    stored = state.get("optimizer") if isinstance(state, Mapping) else None
    groups = stored.get("param_groups") if isinstance(stored, Mapping) else None
    if isinstance(groups, list) and all(map(_is_group, groups)):
        return groups
    try:
        module = build_module(file.description, file.dtype, str(file.path))
    except InputError:  # this installation cannot build it; what stands in the file was said
        return []
    return parameter_groups(module, float("nan"))  # a training says how much


_KINDS = {
    "module": "a module pickled by mace",
    "training": "a checkpoint of mace_run_train",
    "state_dict": "a bare state_dict",
    "safetensors": "tensors with their model.json beside",
}


def diff(options: DiffOptions) -> None:
    """Say where two weights files differ.

    Raises:
        VerificationError: they do.
    """
    start_log()
    trust = options.trust.trust_pickle
    first = _file(options.input_model, options.input_json, trust)
    second = _file(options.other_model, options.other_json, trust)
    fields = differing_fields(first.description, second.description)
    for text in fields:
        log.info("model.json: %s", text)
    tensors = _differing_tensors(first.tensors, second.tensors)
    for text in tensors[:SHOWN]:
        log.info("%s", text)
    if len(tensors) > SHOWN:
        log.info("and %d more", len(tensors) - SHOWN)
    if fields or tensors:
        raise VerificationError(
            f"{options.input_model} and {options.other_model} differ in {len(fields)} fields and "
            f"{len(tensors)} tensors"
        )
    log.info("equal: structure and all %d tensors", len(first.tensors))


def _differing_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """A line for every tensor that only one file has or that differs; those
    without elements say nothing.
    """
    differing = []
    for name in {**first, **second}:
        difference = _difference(first.get(name), second.get(name))
        if difference is not None:
            differing.append(f"{name}: {difference}")
    return differing


def _difference(a: Tensor | None, b: Tensor | None) -> str | None:
    """How a tensor of the first file differs from the second's; None where it does not.

    Numbers are compared in float64, which holds both precisions, and without their shape: mace's
    versions store the same weights flat or not.
    """
    if a is None or b is None:
        present = a if b is None else b
        is_empty = present is None or not present.numel()
        return None if is_empty else f"only in the {'first' if b is None else 'second'}"
    if a.numel() != b.numel():
        return f"shape {tuple(a.shape)} against {tuple(b.shape)}"
    a = a.reshape(-1).double()
    b = b.reshape(-1).double()
    return None if torch.equal(a, b) else f"differs by up to {(a - b).abs().max():.3g}"


def _file(path: Path, input_json: Path | None, trust_pickle: bool) -> WeightsFile:
    """A weights file, checked against a model.json where one is given."""
    expected = None if input_json is None else model_json.read(input_json)
    return model_loader.weights_file(path, expected, input_json, trust_pickle=trust_pickle)
