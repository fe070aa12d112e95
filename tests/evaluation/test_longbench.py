"""LongBench's and InfiniteBench's files: prompts, cuts, what is refused."""

import pytest
from evaluation_helpers import count, run, write_jsonl

from restkv_local.errors import InputError
from restkv_local.evaluation.metrics.registry import METRICS
from restkv_local.evaluation.tasks.registry import TASKS

LONGBENCH = [name for name in TASKS if name.startswith("longbench-")]
INFINITEBENCH = [name for name in TASKS if name.startswith("infinitebench-")]
CHOICES = ("infinitebench-longbook_choice_eng", "infinitebench-code_debug")

# THUDM/LongBench: config/dataset2maxlen.json and eval.py.
OFFICIAL = {
    "narrativeqa": (128, "qa_f1"),
    "qasper": (128, "qa_f1"),
    "multifieldqa_en": (64, "qa_f1"),
    "hotpotqa": (32, "qa_f1"),
    "2wikimqa": (32, "qa_f1"),
    "musique": (32, "qa_f1"),
    "gov_report": (512, "rouge_l"),
    "qmsum": (512, "rouge_l"),
    "multi_news": (512, "rouge_l"),
    "trec": (64, "classification"),
    "triviaqa": (32, "qa_f1_first_line"),
    "samsum": (128, "rouge_l_first_line"),
    "passage_count": (32, "count"),
    "passage_retrieval_en": (32, "retrieval"),
    "lcc": (64, "code_sim"),
    "repobench-p": (64, "code_sim"),
}


def longbench_record(i=0, **fields):
    return {
        "input": f"Why {{{i}}}?",
        "context": f"It is {{so}} {i}.",
        "answers": [f"Paragraph {i}"],
        "all_classes": ["Paragraph 0", "x"],
        "_id": f"id{i}",
        **fields,
    }


def infinitebench_record(i=0, **fields):
    return {
        "id": i,
        "context": f"A {{book}} {i}",
        "input": "The largest number of the list is:",
        "answer": ["7"],
        "options": ["6", "7", "8", "9"],
        **fields,
    }


@pytest.mark.parametrize("name", LONGBENCH)
def test_every_dataset_is_read_with_its_own_rules(tmp_path, name):
    short = name.removeprefix("longbench-")
    write_jsonl(tmp_path / "longbench" / f"{short}.jsonl", longbench_record(0), longbench_record(1))
    first, second = run(name, data=tmp_path, length=None, n=None)
    assert (first.max_new_tokens, first.metric) == OFFICIAL[short]
    assert first.uses_template == (
        short not in ("trec", "triviaqa", "samsum", "lcc", "repobench-p")
    )
    assert "It is {so} 0." in first.context
    if short not in ("gov_report", "multi_news", "passage_count", "lcc"):
        assert "Why {0}?" in first.question
    assert (first.id, second.id) == ("1-id0", "2-id1")  # ids may occur twice
    assert first.references == ("Paragraph 0",)
    assert 0 <= METRICS[first.metric].rule("Paragraph 0", first) <= 1
    assert first.stop_tokens == (("\n",) if short == "samsum" else ())
    assert first.must_begin == (short == "samsum")
    assert first.stop == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "musique",
            "Answer the question based on the given passages. Only give me the answer and do not output any other"
            " words.\n\nThe following are given passages.\nDOC\n\nAnswer the question based on the given passages. Only"
            " give me the answer and do not output any other words.\n\nQuestion: ASK\nAnswer:",
        ),
        (
            "narrativeqa",
            "You are given a story, which can be either a novel or a movie script, and a question. Answer the question"
            " asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\nStory: DOC"
            "\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase if"
            " possible. Do not provide any explanation.\n\nQuestion: ASK\n\nAnswer:",
        ),
        ("lcc", "Please complete the code given below. \nDOCNext line of code:\n"),
        ("repobench-p", "Please complete the code given below. \nDOCASKNext line of code:\n"),
        (
            "trec",
            "Please determine the type of the question below. Here are some examples of questions.\n\nDOC\nASK",
        ),
    ],
)
def test_prompts_are_the_official_ones(tmp_path, name, text):
    record = longbench_record(context="DOC", input="ASK")
    write_jsonl(tmp_path / f"longbench/{name}.jsonl", record)
    assert run(f"longbench-{name}", data=tmp_path, length=None)[0].text == text


