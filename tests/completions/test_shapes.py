"""Signatures and dictionaries are llama_cpp's, key by key."""

import inspect
from typing import get_type_hints

import pytest

from restkv_local import Llama

pytestmark = pytest.mark.native

EXTRA = {"kv"}
MESSAGES = [{"role": "user", "content": "the code is in the answer"}]


@pytest.fixture(scope="module")
def theirs():
    """Return llama_cpp, once our library stands behind it."""
    from restkv_local.native import _library

    _library.load()
    import llama_cpp

    return llama_cpp


def keys(typed_dict):
    return set(get_type_hints(typed_dict))


@pytest.mark.parametrize("name", ["create_completion", "__call__", "create_chat_completion"])
def test_parameters_and_defaults_are_theirs(theirs, name):
    def described(function):
        parameters = inspect.signature(function).parameters.values()
        # A list as a default is theirs alone; it means none.
        return [(p.name, p.kind, None if p.default == [] else p.default) for p in parameters]

    assert described(getattr(Llama, name)) == described(getattr(theirs.Llama, name))


@pytest.mark.parametrize(
    "name", ["tokenize", "detokenize", "reset", "set_seed", "save_state", "load_state", "n_ctx",
             "n_vocab", "n_embd", "token_eos", "token_bos", "token_nl", "close"]
)  # fmt: skip
def test_other_methods_take_the_same_parameters(theirs, name):
    def described(function):
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    assert described(getattr(Llama, name)) == described(getattr(theirs.Llama, name))


def test_every_constructor_option_of_theirs_is_known(theirs):
    from restkv_local.compat.llama_cpp_options import read_llama_cpp_options

    parameters = inspect.signature(theirs.Llama.__init__).parameters.values()
    own = {"self", "kwargs", "model_path", "n_ctx", "verbose", "last_n_tokens_size"}
    defaults = {p.name: p.default for p in parameters if p.name not in own}
    del defaults["flash_attn"]  # always on here
    assert set(read_llama_cpp_options(defaults)) == {
        "n_gpu_layers", "seed", "n_ubatch", "type_k", "type_v",
    }  # fmt: skip


def test_a_completion_has_their_keys(llm, theirs):
    types = theirs.llama_types
    result = llm("the code", max_tokens=3, logprobs=2)
    assert set(result) == keys(types.CreateCompletionResponse) | EXTRA
    assert set(result["choices"][0]) == keys(types.CompletionChoice)
    assert set(result["choices"][0]["logprobs"]) == keys(types.CompletionLogprobs)
    assert set(result["usage"]) == keys(types.CompletionUsage)
    assert result["object"] == "text_completion"
    assert result["id"].startswith("cmpl-")
    assert result["model"] == llm.model_path
    assert llm("the", max_tokens=1, model="mine")["model"] == "mine"


def test_chunks_have_their_keys(llm, theirs):
    types = theirs.llama_types
    *chunks, last = llm("the code", max_tokens=3, logprobs=2, stream=True)
    usual = keys(types.CreateCompletionResponse) - {"usage"}
    assert all(set(chunk) == usual for chunk in chunks)
    assert set(last) == usual | EXTRA
    assert all(
        set(chunk["choices"][0]) == keys(types.CompletionChoice) for chunk in (*chunks, last)
    )
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"][0] == {
        "text": "", "index": 0, "logprobs": None, "finish_reason": "length",
    }  # fmt: skip
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1


def test_a_chat_completion_has_their_keys(llm, theirs):
    types = theirs.llama_types
    result = llm.create_chat_completion(MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2)
    assert set(result) == keys(types.CreateChatCompletionResponse) | EXTRA
    choice = result["choices"][0]
    assert set(choice) == keys(types.ChatCompletionResponseChoice)
    assert set(choice["message"]) == {"role", "content"}
    assert set(choice["logprobs"]) == keys(types.ChatCompletionLogprobs)
    token = choice["logprobs"]["content"][0]
    assert set(token) == keys(types.ChatCompletionLogprobToken)
    assert set(token["top_logprobs"][0]) == keys(types.ChatCompletionTopLogprobToken)
    assert result["id"].startswith("chatcmpl-")
    assert result["object"] == "chat.completion"


def test_chat_chunks_have_their_keys(llm, theirs):
    types = theirs.llama_types
    chunks = list(llm.create_chat_completion(MESSAGES, max_tokens=3, stream=True))
    usual = keys(types.CreateChatCompletionStreamResponse)
    assert all(set(chunk) == usual for chunk in chunks[:-1])
    assert set(chunks[-1]) == usual | EXTRA
    choices = [chunk["choices"][0] for chunk in chunks]
    assert all(set(choice) == keys(types.ChatCompletionStreamResponseChoice) for choice in choices)
    assert choices[0]["delta"] == {"role": "assistant"}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert choices[-1]["delta"] == {}
    assert choices[-1]["finish_reason"] == "length"


def test_kv_is_the_report_of_the_engine(llm):
    result = llm("the code", max_tokens=3)
    assert result["kv"] == llm.engine.kv_report()
    *_, last = llm("the code", max_tokens=3, stream=True)
    assert last["kv"] == llm.engine.kv_report()
