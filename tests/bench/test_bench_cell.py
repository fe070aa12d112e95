"""One cell, measured for real on a tiny model: the figures are those of what happened."""

import math
from dataclasses import replace

import pytest

from restkv_local import Llama
from restkv_local.bench.cell import measure
from restkv_local.bench.profile import PARTS, Profile
from restkv_local.bench.text import tokenize_text
from restkv_local.errors import ConfigError
from restkv_local.model.model_file import kv_bytes_per_token, read_model
from tests import builders

pytestmark = pytest.mark.native


def test_a_bounded_cache_reports_its_evictions_and_stays_bounded(cell):
    found = measure(cell(depth=900))
    assert found["events"] > 2
    assert min(found[key] for key in ("score_ms", "compact_ms", "guide_ms")) > 0
    assert (found["budget"], found["capacity"]) == (64, 256)
    assert 64 < found["rows"] <= 256 - 16  # the guide
    shape = read_model(cell().model)
    assert found["kv_bytes"] == 256 * kv_bytes_per_token(shape)


def test_a_whole_cache_evicts_nothing_and_writes_behind_the_prompt_itself(cell):
    found = measure(cell(depth=300, policy="full"))
    assert (found["events"], found["score_ms"], found["guide_ms"]) == (0, 0, 0)
    # Eight steps behind 300 rows: what was read on before is gone again.
    assert found["rows"] == 300 + (1 + 8) / 2


@pytest.mark.parametrize("policy", ["restkv", "h2o", "expected-attention", "streamingllm"])
def test_without_an_eviction_writing_begins_behind_the_prompt_too(cell, policy):
    found = measure(cell(depth=70, policy=policy, budget=96))
    assert found["events"] == 0
    assert found["rows"] == 70 + (1 + 8) / 2


@pytest.mark.parametrize("policy", ["restkv", "kvzip", "lru"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_any_policy_and_allocation_can_be_measured(cell, policy, allocation):
    found = measure(cell(depth=500, policy=policy, allocation=allocation, n_ubatch=128))
    assert found["events"] > 0
    assert found["ttft_s"] > 0


@pytest.mark.parametrize("n_ubatch", [16, 64])
def test_context_shift_drops_half_once_the_cache_is_full(cell, n_ubatch):
    found = measure(cell(depth=2000, shifts=True, policy="streamingllm", n_ubatch=n_ubatch))
    # Of 256 rows 130 stay, so that 126 tokens have room until the next shift.
    assert found["capacity"] == 256
    assert found["events"] == math.ceil((2000 - 256) / 126)
    assert found["guide_ms"] < 1  # no probe: the clock alone


def test_a_prompt_without_a_shift_is_read_again_before_more_is_read(cell):
    found = measure(cell(depth=250, shifts=True, policy="streamingllm"))
    assert found["events"] == 0
    assert found["rows"] < 250  # the sixth token written found no row


def test_nothing_read_before_has_no_time_to_first_token(cell):
    found = measure(cell(depth=0))
    assert found["ttft_s"] is None
    assert found["rows"] == (1 + 8) / 2


@pytest.mark.parametrize("phase", ["reading", "writing"])
@pytest.mark.parametrize("policy", ["restkv", "kvzip", "full"])
def test_the_parts_are_all_of_the_time(cell, phase, policy):
    found = measure(cell(depth=500, policy=policy, n_ubatch=128))
    parts = found[phase]
    assert tuple(parts) == PARTS
    assert min(parts.values()) >= 0
    if phase == "reading":
        assert sum(parts.values()) == pytest.approx(found["ttft_s"], rel=0.05, abs=0.005)
        assert (parts["score"] > 0) == (policy != "full")
        assert (parts["guide"] > 0) == (policy != "full")
        assert parts["guide"] <= found["guide_ms"] / 1e3
        assert parts["compact"] <= found["compact_ms"] / 1e3
    assert parts["decode"] > 0


def test_a_guide_that_is_off_costs_nothing(cell):
    found = measure(cell(depth=500, guide="off"))
    assert found["events"] > 0
    assert found["guide_ms"] < 1  # no probe: the clock alone
    assert found["reading"]["guide"] == 0


def test_sliding_window_layers_can_be_measured_beside_a_budget_and_whole(tmp_path, cell):
    path = builders.gemma3(vocab="bpe").write(tmp_path / "gemma3.gguf")
    for options in ({}, {"policy": "full"}):
        found = measure(replace(cell(depth=400, **options), model=str(path)))
        assert found["tg_s"] > 0


def test_a_profile_begins_anew_when_told(cell):
    with Llama(cell().model, **cell().options) as llama:
        profile = Profile(llama.native)
        llama.engine.open(64, 8, 0)
        llama.engine.read(tokenize_text(llama.native, 64))
        assert profile.stop()["decode"] > 0
        profile.start()
        parts = profile.stop()
        assert parts["decode"] == 0
        assert 0 <= parts["python"] < 0.1


@pytest.mark.parametrize("n", [1, 5, 1000, 300_000])
def test_the_text_is_as_long_as_asked(cell, n):
    """Longer than the text itself, too: bytes are tokens here, and it has 700,000."""
    with Llama(cell().model, **cell().options) as llama:
        tokens = tokenize_text(llama.native, n)
        assert len(tokens) == n
        assert tokens[0] == llama.token_bos()
        assert tokens[: min(n, 1000)] == tokenize_text(llama.native, 1000)[:n]


def test_what_the_engine_refuses_is_said(cell):
    with pytest.raises(ConfigError, match="n_guide must be at most n_ubatch"):
        measure(cell(n_guide=65))
