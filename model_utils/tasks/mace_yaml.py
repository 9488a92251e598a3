"""The network that a YAML of mace_run_train describes, as fields of model.json."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from dataloader import input_files, plain_json
from dataloader.errors import InputError
from dataloader.letters import letters_of
from dataloader.limits import MODEL_JSON_BYTES
from model_utils.runtime import log
from model_utils.settings import plain_yaml
from model_utils.settings.energies import python_literal
from model_utils.settings.mace_flags import is_known

Scaling = Literal["rms_forces", "std", "none"]

# Names of mace_run_train's settings that describe the network, and the fields
# of model.json they are.
MACE_SETTINGS = {
    **{
        name: name
        for name in [
            "r_max",
            "max_ell",
            "correlation",
            "num_interactions",
            "hidden_irreps",
            "edge_irreps",
            "MLP_irreps",
            "gate",
            "radial_type",
            "distance_transform",
            "pair_repulsion",
            "apply_cutoff",
            "use_reduced_cg",
            "use_so3",
            "use_agnostic_product",
            "use_last_readout_only",
            "use_edge_irreps_first",
            "use_embedding_readout",
            "embedding_specs",
            "avg_num_neighbors",
        ]
    },
    "num_radial_basis": "num_bessel",
    "num_cutoff_basis": "num_polynomial_cutoff",
    "interaction": "interaction_cls",
    "interaction_first": "interaction_cls_first",
    "radial_MLP": "radial_MLP",
}


OF_DIPOLES = ("AtomicDipolesMACE", "EnergyDipolesMACE")
FIRST_OF_DIPOLES = "RealAgnosticInteractionBlock"
FIRST_OF_PLAIN_MACE = ("RealAgnosticInteractionBlock", "RealAgnosticDensityInteractionBlock")
_SHAPING = {"model", "num_channels", "max_L", "compute_avg_num_neighbors"}
# what it says of the data, see ``stated``
OF_DATA = {"E0s", "scaling", "mean", "std", "atomic_numbers", "statistics_file", "heads"}
SCALINGS: Mapping[str, Scaling] = {
    "rms_forces_scaling": "rms_forces",
    "std_scaling": "std",
    "no_scaling": "none",
}
OF_FINE_TUNING = ("foundation", "estimated")
_FALSE = ("false", "f", "no", "n", "0")  # of mace_run_train's flags


def settings_in(path: Path) -> Mapping[str, Any]:
    """The settings of a YAML of mace_run_train, which is not empty."""
    settings = plain_yaml.read(path, "a YAML of mace_run_train", "r_max: 5.0")
    if not settings:
        raise InputError(f"{path} is no YAML of mace_run_train; expected lines like `r_max: 5.0`")
    return settings


def network_fields(path: Path) -> dict[str, Any]:
    """Network fields of a configuration of mace_run_train; what is not of the network
    is named and left aside.
    """
    settings = settings_in(path)
    _refuse_misspelt(settings, path)
    fields = {
        ours: settings[theirs]
        for theirs, ours in MACE_SETTINGS.items()
        if settings.get(theirs) is not None
    }
    try:
        if isinstance(fields.get("radial_MLP"), str):
            fields["radial_MLP"] = plain_json.loads(fields["radial_MLP"])
        shape = [settings.get("num_channels"), settings.get("max_L")]
        # as mace_run_train has it: hidden_irreps count unless both of the others are there
        if None not in shape or (shape != [None, None] and "hidden_irreps" not in fields):
            channels, max_order = (
                int(usual if given is None else given)
                for given, usual in zip(shape, (128, 1), strict=True)
            )
            fields["hidden_irreps"] = _irreps(channels, min(max_order, 99))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: radial_MLP, num_channels and max_L must be numbers ({error!s:.60})"
        ) from None
    # mace builds ScaleShiftMACE with one of these first blocks (and shift 0)
    if settings.get("model", "MACE") == "MACE":
        if fields.get("interaction_cls_first") not in FIRST_OF_PLAIN_MACE:
            fields["interaction_cls_first"] = FIRST_OF_PLAIN_MACE[0]
    elif settings["model"] in OF_DIPOLES:
        fields |= {"model_class": settings["model"], "interaction_cls_first": FIRST_OF_DIPOLES}
    elif settings["model"] != "ScaleShiftMACE":
        raise InputError(
            f"{path}: model {settings['model']!r} is not supported; expected MACE, ScaleShiftMACE, "
            f"{' or '.join(OF_DIPOLES)}"
        )
    aside = sorted(map(str, set(settings) - set(MACE_SETTINGS) - _SHAPING - OF_DATA))
    log.info("%s: left aside, not of the network: %s", path, ", ".join(aside) or "nothing")
    return fields


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a configuration of mace_run_train says of its data; None where it says nothing.

    Attributes:
        E0s: as ``--E0s`` takes them; isolated atoms in the data go before them.
        scaling: how energies are scaled, as ``--scaling`` takes it.
        zero_shift: the network has no shift.
        scale: stated in place of being measured, in the unit of the forces.
        shift: eV per atom, likewise.
        atomic_numbers: elements of the network.
        avg_num_neighbors: neighbours of an atom within the cutoff.
        heads: their names, where it has several.
    """

    E0s: str | None = None
    scaling: Scaling | None = None
    zero_shift: bool = False
    scale: float | None = None
    shift: float | None = None
    atomic_numbers: tuple[int, ...] | None = None
    avg_num_neighbors: float | None = None
    heads: tuple[str, ...] = ()


