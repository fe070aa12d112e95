"""Another file, another budget, other rules in the middle of a conversation."""

import threading
from dataclasses import replace

import pytest

from restkv_local import ChatSession
from restkv_local.chat.ask import ask
from restkv_local.chat.session_file import read_session, write_session
from restkv_local.errors import ConfigError, InputError, SessionFileError
from restkv_local.storage import container
from tests import builders
from tests.session.conversation import MODEL, SWA, assert_same_cache, cache, prose, say, talk

pytestmark = pytest.mark.native

LONG = {"budget": 96, "n_predict": 16, "seed": 3, "temp": 0.8}


def begin(session):
    say(session, "what?", documents=[prose(200)])
    talk(session, 2)
    return session


def unchanged(session, act, error, message):
    """Run ``act``, which must fail; the conversation goes on as if it had not been tried."""
    messages, rows, drawn = session.messages, cache(session), session._llama.sampler.n_drawn
    with pytest.raises(error, match=message):
        act()
    assert session.messages == messages
    assert_same_cache(cache(session), rows)
    assert session._llama.sampler.n_drawn == drawn
    assert session.undo() == "by snapshot"


def test_a_file_takes_the_place_of_a_running_conversation(open_chat, tmp_path):
    session = begin(open_chat(MODEL, system="be brief", **LONG | {"policy": "h2o"}))
    session.save(tmp_path / "a")
    rows, messages = cache(session), session.messages
    other = open_chat(MODEL, **LONG | {"budget": 200, "temp": 0.0})
    talk(other, 3, first=20)
    assert other.load(tmp_path / "a") == "by snapshot"
    assert_same_cache(cache(other), rows)
    assert other.messages == messages
    config = other._engine.config
    assert (config.budget, config.policy, config.temp) == (96, "h2o", 0.8)
    assert other._llama.config == config
    assert talk(other, 3, first=30) == talk(session, 3, first=30)
    assert other.undo(3) == "by snapshot"
    assert_same_cache(cache(other), rows)
    assert "read again" in other.undo()


def test_the_file_is_as_large_as_the_cache(open_chat, tmp_path):
    session = begin(open_chat(MODEL, **LONG))
    session.save(tmp_path / "a")
    n_bytes = session._engine.rows.mean * 2 * 3 * 64 * 2 * 2  # layers, heads, values, K and V, f16
    rest = (tmp_path / "a").stat().st_size - n_bytes
    assert 0 < rest < 130_000  # queries that may observe, true positions, the text


def test_a_foreign_model_is_refused_and_nothing_is_lost(open_chat, tmp_path):
    begin(open_chat(replace(MODEL, seed=5), **LONG)).save(tmp_path / "a")
    session = begin(open_chat(MODEL, **LONG))
    unchanged(
        session,
        lambda: session.load(tmp_path / "a"),
        SessionFileError,
        "is another model or another file of it",
    )


