"""How sure an error is: intervals from structures drawn anew, and a paired test of two models
on the same structures.

Force components of one structure are not independent, so structures are what is drawn. All that is
needed of one is its sum of errors and its number of entries, for every error of a set of labels is
made of such sums: a mean is Σs / Σn, a root mean square its root. Structures that follow one
another in a trajectory are not independent either: intervals of such data are too narrow.

``scipy.stats.bootstrap`` is not used: its studentised form needs a second bootstrap within each
draw, and its BCa form as many passes as there are structures.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
FEWEST = 10  # structures with an entry; of fewer no interval is given
# standard error of the mean over the mean: beyond, a few structures make up most of the error
MOST_SPREAD = 0.35
# beyond, structures are pooled at random: draws of pools have the spread of draws of structures
MOST_UNITS = 5_000
DRAWN_AT_ONCE = 4_000_000  # numbers that are held at once

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where an error lies with `CONFIDENCE`, in its own unit."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One error of two models on the same structures.

    Attributes:
        delta: error of the second minus that of the first.
        interval: of the delta; None where the error of one of the models has none.
        p_value: how often exchanging the two models' results at random, structure by structure,
            gives a delta as large.
    """

    delta: float
    interval: Interval | None
    p_value: float


def interval(
    sums: Floats, counts: Floats, *, root: bool, draws: int, seed: int = 0
) -> Interval | None:
    """Interval of Σ sums / Σ counts over structures, or of its root, by a studentised bootstrap.

    The logarithm is studentised, so no bound is negative. Where a few structures make up most of
    the error nothing is known of its upper bound (percentiles would promise one, the largest error
    that was met), and no interval is given.

    Args:
        sums: (n_structures,), of squared errors where ``root``, else of their magnitudes.
        counts: (n_structures,), entries behind them.
        root: whether the error is a root mean square.
        draws: sets of structures drawn with replacement.
        seed: of the draws.

    Returns:
        The interval in the unit of the error; None where fewer than `FEWEST` structures have an
        entry, or a few of them make up most of the error (`MOST_SPREAD`).
    """
    labelled = counts > 0
    if int(labelled.sum()) < FEWEST:
        return None
    columns = _pooled(np.stack([sums[labelled], counts[labelled]], axis=1), seed)
    spread = _moments(columns[:, 0], columns[:, 1])
    moments = np.concatenate([columns, spread], axis=1)
    mean, error = _log_of_ratio(moments.sum(axis=0)[None])
    if mean[0] == -np.inf or error[0] == 0:  # no error at all, or the same in every structure
        value = _plain(float(np.exp(mean[0])), root)
        return Interval(low=value, high=value)
    if error[0] > MOST_SPREAD:
        return None
    drawn_mean, drawn_error = _log_of_ratio(_drawn(moments, draws, seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = (drawn_mean - mean[0]) / drawn_error
    bounds = _quantiles(studentised)
    if bounds is None:
        return None
    low, high = np.exp(mean[0] - error[0] * bounds[::-1])
    return Interval(low=_plain(float(low), root), high=_plain(float(high), root))


def difference(
    first: Floats, second: Floats, counts: Floats, *, root: bool, draws: int, seed: int = 0
) -> Difference | None:
    """The error of a second model minus that of a first, on the same structures.

    Args:
        first: (n_structures,), sums of squared errors where ``root``, else of
            magnitudes, of the first model.
        second: (n_structures,), of the second.
        counts: (n_structures,), entries behind both.
        root: whether the errors are root mean squares.
        draws: sets of structures drawn for the interval, and exchanges for the p-value.
        seed: of both.

    Returns:
        None where no structure has an entry.
    """
    labelled = counts > 0
    if not labelled.any():
        return None
    columns = np.stack([first[labelled], second[labelled], counts[labelled]], axis=1)
    a, b, n = columns.sum(axis=0)
    delta = _plain(b / n, root) - _plain(a / n, root)
    columns = _pooled(columns, seed)
    has_interval = labelled.sum() >= FEWEST and _spread(columns[:, [0, 2]]) <= MOST_SPREAD
    has_interval = has_interval and _spread(columns[:, [1, 2]]) <= MOST_SPREAD
    return Difference(
        delta=float(delta),
        interval=_interval_of_delta(columns, delta, root, draws, seed) if has_interval else None,
        p_value=_p_value(columns, root, draws, seed),
    )


def mean_interval(values: Floats, *, draws: int, seed: int = 0) -> Interval | None:
    """Interval of the mean of some values of either sign, by a studentised bootstrap.

    Args:
        values: (n_structures,), in any unit.
        draws: sets of structures drawn with replacement.
        seed: of the draws.

    Returns:
        The interval in the unit of the values; None of fewer than `FEWEST`.
    """
    if len(values) < FEWEST:
        return None
    middle = float(values.mean())
    centred = values - middle  # so that squares lose no digits
    error = _error_of_mean(np.array([[0.0, float((centred**2).sum())]]), len(values))[0]
    if error <= 1e-12 * abs(middle):  # rounding, of values that are all the same
        return Interval(low=middle, high=middle)
    drawn = _drawn(np.stack([centred, centred**2], axis=1), draws, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = drawn[:, 0] / len(values) / _error_of_mean(drawn, len(values))
    bounds = _quantiles(studentised)
    if bounds is None:
        return None
    low, high = middle - error * bounds[::-1]
    return Interval(low=float(low), high=float(high))


def _error_of_mean(moments: Floats, n: int) -> Floats:
    """Standard error of the mean of n values, (k,), of (k, 2) sums of values and of squares."""
    means = moments[:, 0] / n
    return np.sqrt(np.maximum(moments[:, 1] / n - means**2, 0.0) / n)


def share_interval(hits: int, n: int) -> Interval | None:
    """Interval of a share, of ``hits`` in ``n`` structures; None of none.

    Draws of n yes-or-no structures with replacement are draws of a binomial distribution, whose
    interval is known without drawing (Clopper and Pearson, Biometrika 26, 404 (1934)). Where all
    structures say the same, draws would promise certainty, and this does not.

    Raises:
        ValueError: there are more hits than structures.
    """
    if n == 0:
        return None
    from scipy.stats import binomtest  # half a second, and few reports have a share

    bounds = binomtest(hits, n).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return Interval(low=float(bounds.low), high=float(bounds.high))


def _interval_of_delta(
    columns: Floats, delta: float, root: bool, draws: int, seed: int
) -> Interval | None:
    """Studentised bootstrap of the delta of (n, 3) sums of both models and counts."""
    moments = np.concatenate([columns, _products(columns)], axis=1)
    value, error = _delta_of(moments.sum(axis=0)[None], root)
    if error[0] == 0:
        return Interval(low=float(delta), high=float(delta))
    drawn, drawn_error = _delta_of(_drawn(moments, draws, seed), root)
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = (drawn - value[0]) / drawn_error
    bounds = _quantiles(studentised)
    if bounds is None:
        return None
    low, high = delta - error[0] * bounds[::-1]
    return Interval(low=float(low), high=float(high))


def _p_value(columns: Floats, root: bool, draws: int, seed: int) -> float:
    """Share of random exchanges of the two models' results that give a delta at least as
    large as the real one.
    """
    a, b, n = columns.sum(axis=0)
    gained = columns[:, 1] - columns[:, 0]
    delta = abs(_plain(b / n, root) - _plain(a / n, root))
    rounding = 1e-12 * (abs(_plain(a / n, root)) + abs(_plain(b / n, root)))
    rng = np.random.default_rng([seed, 1])
    as_large = 0
    for part in _parts(draws, len(columns)):
        exchanged = (
            rng.integers(0, 2, (part, len(columns)), dtype=np.int8).astype(np.float64) @ gained
        )
        means_a = np.maximum(a + exchanged, 0.0) / n
        means_b = np.maximum(b - exchanged, 0.0) / n
        deltas = np.sqrt(means_b) - np.sqrt(means_a) if root else means_b - means_a
        as_large += int((np.abs(deltas) >= delta - rounding).sum())
    return (1 + as_large) / (1 + draws)


def _plain(mean: float, root: bool) -> float:
    return float(np.sqrt(mean)) if root else float(mean)


def _spread(columns: Floats) -> float:
    """Standard error of Σ sums / Σ counts over it, of (n, 2) columns; 0 where
    there is no error at all.
    """
    moments = np.concatenate([columns, _moments(columns[:, 0], columns[:, 1])], axis=1)
    mean, error = _log_of_ratio(moments.sum(axis=0)[None])
    return 0.0 if mean[0] == -np.inf else float(error[0])


def _moments(sums: Floats, counts: Floats) -> Floats:
    """(n, 3): what the variance of Σ sums / Σ counts is made of."""
    return np.stack([sums * sums, sums * counts, counts * counts], axis=1)


def _products(columns: Floats) -> Floats:
    """(n, 6): products of each two of three columns."""
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    return np.stack([columns[:, i] * columns[:, j] for i, j in pairs], axis=1)


def _log_of_ratio(moments: Floats) -> tuple[Floats, Floats]:
    """Logarithm of s/n and its standard error to first order, of (k, 5)
    sums of s, n, s², s·n, n².
    """
    s, n, ss, sn, nn = moments.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = s / n
        variance = np.maximum(ss - 2 * mean * sn + mean * mean * nn, 0.0) / (s * s)
        # rounding, where every structure has one and the same error
        variance[variance < 1e-24] = 0.0
        return np.log(mean), np.sqrt(variance)


def _delta_of(moments: Floats, root: bool) -> tuple[Floats, Floats]:
    """Delta and its standard error to first order, of (k, 9) sums of a, b,
    n and their `_products`.
    """
    a, b, n, aa, bb, nn, ab, an, bn = moments.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_a = a / n
        mean_b = b / n
        slope_a = 0.5 / np.sqrt(mean_a) if root else np.ones_like(mean_a)
        slope_b = 0.5 / np.sqrt(mean_b) if root else np.ones_like(mean_b)
        var_a = aa - 2 * mean_a * an + mean_a * mean_a * nn
        var_b = bb - 2 * mean_b * bn + mean_b * mean_b * nn
        both = ab - mean_a * bn - mean_b * an + mean_a * mean_b * nn
        variance = slope_a**2 * var_a + slope_b**2 * var_b - 2 * slope_a * slope_b * both
        scale = slope_a**2 * aa + slope_b**2 * bb
        # rounding, of two models that are one; or neither has an error
        none = ~(variance > 1e-13 * scale)
        variance = np.where(none, 0.0, variance)
        delta = np.sqrt(mean_b) - np.sqrt(mean_a) if root else mean_b - mean_a
        return delta, np.sqrt(variance) / n


def _quantiles(studentised: Floats) -> Floats | None:
    """The two quantiles that enclose `CONFIDENCE`; None where most draws have none."""
    usable = studentised[np.isfinite(studentised)]
    if len(usable) < len(studentised) / 2:
        return None
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(usable, [tail, 1 - tail])


def _pooled(columns: Floats, seed: int) -> Floats:
    """Columns of at most `MOST_UNITS` structures, or of random pools of them."""
    if len(columns) <= MOST_UNITS:
        return columns
    order = np.random.default_rng([seed, 2]).permutation(len(columns))
    starts = np.linspace(0, len(columns), MOST_UNITS, endpoint=False).astype(np.int64)
    return np.add.reduceat(columns[order], starts, axis=0)


def _drawn(columns: Floats, draws: int, seed: int) -> Floats:
    """(draws, k): sums of columns (n, k) over n structures drawn with replacement, of
    which each set is one row.
    """
    n = len(columns)
    rng = np.random.default_rng([seed, 0])
    rows = []
    for part in _parts(draws, n):
        picked = rng.integers(0, n, (part, n), dtype=np.int32) + n * np.arange(part)[:, None]
        times = np.bincount(picked.ravel(), minlength=part * n).reshape(part, n)
        rows.append(times.astype(np.float64) @ columns)
    return np.concatenate(rows)


def _parts(draws: int, n: int) -> Iterator[int]:
    """Numbers of draws that fit into memory at once."""
    at_once = max(DRAWN_AT_ONCE // n, 1)
    while draws > 0:
        yield min(draws, at_once)
        draws -= at_once
