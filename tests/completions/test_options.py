"""Nothing is ignored: an option works, or one line says why it cannot be had."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from restkv_local import ChatSession, Llama
from restkv_local.compat.llama_cpp_options import read_llama_cpp_options
from restkv_local.config import Config
from restkv_local.errors import BusyError, ConfigError, InputError, RestKVError
from tests.completions.conftest import TINY, text_of

pytestmark = pytest.mark.native


def one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suffix": "end"}, ["suffix=", "infill"]),
        ({"tfs_z": 0.5}, ["tfs_z", "min_p"]),
        ({"mirostat_mode": 2}, ["mirostat_mode", "temperature"]),
        ({"echo": True, "logprobs": 1}, ["echo with logprobs"]),
        ({"temperature": -1.0}, ["temperature must be at least 0", "-1.0"]),
        ({"temperature": math.nan}, ["temperature", "nan"]),
        ({"top_p": 0.0}, ["top_p must be above 0 and at most 1"]),
        ({"typical_p": 1.5}, ["typical_p"]),
        ({"min_p": -0.1}, ["min_p"]),
        ({"repeat_penalty": 0}, ["repeat_penalty must be above 0"]),
        ({"presence_penalty": math.inf}, ["presence_penalty must be finite"]),
        ({"top_k": 1.5}, ["top_k must be a whole number"]),
        ({"max_tokens": "3"}, ["max_tokens must be a whole number"]),
        ({"logprobs": -1}, ["logprobs must be at least 0"]),
        ({"seed": 2**32}, ["seed", "4294967296"]),
        ({"stop": ["a", ""]}, ["stop", "none empty"]),
        ({"stop": [1]}, ["stop must be a string"]),
        ({"grammar": 3}, ["grammar must be GBNF", "int"]),
    ],
)
def test_an_option_out_of_bounds_is_refused_before_anything_is_read(llm, options, words):
    for stream in (False, True):
        with pytest.raises(ConfigError) as error:
            llm("the code", stream=stream, **options)
        one_line(error, *words)
    assert not llm.engine.is_open


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logit_bias": {10**6: 1.0}}, ["logit_bias must name tokens of 0 to"]),
        ({"logit_bias": {5: math.inf}}, ["logit_bias must be numbers, or -inf"]),
        ({"logit_bias": {"x": 1}}, ["logit_bias must map tokens to numbers"]),
        ({"logit_bias": [1]}, ["logit_bias must map"]),
        ({"grammar": "root ::= undefined"}, ["grammar must be GBNF"]),
        ({"grammar": "other ::= [a]"}, ["a rule named root"]),
        ({"grammar": 'root ::= root "a"'}, ["left recursion"]),
        ({"grammar": ""}, ["grammar must be GBNF"]),
        ({"grammar": "root ::= <s> [a]"}, ["names a token, <s>", "literal"]),
        ({"grammar": "root ::= [a]{3,1}"}, ["{3,1}", "lower"]),
        ({"grammar": "root ::= " + "(" * 20000 + "[a]" + ")" * 20000}, ["parentheses 250 deep"]),
        ({"grammar": "".join(f"x{n} ::= x{n + 1}\n" for n in range(20000))}, ["2500 rules"]),
        ({"logits_processor": lambda ids, logits: logits[:3]}, ["logits_processor must return"]),
        ({"logits_processor": lambda ids, logits: logits * np.nan}, ["nan", "logits_processor"]),
        (
            {"logits_processor": lambda ids, logits: np.full_like(logits, -np.inf)},
            ["no token is left to draw"],
        ),
    ],
)
def test_what_only_the_model_can_judge_is_refused_in_one_line_and_the_model_stays_usable(
    llm, options, words
):
    with pytest.raises(ConfigError) as error:
        llm("the code", **options)
    one_line(error, *words)
    assert llm("the code", max_tokens=2)["usage"]["completion_tokens"] >= 0


@pytest.mark.parametrize("name", ["functions", "tools"])
def test_function_calls_are_refused(llm, name):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ConfigError) as error:
        llm.create_chat_completion(messages, **{name: [{"name": "f", "parameters": {}}]})
    one_line(error, f"{name}=", "response_format")
    with pytest.raises(ConfigError, match="tool_choice="):
        llm.create_chat_completion(messages, tool_choice="required")
    llm.create_chat_completion(messages, tools=[], tool_choice="none", max_tokens=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"response_format": {"type": "xml"}}, ["response_format", "json_object"]),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, ["give one"]),
        ({"response_format": {"type": "json_object", "schema": {"type": "odd"}}}, ["schema"]),
        (
            {"response_format": {"type": "json_object", "schema": {"$ref": "http://x/y"}}},
            ["schema"],
        ),
        ({"top_logprobs": 2}, ["top_logprobs needs logprobs=True"]),
    ],
)
def test_formats_that_cannot_be_followed_are_refused(llm, options, words):
    with pytest.raises(ConfigError) as error:
        llm.create_chat_completion([{"role": "user", "content": "hi"}], **options)
    one_line(error, *words)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["messages is empty"]),
        (["hi"], ["a message must be like"]),
        ([{"content": "hi"}], ["a message must be like"]),
        ([{"role": "user", "content": 3}], ["must be text", "int"]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], ["image_url"]),
    ],
)
def test_messages_that_are_none_are_refused(llm, messages, words):
    with pytest.raises(InputError) as error:
        llm.create_chat_completion(messages)
    one_line(error, *words)


def test_content_parts_are_joined(llm):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "code"}]
    whole = [{"role": "user", "content": "the code"}]
    completer = llm._chat_completer
    assert completer.prompt([{"role": "user", "content": parts}]) == completer.prompt(whole)
    assert completer.prompt([*whole, {"role": "assistant", "content": None}, *whole])


# the constructor


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_threads": None, "n_threads_batch": None}, {}),
        ({"n_threads": 3, "n_threads_batch": 3}, {"n_threads": 3}),
        ({"seed": 0xFFFFFFFF}, {"seed": -1}),
        ({"n_batch": 2048}, {"n_ubatch": Config().n_ubatch}),
        ({"n_batch": 128}, {"n_ubatch": 128}),
        ({"n_batch": 256, "n_ubatch": 64}, {"n_ubatch": 64}),
        ({"type_k": 8, "type_v": 2}, {"type_k": "q8_0", "type_v": "q4_0"}),
        ({"type_k": None, "type_v": "q8_0"}, {"type_k": "f16", "type_v": "q8_0"}),
        ({"flash_attn": True, "use_mmap": True, "no_perf": False, "tensor_split": None}, {}),
        ({"n_gpu_layers": -1, "seed": 5, "budget": 256}, {"n_gpu_layers": -1, "seed": 5, "budget": 256}),
    ],
)  # fmt: skip
def test_their_constructor_options_mean_the_same_here(options, expected):
    assert read_llama_cpp_options(options) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": 4096}, ["n_ctx", "budget="]),
        ({"embedding": True}, ["embedding=True", "leave it out"]),
        ({"logits_all": True}, ["logits_all=True", "logprobs="]),
        ({"flash_attn": False}, ["flash_attn=False"]),
        ({"lora_path": "x"}, ["lora_path='x'", "merge"]),
        ({"rope_freq_scale": 0.5}, ["rope_freq_scale=0.5", "RoPE"]),
        ({"chat_format": "llama-2"}, ["chat_format='llama-2'", "template"]),
        ({"tensor_split": [0.5, 0.5]}, ["tensor_split"]),
        ({"n_threads": 2, "n_threads_batch": 4}, ["n_threads_batch=4", "n_threads="]),
        ({"type_k": 3}, ["type_k"]),
        ({"n_batch": "many"}, ["n_batch must be of type int"]),
        ({"last_n_tokens_size": -1}, ["last_n_tokens_size", "at least 0"]),
        ({"n_contx": 3}, ["unknown option n_contx="]),
    ],
)
def test_constructor_options_that_cannot_be_had_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError) as error:
        Llama(TINY.write(tmp_path / "m.gguf"), **options)
    one_line(error, *words)


def test_nothing_is_downloaded():
    with pytest.raises(ConfigError) as error:
        Llama.from_pretrained(repo_id="a/b", filename="*.gguf")
    one_line(error, "from_pretrained()", "model_path=")


def test_a_session_of_a_closed_model_says_so(llm):
    session = ChatSession(llm)
    "".join(session.send("the code"))
    llm.close()
    calls = [lambda: "".join(session.send("why?")), lambda: session.prepare("why?"),
             lambda: llm.engine.open(100, 16, 0)]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match="the model was closed"):
            call()


def test_a_token_that_is_none_is_refused(llm):
    """llama.cpp would end the process."""
    for token in (-1, llm.n_vocab(), 9_999_999):
        for call in (
            lambda token=token: llm([token, 20]),
            lambda token=token: llm.detokenize([token]),
        ):
            with pytest.raises(InputError, match=f"there is no token {token}"):
                call()


def test_a_text_that_is_no_unicode_is_refused(llm):
    with pytest.raises(InputError, match=r"no character at place 4 \('\\udce9'\)") as error:
        llm("caf\udce9?", max_tokens=1)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no character"):
        "".join(ChatSession(llm).send("caf\udce9?"))


def test_a_closed_model_says_so(llm):
    llm("the code", max_tokens=1)
    stream = llm("the code", stream=True)
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(BusyError, match="or freed it"):
        next(stream)
    for call in (lambda: llm("the"), lambda: llm.tokenize(b"the"), llm.token_eos):
        with pytest.raises(InputError, match="the model was closed"):
            call()


@pytest.mark.model
@pytest.mark.parametrize("first", ["from restkv_local import Llama", "import restkv_local"])
def test_what_scripts_import_from_llama_cpp_finds_our_library(first):
    script = (
        f"{first}\n"
        "from llama_cpp import LlamaGrammar\n"
        "from restkv_local import Llama\n"
        "grammar = LlamaGrammar.from_string('root ::= \" yes\"', verbose=False)\n"
        "print(Llama('demo', n_threads=1)('Well,', grammar=grammar)['choices'][0]['text'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LLAMA_CPP_LIB_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=100
    )
    assert done.stdout == " yes\n", done.stderr


def test_stop_strings_may_come_from_an_iterator(llm):
    whole = text_of(llm("the code", temperature=0.0, max_tokens=12))
    stop = whole[4:6]
    expected = text_of(llm("the code", temperature=0.0, max_tokens=12, stop=stop))
    assert expected == whole[: whole.index(stop)]
    given = iter([stop])
    assert text_of(llm("the code", temperature=0.0, max_tokens=12, stop=given)) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm("the code", stop=3), "stop must be a string or a list"),
        (
            lambda llm: llm.create_chat_completion(
                [{"role": "user", "content": [{"type": "text"}]}]
            ),
            "one has no text",
        ),
        (
            lambda llm: llm.create_chat_completion(
                [{"role": "user", "content": "a"}], response_format="json_object"
            ),
            "response_format must have the type",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused_in_one_line(llm, call, message):
    with pytest.raises(RestKVError, match=message) as error:
        call(llm)
    assert "\n" not in str(error.value)
