"""The settings of the loss by quantity, whether a flag of its own gives them or a list
of ``quantity=value``.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from dataloader import plain_json
from dataloader.errors import InputError
from dataloader.labels import LabelKeys
from dataloader.quantities import ENERGY, FORCES, OFFERED, QUANTITIES, STRESS, added, include
from model_utils.settings.options import (
    DataOptions,
    LabelOptions,
    LossOptions,
    PrintedLossOptions,
    StageTwoOptions,
)

# quantities with flags of their own: --energy_weight, --energy_loss
OWN_FLAGS = (ENERGY.name, FORCES.name, STRESS.name)
SHOWN_TYPES = 20
Value = TypeVar("Value")


def weights(options: LossOptions | PrintedLossOptions) -> dict[str, float]:
    """The weight of every quantity in the loss; in training that of its first stage.

    Raises:
        InputError: ``--quantity_weights`` names no quantity that was added, or no number.
    """
    own: dict[str, float] = {name: getattr(options, f"{name}_weight") or 0.0 for name in OWN_FLAGS}
    listed = _listed("quantity_weights", options.quantity_weights, _weight)
    return own | {q.name: 0.0 for q in added()} | listed


def given_weights(options: LossOptions) -> set[str]:
    """Quantities beside energy and forces whose weights the user gave."""
    named = {text.partition("=")[0] for text in options.quantity_weights}
    return named if options.stress_weight is None else {*named, STRESS.name}


def stage_two_weights(options: StageTwoOptions) -> dict[str, float]:
    """The weights of stage two that are given, by quantity; the others are those of stage one."""
    given = {name: getattr(options, f"stage_two_{name}_weight") for name in OWN_FLAGS}
    return {name: weight for name, weight in given.items() if weight is not None}


def shapes(options: LossOptions) -> dict[str, str]:
    """The names of the loss shapes that are given, by quantity.

    Raises:
        InputError: ``--quantity_losses`` names no quantity that was added.
    """
    own: dict[str, str | None] = {name: getattr(options, f"{name}_loss") for name in OWN_FLAGS}
    given = {name: shape for name, shape in own.items() if shape is not None}
    return given | _listed("quantity_losses", options.quantity_losses, str)


def config_type_weights(options: DataOptions) -> tuple[tuple[str, float], ...]:
    """Weights of structures by their config_type, as ``NAME=WEIGHT`` or one JSON object.

    Raises:
        InputError: one is no weight, or a type has two.
    """
    words = options.config_type_weights
    weights: dict[str, float] = {}
    for name, text in _pairs_of_types(words):
        try:
            weight = _weight(text)
        except ValueError:
            raise InputError(
                f"--config_type_weights {name}={text}: {text!r} is no weight; expected a "
                "number, 0 or larger"
            ) from None
        if name in weights:
            raise InputError(f"--config_type_weights names {name} twice; give one weight")
        weights[name] = weight
    return tuple(weights.items())


def no_such_type(name: str, weight: float, occurring: Iterable[str | None]) -> InputError:
    """What is raised where a weight is given for a config_type that no structure has."""
    there = ", ".join(sorted(str(own) for own in occurring)[:SHOWN_TYPES])
    return InputError(
        f"--config_type_weights {name}={weight:g}: no structure to train on has that "
        f"config_type; there are {there}"
    )


def _pairs_of_types(words: Sequence[str]) -> list[tuple[str, str]]:
    """Types and what is given for each."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):  # as mace_run_train takes it
        try:
            return [(name, str(value)) for name, value in dict(plain_json.loads(words[0])).items()]
        except (ValueError, TypeError) as error:
            raise InputError(
                f"--config_type_weights {words[0]:.60} is no JSON object: {error}"
            ) from None
    pairs = []
    for word in words:
        name, sign, text = word.rpartition("=")
        if not sign or not name:
            raise InputError(
                f"--config_type_weights {word} is not NAME=WEIGHT, for example bulk=2 surface=0.5"
            )
        pairs.append((name, text))
    return pairs


def label_keys(options: LabelOptions) -> LabelKeys:
    """Names of the labels that the user gave.

    Raises:
        InputError: ``--label_keys`` names no quantity that was added.
    """
    return LabelKeys(
        energy=options.energy_key,
        forces=options.forces_key,
        stress=options.stress_key,
        charge=options.charge_key,
        spin=options.spin_key,
        others=tuple(_listed("label_keys", options.label_keys, str).items()),
        free_energy=options.free_energy,
    )


def _weight(text: str) -> float:
    """A weight, finite and not negative; anything else is a ValueError, which the caller
    turns into a sentence.
    """
    weight = float(text)
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError
    return weight


def _listed(flag: str, texts: Sequence[str], convert: Callable[[str], Value]) -> dict[str, Value]:
    """What a list of ``quantity=value`` says, by quantity."""
    values: dict[str, Value] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in OWN_FLAGS:
            raise InputError(f"--{flag} {text}: the {name} has a flag of its own; see --help")
        include(name)
        if name not in QUANTITIES:
            known = (
                ", ".join({**OFFERED, **{q.name: q for q in added()}}) + "; a --plugin adds others"
            )
            raise InputError(
                f"--{flag} {text}: no quantity {name!r} beside {', '.join(OWN_FLAGS)} ({known})"
            )
        try:
            values[name] = convert(value)
        except ValueError:
            raise InputError(
                f"--{flag} {text}: {value!r} is no weight; expected a number, 0 or larger"
            ) from None
        if value == "":
            raise InputError(f"--{flag} {text}: nothing is given for {name}; expected {name}=…")
    return values
