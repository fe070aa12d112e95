"""Answers of a tiny model: what each option does, and that a stream says the same."""

import json

import numpy as np
import pytest

from restkv_local import ChatSession
from restkv_local.errors import InputError
from tests.completions.conftest import BPE, TINY, text_of

pytestmark = pytest.mark.native

PROMPT = "the code of the answer is"
# Both tokens that end an answer.
ENDLESS = {"logit_bias": {2: float("-inf"), 4: float("-inf")}, "seed": 1}
GREEDY = {"temperature": 0.0, "max_tokens": 12}


def tokens_of(llm, **options):
    """Return the tokens of an answer as text, one string each."""
    result = llm(PROMPT, logprobs=0, **options)
    return result["choices"][0]["logprobs"]["tokens"]


def ids_of(llm, n=12, **options):
    """Return the tokens of an answer as numbers."""
    seen = []

    def watch(ids, logits):
        seen[:] = ids.tolist()
        return False

    llm(PROMPT, max_tokens=n, stopping_criteria=watch, **options)
    return seen[len(llm.tokenize(PROMPT.encode(), special=True)) :]


# text


def test_echo_puts_the_prompt_before_the_answer(llm):
    answer = text_of(llm(PROMPT, **GREEDY))
    assert text_of(llm(PROMPT, echo=True, **GREEDY)) == PROMPT + answer
    assert text_of(llm(PROMPT, echo=True, stream=True, **GREEDY)) == PROMPT + answer


@pytest.mark.parametrize("prompt", [None, 5, b"abc", ["a"], [1.5]])
def test_a_prompt_is_text_or_tokens(llm, prompt):
    with pytest.raises(InputError, match="prompt must be a text or a list of tokens"):
        llm.create_completion(prompt)


def test_a_prompt_may_be_tokens(llm):
    tokens = llm.tokenize(PROMPT.encode(), special=True)
    assert text_of(llm(tokens, **GREEDY)) == text_of(llm(PROMPT, **GREEDY))
    assert text_of(llm(tokens, echo=True, **GREEDY)).endswith(text_of(llm(PROMPT, **GREEDY)))


def test_tokens_come_back_as_the_text_they_were_made_of(llm):
    text = "the code is é☺ 42".encode()
    tokens = llm.tokenize(text)
    assert tokens[0] == llm.token_bos() == 1
    assert llm.detokenize(tokens) == text
    assert llm.detokenize(llm.tokenize(text, add_bos=False)) == b" " + text
    assert llm.tokenize(b"</s>", add_bos=False, special=True) == [llm.token_eos()]
    assert len(llm.tokenize(b"</s>", add_bos=False)) > 1
    assert llm.detokenize([llm.token_eos()]) == b""
    assert llm.detokenize([llm.token_eos()], special=True) == b"</s>"
    assert llm.n_vocab() == llm.native.n_vocab > 300
    for wrong in ("text", b"\xff"):
        with pytest.raises(InputError, match="UTF-8"):
            llm.tokenize(wrong)


def test_max_tokens_counts_what_was_said(llm):
    for n in (1, 5):
        result = llm(PROMPT, temperature=0.0, max_tokens=n)
        n_prompt = len(llm.tokenize(PROMPT.encode(), special=True))
        assert result["usage"] == {
            "prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n,
        }  # fmt: skip
        assert result["choices"][0]["finish_reason"] == "length"
    for unlimited in (None, 0, -1):
        result = llm(PROMPT, temperature=0.0, max_tokens=unlimited)
        assert result["usage"]["completion_tokens"] <= llm.config.n_predict == 16


