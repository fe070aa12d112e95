"""InfiniteBench's metrics: src/compute_scores.py of OpenBMB/InfiniteBench."""

from __future__ import annotations

import re
import string
from typing import Final

from restkv_local.evaluation.metrics.base import Metric
from restkv_local.evaluation.metrics.overlap import f1
from restkv_local.evaluation.metrics.rouge import score_rouge
from restkv_local.evaluation.sample import Sample

_INTEGER: Final = re.compile(r"[0-9]+")
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_BREAKS: Final = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_CHOICE_BREAKS: Final = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))
_CODE_BREAKS: Final = re.compile(r"[\n`'\"\-*]|[Oo]ption")
_CHOICE_LEADS: Final = ("answer is:", "answer:", "answer is", "option is")
_CODE_LEADS: Final = ("answer is:", "is:", "answer:")
_LAST_CHOICE: Final = re.compile(r"\b[A-D]\b(?!.*\b[A-D]\b)")
_LAST_OPTION: Final = re.compile(r"\b[A-J]\b(?!.*\b[A-J]\b)")

# What CJK texts punctuate with, beside ASCII.
_CJK_PUNCTUATION: Final = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
)
_NO_CHARACTER: Final = str.maketrans("", "", string.punctuation + _CJK_PUNCTUATION)


def first_integer(prediction: str, sample: Sample) -> float:
    """Return 1 if the first run of digits is the reference.

    Official: get_score_one_passkey and get_score_one_number_string.
    """
    match = _INTEGER.search(prediction)
    return float(match is not None and match[0] == sample.references[0])


def exact_word(prediction: str, sample: Sample) -> float:
    """Return 1 if the reference is one of the answer's words, punctuation taken for spaces.

    Official: get_score_one_kv_retrieval. Hyphens stay, so a UUID is a word.
    """
    return float(sample.references[0] in prediction.translate(_BREAKS).split())


def rouge_lsum(prediction: str, sample: Sample) -> float:
    """Return ROUGE-Lsum's F-measure, lines taken for sentences, without stemming.

    Official: get_score_one_longbook_sum_eng, by HF's evaluate, which calls rouge-score as this does.
    """
    return score_rouge(prediction, sample.references, "rougeLsum")


def choice(prediction: str, sample: Sample) -> float:
    """Return 1 if the answer chooses the right one of A to D; references are its text and its letter.

    Official: get_score_one_longbook_choice_eng since August 2024. In this order: the last lone letter of A to D in the
    first line that has one, if it is right; the first character if it is such a letter; the whole answer if it is the
    text; what follows "answer is:", "answer:", "answer is" or "option is"; the first word that is A, B, C or D.
    The official test of the last also takes "AB" and "BC" for letters; here words of one letter count.
    """
    answer = prediction.strip()
    last = _LAST_CHOICE.search(answer)
    if last is not None and last[0] in sample.references:
        return 1.0
    if answer[:1] and answer[0] in "ABCD":
        return float(answer[0] in sample.references)
    if answer in sample.references:
        return 1.0
    answer = re.sub(" +", " ", answer.translate(_CHOICE_BREAKS))
    said = _after(answer, _CHOICE_LEADS)
    if said is not None:
        return float(said.startswith(sample.references))
    letters = [word for word in answer.split() if word in ("A", "B", "C", "D")]
    return float(bool(letters) and letters[0] in sample.references)


def code_option(prediction: str, sample: Sample) -> float:
    """Return 1 if the answer names the faulty function or its letter; references are its name and its letter.

    Official: get_score_one_code_debug since August 2024. The letter is the last lone one of A to J in the first line
    that has one; or it or the name comes first, or follows "answer is:", "is:" or "answer:".
    """
    name, letter = sample.references
    answer = prediction.strip()
    last = _LAST_OPTION.search(answer)
    if last is not None and last[0] == letter:
        return 1.0
    answer = re.sub(" +", " ", _CODE_BREAKS.sub(" ", answer))
    said = answer if answer.startswith((letter, name)) else _after(answer, _CODE_LEADS)
    return float(said is not None and said.startswith((letter, name)))


def character_f1(prediction: str, sample: Sample) -> float:
    """Return the best F1 of the characters of answer and reference, punctuation and white space left out.

    Official: qa_f1_score_zh.
    """
    characters = _characters(prediction)
    return max(f1(characters, _characters(each)) for each in sample.references)


def speaker(prediction: str, sample: Sample) -> float:
    """Return 1 if one of the references is in the answer, in capitals or not.

    Official: get_score_one_longdialogue_qa_eng since August 2024.
    """
    answer = prediction.upper()
    return float(any(reference.upper() in answer for reference in sample.references))


def first_number(prediction: str, sample: Sample) -> float:
    """Return 1 if the first number is the reference in value.

    Official: get_score_one_math_find, which fails on a fraction where a whole number is the answer; here that scores
    0. Signs are not looked at there, nor here.
    """
    match = _NUMBER.search(prediction)
    return float(match is not None and float(match[0]) == float(sample.references[0]))


def _after(answer: str, leads: tuple[str, ...]) -> str | None:
    """Return what follows the first lead that occurs and the character after it, None if none occurs."""
    for lead in leads:
        if lead in answer:
            return answer.partition(lead)[2][1:]
    return None


def _characters(text: str) -> list[str]:
    return list("".join(text.lower().translate(_NO_CHARACTER).split()))


METRICS: Final = (
    Metric(name="first_integer", summary="whether the first integer is right", rule=first_integer),
    Metric(name="exact_word", summary="whether a word of the answer is right", rule=exact_word),
    Metric(name="rouge_lsum", summary="ROUGE-Lsum F-measure", rule=rouge_lsum),
    Metric(name="choice", summary="whether the right one of A to D is chosen", rule=choice),
    Metric(name="code_option", summary="whether the right function is named", rule=code_option),
    Metric(name="character_f1", summary="F1 of the characters", rule=character_f1),
    Metric(name="speaker", summary="whether the name is in the answer", rule=speaker),
    Metric(name="first_number", summary="whether the first number is right", rule=first_number),
)
