"""What a file of settings makes of single keys that other toolkits have: `counterparts` says which.

Each function takes a key with its value and gives settings of ours by name. Fields of the
network stand under ``NETWORK``. What is answered and not done goes into the notes, which are
said before the run begins.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from dataloader.letters import letters_of
from model_utils.settings.synonyms import NO_MIXED_PRECISION
from model_utils.settings.table_names import NamesOf

NETWORK = "model.json"  # a name that no option has
EXPERIMENTS = "runs"  # folder of the experiments that have a name and no folder
CLASSES = NamesOf("model_utils.models.architecture", "ARCHITECTURES")
# what is built elsewhere under this name
USUAL_CLASS = {"mace": "ScaleShiftMACE", "nequip": "ZEmbeddingNequIP"}
_OF_GRAPH_PES = {"num_layers": "layers", "num_channels": "channels", "num_rbf": "radial_features"}
# class of networks: key that others write, as its own model.json has it
OWN_NAMES: dict[str, dict[str, str]] = {
    "PaiNN": _OF_GRAPH_PES,
    "TensorNet": _OF_GRAPH_PES,
    "ZEmbeddingNequIP": _OF_GRAPH_PES,
    "SchNet": {"num_layers": "layers", "num_channels": "channels", "num_rbf": "expansion_features"},
    "ViSNet": {"num_channels": "hidden_channels", "l_max": "lmax"},
}
LOSSES = NamesOf("losses", "LOSSES")
SHAPES = NamesOf("losses", "SHAPES")
LOGGERS = NamesOf("model_utils.run.loggers", "LOGGERS")
WHOLE = 1e-6  # by which shares of a run may miss 1


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A key of a file of settings.

    Attributes:
        key: its name, as written.
        value: what stands there; never null.
        where: file and section, for messages.
        beside: the other keys of its section.
        epochs: of the run.
        notes: sentences for the log.
    """

    key: str
    value: Any
    where: str
    beside: Mapping[str, Any]
    epochs: int
    notes: list[str] = field(default_factory=list)

    def refused(self, why: str) -> InputError:
        """The error where the value cannot be taken."""
        return InputError(f"{self.key} in {self.where} is {self.value!r:.60}: {why}")


Taker = Callable[[Asked], Mapping[str, Any]]


def as_is(asked: Asked) -> Mapping[str, Any]:
    """An option of ours of the same name."""
    return {asked.key: asked.value}


def renamed(ours: str) -> Taker:
    """An option of ours of another name, with the same values."""
    return lambda asked: {ours: asked.value}


def field_of_network(ours: str) -> Taker:
    """A field of model.json of another name: of MACE's, or of that of the
    class which is asked for.
    """
    return lambda asked: {NETWORK: {_field_of(asked, ours): asked.value}}


def nothing_needed(note: str | None = None) -> Taker:
    """What is so here anyway, or cannot be otherwise."""

    def take(asked: Asked) -> Mapping[str, Any]:
        if note is not None:
            asked.notes.append(f"{asked.where}: {asked.key}: {note}")
        return {}

    return take


def target(asked: Asked) -> Mapping[str, Any]:
    """The class of the network, in any spelling of cases and underscores."""
    return {NETWORK: {"model_class": _class_named(asked.value)}}


def _class_named(value: Any) -> str:
    """A class of networks as its table names it; a name that it lacks
    stays, and is judged later.
    """
    by_letters = {letters_of(name): name for name in CLASSES.names()} | USUAL_CLASS
    return by_letters.get(letters_of(str(value)), str(value))


def _own_names(asked: Asked) -> Mapping[str, str]:
    """What the class beside a key calls what keys mean; nothing where its names
    are MACE's, or not known.
    """
    named = asked.beside.get("target") or asked.beside.get("model_class")
    return OWN_NAMES.get(_class_named(named), {})


def _field_of(asked: Asked, of_mace: str) -> str:
    """The field that a key is; one that the class asked for has not is judged later, by the
    name that was written.
    """
    own = _own_names(asked)
    return own.get(asked.key, asked.key) if own else of_mace


