"""Work on the items of a stream that several processes share; the first has the results of all,
in the stream's order.

Every process goes over the whole stream and works on its own items alone, a block of them
in each round; after a round the results come together. So memory stays that of a round,
however long the stream is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Generic, NamedTuple, TypeVar

from dataloader.errors import InputError
from model_utils.ranks.group import Group
from model_utils.ranks.rank import Rank

Item = TypeVar("Item")
Result = TypeVar("Result")

FIRST_BLOCK = 16  # items of each process in the first round: few items are shared too
LARGEST_BLOCK = 1024  # likewise later: some tenths of a second between two meetings


class _Part(NamedTuple, Generic[Result]):
    """What one process has of a round."""

    results: list[Result]  # of its own items, up to a fault
    position: int  # in the round, at which the stream ended, or the fault
    error: InputError | None


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], group: Group
) -> Iterator[Result]:
    """The results of all items, one after another; none in other processes than the first,
    which only do the work.

    Args:
        items: the same in all processes; they are cheap to pass by.
        work: on one item.
        group: the processes that share the work.

    Raises:
        InputError: of the first item that cannot be worked on, after the results of those
            before it; in the first process alone, which ends the others. Or the processes see
            different numbers of items.
    """
    if group.rank.size == 1:
        yield from map(work, items)
        return
    stream = iter(items)
    block = FIRST_BLOCK
    is_going_on = True
    while is_going_on:
        part = _part(stream, work, block, group.rank)
        yield from _of_round(group.gathered(part), block)
        is_going_on = part.position == block * group.rank.size
        block = min(2 * block, LARGEST_BLOCK)


def _part(
    stream: Iterator[Item], work: Callable[[Item], Result], block: int, rank: Rank
) -> _Part[Result]:
    """Go over one round of the stream and work on this process's block."""
    own = range(rank.number * block, (rank.number + 1) * block)
    results: list[Result] = []
    position = 0
    try:
        for item in islice(stream, rank.size * block):
            if position in own:
                results.append(work(item))
            position += 1
    except InputError as error:
        return _Part(results, position, error)
    return _Part(results, position, None)


def _of_round(parts: Sequence[_Part[Result]], block: int) -> Iterator[Result]:
    """The results of a round in the first process; in the others there are no parts."""
    fault = _first_fault(parts, block)
    results = chain.from_iterable(part.results for part in parts)
    if fault is not None:
        yield from islice(results, fault.position)
        raise fault.error
    yield from results
    for number, part in enumerate(parts):
        if part.position != parts[0].position:
            more = "more" if part.position > parts[0].position else "fewer"
            raise InputError(
                f"rank {number} of {len(parts)} finds {more} structures in the data than rank 0; "
                "see that all machines have the same files"
            )


class _Fault(NamedTuple):
    """Where a round ends, and why."""

    position: int
    error: InputError


def _first_fault(parts: Sequence[_Part[Result]], block: int) -> _Fault | None:
    """The fault that one process alone would meet first, in its words.

    One of the stream itself, as of a file's text, is met by all; one that the process of the item
    has not is said to be of another process: it lacks a file, or its file system fails.
    """
    faults = [_Fault(part.position, part.error) for part in parts if part.error is not None]
    if not faults:
        return None
    first = min(faults, key=lambda fault: fault.position)
    own = parts[first.position // block]
    if own.error is not None and own.position == first.position:
        return _Fault(own.position, own.error)
    number = next(k for k, part in enumerate(parts) if part.error is first.error)
    return _Fault(
        first.position, type(first.error)(f"rank {number} of {len(parts)}: {first.error}")
    )
