"""Files that one command is to write, each at a place of its own and at none that it reads."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from dataloader.errors import InputError
from model_utils.files.outputs import real


def refuse_shared_places(
    outputs: Mapping[str, Path | None], inputs: Iterable[tuple[str, Path | None]] = ()
) -> None:
    """Refuse two outputs of one place, of which the second would replace the first, and an output
    that would replace what the command reads.

    Args:
        outputs: by flag, as ``--output_json``; None where one is not asked for.
        inputs: flags and what they name, also patterns of files.

    Raises:
        InputError: naming both flags.
    """
    read = [(flag, path) for flag, path in inputs if path is not None]
    taken: dict[Path, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        place = real(path)
        if place in taken:
            raise InputError(
                f"{taken[place]} and {flag} are both {path}; give them different names"
            )
        taken[place] = flag
        for of_input, name in read:
            if place == real(name) or (path.exists() and _matches(place, name)):
                raise InputError(
                    f"{flag} and {of_input} are both {path}, which is read and would be replaced; "
                    f"give {flag} another name"
                )


def _matches(place: Path, pattern: Path) -> bool:
    """Whether a pattern of files stands for a place: its words for one folder each."""
    whole = real(pattern)
    return not pattern.exists() and len(place.parts) == len(whole.parts) and place.match(str(whole))
