"""Weights in the forms that other programs take; each is compared with the source
before it gets its name.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataloader import durable, input_files
from dataloader.batch import Batch, collate
from dataloader.needs import FeatureSpec
from dataloader.neighbors import build_graph
from dataloader.quantities import ENERGY, FORCES
from dataloader.structure import Structure
from model_utils import model_loader
from model_utils.errors import InputError, VerificationError, cannot_write
from model_utils.files import checkpoint
from model_utils.files.apart import refuse_shared_places
from model_utils.files.outputs import refuse_names_of_runs, sidecar
from model_utils.model_loader import LoadedModel
from model_utils.models import description as model_json
from model_utils.models import lammps, pickled
from model_utils.models.architecture import architecture_of
from model_utils.models.formed import FormingError, forming_error
from model_utils.models.network import predict
from model_utils.models.sandbox import SandboxedObject, tensors_of
from model_utils.runtime import DTYPES, dtype_name, log, start_log
from model_utils.settings.options import ConvertOptions

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # relative: forms sum in other orders
PROBE_ELEMENTS = 6
# atoms along a side of the structures on which sums of E0s are compared: 64, as in a usual cell
LARGE = 4
Answers = dict[str, Tensor]  # by quantity
OF_ONE_HEAD = ("lammps", "mliap")  # forms that give the energies of a single head
# who forms energies with a form
ADDS = {"module": "mace's calculator", "lammps": "LAMMPS", "mliap": "LAMMPS"}


def convert(options: ConvertOptions) -> None:
    """Write a weights file in another form.

    Raises:
        InputError: the output is there, or the model has several heads and none was named.
        VerificationError: the new form does not give the source's energies and
            forces; nothing was written.
    """
    start_log()
    refuse_names_of_runs(options.output, "--output")
    if options.output.exists() and not options.overwrite:
        raise InputError(
            f"--output {options.output} is there already; give another name or --overwrite"
        )
    refuse_shared_places({"--output": options.output}, [("--input_model", options.input_model)])
    loaded = _source(options, DTYPES.get(options.dtype or ""))
    _refuse_unknown_form(options, loaded)
    if options.to == "mliap":
        _look_at_inputs(loaded)
    head = _head(loaded, options.head, needed=options.to in OF_ONE_HEAD)
    loaded = _precise_enough(options, loaded, head)
    state = lammps.MLIAP_STATE if options.to == "mliap" else {}
    probe = _probe(loaded, head, state=state)
    expected = _reference(loaded.module, loaded, probe)
    if options.head is not None and options.to not in OF_ONE_HEAD:
        loaded = of_one_head(loaded, options.head)
        probe = _probe(loaded, head, state=state)
    _write(options, loaded, head, probe, expected)


def _precise_enough(options: ConvertOptions, loaded: LoadedModel, head: str) -> LoadedModel:
    """The model in a precision in which the other program's sums of E0s are right,
    unless the user gave one.

    What is widened takes E0s, scale and shift from the model.json, which is exact.
    """
    if (error := _forming_error(options, loaded, head)).matters and options.dtype is None:
        loaded = _source(options, torch.float64)
        log.warning(
            "warning: %s adds E0s in the precision of the file: in float32 its energies would "
            "differ from those of evaluate.py by up to %s, so the file is float64 (--dtype float32 "
            "keeps the precision)",
            ADDS[options.to],
            error,
        )
    elif error.matters:
        log.warning(
            "warning: %s adds E0s in float32: its energies differ from those of evaluate.py by up "
            "to %s; leave --dtype out or give --dtype float64 (in mace's calculator with "
            'default_dtype="float64")',
            ADDS[options.to],
            error,
        )
    return loaded


def _refuse_unknown_form(options: ConvertOptions, loaded: LoadedModel) -> None:
    """Raise InputError where the network's family has no such form."""
    forms = architecture_of(loaded.description).exports
    if options.to not in forms:
        raise InputError(
            f"--to {options.to}: there is no such form of {loaded.description.model_class}; there "
            f"is {', '.join(forms)}"
        )


