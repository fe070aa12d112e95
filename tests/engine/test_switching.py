"""Going back to a saved moment, and evicting by other rules from there."""

import numpy as np
import pytest

from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.errors import ConfigError
from restkv_local.policies.registry import POLICIES
from restkv_local.policies.restkv import RestKV
from tests import builders
from tests.engine.test_engine import read

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)


def answer(engine, tokens, n=200):
    """Generate far enough to evict again; what happened, to the bit."""
    logits = []
    for token in tokens(n, seed=7):
        engine.step(token)
        logits.append(engine.native.logits().copy())
    return np.stack(logits), engine.rows.positions.copy(), engine.counters.events


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("policy", ["restkv", "h2o", "lru", "expected-attention"])
def test_a_restored_session_goes_on_to_the_bit(open_llama, tokens, policy, allocation):
    llama = open_llama(MODEL, policy=policy, allocation=allocation)
    engine = read(llama, tokens(300))
    saved = engine.save()
    first = answer(engine, tokens)
    assert first[2] > saved.counters.events
    engine.restore(saved)
    second = answer(engine, tokens)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", sorted(name for name in POLICIES if POLICIES[name].evicts))
def test_another_policy_decides_as_if_it_had_read_the_text(open_llama, tokens, policy):
    """One reading serves every policy: the plan is what a session of its own keeps."""
    options = {"prefill": "full", "n_predict": 40, "budget": 64}
    shared = open_llama(
        MODEL, allocation="global", also_track=("sum", "last_use", "repeat", "queries"), **options
    ).engine
    shared.open(300, 40, 0)
    shared.read(tokens(300), evict=False)
    shared.use(policy=policy, allocation="uniform")
    assert shared.rows.mean == 300
    plan = shared.plan(8)
    own = read(open_llama(MODEL, policy=policy, **options), tokens(300))
    np.testing.assert_array_equal(
        shared.rows.positions[plan.keep], own.rows.positions.ravel(), strict=True
    )


def test_a_probe_is_not_tracked(open_llama, tokens, monkeypatch):
    """Queries of the text are counted before the question's stand among the newest."""
    used = []
    monkeypatch.setattr(
        "restkv_local.tracking.track_native", lambda native, *_: used.append(native.used)
    )
    engine = open_llama(MODEL, also_track=("sum",)).engine
    engine.open(200, 0, 0)
    engine.read(tokens(50), guide=tokens(12, seed=9))
    engine.use(budget=45)
    engine.guide = tokens(12, seed=9)
    engine._evict_guided()
    assert used == [50]


def test_what_was_not_prepared_is_refused(open_llama, tokens):
    engine = read(open_llama(MODEL), tokens(100))
    with pytest.raises(ConfigError, match="'h2o' needs figures of every query so far"):
        engine.use(policy="h2o")
    with pytest.raises(ConfigError, match="'ada' needs segments that may grow"):
        engine.use(allocation="ada")
    engine.use(policy=RestKV(kernel=9, reduction="mean"))
    assert (engine.policy.kernel, engine.kv_report()["policy"]) == (9, "restkv")
    engine.use(policy="snapkv", budget=70)
    assert (engine.kv_report()["policy"], engine.kv_report()["budget"]) == ("snapkv", 70)


@pytest.mark.parametrize("allocation", sorted(ALLOCATORS.keys() - {"uniform"}))
def test_bytes_follow_the_total_not_the_fullest_head(open_llama, tokens, allocation):
    size = {}
    for name in ("uniform", allocation):
        llama = open_llama(MODEL, budget=1024, allocation=name)
        rows = read(llama, tokens(1500)).rows.n_rows
        assert (rows.min() < rows.max()) == (name != "uniform")
        size[name] = llama.engine.kv_report()["bytes"]
    assert size[allocation] <= 1.15 * size["uniform"]


def test_a_policy_with_a_guide_takes_over_a_cache_without_room_for_it(open_llama, tokens):
    engine = read(open_llama(MODEL, policy="streamingllm"), tokens(60), guide=tokens(12, seed=4))
    for token in tokens(196, seed=5):
        engine.step(token)
    assert engine.native.room == 0
    engine.use(policy="restkv")
    engine.step(7)
    assert engine.counters.events == 1
    assert engine.rows.used == 64 + 1


def test_a_cache_made_for_more_is_cut_when_the_budget_says_so(open_llama, tokens):
    """Not only once all of it is full."""
    engine = read(open_llama(MODEL, policy="full"), tokens(300))
    assert engine.capacity > 300
    engine.use(policy="restkv")
    engine.step(7)
    assert (engine.counters.events, engine.rows.used) == (1, 64 + 1)
