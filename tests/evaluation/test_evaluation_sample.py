"""Samples, and the parts that tasks are made with."""

import re
import sys

import pytest
from evaluation_helpers import count, decode, encode, make_sample, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation.answering import hash_asked
from restkv_local.evaluation.fitting import fit_sample
from restkv_local.evaluation.framing import Prompt
from restkv_local.evaluation.haystack import (
    find_sentence_starts,
    make_prose,
    repeat_text,
    shipped_text,
    shipped_topics,
    split_sentences,
)
from restkv_local.evaluation.jsonl import read_jsonl
from restkv_local.evaluation.metrics.registry import METRICS, score_sample
from restkv_local.evaluation.tasks.base import Request
from restkv_local.evaluation.tasks.registry import TASKS, find_tasks
from restkv_local.evaluation.truncation import cut_middle

WORDS = st.lists(st.sampled_from(["a", "harbour", "bell.", "Why?", "twelve", "ships"]), max_size=60)


def asked(*references, **fields):
    """The hash of a sample without a template."""
    sample = make_sample(*(references or ("r",)), **fields)
    ending = sample.question + sample.answer_prefix
    return hash_asked(sample, Prompt(sample.context, ending, sample.question, framed=False))


def test_whatever_decides_an_answer_or_its_score_tells_samples_apart():
    hashes = {
        asked(),
        asked("s"),
        asked("r", "s"),
        asked(context="ab", question="c"),
        asked(context="a", question="bc"),
        asked(context="ab", answer_prefix="c"),
        asked(metric="match_all"),
        asked(more_metrics=("rouge_1",)),
        asked(max_new_tokens=9),
        asked(stop=("\n",)),
        asked(stop_tokens=("\n",)),
        asked(stop_tokens=("\n",), must_begin=True),
        asked(extra={"all_classes": ["a", "b"]}),
        asked(extra={"all_classes": ["a"]}),
    }
    assert len(hashes) == 14
    assert {len(each) for each in hashes} == {64}


def test_its_name_and_where_its_file_lies_change_no_answer():
    assert asked(id="1", task="u", extra={"source": "here"}) == asked(extra={"source": "there"})


def test_tokens_of_a_sample_count_its_answer():
    assert make_sample("r", context="one two ", question="six?").count_tokens(count) == 12


@given(length=st.integers(20, 3000), per_unit=st.integers(1, 40), fixed=st.integers(0, 20))
def test_the_largest_sample_that_fits_is_found(length, per_unit, fixed):
    def build(size):
        return make_sample("r", context="x " * (fixed + size * per_unit), max_new_tokens=0)

    def n_words(sample):
        return len(sample.text.split())

    if fixed + per_unit > length:
        with pytest.raises(ConfigError, match=f"give a length of at least {fixed + per_unit}"):
            fit_sample(build, n_words, length)
        return
    n = n_words(fit_sample(build, n_words, length))
    assert n <= length
    assert length - n < per_unit or length - n <= 0.005 * length


@given(context=WORDS, rest=WORDS, n_tokens=st.integers(1, 80))
def test_cutting_the_middle_keeps_both_halves_of_the_whole(context, rest, n_tokens):
    context, rest = " ".join(context), " ".join(rest)
    if count(context + rest) <= n_tokens:
        assert cut_middle(context, rest, n_tokens, encode, decode) == (context, rest)
    elif n_tokens < 2:
        with pytest.raises(InputError, match="holds nothing"):
            cut_middle(context, rest, n_tokens, encode, decode)
    else:
        cut, left = cut_middle(context, rest, n_tokens, encode, decode)
        whole, kept = context + rest, cut + left
        assert count(kept) <= n_tokens
        halves = next(i for i in range(len(kept), -1, -1) if whole.startswith(kept[:i]))
        assert whole.endswith(kept[halves:])
        if count(rest) < n_tokens // 2:
            assert left == rest


@pytest.mark.parametrize(
    ("rest", "cut", "left"),
    [
        (" what", "aaaa bbbb cccc gggg hhhh", " what"),
        (
            " 1 2 3 4 5",
            "aaaa bbbb cccc",
            " 3 4 5",
        ),  # LongBench's repobench-p asks with a whole file
    ],
)
def test_half_is_head_and_half_is_tail(rest, cut, left):
    context = "aaaa bbbb cccc dddd eeee ffff gggg hhhh"
    assert cut_middle(context, rest, 6, encode, decode) == (cut, left)
    assert cut_middle("aaaa", " 1 2 3 4 5 6 7", 6, encode, decode) == ("aaaa", " 1 2 5 6 7")


