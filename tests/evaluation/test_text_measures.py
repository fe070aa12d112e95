"""Perplexity, divergence and reconstruction error, against the same computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from restkv_local import Llama, reference
from restkv_local.engine import Engine
from restkv_local.errors import CacheFullError, ConfigError
from restkv_local.evaluation.grid import FULL
from restkv_local.evaluation.likelihood import log_softmax
from restkv_local.evaluation.log import EvalLog, read_log
from restkv_local.evaluation.reading import Passage, Reader
from restkv_local.evaluation.reconstruction import relative_error
from restkv_local.evaluation.runner import EvalPlan, run_eval
from restkv_local.evaluation.summary import kept_share
from restkv_local.evaluation.tasks.text import cut_strides
from tests import builders
from tests.evaluation.conftest import SMALL, grid

native = pytest.mark.native


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["the", "code", "is", "number", "answer"], 900)
    path.write_text(" ".join(words))
    return path


def pieces(llama, text, **options):
    encode = lambda text: llama.native.tokenize(text, add_special=True)  # noqa: E731
    return list(cut_strides(encode, file=text, **options))


# Perplexity


@native
def test_the_full_cache_predicts_as_a_reading_of_everything(tiny, evaluate, text):
    llama = tiny()
    result = evaluate(llama, "ppl", cells=[FULL], haystack=text, lengths=[120], n=1, n_scored=6)
    (record,) = result.records
    (piece,) = pieces(llama, text, n_read=120, n_scored=6, n=1)
    expected = []
    for i in range(1, 6):
        Reader(llama, SMALL).read(
            [FULL], Passage(tokens=[*piece.read, *piece.scored[:i]], n_more=0)
        )
        expected.append(-log_softmax(llama.native.logits())[piece.scored[i]])
    assert record.scores["nll"] == pytest.approx(np.mean(expected), rel=2e-3)
    assert (record.scores["kl"], record.scores["same_top"]) == (0, 1)
    assert record.item.id == "0-120-6"


@native
def test_a_budget_for_everything_differs_from_the_full_cache_by_nothing(tiny, evaluate, text):
    cells = grid("full restkv", budgets="100%", prefills="full")
    result = evaluate(tiny(), "ppl", cells=cells, haystack=text, lengths=[120], n=1, n_scored=6)
    full, whole = result.records
    assert whole.scores["nll"] == pytest.approx(full.scores["nll"], abs=1e-6)
    assert whole.scores["kl"] == pytest.approx(0, abs=1e-6)
    assert whole.kv["evicted"] == 0


@native
def test_eviction_moves_predictions_and_the_cut_is_made_before_them(tiny, evaluate, text):
    cells = grid("restkv random", budgets="20%", prefills="full bounded")
    result = evaluate(tiny(), "ppl", cells=cells, haystack=text, lengths=[300], n=1, n_scored=6)
    assert len(result.records) == 4
    for record in result.records:
        assert record.scores["kl"] > 1e-4
        assert record.kv["kept"] == 60 + 5
    # The full cache was compared with, but not asked for.
    assert len(result.path.read_text().splitlines()) == 2 + 4


@native
def test_strides_overlap_as_asked(tiny, evaluate, text):
    result = evaluate(
        tiny(), "ppl", cells=[FULL], haystack=text, lengths=[100], n=3, n_scored=4, stride=4
    )
    assert [record.item.id for record in result.records] == ["0-100-4", "4-100-4", "8-100-4"]


@native
def test_without_a_full_cache_the_perplexity_is_there_and_the_rest_is_told(
    tiny, evaluate, text, monkeypatch
):
    """A text that memory does not hold whole."""

    def refuse(config, shape, n_rows, **others):
        if n_rows > 300:
            raise ConfigError("too many rows")

    monkeypatch.setattr("restkv_local.engine.check_memory", refuse)
    cells = grid(budgets="64", prefills="bounded")
    result = evaluate(tiny(), "ppl", cells=cells, haystack=text, lengths=[300], n=2, n_scored=4)
    assert result.lines == ["ppl at 300 tokens, full: nothing to compare with: too many rows"]
    assert [set(record.scores) for record in result.records] == [{"nll"}, {"nll"}]
    # With memory for it, the same command fills in what is missing.
    monkeypatch.undo()
    again = evaluate(tiny(), "ppl", cells=cells, haystack=text, lengths=[300], n=2, n_scored=4)
    assert not again.lines
    assert [set(record.scores) for record in again.records] == [{"nll", "kl", "same_top"}] * 2
    assert read_log(again.path).records == again.records


@native
def test_a_full_cache_that_fails_half_way_is_none_to_compare_with(
    tiny, evaluate, text, monkeypatch
):
    step, n_steps = Engine.step, []

    def fail_once(self, token):
        n_steps.append(token)
        if len(n_steps) == 3:
            raise CacheFullError("no row is left")
        step(self, token)

    monkeypatch.setattr(Engine, "step", fail_once)
    cells = grid("full snapkv random", budgets="64")
    result = evaluate(tiny(), "ppl", cells=cells, haystack=text, lengths=[200], n=1, n_scored=6)
    assert result.lines == ["ppl at 200 tokens, full: no row is left"]
    assert [set(record.scores) for record in result.records] == [{"nll"}, {"nll"}]


@native
def test_a_text_that_is_too_short_is_one_line(tiny, evaluate, text):
    (line,) = evaluate(tiny(), "ppl", haystack=text, lengths=[90000]).lines
    assert "give a longer text or fewer" in line
    (line,) = evaluate(tiny(), "ppl", haystack=text, n_scored=1).lines
    assert line.endswith("predicts all but the first scored token; got n_scored=1")


@given(arrays(np.float32, 7, elements=st.floats(-80, 80, width=32)))
def test_probabilities_add_up(logits):
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)


# Reconstruction


@st.composite
def layers(draw):
    """Attention of a window over all rows, values, factors and rows that stay, the newest among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_group, n_head_kv, n_obs, n_kv, d = (draw(st.integers(1, 4)) for _ in range(5))
    n_kv += n_obs
    q = rng.standard_normal((n_group * n_head_kv, n_obs, d)).astype(np.float32)
    k, v = rng.standard_normal((2, n_head_kv, n_kv, d)).astype(np.float32)
    keep = rng.random((n_head_kv, n_kv)) < 0.5
    keep[:, -n_obs:] = True
    attn = reference.window_attention(q, k, 1.0, q_row=np.arange(n_kv - n_obs, n_kv))
    factors = rng.standard_normal((n_group * n_head_kv, d, d)).astype(np.float32)
    return q, k, v, factors, keep, attn


