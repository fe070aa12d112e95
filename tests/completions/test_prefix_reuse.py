"""A prompt that goes on where the cache ends is read from there on; any other starts over."""

import numpy as np
import pytest

from restkv_local import ChatSession
from restkv_local.errors import InputError, RestKVError
from tests import builders
from tests.completions.conftest import TINY, text_of

pytestmark = pytest.mark.native


@pytest.fixture
def watched(open_llama):
    """Return a model and the lengths of what its engine read."""
    read = []
    llm = open_llama(TINY)
    engine_read = llm.engine.read

    def reading(tokens, **options):
        read.append(len(tokens))
        engine_read(tokens, **options)

    llm.engine.read = reading
    return llm, read


def answer_ids(llm, prompt, n):
    ids = []
    llm(prompt, max_tokens=n + 1, temperature=0.0, stopping_criteria=lambda now, _: ids.append(now))
    return ids[-1].tolist()[: len(prompt) + n]


def test_only_what_is_new_is_read(watched, tokens):
    llm, read = watched
    first = tokens(300)
    whole = answer_ids(llm, first, 5)
    llm([*whole, *tokens(40, seed=1)], max_tokens=3)
    # Five tokens were said; the last of them entered when the sixth was drawn.
    assert read == [300, 40]
    assert llm.engine.counters.seen >= 345


def test_the_last_token_said_is_read_with_what_follows(watched, tokens):
    llm, read = watched
    result = llm(tokens(50), max_tokens=4, logprobs=0, temperature=0.0)
    assert result["kv"]["seen"] == 53
    ids = answer_ids(llm, tokens(50), 4)
    read.clear()
    llm.reset()
    llm(tokens(50), max_tokens=4, temperature=0.0)
    llm([*ids, 20, 21], max_tokens=1)
    assert read == [50, 3]


def test_another_prompt_starts_over(watched, tokens):
    llm, read = watched
    llm(tokens(300), max_tokens=1)
    for prompt in (tokens(299), tokens(300, seed=1), [*tokens(299), 3, 4], tokens(20)):
        result = llm(prompt, max_tokens=1)
        assert read[-1] == len(prompt) == result["kv"]["seen"]


def test_going_on_says_what_one_long_read_says(open_llama, tokens):
    """While nothing is evicted the way in which a prompt came in does not matter."""
    options = {"max_tokens": 8, "temperature": 0.0}
    llm, other = open_llama(TINY, budget=512), open_llama(TINY, budget=512)
    prompt = tokens(200)
    llm(prompt[:100], max_tokens=1)
    llm(prompt[:160], max_tokens=1)
    assert text_of(llm(prompt, **options)) == text_of(other(prompt, **options))
    np.testing.assert_allclose(llm.native.logits(), other.native.logits(), atol=1e-2)


def test_the_same_prompt_again_needs_no_reading(watched, tokens):
    llm, read = watched
    options = {"max_tokens": 1, "temperature": 0.0}
    assert text_of(llm(tokens(100), **options)) == text_of(llm(tokens(100), **options))
    assert read == [100]


def test_a_session_in_between_starts_over(watched, tokens):
    llm, read = watched
    llm(tokens(100), max_tokens=1)
    "".join(ChatSession(llm).send("the code"))
    read.clear()
    result = llm(tokens(100), max_tokens=1)
    assert read == [100]
    assert result["kv"]["seen"] == 100


def test_reset_starts_over(watched, tokens):
    llm, read = watched
    llm(tokens(100), max_tokens=1)
    llm.reset()
    llm(tokens(100), max_tokens=1)
    assert read == [100, 100]


def test_another_system_prompt_starts_over(watched):
    llm, read = watched
    question = {"role": "user", "content": "the code"}
    for system in ("the answer", "the number"):
        llm.create_chat_completion([{"role": "system", "content": system}, question], max_tokens=1)
    assert len(read) == 2
    # The same tokens without turns have nothing pinned.
    messages = [{"role": "system", "content": "the number"}, question]
    tokens = llm._chat_completer.prompt(messages).tokens
    llm([*tokens, 20], max_tokens=1)
    assert read[-1] == len(tokens) + 1


def test_chat_turns_go_on_as_those_of_a_session(open_llama, watched):
    llm, read = watched
    other = open_llama(TINY)
    session = ChatSession(other)
    messages = []
    for text in ("the code of the answer " * 24, "why", "the number"):
        messages.append({"role": "user", "content": text})
        result = llm.create_chat_completion(messages, temperature=0.0)
        messages.append(result["choices"][0]["message"])
        assert messages[-1]["content"] == "".join(session.send(text))
    assert read[0] > 100
    assert all(n < 64 for n in read[1:])


