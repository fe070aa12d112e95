"""RULER's thirteen tasks, generated to its definitions or read from files that it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks import (
    ruler_common_words,
    ruler_frequent_words,
    ruler_needles,
    ruler_questions,
    ruler_tracking,
)
from restkv_local.evaluation.tasks.base import Request, Task
from restkv_local.evaluation.tasks.ruler_recorded import find_recorded, read_recorded

_SUMMARIES: Final = {
    "niah_single_1": "a number hidden in repeated sentences",
    "niah_single_2": "a number hidden in running text",
    "niah_single_3": "a UUID hidden in running text",
    "niah_multikey_1": "one of four numbers hidden in running text",
    "niah_multikey_2": "a number hidden among numbers of other keys",
    "niah_multikey_3": "a UUID hidden among UUIDs of other keys",
    "niah_multivalue": "four numbers of one key, hidden in running text",
    "niah_multiquery": "four numbers of four keys, hidden in running text",
    "vt": "every name in a chain of assignments",
    "cwe": "the ten words that a list repeats most",
    "fwe": "the three most frequent coded words",
    "qa_1": "a question to one document among many",
    "qa_2": "a question to two documents among many",
}

_SINGLE: Final[dict[str, Callable[[Request, int], Sample]]] = {
    "vt": ruler_tracking.make_sample,
    "cwe": ruler_common_words.make_sample,
    "fwe": ruler_frequent_words.make_sample,
}


def make_samples(name: str, request: Request) -> Iterator[Sample]:
    """Yield the samples of one task.

    ``ruler/LENGTH/TASK/validation.jsonl`` in the data folder goes before generated samples. Lengths count the
    answer in, as RULER's do.

    References
    ----------
    .. [1] Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", 2024,
       arXiv:2404.06654; scripts/synthetic.yaml and scripts/data/synthetic/ of its repository.
    """
    recorded = find_recorded(name, request)
    if recorded is not None:
        yield from read_recorded(name, recorded, request)
        return
    for index in range(request.n_generated):
        yield _make_sample(name, request, index)


def _make_sample(name: str, request: Request, index: int) -> Sample:
    if name in ruler_needles.VARIANTS:
        return ruler_needles.make_sample(name, request, index)
    if name in ruler_questions.FILES:
        return ruler_questions.make_sample(name, request, index)
    return _SINGLE[name](request, index)


TASKS: Final = tuple(
    Task(
        name=f"ruler-{name}",
        family="ruler",
        summary=summary,
        make=partial(make_samples, name),
        takes=" or ".join(
            [f"ruler/LENGTH/{name}/validation.jsonl"]
            + ([ruler_questions.FILES[name]] if name in ruler_questions.FILES else [])
        ),
    )
    for name, summary in _SUMMARIES.items()
)
