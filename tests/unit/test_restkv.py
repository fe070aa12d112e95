import itertools
import math

import numpy as np
import pytest

from restkv_local.config import Config
from restkv_local.policies.restkv import RestKV
from restkv_local.reference import output_change, set_error, window_attention
from restkv_local.types import Observation
from tests.observations import make_layer, make_observation, make_one_hot_layer


def slow_scores(policy, observation, n_head_kv):
    """The published aggregate order, one row at a time."""
    attention = observation.attention[policy.reduction].astype(np.float64)
    n_head, n_kv = attention.shape
    indicator = np.zeros((n_head, n_kv))
    for h, n in itertools.product(range(n_head), range(n_kv)):
        a = attention[h, n]
        indicator[h, n] = a / (1 - a) * float(observation.distance[h, n]) ** policy.tau
    n_gqa = n_head // n_head_kv
    n_past = n_kv - observation.n_window
    out = np.zeros((n_head_kv, n_kv))
    for g in range(n_head_kv):
        heads = indicator[g * n_gqa : (g + 1) * n_gqa]
        row = heads.mean(axis=0) if policy.group == "mean" else heads.max(axis=0)
        kernel, shift = policy.kernel, 0
        if policy.adaptive and observation.drift is not None:
            halves = observation.drift[g * n_gqa : (g + 1) * n_gqa].astype(np.float64)
            t = np.mean(halves[:, 0] - halves[:, 1])
            kernel = max(kernel, 2 * math.floor(abs(t) / policy.scale) + 1)
            shift = math.floor(t / policy.scale) + (1 if t <= 0 else 0)
            if t == 0 and not policy.shift_at_zero:
                shift = 0
        for low, high in ((0, n_past), (n_past, n_kv)):
            for i in range(low, high):
                neighbours = range(i - kernel // 2 + shift, i + kernel // 2 + shift + 1)
                total = sum(row[min(max(j, low), high - 1)] for j in neighbours)
                out[g, i] = total / kernel
    return out


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"kernel": 5},
        {"kernel": 1, "adaptive": False},
        {"tau": 2.0},
        {"group": "max"},
        {"use_wo": False},
        {"past_only": True},
        {"alpha": 0.9},
        {"reduction": "mean"},
        {"reduction": "max"},
        {"kernel": 3, "scale": 2.0},
        {"kernel": 3, "scale": 0.5, "group": "max"},
        {"kernel": 3, "shift_at_zero": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("n_head", "n_head_kv"), [(4, 4), (4, 2), (4, 1)])
def test_scores_are_the_published_formula(knobs, n_head, n_head_kv):
    policy = RestKV(**knobs)
    for seed in range(3):
        observation = make_observation(
            policy.request(8, 200, 6), n_head=n_head, n_head_kv=n_head_kv, n_kv=60, seed=seed
        )
        expected = slow_scores(policy, observation, n_head_kv)
        np.testing.assert_allclose(policy.score(observation), expected, rtol=1e-5)


def test_drift_really_moves_the_scores_in_the_formula_test():
    policy = RestKV(kernel=3, scale=2.0)
    observation = make_observation(policy.request(8, 200, 6), n_kv=60)
    windows = policy._windows(observation)
    assert any(kernel > 3 for kernel, _ in windows)
    assert any(shift for _, shift in windows)


@pytest.mark.parametrize("n_head_kv", [4, 2, 1])
def test_per_query_unsmoothed_score_is_the_true_change(n_head_kv):
    """One query, one query head a group, no pooling: the score is the exact error."""
    policy = RestKV(order="per_query", reduction="last", kernel=1)
    q, k, v, factors = make_layer(n_head=n_head_kv, n_head_kv=n_head_kv)
    observation = make_observation(policy.request(8, 100, 6), tensors=(q, k, v, factors))
    scores = policy.score(observation)
    attn = window_attention(q[:, -1:], k, 6**-0.5, q_row=np.array([23], np.int32))
    for row in range(24):
        error = set_error(attn, v, factors, np.arange(24) == row)[:, 0]
        np.testing.assert_allclose(scores[:, row], error, rtol=1e-5)


def test_both_orders_agree_on_a_single_query():
    knobs = {"reduction": "last", "kernel": 1}
    scores = []
    for order in ("aggregate", "per_query"):
        policy = RestKV(order=order, **knobs)
        scores.append(policy.score(make_observation(policy.request(1, 100, 6), n_obs=1)))
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_below_one_scale_drift_is_not_asked_for_and_would_change_nothing():
    policy = RestKV(kernel=5, scale=300.0)
    plain = make_observation(policy.request(8, 299, 6), n_kv=60)
    drifting = make_observation(policy.request(8, 300, 6), n_kv=60)
    assert plain.drift is None
    assert drifting.drift is not None
    np.testing.assert_array_equal(policy.score(plain), policy.score(drifting))


