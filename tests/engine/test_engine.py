"""Reading and generating under a budget, on tiny random models."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from restkv_local import Llama, row_table
from restkv_local.errors import (
    CacheFullError,
    ConfigError,
    NativeError,
)
from restkv_local.model.model_file import kv_bytes_per_token, scoring_bytes
from restkv_local.native import FAILED
from restkv_local.policies.base import Policy
from restkv_local.policies.registry import POLICIES
from restkv_local.row_table import RowSnapshot
from tests import builders
from tests.numpy_llama import NumpyLlama

pytestmark = pytest.mark.native

MODELS = {
    "llama-mha": builders.llama(n_head_kv=4, head_dim=64),
    "llama-gqa-2": builders.llama(n_head_kv=2, head_dim=64),
    "mistral-gqa-4": builders.mistral(n_head=8, n_head_kv=2, head_dim=64, n_embd=64),
    "qwen2-gqa-8": builders.qwen2(n_head=8, n_head_kv=1, head_dim=64),
    "qwen3": builders.qwen3(head_dim=64),
    "gemma": builders.gemma(head_dim=64),
    "gemma2": builders.gemma2(head_dim=64),
    "gemma3": builders.gemma3(head_dim=64),
}


def read(llama, text, guide=(), **options):
    engine = llama.engine
    engine.open(len(text), llama.config.n_predict, 0)
    engine.read(text, guide=guide, **options)
    return engine


def check_invariants(engine):
    counters = engine.counters
    assert counters.peak <= engine.capacity
    assert engine.rows.used == engine.native.used
    positions = engine.rows.positions
    absent = positions < 0
    assert (np.diff(positions, axis=-1) > 0)[~absent[..., :-1]].all()
    assert (absent[..., 1:] <= absent[..., :-1]).all()
    assert (positions[..., -1] == counters.seen - 1).all()
    assert engine.rows.n_rows.sum() <= engine.capacity * engine.rows.n_rows.size


@pytest.mark.parametrize("prefill", ["bounded", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_reads_and_generates_within_its_budget(open_llama, tokens, name, prefill):
    llama = open_llama(MODELS[name], prefill=prefill)
    text = tokens(700)
    engine = read(llama, text, guide=text[-12:])
    check_invariants(engine)
    assert engine.rows.used == 64
    assert engine.counters.events == 1 if prefill == "full" else engine.counters.events > 3
    events = engine.counters.events
    for token in tokens(250, seed=1):
        engine.step(token)
        check_invariants(engine)
        assert (
            engine.rows.used <= 256 - 16
        )  # what 64 + 64 + 16 rows are rounded up to, less the guide
    assert engine.counters.events > events
    report = engine.kv_report()
    assert report["evicted"] == report["seen"] - report["kept"] > 0
    assert report["events"] == engine.counters.events
    assert np.isfinite(llama.native.logits()).all()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_bounds_the_cache_or_says_that_it_keeps_all(open_llama, tokens, policy):
    llama = open_llama(MODELS["llama-gqa-2"], policy=policy)
    engine = read(llama, tokens(500))
    check_invariants(engine)
    assert engine.rows.used == (500 if policy == "full" else 64)
    assert (engine.counters.events > 0) == (policy != "full")


@pytest.mark.parametrize("policy", sorted(name for name in POLICIES if POLICIES[name].evicts))
def test_every_policy_evicts_a_text_that_was_read_whole(open_llama, tokens, policy):
    """The papers' protocol: one eviction, to the budget."""
    llama = open_llama(MODELS["llama-gqa-2"], policy=policy, prefill="full")
    engine = read(llama, tokens(300))
    check_invariants(engine)
    assert (engine.rows.n_rows == 64).all()
    assert engine.counters.events == 1


