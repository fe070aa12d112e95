"""Reads the samples that RULER itself generated: ``validation.jsonl``, in its older and its newer form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation.jsonl import read_jsonl
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, read_references

# kind of task: (where the question begins, where the answer's beginning begins, tokens to generate, metric)
_KINDS: Final[dict[str, tuple[re.Pattern[str], re.Pattern[str], int, str]]] = {
    "niah": (
        re.compile(r"What (?:is|are all) the special magic "),
        re.compile(r"\s*The special magic "),
        128,
        "match_all",
    ),
    "vt": (
        re.compile(r"Question: Find all variables that are assigned "),
        re.compile(r"\s*Answer:"),
        30,
        "match_all",
    ),
    "cwe": (
        re.compile(r"Question: What are the 10 most common words "),
        re.compile(r"\s*Answer:"),
        120,
        "match_all",
    ),
    "fwe": (
        re.compile(r"Question: Do not provide any explanation\."),
        re.compile(r"\s*Answer:"),
        50,
        "match_all",
    ),
    "qa": (
        re.compile(r"Answer the question based on the given documents\."),
        re.compile(r"\s*Answer:"),
        32,
        "match_part",
    ),
}


def find_recorded(name: str, request: Request) -> Path | None:
    """Return the file that RULER wrote for a task and length: ``ruler/LENGTH/TASK/validation.jsonl``."""
    if request.data is None:
        return None
    file = request.data / "ruler" / str(request.n_tokens) / name / "validation.jsonl"
    return file if file.is_file() else None


def read_recorded(name: str, file: Path, request: Request) -> Iterator[Sample]:
    """Yield the samples of a file, their template left to the model at hand.

    Raises
    ------
    InputError
        If a line is no sample of this task.

    Notes
    -----
    Fields: ``input``, ``outputs``, and in the newer form ``answer_prefix`` (``gen_prefix`` in lm-evaluation-harness).
    The input is split as kvpress does (benchmarks/ruler/create_huggingface_dataset.py): the question begins at its
    last occurrence, which leaves the example of ``vt`` and ``cwe`` in the context. There the space before the answer's
    beginning belongs to the question; here to the answer, as in the newer form. The files must have been written
    with RULER's ``base`` template.
    """

    def read() -> Iterator[dict[str, Any]]:
        return read_jsonl(file, {"input": str, "outputs": list})

    for number, record in request.choose(read, f"ruler-{name}"):
        yield _read_one(name, file, number, record, request)


def _read_one(
    name: str, file: Path, number: int, record: dict[str, Any], request: Request
) -> Sample:
    begins, answers, n_answer, metric = _KINDS[name.split("_")[0]]
    text = record["input"]
    found = list(begins.finditer(text))
    if not found:
        raise InputError(
            f"{file}: sample {number} is none of {name}: it has no question that begins {begins.pattern!r}"
        )
    context, question = text[: found[-1].start()], text[found[-1].start() :]
    prefix = record.get("answer_prefix") or record.get("gen_prefix") or ""
    answer = answers.search(question)
    if not prefix and answer is not None:
        question, prefix = question[: answer.start()], question[answer.start() :]
    elif prefix and not prefix[0].isspace() and not question[-1].isspace():
        prefix = f" {prefix}"
    return Sample(
        task=f"ruler-{name}",
        id=request.name(number - 1),  # RULER's own "index" may be a place in the text
        context=context,
        question=question,
        answer_prefix=prefix,
        references=read_references(record["outputs"], f"{file}: sample {number}"),
        max_new_tokens=n_answer,
        metric=metric,
        extra={"length": request.n_tokens, "source": str(file)},
    )
