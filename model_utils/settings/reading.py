"""From a command line and a YAML file to typed options, and back to plain values."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dataloader import streams
from dataloader.errors import InputError
from model_utils import plugins
from model_utils.ranks.joining import this_rank
from model_utils.settings import command_sections, plain_yaml, sections, typed
from model_utils.settings.declared import composed, declared, flat, names_of
from model_utils.settings.mace_flags import ours_for
from model_utils.settings.meant import known_word, nearest
from model_utils.settings.parser import parsed_values
from model_utils.settings.usable_paths import refuse_unusable, refuse_unusable_path

SEVERAL = 3  # settings of mace_run_train that make a file one of its
Options = TypeVar("Options")


PERHAPS_FILES = ("E0s",)  # names of settings that take a word, JSON or a file


def parse(kind: type[Options], argv: Sequence[str]) -> Options | None:
    """The options of a command line and the YAML it names; None where help was
    asked for and printed.

    Raises:
        InputError: an unknown flag or key, a wrong value, a missing or contradictory option.
    """
    names = names_of(kind)
    argv = typed.spelled_out(argv, names)
    _refuse_unknown(argv, names)
    argv = _with_named_config(typed.with_names_of_places(argv, kind), kind)
    _refuse_empty(argv, _paths_of(kind))
    config = config_path(argv)
    settings = None if config is None else _read_yaml(config, kind, argv)
    if settings is not None:
        typed.displace(settings, argv)
    if "epochs" not in names:  # of a training job scripts put overrides at the end
        _say(typed.repeated(argv, kind))
    own_files = _plugin_paths(argv, settings or {})
    for path in own_files:
        refuse_unusable_path("plugin", path)
    plugins.load(own_files)  # before the names of tables are looked at
    return _parsed(
        kind, _last_of_each(argv), typed.with_implied(settings, argv, names, config), config
    )


def from_plain(kind: type[Options], settings: Mapping[str, Any], source: Path) -> Options:
    """The options that ``as_plain`` gave, through the same checks as a command line.

    Args:
        kind: dataclass of the options.
        settings: names this version does not know are left out.
        source: where they stand, for messages.

    Raises:
        InputError: a value is not allowed.
    """
    given = {name: without_none(value) for name, value in _not_by_default(kind, settings)}
    # an option that is not set has its default, which the parser takes by no other word
    set_values = {name: value for name, value in given.items() if value is not None and value != []}
    parsed = _parsed(kind, [], set_values, source)
    assert parsed is not None  # nobody asked for help
    return parsed


def _not_by_default(kind: type, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Stored settings that an option has, without those that are its default and need no parsing.

    1 and True are two values.
    """
    defaults = {option.name: _plain(option.default) for option in declared(kind)}
    for name, value in settings.items():
        if name in defaults and (
            type(value) is not type(defaults[name]) or value != defaults[name]
        ):
            yield name, value


def without_none(value: Any) -> Any:
    """A plain value of an option, with entries that are not set left out of its parts."""
    if isinstance(value, list):
        return [without_none(item) for item in value]
    if isinstance(value, Mapping):
        return {name: item for name, item in value.items() if item is not None}
    return value


def _parsed(
    kind: type[Options],
    argv: Sequence[str],
    settings: Mapping[str, Any] | None,
    config: Path | None,
) -> Options | None:
    values = parsed_values(kind, argv, settings, config)
    if values is None:
        return None
    options = composed(kind, values)
    refuse_unusable(options)
    return options


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """The arguments with only the last of a repeated flag: job scripts put overrides at the end."""
    groups: list[list[str]] = []
    for argument in argv:
        if argument.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(argument)
    last: dict[str, list[str]] = {}
    for group in groups:
        name = group[0].partition("=")[0].removeprefix("--").removeprefix("no_")
        last[name] = group
    kept = {id(group) for group in last.values()}
    return [argument for group in groups if id(group) in kept for argument in group]


def _refuse_unknown(argv: Sequence[str], names: Sequence[str]) -> None:
    """Name the nearest flag, or ours for one of mace_run_train's, before any value is looked at."""
    for argument in argv:
        if not argument.startswith("--") or argument == "--":
            continue
        name = argument[2:].partition("=")[0]
        if name not in names and name.removeprefix("no_") not in names and name != "help":
            raise InputError(f"unknown flag --{name}{_remedy(name, names, '--')}")