def test_a_turn_that_was_cut_is_read_again(watched):
    llm, read = watched
    messages = [{"role": "user", "content": "the code"}]
    answer = llm.create_chat_completion(messages, temperature=0.0)["choices"][0]["message"]
    cut = {**answer, "content": answer["content"][:3]}
    result = llm.create_chat_completion([*messages, cut, *messages], max_tokens=1)
    assert read[1] == result["kv"]["seen"]


# states


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("policy", ["restkv", "h2o", "streamingllm"])
def test_a_loaded_state_goes_on_like_the_saved_one(open_llama, tokens, policy, temperature):
    options = {"max_tokens": 64, "temperature": temperature, "top_k": 0}
    llm = open_llama(TINY, policy=policy, seed=3)
    whole = answer_ids(llm, tokens(300), 6)
    state = llm.save_state()
    assert state.input_ids.tolist() == whole
    assert state.n_tokens == 306
    prompt = [*whole, *tokens(20, seed=2)]
    expected = llm(prompt, **options)
    llm(tokens(30, seed=8), max_tokens=5)
    llm.load_state(state)
    again = llm(prompt, **options)
    assert again["choices"] == expected["choices"]
    assert again["kv"]["seen"] == expected["kv"]["seen"]
    elsewhere = open_llama(TINY, policy=policy, seed=4)
    elsewhere.load_state(state)
    assert elsewhere(prompt, **options)["choices"] == expected["choices"]


def test_a_loaded_state_answers_its_own_prompt_at_once(watched, tokens):
    llm, read = watched
    answer = text_of(llm(tokens(100), max_tokens=1, temperature=0.0))
    state = llm.save_state()
    llm(tokens(20, seed=1), max_tokens=1)
    llm.load_state(state)
    assert text_of(llm(tokens(100), max_tokens=1, temperature=0.0)) == answer
    assert read == [100, 20]


def test_an_empty_state_is_a_state(llm, tokens):
    state = llm.save_state()
    llm(tokens(50), max_tokens=1)
    llm.load_state(state)
    assert state.n_tokens == llm.engine.counters.seen == 0
    assert llm(tokens(50), max_tokens=1)["kv"]["seen"] == 50


def test_a_state_that_cannot_be_taken_up_changes_nothing(open_llama, llm, tokens):
    text = tokens(80)
    llm(tokens(300), max_tokens=1)
    state = llm.save_state()
    others = {
        "another model": open_llama(builders.llama(n_layer=3), policy="full"),
        "other figures": open_llama(TINY, policy="h2o"),
    }
    for why, other in others.items():
        other(text, max_tokens=1)
        before = other.save_state()
        with pytest.raises(RestKVError) as error:
            other.load_state(state)
        assert "\n" not in str(error.value)
        after = other.save_state()
        assert after.input_ids.tolist() == before.input_ids.tolist() != [], why
        assert after._snapshot.state == before._snapshot.state


def test_what_cannot_be_saved_or_loaded_is_said(open_llama, llm, tokens):
    "".join(ChatSession(llm).send("the code"))
    with pytest.raises(InputError, match="ChatSession"):
        llm.save_state()
    with pytest.raises(InputError, match="save_state"):
        llm.load_state({"n_tokens": 3})
    llm(tokens(50), max_tokens=1)
    state = llm.save_state()
    other = open_llama(builders.llama(n_layer=3))
    answer = text_of(other(tokens(80), max_tokens=3, temperature=0.0))
    with pytest.raises(RestKVError):
        other.load_state(state)
    assert text_of(other(tokens(80), max_tokens=3, temperature=0.0)) == answer
    windows = open_llama(builders.gemma2())
    windows(tokens(50), max_tokens=1)
    with pytest.raises(RestKVError, match="window"):
        windows.save_state()


def test_a_state_that_is_put_back_is_read_by_its_own_question(open_llama, tokens):
    """The prompt is in the cache already, so nothing is read that would name the guide."""
    llm = open_llama(TINY)
    prompt, other = tokens(80), tokens(90, seed=5)
    options = {"max_tokens": 40, "temperature": 0.0}
    llm(prompt, max_tokens=1)
    state = llm.save_state()
    guide = list(llm.engine.guide)
    expected = text_of(llm(prompt, **options))
    llm(other, max_tokens=1)
    assert llm.engine.guide != guide
    llm.load_state(state)
    assert text_of(llm(prompt, **options)) == expected
    assert llm.engine.guide == guide


def test_a_state_that_does_not_fit_leaves_the_answer_as_it_was(open_llama, tokens):
    """The cache is made anew for it, and then anew for what it held."""
    llm, other = (open_llama(one, budget="90%") for one in (TINY, builders.llama(n_layer=3)))
    prompt = tokens(60)
    expected = text_of(llm(prompt, max_tokens=12, temperature=0.0))
    llm.reset()
    llm(prompt, max_tokens=1)
    other(tokens(600), max_tokens=1)
    with pytest.raises(RestKVError, match="another model"):
        llm.load_state(other.save_state())
    assert text_of(llm(prompt, max_tokens=12, temperature=0.0)) == expected
