"""Places in a document from what its tokens received."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.chat.passages import TokenMap, _sentence, find_passages
from restkv_local.documents import parse_document
from restkv_local.errors import InputError

TEXT = "\n".join(f"Line {i} says that the harbour is grey. It rains on day {i}." for i in range(40))


def cut(text, n=4):
    """Pieces of ``n`` bytes: tokens of a vocabulary that splits characters too."""
    data = text.encode()
    return [data[i : i + n] for i in range(0, len(data), n)]


def attend(pieces, prompt, needle, n_after=10):
    """Attention on the tokens of one phrase."""
    ends = np.cumsum([len(piece) for piece in pieces])
    at = prompt.encode().index(needle.encode())
    inside = (ends > at) & (ends <= at + len(needle.encode()))
    return np.pad(inside.astype(float), (0, n_after))


def test_the_sentence_that_was_looked_at_is_named(tmp_path):
    document = parse_document(TEXT.encode(), "log.txt")
    prompt = f"<s>user\n{TEXT}\n\nWhen does it rain?"
    pieces = cut(prompt)
    received = attend(pieces, prompt, "rains on day 17")
    (passage,) = find_passages(received, TokenMap(pieces, [document]))
    assert (passage.document, passage.place) == ("log.txt", "line 18")
    assert passage.text == "It rains on day 17."
    assert passage.share == pytest.approx(1.0)


def test_what_is_no_document_counts_for_nothing():
    document = parse_document(TEXT.encode(), "log.txt")
    prompt = f"system says {TEXT}\n\nWhen does it rain?"
    pieces = cut(prompt)
    received = 9 * attend(pieces, prompt, "When does it rain")
    received += 9 * attend(pieces, prompt, "system says")
    received[-5:] = 9  # the answer itself
    tokens = TokenMap(pieces, [document])
    assert find_passages(received, tokens) == ()
    received += attend(pieces, prompt, "day 3.")
    assert [one.text for one in find_passages(received, tokens)] == ["It rains on day 3."]


def test_each_document_is_named_and_the_strongest_comes_first():
    documents = [parse_document(f"{TEXT} {name}.".encode(), name) for name in ("a.txt", "b.txt")]
    prompt = "\n\n".join(document.text for document in documents)
    pieces = cut(prompt)
    weak = attend(pieces, prompt, "day 5.")
    start = prompt.index(documents[1].text)
    strong = np.zeros_like(weak)
    strong[(start + prompt[start:].index("day 9.")) // 4] = 5.0
    found = find_passages(weak + strong, TokenMap(pieces, documents))
    assert [(one.document, one.place) for one in found] == [
        ("b.txt", "line 10"),
        ("a.txt", "line 6"),
    ]
    assert found[0].share > found[1].share


def test_a_text_that_tokens_do_not_give_back_has_no_passages():
    document = parse_document(b"As it was written.", "a.txt")
    tokens = TokenMap(cut("AS IT WAS WRITTEN."), [document])
    assert find_passages(np.ones(5), tokens) == ()


@given(text=st.text(min_size=1, max_size=300), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_text_in_any_pieces_gives_places_inside_it(text, n, seed):
    data = text.encode(errors="replace")
    if not data.strip() or b"\0" in data:
        return
    try:
        document = parse_document(data, "x")
    except InputError:
        return
    prompt = f"# {document.text} ?"
    pieces = cut(prompt, n)
    received = np.random.default_rng(seed).random(len(pieces) + 3)
    for passage in find_passages(received, TokenMap(pieces, [document])):
        assert passage.text in " ".join(document.text.split())
        assert 0 < passage.share <= 1


@pytest.mark.parametrize("at", [0, 500, 1001, 1799])
def test_a_long_sentence_is_shortened_between_words(at):
    text = "abcdefgh " * 200
    start, end = _sentence(text, at)
    assert start <= at < max(end, at + 1)
    assert 100 < end - start <= 240
    assert set(text[start:end].split()) == {"abcdefgh"}


def test_a_long_sentence_without_spaces_is_shortened_anywhere():
    assert _sentence("x" * 1000, 500) == (380, 620)
