import numpy as np
import pytest

from restkv_local.config import Config
from restkv_local.errors import ConfigError
from restkv_local.planning import plan_eviction, protect_rows
from restkv_local.policies.caote import Caote
from restkv_local.policies.fifo import Fifo
from restkv_local.policies.full import Full
from restkv_local.policies.registry import make_policy
from restkv_local.policies.restkv import RestKV
from restkv_local.policies.seeded_random import SeededRandom
from restkv_local.policies.snapkv import SnapKV
from restkv_local.policies.streamingllm import StreamingLLM
from restkv_local.policies.tova import TOVA
from restkv_local.types import Observation
from tests.observations import make_observation


def test_snapkv_is_the_pooled_group_mean_of_the_mean_attention():
    policy = SnapKV(kernel=3)
    observation = make_observation(policy.request(8, 100, 6))
    attention = observation.attention["mean"].astype(np.float64)
    row = attention[2:].mean(axis=0)  # the second KV head
    scores = policy.score(observation)[1]
    assert scores[5] == pytest.approx(row[4:7].mean(), rel=1e-6)
    assert scores[0] == pytest.approx((2 * row[0] + row[1]) / 3, rel=1e-6)
    # Row 15 is the last of the past: the window, rows 16 and on, is pooled apart.
    assert scores[15] == pytest.approx((row[14] + 2 * row[15]) / 3, rel=1e-6)


def test_snapkv_can_pool_and_group_by_maximum():
    policy = SnapKV(kernel=3, pooling="max", group="max")
    observation = make_observation(policy.request(8, 100, 6))
    expected = observation.attention["mean"][:2, 4:7].max()
    assert policy.score(observation)[0, 5] == expected


def test_caote_is_the_same_score_without_the_projection():
    caote = Caote(kernel=5)
    same = RestKV(reduction="mean", use_wo=False, adaptive=False, kernel=5)
    assert caote.request(8, 10**6, 6) == same.request(8, 10**6, 6)
    observation = make_observation(caote.request(8, 100, 6))
    np.testing.assert_array_equal(caote.score(observation), same.score(observation))
    assert not caote.request(8, 100, 6).project


@pytest.mark.parametrize(
    ("policy", "kept"), [(StreamingLLM(), [0, 1, 7, 8, 9]), (Fifo(), [5, 6, 7, 8, 9])]
)
def test_recency_keeps_the_newest_and_sinks_only_where_they_belong(policy, kept):
    scores = policy.score(make_observation(None, n_head_kv=1, n_kv=10))
    protected = protect_rows(10, n_sink=2 if policy.keeps_sinks else 0, n_recent=1)
    plan = plan_eviction(scores[None], np.full((1, 1), 5, np.int32), protected)
    assert plan.rows(0, 0).tolist() == kept


def test_recency_is_strict_in_a_very_long_cache():
    scores = Fifo().score(make_observation(None, n_head_kv=1, n_head=1, n_kv=200_000, head_dim=1))
    assert (np.diff(scores) > 0).all()


def test_snapkv_lets_no_absent_place_into_the_average():
    policy = SnapKV(kernel=3)
    observation = make_observation(policy.request(8, 100, 6), n_absent=(4, 0))
    row = observation.attention["mean"][:2].astype(np.float64).mean(axis=0)
    assert row[:4].tolist() == [0.0] * 4
    assert policy.score(observation)[0, 4] == pytest.approx((2 * row[4] + row[5]) / 3, rel=1e-6)


def observe_last(attention, positions):
    return Observation(
        layer=0,
        n_obs=1,
        n_window=1,
        positions=np.array(positions, np.int32),
        attention={"last": np.array(attention, np.float32)},
    )


def test_tova_scores_a_token_by_the_mean_of_all_heads_of_the_layer():
    observation = observe_last(
        [[0.5, 0.25, 0.25], [0, 0.5, 0.5], [1, 0, 0], [0.5, 0, 0.5]], [[0, 1, 2], [0, 1, 2]]
    )
    expected = [2 / 4, 0.75 / 4, 1.25 / 4]
    np.testing.assert_allclose(TOVA().score(observation), [expected] * 2)


def test_tova_follows_the_token_where_heads_hold_different_rows():
    observation = observe_last([[0.25, 0.5, 0.25], [0, 0.5, 0.5]], [[0, 4, 9], [-1, 4, 8]])
    np.testing.assert_allclose(TOVA().score(observation), [[0.125, 0.5, 0.125], [0.0, 0.5, 0.25]])


def test_full_does_not_evict():
    assert not Full.evicts
    assert all(make_policy(name).evicts for name in ("restkv", "snapkv", "fifo", "random"))


def test_random_needs_no_seed_and_refuses_what_is_none():
    assert make_policy("random", Config(seed=-1)) == make_policy("random", Config(seed=-1))
    assert SeededRandom().score(make_observation(None)).shape
    with pytest.raises(ConfigError, match="seed must be at least 0; got seed=-1"):
        SeededRandom(seed=-1)


def test_random_repeats_itself_and_differs_by_seed_layer_and_event():
    def draw(seed=1, layer=2, event=3):
        policy = SeededRandom(seed=seed)
        return policy.score(make_observation(None, layer=layer, event=event)).tobytes()

    assert draw() == draw()
    assert len({draw(), draw(seed=2), draw(layer=3), draw(event=4)}) == 4
    assert draw(layer=3, event=2) != draw()
