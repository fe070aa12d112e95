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
    """Scores, protection and a number of rows that can be met."""
    scores = draw(score_arrays())
    protected = draw(hnp.arrays(bool, scores.size))
    n_keep = draw(st.integers(int(protected.sum()), scores.size + 3))
    return scores, protected, n_keep


@given(cases())
def test_exactly_the_budget_stays_in_ascending_order(case):
    scores, protected, n_keep = case
    keep = select_keep(scores, protected, n_keep)
    assert keep.dtype == np.int32
    assert keep.size == min(n_keep, scores.size)
    assert (np.diff(keep) > 0).all()
    assert keep.size == 0 or (keep[0] >= 0 and keep[-1] < scores.size)


@given(cases())
def test_protected_rows_survive_any_score(case):
    scores, protected, n_keep = case
    assert set(np.flatnonzero(protected)) <= set(select_keep(scores, protected, n_keep))


@given(cases())
def test_nothing_evicted_beats_what_stays_and_ties_keep_the_older(case):
    scores, protected, n_keep = case
    keep = set(select_keep(scores, protected, n_keep))
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    stays = [row for row in range(scores.size) if row in keep and not protected[row]]
    goes = [row for row in range(scores.size) if row not in keep]
    for kept in stays:
        for gone in goes:
            assert ranked[kept] > ranked[gone] or (ranked[kept] == ranked[gone] and kept < gone)


@given(score_arrays(), st.integers(0, 5))
def test_a_budget_of_all_rows_keeps_all(scores, more):
    keep = select_keep(scores, np.zeros(scores.size, bool), scores.size + more)
    np.testing.assert_array_equal(keep, np.arange(scores.size))


@given(cases(), st.integers(-1000, 1000))
def test_adding_a_constant_changes_nothing(case, constant):
    """Whole numbers, because a float sum may round two scores into a tie."""
    scores, protected, n_keep = case
    whole = np.nan_to_num(scores, posinf=9, neginf=-9).clip(-9, 9).round().astype(np.float32)
    np.testing.assert_array_equal(
        select_keep(whole, protected, n_keep),
        select_keep(whole + np.float32(constant), protected, n_keep),
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_sinks_and_recent_survive_poisoned_neighbours(poison):
    scores = np.full(300, poison, np.float32)
    protected = protect_rows(300, n_sink=4, n_recent=32, n_pinned=10)
    scores[protected] = -np.inf
    keep = select_keep(scores, protected, 64)
    assert set(range(14)) | set(range(268, 300)) <= set(keep)
    assert keep.size == 64


def test_nan_ranks_last_and_inf_first():
    scores = np.array([np.nan, 1, np.inf, -np.inf, 2], np.float32)
    nothing = np.zeros(5, bool)
    assert select_keep(scores, nothing, 1).tolist() == [2]
    assert select_keep(scores, nothing, 3).tolist() == [1, 2, 4]
    assert select_keep(scores, nothing, 4).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("budget", [255, 256, 257])
@pytest.mark.parametrize("n_kv", [255, 256, 257, 258])
def test_block_edges_are_exact(budget, n_kv):
    scores = [np.random.default_rng(0).random((2, n_kv), np.float32) for _ in range(3)]
    protected = protect_rows(n_kv, n_sink=4, n_recent=32)
    plan = plan_eviction(scores, np.full((3, 2), budget, np.int32), protected)
    assert (plan.n_keep == min(budget, n_kv)).all()
    assert plan.as_array().shape == (3, 2, min(budget, n_kv))


@given(st.data())
def test_unequal_allocations_are_met_one_by_one(data):
    n_layer, n_head_kv, n_kv = (data.draw(st.integers(1, 4)) for _ in range(3))
    shape = (n_layer, n_head_kv)
    scores = list(data.draw(hnp.arrays(np.float32, (*shape, n_kv), elements=SCORE)))
    allocation = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 6)))
    plan = plan_eviction(scores, allocation, np.zeros(n_kv, bool))
    np.testing.assert_array_equal(plan.n_keep, np.minimum(allocation, n_kv))


def test_one_row_can_stay():
    scores = [np.zeros((1, 1), np.float32)]
    plan = plan_eviction(scores, np.ones((1, 1), np.int32), np.ones(1, bool))
    assert plan.keep[0][0].tolist() == [0]


def test_protection_may_differ_between_heads():
    scores = [np.zeros((2, 3), np.float32)]
    protected = np.array([[[True, False, False], [False, False, True]]])
    plan = plan_eviction(scores, np.ones((1, 2), np.int32), protected)
    assert [rows.tolist() for rows in plan.keep[0]] == [[0], [2]]


def test_more_protected_rows_than_budget_are_refused_with_both_numbers():
    with pytest.raises(PlanError, match=r"3 rows are protected but only 2"):
        select_keep(np.zeros(5, np.float32), np.arange(5) < 3, 2)


@pytest.mark.parametrize(
    ("scores", "allocation", "protected"),
    [
        ([], (0, 2), (5,)),
        ([(2, 5)], (2, 2), (5,)),
        ([(2, 5)], (1, 3), (5,)),
        ([(2, 5), (2, 6)], (2, 2), (5,)),
        ([(2, 5)], (1, 2), (6,)),
        ([(2, 5)], (1, 2), (2, 5)),
    ],
)
def test_shapes_that_disagree_are_refused(scores, allocation, protected):
    with pytest.raises(PlanError, match="must be"):
        plan_eviction(
            [np.zeros(shape, np.float32) for shape in scores],
            np.ones(allocation, np.int32),
            np.zeros(protected, bool),
        )


def test_protected_rows_cover_a_short_cache():
    assert protect_rows(3, n_sink=4, n_recent=32).all()
    mask = protect_rows(10, n_sink=1, n_recent=2, n_pinned=1)
    assert np.flatnonzero(mask).tolist() == [0, 1, 8, 9]


def rows(*values):
    return np.array(values, np.int32)


def plan_of(*keep, n_kv=5):
    return EvictionPlan(n_kv, np.full((1, len(keep)), 2, np.int32), [list(keep)])


def test_plans_compare_by_content_and_print():
    plan = plan_of(rows(0, 2), rows(1, 4))
    assert plan == plan_of(rows(0, 2), rows(1, 4))
    assert plan != plan_of(rows(0, 2), rows(1, 3))
    assert plan != plan_of(rows(0, 2), rows(1))
    assert plan != plan_of(rows(0, 2), rows(1, 4), n_kv=6)
    assert plan != "plan"
    assert str(plan) == "keep 2 of 5 rows in 1 layers x 2 KV heads"
    assert "keep 1..2 of" in str(plan_of(rows(0, 2), rows(1)))


@pytest.mark.parametrize("bad", [rows(2, 1), rows(1, 1), rows(-1, 0), rows(4, 5)])
def test_a_keep_list_that_cannot_be_compacted_is_refused(bad):
    with pytest.raises(PlanError, match="layer 0, KV head 1"):
        plan_of(rows(0, 2), bad)


def test_lists_of_unequal_length_are_no_array():
    with pytest.raises(PlanError, match="1 to 2 rows"):
        plan_of(rows(0, 2), rows(1)).as_array()
