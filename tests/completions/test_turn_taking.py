"""One call at a time: others are told, and nothing that ends early leaves half a state."""

import _thread
import gc
import signal
import threading
import time

import pytest

from restkv_local import ChatSession
from restkv_local.chat.ask import DocumentReader, ask
from restkv_local.documents import parse_document
from restkv_local.errors import BusyError, RestKVError
from restkv_local.turn_taking import TurnTaking
from tests.completions.conftest import TINY, text_of

pytestmark = pytest.mark.native

OPTIONS = {"max_tokens": 10, "temperature": 0.0}


def in_thread(call):
    """Run ``call`` in a thread of its own; return its result or the error it raised."""
    out = []

    def run():
        try:
            out.append(call())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return out[0]


def test_another_thread_is_refused_while_a_call_runs(llm, tokens):
    """Ten times over, a call is made by another thread right in the middle of an answer."""
    refused = []

    def meanwhile(ids, logits):
        refused.append(in_thread(lambda: llm(tokens(20, seed=1), **OPTIONS)))
        return False

    result = llm(tokens(100), stopping_criteria=meanwhile, **OPTIONS)
    assert len(refused) >= 10
    for error in refused:
        assert isinstance(error, RestKVError)
        assert str(error).startswith("the model is busy with another call")
        assert "\n" not in str(error)
    assert text_of(result) == text_of(llm(tokens(100), **OPTIONS))


def test_a_refused_chat_changes_nothing_of_the_running_one(llm):
    """Messages are rendered before the call is refused: that must only look at what the cache holds."""
    messages = [{"role": "user", "content": "the code of the answer"}]
    options = {"temperature": 0.0, "max_tokens": 12}
    expected = llm.create_chat_completion(messages, **options)["choices"]
    refused = []
    step = llm.engine.step

    def stepping(token):
        refused.append(in_thread(lambda: llm.create_chat_completion(messages)))
        step(token)

    llm.engine.step = stepping
    llm.reset()
    assert llm.create_chat_completion(messages, **options)["choices"] == expected
    assert len(refused) > 5
    assert all("busy" in str(error) for error in refused)


def test_another_thread_is_refused_between_the_chunks_of_a_stream(llm, tokens):
    expected = text_of(llm(tokens(100), **OPTIONS))
    stream = llm(tokens(100), stream=True, **OPTIONS)
    said = next(stream)["choices"][0]["text"]
    for call in (lambda: llm(tokens(20), **OPTIONS), llm.reset, llm.save_state):
        assert "busy" in str(in_thread(call))
    # The stream itself may change threads, as in a web server.
    chunk = in_thread(lambda: next(stream))
    said += chunk["choices"][0]["text"]
    assert said + text_of(stream) == expected
    assert text_of(in_thread(lambda: llm(tokens(100), **OPTIONS))) == expected


def test_a_new_call_of_the_same_thread_ends_a_stream(llm, tokens):
    stream = llm(tokens(100), stream=True, **OPTIONS)
    next(stream)
    expected = text_of(llm(tokens(50, seed=1), **OPTIONS))
    with pytest.raises(RestKVError, match="a newer call has taken") as error:
        next(stream)
    assert "\n" not in str(error.value)
    llm.reset()
    assert text_of(llm(tokens(50, seed=1), **OPTIONS)) == expected


def test_a_session_ends_a_stream(llm, tokens):
    stream = llm(tokens(100), stream=True, **OPTIONS)
    next(stream)
    answer = "".join(ChatSession(llm).send("the code"))
    with pytest.raises(RestKVError, match="taken"):
        next(stream)
    assert "".join(ChatSession(llm).send("the code")) == answer


def test_a_call_from_a_callback_is_refused(llm, tokens):
    def again(ids, logits):
        llm(tokens(5))

    with pytest.raises(RestKVError, match="busy"):
        llm(tokens(50), stopping_criteria=again)
    assert llm(tokens(50), **OPTIONS)["kv"]["seen"] >= 50


