import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from restkv_local.policies.smoothing import adaptive_window, pool_rows, smooth_rows

WHOLE = st.integers(-1000, 1000).map(float)
ODD = st.integers(0, 15).map(lambda half: 2 * half + 1)
# float32, as it is measured: a smaller drift would vanish in the literal rule's division
DRIFT = st.floats(-1e5, 1e5, width=32)
ROWS = hnp.arrays(np.float64, st.integers(1, 30), elements=WHOLE)


def slow_pool(values, kernel, shift):
    """The published sum, one row and one neighbour at a time."""
    last = len(values) - 1
    out = []
    for i in range(len(values)):
        neighbours = range(i - kernel // 2 + shift, i + kernel // 2 + shift + 1)
        out.append(sum(values[min(max(j, 0), last)] for j in neighbours) / kernel)
    return np.array(out)


def slow_window(t, floor, scale):
    """The released rule, branch by branch; its shift at zero is 1."""
    kernel = max(floor, 2 * math.floor(abs(t) / scale) + 1)
    shift = math.floor(t / scale) if t > 0 else math.floor(t / scale) + 1
    return kernel, shift


@given(ROWS, ODD, st.integers(-20, 20))
@example(np.array([3.0]), 21, 0)
@example(np.array([3.0, 5.0]), 1, 7)
def test_mean_pool_is_exactly_the_literal_one(values, kernel, shift):
    """Whole numbers: every sum is exact, so the results are the same bits."""
    np.testing.assert_array_equal(
        pool_rows(values, kernel, shift), slow_pool(values, kernel, shift)
    )


@given(DRIFT, ODD, st.sampled_from([1.0, 200.0, 2000.0]))
@example(0.0, 21, 2000.0)
@example(-0.0, 21, 2000.0)
@example(2000.0, 21, 2000.0)
@example(-2000.0, 21, 2000.0)
@example(-1999.0, 21, 2000.0)
@example(-2001.0, 1, 2000.0)
@example(44_000.0, 21, 2000.0)
def test_kernel_and_shift_follow_the_released_rule(drift, floor, scale):
    assert adaptive_window(drift, floor, scale, shift_at_zero=True) == slow_window(
        drift, floor, scale
    )


@given(DRIFT, ODD)
def test_without_the_quirk_only_zero_drift_differs(drift, floor):
    kernel, shift = slow_window(drift, floor, 2000.0)
    assert adaptive_window(drift, floor, 2000.0) == (kernel, 0 if drift == 0 else shift)


@given(st.floats(-1999.5, 1999.5))
@example(-5e-324)
def test_a_drift_below_one_scale_changes_nothing(drift):
    assert adaptive_window(drift, 21, 2000.0) == (21, 0)


def test_attention_that_moves_on_takes_scores_from_before():
    """D_rear > D_front: drift is negative, and a row takes the scores of older rows."""
    _, shift = adaptive_window(-5000.0, 1, 2000.0)
    assert shift == -2
    assert pool_rows(np.arange(6.0), 1, shift).tolist() == [0, 0, 0, 1, 2, 3]


def test_the_ends_stand_in_beyond_themselves():
    assert pool_rows(np.array([9.0, 0, 0, 0, 6]), 3).tolist() == [6, 3, 0, 2, 4]
    assert pool_rows(np.array([9.0, 0, 0, 0, 6]), 3, pooling="max").tolist() == [9, 9, 0, 6, 6]


@given(hnp.arrays(np.float64, (2, 12), elements=WHOLE), ODD)
def test_max_pool_takes_the_largest_neighbour(values, kernel):
    pooled = pool_rows(values, kernel, pooling="max")
    half = kernel // 2
    for i in range(12):
        largest = values[:, max(i - half, 0) : i + half + 1].max(axis=1)
        np.testing.assert_array_equal(pooled[:, i], largest)


def test_a_large_score_leaves_no_trace_far_away():
    """A running sum would lose the small scores after the spike."""
    values = np.full(100, 1e-9)
    values[10] = 1e12
    pooled = pool_rows(values, 5)
    np.testing.assert_allclose(pooled[13:], 1e-9, rtol=1e-12)


def test_equal_scores_stay_exactly_equal():
    pooled = pool_rows(np.full(50, 0.1), 21, 3)
    assert (pooled == pooled[0]).all()


@given(hnp.arrays(np.float64, (3, 20), elements=WHOLE), st.integers(0, 25))
def test_past_and_window_are_pooled_apart(scores, n_window):
    split = max(20 - n_window, 0)
    smoothed = smooth_rows(scores, n_window, [(5, 0)])
    for head in range(3):
        parts = [part for part in (scores[head, :split], scores[head, split:]) if part.size]
        expected = np.concatenate([slow_pool(part, 5, 0) for part in parts])
        np.testing.assert_array_equal(smoothed[head], expected)


def test_each_head_has_its_own_window():
    scores = np.tile(np.arange(10.0), (2, 1))
    smoothed = smooth_rows(scores, 0, [(3, 0), (1, 2)])
    np.testing.assert_array_equal(smoothed[0], slow_pool(scores[0], 3, 0))
    np.testing.assert_array_equal(smoothed[1], slow_pool(scores[1], 1, 2))


@given(
    hnp.arrays(np.float64, (2, 12), elements=WHOLE),
    st.integers(0, 11),
    st.integers(0, 14),
    ODD,
    st.integers(-4, 4),
)
def test_a_head_is_pooled_as_if_its_absent_places_were_not_there(
    scores, n_absent, n_window, kernel, shift
):
    padded = np.concatenate([np.full((2, n_absent), 1e9), scores], axis=1)
    windows = [(kernel, shift)]
    smoothed = smooth_rows(padded, n_window, windows, n_absent=np.full(2, n_absent, np.int32))
    np.testing.assert_array_equal(smoothed[:, n_absent:], smooth_rows(scores, n_window, windows))
    assert np.isfinite(smoothed).all()


def test_each_head_has_its_own_absent_places():
    """Zeros before the oldest row would halve it, and another head's row is not its neighbour."""
    scores = np.array([[0, 0, 6, 3, 0], [6, 3, 0, 3, 6]], np.float64)
    smoothed = smooth_rows(scores, 0, [(3, 0)], n_absent=np.array([2, 0], np.int32))
    assert smoothed[0, 2:].tolist() == [5, 3, 1]
    assert smoothed[1].tolist() == [5, 3, 2, 3, 5]
    several = smooth_rows(scores, 0, [(3, 0), (1, 0)], n_absent=np.array([2, 0], np.int32))
    assert several[0, 2:].tolist() == [5, 3, 1]
    assert several[1].tolist() == scores[1].tolist()


def test_without_absent_places_nothing_changes():
    scores = np.random.default_rng(0).random((3, 20))
    expected = smooth_rows(scores, 4, [(5, 1)])
    none = np.zeros(3, np.int32)
    np.testing.assert_array_equal(smooth_rows(scores, 4, [(5, 1)], n_absent=none), expected)


def test_a_head_without_rows_stays_finite():
    scores = np.ones((2, 4))
    smoothed = smooth_rows(scores, 1, [(3, 0)], n_absent=np.array([4, 0], np.int32))
    assert np.isfinite(smoothed).all()


@pytest.mark.parametrize("n_window", [0, 4])
def test_inputs_are_not_changed(n_window):
    scores = np.random.default_rng(0).random((2, 10))
    before = scores.copy()
    smooth_rows(scores, n_window, [(1, 0)])
    smooth_rows(scores, n_window, [(5, 0), (3, 1)])
    smooth_rows(scores, n_window, [(5, 0)], n_absent=np.array([3, 0], np.int32))
    np.testing.assert_array_equal(scores, before)
