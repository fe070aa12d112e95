"""How a question about documents is put to the model."""

from restkv_local.chat.message import write_message
from restkv_local.chat.turn import Attachment

TEXT = Attachment("a.txt", "The ferry left.", "")
OTHER = Attachment("b.txt", "The tide came.", "")
BLANK = Attachment("c.txt", " \n", "")


def test_a_question_alone_is_the_message():
    assert write_message([], "Why?", known=True) == "Why?"
    assert write_message([BLANK], "Why?", known=True) == "Why?"


def test_documents_alone_are_the_message():
    assert write_message([TEXT, OTHER], " ", known=True) == "The ferry left.\n\nThe tide came."


def test_a_known_question_stands_at_both_ends():
    assert (
        write_message([TEXT], "Why?", known=True)
        == "Read the text below and answer: Why?\n\nText:\n\nThe ferry left.\n\nWhy?"
    )


def test_what_stands_before_the_text_tells_nothing_of_an_unknown_question():
    one, other = (write_message([TEXT], question, known=False) for question in ("Why?", "When?"))
    assert one.removesuffix("Why?") == other.removesuffix("When?")


def test_several_documents_are_headed_by_their_names():
    message = write_message([TEXT, BLANK, OTHER], "Why?", known=True)
    assert "a.txt:\n\nThe ferry left.\n\nb.txt:\n\nThe tide came." in message
    assert "c.txt" not in message
