"""A saved conversation goes on as if it had never stopped."""

import json
import subprocess
import sys

import pytest

from restkv_local import ChatSession, Llama
from restkv_local.errors import ConfigError
from tests.session.conversation import MODEL, prose, say

pytestmark = pytest.mark.native

POLICIES = ["restkv", "h2o", "lru", "expected-attention", "streamingllm", "kvzip"]
OPTIONS = {
    "budget": 96, "n_recent": 8, "n_obs": 8, "n_guide": 16, "n_ubatch": 64, "kernel": 5,
    "n_predict": 64, "n_threads": 1, "seed": 11,
}  # fmt: skip

GO_ON = """
import dataclasses, json, sys
from restkv_local import ChatSession, Llama
from restkv_local.errors import ConfigError
from restkv_local.chat.session_file import read_session
saved = read_session(sys.argv[2])
with Llama(sys.argv[1], **{**dataclasses.asdict(saved.config), "n_threads": 1}) as llama:
    session = ChatSession(llama)
    way = session.load(saved)
    said = []
    for question in json.loads(sys.argv[3]):
        answer = "".join(session.send(question))
        said.append([answer, session.report.usage, session.report.kv["events"]])
    print(json.dumps([way, said]))
"""


@pytest.mark.parametrize(("temp", "repeat_penalty"), [(0.0, 1.0), (0.8, 1.3)])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_next_64_tokens_are_those_of_the_uninterrupted_run(
    tmp_path, policy, allocation, temp, repeat_penalty
):
    """Loaded in a fresh process, with evictions before and after."""
    options = OPTIONS | {"allocation": allocation, "repeat_penalty": repeat_penalty}
    if policy == "kvzip":
        options |= {"n_ubatch": 256}
    model = MODEL.write(tmp_path / "m.gguf")
    with Llama(model, policy=policy, temp=temp, **options) as llama:
        session = ChatSession(llama, system="be brief")
        say(session, "what?", documents=[prose(400)])
        assert session.report.kv["events"] > 0
        session.save(tmp_path / "s.restkv")
        events = session.report.kv["events"]
        expected, n_said = [], 0
        questions = []
        # A random model may end an answer at once, and a large cache takes many.
        while n_said < 64 or expected[-1][2] == events:
            assert len(questions) < 40
            questions.append(prose(60, seed=len(questions)))
            answer = say(session, questions[-1])
            report = session.report
            expected.append([answer, report.usage, report.kv["events"]])
            n_said += report.usage["completion_tokens"]
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, str(model), str(tmp_path / "s.restkv"), json.dumps(questions)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["by snapshot", expected]


@pytest.mark.parametrize(
    "options",
    [{"policy": "full"}, {"prefill": "full"}, {"prefill": "full", "allocation": "global"}],
    ids=str,
)
def test_what_is_read_whole_finds_room_turn_after_turn(open_chat, options):
    session = open_chat(MODEL, **OPTIONS | {"n_predict": 8} | options)
    for i in range(6):
        say(session, prose(150, seed=i))
        assert session.report.notes == []
        assert 600 < session.report.timings["prompt_n"] < 800  # this turn alone
    kv = session.report.kv
    assert kv["seen"] > 3600
    assert (kv["evicted"] == 0) == (options.get("policy") == "full")


def test_a_cache_that_moved_says_what_a_large_one_says(open_chat):
    options = OPTIONS | {"n_predict": 8, "policy": "full", "temp": 0.0}
    moved = open_chat(MODEL, **options)
    answers = [say(moved, prose(150, seed=i)) for i in range(4)]
    large = open_chat(MODEL, **options | {"budget": 4096})
    assert answers == [say(large, prose(150, seed=i)) for i in range(4)]


def test_a_conversation_without_memory_to_grow_stays_as_it_is(open_chat, monkeypatch):
    session = open_chat(MODEL, **OPTIONS | {"n_predict": 8, "policy": "full"})
    say(session, prose(20))
    seen = session.report.kv["seen"]
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 10}))
    with pytest.raises(ConfigError, match="are free"):
        say(session, prose(400))
    monkeypatch.undo()
    assert len(session.turns) == 1
    say(session, prose(20, seed=1))
    assert session.report.kv["seen"] > seen


def test_a_larger_cache_keeps_the_budget(open_chat, tmp_path):
    options = OPTIONS | {"n_predict": 8, "prefill": "full", "budget": "50%"}
    session = open_chat(MODEL, **options)
    say(session, prose(200))
    before = session.context()
    say(session, prose(400, seed=1))
    assert session.context().capacity > before.capacity
    assert session.context().budget == before.budget
    session.save(tmp_path / "a")
    session.load(tmp_path / "a")
    assert session.context().budget == before.budget


def test_an_answer_without_limit_ends_where_a_whole_cache_does(open_chat):
    options = {"n_predict": -1, "policy": "full", "temp": 0.0}
    for seed in range(5, 30):  # until the random model does not end by itself
        session = open_chat(MODEL, **OPTIONS | options)
        say(session, prose(20, seed=seed))
        report = session.report
        if report.finish_reason == "cache_full":
            break
    assert report.finish_reason == "cache_full"
    assert report.kv["seen"] == report.kv["capacity"]
    assert report.kv["evicted"] == 0
    say(session, "and then?")
    assert len(session.turns) == 2
    assert session.report.kv["capacity"] > report.kv["capacity"]


def test_a_model_saves_its_own_conversations_alone(open_chat, tmp_path):
    options = OPTIONS | {"n_predict": 8, "temp": 0.0}
    session, stranger = open_chat(MODEL, **options), open_chat(MODEL, **options)
    say(session, prose(20))
    with pytest.raises(ConfigError, match=r"another Llama; call session.save\(path\)"):
        stranger.llama.save_session(session, tmp_path / "a.restkv")
    assert not (tmp_path / "a.restkv").exists()
    session.llama.save_session(session, tmp_path / "a.restkv")
    later = session.llama.load_session(tmp_path / "a.restkv")
    assert [turn.question for turn in later.turns] == [prose(20)]