@pytest.mark.parametrize("n", range(1, 9))
def test_a_stop_string_ends_the_answer_before_itself(llm, n):
    answer = text_of(llm(PROMPT, **GREEDY))
    stop = answer[n : n + 3]  # spans tokens: the tiny model speaks in letters and bytes
    for stream in (False, True):
        assert text_of(llm(PROMPT, stop=stop, stream=stream, **GREEDY)) == answer.split(stop)[0]
    result = llm(PROMPT, stop=["never said", stop], **GREEDY)
    assert result["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("model", [TINY, BPE], ids=["spm", "bpe"])
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_says_what_the_whole_result_says(open_llama, model, seed):
    llm = open_llama(model)
    options = {
        "max_tokens": 40, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed,
        "logprobs": 2,
    }  # fmt: skip
    whole = llm(PROMPT, **options)
    stop = text_of(whole)[9:11]
    for more in ({}, {"stop": [stop]}):
        whole = llm(PROMPT, **options, **more)
        chunks = list(llm(PROMPT, stream=True, **options, **more))
        assert text_of(chunks) == text_of(whole)
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        for key, values in whole["choices"][0]["logprobs"].items():
            parts = [chunk["choices"][0]["logprobs"][key] for chunk in chunks[:-1]]
            assert [value for part in parts for value in part] == values


def test_a_character_of_many_tokens_is_one_piece(llm):
    """The tiny vocabulary has no é: the grammar makes it come as two byte tokens."""
    chunks = list(llm(PROMPT, grammar='root ::= "é☺"', stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["é", "☺"]


def test_the_end_of_the_answer_is_no_part_of_it(llm):
    eos = llm.token_eos()
    result = llm(PROMPT, logit_bias={eos: 1e4})
    assert text_of(result) == ""
    assert result["choices"][0]["finish_reason"] == "stop"
    assert result["usage"]["completion_tokens"] == 0


# probabilities


def test_logprobs_are_the_logits_of_the_model(llm):
    result = llm(PROMPT, temperature=0.0, max_tokens=1, logprobs=5)
    logits = llm.native.logits().astype(np.float64)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    logprobs = result["choices"][0]["logprobs"]
    (top,) = logprobs["top_logprobs"]
    best = np.argsort(-expected)[:5]
    texts = [llm.detokenize([token]).decode(errors="replace") for token in best]
    # Bytes have tokens beside the letters they spell: the likelier one counts.
    named = {text: expected[token] for text, token in zip(texts[::-1], best[::-1], strict=True)}
    assert top == pytest.approx(named)
    assert list(top.values()) == sorted(top.values(), reverse=True)
    assert logprobs["token_logprobs"] == [pytest.approx(expected.max())]
    assert logprobs["tokens"] == [text_of(result)]
    assert logprobs["text_offset"] == [len(PROMPT)]


def test_offsets_point_at_the_tokens_text(llm):
    result = llm(PROMPT, temperature=1.0, max_tokens=12, logprobs=0, seed=3)
    logprobs, whole = result["choices"][0]["logprobs"], PROMPT + text_of(result)
    assert len(logprobs["tokens"]) == result["usage"]["completion_tokens"]
    for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if "\N{REPLACEMENT CHARACTER}" not in token:
            assert whole[start : start + len(token)] == token
    assert all(len(top) == 1 for top in logprobs["top_logprobs"])


def test_tokens_behind_a_stop_are_not_listed(llm):
    answer = text_of(llm(PROMPT, **GREEDY))
    result = llm(PROMPT, stop=answer[4:7], logprobs=0, **GREEDY)
    assert max(result["choices"][0]["logprobs"]["text_offset"]) < len(PROMPT) + len(text_of(result))


# draws


def test_a_seed_repeats_the_answer_and_no_seed_goes_on(llm):
    options = {"temperature": 1.5, "top_k": 0, "max_tokens": 12}
    first = text_of(llm(PROMPT, seed=5, **options))
    others = [text_of(llm(PROMPT, **options)) for _ in range(2)]
    assert len({first, *others}) == 3
    assert text_of(llm(PROMPT, seed=5, **options)) == first
    assert [text_of(llm(PROMPT, **options)) for _ in range(2)] == others
    llm.set_seed(5)
    assert text_of(llm(PROMPT, **options)) == first
    assert text_of(llm(PROMPT, seed=6, **options)) != first


def test_two_models_with_one_seed_answer_alike(open_llama):
    options = {"temperature": 1.5, "top_k": 0}
    answers = [text_of(open_llama(TINY, seed=9)(PROMPT, **options)) for _ in range(2)]
    assert answers[0] == answers[1]


def test_penalties_keep_tokens_from_coming_back(llm):
    plain = ids_of(llm, 40, temperature=0.0)
    for penalty in ({"repeat_penalty": 1e6}, {"frequency_penalty": 1e4}, {"presence_penalty": 1e4}):
        penalised = ids_of(llm, 40, temperature=0.0, **penalty)
        assert len(set(penalised)) == len(penalised), penalty
        assert penalised[0] == plain[0]
    # A negative one makes the first token the only one.
    assert len(set(ids_of(llm, 12, temperature=0.0, presence_penalty=-1e4))) == 1


def test_penalties_forget_what_is_older_than_their_window(open_llama):
    llm = open_llama(TINY, last_n_tokens_size=2)
    favoured = {"logit_bias": {70: 1e3, 71: 1e3, 72: 1e3}, "presence_penalty": 1e4}
    ids = ids_of(llm, 20, temperature=0.0, **favoured)
    assert set(ids) == {70, 71, 72}
    assert all(len(set(ids[i : i + 3])) == 3 for i in range(len(ids) - 2))
    assert len(set(ids_of(open_llama(TINY), 20, temperature=0.0, **favoured))) > 10


def test_a_bias_forces_and_forbids(llm):
    first = ids_of(llm, 2, temperature=0.0)[0]
    assert ids_of(llm, 3, logit_bias={77: 1e4})[:2] == [77, 77]
    assert ids_of(llm, 2, temperature=0.0, logit_bias={str(first): float("-inf")})[0] != first


def test_one_candidate_is_the_likeliest(llm):
    greedy = ids_of(llm, temperature=0.0)
    assert ids_of(llm, temperature=1.0, top_k=1) == greedy
    assert ids_of(llm, temperature=1.0, top_k=0, top_p=1e-6) == greedy
    assert ids_of(llm, temperature=1.0, top_k=0, min_p=1.0) == greedy
    assert ids_of(llm, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, seed=2) != greedy


def test_typical_draws_fall_where_the_surprise_is_usual(llm):
    """At a small typical_p one token is left: the one whose surprise is nearest to the entropy."""
    llm(PROMPT, temperature=0.0, max_tokens=1)
    logits = llm.native.logits().astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    nearest = np.abs(-np.log(p) + (p * np.log(p)).sum()).argmin()
    drawn = ids_of(llm, 2, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1e-6)
    assert drawn[0] == nearest


# grammar


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("model", [TINY, BPE], ids=["spm", "bpe"])
def test_only_what_the_grammar_derives_is_said(open_llama, model, temperature):
    llm = open_llama(model)
    grammar = 'root ::= "yes" | "no" | "é" [0-9] [0-9]'
    for seed in range(4):
        result = llm(PROMPT, grammar=grammar, temperature=temperature, seed=seed)
        assert text_of(result) in {"yes", "no", *(f"é{n:02}" for n in range(100))}
        assert result["choices"][0]["finish_reason"] == "stop"


def test_grammars_of_llama_cpp_are_understood(llm):
    from llama_cpp import LlamaGrammar

    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    assert text_of(llm(PROMPT, grammar=grammar)) in {"yes", "no"}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_response_format_makes_json(llm, temperature):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}, "who": {"enum": ["a", "b"]}},
        "required": ["n", "who"],
    }
    result = llm.create_chat_completion(
        [{"role": "user", "content": PROMPT}],
        response_format={"type": "json_object", "schema": schema},
        # Endless digits and spaces are JSON too: a little help to get on.
        logit_bias={llm.tokenize(b"\n", add_bos=False)[-1]: float("-inf")},
        repeat_penalty=1.5,
        temperature=temperature,
        max_tokens=300,
        seed=1,
    )
    if result["choices"][0]["finish_reason"] == "stop":
        answer = json.loads(result["choices"][0]["message"]["content"])
        assert set(answer) == {"n", "who"}
        assert answer["who"] in ("a", "b")
    else:
        assert result["choices"][0]["message"]["content"].startswith("{")