def test_a_question_longer_than_half_loses_its_beginning(tmp_path):
    """repobench-p asks with a whole file: LongBench cuts the middle of all of it."""
    words = " ".join(f"w{i}" for i in range(2000))
    record = longbench_record(context=f"C{words}", input=f"Q{words}")
    write_jsonl(tmp_path / "longbench/repobench-p.jsonl", record)
    (sample,) = run("longbench-repobench-p", data=tmp_path, length=1000)
    assert sample.context.startswith("Please complete the code given below. \nCw0 w1 ")
    assert sample.question.endswith("w1999Next line of code:\n")
    assert abs(count(sample.context) - count(sample.question)) <= 2
    assert 990 <= sample.count_tokens(count) <= 1000


def test_long_prompts_lose_their_middle(tmp_path):
    words = " ".join(f"w{i}" for i in range(2000))
    write_jsonl(tmp_path / "longbench/qasper.jsonl", longbench_record(context=words))
    (sample,) = run("longbench-qasper", data=tmp_path, length=1000)
    assert 995 <= sample.count_tokens(count) <= 1000
    assert "Article: w0 w1 w2" in sample.context
    assert "w1998 w1999\n\n Answer the question based on the above article" in sample.context
    assert "w1000 " not in sample.context
    assert sample.question == "Question: Why {0}?\n\nAnswer:"
    (whole,) = run("longbench-qasper", data=tmp_path, length=100_000)
    assert words in whole.context


def test_a_length_that_the_answer_fills_is_refused(tmp_path):
    write_jsonl(tmp_path / "longbench/qasper.jsonl", longbench_record(input="word " * 300))
    with pytest.raises(InputError, match="holds nothing; give a longer length"):
        run("longbench-qasper", data=tmp_path, length=128)


def test_n_draws_samples_by_the_seed(tmp_path):
    records = [longbench_record(i) for i in range(20)]
    write_jsonl(tmp_path / "longbench/trec.jsonl", *records)
    drawn = [
        [sample.id for sample in run("longbench-trec", data=tmp_path, n=5, seed=seed)]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0], key=lambda name: int(name.split("-")[0]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": []}, "sample 1 has no answer, so it cannot be scored"),
        ({"answers": ["a", None]}, "sample 1 has the answer None, which must be text or a number"),
        ({"answers": [" "]}, "sample 1 has no answer, so it cannot be scored"),
        ({"all_classes": None}, "sample 1 has an empty all_classes"),
        ({"answers": "x"}, "jsonl:1 has answers='x', which must be list"),
        ({"context": None}, "jsonl:1 has context=None, which must be text"),
    ],
)
def test_samples_that_cannot_be_scored_are_refused(tmp_path, fields, message):
    write_jsonl(tmp_path / "longbench/trec.jsonl", longbench_record(**fields))
    with pytest.raises(InputError, match=message):
        run("longbench-trec", data=tmp_path)


def test_an_empty_answer_beside_others_is_left_out(tmp_path):
    """Nothing can agree with it; as an error it kept all samples after it from being measured."""
    write_jsonl(tmp_path / "longbench/trec.jsonl", longbench_record(answers=["", "x", 7]))
    (sample,) = run("longbench-trec", data=tmp_path)
    assert sample.references == ("x", "7")


