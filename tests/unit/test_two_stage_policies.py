import numpy as np
import pytest

from restkv_local.errors import ConfigError
from restkv_local.policies.criticalkv import CriticalKV
from restkv_local.policies.defensivekv import DefensiveKV
from restkv_local.policies.snapkv import SnapKV
from restkv_local.policies.stages import newest, protected_rows, put_first, strongest
from restkv_local.types import Observation
from tests.observations import make_observation


def observe_rows(norm, positions=None, n_window=0, **attention):
    """Observation of as many query heads as ``norm`` has, and one KV head unless positions say so."""
    norm = np.array(norm, np.float32)
    if positions is None:
        positions = [range(norm.shape[1])]
    return Observation(
        layer=0,
        n_obs=2,
        n_window=n_window,
        positions=np.array(positions, np.int32),
        attention={name: np.array(rows, np.float32) for name, rows in attention.items()},
        value_norm=norm,
    )


def select(scores, candidates, n_select):
    """Rows that the planner would choose of one KV head."""
    chosen = strongest(scores, candidates, np.array([n_select]))
    return np.flatnonzero(chosen[0]).tolist()


def rerank(policy, observation, n_select, protected=()):
    candidates = observation.positions >= 0
    candidates[:, list(protected)] = False
    n_select = np.array([n_select], np.int32)
    scores = policy.score(observation)
    again = policy.rerank(scores, observation, candidates, n_select)
    return select(again, candidates, n_select[0])


def test_strongest_marks_the_older_of_equal_rows_and_candidates_only():
    scores = np.array([[3, 1, 3, 3, 9], [0, 0, 0, 0, 0]], np.float32)
    candidates = np.array([[1, 1, 1, 1, 0], [0, 1, 0, 1, 1]], bool)
    marked = strongest(scores, candidates, np.array([2, 5]))
    assert marked.tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]]
    assert not strongest(scores, candidates, np.array([0, 0])).any()


def test_newest_marks_candidates_only():
    candidates = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
    assert newest(candidates, np.array([2, 1])).tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]


def test_rows_put_first_pass_every_other_and_leave_their_order():
    limit = np.finfo(np.float32).max
    scores = np.array([[-2, limit, 5, -limit]], np.float32)
    raised = put_first(scores, np.array([[1, 0, 0, 0]], bool))
    assert np.argsort(-raised[0]).tolist() == [0, 1, 2, 3]
    assert np.isfinite(raised).all()


def test_protected_rows_are_there_and_no_candidates():
    observation = observe_rows(np.ones((1, 4)), positions=[[-1, 3, 4, 5]])
    candidates = np.array([[0, 0, 1]], bool)  # the last row belongs to a question
    assert protected_rows(observation, candidates).tolist() == [[0, 1, 0]]


def test_critical_allocators_see_snapkv_scores():
    policy = CriticalKV(kernel=5)
    observation = make_observation(policy.request(8, 100, 6))
    np.testing.assert_array_equal(policy.score(observation), SnapKV(kernel=5).score(observation))


def test_critical_chooses_half_by_attention_and_half_by_attention_times_value():
    """Of 4 rows: 0 and 1 have the most attention, 4 and 5 the largest product among the rest."""
    attention = [[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]]
    observation = observe_rows([[1, 1, 1, 2, 8, 7]], mean=attention)
    policy = CriticalKV(kernel=1)
    assert rerank(policy, observation, 4) == [0, 1, 4, 5]
    assert rerank(CriticalKV(kernel=1, first_stage=1.0), observation, 4) == [0, 1, 2, 3]
    # 0.4, 0.3, 0.1, 0.2, 0.4, 0.35
    assert rerank(CriticalKV(kernel=1, first_stage=0.0), observation, 3) == [0, 4, 5]


def test_critical_counts_protected_rows_towards_the_first_stage():
    """Budget 6 of which 2 are protected: the first stage of 3 has one row left."""
    attention = [[0.0, 0.0, 0.4, 0.3, 0.1, 0.1, 0.05, 0.05]]
    observation = observe_rows([[9, 9, 1, 0.1, 1, 2, 8, 7]], mean=attention)
    assert rerank(CriticalKV(kernel=1), observation, 4, protected=(0, 1)) == [2, 5, 6, 7]


def test_critical_rows_without_attention_are_ranked_by_their_values():
    observation = observe_rows([[1, 3, 2, 0.5]], mean=[[1, 0, 0, 0]])
    assert rerank(CriticalKV(kernel=1), observation, 2) == [0, 1]


