"""LAMBADA: the last word of a passage, which only the whole of it tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from restkv_local.errors import InputError
from restkv_local.evaluation.haystack import find_sentence_starts
from restkv_local.evaluation.jsonl import read_jsonl
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task

_NAME: Final = "lambada"
_HOLDS: Final = "one JSON object a line with text, a passage whose last word is asked for"


def make_samples(request: Request) -> Iterator[Sample]:
    """Yield the passages of ``lambada/test.jsonl`` without their last words.

    Cut at the last space and given without a chat template, as lm-evaluation-harness does
    (lm_eval/tasks/lambada/lambada_openai.yaml). The unfinished last sentence is the question. A length is that of the
    longest prompt: longer passages lose their middle, shorter ones stay as they are.

    Raises
    ------
    InputError
        If the file is missing, a passage has fewer than two words, or a length does not hold its last sentence.
    """
    file = request.find_file("lambada/test.jsonl", _HOLDS)
    for number, record in request.choose(lambda: read_jsonl(file, {"text": str}), _NAME):
        passage, _, word = record["text"].rstrip().rpartition(" ")
        if not passage:
            raise InputError(f"{file}: sample {number} has one word; a passage has more")
        start = find_sentence_starts(passage)[-1]
        sample = Sample(
            task=_NAME,
            id=str(number),
            context=passage[:start],
            question=passage[start:],
            references=(word,),
            max_new_tokens=8,
            metric="last_word",
            uses_template=False,
            stop=("\n",),
            extra={"length": request.length},
        )
        yield request.cut(sample)


TASKS: Final = (
    Task(
        name=_NAME,
        family=_NAME,
        summary="the last word of a passage",
        make=make_samples,
        needs="lambada/test.jsonl",
    ),
)
