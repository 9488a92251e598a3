"""Words of the log: the errors of one line, groups of parameters, names of stages."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataloader.quantities import QUANTITIES
from model_utils.metrics import Metrics

MILLI = 1000.0
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")


def number_word(number: int) -> str:
    """A small number as a word: ``two`` in "stage two"."""
    return NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else str(number)


def errors_text(m: Metrics, terms: str) -> str:
    """The errors of one line, in meV and meV/Å, and the loss with its terms,
    which are in eV and eV/Å.
    """
    parts = [f"loss {m.loss:.6g} ({terms})"]
    for quantity in QUANTITIES.values():
        errors = m.of(quantity)
        if errors["rmse"] is None:
            continue
        text = (
            f"{quantity.symbol} rmse {milli(errors['rmse'])} mae {milli(errors['mae'])} "
            f"m{quantity.error_unit}"
        )
        if quantity.over_atoms:
            text += f", mae {milli(errors['mae_cfg'])} m{quantity.unit}/config"
        parts.append(text)
    return "  ".join(parts)


def milli(value: float | None) -> str:
    """A number in thousandths, as tables and lines have it; a dash where there is none."""
    return "-" if value is None else f"{value * MILLI:.2f}"


def describe_groups(groups: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> Iterator[str]:
    """Lines that say which parameters decay and how fast each group moves.

    Args:
        groups: of ``parameter_groups``, of an optimizer or of its stored state: ``name``,
            ``param_names``, ``weight_decay`` and, where it is known, ``lr``.
        sizes: numbers in each parameter.
    """
    for group in groups:
        names = list(group["param_names"])
        rate = f", lr {group['lr']:.4g}" if "lr" in group else ""
        count = sum(sizes.get(name, 0) for name in names)
        yield (
            f"group {group['name']}: {len(names)} parameters, {count} numbers, "
            f"{_decay_text(group)}{rate}"
        )
        by_module: dict[str, list[str]] = {}
        for name in names:
            module = ".".join(name.split(".")[:2])
            by_module.setdefault(module, []).append(name.removeprefix(f"{module}."))
        for module, members in by_module.items():
            yield f"  {module}: {', '.join(members)}"


def _decay_text(group: Mapping[str, Any]) -> str:
    if not group["weight_decay"]:
        return "no weight decay"
    return (
        "weight decay"
        if math.isnan(group["weight_decay"])
        else f"weight decay {group['weight_decay']:g}"
    )