@pytest.mark.parametrize("type_v", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("type_k", ["f16", "q8_0", "q4_0"])
def test_quantised_caches_evict_and_their_positions_follow_the_key_type(
    open_llama, tokens, type_k, type_v
):
    llama = open_llama(MODELS["llama-gqa-2"], type_k=type_k, type_v=type_v, prefill="full")
    engine = read(llama, tokens(300))
    check_invariants(engine)
    assert engine.positions == ("compact" if type_k == "f16" else "original")
    assert engine.native.position == (63 if type_k == "f16" else 299)


@pytest.mark.parametrize("budget", [255, 256, 257])
@pytest.mark.parametrize("n_prompt", [254, 255, 256, 257, 258, 576, 577, 1000])
def test_block_edges_keep_exactly_the_budget(open_llama, tokens, budget, n_prompt):
    kept = []
    llama = open_llama(MODELS["llama-gqa-2"], budget=budget, on_evict=kept.append)
    engine = read(llama, tokens(n_prompt))
    check_invariants(engine)
    assert all(event.kept == budget for event in kept)
    assert bool(kept) == (n_prompt > engine.capacity)
    # What took several evictions ends with what was promised.
    if len(kept) != 1:
        assert engine.rows.used == (budget if kept else n_prompt)
    llama = open_llama(MODELS["llama-gqa-2"], budget=budget, prefill="full")
    assert read(llama, tokens(n_prompt)).rows.used == min(budget, n_prompt)


@pytest.mark.parametrize("ends", ["with the question", "otherwise"])
def test_an_answer_begins_with_the_budgets_rows_and_the_texts_logits(
    open_llama, tokens, monkeypatch, ends
):
    text, guide = tokens(500), tokens(12, seed=4)
    if ends == "with the question":
        text[-12:] = guide
    llama = open_llama(MODELS["llama-gqa-2"])
    engine = llama.engine
    before = []
    cut = engine._evict_read

    def note_and_cut(tokens):
        before.append((engine.counters.events, engine.rows.used, llama.native.logits().copy()))
        cut(tokens)

    n_decoded = []
    decode = llama.native.decode
    monkeypatch.setattr(engine, "_evict_read", note_and_cut)

    def note_and_decode(tokens, *, probe):
        n_decoded.append(len(tokens))
        decode(tokens, probe=probe)

    monkeypatch.setattr(llama.native, "decode", note_and_decode)
    read(llama, text, guide=guide)
    ((n_before, used, expected),) = before
    assert engine.counters.events == n_before + 1
    assert engine.rows.used == engine.budget < used
    np.testing.assert_array_equal(llama.native.logits(), expected)
    # Where the question ends the text, it is not read once more.
    n_probes = n_before if ends == "with the question" else n_before + 1
    assert sum(n_decoded) == len(text) + n_probes * len(guide)


def test_a_turn_that_took_one_eviction_takes_no_other(open_llama, tokens):
    engine = read(open_llama(MODELS["llama-gqa-2"]), tokens(300), guide=tokens(12, seed=4))
    assert engine.counters.events == 1
    assert engine.rows.used > engine.budget


@pytest.mark.parametrize("allocation", ["uniform", "pyramid", "global"])
def test_compact_keys_are_turned_to_where_the_table_says(open_llama, tokens, allocation):
    """The first layer's keys depend on token and position alone: they can be made anew."""
    text = tokens(700)
    llama = open_llama(MODELS["llama-gqa-2"], allocation=allocation, policy="snapkv")
    engine = read(llama, text, guide=text[-12:])
    assert engine.counters.events > 3
    oracle = NumpyLlama(llama.shape.path)
    weights = oracle.weights
    unturned = []
    for token in text:
        x = oracle._norm(weights["token_embd.weight"][token], weights["blk.0.attn_norm.weight"])
        unturned.append((weights["blk.0.attn_k.weight"] @ x).reshape(2, -1))
    keys = np.stack(unturned, axis=1)
    found, rows = llama.native.read(0, "k"), engine.rows
    for head in range(2):
        present = rows.positions[0, head] >= 0
        wanted = keys[head, rows.positions[0, head][present]]
        expected = oracle.turn(wanted, rows.turned_to[0, head][present])
        error = np.linalg.norm(found[head][present] - expected) / np.linalg.norm(expected)
        assert error < 2e-3  # f16, rounded once more at each eviction
    spread = (rows.turned_to != np.arange(rows.used)) & (rows.positions >= 0)
    assert spread.any() == (allocation != "uniform")


@pytest.mark.parametrize("n_ubatch", [16, 17, 63, 64, 65])
def test_chunk_sizes_change_neither_bounds_nor_counts(open_llama, tokens, n_ubatch):
    llama = open_llama(MODELS["llama-gqa-2"], n_ubatch=n_ubatch)
    engine = read(llama, tokens(400), guide=tokens(10, seed=4))
    check_invariants(engine)
    assert engine.counters.seen == 400
    assert engine.counters.events > 0


def test_nothing_is_evicted_or_probed_while_everything_fits(open_llama, tokens):
    llama = open_llama(MODELS["llama-gqa-2"], budget=256)
    engine = read(llama, tokens(250), guide=tokens(10, seed=4))
    report = engine.kv_report()
    assert (report["events"], report["evicted"], report["guide_ms"]) == (0, 0, 0.0)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 0.0, 1e30])
