"""Weights of loss terms that change with the epoch: a table of courses, each a
function of the epoch alone.

A resumed run, and one of any number of processes, therefore has the weights of the unbroken one.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from model_utils.errors import InputError
from model_utils.run.table_entry import entry_of

# finished epochs and the weight from there on, in order; the first is at 0
Points = Sequence[tuple[int, float]]
Course = Callable[[Points, int], float]  # points and finished epochs → weight
EXAMPLE = "forces=linear:0=100,50=10"


def constant(points: Points, epoch: int) -> float:
    """The weight of the first point."""
    return points[0][1]


def piecewise(points: Points, epoch: int) -> float:
    """The weight of the last point that was reached."""
    return points[bisect_right([at for at, _ in points], epoch) - 1][1]


def linear(points: Points, epoch: int) -> float:
    """On straight lines between the points, and that of the last one after it."""
    after = bisect_right([at for at, _ in points], epoch)
    if after == len(points):
        return points[-1][1]
    (begin, first), (end, second) = points[after - 1], points[after]
    return first + (second - first) * (epoch - begin) / (end - begin)


COURSES: dict[str, Course] = {"constant": constant, "piecewise": piecewise, "linear": linear}


@dataclass(frozen=True)
class WeightSchedule:
    """The weight of one term by epoch."""

    course: str
    points: tuple[tuple[int, float], ...]

    def at(self, epoch: int) -> float:
        """The weight while so many epochs are finished."""
        return COURSES[self.course](self.points, epoch)

    @property
    def last(self) -> float:
        """The weight that it ends with."""
        return self.at(self.points[-1][0])

    @property
    def largest(self) -> float:
        """The largest weight at a point."""
        return max(weight for _, weight in self.points)


def schedules_of(texts: Sequence[str], quantities: Sequence[str]) -> dict[str, WeightSchedule]:
    """The schedules that --weight_schedule gives, by quantity.

    Args:
        texts: ``QUANTITY=COURSE:EPOCH=WEIGHT,EPOCH=WEIGHT``, each.
        quantities: that a loss may have terms of.

    Raises:
        InputError: one cannot be understood, or a quantity has two.
    """
    schedules: dict[str, WeightSchedule] = {}
    for text in texts:
        quantity, _, rest = text.partition("=")
        course, _, listed = rest.partition(":")
        where = f"--weight_schedule {text}"
        if quantity not in quantities:
            raise InputError(
                f"{where}: no quantity {quantity!r}; there are {', '.join(quantities)}"
            )
        if quantity in schedules:
            raise InputError(f"{where}: {quantity} has a schedule already; give one")
        entry_of(COURSES, course, f"{where}: the course")
        schedules[quantity] = WeightSchedule(course, tuple(_points(listed, where)))
    return schedules


def _points(listed: str, where: str) -> list[tuple[int, float]]:
    """The points of a schedule, checked.

    Raises:
        InputError: naming what is expected.
    """
    points: list[tuple[int, float]] = []
    for word in listed.split(","):
        epoch, _, weight = word.partition("=")
        try:
            point = (int(epoch), float(weight))
        except ValueError:
            raise InputError(
                f"{where}: {word!r} is no EPOCH=WEIGHT; expected for example {EXAMPLE}"
            ) from None
        if not (math.isfinite(point[1]) and point[1] >= 0):
            raise InputError(f"{where}: {weight} is no weight; expected a number, 0 or larger")
        if point[0] <= (points[-1][0] if points else -1):
            raise InputError(
                f"{where}: epoch {point[0]} does not come after the one before; give them in order"
            )
        points.append(point)
    if points[0][0] != 0:
        raise InputError(
            f"{where}: it begins at epoch {points[0][0]}; give the weight from epoch 0 on"
        )
    return points


def weights_at(schedules: Mapping[str, WeightSchedule], epoch: int) -> dict[str, float]:
    """The weights of all terms that have a schedule, while so many epochs are finished."""
    return {quantity: schedule.at(epoch) for quantity, schedule in schedules.items()}
