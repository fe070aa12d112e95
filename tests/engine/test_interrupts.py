"""Ctrl-C at the moments that leave a session between two states."""

import _thread
import signal
import threading
import time

import numpy as np
import pytest

from restkv_local import ChatSession, device_factors
from restkv_local.errors import InputError, NativeError
from restkv_local.native import FAILED
from restkv_local.native.worker import Worker
from tests import builders
from tests.engine.test_engine import check_invariants, read

pytestmark = pytest.mark.native

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)


def interrupt_once(monkeypatch, bindings, name):
    """Press Ctrl-C while the native function runs; it still does all of its work."""
    call = getattr(bindings, name)
    pressed = []

    def late(*args):
        if not pressed:
            pressed.append(True)
            _thread.interrupt_main()
            time.sleep(0.05)
        return call(*args)

    monkeypatch.setattr(bindings, name, late)
    return pressed


@pytest.mark.parametrize("guide", [0, 12], ids=["window", "guide"])
@pytest.mark.parametrize("name", ["compact", "score"])
def test_an_eviction_happens_whole_or_not_at_all(open_llama, tokens, monkeypatch, name, guide):
    llama = open_llama(MODEL, n_recent=8)
    pressed = interrupt_once(monkeypatch, llama.native._restkv, name)
    engine = llama.engine
    engine.open(400, 16, 0)
    with pytest.raises(KeyboardInterrupt):
        engine.read(tokens(400), guide=tokens(guide, seed=9))
    assert pressed
    check_invariants(engine)
    assert engine.counters.events == (1 if name == "compact" else 0)
    seen = engine.counters.seen
    engine.read(tokens(400)[seen:], guide=tokens(guide, seed=9))
    check_invariants(engine)
    assert engine.counters.seen == 400
    if name == "score":
        assert np.isfinite(llama.native.logits()).all()


def test_a_token_that_was_decoded_too_late_to_stop_is_not_there(open_llama, tokens, monkeypatch):
    llama = open_llama(MODEL)
    engine = read(llama, tokens(40))
    decode = llama.native._restkv.decode

    def late(*args):
        status = decode(*args)
        _thread.interrupt_main()
        time.sleep(0.05)
        return status

    monkeypatch.setattr(llama.native._restkv, "decode", late)
    with pytest.raises(KeyboardInterrupt):
        engine.step(tokens(1)[0])
    monkeypatch.undo()
    check_invariants(engine)
    assert engine.counters.seen == 40
    engine.step(tokens(1)[0])
    check_invariants(engine)


def stop_next_decode(monkeypatch, llama):
    """Press Ctrl-C just before the next tokens are decoded."""
    decode = llama.native._restkv.decode

    def early(*args):
        monkeypatch.setattr(llama.native._restkv, "decode", decode)
        _thread.interrupt_main()
        time.sleep(0.05)
        return decode(*args)

    monkeypatch.setattr(llama.native._restkv, "decode", early)


@pytest.mark.parametrize("policy", ["h2o", "lru", "expected-attention"])
def test_what_was_observed_before_ctrl_c_still_counts(open_llama, tokens, monkeypatch, policy):
    text, more = tokens(45), tokens(300, seed=3)
    llama, calm = open_llama(MODEL, policy=policy), open_llama(MODEL, policy=policy)
    for one in (llama, calm):
        read(one, text)
    stop_next_decode(monkeypatch, llama)
    with pytest.raises(KeyboardInterrupt):
        llama.engine.step(tokens(1)[0])
    for one in (llama, calm):
        one.engine.read(more)
    assert calm.engine.counters.events > 0
    np.testing.assert_array_equal(llama.engine.rows.positions, calm.engine.rows.positions)


def test_a_full_cache_can_still_be_evicted_from_after_ctrl_c(open_llama, tokens, monkeypatch):
    llama = open_llama(MODEL, guide="off")
    engine = llama.engine
    engine.open(600, 16, 0)
    engine.read(tokens(engine.capacity - 30))
    stop_next_decode(monkeypatch, llama)
    with pytest.raises(KeyboardInterrupt):
        engine.step(tokens(1)[0])
    engine.read(tokens(60, seed=3))
    assert engine.counters.events == 1
    check_invariants(engine)