def test_sinks_pinned_and_recent_rows_survive_any_score(open_llama, tokens, fill):
    llama = open_llama(MODELS["llama-gqa-2"])
    engine = llama.engine

    class Odd(Policy):
        def request(self, n_obs, max_position, n_select):
            return None

        def score(self, observation):
            return np.full(observation.positions.shape, fill, np.float32)

    engine.policy = Odd()
    text = tokens(500)
    engine.open(len(text), 16, 20)
    engine.read(text)
    positions = engine.rows.positions
    np.testing.assert_array_equal(
        positions[..., :20], np.broadcast_to(np.arange(20), (*positions.shape[:2], 20))
    )
    np.testing.assert_array_equal(
        positions[..., -8:], np.broadcast_to(np.arange(492, 500), (*positions.shape[:2], 8))
    )


def test_heads_and_layers_keep_different_tokens(open_llama, tokens):
    llama = open_llama(MODELS["llama-mha"], prefill="full")
    engine = read(llama, tokens(400))
    rows = engine.rows.positions.reshape(-1, 64)
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_both_scorings_keep_nearly_the_same_rows(open_llama, tokens):
    kept = []
    for scoring in ("native", "numpy"):
        llama = open_llama(MODELS["llama-gqa-2"], scoring=scoring, prefill="full")
        kept.append(read(llama, tokens(180), guide=tokens(10, seed=4)).rows.positions)
    same = [np.isin(a, b).mean() for a, b in zip(*(k.reshape(-1, 64) for k in kept), strict=True)]
    assert np.mean(same) > 0.97


@pytest.mark.parametrize("policy", ["snapkv", "tova", "keydiff", "expected-attention"])
def test_numpy_serves_policies_that_need_no_factors(open_llama, tokens, policy):
    llama = open_llama(MODELS["llama-gqa-2"], scoring="numpy", policy=policy)
    assert read(llama, tokens(400)).counters.events > 0


def test_norms_come_from_the_pass_over_observed_queries_and_wait_for_one(open_llama, tokens):
    llama = open_llama(MODELS["llama-gqa-2"], policy="expected-attention")
    engine = read(llama, tokens(400))
    engine.evict()
    assert not engine.can_evict
    with pytest.raises(NativeError, match="read tokens before evicting"):
        engine.evict()


def test_two_runs_in_one_process_equal_a_fresh_run(open_llama, tokens):
    fresh = open_llama(MODELS["qwen2-gqa-8"])
    expected = read(fresh, tokens(300)).native.logits().copy()
    llama = open_llama(MODELS["qwen2-gqa-8"])
    for seed in (7, 0):
        llama.engine.clear() if llama.engine.is_open else None
        read(llama, tokens(300, seed=seed))
    np.testing.assert_array_equal(llama.native.logits(), expected)


def test_budget_in_percent_and_bytes(open_llama, tokens):
    llama = open_llama(MODELS["llama-gqa-2"], budget="25%")
    assert read(llama, tokens(400)).budget == 100
    # 2 layers x 2 heads x 64 x 2 tensors x 2 bytes = 1 KiB a row: 512 rows, 80 of them reserved
    llama = open_llama(MODELS["llama-gqa-2"], budget="512KiB")
    engine = read(llama, tokens(600))
    assert (engine.budget, engine.capacity) == (432, 512)
    assert engine.kv_report()["bytes"] == 512 * 1024


