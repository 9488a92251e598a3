"""model.json of MACE: the fields of mace-torch's constructor, and what contradicts itself in them.

A person writes what differs from the defaults, which are those of ``mace_run_train --model
ScaleShiftMACE``; the canonical text has every field.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dataloader.needs import FeatureSpec
from dataloader.quantities import ENERGY, FORCES, STRESS
from model_utils.models.schema import (
    MAX_CHANNELS,
    SHARED_RULES,
    ModelDescription,
    PerHead,
    Rule,
    Size,
)

MAX_WEIGHTS = 10**9  # 4 GB in single precision; Adam and its gradients take five times that
# ((max_ell + 1)²)^correlation, the entries of a coupling matrix per path: more takes hours to build
MAX_PRODUCT_SIZE = 2**20

InteractionName = Literal[
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
        multiplicity = int(match[1] or 1)
        order = int(match[2])
        parity = match[3]
        if not 1 <= multiplicity <= MAX_CHANNELS or order > 11:
            raise ValueError(f"{term!r} is out of range (1 to {MAX_CHANNELS} channels, l up to 11)")
        parts.append(f"{multiplicity}x{order}{parity}")
    return "+".join(parts)


Irreps = Annotated[str, BeforeValidator(_irreps)]


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
            raise ValueError(
                "in_dim must be 1 for an input per graph, of which mace takes one number"
            )
        if self.name in _BATCH_NAMES:
            raise ValueError(
                f"{self.name!r} is the name of another input of the network; give it another one"
            )
        return self

    def feature(self) -> FeatureSpec:
        """What the data path checks and lays out."""
        classes = (
            None if self.num_classes is None else (-self.offset, self.num_classes - 1 - self.offset)
        )
        return FeatureSpec(
            name=self.name, per_atom=self.per == "atom", width=self.in_dim, classes=classes
        )


# Names that mace's data or torch's modules have already: an embedding of this name
# would replace or hide them.
_BATCH_NAMES = {
    *("positions", "node_attrs", "edge_index", "shifts", "unit_shifts"),
    *("cell", "batch", "ptr", "head", "displacement"),
    *("keys", "values", "items", "forward", "type", "train", "eval"),
    *("float", "double", "half", "to", "cpu", "cuda"),
}


class MaceDescription(ModelDescription):
    """The fields of a model.json of MACE in canonical form; energies in eV, lengths in Å."""

    rules: ClassVar[tuple[Rule, ...]]  # at the end of this file

    model_class: Literal["MACE", "ScaleShiftMACE"]
    atomic_inter_scale: PerHead | None = None
    atomic_inter_shift: PerHead | None = None
    num_bessel: Annotated[int, Field(ge=1, le=1024)] = 8
    num_polynomial_cutoff: Annotated[int, Field(ge=2, le=64)] = 5
    max_ell: Annotated[int, Field(ge=1, le=11)] = 3
    interaction_cls: InteractionName = "RealAgnosticResidualInteractionBlock"
    interaction_cls_first: InteractionName = "RealAgnosticResidualInteractionBlock"
    num_interactions: Annotated[int, Field(ge=1, le=12)] = 2
    hidden_irreps: Irreps = "128x0e+128x1o"
    edge_irreps: Irreps | None = None
    MLP_irreps: Irreps = "16x0e"
    correlation: Annotated[
        list[Annotated[int, Field(ge=1, le=6)]], Field(min_length=1, max_length=12)
    ]
    gate: Literal["silu", "tanh", "abs", "None"] = "silu"
    radial_type: Literal["bessel", "gaussian", "chebyshev"] = "bessel"
    radial_MLP: Annotated[list[Size], Field(min_length=1, max_length=16)] = Field(
        default=[64, 64, 64]
    )
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    pair_repulsion: bool = False
    apply_cutoff: bool = True
    use_reduced_cg: bool = False
    use_so3: bool = False
    use_agnostic_product: bool = False
    use_last_readout_only: bool = False
    use_edge_irreps_first: bool = False
    use_embedding_readout: bool = False
    # a list: weights are in its order
    embedding_specs: Annotated[list[Embedding], Field(min_length=1)] | None = None
    readout_cls: Literal["NonLinearReadoutBlock", "NonLinearBiasReadoutBlock"] = (
        "NonLinearReadoutBlock"
    )
    keep_last_layer_irreps: bool = False

    @classmethod
    def spread(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What a person may write short: one correlation for all layers, E0s by element,
        one number for all heads.

        Raises:
            ValueError: what is written cannot be spread, or scale or shift is missing.
        """
        correlation = data.get("correlation", 3)
        layers = data.get("num_interactions", 2)
        if (
            isinstance(correlation, int)
            and not isinstance(correlation, bool)
            and isinstance(layers, int)
        ):
            data["correlation"] = [correlation] * min(layers, 64)
        specs = data.get("embedding_specs")
        if isinstance(specs, dict) and all(isinstance(spec, dict) for spec in specs.values()):
            data["embedding_specs"] = [{"name": name, **spec} for name, spec in specs.items()]
        data = super().spread(data)
        if cls.scales_energies(data.get("model_class", "")):
            for name in ("atomic_inter_scale", "atomic_inter_shift"):
                if data.get(name) is None:
                    raise ValueError(
                        f"{name} is missing, which ScaleShiftMACE needs; "
                        "`metadata.py fit` computes it"
                    )
        return data

    @classmethod
    def scales_energies(cls, model_class: str) -> bool:
        """Only ScaleShiftMACE has a scale and a shift."""
        return model_class == "ScaleShiftMACE"

    def features(self) -> tuple[FeatureSpec, ...]:
        """Inputs of the embeddings besides species."""
        return tuple(spec.feature() for spec in self.embedding_specs or ())

    def gives(self) -> tuple[str, ...]:
        """Energies, and what follows from them."""
        return (ENERGY.name, FORCES.name, STRESS.name)

    def summary(self) -> str:
        """Class and hidden irreps."""
        return f"{self.model_class}, {self.hidden_irreps}"

    def details(self) -> list[str]:
        """Class, irreps, layers and the blocks of which they are."""
        return [
            f"{self.summary()}, {self.num_interactions} layers",
            f"blocks {self.interaction_cls_first}, then {self.interaction_cls}",
        ]

    def notes(self) -> list[str]:
        """That class MACE is not what its name makes people of mace_run_train expect."""
        if self.model_class != "MACE":
            return []
        return [
            (
                "model_class MACE is not what `mace_run_train --model MACE` builds: that is "
                "ScaleShiftMACE with shift 0"
            )
        ]

    def warnings(self) -> list[str]:
        """Where mace's own forces are known not to be the slope of its energies."""
        if self.radial_type != "chebyshev":
            return []
        return [
            (
                "radial_type chebyshev: torch does not differentiate it, so these forces "
                "lack the radial part"
            )
        ]

    def why_untrainable(self) -> str | None:
        """A basis without a gradient cannot be trained by forces."""
        if self.radial_type != "chebyshev":
            return None
        return (
            "radial_type chebyshev cannot be trained: torch does not differentiate "
            "chebyshev_polynomial_t, so mace's forces lack the radial part; use bessel or gaussian"
        )

    def energy_scales(self) -> list[float]:
        """The scale of every head; class MACE has none, which is 1."""
        return self.atomic_inter_scale or [1.0]

    def energy_shifts(self) -> list[float]:
        """The shift of every head; class MACE has none."""
        return self.atomic_inter_shift or [0.0]

    def memory_sizes(self) -> tuple[int, int, int] | None:
        """Channels of the hidden features, max_ell, layers."""
        return channels(self), self.max_ell, self.num_interactions

    def for_heads(
        self, names: Sequence[str], parents: Sequence[int], kept: Sequence[int]
    ) -> dict[str, Any]:
        """Fields of the same network with other heads or fewer elements; scale and
        shift go with the heads.
        """
        fields = super().for_heads(names, parents, kept)
        for name in ("atomic_inter_scale", "atomic_inter_shift"):
            if fields[name] is not None:
                fields[name] = [fields[name][head] for head in parents]
        return fields


