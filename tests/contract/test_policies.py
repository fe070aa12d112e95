"""Every policy in the registry through the same questions."""

import dataclasses

import numpy as np
import pytest

from restkv_local.config import Config
from restkv_local.errors import ConfigError
from restkv_local.planning import plan_eviction, protect_rows
from restkv_local.policies.registry import POLICIES, make_policy
from tests.observations import (
    make_layer,
    make_observation,
    make_one_hot_layer,
    positions_with_gaps,
)

SHORT, LONG = 100, 100_000


@pytest.fixture(params=POLICIES, ids=str)
def policy(request):
    return make_policy(request.param)


def observe_for(policy, *, max_position=SHORT, **kwargs):
    request = policy.request(8, max_position, 10)
    return make_observation(request, track=policy.track, **kwargs)


def rank_again(policy, observation, *, n_select, n_protected=2, n_guide=0):
    """Scores before and after reranking, and the candidates; the oldest and the newest rows are protected."""
    n_rows = observation.n_kv - n_guide
    scores = policy.score(observation)[:, :n_rows]
    present = observation.positions[:, :n_rows] >= 0
    protected = protect_rows(
        n_rows, n_sink=n_protected, n_recent=n_protected, n_absent=observation.n_absent
    )
    candidates = present & ~protected
    n_select = np.minimum(n_select, candidates.sum(axis=1)).astype(np.int32)
    return scores, policy.rerank(scores, observation, candidates, n_select), candidates


def test_its_registry_name_is_its_own(policy):
    assert POLICIES[policy.name] is type(policy)
    assert make_policy(policy.name, Config()) == make_policy(policy.name)


def test_restkvs_own_options_are_no_other_policys(policy):
    """As Config says."""
    changed = Config(
        alpha=0.5, scale=9.0, tau=2.0, order="per_query", past_only=True, guide_reduction="mean"
    )
    assert (make_policy(policy.name, changed) == policy) == (policy.name != "restkv")


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
@pytest.mark.parametrize("n_gqa", [1, 3, 8], ids="gqa={}".format)
@pytest.mark.parametrize("n_kv", [1, 2, 7, 24, 255, 256, 257])
def test_scores_have_the_contract_shape(policy, n_gqa, n_kv, max_position):
    observation = observe_for(
        policy, max_position=max_position, n_head=2 * n_gqa, n_head_kv=2, n_kv=n_kv
    )
    scores = policy.score(observation)
    assert scores.shape == (2, n_kv)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("n_gqa", [1, 3, 8], ids="gqa={}".format)
