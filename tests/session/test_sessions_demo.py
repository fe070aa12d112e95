"""Conversations that last on the demo model: the same words after a load, an old fact after many turns."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from restkv_local import ChatSession, Llama
from tests.session.conversation import say

pytestmark = [pytest.mark.native, pytest.mark.model]

NUMBER = "5904317"
FILLER = (
    "The ferry left the quay in the morning and came back with the evening tide. "
    "Nobody in the village thought much about it, and the fishermen mended their nets. "
)
DOCUMENT = f"{FILLER * 4}The code of the harbour safe is {NUMBER}. {FILLER * 16}"
QUESTION = "What is the code of the harbour safe?"
STORY = "Tell me a long story about the ferry and the fishermen."
OPTIONS = {"budget": 256, "n_ubatch": 256, "n_predict": 64, "seed": 4, "n_threads": 1}

# No questions of one pattern: this model then repeats the pattern, with nothing evicted too.
SMALL_TALK = (
    "Thank you.", "I had tea this morning.", "My cat is called Tom.", "It rains a lot here.",
    "Tomorrow I visit my sister.", "She has a big garden.", "We will cook soup.",
    "Then we take a long walk.", "I hope for sunshine.", "Wish me a good trip.",
)  # fmt: skip

GO_ON = """
import sys
from restkv_local import ChatSession, Llama
with Llama("demo", n_threads=1) as llama:
    session = ChatSession(llama)
    assert session.load(sys.argv[1]) == "by snapshot"
    sys.stdout.write("".join(session.send(sys.argv[2])))
"""


@pytest.mark.parametrize("temp", [0.0, 0.8])
def test_a_loaded_conversation_says_the_same_64_tokens(tmp_path, temp):
    with Llama("demo", temp=temp, **OPTIONS) as llama:
        session = ChatSession(llama)
        assert NUMBER in say(session, QUESTION, documents=[DOCUMENT])
        session.save(tmp_path / "s")
        expected = say(session, STORY)
        assert session.report.usage["completion_tokens"] == 64
        assert session.report.kv["evicted"] > 300
        assert session.undo() == "by snapshot"
        assert say(session, STORY) == expected
        # 30 layers, 3 heads of 64 values, K and V of 2 bytes; queries, positions and text beside it
        n_bytes = (tmp_path / "s").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, str(tmp_path / "s"), STORY],
        capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert n_bytes < 1.5 * llama.engine.rows.mean * 30 * 3 * 64 * 2 * 2 + 6e6


@pytest.mark.slow
def test_rows_of_an_old_fact_survive_ten_turns_about_something_else():
    """4,400 tokens read with 448 rows; the small talk reads only itself, and evicts.

    Rows are counted: whether so small a model then says the number is chance, and benchmarks/talk.py's question.
    """
    text = Path("benchmarks/harbour.txt").read_text(encoding="utf-8")
    question = "What is the registration number of the red lighthouse?"
    with Llama("demo", budget=448, temp=0.0, n_predict=40, n_threads=1) as llama:
        session = ChatSession(llama)
        pieces = [
            llama.native.piece(token) for token in session.prepare(question, documents=[text])[0]
        ]
        start = b"".join(pieces).index(b"4182937")
        ends = np.cumsum([len(piece) for piece in pieces])
        fact = np.flatnonzero((ends > start) & (ends <= start + len("4182937")))
        assert "4182937" in say(session, question, documents=[text])
        n_events = session.report.kv["events"]
        for small in SMALL_TALK:
            say(session, small)
            assert session.report.timings["prompt_n"] < 30
        kv = session.report.kv
        assert kv["events"] > n_events
        held = [
            np.isin(fact, head).mean() for layer in llama.engine.rows.positions for head in layer
        ]
        assert np.mean(held) > 1.5 * kv["kept"] / kv["seen"]