@pytest.mark.parametrize("policy", ["h2o", "expected-attention"])
def test_no_query_is_counted_twice_or_left_out(open_llama, tokens, monkeypatch, policy):
    options = {"policy": policy, "n_ubatch": 256}
    llama, calm = open_llama(MODEL, **options), open_llama(MODEL, **options)
    for one in (llama, calm):
        one.engine.open(600, 16, 0)
        one.engine.read(tokens(200), evict=False)
    name = "query_moments" if policy == "expected-attention" else "score"
    call, calls = getattr(llama.native, name), []

    def press(*args, **options):
        calls.append(name)
        if len(calls) == 3:
            _thread.interrupt_main()
            time.sleep(0.05)
        return call(*args, **options)

    monkeypatch.setattr(llama.native, name, press)
    with pytest.raises(KeyboardInterrupt):
        llama.engine.save()
    monkeypatch.undo()
    stopped, whole = llama.engine.save(), calm.engine.save()
    assert len(calls) > 3
    assert stopped.moments.n == whole.moments.n
    for kind, figures in whole.rows.figures.items():
        np.testing.assert_array_equal(stopped.rows.figures[kind], figures)


@pytest.mark.parametrize("scoring", ["native", "numpy"])
@pytest.mark.parametrize("where", ["open", "use"])
def test_output_factors_that_ctrl_c_cut_short_are_loaded_again(
    open_llama, tokens, monkeypatch, scoring, where
):
    policy = "restkv" if where == "open" else "snapkv"
    llama = open_llama(MODEL, policy=policy, scoring=scoring)
    calm = open_llama(MODEL, policy="restkv", scoring=scoring)
    load = device_factors.load_output_factors

    def stopped(shape):
        yield next(load(shape))
        raise KeyboardInterrupt

    engine = llama.engine
    if where == "use":
        engine.open(600, 16, 0)
    monkeypatch.setattr(device_factors, "load_output_factors", stopped)
    with pytest.raises(KeyboardInterrupt):
        engine.open(600, 16, 0) if where == "open" else engine.use(policy="restkv")
    monkeypatch.undo()
    assert engine.policy.name == policy
    if where == "use":
        engine.use(policy="restkv")
    for one in (llama, calm):
        one.engine.open(600, 16, 0)
        one.engine.read(tokens(250), evict=False)
    np.testing.assert_array_equal(engine.plan(8).keep, calm.engine.plan(8).keep)


def test_ctrl_c_pressed_again_and_again_waits_for_the_worker(open_llama, tokens, monkeypatch):
    """A native call that went on would work in a cache that is being freed."""
    native = open_llama(MODEL).native
    busy = threading.Event()
    done = []

    def work():
        busy.set()
        time.sleep(0.5)
        done.append(True)

    def press():
        busy.wait()
        for _ in range(4):
            _thread.interrupt_main()
            time.sleep(0.05)

    for call in (native._run, native.finish):
        done.clear()
        busy.clear()
        threading.Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt):
            call(work)
        assert done


def test_ctrl_c_while_a_cache_is_made_leaves_none_half_made(open_llama, tokens, monkeypatch):
    llama = open_llama(MODEL, policy="full", n_predict=8)
    session = ChatSession(llama)
    "".join(session.send("the first question"))

    def press():
        raise KeyboardInterrupt

    monkeypatch.setattr(llama.native, "_layer_infos", press)
    with pytest.raises(KeyboardInterrupt):
        "".join(session.send("a long one " * 60))
    monkeypatch.undo()
    "".join(session.send("a long one " * 60))
    "".join(session.send("and then?"))
    check_invariants(llama.engine)
    assert len(session.turns) == 3


def test_ctrl_c_at_any_moment_of_waiting_hangs_nothing(open_llama):
    """Real signals, for they come between any two steps of the main thread."""
    native = open_llama(MODEL).native
    done = threading.Event()
    n_stopped = 0

    def press():
        end = time.monotonic() + 3
        while time.monotonic() < end:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.0021)
        done.set()

    presser = threading.Thread(target=press)
    while not done.is_set():
        try:
            if not presser.is_alive():
                presser.start()
            while not done.is_set():
                native.finish(lambda: time.sleep(0.002))
        except KeyboardInterrupt:
            n_stopped += 1
    presser.join()
    assert n_stopped > 10
    assert native.finish(lambda: 7) == 7