def test_jsonl_skips_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2, "b": "\xc3\xa9"}\r\n')
    assert list(read_jsonl(path, {"a": int})) == [{"a": 1}, {"a": 2, "b": "é"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "is not JSON: Expecting ',' delimiter (character 7)"),
        (b"[1]", "holds list; each line must be one JSON object"),
        (b'{"b": 1}', "lacks the field 'a'; its fields are b"),
        (b"{}", "lacks the field 'a'; its fields are none"),
        (b'{"a": "text"}', "has a='text', which must be number or list"),
        (b'{"a": \xff}', "is not UTF-8 text: offset 6 of the line"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON: "),
        (b"[" * 100_000, "cannot be read as JSON: "),
    ],
)
def test_a_broken_line_is_one_line_with_file_and_number(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(InputError) as error:
        list(read_jsonl(path, {"a": (int, list)}))
    assert str(error.value).startswith(f"{path}:2 {message}")
    assert "\n" not in str(error.value)


def test_files_that_hold_nothing_or_cannot_be_read_are_refused(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(InputError, match="is empty; it must hold one JSON object a line"):
        list(read_jsonl(empty, {}))
    with pytest.raises(InputError, match="cannot read"):
        list(read_jsonl(tmp_path, {}))


def test_sentences_begin_after_full_stops():
    text = 'One. "Two?" Three 3.5 is! Four'
    assert split_sentences(text) == ["One.", '"Two?"', "Three 3.5 is!", "Four"]
    assert [text[i : i + 3] for i in find_sentence_starts(text)] == ["One", '"Tw', "Thr", "Fou"]


@given(n=st.integers(1, 400))
def test_a_haystack_repeats_and_breaks_no_word(n):
    text = repeat_text("alpha  beta\ngamma").first(n)
    assert len(text) <= n
    assert n < 6 or n - len(text) < 6
    endless = "alpha beta gamma " * 30
    assert endless.startswith(text)
    assert n < 6 or endless[len(text)] == " "


def test_prose_differs_by_seed_and_holds_no_digit():
    texts = [make_prose(seed).first(5000) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert not re.search(r"\d", texts[0])


def test_the_shipped_text_is_long_and_holds_no_underlines():
    text = shipped_text()
    assert len(text) > 200_000
    assert not re.search(r"^\s*[*=|+-]{4,}\s*$", text, re.MULTILINE)


def test_a_python_without_its_manual_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="this Python came without its manual"):
        shipped_topics.__wrapped__()


def test_every_task_names_known_metrics_and_says_what_it_is():
    assert len(TASKS) == 4 + 13 + 16 + 10 + 3
    for name, task in TASKS.items():
        assert name == task.name
        assert task.summary
        assert "\n" not in task.summary + task.needs
    generated = {name for name, task in TASKS.items() if not task.needs}
    assert len(generated) == 4 + 13
    assert TASKS["ruler-qa_1"].takes == "ruler/LENGTH/qa_1/validation.jsonl or ruler/squad.json"
    assert all(metric.summary and metric.scale in (10, 100) for metric in METRICS.values())


def test_tasks_are_found_by_name_and_by_family():
    assert [task.name for task in find_tasks("ruler-vt")] == ["ruler-vt"]
    assert len(find_tasks("ruler")) == 13
    assert len(find_tasks("longbench")) == 16
    assert len(find_tasks("infinitebench")) == 10
    assert [task.name for task in find_tasks("needles")] == [
        "niah", "niah-paper", "niah-multi", "passkey",
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"task must be one of needles, ruler, .* got task='rule'"
    ):
        find_tasks("rule")


@pytest.mark.parametrize("option", ["n", "length"])
def test_requests_refuse_numbers_below_one(option):
    with pytest.raises(ConfigError, match=f"{option} must be at least 1; got {option}=0"):
        Request(count=count, **{option: 0})


@given(n=st.integers(1, 12), seed=st.integers(0, 5))
def test_a_choice_keeps_order_and_depends_on_the_seed_only(n, seed):
    def choose(**options):
        return list(Request(count=count, **options).choose(lambda: iter("abcdefghij"), "t"))

    chosen = choose(n=n, seed=seed)
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == min(n, 10)
    assert chosen == choose(n=n, seed=seed, length=7)
    assert set(chosen) <= set(choose()) == set(enumerate("abcdefghij", start=1))


def test_a_template_counts_where_it_is_used():
    request = Request(count=count, length=600, n_template=100, n=1)
    assert 594 <= request.measure(next(TASKS["niah"].make(request))) <= 600
    assert next(TASKS["niah"].make(request)).count_tokens(count) <= 500
    assert next(TASKS["niah-paper"].make(request)).count_tokens(count) > 550


def test_missing_data_says_where_to_put_it(tmp_path):
    with pytest.raises(InputError) as error:
        next(TASKS["longbench-qasper"].make(Request(count=count)))
    assert str(error.value).startswith(
        "reads local data: give --data, the folder that holds longbench/qasper.jsonl, one JSON object"
    )
    with pytest.raises(InputError) as error:
        next(TASKS["lambada"].make(Request(count=count, data=tmp_path)))
    assert str(error.value) == (
        f"found no {tmp_path / 'lambada' / 'test.jsonl'}; put it there: one JSON object a line with text, a"
        " passage whose last word is asked for"
    )


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if "jsonl" in task.needs])
def test_every_task_of_files_says_what_it_needs(name):
    with pytest.raises(InputError, match="reads local data: give --data, the folder that holds "):
        next(TASKS[name].make(Request(count=count)))


def test_all_metrics_of_a_sample_are_scored():
    sample = make_sample(
        "4182937", more_metrics=("rouge_1",), extra={"needle": "The number is 4182937."}
    )
    assert score_sample("It is 4182937", sample) == {
        "substring": 1.0,
        "rouge_1": pytest.approx(2 * 2 / 7),  # is, 4182937 of 3 and 4 words
    }


def test_cutting_without_a_tokenizer_is_refused(tmp_path):
    record = {"input": "Why?", "context": "word " * 400, "answers": ["x"], "all_classes": None}
    write_jsonl(tmp_path / "longbench/hotpotqa.jsonl", record)
    request = Request(count=count, length=200, data=tmp_path)
    with pytest.raises(ConfigError, match="needs encode and decode"):
        next(TASKS["longbench-hotpotqa"].make(request))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("restkv_local.optional.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs rapidfuzz, which is missing: pip install 'restk"):
        METRICS["code_sim"].rule("x", make_sample("x"))
