"""Into how many parts a step is dealt: a number of the run, so that any number of processes
computes the same bits.
"""

import math

from model_utils.errors import InputError

USUAL = 8  # parts where several processes start: enough to go on with 1, 2, 4 or 8


def parts_of_step(given: int | None, before: int | None, accumulate: int, size: int) -> int:
    """Parts of every optimizer step; 1 is a step that is not dealt.

    Args:
        given: by --step_parts.
        before: of the run that goes on.
        accumulate: batches of a step, each of which fills a device.
        size: number of processes.

    Raises:
        InputError: what was given for a new run does not fit the number of processes or of batches.
    """
    least = _fitting(accumulate, size)
    goes_on = before is not None
    # a restart may have other processes
    if given is None or (goes_on and not _fits(given, accumulate, size)):
        if before is not None and _fits(before, accumulate, size):
            return before
        return 1 if size == 1 else _fitting(max(USUAL, accumulate), size)
    if not _fits(given, accumulate, size):
        raise InputError(
            f"--step_parts {given} for {size} process{'es' * (size > 1)} and {accumulate} "
            "batches a step; expected a multiple of the former that is not less than the "
            f"latter, as {least}"
        )
    return given


def numbers_of_processes(n_parts: int) -> list[int]:
    """The numbers of processes with which a run of so many parts goes on to the same bits."""
    return [size for size in range(1, n_parts + 1) if n_parts % size == 0]


def _fits(n_parts: int, accumulate: int, size: int) -> bool:
    undivided = n_parts == 1 and size == 1
    return undivided or (n_parts % size == 0 and n_parts >= accumulate)


def _fitting(least: int, size: int) -> int:
    return math.ceil(least / size) * size
