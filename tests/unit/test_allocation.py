import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from restkv_local.allocators.ada import Ada
from restkv_local.allocators.base import fit_rows, fit_total
from restkv_local.allocators.cake import Cake
from restkv_local.allocators.global_ import Global
from restkv_local.allocators.pyramid import Pyramid
from restkv_local.allocators.ranking import count_selected
from restkv_local.allocators.uniform import Uniform
from restkv_local.errors import ConfigError, PlanError
from restkv_local.types import Observation
from tests.demands import attention_of, make_demand

# Rounding, limits, total


def fit(wanted, total, *, least=0, most=1000):
    shape = np.shape(wanted)
    low, high = (np.broadcast_to(limit, shape).astype(np.int32) for limit in (least, most))
    return fit_rows(np.array(wanted, np.float64), low, high, total).tolist()


@pytest.mark.parametrize(
    ("wanted", "total", "rows"),
    [
        ([2, 3, 5], 10, [2, 3, 5]),
        ([3.3, 3.3, 3.4], 10, [3, 3, 4]),
        ([2, 3, 5], 100, [20, 30, 50]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([1, 1, 1], 11, [4, 4, 3]),
        ([0, 0, 0], 7, [3, 2, 2]),
        ([-5, 1, 1], 6, [0, 3, 3]),
        ([0.3, 0.1 + 0.2], 3, [2, 1]),
        ([[1, 1], [1, 1]], 6, [[2, 2], [1, 1]]),
        ([4], 0, [0]),
    ],
)
def test_the_largest_remainder_is_rounded_up_and_of_equal_ones_the_first(wanted, total, rows):
    assert fit(wanted, total) == rows


@pytest.mark.parametrize(
    ("wanted", "least", "most", "total", "rows"),
    [
        ([8, 2, 2], 0, [4, 9, 9], 12, [4, 4, 4]),
        ([8, 1, 3], 0, [4, 9, 9], 12, [4, 2, 6]),
        ([0, 6, 6], [4, 0, 0], 9, 12, [4, 4, 4]),
        # 10 is cut to 6, the 9 left go 1 to 4; 1.8 is raised to 3, the rest is the last one's.
        ([10, 1, 4], [0, 3, 0], [6, 9, 9], 15, [6, 3, 6]),
        # One is raised by as much as another is cut.
        ([8, 2, 5], [0, 4, 0], [6, 9, 9], 15, [6, 4, 5]),
        ([5, 0, 0], 0, [4, 9, 9], 10, [4, 3, 3]),
        ([1, 2, 3], [2, 3, 4], [2, 3, 4], 9, [2, 3, 4]),
    ],
)
def test_what_a_limit_cuts_off_goes_to_the_others_in_proportion(wanted, least, most, total, rows):
    assert fit(wanted, total, least=least, most=most) == rows


@st.composite
def shares(draw):
    """Wishes, limits and a total within them."""
    size = draw(st.integers(1, 12))
    least = draw(hnp.arrays(np.int32, size, elements=st.integers(0, 20)))
    most = least + draw(hnp.arrays(np.int32, size, elements=st.integers(0, 40)))
    wish = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.integers(0, 9).map(float))
    wanted = draw(hnp.arrays(np.float64, size, elements=wish))
    return wanted, least, most, draw(st.integers(int(least.sum()), int(most.sum())))


@given(shares())
def test_shares_sum_to_the_total_within_their_limits(case):
    wanted, least, most, total = case
    rows = fit_rows(wanted, least, most, total)
    assert rows.dtype == np.int32
    assert rows.sum() == total
    assert (rows >= least).all()
    assert (rows <= most).all()


@given(shares())
def test_shares_are_one_scale_of_the_wishes_to_less_than_a_row(case):
    """Against the scale found by bisection, in the logarithm: it may be anything."""
    wanted, least, most, total = case
    rows = fit_rows(wanted, least, most, total)
    weights = np.maximum(wanted, 1e-9 * wanted.max()) if wanted.max() > 0 else np.ones(len(wanted))
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(np.exp(middle) * weights, least, most).sum() < total:
            low = middle
        else:
            high = middle
    exact = np.clip(np.exp(high) * weights, least, most)
    assert (np.abs(rows - exact) < 1 + 1e-6).all()


