"""Context shift as llama.cpp does it: the cache fills to its last row, then the older half goes."""

import math

import numpy as np
import pytest

from restkv_local import Llama
from restkv_local.bench.shift import ContextShift

pytestmark = pytest.mark.native


@pytest.fixture
def engine(cell):
    """Return the engine of a cache of 512 rows, 4 of them sinks."""
    wanted = cell(policy="streamingllm", budget=200)
    with Llama(wanted.model, **wanted.options) as llama:
        llama.engine.open(3000, 8, 0)
        assert llama.engine.capacity == 512
        yield llama.engine


@pytest.fixture
def text():
    return np.random.default_rng(0).integers(10, 250, 3000).tolist()


def read(engine, tokens):
    ContextShift(engine).read(tokens)


def write(engine, tokens):
    shift = ContextShift(engine)
    for token in tokens:
        shift.step(token)


@pytest.mark.parametrize("append", [read, write])
def test_it_shifts_once_in_half_a_capacity_and_no_row_lies_idle(engine, text, append):
    """It used to shift whenever a chunk had no room: 61 times in 32,768 tokens where 1,792 rows want 35."""
    append(engine, text)
    counters = engine.counters
    assert (counters.seen, counters.peak) == (3000, engine.capacity)
    assert counters.events == math.ceil((3000 - 512) / 254)


@pytest.mark.parametrize("append", [read, write])
def test_the_first_tokens_stay_and_the_newer_half_of_the_others(engine, text, append):
    append(engine, text[:513])
    assert engine.counters.events == 1
    stayed = [*range(4), *range(512 - 254, 513)]
    assert (engine.rows.positions == stayed).all()
    assert engine.native.position == len(stayed) - 1  # renumbered


def test_what_has_room_stays_whole(engine, text):
    ContextShift(engine).read(text[:512])
    assert (engine.counters.events, engine.rows.used) == (0, 512)


def test_reading_on_begins_where_writing_ended(engine, text):
    write(engine, text[:600])
    read(engine, text[600:1200])
    assert engine.counters.events == math.ceil((1200 - 512) / 254)
    assert engine.counters.peak == engine.capacity
