"""Undo, another answer, other words: what comes after is what a fresh run gives."""

from dataclasses import replace

import pytest

from restkv_local.errors import InputError
from tests.session.conversation import (
    MODEL,
    SWA,
    assert_same_cache,
    cache,
    prose,
    say,
    talk,
)

pytestmark = pytest.mark.native

LONG = {"budget": 96, "n_predict": 24, "seed": 3}


def begin(session):
    """Read past the budget, then talk."""
    say(session, "what?", documents=[prose(300)])
    return talk(session, 3)


@pytest.mark.parametrize("temp", [0.0, 0.8])
@pytest.mark.parametrize("policy", ["restkv", "h2o", "expected-attention"])
def test_what_was_undone_has_never_been(open_chat, policy, temp):
    options = LONG | {"policy": policy, "temp": temp}
    session, fresh = open_chat(MODEL, **options), open_chat(MODEL, **options)
    begin(session)
    begin(fresh)
    talk(session, 2, first=7)
    assert session.report.kv["events"] > fresh.report.kv["events"] > 0
    assert session.undo(2) == "by snapshot"
    assert session.messages == fresh.messages
    assert_same_cache(cache(session), cache(fresh))
    assert talk(session, 2, first=20) == talk(fresh, 2, first=20)


def test_undo_step_by_step_to_the_beginning(open_chat):
    session = open_chat(MODEL, **LONG)
    caches = []
    for i in range(4):
        talk(session, 1, first=i)
        caches.append(cache(session))
    for expected in caches[-2::-1]:
        assert session.undo() == "by snapshot"
        assert_same_cache(cache(session), expected)
    assert session.undo() == "the conversation is empty again"
    assert (session.messages, session.context().kept) == ([], 0)
    with pytest.raises(InputError, match="there are 0 turns to undo; got 1"):
        session.undo()
    for wrong in (0, -1, 5):
        with pytest.raises(InputError, match="0 turns"):
            session.undo(wrong)


def test_other_words_are_as_if_they_had_been_the_first(open_chat):
    session, fresh = open_chat(MODEL, temp=0.8, **LONG), open_chat(MODEL, temp=0.8, **LONG)
    begin(session)
    begin(fresh)
    say(session, "why?", documents=[prose(30, seed=4)])
    answer = "".join(session.edit("where?"))
    assert answer == say(fresh, "where?", documents=[prose(30, seed=4)])
    assert session.messages == fresh.messages
    assert_same_cache(cache(session), cache(fresh))
    assert "asked in other words: by snapshot" in session.report.notes[0]


def test_another_answer_reads_nothing_and_draws_other_tokens(open_chat):
    session = open_chat(MODEL, **LONG | {"temp": 1.5})
    begin(session)
    first = say(session, "why?", documents=[prose(200, seed=4)])
    prompt = session.report.usage["prompt_tokens"]
    second = "".join(session.regenerate())
    assert second != first
    assert session.report.timings["prompt_n"] == 0
    assert session.report.usage["prompt_tokens"] == prompt
    assert session.report.notes == ["answered again: by snapshot, 0 tokens read"]
    assert session.messages[-1]["content"] == second
    assert len(session.turns) == 5
    session.undo()
    assert len(session.turns) == 4


def test_without_chance_another_answer_is_the_same_and_says_so(open_chat):
    session = open_chat(MODEL, temp=0.0, **LONG)
    begin(session)
    first, rows = say(session, "why?"), cache(session)
    assert "".join(session.regenerate()) == first
    assert_same_cache(cache(session), rows)
    assert "temp 0" in session.report.notes[1]


@pytest.mark.parametrize("options", [{"undo_mib": 0}, {}], ids=["no memory", "sliding window"])
def test_without_snapshots_all_is_read_again_and_said(open_chat, options):
    model = MODEL if options else SWA
    session = open_chat(model, **LONG | {"temp": 0.8} | options)
    begin(session)
    talk(session, 1, first=8)
    assert "read again" in session.undo()
    assert session.context().kept == 0
    read = []
    "".join(session.send("why?", on_progress=read.append))
    assert read[-1].processed == session.report.timings["prompt_n"] > 300
    assert session.report.notes == [
        f"the conversation was read again, {session.report.timings['prompt_n']:,} tokens read"
    ]
    assert "".join(session.regenerate())
    assert "answered again: the conversation was read again" in session.report.notes[0]
    say(session, "and?")
    assert not session.report.notes


def test_the_oldest_moments_go_first(open_chat):
    session = open_chat(MODEL, **LONG | {"undo_mib": 1})
    begin(session)
    talk(session, 6, first=8)
    assert 0 < len(session._moments) < 9
    assert session.undo() == "by snapshot"
    assert "read again" in session.undo(7)
    say(session, "why?")
    assert "the conversation was read again" in session.report.notes[0]


def test_reading_again_is_guided_by_the_new_question(open_chat):
    session = open_chat(MODEL, **LONG | {"temp": 0.0})
    say(session, "what?", documents=[prose(300)])
    say(session, "who?")
    "".join(session.reread("how?"))
    n_read = session.report.timings["prompt_n"]
    assert n_read > 300
    assert session.report.notes[0].startswith("guided by this question: the conversation was read")
    assert [turn.question for turn in session.turns] == ["what?", "who?", "how?"]
    "".join(session.reread())
    assert [turn.question for turn in session.turns] == ["what?", "who?", "how?"]
    assert session.report.timings["prompt_n"] == n_read


