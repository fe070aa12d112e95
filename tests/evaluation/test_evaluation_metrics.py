"""Every metric against scores worked out by hand from the official rule."""

import pytest
from evaluation_helpers import make_sample, score
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.evaluation.metrics.overlap import f1, normalise
from restkv_local.evaluation.metrics.registry import METRICS


@pytest.mark.parametrize(
    ("name", "prediction", "references", "expected"),
    [
        # RULER
        ("match_all", "a 12 and b", ("12", "B", "x", "y"), 0.5),
        ("match_all", "\x00XY\x1fz", ("xy\nz",), 1.0),
        ("match_all", "", ("a",), 0.0),
        ("match_part", "in PARIS, France", ("London", "paris"), 1.0),
        ("match_part", "Rome", ("London", "Paris"), 0.0),
        # needles
        ("substring", "It is number\n4182937.", ("Number 4182937",), 1.0),
        ("substring", "418 2937", ("4182937",), 0.0),
        # LongBench: "red cat sat" of 3 words, "cat sat down" of 3, 2 shared: F1 = 2*2/6
        ("qa_f1", "The red cat sat.", ("a cat sat down",), 2 / 3),
        ("qa_f1", "cat cat", ("cat",), 2 / 3),  # 1 shared, bags of 2 and 1
        ("qa_f1", "dog", ("cat", "the dog!"), 1.0),
        ("qa_f1", "", ("cat",), 0.0),
        ("qa_f1_first_line", "\n\ncat\nand a dog", ("cat",), 1.0),
        ("qa_f1_first_line", "dog\ncat", ("cat",), 0.0),
        ("rouge_l", "a b c d", ("a c e",), 2 * 2 / 7),  # a c of 4 and 3
        ("rouge_l", "x", ("a b", "x y z"), 2 * 1 / 4),
        ("rouge_l", "c d. a\nb.", ("a b. c d.",), 1.0),  # sentences in any order
        ("rouge_l", "C d", ("c d",), 0.5),  # case counts
        # Each word once: 7 of the answer's 7, the cat sat on mat. The ran., 7 of 8.
        (
            "rouge_l",
            "The cat sat on the mat. The cat ran.",
            ("The cat sat on the mat. The dog ran.",),
            14 / 15,
        ),
        ("rouge_l", "d c.", ("c d.",), 0.5),  # words in one only
        ("rouge_l", "", ("a",), 0.0),
        ("rouge_l", "...", ("a",), 0.0),
        ("rouge_l", "a", (".",), 0.0),
        ("rouge_l_first_line", "\na b\nc", ("a b c",), 2 * 2 / 5),
        ("retrieval", "Paragraph 3, or 4, or 3", ("Paragraph 3",), 2 / 3),
        ("retrieval", "none", ("Paragraph 3",), 0.0),
        ("retrieval", "13", ("Paragraph 3",), 0.0),
        ("count", "7 of 8, so 7 and 9", ("7",), 0.5),
        ("count", "seven", ("7",), 0.0),
        ("code_sim", "# note\n`x`\n// y\nabcd\nzzz", ("abce",), 0.75),  # 2*3/8
        ("code_sim", "\n\nreturn x", ("return x",), 1.0),
        ("code_sim", "# only", ("return",), 0.0),
        # InfiniteBench
        ("first_integer", " 71432. Remember", ("71432",), 1.0),
        ("first_integer", "1 71432", ("71432",), 0.0),
        ("first_integer", "none", ("71432",), 0.0),
        ("exact_word", 'It is "a-1-b".', ("a-1-b",), 1.0),
        ("exact_word", "xa-1-b", ("a-1-b",), 0.0),
        ("rouge_lsum", "a b\nc", ("a b\nc",), 1.0),
        ("rouge_lsum", "a b c", ("a b\nd",), 2 * 2 / 6),
        ("choice", "B) because", ("the mill", "B"), 1.0),
        ("choice", " A", ("the mill", "B"), 0.0),
        ("choice", "the mill", ("the mill", "B"), 1.0),
        ("choice", "The answer is: B", ("the mill", "B"), 1.0),
        ("choice", "The answer is the mill", ("the mill", "B"), 1.0),
        ("choice", "The answer is:", ("the mill", "B"), 0.0),
        ("choice", "It must be C, not B", ("the mill", "B"), 1.0),
        ("choice", "It must be B, not C", ("the mill", "B"), 1.0),
        ("choice", "B is wrong, C is right", ("the mill", "B"), 1.0),
        ("choice", "So A or C", ("the mill", "B"), 0.0),
        ("choice", "A good guess is B", ("the mill", "B"), 1.0),
        ("choice", "(B)", ("the mill", "B"), 1.0),
        ("choice", "As the text says\nB", ("the mill", "B"), 1.0),
        ("choice", "", ("the mill", "B"), 0.0),
        ("code_option", "C. load", ("load", "C"), 1.0),
        ("code_option", "C: load", ("load", "C"), 1.0),
        ("code_option", "C, because", ("load", "C"), 1.0),
        ("code_option", "Option C", ("load", "C"), 1.0),
        ("code_option", "D. save", ("load", "C"), 0.0),
        ("code_option", "It calls load", ("load", "C"), 0.0),
        ("code_option", " C", ("load", "C"), 1.0),
        ("code_option", "The answer is: `load`", ("load", "C"), 1.0),
        ("code_option", "The answer is: Option C", ("load", "C"), 1.0),
        ("code_option", "The answer is: D", ("load", "C"), 0.0),
        ("code_option", "load", ("load", "C"), 1.0),
        ("character_f1", "他，是 王", ("是王！",), 2 * 2 / 5),
        ("character_f1", "天", ("地", "天"), 1.0),
        ("speaker", "It is Ace, I think", ("ACE", "ACE ROTHSTEIN"), 1.0),
        ("speaker", "ace rothstein", ("ACE ROTHSTEIN",), 1.0),
        ("first_number", "is 12, or 13", ("12",), 1.0),
        ("first_number", "12.0", ("12",), 1.0),
        ("first_number", "12.5", ("12",), 0.0),
        ("first_number", "none", ("12",), 0.0),
        # numbers, labels, words
        ("number", "so 3+4=7\n#### 1,007", ("1007",), 1.0),
        ("number", "#### 7\nQuestion: and 8", ("7",), 1.0),
        ("number", "#### -3.50", ("-3.5",), 1.0),
        ("number", "He pays $18.", ("18",), 1.0),
        ("number", "18 apples, then 20", ("18",), 0.0),
        ("number", "none", ("18",), 0.0),
        ("last_word", ' "Signs," he said', ("signs",), 1.0),
        ("last_word", "the signs", ("signs",), 0.0),
        ("last_word", " ... menu", ("menu.",), 1.0),
        ("last_word", "", ("menu",), 0.0),
    ],
)
def test_scores_are_those_of_the_official_rule(name, prediction, references, expected):
    assert score(name, prediction, *references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Type: City", 1.0),
        ("\nCity\nCountry", 1.0),
        ("City or Country", 0.5),
        ("Country", 0.0),
        ("", 0.0),
    ],
)
def test_classification_shares_the_point_between_the_classes_named(prediction, expected):
    assert score("classification", prediction, "City", all_classes=["City", "Country"]) == expected


