"""Covering arrays: few cases in which every pair of values of two axes occurs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = Mapping[str, str]  # axis → name of its value
TwoValues = frozenset[tuple[str, str]]  # two axes with a value each


def pairwise(
    axes: Mapping[str, Mapping[str, Any]], possible: Callable[[Case], bool] = lambda _: True
) -> list[Case]:
    """Cases in which every possible pair of values of two axes occurs; greedy, the same every time.

    Each case begins with a pair that is still missing; every other axis then takes the value that
    brings most missing pairs or, of equals, the pairs seen least. Of the cases from all rotations
    of the axes' order the best is kept.
    """
    names = list(axes)
    seen: Counter[TwoValues] = Counter()
    missing = {
        frozenset(pair): None
        for a, b in combinations(names, 2)
        for pair in product([(a, value) for value in axes[a]], [(b, value) for value in axes[b]])
        if possible(dict(pair))
    }
    cases: list[Case] = []
    while missing:
        first = sorted(next(iter(missing)))
        rotations = [names[k:] + names[:k] for k in range(len(names))]
        found = [_filled(dict(first), order, axes, possible, missing, seen) for order in rotations]
        case = max(found, key=lambda gain_and_case: gain_and_case[0])[1]
        for pair in combinations(case.items(), 2):
            seen[frozenset(pair)] += 1
            missing.pop(frozenset(pair), None)
        cases.append({name: case[name] for name in names})
    return cases


def _filled(
    case: dict[str, str],
    order: Sequence[str],
    axes: Mapping[str, Mapping[str, Any]],
    possible: Callable[[Case], bool],
    missing: Mapping[TwoValues, None],
    seen: Counter[TwoValues],
) -> tuple[int, dict[str, str]]:
    total = 0
    for axis in order:
        if axis in case:
            continue
        options = []
        for value in axes[axis]:
            if possible({**case, axis: value}):
                pairs = [frozenset([(axis, value), known]) for known in case.items()]
                options.append(
                    (
                        sum(pair in missing for pair in pairs),
                        -sum(seen[pair] for pair in pairs),
                        value,
                    )
                )
        gain, _, case[axis] = max(options, key=lambda option: option[:2])
        total += gain
    return total, case