def test_a_broken_file_is_refused_and_nothing_is_lost(open_chat, tmp_path):
    session = begin(open_chat(MODEL, **LONG))
    session.save(tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a").write_bytes(data)
    unchanged(session, lambda: session.load(tmp_path / "a"), SessionFileError, "is damaged")


def test_a_cache_that_does_not_fit_the_machine_leaves_all_as_it_is(
    open_chat, tmp_path, monkeypatch
):
    session = begin(open_chat(MODEL, **LONG))
    session.save(tmp_path / "a")
    saved = read_session(tmp_path / "a")
    huge = replace(saved, config=replace(saved.config, budget=10**12))
    unchanged(session, lambda: session.load(huge), ConfigError, "rows need")
    talk(session, 1, first=8)
    unchanged(session, lambda: session.set_budget(10**12), ConfigError, "rows need")


def test_another_librarys_cache_is_not_used_and_it_is_said(open_chat, tmp_path):
    session = begin(open_chat(MODEL, **LONG))
    session.save(tmp_path / "a")
    saved = replace(read_session(tmp_path / "a"), library="of last year")
    assert session.load(saved) == (
        "all is read again with the next message: its cache was made by another library (of last year)"
    )
    assert len(session.turns) == 3
    say(session, "why?")
    assert session.report.notes[0].startswith("the conversation was read again")


def test_without_a_kept_cache_the_turns_are_read_again(open_chat, tmp_path):
    session = begin(open_chat(SWA, **LONG))
    session.save(tmp_path / "a")
    messages = session.messages
    other = open_chat(SWA, **LONG)
    assert other.load(tmp_path / "a") == "all is read again with the next message"
    assert other.messages == messages
    say(other, "why?")
    assert other.report.timings["prompt_n"] > 500


def test_an_empty_conversation_is_a_file_too(open_chat, tmp_path):
    session = open_chat(MODEL, system="be brief", **LONG)
    session.save(tmp_path / "a")
    other = begin(open_chat(MODEL, **LONG | {"n_predict": 4}))
    assert other.load(tmp_path / "a") == ""
    assert other.messages == session.messages
    assert talk(other, 2) == talk(session, 2)


def test_what_was_asked_for_anew_counts(open_chat, tmp_path):
    begin(open_chat(MODEL, **LONG)).save(tmp_path / "a")
    session = open_chat(MODEL, **LONG)
    way = session.load(tmp_path / "a", {"policy": "snapkv", "budget": "64", "temp": 0.0, "seed": 5})
    assert (
        way
        == "by snapshot; rules: from the next eviction on; budget: by snapshot, evicted to 64 rows"
    )
    config = session._engine.config
    assert (config.policy, config.budget, config.temp) == ("snapkv", "64", 0.0)
    assert (session._llama.sampler.seed, session.context().budget) == (5, 64)
    with pytest.raises(ConfigError, match="n_ubatch=32 does not fit the session"):
        session.load(tmp_path / "a", {"n_ubatch": 32})
    with pytest.raises(ConfigError, match="policy must be one of"):
        session.load(tmp_path / "a", {"policy": "none such"})


def test_a_larger_budget_takes_the_rows_over(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    rows = cache(session)
    assert session.set_budget(400) == "by snapshot"
    assert_same_cache(cache(session), rows)
    assert session.context().capacity >= 464
    talk(session, 4, first=10)
    assert session.context().kept > 300
    assert session.undo(4) == "by snapshot"
    assert_same_cache(cache(session), rows)


def test_a_smaller_budget_evicts_what_has_no_place(open_chat):
    session = begin(open_chat(MODEL, **LONG | {"budget": 600}))
    assert session.context().kept > 256
    assert session.set_budget("96") == "by snapshot, evicted to 96 rows"
    view = session.context()
    assert (view.kept, view.capacity, view.budget) == (96, 256, 96)
    talk(session, 4, first=10)
    assert session.context().kept <= 256 - 16
    # The moments before had more rows than there is room for.
    assert "read again" in session.undo(5)
    say(session, "why?")


def test_a_smaller_budget_evicts_what_would_have_a_place_too(open_chat):
    """96 + 64 + 16 rows are rounded up to 256; the budget is 96 all the same."""
    session = open_chat(MODEL, **LONG | {"budget": 600})
    say(session, prose(30))
    assert 96 < session.context().kept < 256 - 16
    assert session.set_budget("96") == "by snapshot, evicted to 96 rows"
    assert session.context().kept == 96


def test_a_smaller_budget_takes_nothing_from_a_whole_cache(open_chat):
    session = open_chat(MODEL, **LONG | {"budget": 600, "policy": "full"})
    say(session, prose(60))
    kept = session.context().kept
    assert session.set_budget("96") == "by snapshot"
    assert session.context().kept == kept > 96


def test_a_budget_that_cannot_be_changes_nothing(open_chat):
    session = begin(open_chat(MODEL, **LONG | {"budget": 600}))
    for budget, message in [("many", "budget must be"), (3, "at least"), ("0", "at least")]:
        rows = cache(session)
        with pytest.raises(ConfigError, match=message):
            session.set_budget(budget)
        assert_same_cache(cache(session), rows)
        assert session.context().budget == 600
    assert session.undo() == "by snapshot"


def test_rules_that_need_nothing_new_count_from_the_next_eviction(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    assert session.set_policy("snapkv") == "from the next eviction on"
    talk(session, 2, first=10)
    assert session.report.kv["policy"] == "snapkv"
    assert session.undo(2) == "by snapshot"


def test_an_allocation_that_needs_room_to_grow_takes_the_rows_over(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    rows = cache(session)
    assert session.set_policy("restkv", "global") == "by snapshot"
    assert_same_cache(cache(session), rows)
    talk(session, 4, first=10)
    counts = session._engine.rows.n_rows
    assert counts.min() < counts.max()
    assert session.set_policy("restkv", "uniform") == "from the next eviction on"
    talk(session, 4, first=20)


def test_a_policy_that_counts_every_query_reads_all_again(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    assert session.set_policy("h2o") == "all is read again with the next message"
    say(session, "why?")
    assert session.report.notes[0].startswith("the conversation was read again")
    assert session.report.kv["policy"] == "h2o"
    assert session.undo() == "all is read again with the next message"
    say(session, "who?")
    say(session, "how?")
    assert session.undo() == "by snapshot"


def test_rules_that_cannot_be_change_nothing(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    unchanged(session, lambda: session.set_policy("best"), ConfigError, "best")
    unchanged(session, lambda: session.set_policy("fifo", "cake"), ConfigError, "does not observe")


def test_a_session_in_which_nothing_was_read_takes_any_rules(open_chat):
    session = open_chat(MODEL, **LONG)
    assert session.set_budget(128) == "from the next message on"
    session.set_policy("h2o", "global")
    begin(session)
    assert (session.report.kv["budget"], session.report.kv["policy"]) == (128, "h2o")


def test_a_written_session_replaces_its_older_self_only(open_chat, tmp_path):
    session = begin(open_chat(MODEL, **LONG))
    session.save(tmp_path / "a")
    talk(session, 1, first=9)
    session.save(tmp_path / "a")
    saved = read_session(tmp_path / "a")
    assert len(saved.turns) == 4
    write_session(tmp_path / "b", saved)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_file_that_somebody_else_wrote_meanwhile_is_not_replaced(open_chat, tmp_path):
    """Two programs with one session: neither loses a turn without a word."""
    path = tmp_path / "a"
    one = begin(open_chat(MODEL, **LONG))
    one.save(path)
    other = open_chat(MODEL, **LONG)
    other.load(path)
    talk(other, 1, first=5)
    other.save(path)
    data = path.read_bytes()
    talk(one, 1, first=6)
    with pytest.raises(SessionFileError, match="was saved by somebody else meanwhile") as error:
        one.save(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == data
    other.save(path)
    one.save(tmp_path / "b")
    one.load(path)
    one.save(path)


def test_a_budget_that_does_not_hold_the_files_system_prompt_changes_nothing(open_chat, tmp_path):
    long = open_chat(MODEL, system=prose(30), **LONG | {"budget": 400})
    begin(long).save(tmp_path / "a")
    session = begin(open_chat(MODEL, **LONG))
    unchanged(
        session, lambda: session.load(tmp_path / "a", {"budget": 60}), ConfigError, "at least"
    )


def test_a_session_without_a_cache_takes_any_budget(open_chat, tmp_path):
    session = open_chat(MODEL, **LONG)
    session.set_budget("25%")
    session.save(tmp_path / "a")
    session.load(tmp_path / "a", {"budget": "20%"})
    begin(session)
    assert session.turns


def test_a_name_that_no_system_holds_is_one_line(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    for name in ("a\0b", "half \ud800"):
        with pytest.raises(SessionFileError) as error:
            session.save(name)
        assert "\n" not in str(error.value)


def test_a_new_session_replaces_none_that_is_there(open_chat, tmp_path):
    """Two programs begin a session of one name."""
    one, other = (begin(open_chat(MODEL, **LONG)) for _ in range(2))
    one.save(tmp_path / "a", replace_any=False)
    one.save(tmp_path / "a", replace_any=False)
    with pytest.raises(SessionFileError, match="somebody else"):
        other.save(tmp_path / "a", replace_any=False)
    other.save(tmp_path / "a")


def test_a_reader_that_was_closed_leaves_a_conversation_that_goes_on(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    (answer,) = ask(session.llama, "the ferry left in the morning", ["when?"])
    assert answer.response
    say(session, "why?")
    assert len(session.turns) == 4
    assert "by snapshot" in session.report.notes[0]


def test_two_conversations_share_a_model_and_lose_nothing_but_time(open_chat):
    one = begin(open_chat(MODEL, **LONG))
    two = ChatSession(one._llama)
    talk(two, 2)
    talk(one, 1, first=7)
    assert "by snapshot" in one.report.notes[0]
    talk(two, 1, first=8)
    assert len(two.turns) == 3
    assert len(two.report.notes) == 1
    one._moments.clear()
    talk(one, 1, first=9)
    assert one.report.notes[0].startswith("the conversation was read again")


@pytest.mark.parametrize("budget", [96, "50%"])
def test_a_conversation_keeps_its_own_rules_when_somebody_else_used_the_cache(open_chat, budget):
    session = open_chat(MODEL, system="be brief and kind", **LONG | {"budget": budget})
    say(session, prose(100))
    talk(session, 1)
    view = session.context()
    session.llama("a text of somebody else " * 3, max_tokens=2)
    assert session.context().n_pinned == 0
    say(session, prose(300))
    assert "by snapshot" in session.report.notes[0]
    after = session.context()
    assert (after.n_pinned, after.budget) == (view.n_pinned, view.budget)
    assert after.events > view.events
    positions = session._engine.rows.positions
    assert (positions[:, :, : view.n_pinned] == list(range(view.n_pinned))).all()


@pytest.mark.parametrize("change", ["edit", "reread"])
def test_a_message_that_cannot_be_read_costs_nothing(open_chat, change):
    session = begin(open_chat(MODEL, **LONG))
    endless = "a" * 1_100_000
    unchanged(session, lambda: getattr(session, change)(endless), InputError, "in a row")


@pytest.mark.parametrize("budget", [10**9, "900GiB"])
def test_a_budget_that_the_machine_does_not_hold_is_refused_before_a_file_is_loaded(
    open_chat, tmp_path, budget
):
    begin(open_chat(MODEL, **LONG)).save(tmp_path / "a")
    session = open_chat(MODEL, **LONG)
    talk(session, 2, first=30)

    def load():
        session.load(tmp_path / "a", {"budget": budget})

    unchanged(session, load, ConfigError, "GiB are free")


def test_ctrl_c_when_a_file_is_already_in_place_leaves_it_this_conversations(
    open_chat, tmp_path, monkeypatch
):
    session = open_chat(MODEL, **LONG)
    talk(session, 1)
    session.save(tmp_path / "a", replace_any=False)

    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(container, "_sync_folder", stop)
    talk(session, 1, first=1)
    with pytest.raises(KeyboardInterrupt):
        session.save(tmp_path / "a", replace_any=False)
    monkeypatch.undo()
    talk(session, 1, first=2)
    session.save(tmp_path / "a", replace_any=False)
    assert len(read_session(tmp_path / "a").turns) == 3
    stranger = open_chat(MODEL, **LONG)
    talk(stranger, 1)
    stranger.save(tmp_path / "a")
    with pytest.raises(SessionFileError, match="somebody else"):
        session.save(tmp_path / "a", replace_any=False)


def test_rows_turned_by_short_rope_factors_do_not_go_to_a_long_context(open_chat):
    session = begin(open_chat(builders.llama(head_dim=64, long_rope=True), **LONG))
    assert session.set_budget(600) == "all is read again with the next message"
    say(session, "why?")
    assert session.report.timings["prompt_n"] > 200


def test_another_allocation_of_as_many_rows_keeps_the_rope_factors(open_chat):
    session = begin(open_chat(builders.llama(head_dim=64, long_rope=True), **LONG))
    assert session.set_policy("restkv", "global") == "by snapshot"
    say(session, "why?")
    assert session.report.timings["prompt_n"] < 60


def test_a_budget_that_is_refused_costs_no_cache_that_cannot_be_copied(open_chat):
    session = open_chat(SWA, system="Be brief.", **LONG)
    say(session, "what?")
    seen = session.context().seen
    with pytest.raises(ConfigError, match="budget must be at least"):
        session.set_budget(20)  # enough, were there no system prompt
    assert session.context().seen == seen > 0


def test_without_an_observed_query_norms_wait_too(open_chat):
    session = open_chat(MODEL, **LONG | {"policy": "expected-attention", "n_predict": 0})
    say(session, "what?", documents=[prose(400)])
    assert session.context().events > 1
    assert session.set_budget(80) == "all is read again with the next message"


def test_the_context_can_be_asked_for_while_another_thread_changes_it(open_chat):
    """It ended the process: bytes were asked of a context that was being freed."""
    session = open_chat(MODEL, **LONG)
    say(session, "what?")
    done, views = threading.Event(), []

    def look():
        while not done.is_set():
            views.append(session.context().bytes)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for i in range(40):
            session.set_budget(96 + 256 * (i % 2))
    finally:
        done.set()
        watcher.join()
    assert len(set(views) - {0}) == 2


def test_a_cache_that_held_everything_is_not_kept_once_rows_are_evicted_again(open_chat):
    session = begin(open_chat(MODEL, **LONG))
    bounded = session.context().bytes
    assert session.set_policy("full") == "from the next eviction on"
    say(session, "what?", documents=[prose(1200)])
    assert session.context().bytes > 3 * bounded
    assert session.set_policy("restkv") == "by snapshot, evicted to 96 rows"
    assert session.context().bytes == bounded
    say(session, "why?")
    with pytest.raises(ConfigError):
        session.set_policy("nosuch")
    assert session.context().bytes == bounded


def test_a_document_comes_as_text_as_path_or_alone(open_chat, tmp_path):
    (tmp_path / "a.txt").write_text("the ferry left")
    session = open_chat(MODEL, **LONG)
    for documents in ("the ferry left", tmp_path / "a.txt", [tmp_path / "a.txt"]):
        say(session, "what?", documents=documents)
        (attached,) = session.turns[-1].documents
        assert attached.text == "the ferry left"


def test_a_moment_that_leaves_no_room_to_have_the_text_repeated_is_read_again(open_chat):
    """kvzip repeats a part of the text before it evicts: the old cache had room for that, the new one has not."""
    model = builders.llama(n_head=4, n_head_kv=1, head_dim=64, n_embd=64)
    session = open_chat(model, policy="kvzip", budget=900, n_ubatch=400, n_predict=8)
    for i in range(4):
        say(session, f"{i}: {prose(120)}?")
    session.set_budget(64)
    assert "read again" in session.undo(3)
    assert say(session, prose(60)) is not None
    assert session.report.kv["events"] >= 1


@pytest.mark.parametrize("allocation", ["ada", "global"])
def test_rows_that_are_unequal_still_find_a_place_under_equal_rules(
    open_chat, allocation, tmp_path
):
    """A cache of equal segments was opened for them: a traceback, and no conversation."""
    session = begin(open_chat(MODEL, **LONG | {"budget": 300, "allocation": allocation}))
    say(session, "why?", documents=[prose(400)])
    assert session.set_policy("streamingllm", "uniform") == "from the next eviction on"
    rows = cache(session)
    session.save(tmp_path / "a")
    assert session.load(tmp_path / "a") == "by snapshot"
    assert_same_cache(cache(session), rows)
    assert session.set_budget(96) == "by snapshot, evicted to 96 rows"
    talk(session, 2, first=10)
    assert session.context().kept < 256


def test_a_moment_without_room_for_the_guide_is_read_again(open_chat):
    """It was put back, and every message after it failed: nothing could be evicted any more."""
    session = open_chat(MODEL, **LONG | {"budget": 250, "n_guide": 32, "n_predict": 6})
    say(session, "what is the code of the number?", documents=[prose(1200)])
    assert session.set_budget(160) == "by snapshot, evicted to 160 rows"
    "".join(session.regenerate())
    assert "read again" in session.report.notes[0]
    talk(session, 3, first=10)
    assert session.context().events > 0


def test_a_share_counts_from_the_policy_that_evicts_on(open_chat):
    """The whole cache's one row stayed the budget, which no later eviction could meet."""
    session = open_chat(MODEL, **LONG | {"policy": "full", "budget": "5%"})
    say(session, "what?")
    assert session.set_policy("restkv") == "from the next eviction on"
    for i in range(4):
        say(session, prose(60, seed=i))
    assert session.context().events > 0


@pytest.mark.parametrize("change", ["budget", "policy"])
def test_ctrl_c_in_a_change_leaves_everything_as_it_was(open_chat, monkeypatch, change):
    """Rows and budget had changed, though the command had not."""
    policy = {"budget": "restkv", "policy": "full"}[change]
    session = open_chat(MODEL, **LONG | {"budget": 300, "policy": policy})
    say(session, "what?", documents=[prose(400)])
    engine, rows, before = session._engine, cache(session), session.context()
    carry_out = engine._carry_out

    def interrupted(*args):
        carry_out(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.set_budget(100) if change == "budget" else session.set_policy("snapkv")
    assert session._engine is engine
    assert (session.context(), engine.config.policy) == (before, policy)
    assert_same_cache(cache(session), rows)
    say(session, "why?")


def test_what_cannot_be_copied_is_read_again_into_a_cache_for_all_of_it(open_chat):
    """Room for the rows that had stayed was too little for the text they stood for."""
    session = open_chat(SWA, **LONG | {"prefill": "full", "n_predict": 4})
    say(session, "what?", documents=[prose(600)])
    for n in (400, 400, 400, 900):
        say(session, prose(n))
    assert any("a larger cache" in note for note in session.report.notes)
