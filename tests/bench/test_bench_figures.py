"""Medians, noise and ratios."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.bench.ceiling import find_ceilings
from restkv_local.bench.depths import compare_depths
from restkv_local.bench.figures import median_and_mad, summarise
from restkv_local.bench.log import Sample

CACHES = ["full", "restkv 256"]
TIMES = st.floats(1e-3, 1e3)


def find(figures, test, cache, depth=1000, unit=None):
    (found,) = (
        f
        for f in figures
        if (f.test, f.cache, f.depth) == (test, cache, depth) and unit in (None, f.unit)
    )
    return found


@pytest.fixture
def figures(samples):
    return summarise(samples, CACHES, n_prompt=512, n_gen=128)


@pytest.mark.parametrize(
    ("test", "unit", "value"),
    [
        ("pp512", "t/s", 512 / 0.5),
        ("tg128", "t/s", 1 / (0.01 + 1e-5 * 500)),
        ("tg step", "ms", 30),
        ("ttft", "s", 2),
        ("peak memory", "MiB", 200),
        ("K and V", "MiB", 3),
        ("evictions", "", 4),
        ("score", "ms each", 10),
        ("compact", "ms each", 2),
        ("guide", "ms each", 25),
        ("score+compact", "% of ttft", 2.4),
        ("guide", "% of ttft", 5),
    ],
)
def test_every_figure_is_what_its_name_says(figures, test, unit, value):
    figure = find(figures, test, "restkv 256", unit=unit)
    assert (figure.median, figure.unit, figure.n) == (pytest.approx(value), unit, 3)


def test_what_was_not_evicted_has_no_cost(figures):
    tests = {figure.test for figure in figures if figure.cache == "full"}
    assert tests == {"pp512", "tg128", "tg step", "ttft", "peak memory", "K and V"}


def test_ratios_compare_within_a_round_and_costs_are_not_compared(figures):
    """Every round is slower than the one before; the ratio knows nothing of it."""
    pp = find(figures, "pp512", "restkv 256")
    assert (pp.ratio, find(figures, "pp512", "full").ratio) == (2, 1)
    assert pp.mad > 0
    assert find(figures, "evictions", "restkv 256").ratio is None


def test_a_column_without_a_partner_in_its_round_has_no_ratio(result):
    samples = [Sample("full", 1, 0, None, result()), Sample("restkv 256", 1, 1, None, result())]
    figures = summarise(samples, CACHES, n_prompt=512, n_gen=128)
    assert find(figures, "pp512", "restkv 256", depth=1).ratio is None


def test_depths_are_compared_within_a_round_alone(result):
    """The second round has no short text, the third was twice as slow throughout."""
    samples = [
        Sample("full", depth, repetition, None, result(tg_s=seconds))
        for depth, repetition, seconds in
        [(100, 0, 1.0), (900, 0, 2.0), (900, 1, 9.0), (100, 2, 2.0), (900, 2, 6.0)]
    ]  # fmt: skip
    found = compare_depths(samples, CACHES, n_prompt=512, n_gen=128)
    (tg,) = (left for left in found if left.test == "tg128")
    assert (tg.cache, tg.depth, tg.base, tg.n) == ("full", 900, 100, 2)
    assert (tg.median, tg.mad) == (pytest.approx((1 / 2 + 1 / 3) / 2), pytest.approx(1 / 12))


def test_failed_cells_leave_no_figure(result):
    samples = [Sample("full", 1, 0, None, None, "no"), Sample("restkv 256", 1, 0, None, result())]
    figures = summarise(samples, CACHES, n_prompt=512, n_gen=128)
    assert {figure.cache for figure in figures} == {"restkv 256"}
    assert summarise(samples[:1], CACHES, n_prompt=512, n_gen=128) == []


@given(st.lists(TIMES, min_size=1, max_size=9), st.floats(0.1, 10), st.data())
def test_a_machine_that_drifts_changes_no_ratio(drift, factor, data):
    """Each round may run at any speed, rounds may come in any order."""
    samples = [
        Sample(cache, 8, i, None, {
            **dict.fromkeys(("tg_s", "step_ms", "ttft_s", "peak_bytes", "kv_bytes"), 1.0),
            "events": 0, "pp_s": seconds / (factor if cache != "full" else 1),
        })
        for i, seconds in enumerate(drift)
        for cache in CACHES
    ]  # fmt: skip
    samples = data.draw(st.permutations(samples))
    figure = find(summarise(samples, CACHES, n_prompt=1, n_gen=1), "pp1", "restkv 256", depth=8)
    assert figure.ratio == pytest.approx(factor)
    assert figure.n == len(drift)


@given(st.lists(TIMES, min_size=1, max_size=20), TIMES)
def test_noise_moves_with_scale_and_not_with_an_offset(values, other):
    median, mad = median_and_mad(values)
    assert median == statistics.median(values)
    assert 0 <= mad <= max(values) - min(values)
    assert median_and_mad([value + other for value in values])[1] == pytest.approx(mad, abs=1e-9)
    assert median_and_mad([value * 2 for value in values]) == (2 * median, 2 * mad)


# How much faster it could be


@given(
    base=st.floats(1e-3, 1), slope=st.floats(1e-7, 1e-4), rows=st.integers(100, 2000),
    loss=st.floats(1, 3),
)  # fmt: skip
def test_where_steps_grow_in_a_line_the_ceiling_is_on_it(base, slope, rows, loss):
    def step(n, slower=1.0):
        return {"rows": float(n), "tg_s": 16 * (base + slope * n) * slower}

    depths = (2000, 8000, 32000)
    samples = [Sample("full", depth, 0, None, step(depth)) for depth in depths]
    samples += [Sample("restkv 256", depth, 0, None, step(rows, loss)) for depth in depths]
    ceilings = find_ceilings(samples, CACHES, n_gen=16)
    assert [(c.cache, c.depth) for c in ceilings] == [("restkv 256", depth) for depth in depths]
    for c in ceilings:
        ideal = (base + slope * c.depth) / (base + slope * rows)
        assert c.ceiling == pytest.approx(ideal, rel=1e-3)
        assert c.reached == pytest.approx(ideal / loss, rel=1e-3)
        assert c.attention == pytest.approx(slope * c.depth / (base + slope * c.depth), rel=1e-2)


@pytest.mark.parametrize("rows", [1000, 4000, 5000, 16000])
def test_as_fast_as_the_whole_cache_at_as_many_rows_is_all_of_the_ceiling(rows):
    """Rows cost more each the more there are: a line through all steps said 119 % of the most that can be had."""
    seconds = {1000: 0.012, 4000: 0.02, 8000: 0.034, 16000: 0.1}
    steps = [(float(n), s) for n, s in seconds.items()]
    whole = [
        Sample("full", n, 0, None, {"rows": float(n), "tg_s": 16 * s}) for n, s in seconds.items()
    ]
    step = float(np.interp(rows, *zip(*steps, strict=True)))
    bounded = Sample("restkv 256", 16000, 0, None, {"rows": float(rows), "tg_s": 16 * step})
    (found,) = find_ceilings([*whole, bounded], CACHES, n_gen=16)
    assert found.ceiling == pytest.approx(0.1 / step)
    assert found.reached == pytest.approx(found.ceiling)


def test_beyond_the_measured_depths_the_nearest_ones_say_what_a_row_costs():
    def sample(cache, depth, rows, step):
        return Sample(cache, depth, 0, None, {"rows": rows, "tg_s": 16 * step})

    samples = [sample("full", n, n, s) for n, s in [(1000, 0.02), (2000, 0.03), (8000, 0.33)]]
    samples += [sample("restkv 256", 1000, 500, 0.02), sample("restkv 256", 8000, 9000, 0.4)]
    fewer, more = find_ceilings(samples, CACHES, n_gen=16)
    assert (fewer.ceiling, more.ceiling) == (
        pytest.approx(0.02 / 0.015),
        pytest.approx(0.33 / 0.38),
    )
    assert fewer.attention == pytest.approx(0.5)


def test_no_ceiling_without_two_depths_or_with_a_step_that_does_not_grow(result):
    one = [Sample(cache, 512, 0, None, result()) for cache in CACHES]
    assert find_ceilings(one, CACHES, n_gen=128) == []
    flat = [
        Sample(cache, depth, 0, None, result(rows=float(depth), tg_s=1 / depth))
        for cache in CACHES
        for depth in (512, 1024)
    ]
    assert find_ceilings(flat, CACHES, n_gen=128) == []
    assert find_ceilings([], CACHES, n_gen=128) == []
