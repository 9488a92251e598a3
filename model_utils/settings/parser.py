"""The parser of a command, made from its options: flags and settings to values by name."""

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from cyclopts import App, Group, Parameter, Token
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError, MissingArgumentError

from dataloader.errors import InputError
from model_utils.settings.declared import OnlyInYaml, Option, Panel, bare, declared
from model_utils.settings.synonyms import ANSWERS_TO_VALUES
from model_utils.settings.table_names import NamesOf


def parsed_values(
    kind: type, argv: Sequence[str], settings: Mapping[str, Any] | None, source: Path | None
) -> dict[str, Any] | None:
    """Values of the options that are given, by name; None where help was asked for and printed.

    Args:
        kind: dataclass of the options.
        argv: flags and their values, which win over the settings.
        settings: by name, as a YAML file or a checkpoint has them.
        source: where the settings stand, for messages.

    Raises:
        InputError: a value is not allowed, or a required one is missing.
    """
    app = _parser(kind, _looked_for(kind, argv, settings or {}))
    if settings is not None:
        app.config = Dict(dict(settings), source=str(source))
    try:
        values: dict[str, Any] | None = app(list(argv), exit_on_error=False, print_error=False)
    except MissingArgumentError as error:
        name = error.argument.name if error.argument is not None else "an option"
        raise InputError(_missing(name, argv)) from None
    except CycloptsError as error:
        raise InputError(_one_line(error, source)) from None
    return values


def _missing(name: str, argv: Sequence[str]) -> str:
    """What to say of a required option without a value."""
    after = argv[argv.index(name) + 1 :] if name in argv else []
    if after and after[0].startswith("-") and not after[0].startswith("--"):
        return (
            f"{name}: the value {after[0]} begins with a dash, as flags do; write {name}="
            f"{after[0]}, or ./{after[0]} for a file"
        )
    return f"{name} is missing; see --help"


def _looked_for(kind: type, argv: Sequence[str], settings: Mapping[str, Any]) -> list[Option]:
    """Options that the parser has to know: what is given and what is required; all
    of them for ``--help``.

    The parser takes half a millisecond for each option that it knows, and a
    command has up to ninety.
    """
    short = [
        word
        for word in argv
        if word == "--" or (word.startswith("-") and not word.startswith("--"))
    ]
    flags = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    if short or "help" in flags:
        return list(declared(kind))
    given = {*settings, *flags, *(flag.removeprefix("no_") for flag in flags)}
    return [option for option in declared(kind) if option.required or option.name in given]


def _parser(kind: type, options: Sequence[Option]) -> App:
    """The parser of a command's options, which gives those that are set as a flat dict."""
    app = App(
        name=Path(sys.argv[0]).name,
        help=kind.__doc__,
        default_parameter=Parameter(
            name_transform=lambda name: name,
            negative_bool=("no_",),
            negative_iterable=(),
            consume_multiple=True,
        ),
        help_format="plaintext",
        version_flags=[],
        result_action="return_value",
    )
    last = max((option.panel for option in declared(kind)), key=lambda panel: panel.position)
    app["--help"].group = _group(last)

    def take(**values: Any) -> dict[str, Any]:
        return values

    parameters = [_parameter(option) for option in options]
    # what the parser reads of a function: the options, whatever groups they are in
    take.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    take.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.default(take)
    return app


def _parameter(option: Option) -> inspect.Parameter:
    """An option as the parser takes it: what is declared, with its panel
    and its choices of today.
    """
    hint = option.type
    shown: dict[str, Any] = {}
    choices = option.marker(NamesOf)
    if choices is not None:
        is_list = typing.get_origin(bare(hint)) is tuple
        names: Any = typing.Literal[choices.names()]
        single = names if option.default is not None else names | None
        hint = tuple[names, ...] if is_list else single
        shown["converter"] = (
            _list_converter(choices, option.name) if is_list else _converter(choices)
        )
    extra = Parameter(
        help=option.help,
        group=_group(option.shown_in),
        show=option.marker(OnlyInYaml) is None,
        show_default=None if option.default != () else False,
        **shown,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.required else option.default,
        annotation=typing.Annotated[hint, extra],
    )


def _converter(choices: NamesOf) -> Callable[[type, Sequence[Token]], str]:
    """What turns a word of the command line into a name of a table, or refuses it."""

    def one_of(_: type, tokens: Sequence[Token]) -> str:
        return choices.checked(str(tokens[0].value))

    return one_of


def _list_converter(
    choices: NamesOf, name: str
) -> Callable[[type, Sequence[Token]], tuple[str, ...]]:
    """What turns the words after a flag into names of a table, or refuses
    the first that is none.
    """

    def checked(word: str) -> str:
        try:
            return choices.checked(word)
        except ValueError as error:  # the parser does not say the flag of a list
            raise ValueError(f"--{name} {error}") from None

    def all_of(_: type, tokens: Sequence[Token]) -> tuple[str, ...]:
        words = [str(token.value) for token in tokens]
        # an empty list comes as one empty word
        return tuple(checked(word) for word in words if word)

    return all_of


# what cyclopts says of an entry of a group that stands in a YAML
_UNKNOWN_ENTRY = re.compile(
    r'\[(\w+)\]: Unknown field "([^"]*)" in JSON for \w+\. Valid fields: (.*?)\.?$'
)


@cache
def _group(panel: Panel) -> Group:
    return Group(panel.title, sort_key=panel.position)


def _one_line(error: CycloptsError, source: Path | None) -> str:
    """The parser's complaint as a sentence of ours, with the file where the value stands in one."""
    text = " ".join(str(error).split())
    if isinstance(error.__cause__, InputError):
        return str(error.__cause__)
    if (answer := _answer_to_a_value(text)) is not None:
        return answer
    if (unknown := _UNKNOWN_ENTRY.search(text)) is not None:
        group, name, names = unknown.groups()
        near = get_close_matches(name, names.split(", "), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        where = "" if source is None else f"{source}: "
        return f"{where}{group} have no entry {name!r}; {hint}there are {names}"
    # so cyclopts shows a key
    if source is not None and "[" in text.partition(":")[0] and str(source) not in text:
        text = f"{text} in {source}"
    return text[0].lower() + text[1:].rstrip(".") + "; see --help"


def _answer_to_a_value(text: str) -> str | None:
    """What is said of a value that people know from elsewhere; None of any other."""
    refused = re.match(r'Invalid value "([^"]*)" for --(\w+)', text)
    if refused is None:
        return None
    value, name = refused.groups()
    answer = ANSWERS_TO_VALUES.get(name, {}).get(value.lower())
    return None if answer is None else f"--{name} {value}: {answer}"
