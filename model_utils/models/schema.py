"""What every family of networks says of itself in model.json: shared fields,
canonical text, hash, refusals.

A family adds the fields of its own constructor in a subclass (``mace_description``); names and
canonical text are checked here for all of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self

from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dataloader import quantities
from dataloader.errors import InputError
from dataloader.needs import FeatureSpec, ModelFacts

MAX_CHANNELS = 4096


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Real = Annotated[float, Field(allow_inf_nan=False, strict=True)]
PerHead = Annotated[list[Real], BeforeValidator(_as_list)]
Size = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
AtomicNumber = Annotated[int, Field(ge=1, le=len(chemical_symbols) - 1)]
Rule = Callable[[Any], str | None]  # what of a description contradicts itself, as a phrase


def _elements_differ(model: "ModelDescription") -> str | None:
    twice = len(set(model.atomic_numbers)) != len(model.atomic_numbers)
    return "atomic_numbers: an element stands twice" if twice else None


def _heads_differ(model: "ModelDescription") -> str | None:
    return "heads: a name stands twice" if len(set(model.heads)) != len(model.heads) else None


def _an_energy_each(model: "ModelDescription") -> str | None:
    heads = len(model.heads)
    elements = len(model.atomic_numbers)
    shape = [len(energies) for energies in model.atomic_energies]
    if shape == [elements] * heads:
        return None
    return (
        f"atomic_energies: {shape} values per head, expected {heads} head(s) of "
        f"{elements} element(s)"
    )


SHARED_RULES: tuple[Rule, ...] = (_elements_differ, _heads_differ, _an_energy_each)


class ModelDescription(BaseModel):
    """The fields of model.json that all families share, in canonical form;
    energies in eV, lengths in Å.

    What of a network is asked anywhere outside ``models/`` is asked through the methods below.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)
    rules: ClassVar[tuple[Rule, ...]] = SHARED_RULES  # those of a family come behind them

    schema_version: Literal[1] = 1
    model_class: str
    r_max: Annotated[float, Field(ge=0.5, le=50, allow_inf_nan=False)]
    atomic_numbers: Annotated[list[AtomicNumber], Field(min_length=1)]
    atomic_energies: list[list[Real]]  # [head][element], eV
    avg_num_neighbors: Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)]
    heads: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=256)
    ] = ["Default"]

    @model_validator(mode="before")
    @classmethod
    def _spread_short_forms(cls, data: dict[str, Any]) -> dict[str, Any]:
        return cls.spread(dict(data))

    @classmethod
    def spread(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What a person may write short, written out: E0s by element or one list for a single head.

        Raises:
            ValueError: what is written cannot be spread; the message is a phrase.
        """
        heads = data.get("heads", ["Default"])
        if (
            "atomic_energies" in data
            and isinstance(heads, list)
            and all(isinstance(head, str) for head in heads)
        ):
            energies = data.get("atomic_energies")
            data["atomic_energies"] = _energies_per_head(
                energies, data.get("atomic_numbers"), heads
            )
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for fault in (rule(self) for rule in self.rules):
            if fault is not None:
                raise ValueError(fault)
        return self

    def canonical_text(self) -> str:
        """Every field, sorted, shortest round-trip numbers, one spelling: equal
        structures give equal bytes.
        """
        fields = _without_negative_zero(self.model_dump())
        return (
            json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def hash(self) -> str:
        """sha256 of the canonical text's UTF-8 bytes."""
        return hashlib.sha256(self.canonical_text().encode()).hexdigest()

    def facts(self) -> ModelFacts:
        """What readers and loader need of a network: elements, heads, E0s,
        cutoff, further inputs.
        """
        return ModelFacts(
            atomic_numbers=tuple(self.atomic_numbers),
            heads=tuple(self.heads),
            atomic_energies=tuple(tuple(e) for e in self.atomic_energies),
            r_max=self.r_max,
            features=self.features(),
        )

    def features(self) -> tuple[FeatureSpec, ...]:
        """Inputs besides species that the data must hold."""
        return ()

    def gives(self) -> tuple[str, ...]:
        """Quantities that such a network gives, forces and stress of an energy too; empty:
        it says so once built.
        """
        return ()

    def summary(self) -> str:
        """The network in a few words, for a line of the log."""
        return self.model_class

    def details(self) -> list[str]:
        """Lines that say more of the network, for ``read_model.py show``."""
        return [self.summary()]

    def notes(self) -> list[str]:
        """Sentences for a person who trains such a network: nothing is wrong, but
        something is easily mistaken.
        """
        return []

    def warnings(self) -> list[str]:
        """Sentences on what is known to be wrong with what the network computes."""
        return []

    def why_untrainable(self) -> str | None:
        """Why such a network cannot be trained, as an error's sentence; None where it can."""
        return None

    def energy_scales(self) -> list[float]:
        """The size of an atom's interaction energy, by which outputs are multiplied, eV; for
        all heads or for each.
        """
        return [1.0]

    def energy_shifts(self) -> list[float]:
        """What is added to the energy of every atom besides its E0, eV; for all heads or for
        each.
        """
        return [0.0]

    def memory_sizes(self) -> tuple[int, int, int] | None:
        """Channels, highest order of directions, layers, of which a step's memory is
        estimated; None: not known.
        """
        return None

    @classmethod
    def scales_energies(cls, model_class: str) -> bool:
        """Whether a model.json of this class has a scale and a shift, which
        ``metadata.py`` computes from data.
        """
        return False

    @classmethod
    def has_energies(cls, model_class: str) -> bool:
        """Whether a network of this class gives energies, and so needs reference energies."""
        return True

    def for_heads(
        self, names: Sequence[str], parents: Sequence[int], kept: Sequence[int]
    ) -> dict[str, Any]:
        """Fields of the same network with other heads or fewer elements.

        Args:
            names: of its heads.
            parents: for each of them, the position of the head of this
                description that it is a copy of.
            kept: positions of the elements that stay.
        """
        fields: dict[str, Any] = json.loads(self.canonical_text())
        fields["atomic_numbers"] = [self.atomic_numbers[k] for k in kept]
        fields["atomic_energies"] = [
            [self.atomic_energies[head][k] for k in kept] for head in parents
        ]
        fields["heads"] = list(names)
        return fields


def _energies_per_head(energies: object, numbers: object, heads: list[Any]) -> object:
    """E0s as [head][element] from a list, a mapping by element, or a mapping by head of either."""
    if isinstance(energies, dict) and energies and set(energies) == set(heads):
        return [_energies_of_elements(energies[head], numbers) for head in heads]
    flat = isinstance(energies, list) and not any(isinstance(e, list) for e in energies)
    if isinstance(energies, dict) or flat:
        if len(heads) > 1:
            raise ValueError("atomic_energies must be given per head where there are several heads")
        return [_energies_of_elements(energies, numbers)]
    return energies


def _energies_of_elements(energies: object, numbers: object) -> object:
    """E0s in the order of the elements from a mapping by element; anything else stays for
    the check of its type.
    """
    if not isinstance(energies, dict) or not isinstance(numbers, list):
        return energies
    if not all(type(z) is int for z in numbers):
        return energies
    by_number = {number_of(key): value for key, value in energies.items()}
    missing = set(numbers) - set(by_number)
    extra = set(by_number) - set(numbers)
    if missing or extra or len(by_number) != len(energies):
        raise ValueError(
            f"atomic_energies name {sorted(by_number)} but atomic_numbers are "
            f"{sorted(numbers)!s:.300}"
        )
    return [by_number[z] for z in numbers]


def number_of(key: str) -> int:
    """Atomic number from a symbol or a decimal number; ValueError for anything else."""
    if key in number_of_symbol:
        return int(number_of_symbol[key])
    if key.isdecimal() and 0 < int(key[:4]) < len(chemical_symbols):
        return int(key)
    raise ValueError(
        f"atomic_energies names {key!r}, expected an element symbol or its atomic number"
    )


def _without_negative_zero(value: Any) -> Any:
    """The value with −0.0 as 0.0 everywhere: equal networks must have equal text."""
    if isinstance(value, dict):
        return {key: _without_negative_zero(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_negative_zero(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def checked(
    fields: Mapping[str, Any], kind: type[ModelDescription], where: str, classes: Sequence[str]
) -> Any:
    """A description of a family from the fields of a model.json; what its network gives is a
    quantity from then on.

    Args:
        fields: as they stand in the file.
        kind: the family's description.
        where: file name for the message.
        classes: every known ``model_class``, for the message.

    Raises:
        InputError: with the file, the field, what was found and what was expected.
    """
    try:
        description = kind.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, kind, classes)}") from None
    for name in description.gives():
        quantities.include(name)
    return description


def _explain(error: ValidationError, kind: type[ModelDescription], classes: Sequence[str]) -> str:
    """The first fault of a model.json as one phrase; a missing or unknown name gets its remedy."""
    faults = error.errors(include_url=False, include_context=False)
    # a misspelt name explains a missing one
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        remedy = "; `metadata.py fit` computes it from data" if field in _MEASURED else ""
        return f"{field} is missing{remedy}"
    if fault["type"] == "extra_forbidden":
        return unknown(field, kind)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if field == "model_class" and fault["type"] == "literal_error":
        message = f"Input should be {' or '.join(_enumerated(classes))}"
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    given = "" if fault["type"] == "value_error" else f" (found {fault['input']!r:.60})"
    return f"{field}: {message}{given}" if field else message


def _enumerated(names: Sequence[str]) -> Iterator[str]:
    """All but the last name as one text, then the last."""
    quoted = [repr(name) for name in names]
    yield ", ".join(quoted[:-1])
    yield quoted[-1]


def unknown(field: str, kind: type[ModelDescription]) -> str:
    """A phrase that names an unknown field and the nearest that there is."""
    near = get_close_matches(field, kind.model_fields, n=1)
    return f"unknown field {field!r}" + (f"; did you mean {near[0]!r}?" if near else "")


_MEASURED = (  # fields that are computed from data
    "atomic_energies",
    "avg_num_neighbors",
    "atomic_inter_scale",
    "atomic_inter_shift",
    "atomic_numbers",
)
