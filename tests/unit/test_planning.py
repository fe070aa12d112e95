import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from restkv_local.errors import PlanError
from restkv_local.planning import plan_eviction, protect_rows, select_keep
from restkv_local.types import EvictionPlan

HUGE = float(np.float32(1e30))
NASTY = st.sampled_from([np.nan, np.inf, -np.inf, HUGE, -HUGE, 0.0, -0.0, 1.0])
SCORE = st.one_of(st.floats(width=32), NASTY)


def score_arrays(elements=SCORE, max_rows=40):
    return hnp.arrays(np.float32, st.integers(1, max_rows), elements=elements)


@st.composite
def cases(draw):
    """Scores, protection, a number of rows that can be met, and which rows are there."""
    scores = draw(score_arrays())
    protected = draw(hnp.arrays(bool, scores.size))
    present = np.arange(scores.size) >= draw(st.integers(0, scores.size))
    least = int((protected & present).sum())
    n_keep = draw(st.integers(least, scores.size + 3))
    return scores, protected, np.int32(n_keep), present


def by_a_stable_sort(scores, protected, n_keep, present):
    """What one head keeps, chosen the long way."""
    keep = protected & present
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-ranked, kind="stable")
    candidates = [row for row in order if present[row] and not protected[row]]
    keep[candidates[: max(0, n_keep - keep.sum())]] = True
    return keep


@given(cases())
def test_exactly_the_budget_stays_and_only_rows_that_are_there(case):
    *_, n_keep, present = case
    keep = select_keep(*case)
    assert keep.dtype == bool
    assert keep.shape == present.shape
    assert keep.sum() == min(n_keep, present.sum())
    assert not (keep & ~present).any()


@given(cases())
def test_protected_rows_survive_any_score(case):
    _, protected, _, present = case
    assert select_keep(*case)[protected & present].all()


@given(cases())
def test_nothing_evicted_beats_what_stays_and_ties_keep_the_older(case):
    scores, protected, _, present = case
    keep = select_keep(*case)
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    stays = np.flatnonzero(keep & ~protected)
    goes = np.flatnonzero(~keep & present)
    for kept in stays:
        for gone in goes:
            assert ranked[kept] > ranked[gone] or (ranked[kept] == ranked[gone] and kept < gone)


@given(cases())
def test_it_keeps_what_a_stable_sort_would(case):
    np.testing.assert_array_equal(select_keep(*case), by_a_stable_sort(*case))


@given(cases())
def test_without_a_mask_all_rows_are_there(case):
    scores, protected, _, _ = case
    n_keep = np.int32(protected.sum() + 1)
    everywhere = np.ones(scores.size, bool)
    np.testing.assert_array_equal(
        select_keep(scores, protected, n_keep), select_keep(scores, protected, n_keep, everywhere)
    )


@given(score_arrays(), st.integers(0, 5))
def test_a_budget_of_all_rows_keeps_all(scores, more):
    nothing = np.zeros(scores.size, bool)
    assert select_keep(scores, nothing, np.int32(scores.size + more)).all()


@given(cases(), st.integers(-1000, 1000))
def test_adding_a_constant_changes_nothing(case, constant):
    """Whole numbers, because a float sum may round two scores into a tie."""
    scores, *rest = case
    whole = np.nan_to_num(scores, posinf=9, neginf=-9).clip(-9, 9).round().astype(np.float32)
    np.testing.assert_array_equal(
        select_keep(whole, *rest), select_keep(whole + np.float32(constant), *rest)
    )


@given(cases(), SCORE)
def test_what_an_absent_place_scores_changes_nothing(case, score):
    scores, *rest, present = case
    other = np.where(present, scores, np.float32(score))
    np.testing.assert_array_equal(
        select_keep(scores, *rest, present), select_keep(other, *rest, present)
    )