def press_during(monkeypatch, owner, name):
    """Press Ctrl-C while a native function runs, on whichever thread; it does all of its work."""
    call = getattr(owner, name)

    def late(*args):
        monkeypatch.setattr(owner, name, call)
        _thread.interrupt_main()
        time.sleep(0.05)
        return call(*args)

    monkeypatch.setattr(owner, name, late)


@pytest.mark.parametrize("name", ["llama_free", "llama_init_from_model"])
def test_a_cache_that_is_made_or_freed_is_so_once(open_llama, tokens, monkeypatch, name):
    """A pointer that was lost is memory lost; one that was kept too long is freed twice."""
    llama = open_llama(MODEL)
    read(llama, tokens(40))
    n_made, n_freed = [], []
    for function, calls in (("llama_init_from_model", n_made), ("llama_free", n_freed)):
        native = getattr(llama.native._llama, function)
        monkeypatch.setattr(
            llama.native._llama,
            function,
            lambda *args, native=native, calls=calls: (calls.append(1), native(*args))[1],
        )
    press_during(monkeypatch, llama.native._llama, name)

    def open_anew():
        llama.native.release()
        llama.engine.open(400, 16, 0)

    with pytest.raises(KeyboardInterrupt):
        open_anew()
    read(llama, tokens(40))
    check_invariants(llama.engine)
    llama.native.release()
    assert len(n_freed) == len(n_made) + 1  # and the one from before


def test_a_new_cache_knows_nothing_of_a_stop_of_the_old_one(open_llama, tokens):
    native = open_llama(MODEL).native
    options = {"n_ring": 8, "n_ubatch": 64, "n_threads": 1, "type_k": "f16", "type_v": "f16"}
    for _ in range(3):  # at the same address, like as not
        native.open(256, **options)
        native.decode(tokens(40))
        native._restkv.abort(native._ctx, True)
    native.release()
    native._restkv.abort(None, True)


def test_a_snapshot_is_put_in_place_whole(open_llama, tokens, monkeypatch):
    engine = read(open_llama(MODEL), tokens(40))
    snapshot = engine.save()
    engine.read(tokens(30, seed=2))
    press_during(monkeypatch, engine.native._restkv, "state_set")
    with pytest.raises(KeyboardInterrupt):
        engine.restore(snapshot)
    check_invariants(engine)
    assert engine.rows.used == engine.counters.seen == 40


def test_rows_and_what_is_known_of_them_stay_together(open_llama, tokens, monkeypatch):
    engine = read(open_llama(MODEL), tokens(40))

    def press(first, n):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.rows, "append", press)
    with pytest.raises(KeyboardInterrupt):
        engine.read(tokens(20, seed=2))
    monkeypatch.undo()
    check_invariants(engine)
    assert engine.rows.used == engine.native.used == 40


def interrupt_count(monkeypatch, engine, wanted):
    """Press Ctrl-C right after the first tokens that ``wanted`` picks are counted."""
    count = engine._count
    pressed = []

    def late(tokens, *, probe):
        count(tokens, probe=probe)
        if not pressed and wanted(tokens, probe):
            pressed.append(True)
            _thread.interrupt_main()
            time.sleep(0.05)

    monkeypatch.setattr(engine, "_count", late)
    return pressed


def test_a_probe_that_was_just_read_leaves_nothing_behind(open_llama, tokens, monkeypatch):
    engine = open_llama(MODEL).engine
    engine.open(400, 16, 0)
    pressed = interrupt_count(monkeypatch, engine, lambda tokens, probe: probe)
    with pytest.raises(KeyboardInterrupt):
        engine.read(tokens(400), guide=tokens(12, seed=9))
    assert pressed
    seen = engine.counters.seen
    assert engine.rows.used == engine.native.used == seen  # nothing was evicted yet
    engine.read(tokens(400)[seen:], guide=tokens(12, seed=9))
    check_invariants(engine)