def channels(model: MaceDescription) -> int:
    """Channels of the hidden features."""
    return int(model.hidden_irreps.partition("x")[0])


def _terms(irreps: str) -> list[str]:
    return irreps.split("+")


def _a_correlation_each(model: MaceDescription) -> str | None:
    given = len(model.correlation)
    if given == model.num_interactions:
        return None
    return f"correlation: {given} values for {model.num_interactions} layers"


def _one_number_of_channels(model: MaceDescription) -> str | None:
    if len({term.partition("x")[0] for term in _terms(model.hidden_irreps)}) == 1:
        return None
    return f"hidden_irreps: {model.hidden_irreps} must have one number of channels"


def _scalars_first(model: MaceDescription) -> str | None:
    if _terms(model.hidden_irreps)[0].endswith("x0e"):
        return None
    return f"hidden_irreps: {model.hidden_irreps} must begin with the scalars (…x0e)"


def _products_can_be_built(model: MaceDescription) -> str | None:
    highest = max(model.correlation)
    if (model.max_ell + 1) ** (2 * highest) <= MAX_PRODUCT_SIZE:
        return None
    return f"max_ell {model.max_ell} with correlation {highest} is too large to build"


def _couplings_exist(model: MaceDescription) -> str | None:
    highest = max(model.correlation)
    if highest == 4 or (highest - 1) * model.max_ell <= 11:
        return None
    return (
        f"max_ell {model.max_ell} with correlation {highest} needs couplings beyond l = 11, "
        "which e3nn has not"
    )