@given(st.data())
def test_heads_are_chosen_as_if_alone(data):
    shape = tuple(data.draw(st.integers(1, 4)) for _ in range(3))
    scores = data.draw(hnp.arrays(np.float32, shape, elements=SCORE))
    protected, present = (data.draw(hnp.arrays(bool, shape)) for _ in range(2))
    least = (protected & present).sum(axis=-1)
    more = data.draw(hnp.arrays(np.int32, shape[:2], elements=st.integers(0, 5)))
    n_keep = (least + more).astype(np.int32)
    keep = select_keep(scores, protected, n_keep, present)
    for head in np.ndindex(*shape[:2]):
        alone = by_a_stable_sort(scores[head], protected[head], n_keep[head], present[head])
        np.testing.assert_array_equal(keep[head], alone)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_sinks_and_recent_survive_poisoned_neighbours(poison):
    scores = np.full(300, poison, np.float32)
    protected = protect_rows(300, n_sink=4, n_recent=32, n_pinned=10)
    scores[protected] = -np.inf
    keep = select_keep(scores, protected, np.int32(64))
    assert keep[:14].all()
    assert keep[268:].all()
    assert keep.sum() == 64


def test_nan_ranks_last_and_inf_first():
    scores = np.array([np.nan, 1, np.inf, -np.inf, 2], np.float32)
    nothing = np.zeros(5, bool)
    best = [np.flatnonzero(select_keep(scores, nothing, np.int32(n))).tolist() for n in (1, 3, 4)]
    assert best == [[2], [1, 2, 4], [0, 1, 2, 4]]


@pytest.mark.parametrize("budget", [255, 256, 257])
@pytest.mark.parametrize("n_kv", [255, 256, 257, 258])
def test_block_edges_are_exact(budget, n_kv):
    scores = np.random.default_rng(0).random((3, 2, n_kv), np.float32)
    protected = protect_rows(n_kv, n_sink=4, n_recent=32)
    plan = plan_eviction(scores, np.full((3, 2), budget, np.int32), protected)
    assert (plan.n_keep == min(budget, n_kv)).all()


@given(st.data())
def test_unequal_allocations_are_met_one_by_one(data):
    n_layer, n_head_kv, n_kv = (data.draw(st.integers(1, 4)) for _ in range(3))
    shape = (n_layer, n_head_kv)
    scores = data.draw(hnp.arrays(np.float32, (*shape, n_kv), elements=SCORE))
    allocation = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 6)))
    n_absent = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, n_kv)))
    present = np.arange(n_kv) >= n_absent[..., None]
    plan = plan_eviction(scores, allocation, np.zeros(n_kv, bool), present)
    np.testing.assert_array_equal(plan.n_keep, np.minimum(allocation, n_kv - n_absent))
    assert not (plan.keep & ~present).any()


def test_unequal_heads_keep_their_own_rows():
    """The second head has three rows: its sink is the first of them, and one may be chosen."""
    scores = np.array([[[0, 9, 1, 2, 0, 0], [7, 7, 7, 1, 2, 0]]], np.float32)
    n_absent = np.array([[0, 3]], np.int32)
    present = np.arange(6) >= n_absent[..., None]
    protected = protect_rows(6, n_sink=1, n_recent=1, n_absent=n_absent)
    plan = plan_eviction(scores, np.array([[4, 3]], np.int32), protected, present)
    assert [plan.rows(0, head).tolist() for head in (0, 1)] == [[0, 1, 3, 5], [3, 4, 5]]
    plan = plan_eviction(scores, np.array([[3, 2]], np.int32), protected, present)
    assert [plan.rows(0, head).tolist() for head in (0, 1)] == [[0, 1, 5], [3, 5]]


def test_one_row_can_stay():
    plan = plan_eviction(
        np.zeros((1, 1, 1), np.float32), np.ones((1, 1), np.int32), np.ones(1, bool)
    )
    assert plan.rows(0, 0).tolist() == [0]


def test_protection_may_differ_between_heads():
    protected = np.array([[[True, False, False], [False, False, True]]])
    plan = plan_eviction(np.zeros((1, 2, 3), np.float32), np.ones((1, 2), np.int32), protected)
    assert [plan.rows(0, head).tolist() for head in (0, 1)] == [[0], [2]]


def test_more_protected_rows_than_budget_are_refused_with_both_numbers():
    with pytest.raises(PlanError, match=r"3 rows are protected but only 2"):
        select_keep(np.zeros(5, np.float32), np.arange(5) < 3, np.int32(2))


