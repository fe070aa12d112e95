"""Draws that go on from two numbers."""

import numpy as np
import pytest

from tests import builders

pytestmark = pytest.mark.native


@pytest.fixture
def llama(open_llama):
    llama = open_llama(builders.llama(n_head=4, n_head_kv=2, head_dim=64, n_embd=64), temp=1.0)
    llama.engine.open(8, 8, 0)
    llama.engine.read([11, 12, 13, 14])
    return llama


def make(llama, **options):
    usual = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    return llama.native.make_sampler(**(usual | options))


def draw(llama, sampler, n):
    return [llama.native.sample(sampler) for _ in range(n)]


def test_seed_and_count_are_the_whole_state(llama):
    whole = draw(llama, make(llama), 40)
    later = make(llama)
    later.n_drawn = 25
    assert draw(llama, later, 15) == whole[25:]
    later.reset()
    assert draw(llama, later, 40) == whole
    assert len(set(whole)) > 10


def test_draws_follow_the_softmax(llama):
    """4,000 draws among ten tokens: chi-squared below its 99.9 % point, 27.9 for 9 degrees of freedom."""
    logits = llama.native.logits().astype(np.float64)
    top = np.argsort(logits)[::-1][:10]
    expected = np.exp(logits[top] - logits[top].max())
    expected *= 4000 / expected.sum()
    drawn = draw(llama, make(llama, top_k=10), 4000)
    found = np.array([drawn.count(token) for token in top])
    assert found.sum() == 4000
    assert ((found - expected) ** 2 / expected).sum() < 27.9


def test_another_seed_draws_otherwise(llama):
    assert draw(llama, make(llama, seed=4), 40) != draw(llama, make(llama), 40)


def test_temperature_zero_takes_the_likeliest(llama):
    best = int(llama.native.logits().argmax())
    assert draw(llama, make(llama, temp=0.0), 3) == [best] * 3
