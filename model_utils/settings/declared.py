"""What an option is, read from its declaration: name, type, default, help, panel and nature.

The options of a command are a frozen dataclass whose fields are options or groups of options
(dataclasses themselves). Groups are for the code, which hands each of its parts the group it needs;
whoever types a flag or a YAML key sees names without groups. Everything that needs to know the
options of a command iterates over ``declared``.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, TypeVar

from docstring_parser import parse_from_object

from model_utils.settings.table_names import NamesOf

Kind = TypeVar("Kind")
NO_DEFAULT = dataclasses.MISSING


class Nature(Enum):
    """What an option is to the run whose checkpoint keeps it."""

    OF_THE_COMMAND = "of the command"  # says what this call does; no setting of the run
    MAY_CHANGE = "may change"  # in a resumed run, without a word: no part of what a step computes
    FIXED = "fixed"  # for the whole run


OF_THE_COMMAND = Nature.OF_THE_COMMAND
MAY_CHANGE = Nature.MAY_CHANGE
FIXED = Nature.FIXED


@dataclass(frozen=True)
class InResume:
    """What resume.py says of an option, where that is more than what training says."""

    help: str


class OnlyInYaml:
    """The option has no flag."""


ONLY_IN_YAML = OnlyInYaml()


@dataclass(frozen=True)
class Panel:
    """Options that ``--help`` and Parameters.md show together.

    Attributes:
        title: what they are about.
        position: panels are shown in this order.
    """

    title: str
    position: int


REQUIRED = Panel("Required", 0)
# what may stand beside the type of an option for us, and not for the parser
MARKERS = (Nature, InResume, OnlyInYaml, NamesOf)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a command.

    Attributes:
        name: the flag without dashes, the YAML key, the key in a checkpoint's ``config``.
        type: as annotated, converters and markers included.
        default: ``NO_DEFAULT`` where it is required.
        help: what is said of it.
        nature: what it is to a run.
        panel: where options of its kind are shown.
    """

    name: str
    type: Any
    default: Any
    help: str
    nature: Nature
    panel: Panel

    @property
    def required(self) -> bool:
        """Whether a command cannot do without it."""
        return self.default is NO_DEFAULT

    @property
    def shown_in(self) -> Panel:
        """The panel of what is required, or its own."""
        return REQUIRED if self.required else self.panel

    def marker(self, kind: type[Kind]) -> Kind | None:
        """The marker of a class that stands beside the type, if there is one."""
        return _marker(self.type, kind)


def panel(
    title: str, position: int, nature: Nature | None = None
) -> Callable[[type[Kind]], type[Kind]]:
    """Mark a dataclass of options with the panel in which its own options are shown.

    Args:
        title: of the panel.
        position: of the panel among others.
        nature: of all its own options that have no marker.
    """

    def mark(kind: type[Kind]) -> type[Kind]:
        kind.PANEL = Panel(title, position)  # type: ignore[attr-defined]
        kind.NATURE = nature  # type: ignore[attr-defined]
        return kind

    return mark


@cache
def declared(kind: type) -> tuple[Option, ...]:
    """All options of a command or group, in the order in which checkpoints store them.

    Those of a group stand where the group does.

    Raises:
        TypeError: an option has no nature, or two have one name.
    """
    options = tuple(_declared(kind))
    names = [option.name for option in options]
    if len(set(names)) < len(names):
        raise TypeError(f"{kind.__name__} declares an option twice: {names}")
    return options


def _declared(kind: type) -> Iterator[Option]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        group = group_of(hints[field.name])
        if group is not None:
            yield from declared(group)
        elif "option" in field.metadata:  # made from another declaration
            yield field.metadata["option"]
        else:
            yield _option(kind, field, hints[field.name])


def _option(kind: type, field: dataclasses.Field[Any], hint: Any) -> Option:
    owner: Any = next(cls for cls in kind.__mro__ if field.name in inspect.get_annotations(cls))
    nature = _marker(hint, Nature) or getattr(owner, "NATURE", None)
    if nature is None:
        raise TypeError(
            f"{owner.__name__}.{field.name} does not say whether it may change in a resumed run"
        )
    return Option(
        name=field.name,
        type=hint,
        default=field.default,
        help=_helps(owner)[field.name],
        nature=nature,
        panel=getattr(owner, "PANEL", REQUIRED),
    )


@cache
def _helps(owner: type) -> Mapping[str, str]:
    """The strings below the fields of a class."""
    texts = {
        parameter.arg_name: parameter.description for parameter in parse_from_object(owner).params
    }
    return {name: " ".join((text or "").split()) for name, text in texts.items()}


def _marker(hint: Any, kind: type[Kind]) -> Kind | None:
    markers = getattr(hint, "__metadata__", ())
    return next((marker for marker in markers if isinstance(marker, kind)), None)


def bare(hint: Any) -> Any:
    """A type without converters and markers."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def group_of(hint: Any) -> type | None:
    """The group that a field holds; None where it is an option."""
    kind = bare(hint)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def names_of(kind: type, *natures: Nature) -> tuple[str, ...]:
    """Names of the options of a command; of some natures alone where these are given."""
    return tuple(
        option.name for option in declared(kind) if not natures or option.nature in natures
    )


def composed(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """The options of a command from values by name; the others have their defaults.

    Raises:
        InputError: values contradict one another.
        TypeError: one is missing that has no default.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        group = group_of(hints[field.name])
        if group is not None:
            fields[field.name] = composed(group, values)
        elif field.name in values:
            fields[field.name] = values[field.name]
    return kind(**fields)


def flat(options: Any) -> dict[str, Any]:
    """Values of the options of a command by name, the inverse of ``composed``."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value)
        else:
            values[field.name] = value
    return values


def changeable(kind: type, name: str) -> type:
    """A group of the options of a command that may change in a resumed run, all of them unset.

    Args:
        kind: the command whose run is resumed.
        name: of the group's class.
    """
    fields = []
    for option in declared(kind):
        if option.nature is MAY_CHANGE:
            again = _unset(option)
            made = dataclasses.field(default=again.default, metadata={"option": again})
            fields.append((option.name, again.type, made))
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


def _unset(option: Option) -> Option:
    said = option.marker(InResume)
    is_list = typing.get_origin(bare(option.type)) is tuple
    markers = [m for m in getattr(option.type, "__metadata__", ()) if isinstance(m, MARKERS)]
    unset_type: Any = Annotated[option.type | None, *markers]
    return dataclasses.replace(
        option,
        type=option.type if is_list else unset_type,
        default=() if is_list else None,
        help=option.help if said is None else said.help,
    )