def stated(path: Path) -> Stated:
    """What a configuration says of the data, as mace_run_train takes it.

    Raises:
        InputError: an entry cannot be understood, or belongs to a fine-tuning.
    """
    settings = settings_in(path)
    heads = _mapping(settings.get("heads"), path, "heads")
    statistics = _statistics(settings.get("statistics_file"), path)
    scaling = settings.get("scaling")
    if scaling is not None and scaling not in SCALINGS:
        raise InputError(f"{path}: scaling is {scaling!r:.40}, expected {', '.join(SCALINGS)}")
    zero_shift = settings.get("model", "MACE") == "MACE"
    scale = None
    shift = None
    # of the two alone mace looks at std only, and has no shift then
    if scaling != "no_scaling" and settings.get("std") is not None:
        scale = _number(settings["std"], path, "std")
        shift = _number(settings.get("mean") or 0.0, path, "mean")
    numbers = statistics.get("atomic_numbers", settings.get("atomic_numbers"))
    for name, of_head in heads.items():
        aside = sorted(set(of_head) & OF_DATA - {"E0s"}) if isinstance(of_head, Mapping) else []
        if aside:
            raise InputError(
                f"{path}: the head {name} has {aside[0]} of its own, which is not read here; give "
                "E0s of the heads, and what else is theirs by --E0s and --scaling"
            )
    return Stated(
        E0s=_energies(statistics.get("atomic_energies", settings.get("E0s")), heads, path),
        scaling=None if scaling is None else SCALINGS[scaling],
        zero_shift=zero_shift,
        scale=scale,
        shift=0.0 if zero_shift and shift is not None else shift,
        atomic_numbers=None if numbers is None else _atomic_numbers(numbers, path),
        avg_num_neighbors=_neighbors(settings, statistics, path),
        heads=tuple(map(str, heads)),
    )


def _neighbors(
    settings: Mapping[str, Any], statistics: Mapping[str, Any], path: Path
) -> float | None:
    """``avg_num_neighbors`` where it is not to be measured."""
    name = "avg_num_neighbors"
    if name in statistics:
        return _number(statistics[name], path, name)
    measured = str(settings.get("compute_avg_num_neighbors", True)).casefold() not in _FALSE
    return None if measured else _number(settings.get(name, 1.0), path, name)  # its default