@pytest.mark.parametrize("n_kv", [1, 7, 255, 256, 257])
@pytest.mark.parametrize("n_absent", [0, (0, 5)], ids=["all rows", "absent rows"])
def test_reranked_scores_have_the_contract_shape(policy, n_gqa, n_kv, n_absent):
    observation = observe_for(
        policy, n_head=2 * n_gqa, n_head_kv=2, n_kv=n_kv, n_absent=np.minimum(n_absent, n_kv - 1)
    )
    for n_select in (0, n_kv // 3, n_kv):
        before, after, _ = rank_again(policy, observation, n_select=n_select)
        assert after.shape == before.shape == (2, n_kv)
        assert after.dtype == np.float32
        assert np.isfinite(after).all()


def test_reranking_changes_no_input_and_repeats_itself(policy):
    observation, untouched = observe_for(policy), observe_for(policy)
    scores, first, candidates = rank_again(policy, observation, n_select=7)
    n_select = np.full(2, 7, np.int32)
    np.testing.assert_array_equal(first, policy.rerank(scores, observation, candidates, n_select))
    np.testing.assert_array_equal(scores, policy.score(untouched))
    assert (n_select == 7).all()


def test_the_rows_of_a_question_are_not_ranked(policy):
    """They are scored with the others and gone when the budget is split."""
    observation = observe_for(policy, n_absent=(0, 3))
    _, after, _ = rank_again(policy, observation, n_select=7, n_guide=4)
    assert after.shape == (2, 20)
    assert np.isfinite(after).all()


@pytest.mark.parametrize("n_absent", [(0, 5), (6, 23), 23], ids=str)
def test_rows_that_are_not_there_change_nothing(policy, n_absent):
    """Places before a head's oldest row may hold anything, NaN too."""
    q, k, v, factors = make_layer()
    absent = np.arange(24) < np.broadcast_to(n_absent, 2)[:, None]
    garbage = [np.where(absent[..., None], np.float32(np.nan), rows) for rows in (k, v)]
    clean, dirty = (
        observe_for(policy, tensors=(q, *rows, factors), n_absent=n_absent)
        for rows in ((k, v), garbage)
    )
    np.testing.assert_array_equal(policy.score(clean), policy.score(dirty))
    for observation in (clean, dirty):
        scores, after, candidates = rank_again(policy, observation, n_select=4)
        assert np.isfinite(scores).all()
        assert np.isfinite(after).all()
        assert not candidates[absent].any()


def test_a_head_scores_as_it_would_without_the_absent_places(policy):
    """Smoothing must not draw the oldest row towards nothing."""
    if policy.name == "random" or policy.track in ("sum", "last_use", "repeat"):
        pytest.skip("scores what the places were given")
    q, k, v, factors = make_layer()
    positions = positions_with_gaps(2, 24)
    long = observe_for(policy, tensors=(q, k, v, factors), positions=positions, n_absent=5)
    short = observe_for(
        policy, tensors=(q, k[:, 5:], v[:, 5:], factors), positions=positions[:, 5:]
    )
    found, expected = policy.score(long)[:, 5:], policy.score(short)
    if policy.request(8, SHORT, 10) is None:  # by place: only the order means anything
        found, expected = (np.argsort(scores, axis=1) for scores in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scoring_twice_gives_the_same_and_changes_no_input(policy):
    observation, untouched = observe_for(policy), observe_for(policy)
    first = policy.score(observation)
    np.testing.assert_array_equal(first, policy.score(observation))
    np.testing.assert_array_equal(observation.positions, untouched.positions)
    for name, array in observation.attention.items():
        np.testing.assert_array_equal(array, untouched.attention[name])
    for name in ("distance", "indicator", "drift", "value_norm", "key_score", "tracked"):
        np.testing.assert_array_equal(getattr(observation, name), getattr(untouched, name))


def test_a_row_with_all_the_attention_stays_finite_and_is_kept(policy):
    """At a == 1 the odds are infinite and v - o is 0: the row ranked last, or first as NaN."""
    hot = 8
    observation = observe_for(policy, tensors=make_one_hot_layer(hot))
    scores = policy.score(observation)
    assert np.isfinite(scores).all()
    if observation.attention and observation.value_norm is None:
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


@pytest.mark.parametrize("budget", [37, 255, 256, 257])
@pytest.mark.parametrize("n_absent", [0, (0, 90)], ids=["all rows", "absent rows"])
def test_its_scores_plan(policy, budget, n_absent):
    layers = [
        observe_for(policy, layer=layer, n_layer=3, n_kv=300, n_absent=n_absent)
        for layer in range(3)
    ]
    ranked = [rank_again(policy, layer, n_select=budget - 4) for layer in layers]
    present = np.array([layer.positions >= 0 for layer in layers])
    candidates = np.array([candidates for _, _, candidates in ranked])
    after = np.array([after for _, after, _ in ranked])
    plan = plan_eviction(after, np.full((3, 2), budget, np.int32), present & ~candidates, present)
    np.testing.assert_array_equal(plan.n_keep, np.minimum(budget, present.sum(axis=-1)))


def test_equal_rows_plan(policy):
    """All keys, values and figures alike: scores tie, and the plan is still whole."""
    q, k, v, factors = make_layer()
    observation = observe_for(policy, tensors=(q, np.ones_like(k), np.ones_like(v), factors))
    if observation.tracked is not None:
        observation = dataclasses.replace(observation, tracked=np.ones((2, 24), np.float32))
    _, after, candidates = rank_again(policy, observation, n_select=6)
    plan = plan_eviction(after[None], np.full((1, 2), 10, np.int32), ~candidates[None])
    assert (plan.n_keep == 10).all()


@pytest.mark.parametrize("name", ["", "restKV", "nope"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError) as caught:
        make_policy(name)
    assert all(known in str(caught.value) for known in POLICIES)
    assert repr(name) in str(caught.value)
