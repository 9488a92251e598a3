"""model.json: the structure of a network and nothing else, checked, canonical, and known by its hash.

Field names are those of mace-torch's constructor. A person writes what differs from the defaults, which are those of
``mace_run_train --model ScaleShiftMACE``; the canonical text has every field.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dataloader import input_files, plain_json
from dataloader.batch import FeatureSpec, ModelFacts
from dataloader.errors import InputError
from dataloader.limits import MODEL_JSON_BYTES

MAX_CHANNELS = 4096
MAX_WEIGHTS = 10**9  # 4 GB in single precision; Adam and its gradients take five times that
MAX_PRODUCT_SIZE = (
    2**20
)  # ((max_ell + 1)²)^correlation: entries of a coupling matrix per path; more takes hours to build

Interaction = Literal[
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticAttResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
]


def _irreps(value: object) -> object:
    """Irreps as e3nn prints them, without spaces: ``128x0e + 0o`` → ``128x0e+1x0o``."""
    if not isinstance(value, str):
        raise ValueError("expected irreps as text, for example 128x0e+128x1o")
    parts = []
    for term in value.replace(" ", "").split("+"):
        match = re.fullmatch(r"(?:(\d{1,5})x)?(\d{1,2})([eo])", term)
        if not match:
            raise ValueError(f"{term!r} is no irrep, expected for example 128x0e")
        multiplicity, order, parity = int(match[1] or 1), int(match[2]), match[3]
        if not 1 <= multiplicity <= MAX_CHANNELS or order > 11:
            raise ValueError(f"{term!r} is out of range (1 to {MAX_CHANNELS} channels, l up to 11)")
        parts.append(f"{multiplicity}x{order}{parity}")
    return "+".join(parts)


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Irreps = Annotated[str, BeforeValidator(_irreps)]
Real = Annotated[float, Field(allow_inf_nan=False, strict=True)]
PerHead = Annotated[list[Real], BeforeValidator(_as_list)]
Size = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
AtomicNumber = Annotated[int, Field(ge=1, le=len(chemical_symbols) - 1)]


class Embedding(BaseModel):
    """One input besides species: total charge, spin, …, embedded and added to the node features."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    type: Literal["categorical", "continuous"]
    per: Literal["graph", "atom"]
    emb_dim: Size
    in_dim: Size = 1
    num_classes: Size | None = None
    offset: int = 0
    use_bias: bool = True

    @model_validator(mode="after")
    def _classes_where_categorical(self) -> Self:
        if (self.type == "categorical") != (self.num_classes is not None):
            raise ValueError("num_classes belongs to a categorical embedding, and only there")
        if self.per == "graph" and self.in_dim != 1:
            raise ValueError("in_dim must be 1 for an input per graph, of which mace takes one number")
        if self.name in _BATCH_NAMES:
            raise ValueError(f"{self.name!r} is the name of another input of the network; give it another one")
        return self

    def feature(self) -> FeatureSpec:
        """What the data path checks and lays out."""
        classes = None if self.num_classes is None else (-self.offset, self.num_classes - 1 - self.offset)
        return FeatureSpec(name=self.name, per_atom=self.per == "atom", width=self.in_dim, classes=classes)


_BATCH_NAMES = {
    *("positions", "node_attrs", "edge_index", "shifts", "unit_shifts", "cell", "batch", "ptr", "head", "displacement"),
    *("keys", "values", "items", "forward", "type", "train", "eval", "float", "double", "half", "to", "cpu", "cuda"),
}