def _statistics(name: object, path: Path) -> Mapping[str, Any]:
    """The statistics.json of mace_prepare_data; empty where the YAML names none.

    Its mean and std are passed over: mace_run_train measures them anew.
    """
    if name is None:
        return {}
    file = Path(str(name))
    try:
        content = plain_json.loads(input_files.read_text(file, MODEL_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: statistics_file {file}: {error!s:.120}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: statistics_file {file} holds no statistics of mace_prepare_data")
    return content


def _energies(common: object, heads: Mapping[str, Any], path: Path) -> str | None:
    """E0s as ``--E0s`` takes them, of all heads.

    Args:
        common: those of all heads; None where none are stated.
        heads: settings of each head, where there are several.
        path: of the YAML.
    """
    of_heads = {
        name: of_head["E0s"] if isinstance(of_head, Mapping) and of_head.get("E0s") else common
        for name, of_head in heads.items()
    }
    if not heads or all(given == common for given in of_heads.values()):
        return None if common is None else _as_option(common, path)
    written = {name: python_literal(str(given)) for name, given in of_heads.items()}
    if all(isinstance(given, dict) for given in written.values()):
        return json.dumps(written)
    words = {str(given) for given in of_heads.values()}
    if len(words) == 1:
        return _as_option(words.pop(), path)
    raise InputError(
        f"{path}: the heads have E0s of several kinds ({', '.join(sorted(words))[:80]}); give all "
        "as --E0s, JSON by head and element"
    )


def _as_option(given: object, path: Path) -> str:
    if isinstance(given, Mapping):
        return json.dumps({str(z): energy for z, energy in given.items()})
    text = str(given)
    if text.casefold() in OF_FINE_TUNING:
        raise InputError(
            f"{path}: E0s {text} belong to a fine-tuning: finetune.py --E0s keep takes those of "
            "the model, --E0s shift fits them to the data; give other --E0s here"
        )
    return "isolated" if text.casefold() == "isolatedatom" else text


def _mapping(given: object, path: Path, name: str) -> Mapping[str, Any]:
    """An entry that is a mapping, in YAML or as Python writes one; empty where there is none."""
    if given is None:
        return {}
    content = python_literal(given) if isinstance(given, str) else given
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: {name} is {given!r:.40}, expected a mapping")
    return {str(key): value for key, value in content.items()}


def _atomic_numbers(given: object, path: Path) -> tuple[int, ...]:
    content = python_literal(given) if isinstance(given, str) else given
    if not isinstance(content, list | tuple) or not content:
        raise InputError(f"{path}: atomic_numbers is {given!r:.40}, expected a list of numbers")
    if any(isinstance(z, bool) or not isinstance(z, int) for z in content):
        raise InputError(f"{path}: atomic_numbers is {given!r:.40}, expected a list of numbers")
    return tuple(sorted(set(content)))


def _number(given: object, path: Path, name: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(f"{path}: {name} is {given!r:.40}, expected a number")
    return float(given)


def _irreps(channels: int, max_order: int) -> str:
    """So many channels of every order of spherical harmonics, with its natural
    parity: ``128x0e+128x1o``.
    """
    return "+".join(f"{channels}x{order}{'eo'[order % 2]}" for order in range(max_order + 1))


def _refuse_misspelt(settings: Mapping[str, Any], path: Path) -> None:
    """Take a key that mace_run_train does not have, and that is much like one of the
    network's, for a mistake.

    Raises:
        InputError: naming the nearest.
    """
    theirs = [*MACE_SETTINGS, *OF_DATA, "model", "num_channels", "max_L"]
    by_letters = {letters_of(name): name for name in theirs}
    ours = {field: name for name, field in MACE_SETTINGS.items()}
    for key in map(str, settings):
        if key in theirs or is_known(key):
            continue
        near = get_close_matches(letters_of(key), by_letters, n=1)
        name = ours.get(key) or (by_letters[near[0]] if near else None)
        if name is not None:
            raise InputError(
                f"{path}: mace_run_train has no {key!r}; did you mean {name}? if "
                "not, remove the line"
            )