def test_the_head_that_lacks_most_is_named_with_its_numbers():
    protected = np.arange(6) < np.array([[2], [5]])
    n_keep = np.array([1, 2], np.int32)
    with pytest.raises(PlanError, match=r"5 rows are protected but only 2"):
        select_keep(np.zeros((2, 6), np.float32), protected, n_keep)
    with pytest.raises(PlanError, match=r"5 rows are protected but only 1"):
        select_keep(np.zeros((2, 6), np.float32), protected, np.int32(1))


def test_protected_places_without_a_row_need_no_budget():
    present = np.arange(5) >= 3
    keep = select_keep(np.zeros(5, np.float32), np.ones(5, bool), np.int32(2), present)
    np.testing.assert_array_equal(keep, present)


@pytest.mark.parametrize(
    ("scores", "allocation", "protected", "present"),
    [
        ((2, 5), (1, 2), (5,), None),
        ((1, 2, 5), (2, 2), (5,), None),
        ((1, 2, 5), (1, 3), (5,), None),
        ((1, 2, 5), (1, 2), (6,), None),
        ((1, 2, 5), (1, 2), (2, 5), None),
        ((1, 2, 5), (1, 2), (5,), (5,)),
        ((1, 2, 5), (1, 2), (5,), (1, 2, 6)),
    ],
)
def test_shapes_that_disagree_are_refused(scores, allocation, protected, present):
    with pytest.raises(PlanError, match="must be"):
        plan_eviction(
            np.zeros(scores, np.float32),
            np.ones(allocation, np.int32),
            np.zeros(protected, bool),
            None if present is None else np.ones(present, bool),
        )


def test_a_plan_keeps_its_own_allocation():
    allocation = np.ones((1, 2), np.int32)
    plan = plan_eviction(np.zeros((1, 2, 3), np.float32), allocation, np.zeros(3, bool))
    allocation[:] = 3
    assert plan.allocation.tolist() == [[1, 1]]


def test_protected_rows_cover_a_short_cache():
    assert protect_rows(3, n_sink=4, n_recent=32).all()
    mask = protect_rows(10, n_sink=1, n_recent=2, n_pinned=1)
    assert np.flatnonzero(mask).tolist() == [0, 1, 8, 9]


def test_the_first_rows_of_a_short_head_are_its_own():
    n_absent = np.array([[0, 4], [8, 10]], np.int32)
    mask = protect_rows(10, n_sink=1, n_recent=2, n_pinned=1, n_absent=n_absent)
    assert mask.shape == (2, 2, 10)
    rows = [np.flatnonzero(mask[head]).tolist() for head in np.ndindex(2, 2)]
    assert rows == [[0, 1, 8, 9], [4, 5, 8, 9], [8, 9], []]


def plan_of(*keep, n_kv=5):
    mask = np.zeros((1, len(keep), n_kv), bool)
    for head, rows in enumerate(keep):
        mask[0, head, list(rows)] = True
    return EvictionPlan(mask, np.full((1, len(keep)), 2, np.int32))


def test_plans_compare_by_content_and_print():
    plan = plan_of((0, 2), (1, 4))
    assert plan == plan_of((0, 2), (1, 4))
    assert plan != plan_of((0, 2), (1, 3))
    assert plan != plan_of((0, 2), (1,))
    assert plan != plan_of((0, 2), (1, 4), n_kv=6)
    assert plan != EvictionPlan(plan.keep, plan.allocation + 1)
    assert plan != "plan"
    assert str(plan) == "keep 2 of 5 rows in 1 layers x 2 KV heads"
    assert "keep 1..2 of" in str(plan_of((0, 2), (1,)))


def test_a_plan_counts_and_lists_its_rows():
    plan = plan_of((0, 2), (1,))
    assert plan.n_keep.tolist() == [[2, 1]]
    assert plan.n_keep.dtype == np.int32
    assert plan.rows(0, 0).tolist() == [0, 2]
    assert plan.rows(0, 1).dtype == np.int32


@pytest.mark.parametrize(("keep", "allocation"), [((2, 5), (2,)), ((1, 2, 5), (1, 3))])
def test_a_plan_whose_shapes_disagree_is_refused(keep, allocation):
    with pytest.raises(PlanError, match="keep must be"):
        EvictionPlan(np.zeros(keep, bool), np.zeros(allocation, np.int32))
