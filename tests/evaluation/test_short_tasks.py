"""Arithmetic, inference, last words, and running text."""

import pytest
from evaluation_helpers import count, encode, run, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation.metrics.registry import METRICS
from restkv_local.evaluation.tasks.text import cut_strides


@pytest.fixture
def gsm8k(tmp_path):
    def problem(i):
        return {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i},000"}

    write_jsonl(tmp_path / "gsm8k/train.jsonl", *map(problem, range(40)))
    write_jsonl(tmp_path / "gsm8k/test.jsonl", *map(problem, range(100, 104)))
    return tmp_path


def test_problems_come_after_five_worked_ones(gsm8k):
    samples = run("gsm8k", data=gsm8k, length=None, n=None)
    assert [sample.id for sample in samples] == ["1", "2", "3", "4"]
    first = samples[0]
    assert first.question == "Question: What is 100 and 100?\nAnswer:"
    assert first.references == ("200,000",)
    assert first.context.count("####") == 5
    assert first.context.startswith("Question: What is ")
    assert first.context.endswith(",000\n\n")
    assert (first.stop, first.uses_template) == (("Question:", "</s>", "<|im_end|>"), False)
    assert METRICS[first.metric].rule(" 100+100=200\n#### 200000", first) == 1.0
    assert len({sample.context for sample in samples}) == 4


def test_examples_fill_a_length(gsm8k):
    for sample in run("gsm8k", data=gsm8k, length=800):
        assert 700 <= sample.count_tokens(count) <= 800
        assert sample.context.count("####") > 5
    assert run("gsm8k", data=gsm8k, length=280, n=1)[0].context == ""
    with pytest.raises(
        ConfigError, match="its answer up to 256; a length of 260 does not hold both"
    ):
        run("gsm8k", data=gsm8k, length=260, n=1)


def test_examples_depend_on_the_seed(gsm8k):
    contexts = [run("gsm8k", data=gsm8k, seed=s, length=None)[0].context for s in (1, 1, 2)]
    assert contexts[0] == contexts[1] != contexts[2]


def test_pairs_of_both_forms_are_read(tmp_path):
    write_jsonl(tmp_path / "anli/train.jsonl", {"premise": "P", "hypothesis": "H.", "label": 1})
    write_jsonl(
        tmp_path / "anli/test.jsonl",
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        {"context": "It rains.", "hypothesis": "It is dry.", "label": "c", "reason": "no"},
        {"premise": "It rains.", "hypothesis": "It is May.", "label": "Neutral"},
    )
    samples = run("anli", data=tmp_path, n=None, length=None)
    assert [sample.references for sample in samples] == [("True",), ("False",), ("Neither",)]
    assert samples[0].text == (
        "P\nQuestion: H. True, False, or Neither?\nAnswer: Neither\n\n"
        "It rains.\nQuestion: It is wet. True, False, or Neither?\nAnswer:"
    )
    assert METRICS["label"].rule(" True", samples[0]) == 1.0


@pytest.mark.parametrize(
    "record",
    [
        {"premise": "P", "hypothesis": "H", "label": 3},
        {"premise": "P", "hypothesis": "H", "label": "maybe"},
        {"hypothesis": "H", "label": 1},
    ],
)
def test_pairs_without_premise_or_label_are_refused(tmp_path, record):
    write_jsonl(tmp_path / "anli/train.jsonl", {"premise": "P", "hypothesis": "H", "label": 1})
    write_jsonl(tmp_path / "anli/test.jsonl", record)
    with pytest.raises(InputError, match=r"sample 1 has label=.*; each must have a premise, and a"):
        run("anli", data=tmp_path)