@given(shares())
def test_who_wants_more_gets_no_less_under_the_same_limits(case):
    wanted, _, _, total = case
    order = np.argsort(-wanted, kind="stable")
    limits = np.zeros(len(wanted), np.int32), np.full(len(wanted), total, np.int32)
    assert (np.diff(fit_rows(wanted[order], *limits, total)) <= 0).all()


@given(shares(), st.floats(1e-3, 1e3))
def test_only_proportions_count(case, factor):
    wanted, least, most, total = case
    rows = fit_rows(wanted, least, most, total)
    assert np.abs(fit_rows(wanted * factor, least, most, total) - rows).max() <= 1


@st.composite
def demands(draw):
    """A cache of unequal heads, with protected rows anywhere."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    n_kv = draw(st.integers(1, 12))
    return make_demand(
        budget=draw(st.integers(0, 14)),
        n_layer=shape[0],
        n_head_kv=shape[1],
        n_kv=n_kv,
        n_rows=draw(hnp.arrays(np.int32, shape, elements=st.integers(0, n_kv))),
        protected=draw(hnp.arrays(bool, (*shape, n_kv))),
        n_most=draw(st.integers(-1, n_kv + 2)),
        scores=draw(hnp.arrays(np.float32, (*shape, n_kv), elements=st.floats(-2, 2, width=16))),
    )


@pytest.mark.parametrize("unit", [5e-324, 2e-313, 1e-308, 1e300])
def test_only_proportions_count_however_small_or_large_the_numbers(unit):
    assert fit([unit, 3 * unit], 40) == [10, 30]


@given(demands(), st.data())
def test_a_demand_is_met_exactly_or_refused(demand, data):
    wish = st.floats(0, 100)
    wanted = data.draw(hnp.arrays(np.float64, demand.n_rows.shape, elements=wish))
    if (demand.least > demand.most).any() or demand.least.sum() > demand.total:
        with pytest.raises(PlanError, match="protected but"):
            fit_total(wanted, demand)
        return
    rows = fit_total(wanted, demand)
    assert rows.sum() == demand.total
    assert (rows >= demand.least).all()
    assert (rows <= demand.most).all()


@pytest.mark.parametrize("allocator", [Uniform(), Pyramid(), Ada(), Cake(), Global()], ids=str)
@given(demand=demands())
def test_any_demand_that_can_be_met_is_met(allocator, demand):
    if (demand.least > demand.most).any() or demand.least.sum() > demand.total:
        with pytest.raises(PlanError, match="protected but"):
            allocator.allocate(demand)
        return
    rows = allocator.allocate(demand)
    assert rows.sum() == demand.total
    assert (rows >= demand.least).all()
    assert (rows <= demand.most).all()


# Uniform


def test_uniform_gives_what_a_short_head_leaves_to_the_others():
    demand = make_demand(budget=10, n_layer=2, n_kv=30, n_rows=[[4, 30], [30, 30]])
    assert Uniform().allocate(demand).tolist() == [[4, 12], [12, 12]]


# Pyramid: 24 rows, 4 of them protected, base 20

FIVE = {"budget": 24, "n_layer": 5, "n_head_kv": 2, "protected": None}


def pyramid(beta=20.0, **fields):
    n_kv = fields.setdefault("n_kv", 100)
    fields = FIVE | fields | {"protected": np.arange(n_kv) >= n_kv - 4}
    return Pyramid(beta=beta).allocate(make_demand(**fields))


def test_the_pyramid_is_a_straight_line_around_the_average():
    """39, 29.5, 20, 10.5 and 1 rows beside the protected ones; the halves go to the lower layer."""
    assert pyramid().tolist() == [[43, 43], [34, 34], [24, 24], [14, 14], [5, 5]]


def test_without_protected_rows_it_is_the_line_of_kvpress():
    """78, 52.67, 27.33 and 2."""
    demand = make_demand(budget=40, n_layer=4, n_head_kv=1, n_kv=200)
    assert Pyramid().allocate(demand).ravel().tolist() == [78, 53, 27, 2]


def test_a_first_layer_that_is_too_short_flattens_it():
    """Of 41 rows 37 are candidates: 37, 28.5, 20, 11.5 and 3."""
    assert pyramid(n_kv=41).tolist() == [[41, 41], [33, 33], [24, 24], [15, 15], [7, 7]]


def test_a_cap_flattens_it_too():
    """30 rows at most, so 26 candidates: 26, 23, 20, 17 and 14."""
    assert pyramid(n_most=30)[:, 0].tolist() == [30, 27, 24, 21, 18]


def test_a_short_text_flattens_it_again():
    """30 rows there are: the first layer keeps them all."""
    assert pyramid(n_kv=30)[:, 0].tolist() == [30, 27, 24, 21, 18]


@pytest.mark.parametrize("fields", [{"n_kv": 24}, {"beta": 1.0}, {"n_layer": 1}], ids=str)
def test_there_is_no_pyramid_without_a_choice_or_over_a_single_layer(fields):
    assert (pyramid(**fields) == 24).all()


def test_heads_of_one_layer_get_the_same_beside_their_own_protected_rows():
    protected = np.zeros((1, 2, 100), bool)
    protected[0, 0, :10], protected[0, 1, :2] = True, True
    demand = make_demand(budget=26, n_layer=1, n_kv=100, protected=protected)
    assert Pyramid().allocate(demand).tolist() == [[30, 22]]


def test_a_larger_beta_is_steeper():
    assert pyramid(beta=2.0)[:, 0].tolist() == [34, 29, 24, 19, 14]
    assert pyramid(beta=1e9)[[0, -1], 0].tolist() == [44, 4]


def test_a_pyramid_never_stands_on_its_head():
    rows = np.full((5, 2), 100)
    rows[0] = 10
    allocation = pyramid(n_rows=rows)
    assert (allocation[0] == 10).all()
    assert np.ptp(allocation[1:]) <= 1


def test_it_keeps_its_shape_over_many_events():
    """Each event finds the rows that the last one left, and as many new ones in every head."""
    first = pyramid()
    np.testing.assert_array_equal(pyramid(n_kv=93, n_rows=first + 50), first)


# Ranking


def test_places_go_to_the_best_of_a_pool():
    scores = np.array([[[9, 8, 1, 0], [7, 6, 5, 4]], [[1, 2, 3, 4], [0, 0, 0, 9]]], np.float32)
    counts = count_selected(scores, np.ones(scores.shape, bool), np.array([5, 3], np.int32))
    assert counts.tolist() == [[2, 3], [2, 1]]


def test_ties_at_the_edge_share_the_places_that_are_left():
    """One place is 5's, two are left for six 3s: four of the first head's and two of the other's."""
    scores = np.array([[[3, 3, 3, 3, 1], [5, 3, 3, 1, 1]]], np.float32)
    counts = count_selected(scores, np.ones(scores.shape, bool), np.array([3], np.int32))
    np.testing.assert_allclose(counts, [[2 * 4 / 6, 1 + 2 * 2 / 6]])


