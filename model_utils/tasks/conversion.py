"""Weights in the forms that other programs take; each is compared with the source before it gets its name."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.batch import Batch, collate
from dataloader.neighbors import build_graph
from dataloader.structure import Structure
from model_utils import model_loader
from model_utils.errors import InputError, VerificationError
from model_utils.files import checkpoint, durable
from model_utils.files.outputs import sidecar
from model_utils.model_loader import LoadedModel
from model_utils.models import lammps, pickled
from model_utils.models.network import predict
from model_utils.runtime import DTYPES, log, start_log
from model_utils.settings.options import ConvertOptions

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # relative: forms sum in other orders
PROBE_ELEMENTS = 6


def convert(options: ConvertOptions) -> None:
    """Write a weights file in another form.

    Raises:
        InputError: the output is there, or the model has several heads and none was named.
        VerificationError: the new form does not give the source's energies and forces; nothing was written.
    """
    start_log(None)
    output = options.output
    if output.exists() and not options.overwrite:
        raise InputError(f"--output {output} is there already; give another name or --overwrite")
    loaded = model_loader.load(
        options.input_model,
        dtype=DTYPES.get(options.dtype or ""),
        input_json=options.input_json,
        trust_pickle=options.trust_pickle,
    )
    head = _head(loaded, options.head, needed=options.to in ("lammps", "mliap"))
    probe = _probe(loaded, head)
    expected = _reference(loaded.module, loaded, probe)
    data, check = FORMS[options.to](loaded, head, probe)
    unchecked = output.with_name(f".{output.name}.unchecked")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        durable.write(unchecked, data)
        deviation = _deviation(expected, check(unchecked))
        limit = TOLERANCE[next(loaded.module.parameters()).dtype]
        if not deviation <= limit:
            raise VerificationError(
                f"{options.to} of {options.input_model} deviates by {deviation:.2g} (at most {limit:g}); not written"
            )
        if options.to == "safetensors":
            beside = sidecar(output)
            text = loaded.description.canonical_text()
            if beside.exists() and beside.read_text(encoding="utf-8") != text and not options.overwrite:
                raise InputError(f"{beside} is there with other content; give another name or --overwrite")
            durable.write_text(sidecar(output), loaded.description.canonical_text())
        os.replace(unchecked, output)
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror or error}") from None
    finally:
        unchecked.unlink(missing_ok=True)
    log.info("wrote %s: energies and forces of a cluster and a crystal are the source's to %.2g", output, deviation)


def _head(loaded: LoadedModel, head: str | None, *, needed: bool) -> str:
    heads = loaded.description.heads
    if needed and head is None and len(heads) > 1:
        raise InputError(f"the model has the heads {', '.join(heads)}; name one with --head")
    if head is not None and head not in heads:
        raise InputError(f"--head {head} is none of the model's: {', '.join(heads)}")
    return head or heads[0]


Check = Callable[[Path], tuple[Tensor, Tensor]]  # energies and forces of the probe, from the file


def _safetensors(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in loaded.module.state_dict().items()}

    def check(path: Path) -> tuple[Tensor, Tensor]:
        module = model_loader.build_as(loaded.description, loaded.module)
        module.load_state_dict(model_loader.read_safetensors(path)[0])
        return _reference(module, loaded, probe)

    return save(tensors, {"model_json_hash": loaded.description.hash()}), check


def _module(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    def check(path: Path) -> tuple[Tensor, Tensor]:
        stub = checkpoint.load_inert(path)
        assert isinstance(stub, pickled.StubObject)
        return _rebuilt(stub, path, loaded, probe)

    return checkpoint.serialise(loaded.module), check


def _lammps(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    data = lammps.torchscript(model_loader.copied(loaded.module), head)
    n_elements = len(loaded.description.atomic_numbers)

    def check(path: Path) -> tuple[Tensor, Tensor]:
        found = [lammps.run_torchscript(path.read_bytes(), batch, n_elements) for batch in probe]  # one at a time
        return torch.cat([energy for energy, _ in found]), torch.cat([forces for _, forces in found])

    return data, check


def _mliap(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    """The module inside the wrapper is read back and rebuilt; the wrapper itself runs only inside LAMMPS."""

    def check(path: Path) -> tuple[Tensor, Tensor]:
        stub: object = checkpoint.load_inert(path)
        for name in ("model", "model"):  # the wrapper's edge-force module, and mace's module in it
            found = getattr(stub, "__dict__", {})
            stub = found.get(name) or found.get("_modules", {}).get(name)
        assert isinstance(stub, pickled.StubObject)
        return _rebuilt(stub, path, loaded, probe)

    return checkpoint.serialise(lammps.mliap(model_loader.copied(loaded.module), head)), check


FORMS: Mapping[str, Callable[[LoadedModel, str, Sequence[Batch]], tuple[bytes, Check]]] = {
    "safetensors": _safetensors,
    "module": _module,
    "lammps": _lammps,
    "mliap": _mliap,
}


def _rebuilt(
    stub: pickled.StubObject, path: Path, loaded: LoadedModel, probe: Sequence[Batch]
) -> tuple[Tensor, Tensor]:
    description = pickled.description_of(stub, str(path), loaded.description)
    if description.hash() != loaded.description.hash():
        raise VerificationError(f"what was made of {loaded.file.path} does not describe its network; nothing was kept")
    module = model_loader.build_as(description, loaded.module)
    state, _, faults = pickled.fit_tensors(module, pickled.tensors_of(stub))
    if faults:
        raise VerificationError(f"{path}: {'; '.join(faults[:3])}")
    module.load_state_dict(state)
    return _reference(module, loaded, probe)


def _reference(module: nn.Module, loaded: LoadedModel, probe: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Total energies and forces by the form of the network that is mace's own."""
    network = model_loader.network(module, "reference", loaded.description)
    weights, energies, forces = model_loader.trainable(module), [], []
    for batch in probe:
        found = predict(network, weights, batch, stress=False, training=False)
        assert found.forces is not None
        energies.append(found.energy.double() + batch.reference_energy)
        forces.append(found.forces)
    return torch.cat(energies), torch.cat(forces)