@given(layers())
def test_the_error_is_that_of_attention_over_the_rows_that_stay(layer):
    q, k, v, factors, keep, attn = layer
    n_obs, n_kv = q.shape[1], k.shape[1]
    kept = reference.window_attention(q, k, 1.0, q_row=np.arange(n_kv - n_obs, n_kv), present=keep)
    values = np.repeat(v, len(q) // len(v), axis=0).astype(np.float64)
    outputs = [np.einsum("hwn,hnd,hde->hwe", a, values, factors) for a in (attn, kept)]
    expected = np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[0])
    assert relative_error(attn, v, factors, keep) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(layers())
def test_keeping_everything_moves_nothing(layer):
    _, _, v, factors, keep, attn = layer
    assert relative_error(attn, v, factors, np.ones_like(keep)) == pytest.approx(0, abs=1e-12)
    assert relative_error(attn, v, None, np.ones_like(keep)) == pytest.approx(0, abs=1e-12)


@native
@pytest.mark.parametrize("build", [builders.llama, builders.gemma2, builders.qwen3])
def test_the_error_is_measured_on_the_models_own_activations(tiny, evaluate, text, build):
    """The more rows, the less error."""
    llama = tiny(build())
    cells = grid("full restkv random kvzip", "uniform global", "10% 40% 100%", "bounded full")
    result = evaluate(llama, "reconstruction", cells=cells, haystack=text, lengths=[300], n=2)
    assert not result.lines
    assert len(result.records) == 2 * 3 * 2 * 3  # bounded and full prefill are one here
    errors = {}
    for record in result.records:
        assert record.extra["projected"]
        assert len(record.extra["errors"]) == len(llama.shape.full_layers)
        assert record.extra["layers"] == list(llama.shape.full_layers)
        assert record.scores["error"] == pytest.approx(np.mean(record.extra["errors"]))
        errors.setdefault((record.cell.policy, record.cell.budget), []).append(
            record.scores["error"]
        )
    mean = {key: np.mean(found) for key, found in errors.items()}
    for policy in ("restkv", "random", "kvzip"):
        assert (
            mean[policy, "10%"]
            > mean[policy, "40%"]
            > mean[policy, "100%"]
            == pytest.approx(0, abs=1e-9)
        )


@native
def test_quantised_rows_are_read_as_the_cache_means_them(tmp_path, evaluate, text):
    path = builders.llama(vocab="bpe", head_dim=64, n_embd=128).write(tmp_path / "q.gguf")
    found = {}
    for kind in ("f16", "q8_0"):
        options = {**SMALL, "type_k": kind, "type_v": kind}
        plan = EvalPlan(
            tasks=["reconstruction"], cells=grid("streamingllm"), lengths=[200], n=1, haystack=text
        )
        with Llama(path, **options) as llama:
            result = run_eval(llama, plan, options, EvalLog(tmp_path / kind, {}, {}))
        found[kind] = result.records[0].extra["errors"]
    np.testing.assert_allclose(found["q8_0"], found["f16"], rtol=0.05)


@native
def test_more_rows_than_the_text_has_keep_all_of_it_and_no_more(tiny, evaluate, text):
    cells = grid(budgets="50 400")
    records = evaluate(
        tiny(), "reconstruction", cells=cells, haystack=text, lengths=[200], n=1
    ).records
    assert [kept_share([record]) for record in records] == [0.25, 1.0]


@native
def test_bytes_have_no_meaning_for_a_plan(tiny, evaluate, text):
    cells = grid(budgets="1MiB 25%")
    result = evaluate(tiny(), "reconstruction", cells=cells, haystack=text, lengths=[200], n=1)
    assert len(result.records) == 1
    assert "1MiB pays for a whole cache" in result.lines[0]


@native
def test_a_grid_that_evicts_nothing_has_nothing_to_reconstruct(tiny, evaluate, text):
    result = evaluate(tiny(), "reconstruction", cells=[FULL], haystack=text, lengths=[200])
    assert result.lines == [
        "reconstruction at 200 tokens: no policy of the grid evicts anything, so nothing moves"
    ]