def test_a_grammar_that_comes_to_a_dead_end_says_so(open_llama):
    """Forbidding the only token that could go on must not end the process."""
    llm = open_llama(TINY)
    b = llm.tokenize(b"b", add_bos=False)[-1]
    assert llm.detokenize([b]) == b"b"
    byte = 5 + ord("b")  # the same letter as a byte token
    assert llm.detokenize([byte]) == b"b"
    forbidden = {b: float("-inf"), byte: float("-inf")}
    with pytest.raises(ValueError, match="no token is left to draw"):
        llm(PROMPT, grammar='root ::= "ab"', logit_bias=forbidden)
    assert text_of(llm(PROMPT, grammar='root ::= "ab"')) == "ab"


# callbacks


def test_a_processor_sees_all_tokens_and_changes_the_logits(llm):
    lengths = []

    def only_77(ids, logits):
        assert ids.dtype == np.intc
        lengths.append(len(ids))
        changed = np.full_like(logits, -np.inf)
        changed[77] = 0.0
        return changed

    calls = []
    two = [lambda ids, logits: calls.append(ids[-1]) or logits, only_77]
    result = llm(PROMPT, logits_processor=two, max_tokens=4)
    n_prompt = result["usage"]["prompt_tokens"]
    assert lengths == [n_prompt, n_prompt + 1, n_prompt + 2, n_prompt + 3]
    assert calls[1:] == [77, 77, 77]


