"""Policies that look at keys and values, not at observed attention."""

import numpy as np

from restkv_local.policies.expected_attention import ExpectedAttention
from restkv_local.policies.keydiff import KeyDiff
from restkv_local.types import Observation
from tests.observations import make_layer, make_observation

POSITIONS = np.arange(3, dtype=np.int32)[None]


def test_keydiff_keeps_the_key_least_like_the_mean():
    """Directions 0, 0 and 90 degrees: the mean points at atan(1/2), whatever the lengths."""
    k = np.array([[[5, 0], [1, 0], [0, 0.1]]], np.float32)
    q, _, v, factors = make_layer(n_head=1, n_head_kv=1, n_kv=3, n_obs=1, head_dim=2)
    policy = KeyDiff()
    observation = make_observation(policy.request(1, 10, 1), tensors=(q, k, v, factors))
    cosines = np.array([2, 2, 1]) / np.sqrt(5)
    np.testing.assert_allclose(policy.score(observation)[0], -cosines, rtol=1e-6)


def test_keydiff_looks_at_no_query():
    request = KeyDiff().request(8, 100, 6)
    assert request.reductions == ()
    assert request.distance == "none"
    assert not request.drift


def test_expected_attention_is_the_group_mean_times_the_length_of_the_value():
    observation = Observation(
        layer=0,
        n_obs=0,
        n_window=0,
        positions=POSITIONS,
        key_score=np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32),
        value_norm=np.array([[1, 4, 2], [1, 4, 2]], np.float32),
    )
    np.testing.assert_allclose(
        ExpectedAttention().score(observation)[0], [0.31, 0.21 * 4, 0.51 * 2], rtol=1e-6
    )
    np.testing.assert_allclose(
        ExpectedAttention(epsilon=0.0).score(observation)[0], [0.3, 0.8, 1.0], rtol=1e-6
    )


def test_expected_attention_wants_plain_values_and_the_moments_of_all_queries():
    policy = ExpectedAttention()
    assert policy.track == "queries"
    request = policy.request(8, 100, 6)
    assert not request.project
    q, k, v, _ = make_layer()
    observation = make_observation(request, tensors=(q, k, v, None))
    np.testing.assert_allclose(
        observation.value_norm, np.repeat(np.linalg.norm(v, axis=-1), 2, axis=0), rtol=1e-6
    )