def _weights_fit_memory(model: MaceDescription) -> str | None:
    weights = _weights(model)
    if weights <= MAX_WEIGHTS:
        return None
    return (
        f"hidden_irreps: {model.hidden_irreps} in {model.num_interactions} layers for "
        f"{len(model.atomic_numbers)} elements needs some {weights:.0e} weights (limit "
        f"{MAX_WEIGHTS:.0e})"
    )


def _weights(model: MaceDescription) -> int:
    """A rough number of weights: linear maps and skip connections of all layers."""
    n_terms = len(_terms(model.hidden_irreps))
    paths = n_terms * (model.max_ell + 1) ** 2
    per_layer = n_terms * (len(model.atomic_numbers) + 3) + paths
    return model.num_interactions * channels(model) ** 2 * per_layer


def _gaussians_have_a_width(model: MaceDescription) -> str | None:
    narrow = model.radial_type == "gaussian" and model.num_bessel < 2
    return "num_bessel: a gaussian basis needs at least 2 functions" if narrow else None


def _a_last_readout(model: MaceDescription) -> str | None:
    none = model.num_interactions == 1 and model.use_last_readout_only
    return "use_last_readout_only: a single layer has no last readout in mace" if none else None


def _embeddings_to_read(model: MaceDescription) -> str | None:
    none = model.use_embedding_readout and not model.embedding_specs
    return "use_embedding_readout: there are no embedding_specs" if none else None


def _embeddings_of_heads(model: MaceDescription) -> str | None:
    if not (model.use_embedding_readout and len(model.heads) > 1 and model.model_class == "MACE"):
        return None
    return "use_embedding_readout: mace's class MACE cannot run it with several heads"


def _embeddings_differ(model: MaceDescription) -> str | None:
    specs = model.embedding_specs or []
    twice = len({spec.name for spec in specs}) != len(specs)
    return "embedding_specs: a name stands twice" if twice else None


def _hidden_irreps_differ(model: MaceDescription) -> str | None:
    terms = _terms(model.hidden_irreps)
    if len({term.partition("x")[2] for term in terms}) == len(terms):
        return None
    return f"hidden_irreps: {model.hidden_irreps} names an irrep twice"


def _one_kind_of_scalars(model: MaceDescription) -> str | None:
    if re.fullmatch(r"\d+x0[eo]", model.MLP_irreps):
        return None
    return f"MLP_irreps: {model.MLP_irreps} must be one kind of scalars, for example 16x0e"


def _edges_have_scalars(model: MaceDescription) -> str | None:
    if not model.use_edge_irreps_first or "x0e" in (model.edge_irreps or "x0e"):
        return None
    return f"use_edge_irreps_first: edge_irreps {model.edge_irreps} have no scalars"


def _no_scale_in_class_mace(model: MaceDescription) -> str | None:
    scaled = model.atomic_inter_scale is not None or model.atomic_inter_shift is not None
    if model.model_class != "MACE" or not scaled:
        return None
    return "atomic_inter_scale and atomic_inter_shift belong to ScaleShiftMACE; leave them out"


def _a_scale_each(model: MaceDescription) -> str | None:
    if model.model_class == "MACE":
        return None
    for name in ("atomic_inter_scale", "atomic_inter_shift"):
        values = getattr(model, name) or []
        if len(values) != len(model.heads):
            return f"{name}: {len(values)} values for {len(model.heads)} head(s)"
    return None


# What no field shows alone, in the order in which it is looked for; mace would fail on each in its
# own way, or build something else.
MaceDescription.rules = (
    *SHARED_RULES,
    _a_correlation_each,
    _one_number_of_channels,
    _scalars_first,
    _products_can_be_built,
    _couplings_exist,
    _weights_fit_memory,
    _gaussians_have_a_width,
    _a_last_readout,
    _embeddings_to_read,
    _embeddings_of_heads,
    _embeddings_differ,
    _hidden_irreps_differ,
    _one_kind_of_scalars,
    _edges_have_scalars,
    _no_scale_in_class_mace,
    _a_scale_each,
)