@pytest.mark.parametrize("n_pinned", [0, 30])
def test_a_percentage_of_a_short_prompt_holds_what_must_stay(open_llama, tokens, n_pinned):
    """It was refused, though nothing had to go."""
    llama = open_llama(MODELS["llama-gqa-2"], budget="25%", n_sink=4, n_recent=32)
    llama.engine.open(10, 8, n_pinned)
    assert llama.engine.budget == 4 + max(0, n_pinned - 4) + 32 + 1
    llama.engine.open(400, 8, n_pinned)
    assert llama.engine.budget == 100
    llama = open_llama(MODELS["llama-gqa-2"], budget=37, n_sink=4, n_recent=32)
    with pytest.raises(ConfigError, match="budget must be at least"):
        llama.engine.open(10, 8, 30)


def test_window_layers_keep_their_own_size_whatever_the_budget(open_llama, tokens):
    small = read(open_llama(MODELS["gemma3"], budget=64), tokens(300))
    large = read(open_llama(MODELS["gemma3"], budget=512), tokens(300))
    assert small.positions == "original"
    assert small.native.held["other"] == large.native.held["other"] > 0
    assert small.native.held["k"] < large.native.held["k"]


def test_whole_prefill_is_refused_when_the_next_turn_does_not_fit(open_llama, tokens):
    llama = open_llama(MODELS["llama-gqa-2"], policy="full")
    engine = read(llama, tokens(300))
    with pytest.raises(CacheFullError, match=r"no room for 64 tokens: \d+ of 512 rows"):
        engine.read(tokens(400))


@pytest.mark.parametrize(
    ("options", "n_pinned", "numbers"),
    [
        ({"budget": 12}, 0, "budget=12, n_sink=4, n_pinned=0, n_recent=8"),
        ({"budget": 64}, 70, "n_sink=4, n_pinned=66, n_recent=8"),
    ],
)
def test_a_budget_below_what_must_stay_is_refused_with_all_numbers(
    open_llama, tokens, options, n_pinned, numbers
):
    with pytest.raises(ConfigError, match=numbers):
        open_llama(MODELS["llama-gqa-2"], **options).engine.open(100, 16, n_pinned)


@pytest.mark.parametrize("budget", [4 * 10**8, 2**32, 10**18 - 1])
def test_layers_for_a_gpu_that_is_not_there_need_memory_too(tmp_path, budget):
    path = MODELS["llama-gqa-2"].write(tmp_path / "m.gguf")
    with Llama(path, budget=budget, n_gpu_layers=1) as llama:
        if llama.engine.native.offloads:
            pytest.skip("a device takes the rows")
        with pytest.raises(ConfigError, match="GiB for K, V and scoring"):
            llama.engine.open(100, 16, 0)


def test_a_state_that_is_not_of_its_table_is_refused_and_changes_nothing(open_llama, tokens):
    """A session file whose parts were changed by hand: scoring would read beyond the table's end."""
    engine = read(open_llama(MODELS["llama-gqa-2"], allocation="global"), tokens(300))
    snapshot = engine.save()
    rows = snapshot.rows
    cut = RowSnapshot(rows.positions[:, :, :20], rows.turned_to[:, :, :20], rows.figures)
    bare = rows.positions.copy()
    bare[0, 0] = -1
    for wrong in (cut, RowSnapshot(bare, rows.turned_to, rows.figures)):
        with pytest.raises(NativeError, match="contradicts the table of its rows"):
            engine.restore(replace(snapshot, rows=wrong))
    check_invariants(engine)
    engine.restore(snapshot)
    check_invariants(engine)