def interrupt_before(monkeypatch, native, name):
    """Press Ctrl-C right before a function of the engine is run to its end: nobody has promised that yet."""
    finish, pressed = native.finish, []

    def late(call):
        if not pressed and getattr(call, "__name__", "") == name:
            pressed.append(True)
            raise KeyboardInterrupt
        return finish(call)

    monkeypatch.setattr(native, "finish", late)
    return pressed


@pytest.mark.parametrize("goes_on", ["read", "save", "plan", "evict"])
def test_a_probe_that_ctrl_c_left_is_dropped_by_whoever_comes_next(
    open_llama, tokens, monkeypatch, goes_on
):
    llama = open_llama(MODEL)
    engine = llama.engine
    engine.open(400, 16, 0)
    pressed = interrupt_before(monkeypatch, llama.native, "_drop_probe")
    with pytest.raises(KeyboardInterrupt):
        engine.read(tokens(400), guide=tokens(12, seed=9))
    assert pressed
    seen = engine.counters.seen
    assert engine.rows.used == seen + 12
    if goes_on == "read":
        engine.read(tokens(400)[seen:], guide=tokens(12, seed=9))
        assert engine.counters.seen == 400
    elif goes_on == "plan":
        assert engine.plan(8).keep.size
    else:
        getattr(engine, goes_on)()
    check_invariants(engine)


@pytest.mark.parametrize("again", ["regenerate", "send"])
def test_an_answer_that_nobody_noted_is_not_taken_for_text(open_llama, monkeypatch, again):
    """Ctrl-C comes when the answer is in the cache and the conversation does not know yet."""
    session = ChatSession(open_llama(MODEL, policy="full", n_predict=6))
    "".join(session.send("hello"))
    hold = session._cache.hold

    def late(text):
        if session.report.response and text.endswith(session.report.response):
            monkeypatch.setattr(session._cache, "hold", hold)
            raise KeyboardInterrupt
        hold(text)

    monkeypatch.setattr(session._cache, "hold", late)
    with pytest.raises(KeyboardInterrupt):
        "".join(session.regenerate() if again == "regenerate" else session.send("and now?"))
    assert session._cache.held() == ""
    "".join(session.send("what else?"))
    assert any("again" in note for note in session.report.notes)
    assert session._cache.held().endswith(session.turns[-1].answer)


def test_rows_that_were_lost_half_moved_are_read_again(open_llama, monkeypatch):
    session = ChatSession(open_llama(MODEL))
    "".join(session.send("one two three. " * 3))
    native = session.llama.native
    compact = native.compact

    def broken(*_):
        monkeypatch.setattr(native, "compact", compact)
        raise NativeError("the backend could not compute a graph", FAILED)

    monkeypatch.setattr(native, "compact", broken)
    with pytest.raises(NativeError):
        "".join(session.send("four five six. " * 10))
    assert session._cache.held() == ""
    "".join(session.send("and now?"))
    assert any("again" in note for note in session.report.notes)


def lose_rows(monkeypatch, native, *, n_more):
    """Let a compaction break off half way, after ``n_more`` that do not."""
    compact, calls = native.compact, []

    def broken(*args):
        calls.append(True)
        if len(calls) <= n_more:
            return compact(*args)
        monkeypatch.setattr(native, "compact", compact)
        raise NativeError("the backend could not compute a graph", FAILED)

    monkeypatch.setattr(native, "compact", broken)


def test_rows_that_were_lost_in_an_answer_are_read_again(open_llama, monkeypatch):
    """The conversation went on from an empty cache, and nobody was told."""
    session = ChatSession(open_llama(MODEL, n_predict=900, seed=4, temp=2.0))
    lose_rows(monkeypatch, session.llama.native, n_more=0)
    said = []
    with pytest.raises(NativeError):
        said.extend(session.send("one two three. " * 3))
    assert len(said) > 20
    assert session.turns[-1].answer == "".join(said)
    assert session._cache.held() == ""
    stream = session.send("and now?")
    next(stream)
    stream.close()
    assert any("again" in note for note in session.report.notes)
    assert session.report.usage["prompt_tokens"] > len(said)