def test_before_the_first_question_there_is_nothing_to_go_back_to(open_chat):
    session = open_chat(MODEL)
    for act in (session.regenerate, session.reread, lambda: session.edit("x")):
        with pytest.raises(InputError, match="nothing was asked yet"):
            act()


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{{ m['content'][3:] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_answers_costs_the_answer_alone(open_chat):
    """As reasoning models drop what they thought."""
    model = replace(MODEL, metadata={"tokenizer.chat_template": THINKING})
    session = open_chat(model, **LONG | {"temp": 0.8, "n_predict": 8})
    say(session, "what?", documents=[prose(300)])
    for i in range(3):
        talk(session, 1, first=i)
        n_read = session.report.timings["prompt_n"]
        assert n_read < 300
        assert session.report.notes == [
            f"the template rewrote earlier turns: by snapshot, {n_read} tokens read"
        ]
    assert session.undo() == "by snapshot"
    poor = open_chat(model, **LONG | {"temp": 0.8, "undo_mib": 0})
    say(poor, "what?", documents=[prose(300)])
    say(poor, "why?")
    assert poor.report.timings["prompt_n"] > 1000
    assert poor.report.notes[0].startswith(
        "the template rewrote earlier turns: the conversation was read again"
    )


def test_fifty_turns_read_only_what_is_new_and_the_system_prompt_stays(open_chat):
    session = open_chat(MODEL, system="be brief and kind", **LONG | {"temp": 0.8})
    template = session._prompts._template
    for i in range(50):
        before = session._cache.text
        talk(session, 1, first=i)
        rendered = template.render(session.messages[:-1])
        assert rendered.startswith(before)
        rest = template.tokenize(rendered[len(before) :], first=not before)
        assert session.report.timings["prompt_n"] == len(rest) < 150
        assert not session.report.notes
    view = session.context()
    assert view.events > 10
    assert view.seen > 20 * view.budget
    assert view.kept <= view.capacity
    positions = session._engine.rows.positions
    pinned = range(view.n_pinned)
    assert (positions[:, :, : view.n_pinned] == list(pinned)).all()


def stop_after(n):
    def on_progress(progress):
        if progress.processed >= n:
            raise KeyboardInterrupt

    return on_progress


def test_a_stopped_reading_goes_on_where_it_stopped(open_chat):
    session = open_chat(MODEL, temp=0.0, **LONG)
    say(session, "hello")
    with pytest.raises(KeyboardInterrupt):
        list(session.send("what?", documents=[prose(300)], on_progress=stop_after(500)))
    n_read = session.report.timings["prompt_n"]
    assert 500 <= n_read < 600
    assert session.turns[1].question == "what?"
    heard = session.messages[2]["content"]
    assert len(heard) > 400
    assert heard[-20:] in prose(300)
    assert "".join(session.regenerate())
    whole = session.messages[2]["content"]
    assert whole.startswith(heard)
    assert whole.endswith(f"{prose(300)}\n\nwhat?")
    rest = session.report.timings["prompt_n"]
    session.undo()
    say(session, "what?", documents=[prose(300)])
    assert rest < session.report.timings["prompt_n"] - 400


def test_an_answer_drawn_again_that_is_stopped_at_once_leaves_the_first_one(open_chat):
    session = open_chat(MODEL, **LONG | {"undo_mib": 0})
    talk(session, 2)
    messages = session.messages

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    decode, session.llama.native.decode = session.llama.native.decode, interrupted
    with pytest.raises(KeyboardInterrupt):
        "".join(session.regenerate())
    session.llama.native.decode = decode
    assert session.messages == messages
    talk(session, 1, first=5)
    assert session.messages[:4] == messages


def test_a_stopped_answer_can_be_undone_saved_and_gone_on_from(open_chat, tmp_path):
    session = open_chat(MODEL, temp=0.8, **LONG)
    begin(session)
    rows = cache(session)
    stream = session.send("tell")
    said = next(stream)
    stream.close()
    assert session.messages[-1]["content"] == said
    session.save(tmp_path / "s")
    other = open_chat(MODEL, temp=0.8, **LONG)
    other.load(tmp_path / "s")
    assert talk(other, 2, first=40) == talk(session, 2, first=40)
    assert session.undo(3) == "by snapshot"
    assert_same_cache(cache(session), rows)


@pytest.mark.parametrize("way", ["send", "edit", "reread"])
def test_a_question_that_is_no_text_costs_nothing(open_chat, way):
    session = open_chat(MODEL, **LONG)
    begin(session)
    rows, turns = cache(session), session.turns
    with pytest.raises(InputError, match="no character"):
        "".join(getattr(session, way)("caf\udce9?"))
    assert_same_cache(cache(session), rows)
    assert session.turns == turns


def test_a_system_prompt_with_any_character_stays_whole(open_chat):
    """The one that stands for a user's text, common in what is pasted, cut it short."""
    pinned = []
    for between in ("", "\N{OBJECT REPLACEMENT CHARACTER}"):
        session = open_chat(MODEL, system=f"be kind{between} and brief, and give the code", **LONG)
        pinned.append(session.prepare("hi")[1])
    assert pinned[1] >= pinned[0]