@pytest.mark.parametrize("policy", ["full", "restkv"])
def test_memory_that_an_eviction_takes_for_a_moment_counts(open_llama, monkeypatch, policy):
    """What evicts nothing fits where scores of every head and row do not."""
    llama = open_llama(MODELS["llama-gqa-2"], policy=policy, budget=20_000, n_threads=8)
    shape, (_, n_rows) = llama.shape, llama.engine.check(100, 16, 0)
    tables = n_rows * (52 + 8 * shape.n_layer * shape.n_head_kv)
    held = kv_bytes_per_token(shape) * n_rows + scoring_bytes(shape, 32, n_rows)
    monkeypatch.setattr("restkv_local.cache_size.free_memory", lambda: tables + 2 * held)
    if policy == "full":
        llama.engine.check(100, 16, 0)
        return
    with pytest.raises(ConfigError, match="GiB for K, V and scoring"):
        llama.engine.check(100, 16, 0)


def test_a_budget_larger_than_memory_is_refused_before_anything_is_allocated(open_llama):
    llama = open_llama(MODELS["llama-gqa-2"], budget=10**9)
    with pytest.raises(ConfigError, match=r"GiB for K, V and scoring but .* GiB are free"):
        llama.engine.open(100, 16, 0)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (builders.llama(head_dim=64), {"type_k": "q4_0", "positions": "compact"}, "q4_0"),
        (builders.gemma2(head_dim=64), {"positions": "compact"}, "sliding-window"),
        (builders.llama(head_dim=64, long_rope=True), {"positions": "original"}, "long-rope"),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_loading(
    open_llama, model, options, reason
):
    with pytest.raises(ConfigError, match=reason):
        open_llama(model, **options)


def test_n_ctx_is_refused_with_a_line_that_names_budget(open_llama):
    with pytest.raises(ConfigError, match="budget="):
        open_llama(MODELS["llama-gqa-2"], n_ctx=4096)


def test_rows_that_rounding_adds_are_filled_before_an_eviction(open_llama, tokens):
    """300 + 256 + 32 rows are rounded up to 768: 180 more than were asked for, 32 of all for the guide."""
    options = {"budget": 300, "n_ubatch": 256, "n_guide": 32}
    llama = open_llama(MODELS["llama-gqa-2"], **options)
    marks = []
    llama.engine.open(2000, 0, 0)
    llama.engine.read(tokens(2000), guide=tokens(12, seed=4), on_progress=marks.append)
    assert llama.engine.capacity == 768
    done = [mark.processed for mark in marks]
    assert np.diff([0, *done]).tolist() == [256, 256, 224, 256, 180, 256, 180, 256, 136]
    assert [mark.events for mark in marks] == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert llama.engine.counters.peak == 768 - 32 + 12