def test_callbacks_may_change_what_they_get(llm):
    expected = ids_of(llm, temperature=0.0)

    def spoil(ids, logits):
        ids[:] = 0
        return logits

    def criterion(ids, logits):
        return False

    assert ids_of(llm, temperature=0.0) == expected
    answer = text_of(llm(PROMPT, **GREEDY))
    assert (
        text_of(llm(PROMPT, logits_processor=spoil, stopping_criteria=[criterion], **GREEDY))
        == answer
    )


def test_a_criterion_ends_the_answer_before_the_next_token(llm):
    n_prompt = len(llm.tokenize(PROMPT.encode(), special=True))
    result = llm(PROMPT, stopping_criteria=lambda ids, logits: len(ids) >= n_prompt + 3, **GREEDY)
    assert result["usage"]["completion_tokens"] == 3
    assert result["choices"][0]["finish_reason"] == "stop"


def test_classes_of_llama_cpp_work_as_callbacks(llm):
    from llama_cpp import LogitsProcessorList, StoppingCriteriaList
    from llama_cpp.llama import MinTokensLogitsProcessor

    processors = LogitsProcessorList([MinTokensLogitsProcessor(5, llm.token_eos())])
    criteria = StoppingCriteriaList([lambda ids, logits: False])
    options = {"logit_bias": {llm.token_eos(): 20.0}, **GREEDY}
    assert llm(PROMPT, **options)["usage"]["completion_tokens"] == 0
    result = llm(PROMPT, logits_processor=processors, stopping_criteria=criteria, **options)
    assert result["usage"]["completion_tokens"] == 5


def test_an_error_in_a_callback_is_the_callers_and_the_model_stays_usable(llm):
    answer = text_of(llm(PROMPT, **GREEDY))

    def broken(ids, logits):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        llm(PROMPT, logits_processor=broken)
    assert text_of(llm(PROMPT, **GREEDY)) == answer


# eviction


def test_a_long_prompt_is_answered_within_the_budget_and_said_so(open_llama, tokens):
    reached = []
    llm = open_llama(TINY, on_progress=lambda progress: reached.append(progress.processed))
    result = llm(tokens(900), max_tokens=150, **ENDLESS)
    kv = result["kv"]
    assert kv["events"] >= 5
    assert kv["peak"] <= kv["capacity"] < 500
    assert kv["evicted"] == kv["seen"] - kv["kept"] > 200
    # The last token of an answer is said, not read.
    assert kv["seen"] == result["usage"]["total_tokens"] - 1
    assert reached[-1] == 900


