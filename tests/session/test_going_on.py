"""A saved conversation goes on as if it had never stopped."""

import json
import subprocess
import sys

import pytest

from restkv_local import ChatSession, Llama
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


@pytest.mark.parametrize("temp", [0.0, 0.8])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_next_64_tokens_are_those_of_the_uninterrupted_run(tmp_path, policy, allocation, temp):
    """Loaded in a fresh process, with evictions before and after."""
    options = OPTIONS | {"allocation": allocation}
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
        while n_said < 64:  # a random model may end an answer at once
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
    assert expected[-1][2] > events
