from dataclasses import replace

import pytest

from restkv_local.bench.cell import Cell
from restkv_local.bench.log import Sample
from tests import builders

SMALL = {"n_recent": 8, "n_obs": 8, "n_guide": 16, "n_ubatch": 64, "kernel": 5, "n_threads": 1}


@pytest.fixture
def small():
    """Return options that keep a tiny cache tiny."""
    return dict(SMALL)


@pytest.fixture
def cell(tmp_path):
    """Return a cell of a tiny model: 32 tokens read on, 8 written."""
    model = builders.llama(vocab="bpe").write(tmp_path / "m.gguf")
    base = Cell(model=str(model), options={}, depth=300, n_prompt=32, n_gen=8)
    return lambda depth=300, shifts=False, **options: replace(
        base, depth=depth, shifts=shifts, options=SMALL | {"budget": 64} | options
    )


@pytest.fixture
def result():
    """Return the result of a cell, everything in round numbers."""

    def make(**changes):
        parts = {"decode": 0.5, "guide": 0.2, "score": 0.1, "compact": 0.1, "python": 0.1}
        return {
            "ttft_s": 2.0, "pp_s": 0.5, "tg_s": 4.0, "step_ms": 30.0, "events": 4, "score_ms": 40.0,
            "compact_ms": 8.0, "guide_ms": 100.0, "reading": parts, "writing": parts, "rows": 300.0,
            "budget": 256, "capacity": 1024, "kv_bytes": 3 << 20, "peak_bytes": 200 << 20,
        } | changes  # fmt: skip

    return make


@pytest.fixture
def samples(result):
    """Return three rounds of two columns at two depths; the second column is twice as fast."""
    return [
        Sample(cache, depth, repetition, "abc", result(
            pp_s=(0.5 if cache == "full" else 0.25) * (1 + repetition), rows=float(rows),
            tg_s=128 * (0.01 + 1e-5 * rows), events=0 if cache == "full" else 4,
        ))
        for repetition in range(3)
        for depth in (1000, 4000)
        for cache, rows in (("full", depth), ("restkv 256", 500))
    ]  # fmt: skip