def _look_at_inputs(loaded: LoadedModel) -> None:
    """Warn where the wrapper for ML-IAP computes one charge and one spin only.

    Raises:
        InputError: it would give LAMMPS wrong energies, or none.
    """
    names = {spec.name for spec in loaded.description.facts().features}
    if getattr(loaded.module, "embedding_readout", None) is not None:
        raise InputError(
            "--to mliap: the network has a readout of its charge and spin, which mace's wrapper "
            "leaves out of the energies that LAMMPS gets; --to module is for mace's calculator"
        )
    unknown = sorted(names - set(lammps.MLIAP_STATE))
    if unknown:
        raise InputError(
            f"--to mliap: the network takes {', '.join(unknown)}, which mace's wrapper has not"
        )
    if names:
        state = ", ".join(f"{name} {lammps.MLIAP_STATE[name]:g}" for name in sorted(names))
        log.warning("warning: in LAMMPS every structure has %s: mace's wrapper fixes it", state)


def _source(options: ConvertOptions, dtype: torch.dtype | None) -> LoadedModel:
    return model_loader.load(
        options.input_model,
        dtype=dtype,
        input_json=options.input_json,
        trust_pickle=options.trust.trust_pickle,
    )


def _forming_error(options: ConvertOptions, loaded: LoadedModel, head: str) -> FormingError:
    """How far energies are off where another program forms them in single precision; zero
    for a form without any.
    """
    if options.to not in ADDS or next(loaded.module.parameters()).dtype == torch.float64:
        return FormingError(per_structure=0.0, per_atom=0.0)
    return forming_error(loaded.module, _probe(loaded, head, side=LARGE))


def of_one_head(loaded: LoadedModel, head: str) -> LoadedModel:
    """A model with one of the heads alone, which gives that head's energies and forces.

    Raises:
        InputError: a readout is of a kind whose heads cannot be taken apart.
    """
    before = loaded.description
    if len(before.heads) == 1:
        return loaded
    k = before.heads.index(head)
    fields = before.for_heads([head], [k], range(len(before.atomic_numbers)))
    description = model_json.parse(json.dumps(fields), f"head {head} of {loaded.file.path}")
    module = model_loader.build_as(description, loaded.module)
    module.load_state_dict(
        architecture_of(description).with_copied_heads(loaded.module, module, [k])
    )
    return LoadedModel(module=module, description=description, file=loaded.file)


def _write(
    options: ConvertOptions,
    loaded: LoadedModel,
    head: str,
    probe: Sequence[Batch],
    expected: Answers,
) -> None:
    """Write under another name, read it back, compare, and only then give it its name."""
    output = options.output
    data, check = FORMS[options.to](loaded, head, probe)
    unchecked = output.with_name(f".{output.name}.unchecked")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        durable.write(unchecked, data)
        deviation = _deviation(expected, check(unchecked))
        limit = TOLERANCE[next(loaded.module.parameters()).dtype]
        if not deviation <= limit:
            raise VerificationError(
                f"{options.to} of {options.input_model} deviates by {deviation:.2g} (at most "
                f"{limit:g}); not written"
            )
        if options.to == "safetensors":
            _write_description(options, loaded)
        os.replace(unchecked, output)
    except OSError as error:
        raise cannot_write(f"--output {output}", error) from None
    finally:
        unchecked.unlink(missing_ok=True)
    what = (
        "energies and forces"
        if ENERGY.name in expected
        else " and ".join(f"{name}s" for name in expected)
    )
    dtype = next(loaded.module.parameters()).dtype
    is_rounded = dtype.itemsize < loaded.file.dtype.itemsize
    rounded = f", in {dtype_name(dtype)}," if is_rounded else ""
    log.info(
        "wrote %s: %s of a cluster and a crystal are the source's%s to %.2g",
        *(output, what, rounded, deviation),
    )


def _write_description(options: ConvertOptions, loaded: LoadedModel) -> None:
    """The model.json beside a safetensors file, which holds tensors alone."""
    beside = sidecar(options.output)
    text = loaded.description.canonical_text()
    if beside.exists() and not input_files.holds(beside, text.encode()) and not options.overwrite:
        raise InputError(f"{beside} is there with other content; give another name or --overwrite")
    durable.write_text(beside, text)