def channels(asked: Asked) -> Mapping[str, Any]:
    """Channels and the highest order of the node features, together: 128
    and 1 are 128x0e+128x1o.
    """
    if _own_names(asked):
        return {NETWORK: {_field_of(asked, asked.key): asked.value}}
    orders = [
        asked.beside[name]
        for name in ("max_L", "node_symmetry")
        if asked.beside.get(name) is not None
    ]
    order = orders[0] if orders else 1
    number = asked.beside.get("num_channels", 128)
    if (
        len(orders) > 1
        or not all(type(n) is int for n in (order, number))
        or not (0 <= order <= 11 and number > 0)
    ):
        raise asked.refused(
            "num_channels is a whole number from 1 on and max_L (or node_symmetry) one from 0 to 11"
        )
    irreps = "+".join(f"{number}x{ell}{'eo'[ell % 2]}" for ell in range(order + 1))
    return {NETWORK: {"hidden_irreps": irreps}}


def cutoff(asked: Asked) -> Mapping[str, Any]:
    """The cutoff of the graph, which is the network's."""
    return {NETWORK: {"r_max": asked.value}}


def precision(asked: Asked) -> Mapping[str, Any]:
    """The working precision; there is no mixed one."""
    if str(asked.value) not in NO_MIXED_PRECISION:
        return {"dtype": asked.value}
    asked.notes.append(
        f"{asked.where}: {asked.key} {asked.value}: there is no mixed precision; computed in "
        "float32 (a fine-tuning in the precision of its source), with energies and sums in float64"
    )
    return {}


def loss(asked: Asked) -> Mapping[str, Any]:
    """A whole loss of ours, or the shape of all terms, in any spelling: mse, MSELoss, mse_loss."""
    letters = letters_of(str(asked.value)).removesuffix("loss")
    whole = {letters_of(name): name for name in LOSSES.names()}
    shapes = {letters_of(name): name for name in SHAPES.names()}
    if letters in whole:
        return {"loss": whole[letters]}
    if letters not in shapes:
        return {"loss": asked.value}  # whose own check says what there is
    return {f"{quantity}_loss": shapes[letters] for quantity in ("energy", "forces", "stress")}


def loss_units(units: str) -> Taker:
    """A switch that takes other units of the loss."""

    def take(asked: Asked) -> Mapping[str, Any]:
        if not isinstance(asked.value, bool):
            raise asked.refused("expected true or false")
        return {"loss_units": units} if asked.value else {}

    return take


def save_path(asked: Asked) -> Mapping[str, Any]:
    """The best weights as safetensors at the end."""
    if Path(str(asked.value)).suffix != ".safetensors":
        raise asked.refused(
            "expected a path that ends in .safetensors; output_checkpoint is the place of the run"
        )
    return {"output_safetensors": asked.value}


def splits(asked: Asked) -> Mapping[str, Any]:
    """Two stages by their shares of the epochs; the learning rate goes on as it was."""
    shares = _numbers(asked.value, 2)
    if shares is None or not abs(sum(shares) - 1) <= WHOLE or min(shares) <= 0:
        raise asked.refused(
            "expected the shares of two stages, above 0, that make 1 together, as [0.7, 0.3]"
        )
    if asked.epochs < 2:
        raise asked.refused(f"{asked.epochs} epoch is not enough for two stages")
    start = min(max(round(shares[0] * asked.epochs), 1), asked.epochs - 1)
    given = {
        f"stage_two_{name}_weight": asked.beside[f"{name}_weight"]
        for name in ("energy", "forces")
        if asked.beside.get(f"{name}_weights") is None
        and asked.beside.get(f"{name}_weight") is not None
    }
    # those of stage one unless given
    unchanged = {"stage_two_energy_weight": 1.0, "stage_two_forces_weight": 100.0}
    for name in ("energy", "forces"):
        if asked.beside.get(f"{name}_weights") is not None:
            del unchanged[f"stage_two_{name}_weight"]
    return {
        "stage_two": True,
        "start_stage_two": start,
        "stage_two_follows_schedule": True,
        **unchanged,
        **given,
    }


