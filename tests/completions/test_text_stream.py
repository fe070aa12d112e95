"""What is shown is never taken back: whole characters, nothing that a stop string could claim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.chat.text_stream import TextStream

# Few letters, of one to four bytes, so that stop strings overlap themselves and each other.
ALPHABET = "abé☺𝄞"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3)


def cut(text, stops):
    """Return the text before the first stop string that is complete, by looking at every prefix."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(st.data())
def test_pieces_join_to_the_text_before_the_first_stop(data):
    text = data.draw(st.text(ALPHABET, max_size=24))
    stops = data.draw(STOPS)
    raw = text.encode()
    ends = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    stream = TextStream(stops)
    expected, stopped = cut(text, stops)
    shown = ""
    for start, end in zip([0, *ends], [*ends, len(raw)], strict=True):
        piece = stream.feed(raw[start:end])
        shown += piece
        assert expected.startswith(shown)
        assert stream.n_given == len(shown)
        assert "\N{REPLACEMENT CHARACTER}" not in piece
    shown += stream.finish()
    assert (shown, stream.stopped) == (expected, stopped)
    assert stream.n_decoded == stream.n_given == len(expected)
    assert stream.feed(b"more") == ("" if stopped else "more")


@given(st.text(ALPHABET, max_size=24), STOPS)
def test_no_more_is_held_back_than_could_become_a_stop(text, stops):
    stream = TextStream(stops)
    shown = stream.feed(text.encode())
    if not stream.stopped:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@given(st.binary(max_size=40))
def test_any_bytes_come_out_as_python_decodes_them(data):
    stream = TextStream()
    shown = "".join(stream.feed(bytes([byte])) for byte in data) + stream.finish()
    assert shown == data.decode(errors="replace")


def test_a_stop_of_a_broken_character_counts_at_the_end():
    stream = TextStream(["a\N{REPLACEMENT CHARACTER}"])
    assert stream.feed(b"xa\xe2") == "x"
    assert stream.finish() == ""
    assert stream.stopped


@pytest.mark.parametrize(
    ("stops", "shown"),
    [(["abc", "b"], "x"), (["abc", "c"], "x"), (["c", "bc", "abc"], "x"), (["d"], "xabc")],
)
def test_of_several_stops_the_first_complete_and_then_the_longest_counts(stops, shown):
    stream = TextStream(stops)
    assert stream.feed(b"xabc") == ("xa" if stops == ["abc", "b"] else shown)
