"""What a question about documents looks like to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class NamedText(Protocol):
    """A document: its name and what it says."""

    @property
    def name(self) -> str:
        """How the user calls it."""

    @property
    def text(self) -> str:
        """What the model reads."""


def write_message(documents: Sequence[NamedText], question: str, *, known: bool) -> str:
    """Return the user's message: what is asked, the documents, the question.

    What a message begins with draws an answer's first words to it, the more the fewer rows are left: were that a
    document's first sentence, a small model would repeat it instead of answering.

    Parameters
    ----------
    documents : sequence of NamedText
        Headed by their names where there are several.
    question : str
        Blank: the documents are the message.
    known : bool
        Whether the question is known when reading begins; otherwise a request that one will follow stands first.
    """
    texts = [one for one in documents if one.text.strip()]
    if not question.strip():
        return "\n\n".join(one.text for one in texts)
    if not texts:
        return question
    asked = f"answer: {question.strip()}" if known else "answer the question after it."
    headed = [f"{one.name if len(texts) > 1 else 'Text'}:\n\n{one.text}" for one in texts]
    return "\n\n".join([f"Read the text below and {asked}", *headed, question])