def test_closing_a_stream_draws_nothing_more(llm, tokens, monkeypatch):
    steps = []
    step = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda token: (steps.append(token), step(token)))
    for stop in ("close", "drop"):
        stream = llm(tokens(100), stream=True, **OPTIONS)
        next(stream), next(stream)
        n = len(steps)
        if stop == "close":
            stream.close()
        else:
            del stream
            gc.collect()
        assert len(steps) == n
        assert in_thread(lambda: llm(tokens(10), max_tokens=1))["kv"]["seen"] == 10
    chat = llm.create_chat_completion([{"role": "user", "content": "the"}], stream=True)
    next(chat)
    chat.close()
    assert in_thread(lambda: llm(tokens(10), max_tokens=1))["kv"]["seen"] == 10


def test_a_stream_nobody_reads_does_nothing(llm, tokens):
    stream = llm(tokens(100), stream=True)
    assert not llm.engine.is_open
    stream.close()
    assert llm(tokens(100), max_tokens=1)["kv"]["seen"] == 100


@pytest.mark.parametrize("after", [2, 5])
def test_ctrl_c_while_reading_keeps_what_was_read(open_llama, tokens, after):
    prompt = tokens(500)
    expected = text_of(open_llama(TINY)(prompt, **OPTIONS))

    pressed = []

    def press(progress):
        if progress.processed == 64 * after and not pressed:
            pressed.append(True)
            _thread.interrupt_main()
            time.sleep(0.05)

    llm = open_llama(TINY, on_progress=press)
    with pytest.raises(KeyboardInterrupt):
        llm(prompt, **OPTIONS)
    counters = llm.engine.counters
    assert 64 * after <= counters.seen < 500
    assert text_of(llm(prompt, **OPTIONS)) == expected
    # The rest was read, not the whole: the counters went on.
    assert llm.engine.counters is counters


def test_ctrl_c_while_answering_leaves_the_model_usable(llm, tokens):
    expected = text_of(llm(tokens(100), **OPTIONS))
    stream = llm(tokens(90), stream=True, **OPTIONS)
    next(stream)

    def press(ids, logits):
        if len(ids) == 103:
            _thread.interrupt_main()
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        llm(tokens(100), stopping_criteria=press, **OPTIONS)
    assert text_of(llm(tokens(100), **OPTIONS)) == expected
    assert text_of(in_thread(lambda: llm(tokens(100), **OPTIONS))) == expected


def test_an_older_turn_that_ends_frees_nothing():
    turns = TurnTaking()
    with turns.turn() as old:
        pass
    new = turns.turn()
    new.__enter__()
    with pytest.raises(RestKVError, match="taken"), old.work():
        pass
    assert "busy" in str(in_thread(lambda: turns.turn().__enter__()))
    new.__exit__(None, None, None)


def test_a_conversation_takes_its_turn_too(llm):
    """Another thread is refused while a chat session answers, and the answer is what it would have been."""
    session = ChatSession(llm)
    whole = "".join(session.send("what is it?"))
    session.clear()
    refused, said = [], []
    for piece in session.send("what is it?"):
        said.append(piece)
        refused.append(in_thread(lambda: llm("other", **OPTIONS)))
    assert "".join(said) == whole
    assert refused
    assert all(isinstance(error, BusyError) for error in refused)


def test_a_newer_call_of_the_same_thread_ends_a_conversations_stream(llm):
    stream = ChatSession(llm).send("what is it?")
    next(stream)
    llm("other", **OPTIONS)
    with pytest.raises(BusyError, match="a newer call has taken"):
        next(stream)


def test_no_other_thread_takes_the_cache_from_a_running_call(llm, tokens):
    """Conversations and readers free the cache when they begin, end or change: that must wait."""
    session = ChatSession(llm)
    reader = DocumentReader(llm, [parse_document(b"a text", "text")], mode="ingest")
    expected = text_of(llm(tokens(100), **OPTIONS))
    calls = [
        lambda: ChatSession(llm),
        session.clear,
        session.undo,
        lambda: session.set_budget(70),
        lambda: session.set_policy("snapkv"),
        lambda: session.save("never.restkv"),
        lambda: next(ask(llm, "a text", ["why?"])),
        reader.read,
    ]
    refused = []

    def meanwhile(ids, logits):
        refused.extend(in_thread(call) for call in calls)
        return len(refused) > len(calls)

    said = text_of(llm(tokens(100), stopping_criteria=meanwhile, **OPTIONS))
    assert expected.startswith(said)
    assert len(refused) >= len(calls)
    assert all(isinstance(error, BusyError) for error in refused)


