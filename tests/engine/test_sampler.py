"""Draws that go on from what can be written down: two numbers, and the tokens drawn."""

import subprocess
import sys

import numpy as np
import pytest

from restkv_local.errors import ConfigError
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
    return [sampler.draw(llama.native.logits()) for _ in range(n)]


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


def test_drawing_leaves_the_logits_as_they_are(llama):
    before = llama.native.logits().copy()
    draw(llama, make(llama, repeat_penalty=1.3, logit_bias={20: 3.0}), 5)
    np.testing.assert_array_equal(llama.native.logits(), before)


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_penalty": 2.0},
        {"frequency_penalty": 0.5, "n_last": 7},
        {"presence_penalty": 3.0},
        {"grammar": "root ::= [a-z]* [0-9]* [A-Z]*"},
        {"grammar": 'root ::= ("é" | "☺" | "b")*', "presence_penalty": 1.0, "typical_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("temp", [0.0, 1.3])
def test_accepted_tokens_restore_what_comes_from_history(llama, options, temp):
    options = options | {"temp": temp, "logit_bias": {2: -np.inf, 4: -np.inf}}
    whole = draw(llama, make(llama, **options), 40)
    later = make(llama, **options)
    later.accept(whole[:25])
    assert later.n_drawn == 25
    assert draw(llama, later, 15) == whole[25:]
    later.reset()
    assert draw(llama, later, 40) == whole


def test_penalties_begin_anew_with_an_answer(llama):
    sampler = make(llama, temp=0.0, repeat_penalty=1e6)
    first = draw(llama, sampler, 5)
    assert len(set(first)) == 5
    sampler.begin_answer()
    assert draw(llama, sampler, 5) == first
    assert sampler.n_drawn == 10


def test_penalties_are_llama_cpps_arithmetic(llama):
    """Logits after three draws of one token and one of another, worked out by hand."""
    logits = np.full(llama.native.n_vocab, -50.0, np.float32)
    logits[[70, 71, 72]] = [2.0, -1.0, 0.5]
    sampler = make(
        llama, temp=0.0, repeat_penalty=2.0, frequency_penalty=0.1, presence_penalty=0.05
    )
    sampler.accept([70, 70, 70, 71])
    # 70 stands at 2/2 - 0.1 n - 0.05 after n draws of it, 72 at 0.5: 0.65, 0.55, then 0.45.
    assert [sampler.draw(logits) for _ in range(3)] == [70, 70, 72]


def test_a_grammar_draws_what_the_softmax_of_the_allowed_says(llama):
    logits = llama.native.logits().astype(np.float64)
    text = [llama.native.piece(token) for token in range(llama.native.n_vocab)]
    allowed = [token for token, piece in enumerate(text) if piece in (b"a", b"b", b"c")]
    expected = np.exp(logits[allowed] - logits[allowed].max())
    expected *= 2000 / expected.sum()
    drawn = []
    for seed in range(2000):
        sampler = make(llama, grammar="root ::= [abc]", seed=seed)
        drawn += draw(llama, sampler, 1)
        sampler.close()
    found = np.array([drawn.count(token) for token in allowed])
    assert found.sum() == 2000
    # Six tokens, letters and bytes: 99.9 % point for 5 degrees of freedom.
    assert len(allowed) == 6
    assert ((found - expected) ** 2 / expected).sum() < 20.6


def test_a_token_the_grammar_does_not_allow_is_refused_not_fatal(llama):
    a = next(t for t in range(llama.native.n_vocab) if llama.native.piece(t) == b"a")
    sampler = make(llama, grammar='root ::= "ab"')
    with pytest.raises(ConfigError, match=f"does not allow token {a} here"):
        sampler.accept([a, a])
    assert sampler.n_drawn == 1
    assert llama.native.piece(sampler.draw(llama.native.logits())) == b"b"
    with pytest.raises(ConfigError, match="does not allow token 2"):
        make(llama, grammar='root ::= "ab"').accept([2])


@pytest.mark.parametrize("text", ["\udc80", "\0"])
def test_a_grammar_that_is_no_text_is_refused_in_one_line(llama, text):
    with pytest.raises(ConfigError, match=r"must be text in UTF-8; it holds .* at place 12"):
        make(llama, grammar=f'root ::= "a{text}b"')


def test_closing_twice_is_closing_once(llama):
    sampler = make(llama, grammar="root ::= [a-z]+")
    sampler.close()
    sampler.close()


GRAMMAR_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from restkv_local.errors import ConfigError
from restkv_local.native.context import NativeContext

PARTS = ["root", "x", "::=", '"a"', '"', "[a-z]", "[^a]", "[", "(", ")", "|", "*", "+", "?", "{2}", "{3,1}",
         "{", "\\n", ".", "\\\\", '"é"', '"\\\\x"', '"\\\\u00e9"', "#", "[]", '""', "<", "<s>", "!<[3]>"]
native = NativeContext(Path(sys.argv[1]))
rng = np.random.default_rng(0)
usual = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}
drawn = 0
for n in range(4000):
    grammar = ("root ::= " if n % 4 else "") + " ".join(rng.choice(PARTS, rng.integers(11)))
    try:
        sampler = native.make_sampler(**usual, grammar=grammar)
        for _ in range(8):
            token = sampler.draw(rng.standard_normal(native.n_vocab).astype(np.float32))
            drawn += 1
            if native.is_eog(token):
                break
        sampler.close()
    except ConfigError:
        pass
print("drawn", drawn)
"""


def test_no_grammar_ends_the_process_or_hangs(tmp_path):
    """llama.cpp aborts on what it does not expect, so this runs in a process of its own."""
    model = builders.llama().write(tmp_path / "m.gguf")
    done = subprocess.run(
        [sys.executable, "-c", GRAMMAR_SCRIPT, str(model)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 500