@pytest.mark.parametrize(
    ("owner", "failing", "error"),
    [
        ("native", "score", NativeError),
        ("native", "compact", NativeError),
        ("table", "_put", MemoryError),
    ],
)
def test_an_eviction_that_fails_changes_nothing(
    open_llama, tokens, monkeypatch, owner, failing, error
):
    """The question's rows go, those of the text stay, and reading goes on."""
    engine = read(open_llama(MODELS["llama-gqa-2"]), tokens(200), guide=tokens(12, seed=4))
    positions = engine.rows.positions.copy()

    def fail(*_args, **_options):
        raise error("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.native if owner == "native" else row_table, failing, fail)
        with pytest.raises(error, match="no memory"):
            engine.read(tokens(64, seed=2), guide=tokens(12, seed=4))
    assert engine.counters.events == 0
    assert engine.native.used == 200
    np.testing.assert_array_equal(engine.rows.positions, positions)
    engine.read(tokens(64, seed=2), guide=tokens(12, seed=4))
    check_invariants(engine)
    assert engine.counters.events == 1


def test_a_decode_that_breaks_off_forgets_the_sequence_if_it_must(open_llama, tokens, monkeypatch):
    """Memory may end while the cells are written; every later call was refused then."""
    llama = open_llama(MODELS["llama-gqa-2"])
    engine = read(llama, tokens(40))
    library = engine.native._restkv

    def fail(*_args, status=-5):
        raise NativeError("no memory", status)

    with monkeypatch.context() as patch:

        def fail_in_the_cells(*_args):
            patch.setattr(library, "used", partial(fail, status=FAILED))
            fail()

        patch.setattr(library, "decode", fail)
        with pytest.raises(NativeError, match="no memory"):
            engine.read(tokens(8))
        assert engine.native.used == engine.rows.used == 40
        patch.setattr(library, "decode", fail_in_the_cells)
        with pytest.raises(NativeError, match="no memory"):
            engine.read(tokens(8))
    assert engine.native.used == engine.rows.used == 0
    read(llama, tokens(40))


def test_a_compaction_that_breaks_off_forgets_the_sequence(open_llama, tokens, monkeypatch):
    """Some rows have moved, and nobody knows which."""
    llama = open_llama(MODELS["llama-gqa-2"])
    engine = read(llama, tokens(200), guide=tokens(12, seed=4))
    before = engine.counters

    def fail(*_args):
        raise NativeError("the backend could not compute", FAILED)

    with monkeypatch.context() as patch:
        patch.setattr(engine.native, "compact", fail)
        with pytest.raises(NativeError, match="could not compute"):
            engine.read(tokens(64, seed=2), guide=tokens(12, seed=4))
    assert engine.native.used == engine.rows.used == 0
    assert engine.counters is not before  # by which a conversation sees that its text is gone
    fresh = read(open_llama(MODELS["llama-gqa-2"]), tokens(300), guide=tokens(12, seed=4))
    read(llama, tokens(300), guide=tokens(12, seed=4))
    check_invariants(engine)
    np.testing.assert_array_equal(engine.rows.positions, fresh.rows.positions)


def test_evictions_are_reported_one_by_one(open_llama, tokens):
    events = []
    llama = open_llama(MODELS["llama-gqa-2"], on_evict=events.append)
    engine = read(llama, tokens(500), guide=tokens(10, seed=4))
    assert len(events) == engine.counters.events > 0
    assert sum(event.used - event.kept for event in events) == 500 - engine.rows.used
    assert all(event.kept == 64 for event in events)


def test_the_question_guides_evictions_in_the_answer_too(open_llama, tokens):
    """Half of the window is the answer; with another question the rows that stay are others."""
    answer, kept = tokens(200, seed=5), []
    for guide in (tokens(10, seed=4), tokens(10, seed=6)):
        engine = read(open_llama(MODELS["llama-gqa-2"]), tokens(60), guide=guide)
        assert engine.counters.events == 0
        for token in answer:
            engine.step(token)
        check_invariants(engine)
        assert engine.counters.events == 1
        assert engine.counters.seen == 260
        kept.append(engine.rows.positions)
    assert kept[0].shape == kept[1].shape
    assert (kept[0] != kept[1]).any()


def test_the_cache_that_is_replaced_counts_as_free(open_llama, tokens, monkeypatch):
    """A machine that holds one of them at a time."""
    llama = open_llama(MODELS["llama-gqa-2"], policy="full")
    engine = llama.engine
    engine.open(700, 16, 0)
    allocated = sum(llama.native.held.values())
    rest = allocated // 2
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": rest}))
    engine.open(1000, 16, 0)
    assert engine.capacity > 768
    with pytest.raises(ConfigError, match="are free"):
        engine.open(10_000, 16, 0)


def test_a_renewed_engine_makes_a_cache_of_its_own(open_llama, tokens):
    llama = open_llama(MODELS["llama-gqa-2"])
    old = read(llama, tokens(40))
    renewed = old.renewed(old.config)
    renewed.open(600, 16, 0)
    renewed.read(tokens(50))
    check_invariants(renewed)
    assert renewed.rows.used == 50


def test_the_memory_check_knows_what_scoring_takes(open_llama):
    llama = open_llama(MODELS["llama-gqa-2"], n_obs=2000)
    llama.engine.open(100, 16, 0)
    found = llama.native.held["scoring"]
    assert scoring_bytes(llama.shape, 2016, llama.engine.capacity) == pytest.approx(
        found, rel=0.001
    )


def test_a_guide_of_ones_own_is_read_whole_or_refused(open_llama):
    words = "long guide words " * 20
    with pytest.raises(
        ConfigError, match=r"guide has \d+ tokens and n_guide=16 is how many are read"
    ):
        open_llama(builders.llama(), guide=words)
    assert open_llama(builders.llama(), guide="words", n_guide=16).engine.config.guide == "words"
