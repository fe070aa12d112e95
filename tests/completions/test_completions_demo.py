"""The demo model, called as a script for llama-cpp-python would call it."""

import doctest
import importlib
import json

import pytest

from restkv_local import ChatSession
from tests.completions.conftest import text_of

pytestmark = [pytest.mark.native, pytest.mark.model]

NUMBER = "5904317"
FILLER = (
    "The ferry left the quay in the morning and came back with the evening tide. "
    "Nobody in the village thought much about it, and the fishermen mended their nets. "
)
DOCUMENT = f"{FILLER * 5}The code of the harbour safe is {NUMBER}. {FILLER * 20}"
QUESTION = "What is the code of the harbour safe?"


@pytest.mark.parametrize("name", ["llama", "chat.text_stream"])
def test_the_examples_in_the_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"restkv_local.{name}"))
    assert result.failed == 0
    assert result.attempted >= 3


def test_a_fact_from_the_evicted_part_is_found(demo):
    messages = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": f"{DOCUMENT}\n\n{QUESTION}"},
    ]
    result = demo.create_chat_completion(messages, temperature=0.0, max_tokens=32)
    assert NUMBER in result["choices"][0]["message"]["content"]
    assert result["choices"][0]["finish_reason"] == "stop"
    kv = result["kv"]
    assert kv["evicted"] == kv["seen"] - kv["kept"] > 300
    assert kv["seen"] == result["usage"]["total_tokens"]
    # The next question reads itself only, and the cache has gone on.
    answer = result["choices"][0]["message"]
    messages += [answer, {"role": "user", "content": "Who mended their nets?"}]
    again = demo.create_chat_completion(messages, temperature=0.0, max_tokens=32)
    n_new = again["usage"]["prompt_tokens"] - result["usage"]["total_tokens"]
    assert 5 < n_new < 40
    assert again["kv"]["seen"] >= kv["seen"] + n_new
    assert again["kv"]["events"] >= kv["events"]


def test_a_raw_prompt_is_guided_by_its_end(demo):
    prompt = f"{DOCUMENT}\n\nQuestion: {QUESTION}\nAnswer: The code of the harbour safe is"
    result = demo(prompt, max_tokens=10, temperature=0.0, stop=["\n"])
    assert NUMBER in text_of(result)
    assert result["kv"]["events"] > 0


def test_greedy_chat_says_what_a_session_says_turn_by_turn(demo):
    texts = [f"{DOCUMENT}\n\n{QUESTION}", "Say it again, please.", "What left the quay?"]
    session, messages = ChatSession(demo), []
    demo.sampler.close()
    demo.sampler = demo.native.make_sampler(temp=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    said = ["".join(session.send(text)) for text in texts]
    for text, expected in zip(texts, said, strict=True):
        messages.append({"role": "user", "content": text})
        result = demo.create_chat_completion(messages, temperature=0.0)
        messages.append(result["choices"][0]["message"])
        assert messages[-1]["content"] == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_json_comes_out_as_json(demo, temperature):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
    }
    for seed in range(2):
        result = demo.create_chat_completion(
            [{"role": "user", "content": "Name a city in France and say whether it is large."}],
            response_format={"type": "json_object", "schema": schema},
            temperature=temperature,
            max_tokens=80,
            seed=seed,
        )
        assert result["choices"][0]["finish_reason"] == "stop"
        answer = json.loads(result["choices"][0]["message"]["content"])
        assert isinstance(answer["city"], str)
        assert isinstance(answer["large"], bool)


def test_penalties_end_a_repetition(demo):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"max_tokens": 40, "temperature": 0.0, "logprobs": True}

    def most_frequent(**penalty):
        result = demo.create_chat_completion(messages, **options, **penalty)
        tokens = [token["token"] for token in result["choices"][0]["logprobs"]["content"]]
        return max(map(tokens.count, tokens))

    assert most_frequent() > 4  # the small model falls into a loop
    assert most_frequent(frequency_penalty=2.0) < most_frequent()
    assert most_frequent(repeat_penalty=2.0) < most_frequent()
    assert most_frequent(presence_penalty=100.0) == 1


def test_a_stream_joins_to_the_whole(demo):
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 11, "stop": [". ", "\n\n"]}
    prompt = "The lighthouse keeper said: «"
    whole = demo(prompt, logprobs=3, **options)
    chunks = list(demo(prompt, stream=True, logprobs=3, **options))
    assert text_of(chunks) == text_of(whole)
    tokens = [t for chunk in chunks[:-1] for t in chunk["choices"][0]["logprobs"]["tokens"]]
    assert tokens == whole["choices"][0]["logprobs"]["tokens"]