@pytest.mark.parametrize("name", INFINITEBENCH)
def test_every_infinite_task_is_read_with_its_own_rules(tmp_path, name):
    short = name.removeprefix("infinitebench-")
    write_jsonl(tmp_path / "infinitebench" / f"{short}.jsonl", infinitebench_record())
    (sample,) = run(name, data=tmp_path, length=None)
    official = {
        "passkey": 6,
        "number_string": 12,
        "kv_retrieval": 50,
        "longbook_sum_eng": 1200,
        "longbook_qa_eng": 40,
        "longbook_choice_eng": 40,
        "longbook_qa_chn": 40,
        "longdialogue_qa_eng": 40,
        "code_debug": 5,
        "math_find": 3,
    }
    assert sample.max_new_tokens == official[short]
    assert "A {book} 0\n\n" in sample.context
    assert sample.references == (("7", "B") if name in CHOICES else ("7",))
    assert sample.uses_template
    right = "B. 7" if name in CHOICES else "7"
    assert METRICS[sample.metric].rule(right, sample) == 1.0
    assert METRICS[sample.metric].rule("C. 8" if name in CHOICES else "8", sample) == 0.0


def test_infinite_prompts_are_the_official_ones(tmp_path):
    def text(name, **fields):
        write_jsonl(tmp_path / f"infinitebench/{name}.jsonl", infinitebench_record(**fields))
        return run(f"infinitebench-{name}", data=tmp_path, length=None)[0].text

    assert text("longbook_qa_eng", context="BOOK", input="ASK") == (
        "Read the book and answer the question. Be very concise in your answer.\n\nBOOK\n\nQuestion: ASK\nAnswer:"
    )
    assert text("longbook_qa_chn", context="书", input="谁") == (
        "阅读以下书籍然后回答问题。\n\n书\n\n问题：谁\n答案："
    )
    assert text("longbook_choice_eng", context="BOOK", input="ASK") == (
        "Read the book and answer the question.\n\nBOOK\n\nQuestion: ASK\nA. 6\nB. 7\nC. 8\nD. 9\n\nThe letter of the"
        " correct answer is"
    )
    assert (
        text("longbook_sum_eng", context="BOOK") == "Summarize the book below.\n\nBOOK\n\nSummary:"
    )
    assert text("longdialogue_qa_eng", context="SCRIPT").endswith(
        "SCRIPT\n\nThe name that has been replaced with $$MASK$$ is likely"
    )
    assert text("math_find", context="LIST") == (
        "What is the largest number in the following list?\n\nLIST\n\nThe largest number of the list is:"
    )


def test_choices_are_labelled_by_text_or_by_letter(tmp_path):
    records = [infinitebench_record(answer=answer) for answer in ("8", ["8"], ["8", "C"], ["C"])]
    write_jsonl(tmp_path / "infinitebench/code_debug.jsonl", *records)
    for sample in run("infinitebench-code_debug", data=tmp_path, n=None):
        assert sample.references == ("8", "C")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("passkey", {"answer": []}, "sample 1 has no answer"),
        (
            "passkey",
            {"answer": None},
            "jsonl:1 has answer=None, which must be text or number or list",
        ),
        ("code_debug", {"options": []}, r"sample 1 has options=\[\]; a choice needs four"),
        ("code_debug", {"answer": "main"}, "has the answer 'main', which is none of its options"),
        ("math_find", {"answer": "big"}, "has the answer 'big', which must be a number"),
        ("math_find", {"input": "What?"}, 'has no "The ... of" in its input'),
    ],
)
def test_infinite_samples_that_cannot_be_scored_are_refused(tmp_path, name, fields, message):
    write_jsonl(tmp_path / f"infinitebench/{name}.jsonl", infinitebench_record(**fields))
    with pytest.raises(InputError, match=message):
        run(f"infinitebench-{name}", data=tmp_path)


def test_long_books_lose_their_middle(tmp_path):
    words = " ".join(f"w{i}" for i in range(3000))
    write_jsonl(
        tmp_path / "infinitebench/longbook_qa_eng.jsonl", infinitebench_record(context=words)
    )
    (sample,) = run("infinitebench-longbook_qa_eng", data=tmp_path, length=1000)
    assert 995 <= sample.count_tokens(count) <= 1000
    assert sample.context.endswith("w2999\n\n")
    assert "w1500 " not in sample.context
