"""LongBench's sixteen English datasets, read from the user's copy of its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation.jsonl import Kind, read_jsonl
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task, read_references

_PASSAGES: Final = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other"
    " words."
)
_STORY: Final = (
    "asconcisely as you can, using a single phrase if possible. Do not provide any explanation."
)
_ARTICLE: Final = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered"
    ' based on the information in the article, write "unanswerable". If the question is a yes/no question, answer'
    ' "yes", "no", or "unanswerable". Do not provide any explanation.'
)
_FIELDS: Final = "one JSON object a line with input, context, answers and all_classes, as in LongBench's data.zip"


@dataclass(frozen=True, slots=True)
class _Dataset:
    """One dataset.

    Attributes
    ----------
    summary : str
        For the registry.
    before, after : str
        What stands before and after the document in the prompt.
    question : str
        What follows; ``{input}`` is the sample's own.
    max_new_tokens : int
        LongBench's config/dataset2maxlen.json.
    metric : str
        LongBench's eval.py.
    uses_template : bool
        LongBench's pred.py leaves the chat template out where examples are part of the prompt.
    stop_tokens : tuple of str
        Tokens that end an answer: LongBench's pred.py makes a line break one for samsum.
    must_begin : bool
        And has at least one other token come first.
    """

    summary: str
    before: str
    after: str
    question: str
    max_new_tokens: int
    metric: str
    uses_template: bool = True
    stop_tokens: tuple[str, ...] = ()
    must_begin: bool = False


def _ask_passages(summary: str) -> _Dataset:
    return _Dataset(
        summary,
        f"{_PASSAGES}\n\nThe following are given passages.\n",
        f"\n\n{_PASSAGES}\n\n",
        "Question: {input}\nAnswer:",
        32,
        "qa_f1",
    )


# The wording is LongBench's (config/dataset2prompt.json), "asconcisely" included: figures compare with no other. What
# is asked begins where kvpress cuts it off.
_DATASETS: Final[dict[str, _Dataset]] = {
    "narrativeqa": _Dataset(
        "questions on a story",
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question"
        f" {_STORY}\n\nStory: ",
        f"\n\nNow, answer the question based on the story {_STORY}\n\n",
        "Question: {input}\n\nAnswer:",
        128,
        "qa_f1",
    ),
    "qasper": _Dataset(
        "questions on a scientific article",
        f"You are given a scientific article and a question. Answer the question {_ARTICLE}\n\nArticle: ",
        f"\n\n Answer the question based on the above article {_ARTICLE}\n\n",
        "Question: {input}\n\nAnswer:",
        128,
        "qa_f1",
    ),
    "multifieldqa_en": _Dataset(
        "questions on texts of many fields",
        "Read the following text and answer briefly.\n\n",
        "\n\nNow, answer the following question based on the above text, only give me the answer and do not output"
        " any other words.\n\n",
        "Question: {input}\nAnswer:",
        64,
        "qa_f1",
    ),
    "hotpotqa": _ask_passages("questions to two passages"),
    "2wikimqa": _ask_passages("questions to up to five passages"),
    "musique": _ask_passages("questions to up to four passages"),
    "gov_report": _Dataset(
        "summaries of reports",
        "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n",
        "\n\n",
        "Now, write a one-page summary of the report.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "qmsum": _Dataset(
        "questions on a meeting",
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in"
        " one or more sentences.\n\nTranscript:\n",
        "\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\n",
        "Query: {input}\nAnswer:",
        512,
        "rouge_l",
    ),
    "multi_news": _Dataset(
        "summaries of several news passages",
        "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n",
        "\n\n",
        "Now, write a one-page summary of all the news.\n\nSummary:",
        512,
        "rouge_l",
    ),
    "trec": _Dataset(
        "the type of a question, after examples",
        "Please determine the type of the question below. Here are some examples of questions.\n\n",
        "\n",
        "{input}",
        64,
        "classification",
        uses_template=False,
    ),
    "triviaqa": _Dataset(
        "trivia, after examples",
        "Answer the question based on the given passage. Only give me the answer and do not output any other words."
        " The following are some examples.\n\n",
        "\n\n",
        "{input}",
        32,
        "qa_f1_first_line",
        uses_template=False,
    ),
    "samsum": _Dataset(
        "summaries of dialogues, after examples",
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n",
        "\n\n",
        "{input}",
        128,
        "rouge_l_first_line",
        uses_template=False,
        stop_tokens=("\n",),
        must_begin=True,
    ),
    "passage_count": _Dataset(
        "how many different passages there are",
        "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read"
        " these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other"
        " words, how many non-repeating paragraphs are there in total?\n\n",
        "\n\n",
        "Please enter the final count of unique paragraphs after removing duplicates. The output format should only"
        " contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
        32,
        "count",
    ),
    "passage_retrieval_en": _Dataset(
        "which passage a summary is of",
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract"
        " is from.\n\n",
        "\n\nThe following is an abstract.\n\n",
        "{input}\n\nPlease enter the number of the paragraph that the abstract is from. The answer format must be like"
        ' "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
        32,
        "retrieval",
    ),
    "lcc": _Dataset(
        "the next line of a file of code",
        "Please complete the code given below. \n",
        "",
        "Next line of code:\n",
        64,
        "code_sim",
        uses_template=False,
    ),
    "repobench-p": _Dataset(
        "the next line of code in a repository",
        "Please complete the code given below. \n",
        "",
        "{input}Next line of code:\n",
        64,
        "code_sim",
        uses_template=False,
    ),
}


def make_samples(name: str, request: Request) -> Iterator[Sample]:
    """Yield the samples of one dataset.

    Raises
    ------
    InputError
        If the file is missing or a line is no sample of it.

    References
    ----------
    .. [1] Bai et al., "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding", 2023,
       arXiv:2308.14508.
    """
    task, dataset = f"longbench-{name}", _DATASETS[name]
    file = request.find_file(f"longbench/{name}.jsonl", _FIELDS)
    fields: dict[str, Kind] = {
        "input": str,
        "context": str,
        "answers": list,
        "all_classes": (list, type(None)),
    }
    for number, record in request.choose(lambda: read_jsonl(file, fields), task):
        sample = _make_sample(task, dataset, record, f"{file}: sample {number}", number, request)
        yield request.cut(sample)


def _make_sample(
    task: str, dataset: _Dataset, record: dict[str, Any], place: str, number: int, request: Request
) -> Sample:
    classes = record["all_classes"]
    if dataset.metric == "classification" and not classes:
        raise InputError(f"{place} has an empty all_classes; {task} cannot be scored without")
    # Not str.format: braces in the question are the question's own.
    question = dataset.question.replace("{input}", record["input"])
    return Sample(
        task=task,
        id=f"{number}-{record['_id']}" if "_id" in record else str(number),
        context=f"{dataset.before}{record['context']}{dataset.after}",
        question=question,
        references=read_references(record["answers"], place),
        max_new_tokens=dataset.max_new_tokens,
        metric=dataset.metric,
        uses_template=dataset.uses_template,
        stop_tokens=dataset.stop_tokens,
        must_begin=dataset.must_begin,
        extra={"length": request.length, "all_classes": classes},
    )


TASKS: Final = tuple(
    Task(
        name=f"longbench-{name}",
        family="longbench",
        summary=dataset.summary,
        make=partial(make_samples, name),
        needs=f"longbench/{name}.jsonl",
    )
    for name, dataset in _DATASETS.items()
)