def _refuse_empty(argv: Sequence[str], paths: Sequence[str]) -> None:
    """A path of no letters would be the current folder: what a job script gives where
    its variable is not set.
    """
    flag = ""
    for argument in argv:
        flag = argument.partition("=")[0] if argument.startswith("--") else flag
        if argument in ("", f"{flag}=") and flag.removeprefix("--") in paths:
            raise InputError(f"{flag} is empty; give a path, or leave the flag out")


def _with_named_config(argv: Sequence[str], kind: type) -> list[str]:
    """The arguments with ``--config`` before the one that stands alone, where
    it ends as a YAML does.

    Raises:
        InputError: another argument stands alone, or two do: nothing that is typed is left aside.
    """
    alone = list(typed.alone(argv, kind))
    if not alone:
        return list(argv)
    position, reason = (
        alone[-1] if Path(argv[alone[0][0]]).suffix in typed.YAML_ENDINGS else alone[0]
    )
    word = argv[position]
    names = getattr(kind, "POSITIONAL", ())
    paths = [place for place, _ in alone if Path(argv[place]).suffix not in typed.YAML_ENDINGS]
    if len(names) > 1 and len(paths) > 1:
        raise InputError(
            f"{len(paths)} paths stand alone ({shlex.join(argv[place] for place in paths):.80}); "
            f"the command takes {len(names)}, without their flags or as "
            f"{' and '.join(f'--{name}' for name in names)}"
        )
    if len(alone) > 1 or Path(word).suffix not in typed.YAML_ENDINGS:
        raise InputError(
            f"{word!r:.80} stands alone{reason}; only the path of a YAML file of settings may, "
            "everything else follows its flag; see --help"
        )
    if (config := config_path(argv)) is not None:
        raise InputError(
            f"{word} is a second file of settings beside --config {config}; give one of the two"
        )
    return ["--config", word, *argv[:position], *argv[position + 1 :]]


def _paths_of(kind: type) -> list[str]:
    return [name for name, hint in typed.types_of(kind).items() if "Path" in str(hint)]


def _remedy(name: str, names: Sequence[str], dashes: str) -> str:
    """What is said of a name that a command has not: what it is called here, or where to look."""
    written = name.replace("-", "_")
    meant = known_word(written, names)
    is_ours = meant in names and (written in names or "epochs" not in names)
    theirs = ours_for(written)
    if theirs and not is_ours:  # who trains here has trained there
        return f", which is mace_run_train's: {theirs}"
    meant = meant or nearest(written, names)
    if meant is not None and meant in names:
        return f"; did you mean {dashes}{meant}?"
    return f"; {meant}" if meant is not None else "; see --help"


def config_path(argv: Sequence[str]) -> Path | None:
    """The file of settings that the command line names; the last where it names
    several, as of every flag.

    Raises:
        InputError: the flag stands at the end, without a name.
    """
    path = None
    for position, argument in enumerate(argv):
        if argument.startswith("--config="):
            path = Path(argument.partition("=")[2])
        if argument == "--config":
            if position + 1 == len(argv):
                raise InputError("--config needs a file name")
            path = Path(argv[position + 1])
    return path


def _plugin_paths(argv: Sequence[str], settings: Mapping[str, Any]) -> list[Path]:
    """The plug-ins that the command line names; else those of the file of
    settings that it names.
    """
    typed: list[str] = []
    is_open = False  # whether the flag before takes what comes
    for argument in argv:
        if argument.startswith("--"):
            flag, _, value = argument.partition("=")
            is_open = flag == "--plugin"
            typed = [value] * bool(value) if is_open else typed  # the last, as of every flag
        elif is_open:
            typed.append(argument)
    in_file = settings.get("plugin") or []
    return [Path(path) for path in typed or ([in_file] if isinstance(in_file, str) else in_file)]


def _read_yaml(path: Path, kind: type, argv: Sequence[str]) -> dict[str, Any]:
    """Settings of a YAML file, checked names, paths made relative to the file."""
    return _with_paths_of(
        path.parent, _checked(settings_in(path), path, kind, argv), _paths_of(kind)
    )