def test_the_last_word_is_asked_for(tmp_path):
    text = 'She sang. He asked, "Why?" They said it was a bell'
    write_jsonl(tmp_path / "lambada/test.jsonl", {"text": text}, {"text": "two words\n"})
    long, short = run("lambada", data=tmp_path, n=None)
    assert (long.context, long.question) == ('She sang. He asked, "Why?" ', "They said it was a")
    assert long.references == ("bell",)
    assert (short.context, short.question, short.references) == ("", "two", ("words",))
    assert METRICS["last_word"].rule(" bell.", long) == 1.0


def test_a_passage_longer_than_asked_for_loses_its_middle(tmp_path):
    """The table said 32 tokens of passages that had hundreds."""
    text = f"One began. {'They went on. ' * 40}The last rang the bell"
    write_jsonl(tmp_path / "lambada/test.jsonl", {"text": text}, {"text": "He rang. A bell"})
    long, short = run("lambada", data=tmp_path, length=32, n=None)
    assert 28 <= long.count_tokens(count) <= 32
    assert long.context.startswith("One began. ")
    assert long.question == "The last rang the"
    assert short.text == "He rang. A"
    whole, _ = run("lambada", data=tmp_path, length=None, n=None)
    assert whole.text == text.removesuffix(" bell")


def test_a_passage_of_one_word_is_refused(tmp_path):
    write_jsonl(tmp_path / "lambada/test.jsonl", {"text": "word"})
    with pytest.raises(InputError, match="sample 1 has one word; a passage has more"):
        run("lambada", data=tmp_path)


@given(
    n_tokens=st.integers(1, 80),
    n_read=st.integers(1, 20),
    n_scored=st.integers(1, 20),
    stride=st.none() | st.integers(1, 30),
    n=st.none() | st.integers(1, 5),
)
def test_strides_are_pieces_of_the_text(tmp_path_factory, n_tokens, n_read, n_scored, stride, n):
    path = tmp_path_factory.mktemp("text") / "x.txt"
    path.write_text(" ".join("abcd" for _ in range(n_tokens)))
    tokens = encode(path.read_text())
    options = {"n_read": n_read, "n_scored": n_scored, "stride": stride, "n": n}
    if len(tokens) < n_read + n_scored:
        with pytest.raises(InputError, match=f"has {len(tokens)} tokens, but a piece takes"):
            list(cut_strides(encode, file=path, **options))
        return
    pieces = list(cut_strides(encode, file=path, **options))
    step = stride or n_read + n_scored
    assert [piece.start for piece in pieces] == [i * step for i in range(len(pieces))]
    for piece in pieces:
        both = [*piece.read, *piece.scored]
        assert both == tokens[piece.start : piece.start + n_read + n_scored]
        assert len(piece.read) == n_read
    if n is None:
        assert len(pieces) == (len(tokens) - n_read - n_scored) // step + 1


def test_a_stride_of_the_predicted_length_predicts_each_token_once():
    """The first scored token is given: with a stride of all of them one in fifty was left out."""
    pieces = list(cut_strides(encode, n_read=100, n_scored=51, stride=50, n=6))
    predicted = [token for piece in pieces for token in piece.scored[1:]]
    text = [*pieces[0].read, pieces[0].scored[0], *predicted]
    assert len(text) == 401
    assert tuple(text[50:150]) == pieces[1].read
    (whole,) = cut_strides(encode, n_read=100, n_scored=301, n=1)
    assert text == [*whole.read, *whole.scored]


def test_every_stride_begins_as_the_model_was_trained_to_read():
    plain = list(cut_strides(encode, n_read=10, n_scored=5, n=3))
    pieces = list(cut_strides(encode, n_read=10, n_scored=5, n=3, bos=1))
    assert [piece.read for piece in pieces] == [(1, *piece.read[1:]) for piece in plain]
    assert [piece.scored for piece in pieces] == [piece.scored for piece in plain]


def test_strides_refuse_numbers_below_one():
    with pytest.raises(ConfigError, match="n_scored must be at least 1; got n_scored=0"):
        next(cut_strides(encode, n_read=1, n_scored=0))
