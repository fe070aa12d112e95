"""LongBench's metrics: metrics.py and eval.py of THUDM/LongBench, the best over the references each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from restkv_local.evaluation.metrics.base import Metric
from restkv_local.evaluation.metrics.overlap import f1, normalise
from restkv_local.evaluation.sample import Sample
from restkv_local.optional import check_installed

_INTEGER: Final = re.compile(r"\d+")
_NO_CODE: Final = ("`", "#", "//")


def qa_f1(prediction: str, sample: Sample) -> float:
    """Return the F1 of the words of answer and reference, after normalising both.

    Official: qa_f1_score. InfiniteBench's En.QA is the same rule.
    """
    words = normalise(prediction).split()
    return max(f1(words, normalise(each).split()) for each in sample.references)


def qa_f1_first_line(prediction: str, sample: Sample) -> float:
    """Return ``qa_f1`` of the first line, line breaks before it left out.

    Official: eval.py cuts trec, triviaqa and samsum so.
    """
    return qa_f1(_first_line(prediction), sample)


def rouge_l(prediction: str, sample: Sample) -> float:
    """Return summary-level ROUGE-L's F-measure as the package ``rouge`` 1.0.1 defines it.

    Official: rouge_score. Unlike the original ROUGE it counts each distinct word once and keeps case and punctuation
    (pltrdy/rouge, rouge_l_summary_level): of the words of both texts, those in a longest common subsequence of any
    sentence of one and any of the other are matched. An empty text scores 0.
    """
    answer = _split_sentences(prediction)
    return max(_rouge_l(answer, _split_sentences(each)) for each in sample.references)


def rouge_l_first_line(prediction: str, sample: Sample) -> float:
    """Return ``rouge_l`` of the first line, line breaks before it left out.

    Official: eval.py, for samsum.
    """
    return rouge_l(_first_line(prediction), sample)


def classification(prediction: str, sample: Sample) -> float:
    """Return 1 / the number of classes that the first line names, if the right one is among them, else 0.

    Official: classification_score. Classes that are part of the right one's name do not count. The official loop
    removes them from the list that it walks through and so misses every second of neighbours; here all go. Its
    fallback to the most similar class is never reached.
    """
    line = _first_line(prediction)
    scores = []
    for reference in sample.references:
        named = [each for each in sample.extra["all_classes"] if each in line]
        named = [each for each in named if each == reference or each not in reference]
        scores.append(1 / len(named) if reference in named else 0.0)
    return max(scores)


def retrieval(prediction: str, sample: Sample) -> float:
    """Return the share of the answer's integers that are the paragraph's number.

    Official: retrieval_score; references read "Paragraph 12".
    """
    numbers = [_INTEGER.findall(each)[:1] for each in sample.references]
    return max(_share(prediction, number[0] if number else "") for number in numbers)


def count(prediction: str, sample: Sample) -> float:
    """Return the share of the answer's integers that are the reference.

    Official: count_score.
    """
    return max(_share(prediction, each) for each in sample.references)


def code_sim(prediction: str, sample: Sample) -> float:
    """Return the similarity of the reference to the first line that is code: 2 x matching characters / all.

    Official: code_sim_score; a line is code if it holds none of ` # //. There fuzzywuzzy's ratio in whole per cents, by
    the edits of python-Levenshtein where that is installed, as by the eviction papers (KVCache-Factory's
    requirements.txt), else by difflib; here rapidfuzz's, which are those edits. An answer without code is
    compared as an empty line.

    Raises
    ------
    ConfigError
        If rapidfuzz is not installed.
    """
    check_installed("rapidfuzz", "rapidfuzz", "a similarity of code", extra="eval")
    from rapidfuzz import fuzz

    lines = prediction.lstrip("\n").split("\n")
    line = next((each for each in lines if not any(mark in each for mark in _NO_CODE)), "")
    return max(round(fuzz.ratio(line, each)) for each in sample.references) / 100


def _first_line(prediction: str) -> str:
    return prediction.lstrip("\n").split("\n")[0]


def _split_sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence; one of nothing but spaces is a word of no letters."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _rouge_l(answer: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> float:
    n_answer, n_reference = (len(set(chain(*sentences))) for sentences in (answer, reference))
    if n_answer == 0 or n_reference == 0:
        return 0.0
    matched: set[str] = set()
    for one in reference:
        for other in answer:
            matched.update(_common_words(one, other))
    precision, recall = len(matched) / n_answer, len(matched) / n_reference
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_words(one: Sequence[str], other: Sequence[str]) -> Iterator[str]:
    """Yield the words of a longest common subsequence: of several, the one that keeps most of ``one``'s end."""
    lengths = [[0] * (len(other) + 1)]
    for word in one:
        above, row = lengths[-1], [0]
        for j, against in enumerate(other):
            row.append(above[j] + 1 if word == against else max(above[j + 1], row[j]))
        lengths.append(row)
    i, j = len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            yield one[i - 1]
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1


def _share(prediction: str, number: str) -> float:
    found = _INTEGER.findall(prediction)
    return found.count(number) / len(found) if found else 0.0


METRICS: Final = (
    Metric(name="qa_f1", summary="F1 of the words", rule=qa_f1),
    Metric(name="qa_f1_first_line", summary="F1 of the first line's words", rule=qa_f1_first_line),
    Metric(name="rouge_l", summary="ROUGE-L F-measure", rule=rouge_l),
    Metric(
        name="rouge_l_first_line",
        summary="ROUGE-L F-measure of the first line",
        rule=rouge_l_first_line,
    ),
    Metric(
        name="classification", summary="1 / classes named, if the right one is", rule=classification
    ),
    Metric(name="retrieval", summary="share of right paragraph numbers", rule=retrieval),
    Metric(name="count", summary="share of right numbers", rule=count),
    Metric(name="code_sim", summary="edit similarity of the first line of code", rule=code_sim),
)