def settings_in(path: Path) -> Mapping[str, Any]:
    """The lines of a YAML file of settings, as they stand there.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    return plain_yaml.read(path, "a YAML file of settings", "lr: 0.01")


def of_settings(kind: type[Options], settings: Mapping[str, Any], path: Path) -> Options:
    """The options that a program gives by name, through the checks of a file of settings.

    Args:
        kind: dataclass of the options.
        settings: by name; None says nothing.
        path: where they stand, for messages; relative paths among them are those beside it.

    Raises:
        InputError: a name is unknown, a value is not allowed, or something is missing.
    """
    given = {name: _plain(value) for name, value in settings.items() if value is not None}
    checked = _checked(given, path, kind, [])
    checked = _with_paths_of(path.parent, checked, _paths_of(kind))
    plugins.load(_plugin_paths([], checked))
    options = _parsed(kind, [], typed.with_implied(checked, [], names_of(kind), path), path)
    assert options is not None  # nobody asked for help
    return options


def _checked(
    settings: Mapping[str, Any], path: Path, kind: type, argv: Sequence[str]
) -> Mapping[str, Any]:
    """Settings of a file by our names, each of which is an option's and holds what one can hold."""
    names = names_of(kind)
    settings = command_sections.as_text(settings, kind, path)
    # a training, which other toolkits have too
    if "run_dir" in names and not command_sections.sections_of(kind):
        settings, notes = sections.as_ours(settings, path, kind, argv)
        _say(notes)
    if settings.get("config") is not None:
        raise InputError(
            f"config in {path} names another file of settings; a file cannot lead to a further one"
        )
    settings = {name: value for name, value in settings.items() if name != "config"}
    _refuse_yaml_of_mace([name for name in settings if name not in names], path)
    for name, value in settings.items():
        if name not in names:
            raise InputError(f"unknown setting {name!r} in {path}{_remedy(str(name), names, '')}")
        if name == "sources" and not _is_list_of_files(value):
            raise InputError(
                f"sources in {path} holds {value!r:.60}, expected a list of files "
                "with their settings"
            )
        if isinstance(value, Mapping) or (name not in ("sources",) and _nested(value)):
            raise InputError(f"{name} in {path} holds {value!r:.60}, expected a plain value")
    for name in _paths_of(kind):
        if settings.get(name) == "" or (
            isinstance(settings.get(name), list) and "" in settings[name]
        ):
            raise InputError(f"{name} in {path} is empty; give a path, or leave the line out")
    return settings


def _refuse_yaml_of_mace(unknown: Sequence[str], path: Path) -> None:
    """Raise InputError where a file has several settings that mace_run_train has and we do not."""
    of_mace = [name for name in unknown if ours_for(str(name)) is not None]
    if len(of_mace) >= SEVERAL:
        raise InputError(
            f"{path} is a YAML of mace_run_train ({', '.join(of_mace[:SEVERAL])} …): `metadata.py "
            f"init --mace_config {path}` makes the model.json of its network, and "
            "docs/from_mace.md says what its other settings are here"
        )


def _say(notes: Sequence[str]) -> None:
    """Say what was answered and not done; the log begins later, and of several
    processes the first speaks.
    """
    for note in notes if this_rank().is_first else ():
        print(f"note: {streams.printable(note)}", file=sys.stderr)


def _with_paths_of(
    folder: Path, settings: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Any]:
    """Settings with relative paths taken from the folder of their file, not from
    where the command runs.
    """
    perhaps = {name: settings.get(name) for name in PERHAPS_FILES}
    files = [
        name
        for name, value in perhaps.items()
        if isinstance(value, str) and os.path.isfile(folder / value)
    ]
    with_paths = {*paths, *files, "sources"}
    return {
        name: _relative_to(folder, value) if name in with_paths else value
        for name, value in settings.items()
    }


def _is_list_of_files(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str | Mapping) for item in value)


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value)


def _relative_to(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_relative_to(folder, item) for item in value]
    if isinstance(value, Mapping):
        return {
            name: _relative_to(folder, item) if name == "path" else item
            for name, item in value.items()
        }
    return str(folder / value) if isinstance(value, str) else value


def as_plain(options: Any) -> dict[str, Any]:
    """Options as plain values for a checkpoint or a YAML file: paths as text, tuples as lists."""
    return {name: _plain(value) for name, value in flat(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return as_plain(value)
    # the run may be continued from elsewhere
    return os.path.abspath(value) if isinstance(value, Path) else value
