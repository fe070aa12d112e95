"""Needles: where they stand, how long the text is, what depends on the seed."""

import re

import pytest
from evaluation_helpers import count, run
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation.haystack import make_prose
from restkv_local.evaluation.tasks.niah import plant, spread_depths

NAMES = ("niah", "niah-paper", "niah-multi", "passkey")


def test_depths_are_spread_from_end_to_end():
    assert spread_depths(1) == [50.0]
    assert spread_depths(2) == [0.0, 100.0]
    assert spread_depths(10)[:3] == [0.0, 11.1, 22.2]
    assert spread_depths(10)[-1] == 100.0


@given(n_chars=st.integers(200, 4000), depths=st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_planting_only_adds_the_needles_near_their_depths(n_chars, depths):
    text = make_prose(7).first(n_chars)
    needles = [f"Needle {i} is here." for i in range(len(depths))]
    planted = plant(text, needles, depths)
    bare = planted
    for needle in needles:
        bare = bare.replace(f"{needle} ", "")
    assert bare == text
    for needle, depth in zip(needles, depths, strict=True):
        before = re.sub(r"Needle \d is here\. ", "", planted[: planted.index(needle)])
        assert before == "" or re.search(r"[.]\s+$", before)
        # No sentence of the prose is longer than 200 characters.
        assert 0 <= depth * len(text) / 100 - len(before) <= 200


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [600, 1000, 5000, 262_144])
def test_lengths_are_met_within_one_per_cent_and_never_exceeded(name, length):
    for sample in run(name, length=length, n=3 if length < 100_000 else 1):
        assert 0.99 * length <= sample.count_tokens(count) <= length
        assert sample.extra["length"] == length


@pytest.mark.parametrize("name", NAMES)
def test_references_stand_in_the_context_and_nowhere_else(name):
    for sample in run(name, n=5):
        assert all(sample.context.count(each) >= 1 for each in sample.references)
        assert not any(each in sample.question + sample.answer_prefix for each in sample.references)
        if name in ("niah", "niah-multi"):
            assert all(sample.context.count(each) == 1 for each in sample.references)
            assert sorted(re.findall(r"\d+", sample.context)) == sorted(sample.references)


@pytest.mark.parametrize("name", ["niah", "niah-paper", "passkey"])
def test_the_needle_stands_at_its_depth(name):
    for sample, depth in zip(run(name, n=6, length=3000), spread_depths(6), strict=True):
        found = 100 * sample.context.index(sample.extra["needle"]) / len(sample.context)
        assert sample.extra["depth"] == depth
        assert abs(found - depth) <= 6  # a sentence, the introduction and the needle itself


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_for_the_same_request_and_differ_by_seed(name):
    texts = [[sample.text for sample in run(name, seed=seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    if name != "niah-paper":  # the papers' needle has no seed
        assert not set(texts[0]) & set(texts[2])
    ids = [sample.id for seed in (1, 2) for sample in run(name, seed=seed)]
    assert len(set(ids)) == 6


def test_the_papers_prompt_is_kept():
    sample = run("niah-paper", n=1)[0]
    assert sample.text.startswith("<|im_start|> This is a very long story book: <book> ")
    assert sample.text.endswith(
        " </book>.\n Based on the content of the book, Question: The best thing to do in San Francisco is: \nAnswer:"
    )
    assert "\nThe best thing to do in San Francisco is eat a sandwich and sit" in sample.context
    assert not sample.uses_template
    assert (sample.metric, sample.more_metrics, sample.stop_tokens) == (
        "rouge_1",
        ("substring",),
        ("\n",),
    )


def test_four_numbers_are_asked_for_at_once():
    sample = run("niah-multi", n=1)[0]
    things = re.findall(r"number of the (\w+ \w+) is \d{7}\.", sample.context)
    assert len(sample.references) == len(things) == 4
    assert all(f"the {thing}" in sample.question for thing in things)


@pytest.mark.parametrize("name", ["niah", "niah-paper", "niah-multi"])
def test_a_users_text_becomes_the_haystack(tmp_path, name):
    path = tmp_path / "own.txt"
    path.write_text("Zanzibar lies far away. Nobody went there.\n\nIt rained.", encoding="utf-8")
    sample = run(name, n=1, haystack=path)[0]
    assert sample.context.count("Zanzibar lies far away.") > 20
    assert 0.99 * 2048 <= sample.count_tokens(count) <= 2048


@pytest.mark.parametrize(
    "text", ["长城很长。天很蓝。" * 40, "绿水青山" * 90, "one two three " * 60]
)
@pytest.mark.parametrize("name", ["niah", "ruler-niah_single_2"])
def test_needles_stand_at_their_depths_where_no_sentence_ends_in_a_full_stop(tmp_path, name, text):
    """All of them stood at the beginning, and a text without spaces was cut where it began anew."""
    path = tmp_path / "own.txt"
    path.write_text(text, encoding="utf-8")
    samples = run(name, n=5, haystack=path)
    places = []
    for sample in samples:
        assert 0.97 * 2048 <= sample.count_tokens(count) <= 2048
        places.append(re.search(r"\d{7}", sample.context).start() / len(sample.context))
    assert len({round(place, 2) for place in places}) >= 4
    assert max(places) > 0.4


def test_an_unreadable_haystack_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        run("niah", haystack=tmp_path / "none.txt")


@pytest.mark.parametrize("name", NAMES)
def test_lengths_that_hold_no_prompt_are_refused(name):
    with pytest.raises(ConfigError, match=rf"{name} cannot be 20 tokens long: .* at least \d+"):
        run(name, length=20)