def deviation(module: nn.Module, loaded: LoadedModel) -> float:
    """How far a module's energies and forces of two structures are from a loaded model's, relative to the largest."""
    probe = _probe(loaded, loaded.description.heads[0])
    return _deviation(_reference(loaded.module, loaded, probe), _reference(module, loaded, probe))


def _deviation(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> float:
    """Largest deviation relative to the largest energy and force."""
    parts = [
        float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-30))
        for a, b in zip(expected, found, strict=True)
    ]
    return max(parts)


def _probe(loaded: LoadedModel, head: str) -> list[Batch]:
    """A cluster and a crystal of some of the model's elements at distances between a bond and the cutoff."""
    facts, rng = loaded.description.facts(), np.random.default_rng(0)
    elements = rng.permutation(facts.atomic_numbers)[:PROBE_ELEMENTS]
    spacing = min(0.45 * facts.r_max, 2.0)
    grid = spacing * np.stack(np.meshgrid(*[np.arange(2.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    structures = []
    for periodic in (False, True):
        structures.append(
            Structure(
                atomic_numbers=rng.choice(elements, len(grid)).astype(np.int64),
                positions=grid + rng.normal(0.0, 0.08 * spacing, grid.shape),
                cell=2 * spacing * np.eye(3) if periodic else np.zeros((3, 3)),
                pbc=(periodic,) * 3,
                identifier="probe",
                head=head,
                features={f.name: _feature(f.per_atom, f.width, len(grid)) for f in facts.features},
            )
        )
    dtype = next(loaded.module.parameters()).dtype
    return [
        collate([structure], [build_graph(structure, facts.r_max)], [0], facts, dtype, free_atoms_only=False)
        for structure in structures
    ]


def _feature(per_atom: bool, width: int, n_atoms: int) -> np.ndarray:
    return np.ones((n_atoms, width)) if per_atom else np.ones(1)
