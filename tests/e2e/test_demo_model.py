"""The main job on the demo model: read more than the cache holds, answer from it, say what was dropped."""

import _thread
import threading
import time

import numpy as np
import pytest

from restkv_local import ChatSession, Llama

pytestmark = [pytest.mark.native, pytest.mark.model]

NUMBER = "5904317"
FILLER = (
    "The ferry left the quay in the morning and came back with the evening tide. "
    "Nobody in the village thought much about it, and the fishermen mended their nets. "
)
DOCUMENT = f"{FILLER * 8}The code of the harbour safe is {NUMBER}. {FILLER * 30}"
N_PREDICT = 24
QUESTION = "What is the code of the harbour safe?"
JSON_KEYS = {
    "response", "finish_reason", "model", "version", "usage", "timings", "kv",
}  # fmt: skip
KV_KEYS = {
    "policy", "allocation", "prefill", "positions", "budget", "capacity", "peak", "seen", "kept",
    "evicted", "events", "score_ms", "compact_ms", "guide_ms", "bytes", "bytes_full",
}  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    with Llama("demo", budget=256, n_ubatch=256, temp=0.0, n_predict=N_PREDICT) as llama:
        yield llama


def test_a_fact_from_the_evicted_part_is_found_and_everything_is_reported(llama):
    session = ChatSession(llama)
    answer = "".join(session.send(QUESTION, documents=[DOCUMENT]))
    report = session.report.to_json()
    assert NUMBER in answer
    assert set(report) == JSON_KEYS
    kv = report["kv"]
    assert set(kv) == KV_KEYS
    assert kv["seen"] == report["usage"]["total_tokens"] > 1200
    assert kv["evicted"] == kv["seen"] - kv["kept"] > 600
    assert kv["events"] >= 2
    assert kv["peak"] <= kv["capacity"]
    assert kv["bytes"] < kv["bytes_full"]
    is_cut = report["timings"]["predicted_n"] == N_PREDICT
    assert report["finish_reason"] == ("length" if is_cut else "stop")


def test_turns_go_on_past_the_budget_and_read_only_what_is_new(llama):
    session = ChatSession(llama, system="You answer in one short sentence.")
    list(session.send(QUESTION, documents=[DOCUMENT]))
    first = session.report
    list(session.send("Who mended their nets?"))
    second = session.report
    assert second.timings["prompt_n"] < 40
    assert second.timings["cache_n"] == first.kv["kept"]
    assert (
        second.kv["seen"]
        == first.kv["seen"] + second.timings["prompt_n"] + second.timings["predicted_n"]
    )
    assert not second.notes
    # The system prompt is still there, in every layer and head.
    n_pinned = session.context().n_pinned
    assert n_pinned > 10
    pinned = llama.engine.rows.positions[..., :n_pinned]
    assert (pinned == np.arange(n_pinned)).all()


def test_a_cleared_session_answers_like_a_fresh_one(llama):
    session = ChatSession(llama)
    answers = []
    for _ in range(2):
        answers.append("".join(session.send(QUESTION, documents=[DOCUMENT])))
        session.clear()
    assert answers[0] == answers[1]


def interrupt_after(seconds):
    timer = threading.Timer(seconds, _thread.interrupt_main)
    timer.start()
    return timer


def test_ctrl_c_while_reading_stops_within_a_second_and_keeps_the_session(llama):
    session = ChatSession(llama)
    interrupt_after(1.0)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        list(session.send(QUESTION, documents=[DOCUMENT * 6]))
    assert time.perf_counter() - start < 2.5
    report = session.report
    assert report.finish_reason == "cancelled"
    assert report.kv["seen"] == report.usage["prompt_tokens"]
    answer = "".join(session.send("Say yes."))
    assert answer
    assert session.report.finish_reason in ("stop", "length")


def test_ctrl_c_while_answering_keeps_the_partial_answer(llama):
    session = ChatSession(llama)
    stream = session.send("Tell me a long story about a ferry.")
    said = [next(stream) for _ in range(4)]
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert session.messages[-1] == {"role": "assistant", "content": "".join(said)}
    list(session.send("Go on."))
    assert session.report.timings["cache_n"] > 0
    assert not session.report.notes


def test_closing_the_stream_cancels(llama):
    session = ChatSession(llama)
    stream = session.send("Tell me a long story about a ferry.")
    next(stream)
    stream.close()
    assert session.report.finish_reason == "cancelled"
    assert session.report.response


def test_streaming_window_loses_what_scores_keep():
    """A policy that ignores the question must fail here, or the needle proves nothing."""
    with Llama(
        "demo", budget=256, n_ubatch=256, temp=0.0, n_predict=24, policy="streamingllm"
    ) as llama:
        session = ChatSession(llama)
        answer = "".join(session.send(QUESTION, documents=[DOCUMENT]))
        assert session.report.kv["evicted"] > 600
    assert NUMBER not in answer


def test_a_seed_repeats_an_answer_in_the_same_process():
    with Llama("demo", budget=256, temp=1.0, seed=7, n_predict=24) as llama:
        answers = ["".join(ChatSession(llama).send("Tell me about rain.")) for _ in range(2)]
    assert answers[0] == answers[1]
