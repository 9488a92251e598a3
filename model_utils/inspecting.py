"""What read_model.py does: take the model.json out of a weights file, check the two, say what is there."""

from pathlib import Path

from dataloader.errors import InputError
from dataloader.structure import symbols
from model_utils import checkpoint, durable, model_loader
from model_utils.runtime import dtype_name, log, start_log


def export(input_model: Path, output_json: Path, *, overwrite: bool) -> None:
    """Write the model.json inside a weights file.

    Raises:
        InputError: the output is there with other content, or cannot be written.
        VerificationError: the weights file is damaged.
    """
    start_log(None)
    text = checkpoint.read(input_model).description.canonical_text()
    if output_json.exists() and output_json.read_bytes() != text.encode() and not overwrite:
        raise InputError(f"--output_json {output_json} is there with other content; give another name or --overwrite")
    try:
        output_json.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(output_json, text)
    except OSError as error:
        raise InputError(f"cannot write --output_json {output_json}: {error.strerror}") from None
    log.info("wrote %s", output_json)


def verify(input_model: Path, input_json: Path) -> None:
    """Hash, then names and shapes of all tensors, then the buffers that repeat facts of the description.

    Raises:
        VerificationError: naming what differs first.
    """
    start_log(None)
    loaded = model_loader.load(input_model, input_json=input_json)
    log.info(
        "%s fits %s: hash %s, %d tensors", input_model, input_json, loaded.description.hash(), len(loaded.file.tensors)
    )


def show(input_model: Path) -> None:
    """Class, elements, cutoff, size, where the weights come from."""
    start_log(None)
    file = checkpoint.read(input_model)
    description, content = file.description, file.content
    when = content if file.kind == "model" else content["train_state"]
    log.info("%s: a %s of run %s, %s weights", input_model, file.kind, content["run_name"], file.weights)
    log.info("%s, %s, %d layers", description.model_class, description.hidden_irreps, description.num_interactions)
    log.info(
        "elements %s; r_max %g Å; heads %s", symbols(description.atomic_numbers), description.r_max, description.heads
    )
    log.info("%d numbers in %s", sum(t.numel() for t in file.tensors.values()), dtype_name(file.dtype))
    log.info("epoch %d, step %d", when["epoch"], when["step"])
    log.info("model.json hash %s", description.hash())
    log.info("written by %s", ", ".join(f"{name} {version}" for name, version in content["code_version"].items()))