def test_the_quirk_at_zero_needs_drift_at_any_length():
    policy = RestKV(shift_at_zero=True)
    assert policy.request(8, 10, 6).drift
    assert not RestKV().request(8, 10, 6).drift
    assert not RestKV(adaptive=False, shift_at_zero=True).request(8, 10**6, 6).drift


def near_one_observation(rest):
    """All queries agree: row 3 has 1 - rest, the others share the rest; float32 as delivered."""
    v = np.random.default_rng(1).standard_normal((1, 10, 6))
    attn = np.full((1, 1, 10), rest / 9)
    attn[..., 3] = 1 - rest
    output = (attn[0].astype(np.float32) @ v[0].astype(np.float32)).astype(np.float32)
    distance = np.linalg.norm(v[0].astype(np.float32) - output, axis=-1)[None]
    observation = Observation(
        layer=0,
        n_obs=1,
        n_window=1,
        positions=np.arange(10, dtype=np.int32)[None],
        attention={"ema": attn[0].astype(np.float32)},
        distance=distance.astype(np.float32),
    )
    return observation, set_error(attn, v, None, np.arange(10) == 3)[0, 0]


@pytest.mark.parametrize("rest", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9, 1e-12])
def test_attention_close_to_one_keeps_its_rank_and_its_size(rest):
    """In float32, o and v agree there in all digits; a/(1-a) * 0 would evict the needle."""
    observation, exact = near_one_observation(rest)
    score = RestKV(kernel=1).score(observation)[0]
    assert score.argmax() == 3
    assert exact / 2 < score[3] < exact * 4


def test_a_single_row_scores_zero():
    policy = RestKV()
    observation = make_observation(policy.request(1, 0, 1), n_kv=1, n_obs=1)
    assert observation.attention["ema"].tolist() == [[1.0]] * 4
    np.testing.assert_array_equal(policy.score(observation), 0)


def test_attention_of_exactly_one_does_not_flood_its_neighbours():
    """Odds clamped at 1e6 would lift all 21 neighbours above every honest score."""
    policy = RestKV(kernel=1)
    observation = make_observation(
        policy.request(8, 100, 6), tensors=make_one_hot_layer(8, n_kv=24)
    )
    assert policy.score(observation).max() < 100


def test_a_score_beyond_float32_ends_at_its_limit():
    """Squared distances of 1e37 are no float32; inf would turn a whole neighbourhood to inf."""
    q, k, v, factors = make_layer()
    policy = RestKV(tau=2.0)
    tensors = q, k, v * np.float32(1e35), factors
    scores = policy.score(make_observation(policy.request(8, 100, 6), tensors=tensors))
    assert np.isfinite(scores).all()
    assert scores.max() == np.finfo(np.float32).max


def test_the_oracle_clamps_where_nothing_else_can_be_said():
    attn = np.zeros((1, 1, 3))
    attn[..., 0] = 1.0
    assert np.isfinite(output_change(attn, np.eye(3)[None], None)).all()


def test_options_reach_the_policy():
    config = Config(
        alpha=0.5, kernel=5, scale=100.0, tau=2.0, order="per_query", past_only=True, use_wo=False
    )
    policy = RestKV.from_config(config)
    assert policy == RestKV(
        alpha=0.5, kernel=5, scale=100.0, tau=2.0, order="per_query", past_only=True, use_wo=False
    )
    request = policy.request(8, 50, 6)
    assert request.distance == "per_query"
    assert request.past_only
    assert not request.project
    assert request.tau == 2.0
    assert request.alpha == 0.5


def test_a_question_is_reduced_by_its_own_rule():
    """EMA would give the last template tokens of a guide most of the weight."""
    policy = RestKV(guide_reduction="max")
    assert policy.guided().request(8, 100, 6).reductions == ("max",)
    assert policy.request(8, 100, 6).reductions == ("ema",)
    assert RestKV.from_config(Config(guide_reduction="mean")).guided().reduction == "mean"


def test_a_question_has_no_drift():
    """Far into a text the newest tokens are asked where they move to, a question never."""
    policy = RestKV(scale=100.0)
    assert policy.request(8, 5000, 6).drift
    assert not policy.guided().request(8, 5000, 6).drift