def test_critical_takes_the_mean_norm_of_a_group():
    observation = observe_rows([[1, 6, 0], [1, 0, 5]], mean=[[0.2, 0.1, 0.1]] * 2)
    assert rerank(CriticalKV(kernel=1), observation, 2) == [0, 1]


def test_defensive_score_is_the_floored_maximum_times_the_norm():
    observation = observe_rows(
        [[1, 2, 4, 1], [3, 2, 4, 3]],
        n_window=1,
        max=[[0.5, 0.0, 0.1, 0.3], [0.1, 0.2, 0.0, 0.9]],
        mean=np.zeros((2, 4)),
    )
    # Past maxima 0.5, 0.2, 0.1, their mean 0.8 / 3; norms 2, 2, 4, 2 of a mean of 2.5.
    floor = 0.8 / 3
    expected = np.array([0.5 * 2, floor * 2, floor * 4, 0.9 * 2]) / 2.5
    np.testing.assert_allclose(DefensiveKV(kernel=1).score(observation)[0], expected, rtol=1e-6)


def test_defensive_pools_each_query_head_before_the_maximum():
    """Row 1 lies between the heads' spikes; the other order would give it both, 0.5."""
    observation = observe_rows(
        np.ones((2, 5)), max=[[0.9, 0, 0, 0, 0], [0, 0, 0.6, 0, 0]], mean=np.zeros((2, 5))
    )
    scores = DefensiveKV(kernel=3).score(observation)[0]
    np.testing.assert_allclose(scores, [0.6, 0.3, 0.26, 0.26, 0.26], rtol=1e-6)


def test_defensive_divides_by_one_figure_of_the_layer():
    """Norms compare heads; a layer of larger values does not outbid another."""
    rows = {"max": np.full((2, 3), 0.5), "mean": np.zeros((2, 3))}
    positions = [range(3), range(3)]
    small = observe_rows([[1, 1, 1], [3, 3, 3]], positions, **rows)
    large = observe_rows([[10, 10, 10], [30, 30, 30]], positions, **rows)
    np.testing.assert_allclose(
        DefensiveKV(kernel=1).score(small), [[0.125] * 3, [0.375] * 3], rtol=1e-6
    )
    np.testing.assert_allclose(
        DefensiveKV(kernel=1).score(small), DefensiveKV(kernel=1).score(large), rtol=1e-6
    )


def test_defensive_first_covers_the_mass_of_the_mean_attention():
    """0.5 + 0.3 is short of 0.9, with 0.12 it is not: rows 1, 3, 4. The rest goes by score."""
    observation = observe_rows(
        [[1, 1, 9, 1, 1, 8]],
        max=[[0.1] * 6],
        mean=[[0.03, 0.5, 0.03, 0.3, 0.12, 0.02]],
    )
    policy = DefensiveKV(kernel=1)
    assert rerank(policy, observation, 3) == [1, 3, 4]
    assert rerank(policy, observation, 5) == [1, 2, 3, 4, 5]
    # Fewer than it takes: the strongest of them.
    assert rerank(policy, observation, 2) == [1, 3]
    assert rerank(DefensiveKV(kernel=1, mass=0.0), observation, 2) == [2, 5]


def test_defensive_protected_rows_count_with_their_mass():
    """The protected row holds 0.88: one more row reaches 0.9."""
    observation = observe_rows(
        [[1, 1, 1, 9, 8]], max=[[0.1] * 5], mean=[[0.88, 0.03, 0.04, 0.03, 0.02]]
    )
    assert rerank(DefensiveKV(kernel=1), observation, 2, protected=(0,)) == [2, 3]


def test_defensive_floor_is_of_the_rows_that_are_there():
    observation = observe_rows(
        np.ones((1, 6)),
        positions=[[-1, -1, 2, 3, 4, 5]],
        n_window=2,
        max=[[0, 0, 0.4, 0.0, 0.3, 0.3]],
        mean=np.zeros((1, 6)),
    )
    scores = DefensiveKV(kernel=1).score(observation)[0]
    np.testing.assert_allclose(scores[2:], [0.4, 0.2, 0.3, 0.3], rtol=1e-6)


def test_defensive_values_of_no_length_stay_finite():
    observation = observe_rows(np.zeros((1, 3)), max=[[1, 0, 0]], mean=[[1, 0, 0]])
    assert DefensiveKV().score(observation).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_a_share_outside_its_bounds_is_refused(bad):
    with pytest.raises(ConfigError, match="first_stage"):
        CriticalKV(first_stage=bad)
    with pytest.raises(ConfigError, match="mass"):
        DefensiveKV(mass=bad)
