"""RULER's question answering: the documents that answer among others that do not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request
from restkv_local.evaluation.tasks.manual_questions import ask_manual
from restkv_local.evaluation.tasks.question_set import Question, QuestionSet

FILES: Final = {"qa_1": "ruler/squad.json", "qa_2": "ruler/hotpotqa.json"}

_INSTRUCTION: Final = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other"
    " words."
)


def find_file(name: str, data: Path | None) -> Path | None:
    """Return the file of RULER's own questions, None where the manual stands in for it."""
    file = None if data is None else data / FILES[name]
    return file if file is not None and file.is_file() else None


def make_sample(name: str, request: Request, index: int) -> Sample:
    """Build one sample.

    Notes
    -----
    RULER (scripts/data/synthetic/qa.py) takes the questions in the order of the file, the documents of the same
    article first, then others at random, and repeats all of them where the text is still too short. Here the
    seed draws the questions. Without ``squad.json`` or ``hotpotqa.json`` in the data folder the questions are
    about the shipped manual: figures then compare with each other, not with RULER's.
    """
    file = find_file(name, request.data)
    asked = ask_manual(1 if name == "qa_1" else 2) if file is None else _read(file, name)
    order = random.Random(request.key(f"ruler-{name}", 0)).sample(
        range(len(asked.questions)), len(asked.questions)
    )
    question = asked.questions[order[index % len(order)]]
    own = [asked.documents[i] for i in question.own]
    others = _draw_others(asked, question, random.Random(request.key(f"ruler-{name}", index)))

    def build(n_others: int) -> Sample:
        rng = random.Random(request.key(f"ruler-{name}-order", index))
        repeats = -(-n_others // len(others))
        documents = own + (others * repeats)[:n_others]
        rng.shuffle(documents)
        text = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(documents, start=1))
        # The wording is RULER's (scripts/data/synthetic/constants.py): results depend on it.
        return Sample(
            task=f"ruler-{name}",
            id=request.name(index),
            context=f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{text}\n\n",
            question=f"{_INSTRUCTION}\n\nQuestion: {question.text}",
            answer_prefix=" Answer:",
            references=question.answers,
            max_new_tokens=32,
            metric="match_part",
            extra={"length": request.n_tokens, "source": "manual" if file is None else str(file)},
        )

    return request.fit(build)


def _draw_others(asked: QuestionSet, question: Question, rng: random.Random) -> list[str]:
    """Return the documents that do not answer, those on the same subject first."""
    near = list(question.near)
    rng.shuffle(near)
    taken = {*question.own, *near}
    far = [i for i in range(len(asked.documents)) if i not in taken]
    rng.shuffle(far)
    return [asked.documents[i] for i in [*near, *far]]


@cache
def _read(file: Path, name: str) -> QuestionSet:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: offset {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}:{error.lineno} is not JSON: {error.msg} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    form, parse = ("SQuAD", _parse_squad) if name == "qa_1" else ("HotpotQA", _parse_hotpotqa)
    try:
        asked = parse(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not of {form}'s form: {error!r}") from None
    questions = tuple(
        question
        for question in asked.questions
        if question.answers and len(set(question.own)) < len(asked.documents)
    )
    if not questions:
        raise InputError(f"{file} holds no question that has both an answer and other documents")
    return replace(asked, questions=questions)


def _parse_squad(data: Any) -> QuestionSet:
    """Read ``data[].paragraphs[]`` with ``context`` and ``qas[]``; questions without an answer are left out."""
    articles = [article["paragraphs"] for article in data["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    place = {text: i for i, text in enumerate(documents)}
    questions = []
    for article in articles:
        of_article = list(dict.fromkeys(place[paragraph["context"]] for paragraph in article))
        for paragraph in article:
            own = place[paragraph["context"]]
            near = tuple(i for i in of_article if i != own)
            for asked in paragraph["qas"]:
                answers = _distinct(answer["text"] for answer in asked["answers"])
                if not asked.get("is_impossible", False):
                    questions.append(Question(asked["question"], answers, (own,), near))
    return QuestionSet(tuple(questions), tuple(documents))


def _parse_hotpotqa(data: Any) -> QuestionSet:
    """Read ``[]`` with ``question``, ``answer`` and ``context``, a list of titles with their sentences."""
    texts = [[f"{title}\n{''.join(lines)}" for title, lines in asked["context"]] for asked in data]
    documents = sorted({text for of_question in texts for text in of_question})
    place = {text: i for i, text in enumerate(documents)}
    questions = tuple(
        Question(
            asked["question"],
            _distinct([asked["answer"]]),
            tuple(place[text] for text in of_question),
        )
        for asked, of_question in zip(data, texts, strict=True)
    )
    return QuestionSet(questions, tuple(documents))


def _distinct(answers: Iterable[str]) -> tuple[str, ...]:
    """Return each answer once; an empty one is in any text, so it is none."""
    return tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