def _head(loaded: LoadedModel, head: str | None, *, needed: bool) -> str:
    """The head that is meant, which must be named where the form has one and the model several."""
    names = loaded.description.heads
    if needed and head is None and len(names) > 1:
        raise InputError(f"the model has the heads {', '.join(names)}; name one with --head")
    if head is not None and head not in names:
        raise InputError(f"--head {head} is none of the model's: {', '.join(names)}")
    return head or names[0]


Check = Callable[[Path], Answers]  # of the probe, from the file


def _safetensors(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    """Tensors by name; read back into a module that is built anew."""
    from safetensors.torch import save

    tensors = {
        name: tensor.detach().contiguous().clone()
        for name, tensor in loaded.module.state_dict().items()
    }

    def check(path: Path) -> Answers:
        module = model_loader.build_as(loaded.description, loaded.module)
        module.load_state_dict(model_loader.read_safetensors(path)[0])
        return _reference(module, loaded, probe)

    return save(tensors, {"model_json_hash": loaded.description.hash()}), check


def _module(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    """The module as mace's calculator opens it; read back through inert stubs and
    rebuilt, never unpickled.
    """

    def check(path: Path) -> Answers:
        stub = checkpoint.load_sandboxed(path)
        assert isinstance(stub, SandboxedObject)
        return _rebuilt(stub, path, loaded, probe)

    return checkpoint.serialise(loaded.module), check


def _lammps(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    """TorchScript with mace's wrapper for LAMMPS; the compiled code itself is
    run for the comparison.
    """
    data = lammps.torchscript(loaded.module, head)
    n_elements = len(loaded.description.atomic_numbers)

    def check(path: Path) -> Answers:
        script = path.read_bytes()
        results = [lammps.run_torchscript(script, batch, n_elements) for batch in probe]
        energies = torch.cat([energy for energy, _ in results])
        forces = torch.cat([forces for _, forces in results])
        return {ENERGY.name: energies, FORCES.name: forces}

    return data, check


def _mliap(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> tuple[bytes, Check]:
    """The module inside the wrapper is read back and rebuilt; the wrapper's own code is run as
    LAMMPS runs it.
    """

    def check(path: Path) -> Answers:
        _compare_wrapper(loaded, head, probe)
        stub: object = checkpoint.load_sandboxed(path)
        for name in ("model", "model"):  # the wrapper's edge-force module, and mace's module in it
            attributes = getattr(stub, "__dict__", {})
            stub = attributes.get(name) or attributes.get("_modules", {}).get(name)
        assert isinstance(stub, SandboxedObject)
        return _rebuilt(stub, path, loaded, probe)

    return checkpoint.serialise(lammps.mliap(model_loader.copied(loaded.module), head)), check


def _compare_wrapper(loaded: LoadedModel, head: str, probe: Sequence[Batch]) -> None:
    """Run mace's wrapper for ML-IAP.

    Raises:
        VerificationError: it gives LAMMPS other energies or forces.
    """
    # of its own: a run leaves marks on it
    wrapper = lammps.mliap(model_loader.copied(loaded.module), head)
    results = [lammps.run_mliap(wrapper, batch) for batch in probe]
    computed = {
        ENERGY.name: torch.cat([energy for energy, _ in results]),
        FORCES.name: torch.cat([forces for _, forces in results]),
    }
    deviation = _deviation(_reference(loaded.module, loaded, probe), computed)
    limit = TOLERANCE[next(loaded.module.parameters()).dtype]
    if not deviation <= limit:
        raise VerificationError(
            f"mace's wrapper for ML-IAP deviates by {deviation:.2g} (at most {limit:g}); nothing "
            "was written"
        )


# model, head, structures to compare on → the file, and what reads it back; the
# names are those of ``--to``
Form = Callable[[LoadedModel, str, Sequence[Batch]], tuple[bytes, Check]]
FORMS: dict[str, Form] = {
    "safetensors": _safetensors,
    "module": _module,
    "lammps": _lammps,
    "mliap": _mliap,
}


def _rebuilt(
    stub: SandboxedObject, path: Path, loaded: LoadedModel, probe: Sequence[Batch]
) -> Answers:
    """Energies and forces of the probe by a module that is built from what a pickle says.

    Raises:
        VerificationError: it describes another network, or its tensors do not fit.
    """
    description = pickled.description_of(stub, str(path), loaded.description)
    if description.hash() != loaded.description.hash():
        raise VerificationError(
            f"what was made of {loaded.file.path} does not describe its network; nothing was kept"
        )
    module = model_loader.build_as(description, loaded.module)
    state, _, faults = pickled.fit_tensors(module, tensors_of(stub))
    if faults:
        raise VerificationError(f"{path}: {'; '.join(faults[:3])}")
    module.load_state_dict(state)
    return _reference(module, loaded, probe)


def _reference(module: nn.Module, loaded: LoadedModel, probe: Sequence[Batch]) -> Answers:
    """Total energies, forces and what else it gives by the form of the network that is
    mace's own, by quantity.
    """
    network = model_loader.build_network(module, "reference", loaded.description)
    weights = model_loader.trainable(module)
    of_batches: list[Answers] = []
    for batch in probe:
        prediction = dict(predict(network, weights, batch, wanted=(), training=False))
        if ENERGY.name in prediction:
            prediction[ENERGY.name] = prediction[ENERGY.name].double() + batch.reference_energy
        of_batches.append(prediction)
    return {name: torch.cat([answers[name] for answers in of_batches]) for name in of_batches[0]}


def deviation(module: nn.Module, loaded: LoadedModel) -> float:
    """How far a module's energies and forces of two structures are from a loaded model's,
    relative to the largest.
    """
    probe = _probe(loaded, loaded.description.heads[0])
    return _deviation(_reference(loaded.module, loaded, probe), _reference(module, loaded, probe))


def _deviation(expected: Answers, computed: Answers) -> float:
    """Largest deviation relative to the largest number of each quantity; NaN where
    one of the numbers is.
    """
    parts = [_relative(expected[name].double(), computed[name].double()) for name in expected]
    # Python's own max may pass a NaN over
    return float(torch.tensor(parts, dtype=torch.float64).max())


def _relative(expected: Tensor, computed: Tensor) -> float:
    """Largest deviation relative to the largest number that is expected."""
    largest = expected.abs().max().clamp(min=1e-30)
    return float((expected - computed).abs().max() / largest)


def _probe(
    loaded: LoadedModel, head: str, side: int = 2, state: Mapping[str, float] | None = None
) -> list[Batch]:
    """A cluster and a crystal of some of the model's elements at distances between
    a bond and the cutoff.

    Args:
        loaded: the model.
        head: whose energies.
        side: atoms along each of the three directions.
        state: values of inputs besides elements and positions, by their names; ones unless given.
    """
    facts = loaded.description.facts()
    rng = np.random.default_rng(0)
    elements = rng.permutation(facts.atomic_numbers)[:PROBE_ELEMENTS]
    spacing = min(0.45 * facts.r_max, 2.0)
    grid = spacing * np.stack(
        np.meshgrid(*[np.arange(float(side))] * 3, indexing="ij"), axis=-1
    ).reshape(-1, 3)
    structures = [
        Structure(
            atomic_numbers=rng.choice(elements, len(grid)).astype(np.int64),
            positions=grid + rng.normal(0.0, 0.08 * spacing, grid.shape),
            cell=side * spacing * np.eye(3) if is_periodic else np.zeros((3, 3)),
            pbc=(is_periodic,) * 3,
            identifier="probe",
            head=head,
            features={
                spec.name: _feature(spec, len(grid), (state or {}).get(spec.name, 1.0))
                for spec in facts.features
            },
        )
        for is_periodic in (False, True)
    ]
    dtype = next(loaded.module.parameters()).dtype
    return [
        collate(
            [structure],
            [build_graph(structure, facts.r_max)],
            [0],
            facts,
            dtype,
            free_atoms_only=False,
        )
        for structure in structures
    ]


def _feature(spec: FeatureSpec, n_atoms: int, value: float) -> np.ndarray:
    """An input of the network besides elements and positions, such as a charge: one value
    everywhere.
    """
    return np.full((n_atoms, spec.width) if spec.per_atom else 1, value)