def test_a_reader_closed_meanwhile_gives_the_rules_back_afterwards(llm, tokens):
    """Also the one of an ask() that nobody finished: nothing is left to try again with."""
    engine = llm.engine
    answers = ask(llm, "a text", ["why?", "who?"], mode="ingest")
    next(answers)
    assert llm.engine is not engine
    closed = []

    def meanwhile(ids, logits):
        if not closed:
            closed.append(in_thread(answers.close))
        return False

    llm(tokens(100), stopping_criteria=meanwhile, **OPTIONS)
    assert closed == [None]
    "".join(ChatSession(llm).send("why?"))
    assert llm.engine is engine


@pytest.mark.parametrize("way", ["regenerate", "edit", "reread"])
def test_the_turn_of_a_stream_left_open_is_the_last_one(llm, way):
    session = ChatSession(llm)
    "".join(session.send("one"))
    stream = session.send("two", documents=["a text"])
    next(stream)
    "".join(session.edit("three") if way == "edit" else getattr(session, way)())
    asked = ["one", "three" if way == "edit" else "two"]
    assert [turn.question for turn in session.turns] == asked
    assert session.turns[-1].documents


@pytest.mark.parametrize("do", ["send", "clear", "load", "undo", "another"])
def test_a_stream_left_open_ends_before_the_next_call(llm, tmp_path, do):
    """What was said so far stays, and closing the stream later changes nothing."""
    session = ChatSession(llm)
    "".join(session.send("one"))
    session.save(tmp_path / "one.restkv")
    stream = session.send("two")
    said = next(stream)
    if do == "send":
        "".join(session.send("three"))
    elif do == "another":
        "".join(ChatSession(llm).send("three"))
    else:
        {"clear": session.clear, "load": lambda: session.load(tmp_path / "one.restkv"),
         "undo": session.undo}[do]()  # fmt: skip
    turns = session.turns
    asked = {"send": ["one", "two", "three"], "clear": [], "another": ["one", "two"]}
    assert [turn.question for turn in turns] == asked.get(do, ["one"])
    if len(turns) > 1:
        assert turns[1].answer == said
    stream.close()
    assert session.turns == turns


@pytest.mark.parametrize("temp", [0.0, 0.8])
def test_closing_the_model_ends_an_open_stream_first(open_llama, temp):
    llama = open_llama(TINY, temp=temp)
    session = ChatSession(llama)
    stream = session.send("the code of the answer")
    next(stream)
    llama.close()
    assert session.report.usage["completion_tokens"] > 0
    with pytest.raises(BusyError):
        next(stream)
    llama.close()


def test_a_model_is_not_closed_under_a_running_call(llm, tokens):
    refused = []

    def close(ids, logits):
        for call in (llm.close, lambda: in_thread(llm.close)):
            try:
                refused.append(call())
            except BusyError as error:
                refused.append(error)
        return False

    llm(tokens(100), stopping_criteria=close, **OPTIONS)
    assert len(refused) >= 20
    assert all(isinstance(error, BusyError) for error in refused)


def test_a_callback_that_asks_an_older_stream_is_told(open_llama):
    session = ChatSession(open_llama(TINY))
    old = session.send("the code of the answer")
    next(old)
    told = []

    def ask_old(progress):
        with pytest.raises(BusyError, match="a newer call"):
            next(old)
        told.append(progress)

    "".join(session.send("and of the other", on_progress=ask_old))
    assert told


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts")
def test_ctrl_c_at_any_moment_leaves_nobody_shut_out():
    turns = TurnTaking()
    n_interrupts = 0

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(1000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-6 + i % 50 * 1e-6)
                for _ in range(10_000):  # without an end it would hang where an interrupt got lost
                    with turns.call():
                        pass
            except KeyboardInterrupt:
                n_interrupts += 1
            assert not turns._lock.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_interrupts > 900