class ModelDescription(BaseModel):
    """The fields of model.json in canonical form; energies in eV, lengths in Å."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    schema_version: Literal[1] = 1
    model_class: Literal["MACE", "ScaleShiftMACE"]
    r_max: Annotated[float, Field(ge=0.5, le=50, allow_inf_nan=False)]
    atomic_numbers: Annotated[list[AtomicNumber], Field(min_length=1)]
    atomic_energies: list[list[Real]]  # [head][element], eV
    avg_num_neighbors: Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)]
    atomic_inter_scale: PerHead | None = None
    atomic_inter_shift: PerHead | None = None
    num_bessel: Annotated[int, Field(ge=1, le=1024)] = 8
    num_polynomial_cutoff: Annotated[int, Field(ge=2, le=64)] = 5
    max_ell: Annotated[int, Field(ge=1, le=11)] = 3
    interaction_cls: Interaction = "RealAgnosticResidualInteractionBlock"
    interaction_cls_first: Interaction = "RealAgnosticResidualInteractionBlock"
    num_interactions: Annotated[int, Field(ge=1, le=12)] = 2
    hidden_irreps: Irreps = "128x0e+128x1o"
    edge_irreps: Irreps | None = None
    MLP_irreps: Irreps = "16x0e"
    correlation: Annotated[list[Annotated[int, Field(ge=1, le=6)]], Field(min_length=1, max_length=12)]
    gate: Literal["silu", "tanh", "abs", "None"] = "silu"
    radial_type: Literal["bessel", "gaussian", "chebyshev"] = "bessel"
    radial_MLP: Annotated[list[Size], Field(min_length=1, max_length=16)] = [64, 64, 64]
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    pair_repulsion: bool = False
    apply_cutoff: bool = True
    use_reduced_cg: bool = False
    use_so3: bool = False
    use_agnostic_product: bool = False
    use_last_readout_only: bool = False
    use_edge_irreps_first: bool = False
    use_embedding_readout: bool = False
    embedding_specs: Annotated[list[Embedding], Field(min_length=1)] | None = None  # a list: weights are in its order
    readout_cls: Literal["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"] = "NonLinearReadoutBlock"
    keep_last_layer_irreps: bool = False
    heads: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=256)] = ["Default"]

    @model_validator(mode="before")
    @classmethod
    def _spread_short_forms(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What a person may write short: one correlation for all layers, E0s by element, one number for all heads."""
        data = dict(data)
        correlation, layers = data.get("correlation", 3), data.get("num_interactions", 2)
        if isinstance(correlation, int) and not isinstance(correlation, bool) and isinstance(layers, int):
            data["correlation"] = [correlation] * min(layers, 64)
        heads = data.get("heads", ["Default"])
        specs = data.get("embedding_specs")
        if isinstance(specs, dict) and all(isinstance(spec, dict) for spec in specs.values()):
            data["embedding_specs"] = [{"name": name, **spec} for name, spec in specs.items()]
        if "atomic_energies" in data and isinstance(heads, list) and all(isinstance(head, str) for head in heads):
            data["atomic_energies"] = _energies_per_head(data.get("atomic_energies"), data.get("atomic_numbers"), heads)
        if data.get("model_class") == "ScaleShiftMACE":
            for name in ("atomic_inter_scale", "atomic_inter_shift"):
                if data.get(name) is None:
                    raise ValueError(f"{name} is missing, which ScaleShiftMACE needs; `metadata.py fit` computes it")
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for fault in _contradictions(self):
            raise ValueError(fault)
        return self

    def canonical_text(self) -> str:
        """Every field, sorted, shortest round-trip numbers, one spelling: equal structures give equal bytes."""
        fields = _without_negative_zero(self.model_dump())
        return json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def hash(self) -> str:
        """sha256 of the canonical text's UTF-8 bytes."""
        return hashlib.sha256(self.canonical_text().encode()).hexdigest()

    def facts(self) -> ModelFacts:
        """What the data path needs of it."""
        return ModelFacts(
            atomic_numbers=tuple(self.atomic_numbers),
            heads=tuple(self.heads),
            atomic_energies=tuple(tuple(e) for e in self.atomic_energies),
            r_max=self.r_max,
            features=tuple(spec.feature() for spec in self.embedding_specs or ()),
        )


def _energies_per_head(energies: object, numbers: object, heads: list[Any]) -> object:
    """E0s as [head][element] from a list, a mapping by element, or a mapping by head of either."""
    if isinstance(energies, dict) and energies and set(energies) == set(heads):
        return [_energies_of_elements(energies[head], numbers) for head in heads]
    if isinstance(energies, dict) or (isinstance(energies, list) and not any(isinstance(e, list) for e in energies)):
        if len(heads) > 1:
            raise ValueError("atomic_energies must be given per head where there are several heads")
        return [_energies_of_elements(energies, numbers)]
    return energies