def test_rows_that_were_lost_in_an_answer_about_a_document_say_so(open_llama, monkeypatch):
    """The error was hidden by one of counting what had been looked at."""
    llama = open_llama(MODEL, n_predict=900, seed=4, temp=2.0)
    lose_rows(monkeypatch, llama.native, n_more=0)
    with pytest.raises(NativeError, match="could not compute"):
        list(llama.ask("a tower by the sea. ", ["what is it?"]))


def test_what_was_said_is_what_the_cache_holds(open_llama, monkeypatch):
    """Ctrl-C comes when a token is in the cache and not said yet."""
    session = ChatSession(open_llama(MODEL, policy="full", temp=0.8, seed=1))
    native, stepped = session.llama.native, []

    def fourth(tokens, _):
        stepped.extend(tokens if len(tokens) == 1 else [])
        return len(stepped) == 4

    interrupt_count(monkeypatch, session.llama.engine, fourth)
    with pytest.raises(KeyboardInterrupt):
        "".join(session.send("hello"))
    pieces = [native.piece(token) for token in stepped]
    assert pieces[3].isascii(), "the token that was not said yet has a text of its own"
    assert session.report.usage["completion_tokens"] == 4
    assert session.turns[-1].answer == b"".join(pieces).decode(errors="replace")


def test_a_chunk_that_was_stopped_leaves_nobody_to_ask_and_the_conversation_goes_on(
    open_llama, monkeypatch
):
    llama = open_llama(MODEL)
    session = ChatSession(llama)
    decode = llama.native._restkv.decode
    calls = []

    def third(*args):
        calls.append(True)
        if len(calls) == 3:
            _thread.interrupt_main()
            time.sleep(0.05)
        return decode(*args)

    monkeypatch.setattr(llama.native._restkv, "decode", third)
    with pytest.raises(KeyboardInterrupt):
        "".join(session.send("word number rain " * 200))
    monkeypatch.undo()
    assert llama.native.n_observed == 0
    assert "read again" in session.set_budget(48)
    assert session.context().budget == 48
    "".join(session.send("go on"))
    check_invariants(llama.engine)


def test_without_a_guide_reading_goes_on_after_a_chunk_that_was_stopped(
    open_llama, tokens, monkeypatch
):
    llama = open_llama(MODEL, guide="off")
    engine = llama.engine
    engine.open(600, 16, 0)
    engine.read(tokens(206))
    stop_next_decode(monkeypatch, llama)
    with pytest.raises(KeyboardInterrupt):
        engine.read(tokens(40, seed=2))
    monkeypatch.undo()
    assert llama.native.n_observed == 0
    engine.read(tokens(100, seed=3))
    engine.read(tokens(100, seed=4))
    check_invariants(engine)
    assert engine.counters.seen == 406


def test_a_cache_is_forgotten_whole_or_not_at_all(open_llama, monkeypatch):
    session = ChatSession(open_llama(MODEL, undo_mib=0))
    "".join(session.send("hello there"))
    native = session.llama.native
    clear = native.clear

    def late():
        clear()
        _thread.interrupt_main()
        time.sleep(0.05)

    monkeypatch.setattr(native, "clear", late)
    with pytest.raises(KeyboardInterrupt):
        "".join(session.reread("again?"))
    monkeypatch.undo()
    assert session.llama.engine.rows.used == native.used == 0
    "".join(session.send("next question?"))
    check_invariants(session.llama.engine)


def test_a_model_that_is_freed_ends_its_thread_whatever_is_pressed(open_llama, monkeypatch):
    llama = open_llama(MODEL)
    thread = llama.native._worker._thread
    free = llama.native._llama.llama_model_free

    def late(*args):
        _thread.interrupt_main()
        time.sleep(0.05)
        return free(*args)

    monkeypatch.setattr(llama.native._llama, "llama_model_free", late)
    with pytest.raises(KeyboardInterrupt):
        llama.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_call_that_comes_after_the_end_of_the_thread_is_refused():
    worker = Worker()
    worker.close()
    with pytest.raises(InputError, match="closed meanwhile"):
        worker.run(lambda: 1, on_interrupt=lambda: None)