def test_classes_inside_the_right_one_do_not_count():
    """The official loop skips "b" after it has removed "a", and would give a half."""
    classes = ["a", "b", "ab number"]
    assert score("classification", "ab number", "ab number", all_classes=classes) == 1.0


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (" Neither.", 1.0),
        ("neither", 1.0),
        ("True, or Neither", 0.0),
        ("Truest Neither", 1.0),
        ("", 0.0),
    ],
)
def test_the_first_label_named_counts(prediction, expected):
    labels = ["True", "Neither", "False"]
    assert score("label", prediction, "Neither", all_classes=labels) == expected


def test_rouge_1_stems_and_compares_with_the_needle():
    # sat/sit differ, "sandwiches" stems to "sandwich": 3 of 3 and 4 words shared
    needle = "eat a sandwich now"
    assert score("rouge_1", "eat a sandwiches", "x", needle=needle) == pytest.approx(2 * 3 / 7)
    assert score("rouge_1", "", "x", needle=needle) == 0.0


def test_normalising_drops_punctuation_before_articles():
    assert normalise("The  end-of a day, AN hour.") == "endof day hour"


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_f1_is_symmetric_and_one_for_equal_bags_only(left, right):
    assert f1(left, right) == f1(right, left)
    assert 0 <= f1(left, right) <= 1
    assert (f1(left, right) == 1) == (sorted(left) == sorted(right) and bool(left))


@pytest.mark.parametrize("name", METRICS)
@given(
    prediction=st.text(max_size=40)
    | st.sampled_from(["A", "answer is:", "#### .", "1..2", "Option", "-", "$", "####"])
)
def test_no_answer_breaks_a_metric(name, prediction):
    references = ("12", "B") if name in ("code_option", "choice") else ("12",)
    sample = make_sample(*references, extra={"all_classes": ["12", "x"], "needle": "it is 12"})
    assert 0 <= METRICS[name].rule(prediction, sample) <= 1


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"retrieval", "label"}))
def test_the_reference_itself_scores_full(name):
    references = ("12", "B") if name == "choice" else ("12",)
    sample = make_sample(*references, extra={"all_classes": ["12", "x"], "needle": "12"})
    if name == "code_option":
        sample = make_sample("load", "B")
        assert METRICS[name].rule("B. load", sample) == 1.0
        return
    assert METRICS[name].rule("12", sample) == pytest.approx(1.0)