def _energies_of_elements(energies: object, numbers: object) -> object:
    if not isinstance(energies, dict) or not isinstance(numbers, list) or not all(type(z) is int for z in numbers):
        return energies
    by_number = {number_of(key): value for key, value in energies.items()}
    missing, extra = set(numbers) - set(by_number), set(by_number) - set(numbers)
    if missing or extra or len(by_number) != len(energies):
        raise ValueError(f"atomic_energies name {sorted(by_number)} but atomic_numbers are {sorted(numbers)!s:.300}")
    return [by_number[z] for z in numbers]


def number_of(key: str) -> int:
    """Atomic number from a symbol or a decimal number; ValueError for anything else."""
    if key in number_of_symbol:
        return int(number_of_symbol[key])
    if key.isdecimal() and 0 < int(key[:4]) < len(chemical_symbols):
        return int(key)
    raise ValueError(f"atomic_energies names {key!r}, expected an element symbol or its atomic number")


def _contradictions(model: ModelDescription) -> list[str]:
    """What no field shows alone; mace would fail on each in its own way, or build something else."""
    terms = [re.fullmatch(r"(\d+)x(\d+)([eo])", t) for t in model.hidden_irreps.split("+")]
    multiplicities = {int(t[1]) for t in terms if t}
    heads, elements = len(model.heads), len(model.atomic_numbers)
    shape = [len(e) for e in model.atomic_energies]
    checks = [
        (len(set(model.atomic_numbers)) != elements, "atomic_numbers: an element stands twice"),
        (len(set(model.heads)) != heads, "heads: a name stands twice"),
        (
            shape != [elements] * heads,
            f"atomic_energies: {shape} values per head, expected {heads} head(s) of {elements} element(s)",
        ),
        (
            len(model.correlation) != model.num_interactions,
            f"correlation: {len(model.correlation)} values for {model.num_interactions} layers",
        ),
        (len(multiplicities) != 1, f"hidden_irreps: {model.hidden_irreps} must have one number of channels"),
        (
            model.hidden_irreps.split("+")[0].endswith("x0e") is False,
            f"hidden_irreps: {model.hidden_irreps} must begin with the scalars (…x0e)",
        ),
        (
            (model.max_ell + 1) ** (2 * max(model.correlation)) > MAX_PRODUCT_SIZE,
            f"max_ell {model.max_ell} with correlation {max(model.correlation)} is too large to build",
        ),
        (
            max(model.correlation) != 4 and (max(model.correlation) - 1) * model.max_ell > 11,
            f"max_ell {model.max_ell} with correlation {max(model.correlation)} needs couplings beyond l = 11, "
            "which e3nn has not",
        ),
        (
            _weights(model, len(terms)) > MAX_WEIGHTS,
            f"hidden_irreps: {model.hidden_irreps} in {model.num_interactions} layers for {elements} elements needs "
            f"some {_weights(model, len(terms)):.0e} weights (limit {MAX_WEIGHTS:.0e})",
        ),
        (
            model.radial_type == "gaussian" and model.num_bessel < 2,
            "num_bessel: a gaussian basis needs at least 2 functions",
        ),
        (
            model.num_interactions == 1 and model.use_last_readout_only,
            "use_last_readout_only: a single layer has no last readout in mace",
        ),
        (
            model.use_embedding_readout and not model.embedding_specs,
            "use_embedding_readout: there are no embedding_specs",
        ),
        (
            model.use_embedding_readout and heads > 1 and model.model_class == "MACE",
            "use_embedding_readout: mace's class MACE cannot run it with several heads",
        ),
        (
            len({spec.name for spec in model.embedding_specs or ()}) != len(model.embedding_specs or ()),
            "embedding_specs: a name stands twice",
        ),
        (
            len({term.partition("x")[2] for term in model.hidden_irreps.split("+")})
            != model.hidden_irreps.count("+") + 1,
            f"hidden_irreps: {model.hidden_irreps} names an irrep twice",
        ),
        (
            re.fullmatch(r"\d+x0[eo]", model.MLP_irreps) is None,
            f"MLP_irreps: {model.MLP_irreps} must be one kind of scalars, for example 16x0e",
        ),
        (
            model.use_edge_irreps_first and "x0e" not in (model.edge_irreps or "x0e"),
            f"use_edge_irreps_first: edge_irreps {model.edge_irreps} have no scalars",
        ),
    ]
    if model.model_class == "MACE":
        both = model.atomic_inter_scale is not None or model.atomic_inter_shift is not None
        checks.append((both, "atomic_inter_scale and atomic_inter_shift belong to ScaleShiftMACE; leave them out"))
    else:
        for name in ("atomic_inter_scale", "atomic_inter_shift"):
            values = getattr(model, name) or []
            checks.append((len(values) != heads, f"{name}: {len(values)} values for {heads} head(s)"))
    return [message for wrong, message in checks if wrong]