def weights(quantity: str) -> Taker:
    """Weights of a term in the two stages of ``stage_splits``."""

    def take(asked: Asked) -> Mapping[str, Any]:
        values = _numbers(asked.value, 2)
        if values is None:
            raise asked.refused("expected the weights of two stages, as [1.0, 25.0]")
        if asked.beside.get("stage_splits") is None:
            raise asked.refused(
                "stage_splits is missing, which says when the second begins; "
                f"else {quantity}_weight"
            )
        return {f"{quantity}_weight": values[0], f"stage_two_{quantity}_weight": values[1]}

    return take


def logger(asked: Asked) -> Mapping[str, Any]:
    """A logger by its name, which is that of its package, where there is one; its value is
    a folder or a project.
    """
    if asked.value is False:
        return {}
    if asked.key not in LOGGERS.names():
        asked.notes.append(
            f"{asked.where}: {asked.key}: there is no logger of this name "
            f"({', '.join(LOGGERS.names())}); every record is in metrics.jsonl"
        )
        return {}
    if find_spec(asked.key) is None:
        asked.notes.append(
            f"{asked.where}: {asked.key}: the package {asked.key} is not installed (pip install "
            f"{asked.key}); every record is in metrics.jsonl"
        )
        return {}
    if asked.key == "wandb" and asked.value is not True:
        asked.notes.append(
            f"{asked.where}: wandb {asked.value}: the project is that of the variable WANDB_PROJECT"
        )
    elif asked.value is not True:
        asked.notes.append(
            f"{asked.where}: {asked.key} {asked.value}: what it writes lies beside the checkpoint"
        )
    return {"loggers": [asked.key]}


def final_rate(asked: Asked) -> Mapping[str, Any]:
    """The lower end of a schedule, which the usual one may not come near."""
    if asked.beside.get("scheduler") is None:
        asked.notes.append(
            f"{asked.where}: {asked.key} is --min_lr, the lower end of the schedule: plateau, "
            "which is the usual one, comes there only where losses stop falling; scheduler: cosine "
            "ends there"
        )
    return {"min_lr": asked.value}


def warmup_steps(asked: Asked) -> Mapping[str, Any]:
    """A warm-up in optimizer steps, in which the schedule then counts too; 0 is none."""
    if asked.value == 0:
        return {}
    return {"warmup": asked.value, "scheduler_unit": "step"}


def resume(asked: Asked) -> Mapping[str, Any]:
    """Whether a run that is there goes on."""
    if asked.value in ("auto", True):
        return {"resume": "auto"}
    if asked.value is not False:
        raise asked.refused("expected auto, true or false")
    return {}


def moments(asked: Asked) -> Mapping[str, Any]:
    """Whether a resumed run keeps the optimizer's moments, which it always does."""
    if asked.value is not True:
        raise asked.refused(
            "a run that goes on keeps the optimizer's moments; --resume --resume_best "
            "begins with fresh ones"
        )
    return {}


def experiment(asked: Asked) -> Mapping[str, Any]:
    """The name of an experiment; its folder is below where the command runs,
    not where the file lies.
    """
    return {"run_dir": experiment_folder(str(asked.value), f"{asked.key} in {asked.where}")}


def experiment_folder(name: str, where: str) -> str:
    """``demo`` → ``/…/runs/demo``.

    Raises:
        InputError: it is no name of a folder.
    """
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise InputError(f"{where} is {name!r:.60}, expected a name; --run_dir takes any folder")
    return os.path.abspath(os.path.join(EXPERIMENTS, name))


def schedule(ours: str) -> Taker:
    """A number or the name of a nested schedule."""
    return renamed(ours)


def gamma(asked: Asked) -> Mapping[str, Any]:
    """The factor of a nested schedule, which ours call by two names."""
    return {"lr_gamma" if asked.beside.get("name") == "exponential" else "lr_factor": asked.value}


def _numbers(value: Any, n: int) -> list[float] | None:
    """A list of ``n`` numbers, of which YAML takes those like 1e-3 for text; None
    where it is something else.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != n:
        return None
    try:
        return [float(v) for v in value if not isinstance(v, bool)]
    except (TypeError, ValueError):
        return None
