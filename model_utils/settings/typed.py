"""What people type, spelled out before it is parsed: bare flags, words without a flag, and
what one flag implies.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from model_utils.settings.declared import bare, declared
from model_utils.settings.options.data import GENERAL_FLAGS, flags_of
from model_utils.settings.taken import experiment_folder

YAML_ENDINGS = (".yaml", ".yml")


def spelled_out(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments with ``--resume auto`` for a bare ``--resume``, and ``--run_dir
    runs/X`` for ``--exp_name X``.

    Args:
        argv: as typed.
        names: of the command's options.

    Raises:
        InputError: the name of the experiment is none.
    """
    spelled: list[str] = []
    for position, argument in enumerate(argv):
        after = argv[position + 1] if position + 1 < len(argv) else "--"
        previous = argv[position - 1] if position else ""
        if argument == "--resume" and "resume" in names:
            is_bare = after.startswith("--") or Path(after).suffix in YAML_ENDINGS
            spelled += ["--resume", "auto"] if is_bare else ["--resume"]
        elif "run_dir" in names and argument.startswith("--exp_name="):
            spelled += ["--run_dir", experiment_folder(argument.partition("=")[2], "--exp_name")]
        elif "run_dir" in names and argument == "--exp_name":
            spelled.append("--run_dir")
        elif "run_dir" in names and previous == "--exp_name":
            spelled.append(experiment_folder(argument, "--exp_name"))
        else:
            spelled.append(argument)
    return spelled


def with_names_of_places(argv: Sequence[str], kind: type) -> list[str]:
    """The arguments with flags before words that stand alone, of a command
    that says which they are.

    Args:
        argv: of the command.
        kind: its options; ``POSITIONAL`` names those that may be written without their flag, all or
            none, and ``POSITIONAL_LIST`` one that takes all words which stand alone.
    """
    if (taker := getattr(kind, "POSITIONAL_LIST", None)) is not None:
        return _with_list(argv, kind, taker)
    names = getattr(kind, "POSITIONAL", ())
    places = (
        [p for p, _ in alone(argv, kind) if Path(argv[p]).suffix not in YAML_ENDINGS]
        if names
        else []
    )
    given = [name for name in names if any(word.partition("=")[0] == f"--{name}" for word in argv)]
    if len(places) != len(names) or given:
        return list(argv)
    flags = dict(zip(places, names, strict=True))
    words: list[str] = []
    for position, argument in enumerate(argv):
        words += [f"--{flags[position]}", argument] if position in flags else [argument]
    return words


def _with_list(argv: Sequence[str], kind: type, name: str) -> list[str]:
    """The arguments with all words that stand alone behind one flag; as they are
    where it is typed besides.
    """
    places = {p for p, _ in alone(argv, kind) if Path(argv[p]).suffix not in YAML_ENDINGS}
    if not places or any(word.partition("=")[0] == f"--{name}" for word in argv):
        return list(argv)
    rest = [word for position, word in enumerate(argv) if position not in places]
    return [*rest, f"--{name}", *(argv[position] for position in sorted(places))]


def with_implied(
    settings: Mapping[str, Any] | None,
    argv: Sequence[str],
    names: Sequence[str],
    config: Path | None,
) -> Mapping[str, Any] | None:
    """Settings with those that others imply, where a command needs them.

    With --run_dir the place of the run is found in that folder when it begins; until then it stands
    for it. A network that the file of settings describes has that file for its model.json.

    Raises:
        InputError: what is implied is given as well.
    """
    typed = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    implied = dict(settings or {})
    run_dir = _last_value(argv, "--run_dir") or implied.get("run_dir")
    if {"run_dir", "output_checkpoint"} <= set(names) and run_dir:
        if "output_checkpoint" in typed or (
            "output_checkpoint" in implied and "run_dir" not in typed
        ):
            raise InputError(
                f"--run_dir {run_dir} gives the run a folder of its own; leave "
                "--output_checkpoint out"
            )
        implied["output_checkpoint"] = run_dir
    if "network" in names and implied.get("network") is not None:
        if "input_json" in typed:
            raise InputError(
                f"--input_json is given, and {config} describes a network; leave one of the two out"
            )
        implied["input_json"] = str(config)
    return implied if implied or settings is not None else None


def _last_value(argv: Sequence[str], flag: str) -> str | None:
    value = None
    for position, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        elif word == flag and position + 1 < len(argv):
            value = argv[position + 1]
    return value


def displace(settings: dict[str, Any], argv: Sequence[str]) -> None:
    """Take files out of a file of settings that a flag of another name replaces: a flag wins over
    the file, and ``--xyz_train`` names what ``train_file`` names.

    The list of sources stays: its files have settings of their own.
    """
    flags = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    for role in GENERAL_FLAGS:
        of_role = flags_of(role)
        if not flags.isdisjoint(of_role):
            for name in of_role:
                settings.pop(name, None)


def repeated(argv: Sequence[str], kind: type) -> list[str]:
    """What is to be said of flags that stand there twice: of one that takes several values somebody
    may have meant both.
    """
    types = types_of(kind)
    values: dict[str, list[list[str]]] = {}
    for argument in argv:
        if argument.startswith("--") and argument != "--":
            name, _, value = argument[2:].partition("=")
            values.setdefault(name, []).append([value] if value else [])
        elif values:
            values[list(values)[-1]][-1].append(argument)
    return [
        f"--{name} stands there {len(given)} times, and the last counts ({' '.join(given[-1])}); "
        "several values follow one flag"
        for name, given in values.items()
        if _values_of(types.get(name)) > 1 and any(one != given[-1] for one in given)
    ]


def alone(argv: Sequence[str], kind: type) -> Iterator[tuple[int, str]]:
    """Places of the arguments that are no flag's value, each with what its flag takes."""
    flag = ""
    room = 0.0
    types = types_of(kind)
    for position, argument in enumerate(argv):
        if argument.startswith("--") and argument != "--":
            flag, _, value = argument.partition("=")
            room = _values_of(types.get(flag[2:])) - (1 if value else 0)
        elif argument.startswith("-") and argument != "--" and not _is_number(argument):
            flag = argument
            room = 0  # -h and mistakes, which the parser names
        elif room > 0:
            if room == float("inf") and Path(argument).suffix in YAML_ENDINGS:
                raise InputError(
                    f"{argument!r:.80} follows {flag}, which takes any number of values, and would "
                    f"be one of them; write --config {argument:.80}, or put it before all flags"
                )
            room -= 1
        else:
            takes = {0: "no value", 1: "one value"}.get(
                int(_values_of(types.get(flag[2:]))) if flag else -1
            )
            yield position, f", {flag} takes {takes}" if takes else ""


def _values_of(hint: Any) -> float:
    """How many values a flag takes: none where it is a switch (``--no_…`` too), any
    number where it is a list.
    """
    text = str(hint)
    if hint is None or text in ("<class 'bool'>", "bool | None"):
        return 0
    return float("inf") if "tuple[" in text else 1


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return True


def types_of(kind: type) -> dict[str, Any]:
    """Types of the options by name, without converters and markers at the outside."""
    return {option.name: bare(option.type) for option in declared(kind)}