def _weights(model: ModelDescription, n_terms: int) -> int:
    """A rough number of weights: linear maps and skip connections of all layers."""
    channels = int(model.hidden_irreps.partition("x")[0])
    paths = n_terms * (model.max_ell + 1) ** 2
    return model.num_interactions * channels**2 * (n_terms * (len(model.atomic_numbers) + 3) + paths)


def _without_negative_zero(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_negative_zero(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_negative_zero(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def parse(text: str, where: str) -> ModelDescription:
    """A checked description from the text of a model.json.

    Args:
        text: JSON; numbers may be whole where the field is real, unknown and duplicate keys are refused.
        where: file name for the message.

    Raises:
        InputError: with the file, the field, what was found and what was expected.
    """
    fields = _load_json(text, where)
    try:
        return ModelDescription.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error)}") from None


def _load_json(text: str, where: str) -> dict[str, Any]:
    if len(text) > MODEL_JSON_BYTES:
        raise InputError(f"{where} has {len(text)} bytes, far more than any model.json (limit {MODEL_JSON_BYTES})")
    try:
        value = plain_json.loads(text, _no_constant)
    except ValueError as error:
        raise InputError(f"{where} is not a model.json: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a model.json: expected an object {{…}}, found {type(value).__name__}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of a model.json")


def _explain(error: ValidationError) -> str:
    """The first fault of a model.json as one phrase; a missing or unknown name gets its remedy."""
    faults = error.errors(include_url=False, include_context=False)
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")  # a misspelt name explains a missing one
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        remedy = "; `metadata.py fit` computes it from data" if field in _MEASURED else ""
        return f"{field} is missing{remedy}"
    if fault["type"] == "extra_forbidden":
        return _unknown(field)
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    found = "" if fault["type"] == "value_error" else f" (found {fault['input']!r:.60})"
    return f"{field}: {message}{found}" if field else message


def _unknown(field: str) -> str:
    near = get_close_matches(field, ModelDescription.model_fields, n=1)
    return f"unknown field {field!r}" + (f"; did you mean {near[0]!r}?" if near else "")


_MEASURED = ("atomic_energies", "avg_num_neighbors", "atomic_inter_scale", "atomic_inter_shift", "atomic_numbers")


def read(path: Path) -> ModelDescription:
    """A checked description from a model.json file.

    Raises:
        InputError: the file cannot be read or does not describe a model.
    """
    return parse(_read_text(path), str(path))


def load_fields(path: Path) -> dict[str, Any]:
    """The fields of a file that need not be complete yet; names are checked, values later.

    Raises:
        InputError: the file cannot be read, or has a field that model.json has not.
    """
    fields = _load_json(_read_text(path), str(path))
    for name in fields:
        if name not in ModelDescription.model_fields:
            raise InputError(f"{path}: {_unknown(name)}")
    return fields


def _read_text(path: Path) -> str:
    try:
        return input_files.read_bytes(path, MODEL_JSON_BYTES).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a model.json") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is not text; expected a model.json (to get one from weights: read_model.py export)"
        ) from None


def differing_fields(first: ModelDescription, second: ModelDescription) -> Sequence[str]:
    """Names of the fields in which two descriptions differ, with both values."""
    a, b = first.model_dump(), second.model_dump()
    return [f"{name}: {a[name]!r:.60} against {b[name]!r:.60}" for name in sorted(a) if a[name] != b[name]]
