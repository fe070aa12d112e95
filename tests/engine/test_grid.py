"""Every policy with every allocation, in bounded prefill and in decode, on tiny models."""

import numpy as np
import pytest

from restkv_local.allocators.registry import ALLOCATORS
from restkv_local.errors import ConfigError
from restkv_local.policies.registry import POLICIES
from tests import builders
from tests.engine.test_engine import check_invariants, read

pytestmark = pytest.mark.native

MODELS = {
    "mha": builders.llama(n_head=4, n_head_kv=4, head_dim=64, n_embd=64),
    "gqa-3": builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64),
    "gqa-8": builders.llama(n_head=8, n_head_kv=1, head_dim=64, n_embd=64),
}
EVICTING = sorted(name for name in POLICIES if POLICIES[name].evicts)
OBSERVING = {"restkv", "restkv+", "snapkv", "caote", "tova", "criticalkv", "defensivekv"}


@pytest.mark.parametrize("type_kv", ["f16", "q8_0"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("allocation", ALLOCATORS)
@pytest.mark.parametrize("policy", EVICTING)
def test_the_total_is_kept_to_the_row_and_what_is_protected_stays(
    open_llama, tokens, policy, allocation, model, type_kv
):
    """Budget, sinks, newest rows and capacity hold at every moment, in prefill and in decode."""
    options = {"policy": policy, "allocation": allocation, "type_k": type_kv, "type_v": type_kv}
    if allocation == "cake" and policy not in OBSERVING:
        with pytest.raises(ConfigError, match="does not observe"):
            open_llama(MODELS[model], **options)
        return
    llama = open_llama(MODELS[model], **options)
    engine = llama.engine
    kept = []

    def check(event):
        rows = engine.rows.n_rows
        kept.append(rows.sum() - engine.budget * rows.size)
        positions = engine.rows.positions
        assert (positions[:, :, -8:] == np.arange(event.seen - 8, event.seen)).all()
        if engine.policy.keeps_sinks:
            first = engine.rows.used - rows
            sinks = np.take_along_axis(positions, first[..., None] + np.arange(4), axis=-1)
            assert (sinks == np.arange(4)).all()

    engine._on_evict = check
    text = tokens(460)
    read(llama, text, guide=text[-12:])
    for token in tokens(200, seed=1):
        engine.step(token)
        check_invariants(engine)
    assert engine.counters.events >= 3
    assert kept == [0] * engine.counters.events
    assert np.isfinite(llama.native.logits()).all()


@pytest.mark.parametrize("budget", [255, 256, 257])
@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_budgets_at_block_edges_are_exact(open_llama, tokens, allocation, budget):
    llama = open_llama(MODELS["gqa-3"], budget=budget, allocation=allocation)
    engine = llama.engine
    kept = []
    engine._on_evict = lambda event: kept.append(engine.rows.n_rows.sum())
    read(llama, tokens(900))
    check_invariants(engine)
    assert len(kept) > 1
    assert kept == [budget * engine.rows.n_rows.size] * len(kept)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("allocation", ["uniform", "ada", "global", "pyramid"])
def test_poisoned_scores_still_give_a_whole_plan(
    open_llama, tokens, allocation, poison, monkeypatch
):
    """A row that scores NaN goes first, one that scores inf stays; nothing else breaks."""
    llama = open_llama(MODELS["gqa-3"], policy="snapkv", allocation=allocation)
    score = type(llama.engine.policy).score

    def poisoned(self, observation):
        scores = score(self, observation)
        scores[:, ::3] = poison
        return scores

    monkeypatch.setattr(type(llama.engine.policy), "score", poisoned)
    engine = llama.engine
    kept = []
    engine._on_evict = lambda event: kept.append(engine.rows.n_rows.sum())
    read(llama, tokens(500))
    check_invariants(engine)
    assert len(kept) > 1
    assert kept == [engine.budget * engine.rows.n_rows.size] * len(kept)


@pytest.mark.parametrize("allocation", ALLOCATORS)
def test_two_runs_in_one_session_are_equal(open_llama, tokens, allocation):
    """Clearing forgets unequal segments, tracked figures and observed queries."""
    llama = open_llama(MODELS["gqa-3"], allocation=allocation)
    found = []
    for _ in range(2):
        engine = read(llama, tokens(300))
        found.append((engine.rows.positions.copy(), llama.native.logits().copy()))
        engine.clear()
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
