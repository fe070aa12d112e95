"""One question with its documents, and what was answered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from restkv_local.chat.chat_template import Message
from restkv_local.chat.message import write_message
from restkv_local.errors import InputError


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text that goes with a question: its name, itself, the SHA-256 of where it came from."""

    name: str
    text: str
    sha256: str

    @classmethod
    def of_text(cls, text: str) -> Attachment:
        """Return a text that came from no file."""
        return cls("text", text, hashlib.sha256(text.encode(errors="replace")).hexdigest())


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes
    ----------
    question : str
        As the user wrote it.
    documents : tuple of Attachment
        Read before the question.
    answer : str
        What the model said; of a stopped answer what it had said by then.
    heard : str or None
        The part of the prompt that was read, when reading was stopped.
    n_drawn : int
        Tokens that the sampler had drawn before the turn.
    """

    question: str
    documents: tuple[Attachment, ...] = ()
    answer: str = ""
    heard: str | None = None
    n_drawn: int = 0

    @property
    def content(self) -> str:
        """The user's message.

        Raises
        ------
        InputError
            If there is nothing to read.
        """
        content = write_message(self.documents, self.question, known=True)
        if not content.strip():
            raise InputError("the prompt is empty: give a question, a document or both")
        return content

    @property
    def guide(self) -> str:
        """What guides eviction: the question, or all of it where there is none."""
        return self.question if self.question.strip() else self.content

    @property
    def messages(self) -> list[Message]:
        """The turn as the template takes it."""
        heard = self.content if self.heard is None else self.heard
        return [{"role": "user", "content": heard}, {"role": "assistant", "content": self.answer}]
