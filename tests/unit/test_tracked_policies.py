import numpy as np
import pytest

from restkv_local.errors import ConfigError
from restkv_local.planning import plan_eviction, protect_rows
from restkv_local.policies.h2o import H2O
from restkv_local.policies.lru import LRU
from restkv_local.types import Observation


def observe_tracked(*heads, positions=None):
    """Observation of a layer whose KV heads have tracked these figures."""
    tracked = np.array(heads, np.float32)
    if positions is None:
        positions = np.tile(np.arange(tracked.shape[1], dtype=np.int32), (len(heads), 1))
    return Observation(layer=0, n_obs=0, n_window=0, positions=positions, tracked=tracked)


def kept_rows(policy, observation, budget, *, n_sink=0, n_recent=1):
    """Rows of each KV head after an eviction to ``budget``."""
    protected = protect_rows(
        observation.n_kv, n_sink=n_sink, n_recent=n_recent, n_absent=observation.n_absent
    )
    present = observation.positions >= 0
    candidates = present & ~protected
    allocation = np.minimum(budget, present.sum(axis=1)).astype(np.int32)
    n_select = allocation - (present & protected).sum(axis=1).astype(np.int32)
    scores = policy.score(observation)
    scores = policy.rerank(scores, observation, candidates, n_select)
    plan = plan_eviction(scores[None], allocation[None], protected[None], present[None])
    return [plan.rows(0, head).tolist() for head in range(observation.n_head_kv)]


def test_h2o_keeps_half_recent_and_half_heavy():
    """Budget 6: rows 7, 8, 9 are the newest, and of the rest 1, 4, 0 are the heaviest."""
    observation = observe_tracked([5, 9, 1, 2, 7, 3, 4, 0.1, 0.2, 0.3])
    assert kept_rows(H2O(), observation, 6) == [[0, 1, 4, 7, 8, 9]]


def test_h2o_counts_protected_newest_rows_and_leaves_the_sinks_out():
    observation = observe_tracked([0, 0, 1, 2, 7, 3, 4, 0.1, 0.2, 0.3])
    # Budget 8: four recent rows, two of them protected; two sinks; two heavy rows.
    assert kept_rows(H2O(), observation, 8, n_sink=2, n_recent=2) == [[0, 1, 4, 5, 6, 7, 8, 9]]
    # All recent rows are protected already: the heavy ones have the rest to themselves.
    assert kept_rows(H2O(), observation, 6, n_recent=3) == [[4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, [0, 1, 4, 9]), (1.0, [6, 7, 8, 9])])
def test_the_share_of_recent_rows_is_a_knob(ratio, kept):
    observation = observe_tracked([5, 9, 1, 2, 7, 3, 4, 0.1, 0.2, 0.3])
    assert kept_rows(H2O(recent_ratio=ratio), observation, 4) == [kept]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_bounds_is_refused(ratio):
    with pytest.raises(ConfigError, match="recent_ratio"):
        H2O(recent_ratio=ratio)


def test_each_head_has_its_own_heavy_hitters_and_its_own_rows():
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 7], [-1, -1, -1, 3, 4, 5, 6, 7]], np.int32)
    observation = observe_tracked(
        [9, 0, 0, 0, 8, 0, 0, 0], [99, 99, 99, 7, 0, 6, 0, 0], positions=positions
    )
    assert kept_rows(H2O(), observation, 4) == [[0, 4, 6, 7], [3, 5, 6, 7]]


def test_new_rows_do_not_starve():
    """They have received little yet, whatever they are worth."""
    observation = observe_tracked(np.r_[np.full(90, 10.0), np.full(10, 0.01)])
    assert kept_rows(H2O(), observation, 20)[0][-10:] == list(range(90, 100))


def test_a_figure_at_the_end_of_float32_does_not_pass_the_recent_rows():
    limit = np.finfo(np.float32).max
    observation = observe_tracked([limit, limit, limit, 0, 0, 0])
    assert kept_rows(H2O(), observation, 4) == [[0, 1, 4, 5]]


def test_lru_evicts_what_was_used_longest_ago():
    observation = observe_tracked([9, 3, 2, 8, 4, 5, 9, 7, 8, 9])
    assert kept_rows(LRU(), observation, 5) == [[0, 3, 6, 8, 9]]


def test_lru_keeps_the_older_of_equal_rows():
    observation = observe_tracked([5, 5, 5, 5, 5, 5])
    assert kept_rows(LRU(), observation, 3) == [[0, 1, 5]]


def test_positions_are_distinct_up_to_their_bound():
    newest = 2**24
    uses = np.arange(newest - 4, newest + 1).astype(np.float32)
    assert np.unique(uses).size == 5
