"""Arithmetic in words, in the form of GSM8K: worked examples, a problem, a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from restkv_local.evaluation.jsonl import read_jsonl
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task
from restkv_local.evaluation.tasks.shots import join_shots

_NAME: Final = "gsm8k"
_HOLDS: Final = 'one JSON object a line with question and answer, which ends in "#### NUMBER"'
_N_ANSWER: Final = 256


def make_samples(request: Request) -> Iterator[Sample]:
    """Yield the problems of ``gsm8k/test.jsonl`` after worked ones of ``gsm8k/train.jsonl``.

    Prompt, five examples and stops are lm-evaluation-harness's (lm_eval/tasks/gsm8k/gsm8k.yaml, version 3), without
    a chat template; with a length the examples fill it.

    Raises
    ------
    InputError
        If a file is missing or a line is no problem.
    """
    fields = {"question": str, "answer": str}
    train = request.find_file("gsm8k/train.jsonl", _HOLDS)
    test = request.find_file("gsm8k/test.jsonl", _HOLDS)
    shots = [_ask(each["question"]) + f" {each['answer']}" for each in read_jsonl(train, fields)]
    for number, problem in request.choose(lambda: read_jsonl(test, fields), _NAME):
        question = _ask(problem["question"])
        yield Sample(
            task=_NAME,
            id=str(number),
            context=join_shots(shots, request, _NAME, number, question, _N_ANSWER),
            question=question,
            references=(problem["answer"].split("####")[-1].strip(),),
            max_new_tokens=_N_ANSWER,
            metric="number",
            uses_template=False,
            stop=("Question:", "</s>", "<|im_end|>"),
            extra={"length": request.length},
        )


def _ask(problem: str) -> str:
    return f"Question: {problem}\nAnswer:"


TASKS: Final = (
    Task(
        name=_NAME,
        family=_NAME,
        summary="arithmetic in words, after worked examples",
        make=make_samples,
        needs="gsm8k/train.jsonl and gsm8k/test.jsonl",
    ),
)
