"""Inference between two sentences, in the form of ANLI: true, false or neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation.jsonl import Kind, read_jsonl
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task
from restkv_local.evaluation.tasks.shots import join_shots

_NAME: Final = "anli"
_HOLDS: Final = (
    "one JSON object a line with premise (or context), hypothesis and label (0, 1, 2 or e, n, c)"
)
_ANSWERS: Final = ("True", "Neither", "False")
_LABELS: Final = {
    name: answer
    for names, answer in zip(
        (("0", "e", "entailment"), ("1", "n", "neutral"), ("2", "c", "contradiction")),
        _ANSWERS,
        strict=True,
    )
    for name in names
}


def make_samples(request: Request) -> Iterator[Sample]:
    """Yield the pairs of ``anli/test.jsonl`` after examples of ``anli/train.jsonl``.

    The wording is lm-evaluation-harness's (lm_eval/tasks/anli/anli_r1.yaml), without a chat template. That one gives
    no examples and compares the probabilities of the three answers; here an answer is generated, which small
    models do only after examples: five, or with a length as many as fill it.

    Raises
    ------
    InputError
        If a file is missing or a line is no such pair.
    """
    train = request.find_file("anli/train.jsonl", _HOLDS)
    test = request.find_file("anli/test.jsonl", _HOLDS)
    shots = [f"{question} {answer}" for question, answer in _read(train)]
    for number, (question, answer) in request.choose(lambda: _read(test), _NAME):
        yield Sample(
            task=_NAME,
            id=str(number),
            context=join_shots(shots, request, _NAME, number, question, 4),
            question=question,
            references=(answer,),
            max_new_tokens=4,
            metric="label",
            uses_template=False,
            stop=("\n",),
            extra={"length": request.length, "all_classes": list(_ANSWERS)},
        )


def _read(file: Path) -> Iterator[tuple[str, str]]:
    fields: dict[str, Kind] = {"hypothesis": str, "label": (str, int)}
    for number, record in enumerate(read_jsonl(file, fields), start=1):
        answer = _LABELS.get(str(record["label"]).lower())
        premise: Any = record.get("premise", record.get("context"))
        if answer is None or not isinstance(premise, str):
            raise InputError(
                f"{file}: sample {number} has label={record['label']!r}; each must have a premise, and a label of"
                f" {', '.join(_LABELS)}"
            )
        yield (
            f"{premise}\nQuestion: {record['hypothesis']} True, False, or Neither?\nAnswer:",
            answer,
        )


TASKS: Final = (
    Task(
        name=_NAME,
        family=_NAME,
        summary="whether a sentence follows from another, after examples",
        make=make_samples,
        needs="anli/train.jsonl and anli/test.jsonl",
    ),
)
