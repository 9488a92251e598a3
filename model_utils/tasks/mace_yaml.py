"""The network that a YAML of mace_run_train describes, as fields of model.json."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dataloader import plain_json
from dataloader.errors import InputError
from model_utils.runtime import log
from model_utils.settings import plain_yaml
from model_utils.settings.mace_flags import is_known

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


FIRST_OF_PLAIN_MACE = ("RealAgnosticInteractionBlock", "RealAgnosticDensityInteractionBlock")
_SHAPING = {"model", "num_channels", "max_L", "compute_avg_num_neighbors"}
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
    elif settings["model"] != "ScaleShiftMACE":
        raise InputError(
            f"{path}: model {settings['model']!r} is not supported; expected MACE or ScaleShiftMACE"
        )
    aside = sorted(map(str, set(settings) - set(MACE_SETTINGS) - _SHAPING))
    log.info("%s: left aside, not of the network: %s", path, ", ".join(aside) or "nothing")
    return fields


def stated_number_of_neighbors(path: Path) -> dict[str, float]:
    """``avg_num_neighbors`` of a configuration that says not to measure it; else nothing."""
    settings = settings_in(path)
    measured = str(settings.get("compute_avg_num_neighbors", True)).casefold() not in _FALSE
    if measured:
        return {}
    number = settings.get("avg_num_neighbors", 1.0)  # its default
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"{path}: avg_num_neighbors is {number!r:.40}, expected a number")
    return {"avg_num_neighbors": float(number)}


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
    theirs = [*MACE_SETTINGS, "model", "num_channels", "max_L"]
    by_letters = {_letters(name): name for name in theirs}
    ours = {field: name for name, field in MACE_SETTINGS.items()}
    for key in map(str, settings):
        if key in theirs or is_known(key):
            continue
        near = get_close_matches(_letters(key), by_letters, n=1)
        name = ours.get(key) or (by_letters[near[0]] if near else None)
        if name is not None:
            raise InputError(
                f"{path}: mace_run_train has no {key!r}; did you mean {name}? if "
                "not, remove the line"
            )


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
