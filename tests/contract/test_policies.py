"""Every policy in the registry through the same questions."""

import dataclasses

import numpy as np
import pytest

from restkv_local.config import Config
from restkv_local.errors import ConfigError
from restkv_local.planning import plan_eviction
from restkv_local.policies.registry import POLICIES, make_policy
from tests.observations import make_layer, make_observation, make_one_hot_layer

SHORT, LONG = 100, 100_000


@pytest.fixture(params=POLICIES, ids=str)
def policy(request):
    return make_policy(request.param)


def observe_for(policy, *, max_position=SHORT, **kwargs):
    return make_observation(policy.request(8, max_position, 10), **kwargs)


def test_its_registry_name_is_its_own(policy):
    assert POLICIES[policy.name] is type(policy)
    assert make_policy(policy.name, Config()) == make_policy(policy.name)


def test_it_says_what_it_is_in_one_line(policy):
    for text in (policy.summary, policy.source):
        assert text
        assert "\n" not in text


def test_it_is_frozen_data(policy):
    assert dataclasses.is_dataclass(policy)
    assert isinstance(hash(policy), int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.seed = 3


@pytest.mark.parametrize("max_position", [SHORT, LONG])
@pytest.mark.parametrize("n_gqa", [1, 2, 4], ids="gqa={}".format)
@pytest.mark.parametrize("n_kv", [1, 2, 7, 24, 255, 256, 257])
def test_scores_have_the_contract_shape(policy, n_gqa, n_kv, max_position):
    observation = observe_for(
        policy, max_position=max_position, n_head=4, n_head_kv=4 // n_gqa, n_kv=n_kv
    )
    scores = policy.score(observation)
    assert scores.shape == (4 // n_gqa, n_kv)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_scoring_twice_gives_the_same_and_changes_no_input(policy):
    observation, untouched = observe_for(policy), observe_for(policy)
    first = policy.score(observation)
    np.testing.assert_array_equal(first, policy.score(observation))
    np.testing.assert_array_equal(observation.positions, untouched.positions)
    for name, array in observation.attention.items():
        np.testing.assert_array_equal(array, untouched.attention[name])
    for name in ("distance", "indicator", "drift"):
        np.testing.assert_array_equal(getattr(observation, name), getattr(untouched, name))


def test_a_row_with_all_the_attention_stays_finite_and_is_kept(policy):
    """At a == 1 the odds are infinite and v - o is 0: the row ranked last, or first as NaN."""
    hot = 8
    observation = observe_for(policy, tensors=make_one_hot_layer(hot))
    scores = policy.score(observation)
    assert np.isfinite(scores).all()
    if observation.attention:
        assert (scores[:, hot] == scores.max(axis=1)).all()
        assert (scores[:, hot] > 0).all()


def test_equal_tokens_score_finite(policy):
    q, k, v, factors = make_layer()
    tensors = q, np.zeros_like(k), np.ones_like(v), factors
    assert np.isfinite(policy.score(observe_for(policy, tensors=tensors))).all()


def test_values_at_the_end_of_float32_stay_finite(policy):
    q, k, v, factors = make_layer()
    tensors = q, k, v * np.float32(1e37), factors / 10
    assert np.isfinite(policy.score(observe_for(policy, tensors=tensors))).all()


def test_its_scores_plan(policy):
    scores = [policy.score(observe_for(policy, layer=layer)) for layer in range(3)]
    plan = plan_eviction(scores, np.full((3, 2), 10, np.int32), np.zeros(24, bool))
    assert (plan.n_keep == 10).all()


@pytest.mark.parametrize("name", ["", "restKV", "nope"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError) as caught:
        make_policy(name)
    assert all(known in str(caught.value) for known in POLICIES)
    assert repr(name) in str(caught.value)
