"""Questions, their answers and the documents that hold them, whichever file they come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a set of documents.

    Attributes
    ----------
    text : str
        The question itself.
    answers : tuple of str
        Each of them is right.
    own : tuple of int
        Indices of the documents that must be there.
    near : tuple of int
        Indices of the documents on the same subject: the first to be added.
    """

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions with the documents that they point into."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]
