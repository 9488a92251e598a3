"""A command from its arguments to its exit code: exceptions become one line."""

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dataloader import parallel, streams
from dataloader.cache_folder import settle
from dataloader.durable import NotWritten
from dataloader.errors import AwayError, InputError, is_away
from model_utils.errors import FULL, PeerFailed, PeerLost, SaveError, StageFailed
from model_utils.ranks.joining import NOBODY, Peers, Processes, join
from model_utils.ranks.rank import Rank
from model_utils.settings import invoked, reading, sections, typed
from model_utils.settings.declared import flat

Options = TypeVar("Options")
Commands = Mapping[str, tuple[type, Callable[[Any], None]]]  # name: its options, what it does

NO_ROOM = (*FULL, errno.EROFS)


def run(
    kind: type[Options],
    command: Callable[[Options], None],
    argv: Sequence[str] | None = None,
    *,
    elsewhere: Mapping[str, str] | None = None,
    from_a_model: tuple[type[Any], Callable[[Any], None]] | None = None,
    processes: Processes = "one",
) -> int:
    """Parse, call the command, and turn its failures into one line on stderr.

    Args:
        kind: dataclass of the options.
        command: takes the parsed options.
        argv: arguments without the program's name; those of the process unless given.
        elsewhere: flags of other commands that people will try here, with the answer.
        from_a_model: options and command in place of these where the file of settings names
            a model to begin with.
        processes: how several of them, started by torchrun or srun, do it: not at all, together, or
            each a share of the work without a word to the others.

    Returns:
        The exit code: 0 done, 2 bad input, 1 our bug, or what the exception says
            (``model_utils.errors``).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parallel.keep_blas_to_one_thread()
    streams.guard()
    streams.say_product(True)
    peers: Peers = NOBODY
    try:
        peers = join(os.environ, processes)
        _refuse_elsewhere(arguments, elsewhere or {})
        if from_a_model is not None and _begins_with_a_model(arguments):
            kind, command = from_a_model
        invoked.remember(arguments)
        options = reading.parse(kind, arguments)
        if options is not None:  # else --help was printed
            settle()
            streams.say_product(not _writes_files(options))
            command(options)
        _judge_stdout(is_product=options is None or not _writes_files(options))
        peers.ends_with(0)
        return 0
    except KeyboardInterrupt:
        if peers.ends_with(130):
            print("stopped: interrupted", file=sys.stderr)
        peers.wait_to_end(130)
        return 130
    except streams.ReaderLeft as left:
        peers.ends_with(left.exit_code)
        return left.exit_code
    except Exception as raised:
        return _failed(raised, peers, debug="--debug" in arguments)


def _failed(raised: Exception, peers: Peers, *, debug: bool) -> int:
    """Say why the command failed, and end with the other processes.

    Outside of the frame where it was caught: a variable there that held the error would hold all
    that its traceback leads to, open files too, until the collector comes.
    """
    error = _of_the_files(raised)
    code = int(getattr(error, "exit_code", 1))
    if peers.ends_with(code) and not isinstance(error, PeerFailed):
        _say_why(error, code, peers.rank, debug=debug)
    peers.wait_to_end(code)
    return code


def _of_the_files(error: Exception) -> Exception:
    """What to say of an error that a file system is to blame for, with its exit code; others as
    they are.
    """
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return InputError(
            "no more threads or processes are allowed (`ulimit -u` says how many, of all of this "
            "user together); end some, or ask for more"
        )
    if not isinstance(error, OSError):
        return error
    if is_away(error):
        return AwayError(
            f"{error.filename or 'a file'}: {error.strerror}; is its file system there?"
        )
    if isinstance(error, NotWritten) or error.errno in NO_ROOM:
        return SaveError(
            f"{error}; what was whole before still is: make room, and repeat the command"
        )
    if isinstance(error, PermissionError) and os.sep in str(error.filename):
        return InputError(
            f"{error.filename}: {error.strerror} for this user; ask whose it is for access, also "
            "to the folders above it, or name another path"
        )
    # what is missing from the start is refused where it is looked for
    if isinstance(error, FileNotFoundError) and os.sep in str(error.filename):
        return InputError(  # not to be tried again by itself: nobody knows that it comes back
            f"{error.filename}: {error.strerror}, and it was there a moment ago; was it moved, or "
            "removed? repeat the command"
        )
    return error


def _begins_with_a_model(argv: Sequence[str]) -> bool:
    """Whether the file of settings names a model to begin with; one that cannot be
    read is refused later.
    """
    alone = [Path(word) for word in argv if Path(word).suffix in typed.YAML_ENDINGS]
    config = reading.config_path(argv) or (alone[-1] if alone else None)
    if config is None or not config.is_file():
        return False
    return sections.begins_with_a_model(reading.settings_in(config))


def _say_why(error: Exception, code: int, rank: Rank, *, debug: bool) -> None:
    """Print a failure as one line, after a traceback where it is our bug or
    where that was asked for.
    """
    is_bug = code == 1 and not isinstance(error, PeerLost | StageFailed)
    if debug or is_bug:
        traceback.print_exception(error)
    if not is_bug:
        line = streams.printable(" ".join(str(error).split()))
        speaker = f"{rank}: " if rank.number > 0 else ""
        print(f"{'stopped' if code == 75 else 'error'}: {speaker}{line}", file=sys.stderr)


def _writes_files(options: Any) -> bool:
    """Whether a command was asked for files; otherwise what it says is what it makes."""
    values = flat(options)
    if values.get("dry_run"):
        return False
    return any(name.startswith("output_") and value is not None for name, value in values.items())


def _judge_stdout(*, is_product: bool) -> None:
    """Say that lines are missing from stdout, on a full disk; where nobody reads it, that
    is the reader's choice.

    Raises:
        InputError: what is missing is all that the command makes.
    """
    refused = streams.refused_by_stdout()
    if refused is None:
        return
    if is_product:
        raise InputError(
            f"stdout cannot be written: {refused.strerror}; lines of the answer are missing there"
        )
    print(
        f"warning: stdout cannot be written: {refused.strerror}; lines are missing there",
        file=sys.stderr,
    )


def run_subcommand(
    commands: Commands, doc: str, argv: Sequence[str] | None = None, *, processes: Processes = "one"
) -> int:
    """``run`` for a program whose first word says which command is meant."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in commands:
        kind, command = commands[arguments[0]]
        return run(kind, command, arguments[1:], processes=processes)
    streams.guard()
    lines = [f"  {name:8s} {kind.__doc__}" for name, (kind, _) in commands.items()]
    if not arguments or arguments[0] in ("--help", "-h"):
        return _shown([doc, "", *lines])
    near = difflib.get_close_matches(arguments[0], commands, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(commands)}"
    print(f"error: unknown command {arguments[0]!r}; {hint}", file=sys.stderr)
    return 2


def _shown(lines: Sequence[str]) -> int:
    """Print what was asked for; the exit code."""
    streams.say_product(True)
    try:
        print("\n".join(lines))
        _judge_stdout(is_product=True)
    except (streams.ReaderLeft, InputError) as error:
        if isinstance(error, InputError):
            _say_why(error, error.exit_code, Rank(), debug=False)
        return error.exit_code
    return 0


def _refuse_elsewhere(argv: Sequence[str], elsewhere: Mapping[str, str]) -> None:
    """Answer a flag of another command, which is known here only by what is to be said of it."""
    for argument in argv:
        name = argument.removeprefix("--").partition("=")[0].removeprefix("no_")
        if argument.startswith("--") and name in elsewhere:
            raise InputError(f"--{name} {elsewhere[name]}")