def test_the_end_of_a_prompt_guides_its_eviction(open_llama, tokens):
    def kept(prompt, **options):
        """Rows that the first eviction leaves."""
        found = []
        llm = open_llama(
            TINY, on_evict=lambda _: found.append(llm.engine.rows.positions.copy()), **options
        )
        llm(prompt, max_tokens=1)
        return found[0]

    prompt, other = tokens(300), [*tokens(284), *tokens(16, seed=5)]
    assert not np.array_equal(kept(prompt), kept(prompt, guide="off"))
    # Without a guide only the last chunk knows that the ends differ: it is read after this eviction.
    np.testing.assert_array_equal(kept(prompt, guide="off"), kept(other, guide="off"))
    assert not np.array_equal(kept(prompt), kept(other))
    np.testing.assert_array_equal(kept(prompt, guide="the code"), kept(other, guide="the code"))


@pytest.mark.parametrize("options", [{"policy": "full"}, {"prefill": "full"}], ids=str)
def test_what_is_read_whole_has_room_for_each_call(open_llama, tokens, options):
    llm = open_llama(TINY, **options)
    for n in (100, 700, 50):
        result = llm(tokens(n), max_tokens=20, **ENDLESS)
        assert result["usage"]["completion_tokens"] == 20
        assert result["kv"]["seen"] == n + 19


def test_a_cache_that_keeps_everything_ends_the_answer_when_it_is_full(open_llama, tokens):
    llm = open_llama(TINY, policy="full", n_predict=-1)
    result = llm(tokens(100), max_tokens=None, **ENDLESS)
    assert result["choices"][0]["finish_reason"] == "length"
    assert result["kv"]["seen"] == result["kv"]["capacity"]


@pytest.mark.parametrize("budget", [64, "1MiB", "50%"])
def test_budgets_of_every_kind_work_call_after_call(open_llama, tokens, budget):
    llm = open_llama(TINY, budget=budget)
    for n in (400, 200):
        assert llm(tokens(n), max_tokens=4)["kv"]["seen"] in (n + 3, n + 2, n + 1, n)
    assert llm.n_ctx() == llm.engine.capacity


def test_n_ctx_is_the_capacity_before_and_after_a_prompt(open_llama, tokens):
    llm = open_llama(TINY)
    rows = llm.n_ctx()
    llm(tokens(300), max_tokens=1)
    assert llm.n_ctx() == rows == llm.engine.capacity
    with pytest.raises(ValueError, match="once a prompt has been read"):
        open_llama(TINY, budget="50%").n_ctx()


# chat


def test_greedy_chat_says_what_a_session_says(open_llama):
    llm = open_llama(TINY, n_predict=24)
    for text in ("the code", "the question is the number of the answer. " * 12):
        answer = "".join(ChatSession(llm).send(text))
        for stream in (False, True):
            result = llm.create_chat_completion(
                [{"role": "user", "content": text}], temperature=0.0, stream=stream
            )
            if stream:
                deltas = [chunk["choices"][0]["delta"] for chunk in result]
                said = "".join(delta.get("content", "") for delta in deltas)
            else:
                said = result["choices"][0]["message"]["content"]
            assert said == answer


def test_a_system_prompt_is_never_evicted(open_llama):
    llm = open_llama(TINY, budget=96)
    system = {"role": "system", "content": "the answer is the code"}
    text = "the number in the question and the code. " * 30
    result = llm.create_chat_completion([system, {"role": "user", "content": text}], max_tokens=4)
    assert result["kv"]["events"] > 0
    n_pinned = llm.engine.n_pinned
    assert (llm.engine.rows.positions[..., :n_pinned] == np.arange(n_pinned)).all()
    session = ChatSession(llm, system=system["content"])
    assert n_pinned == session.prepare("x")[1] > 10