def test_only_candidates_compete():
    scores = np.array([[[9, 8, 7], [1, 2, 3]]], np.float32)
    candidates = np.array([[[False, False, True], [True, True, True]]])
    counts = count_selected(scores, candidates, np.array([2], np.int32))
    assert counts.tolist() == [[1, 1]]
    assert count_selected(scores, candidates, np.array([4], np.int32)).tolist() == [[1, 3]]
    assert count_selected(scores, candidates, np.array([0], np.int32)).tolist() == [[0, 0]]


# Ada

# Of the ten best, eight are the first head's: 5 each on average, c = (8, 2).
TWO_HEADS = np.array(
    [[[20, 19, 18, 17, 16, 15, 14, 13, 2, 1], [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]]], np.float32
)


def split_two_heads(floor, **fields):
    fields = {"budget": 5, "n_layer": 1, "n_kv": 10, "scores": TWO_HEADS} | fields
    return Ada(floor=floor).allocate(make_demand(**fields)).tolist()


@pytest.mark.parametrize(
    ("floor", "rows"),
    [(0.0, [8, 2]), (0.2, [7, 3]), (0.5, [7, 3]), (0.6, [6, 4]), (1.0, [5, 5])],
)
def test_a_layer_is_split_by_its_best_rows_and_a_floor(floor, rows):
    """0.8 * (8, 2) + 0.2 * 5 = (7.4, 2.6); halves as 6.5 and 3.5 go to the lower head."""
    assert split_two_heads(floor) == [rows]


def test_protected_rows_come_on_top_and_do_not_compete():
    """The first head's best two: of the six best of the others six are its own, c = (6, 0)."""
    protected = np.zeros((1, 2, 10), bool)
    protected[0, :, :2] = True
    assert split_two_heads(0.0, protected=protected) == [[8, 2]]
    assert split_two_heads(0.5, protected=protected) == [[7, 3]]


