"""InfiniteBench's ten common tasks, read from the user's copy of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation.jsonl import Kind, read_jsonl
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task, read_references

_LETTERS: Final = "ABCD"
_HIDDEN: Final = "There is an important info hidden inside a lot of irrelevant text. Find it"
_CHOICES: Final = "A. {A}\nB. {B}\nC. {C}\nD. {D}"
_DIALOGUE: Final = (
    "Below is a dialogue script where one random occurrence of a character name is replaced with"
    ' "$$MASK$$", and you should try to guess who that character is.'
)
_FIELDS: Final = "one JSON object a line with id, context, input, answer and options, as InfiniteBench publishes them"


@dataclass(frozen=True, slots=True)
class _Dataset:
    """One dataset: what stands around the document and the question, tokens to generate, the metric.

    ``gap`` stands between the question and the answer's beginning.
    """

    summary: str
    before: str
    question: str
    answer_prefix: str
    max_new_tokens: int
    metric: str
    gap: str = "\n\n"


# Wording: InfiniteBench's src/prompt.py (yarn-mistral), whose last words stand after the template's header here;
# lengths: its src/eval_utils.py; metrics: its src/compute_scores.py.
_DATASETS: Final[dict[str, _Dataset]] = {
    "passkey": _Dataset(
        "a number hidden in repeated sentences",
        f"{_HIDDEN} and memorize it. I will quiz you about the important information.\n\n",
        "{input}",
        "The pass key is",
        6,
        "first_integer",
    ),
    "number_string": _Dataset(
        "a number of repeated digits hidden in repeated sentences",
        f"{_HIDDEN}. I will quiz you about the important information there.\n\n",
        "{input}",
        "The sequence of digits is",
        12,
        "first_integer",
    ),
    "kv_retrieval": _Dataset(
        "the value of a key in a large JSON object",
        "Extract the value corresponding to the specified key in the JSON object below.\n\n",
        "{input}",
        "",
        50,
        "exact_word",
    ),
    "longbook_sum_eng": _Dataset(
        "the summary of a novel",
        "Summarize the book below.\n\n",
        "",
        "Summary:",
        1200,
        "rouge_lsum",
    ),
    "longbook_qa_eng": _Dataset(
        "questions on a novel",
        "Read the book and answer the question. Be very concise in your answer.\n\n",
        "Question: {input}",
        "Answer:",
        40,
        "qa_f1",
        gap="\n",
    ),
    "longbook_choice_eng": _Dataset(
        "questions on a novel with four answers to choose from",
        "Read the book and answer the question.\n\n",
        f"Question: {{input}}\n{_CHOICES}",
        "The letter of the correct answer is",
        40,
        "choice",
    ),
    "longbook_qa_chn": _Dataset(
        "questions on a Chinese novel",
        "阅读以下书籍然后回答问题。\n\n",
        "问题：{input}",
        "答案：",
        40,
        "character_f1",
        gap="\n",
    ),
    "longdialogue_qa_eng": _Dataset(
        "the name of a speaker in a script",
        f"{_DIALOGUE}\n\n",
        "",
        "The name that has been replaced with $$MASK$$ is likely",
        40,
        "speaker",
    ),
    "code_debug": _Dataset(
        "which of four functions of a repository crashes",
        "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it"
        " crash.\n\n",
        f"Options:\n{_CHOICES}",
        "The correct option is:",
        5,
        "code_option",
    ),
    "math_find": _Dataset(
        "the largest, smallest or median number of a list",
        "What is {target} in the following list?\n\n",
        "{input}",
        "",
        3,
        "first_number",
    ),
}


def make_samples(name: str, request: Request) -> Iterator[Sample]:
    """Yield the samples of one task.

    Raises
    ------
    InputError
        If the file is missing or a line is no sample of it.

    References
    ----------
    .. [1] Zhang et al., "∞Bench: Extending Long Context Evaluation Beyond 100K Tokens", 2024, arXiv:2402.13718.
    """
    task, dataset = f"infinitebench-{name}", _DATASETS[name]
    file = request.find_file(f"infinitebench/{name}.jsonl", _FIELDS)
    fields: dict[str, Kind] = {"context": str, "input": str, "answer": (str, int, float, list)}
    for number, record in request.choose(lambda: read_jsonl(file, fields), task):
        sample = _make_sample(task, dataset, record, f"{file}: sample {number}", number, request)
        yield request.cut(sample)


def _make_sample(
    task: str, dataset: _Dataset, record: dict[str, Any], place: str, number: int, request: Request
) -> Sample:
    answer = record["answer"]
    references = read_references(answer if isinstance(answer, list) else [answer], place)
    if dataset.metric == "first_number" and not _is_number(references[0]):
        raise InputError(f"{place} has the answer {references[0]!r}, which must be a number")
    words = {"input": record["input"]}
    if _CHOICES in dataset.question:
        options = _read_options(record, place)
        references = _label(references, options, place)
        words |= dict(zip(_LETTERS, options, strict=True))
    if "{target}" in dataset.before:
        words["target"] = _find_target(record["input"], place)
    # An empty question leaves no gap: the script or the book is followed by the answer's beginning.
    question = _fill(dataset.question, words)
    ending = dataset.gap if question and dataset.answer_prefix else ""
    return Sample(
        task=task,
        id=f"{number}-{record['id']}" if "id" in record else str(number),
        context=f"{_fill(dataset.before, words)}{record['context']}\n\n",
        question=f"{question}{ending}",
        answer_prefix=dataset.answer_prefix,
        references=references,
        max_new_tokens=dataset.max_new_tokens,
        metric=dataset.metric,
        extra={"length": request.length},
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fill(template: str, words: dict[str, str]) -> str:
    """Replace each name in braces at once; braces in what is put in stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: words[match[1]], template)


def _read_options(record: dict[str, Any], place: str) -> list[str]:
    options = record.get("options")
    if not isinstance(options, list) or len(options) != len(_LETTERS):
        raise InputError(f"{place} has options={options!r}; a choice needs four of them")
    return [str(option) for option in options]


def _label(answer: tuple[str, ...], options: list[str], place: str) -> tuple[str, str]:
    """Return the text and the letter of the right option, whichever of them the file gives."""
    if answer[0] in options:
        return answer[0], _LETTERS[options.index(answer[0])]
    if answer[0] in tuple(_LETTERS):
        return options[_LETTERS.index(answer[0])], answer[0]
    raise InputError(f"{place} has the answer {answer[0]!r}, which is none of its options")


def _find_target(text: str, place: str) -> str:
    """Return what is looked for, such as "the largest number", as InfiniteBench cuts it out of the question."""
    match = re.search(r"The (.+) of", text)
    if match is None:
        raise InputError(f'{place} has no "The ... of" in its input, so what to find is unknown')
    return f"the {match[1].lower()}"


TASKS: Final = tuple(
    Task(
        name=f"infinitebench-{name}",
        family="infinitebench",
        summary=dataset.summary,
        make=partial(make_samples, name),
        needs=f"infinitebench/{name}.jsonl",
    )
    for name, dataset in _DATASETS.items()
)
