"""What chooses the rows that stay: the new question, and what was asked before."""

from dataclasses import replace

import pytest

from restkv_local import ChatSession, Llama
from restkv_local.chat.guide import question_guide
from restkv_local.chat.prompt import Request
from restkv_local.chat.turn import Turn
from tests.session.conversation import MODEL

pytestmark = pytest.mark.native

NEW = "And the new one?"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    model = MODEL.write(tmp_path_factory.mktemp("guide") / "m.gguf")
    with Llama(model, budget=64, n_threads=1, n_ubatch=512, n_guide=200) as llama:
        yield llama


def guide(llama, earlier=(), new=NEW, n_guide=200, **changes):
    config = replace(llama.config, n_guide=n_guide, **changes)
    tokens = question_guide(llama.native, config, f"<user>{new}<bot>", new, earlier)
    assert len(tokens) <= n_guide
    text = b"".join(llama.native.piece(token) for token in tokens).decode()
    return "\n".join(
        line.strip() for line in text.split("\n")
    )  # some vocabularies begin with a space


def test_alone_the_question_and_the_template_s_end_guide(llama):
    assert guide(llama) == f"{NEW}<bot>"


@pytest.mark.parametrize("question", ["a", " im", "assistant", "end", "Why?"])
def test_a_question_of_a_letter_is_not_looked_for_in_the_template_s_end(llama, question):
    """The guide was what the template has after that letter, without the question."""
    session = ChatSession(llama)
    rendered = session._prompts.render(None, (), question)
    tail = session._prompts._template.tail()
    assert tail.startswith("<|im_end|>")
    tokens = question_guide(llama.native, llama.config, rendered, question, (), tail)
    asked = f"{question.strip()}{tail}"
    assert tokens == llama.native.tokenize(asked, add_special=False)
    prompt = session._prompts.build(Request(Turn(question)), None, (), question)
    assert prompt.guide == tokens
    assert session._prompts.hear(prompt, question, len(prompt.tokens)) == asked


def test_questions_asked_before_come_first_and_the_rest_of_their_messages_does_not(llama):
    earlier = ["I lost my hat. Where is it? Tell me.", "Nothing asked.", "And why?"]
    assert guide(llama, earlier) == f"Where is it?\nAnd why?\n{NEW}<bot>"


def test_a_question_asked_again_guides_once(llama):
    assert guide(llama, ["Why?", "Who?", "Why?", NEW]) == f"Who?\nWhy?\n{NEW}<bot>"


def test_the_newest_questions_have_the_room_there_is(llama):
    found = guide(llama, ["Where did the old one go?", "Who?"], n_guide=len(NEW) + 16)
    assert found == f"Who?\n{NEW}<bot>"


def test_a_long_message_leaves_half_of_the_room_to_earlier_questions(llama):
    found = guide(llama, ["Who?"], new="begin " + 300 * "x" + " end", n_guide=60)
    assert found.startswith("Who?\nbegin")
    assert found.endswith("end<bot>")


def test_a_text_of_one_s_own_guides_alone(llama):
    assert guide(llama, ["Who?"], guide="the harbour") == "the harbour"
    assert guide(llama, ["Who?"], guide="off") == ""


def test_without_room_nothing_guides(llama):
    assert guide(llama, ["Who?"], n_guide=0) == ""