def test_what_a_head_may_not_hold_stays_in_its_layer():
    scores = np.concatenate([TWO_HEADS, TWO_HEADS[:, ::-1]])
    assert split_two_heads(0.0, n_layer=2, scores=scores, n_most=6) == [[6, 4], [4, 6]]


def test_no_layer_takes_rows_from_another():
    demand = make_demand(n_layer=3, n_kv=24, seed=1)
    louder = demand.scores * np.array([1, 1000, 1e-6], np.float32)[:, None, None]
    allocation = Ada().allocate(dataclasses.replace(demand, scores=louder))
    assert allocation.sum(axis=1).tolist() == [16, 16, 16]
    np.testing.assert_array_equal(allocation, Ada().allocate(demand))


def test_a_layer_with_few_rows_gives_all_it_cannot_use_to_the_other_layers():
    demand = make_demand(budget=10, n_layer=3, n_kv=30, n_rows=[[3, 3], [30, 5], [30, 30]])
    assert Ada().allocate(demand).sum(axis=1).tolist() == [6, 27, 27]


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_ada_is_the_repositorys_rule_to_a_row(seed, base):
    """round(c * (1 - floor) + int(base * floor)) of each head, which may miss the total."""
    rng = np.random.default_rng(seed)
    scores = rng.random((1, 4, 40), np.float32) ** rng.integers(1, 9, (1, 4, 1))
    best = np.argsort(-scores.ravel(), kind="stable")[: 4 * base]
    counts = np.bincount(best // 40, minlength=4)
    theirs = np.round(counts * 0.8 + int(base * 0.2))
    demand = make_demand(budget=base, n_layer=1, n_head_kv=4, n_kv=40, scores=scores)
    assert np.abs(Ada(floor=0.2).allocate(demand)[0] - theirs).max() <= 1.5


# Global

UNEVEN = np.array([[[9, 8, 7, 1]], [[6, 5, 0.5, 0.4]]], np.float32)


def split_two_layers(scores, **knobs):
    n_kv = scores.shape[-1]
    demand = make_demand(budget=2, n_layer=2, n_head_kv=1, n_kv=n_kv, scores=scores)
    return Global(**knobs).allocate(demand).ravel().tolist()


def test_as_they_come_the_best_four_rows_are_9_8_7_6():
    assert split_two_layers(UNEVEN, floor=0, normalise="none") == [3, 1]
    assert split_two_layers(UNEVEN, floor=0.6, normalise="none") == [2, 2]


def test_as_shares_of_a_layer_the_best_four_are_6_5_9_8():
    """0.50 and 0.42 of 11.9, 0.36 and 0.32 of 25."""
    assert split_two_layers(UNEVEN, floor=0) == [2, 2]


@pytest.mark.parametrize("normalise", ["layer", "head"])
def test_the_scale_of_a_layer_does_not_matter(normalise):
    louder = UNEVEN * np.array([1, 1000], np.float32)[:, None, None]
    quiet = split_two_layers(UNEVEN, normalise=normalise)
    assert split_two_layers(louder, normalise=normalise) == quiet
    assert split_two_layers(louder, floor=0, normalise="none") == [0, 4]


def test_shares_of_a_head_leave_only_its_shape():
    """Two heads of one layer, one ten times the other: alike as heads, not in their layer."""
    scores = np.array([[[50, 30, 20, 10], [5, 3, 2, 1]]], np.float32)
    demand = make_demand(budget=2, n_layer=1, n_kv=4, scores=scores)
    by_head = Global(floor=0, normalise="head").allocate(demand)
    by_layer = Global(floor=0, normalise="layer").allocate(demand)
    assert by_head.tolist() == [[2, 2]]
    assert by_layer.tolist() == [[4, 0]]


def test_scores_below_zero_keep_their_order():
    """Raised to 3, 2, 1, 0 of 6 and 3, 3, 3, 0 of 9: after 1/2, four tie at 1/3 for three places."""
    scores = np.array([[[-1, -2, -3, -4]], [[-1, -1, -1, -4]]], np.float32)
    assert split_two_layers(scores, floor=0) == [2, 2]


def test_a_layer_that_has_more_rows_is_not_preferred_for_it():
    """Shares of a mean would favour the first layer: it is divided by more rows."""
    scores = np.zeros((2, 1, 40), np.float32)
    scores[0], scores[1, 0, -10:] = 1 / 40, 1 / 10
    rows = np.array([[40], [10]])
    demand = make_demand(budget=5, n_layer=2, n_head_kv=1, n_kv=40, n_rows=rows, scores=scores)
    assert Global(floor=0).allocate(demand).ravel().tolist() == [0, 10]


# CAKE


def cake_demand(attention, *, n_window=0, budget=50, n_kv=200, n_head_kv=1):
    """Attention (n_layer, n_head, n_obs, n) in the first and last places of longer rows."""
    observations = []
    for layer, attn in enumerate(np.asarray(attention, np.float64)):
        wide = np.zeros((*attn.shape[:2], n_kv))
        wide[..., : attn.shape[2] - n_window] = attn[..., : attn.shape[2] - n_window]
        wide[..., n_kv - n_window :] = attn[..., attn.shape[2] - n_window :]
        observations.append(
            Observation(
                layer=layer,
                n_obs=attn.shape[1],
                n_window=n_window,
                positions=np.tile(np.arange(n_kv, dtype=np.int32), (n_head_kv, 1)),
                attention=attention_of(wide),
            )
        )
    demand = make_demand(budget=budget, n_layer=len(attention), n_head_kv=n_head_kv, n_kv=n_kv)
    return dataclasses.replace(demand, observations=observations)


SPREAD = [[[0.25, 0.75, 0.0], [0.75, 0.25, 0.0]]]
NARROW = [[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]]


def test_a_layer_gets_the_share_of_its_preference():
    """Entropy 0.5623 and 0.6931, variance 0.1250 and 0.03125, the last row being the window's."""
    demand = cake_demand([SPREAD, NARROW], n_window=1)
    preference = np.array([0.56234 * 0.125, 0.69315 * 0.03125])
    share = preference / preference.sum()
    np.testing.assert_array_equal(
        Cake(tau1=1, tau2=1).allocate(demand).ravel(), np.round(100 * share)
    )
    gentler = np.sqrt([0.56234, 0.69315]) * np.array([0.125, 0.03125]) ** 0.25
    np.testing.assert_array_equal(
        Cake(tau1=2, tau2=4).allocate(demand).ravel(), np.round(100 * gentler / gentler.sum())
    )


def test_heads_add_up_and_share_alike():
    """A group that says the same twice doubles both: the shares stay."""
    once = Cake().allocate(cake_demand([SPREAD, NARROW], n_window=1))
    twice = cake_demand(np.repeat([SPREAD, NARROW], 4, axis=1), n_window=1, n_head_kv=2)
    assert np.abs(Cake().allocate(twice) - once).max() <= 1


def test_a_window_that_is_no_part_of_the_rows_changes_nothing():
    """A probe stands behind the rows that are split, and is gone when they are."""
    demand = cake_demand([SPREAD, NARROW], n_window=1)
    longer = cake_demand([SPREAD, NARROW], n_window=1, n_kv=205).observations
    np.testing.assert_array_equal(
        Cake().allocate(demand),
        Cake().allocate(dataclasses.replace(demand, observations=longer)),
    )


@pytest.mark.parametrize("n_obs", [1, 8])
def test_rounding_is_no_variance(n_obs):
    """Attention that never moves, or is seen once, prefers no layer."""
    rng = np.random.default_rng(3)
    attn = rng.dirichlet(np.full(200, 0.1), (4, 3, 1)).repeat(n_obs, axis=2)
    demand = cake_demand(attn, n_head_kv=3)
    assert (Cake().allocate(demand) == 50).all()


def test_a_window_of_all_rows_prefers_no_layer():
    demand = cake_demand([SPREAD, NARROW], n_window=3, n_kv=3, budget=2)
    assert Cake().allocate(demand).ravel().tolist() == [2, 2]


# Knobs


@pytest.mark.parametrize(
    ("allocator", "knobs"),
    [
        (Pyramid, {"beta": 0.5}),
        (Pyramid, {"beta": np.nan}),
        (Ada, {"floor": -0.1}),
        (Ada, {"floor": np.nan}),
        (Global, {"floor": 1.1}),
        (Global, {"normalise": "mean"}),
        (Cake, {"tau1": 0.0}),
        (Cake, {"tau2": np.nan}),
    ],
)
def test_knobs_that_mean_nothing_are_refused_by_name(allocator, knobs):
    with pytest.raises(ConfigError, match=rf"{next(iter(knobs))}.* must be .* got"):
        allocator(**knobs)
