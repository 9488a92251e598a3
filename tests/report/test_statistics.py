"""Intervals hold the truth as often as they say; the paired test tells two models
apart where they differ.
"""

import numpy as np
import pytest

from model_utils.report.statistics import (
    FEWEST,
    MOST_UNITS,
    Interval,
    difference,
    interval,
    mean_interval,
    share_interval,
)

SETS = 200
STRUCTURES = 100
SPREAD = 0.3  # of the logarithm of the scale of errors, from structure to structure
TRUE_RMSE = np.exp(SPREAD**2)  # root of the mean of exp(2·SPREAD·z)
TRUE_MAE = np.sqrt(2 / np.pi) * np.exp(SPREAD**2 / 2)


def synthetic(seed: int, n: int = STRUCTURES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared and absolute errors and counts of structures of 3 to 60 atoms with
    errors of unequal scale.
    """
    rng = np.random.default_rng(seed)
    counts = 3 * rng.integers(3, 61, n)
    scales = np.exp(rng.normal(0, SPREAD, n))
    errors = [rng.normal(0, scale, count) for scale, count in zip(scales, counts, strict=True)]
    squared = np.array([(error**2).sum() for error in errors])
    absolute = np.array([np.abs(error).sum() for error in errors])
    return squared, absolute, counts.astype(float)


def covered(truth: float, bounds: object) -> bool:
    return bounds.low <= truth <= bounds.high  # type: ignore[attr-defined]


def test_of_200_sets_the_interval_holds_the_truth_in_93_to_97_percent() -> None:
    held = {"rmse": 0, "mae": 0, "delta": 0}
    for seed in range(SETS):
        squared, absolute, counts = synthetic(seed)
        other = 1.21 * synthetic(10_000 + seed)[0] / synthetic(10_000 + seed)[2] * counts
        held["rmse"] += covered(
            TRUE_RMSE, interval(squared, counts, root=True, draws=500, seed=seed)
        )
        held["mae"] += covered(
            TRUE_MAE, interval(absolute, counts, root=False, draws=500, seed=seed)
        )
        found = difference(squared, other, counts, root=True, draws=200, seed=seed)
        assert found is not None
        held["delta"] += covered(0.1 * TRUE_RMSE, found.interval)
    shares = {name: count / SETS for name, count in held.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_an_interval_of_entries_instead_of_structures_would_be_too_narrow() -> None:
    squared, _, counts = synthetic(1)
    bounds = interval(squared, counts, root=True, draws=500)
    assert bounds is not None
    value = np.sqrt(squared.sum() / counts.sum())
    of_entries = 1.96 * value / np.sqrt(2 * counts.sum())  # of independent normal errors
    assert bounds.high - bounds.low > 4 * of_entries


@pytest.mark.parametrize("root", [True, False])
def test_models_that_are_one_are_not_told_apart(root: bool) -> None:
    squared, _, counts = synthetic(2)
    found = difference(squared, squared.copy(), counts, root=root, draws=300)
    assert found is not None
    assert found.delta == 0
    assert found.p_value == 1
    assert (found.interval.low, found.interval.high) == (0, 0)  # type: ignore[union-attr]


def test_a_shift_is_seen_where_the_models_own_intervals_overlap() -> None:
    """Pairing: a model that is two per cent worse everywhere."""
    squared, _, counts = synthetic(3)
    worse = 1.02**2 * squared
    found = difference(squared, worse, counts, root=True, draws=500)
    assert found is not None
    assert found.delta == pytest.approx(0.02 * np.sqrt(squared.sum() / counts.sum()))
    assert found.p_value == 1 / 501
    assert found.interval is not None
    assert 0 < found.interval.low < found.delta < found.interval.high
    own = interval(squared, counts, root=True, draws=500)
    of_worse = interval(worse, counts, root=True, draws=500)
    assert own is not None
    assert of_worse is not None
    assert of_worse.low < own.high, "unpaired they overlap"
    back = difference(worse, squared, counts, root=True, draws=500)
    assert back is not None
    assert (back.delta, back.p_value) == (-found.delta, found.p_value)


def test_p_values_of_models_of_one_quality_are_below_5_percent_as_often() -> None:
    p_values = []
    for seed in range(SETS):
        squared, _, counts = synthetic(seed, 40)
        other = synthetic(5_000 + seed, 40)
        found = difference(
            squared, other[0] / other[2] * counts, counts, root=True, draws=200, seed=seed
        )
        assert found is not None
        p_values.append(found.p_value)
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08


def test_where_nothing_is_known_no_interval_is_given() -> None:
    ones = np.ones(FEWEST - 1)
    assert interval(ones, ones, root=True, draws=100) is None
    dominated = np.array([1000.0, *np.full(30, 0.1)])
    assert interval(dominated, np.ones(31), root=True, draws=100) is None
    found = difference(dominated, np.ones(31), np.ones(31), root=True, draws=100)
    assert found is not None
    assert found.interval is None
    assert difference(ones, ones, 0 * ones, root=True, draws=100) is None


def test_errors_that_are_alike_or_zero_give_a_point() -> None:
    counts = np.full(20, 6.0)
    for value in (0.0, 4.0):
        bounds = interval(value * counts, counts, root=True, draws=100)
        assert bounds is not None
        assert (bounds.low, bounds.high) == pytest.approx((np.sqrt(value), np.sqrt(value)))


def test_structures_without_an_entry_change_nothing() -> None:
    squared, _, counts = synthetic(4)
    more = [np.concatenate([values, np.zeros(50)]) for values in (squared, counts)]
    assert interval(*more, root=True, draws=100) == interval(squared, counts, root=True, draws=100)


def test_pools_of_very_many_structures_have_the_spread_of_structures() -> None:
    rng = np.random.default_rng(0)
    squared = rng.chisquare(3, 3 * MOST_UNITS + 1)
    bounds = interval(squared, np.full(len(squared), 3.0), root=False, draws=500)
    assert bounds is not None
    expected = 2 * 1.96 * np.sqrt(6 / len(squared)) / 3
    assert bounds.high - bounds.low == pytest.approx(expected, rel=0.1)


def test_shares_of_all_and_none_are_not_certain() -> None:
    assert share_interval(0, 0) is None
    none = share_interval(0, 10)
    every = share_interval(10, 10)
    assert none is not None
    assert every is not None
    assert (none.low, none.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))
    assert (every.low, every.high) == pytest.approx((0.025 ** (1 / 10), 1.0))
    half = share_interval(5, 10)
    assert half is not None
    # tables of Clopper and Pearson
    assert (half.low, half.high) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    with pytest.raises(ValueError, match="k"):
        share_interval(11, 10)


def test_means_of_either_sign_have_intervals() -> None:
    values = np.random.default_rng(3).normal(-0.1, 0.5, 400)
    bounds = mean_interval(values, draws=2000)
    assert bounds is not None
    error = values.std() / 20
    assert (bounds.low, bounds.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )
    shifted = mean_interval(values + 5.0, draws=2000)
    assert shifted is not None
    assert (shifted.low, shifted.high) == pytest.approx((bounds.low + 5, bounds.high + 5), abs=1e-9)
    same = mean_interval(np.full(12, 0.3), draws=10)
    assert same is not None
    assert same == Interval(low=same.low, high=same.low)
    assert same.low == pytest.approx(0.3)
    assert mean_interval(values[:9], draws=10) is None


def test_intervals_of_means_hold_what_they_promise() -> None:
    """Of skewed values too: of 200 sets of 40 some 95 % hold the mean."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        bounds = mean_interval(rng.exponential(1.0, 40), draws=400)
        assert bounds is not None
        held += bounds.low <= 1.0 <= bounds.high
    assert 180 <= held <= 198
