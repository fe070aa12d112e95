"""RULER's thirteen tasks against their definitions."""

import json
import random
import re
from collections import Counter

import pytest
from evaluation_helpers import count, run, write_jsonl

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation.tasks.manual_questions import ask_manual
from restkv_local.evaluation.tasks.registry import TASKS
from restkv_local.evaluation.tasks.ruler_needles import VARIANTS, draw_distractors
from restkv_local.evaluation.words import draw_vocabulary, read_words

NAMES = [name for name in TASKS if name.startswith("ruler-")]
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1024, 4096])
def test_no_sample_is_too_long_and_none_much_too_short(name, length):
    n_unit = 200 if "qa" in name else 100  # a document; a line of UUIDs
    for sample in run(name, length=length):
        assert length - max(n_unit, 0.01 * length) <= sample.count_tokens(count) <= length


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_of_rulers_lengths_is_met(name):
    (sample,) = run(name, length=131_072, n=1)
    assert 0.98 * 131_072 <= sample.count_tokens(count) <= 131_072
    assert all(reference in sample.context for reference in sample.references)


@pytest.mark.parametrize("name", NAMES)
def test_samples_depend_on_request_and_seed_only(name):
    texts = [[sample.text for sample in run(name, seed=seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert len({*texts[0], *texts[2]}) == 6
    assert len({sample.id for seed in (1, 2) for sample in run(name, seed=seed)}) == 6


@pytest.mark.parametrize("name", NAMES)
def test_references_stand_in_the_context_and_the_names_are_rulers(name):
    n_tokens = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
    for sample in run(name):
        assert all(reference in sample.context for reference in sample.references)
        assert not any(reference in sample.question for reference in sample.references)
        assert sample.max_new_tokens == n_tokens[name.removeprefix("ruler-").split("_")[0]]
        assert sample.metric == ("match_part" if "qa" in name else "match_all")
        assert sample.answer_prefix.startswith(" ")
        assert sample.context.endswith("\n")
        assert sample.uses_template


@pytest.mark.parametrize("name", NAMES)
def test_lengths_that_hold_no_prompt_are_refused(name):
    with pytest.raises(ConfigError, match=rf"{name} cannot be \d+ tokens long"):
        run(name, length=140)


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_values_are_those_of_the_variant(variant):
    needles = VARIANTS[variant]
    for sample in run(f"ruler-{variant}"):
        found = NEEDLE.findall(sample.context)
        values = {value: key for _, key, value in found}
        assert {kind for kind, _, _ in found} == {needles.values}
        assert len(sample.references) == needles.n_queries * needles.n_values
        asked = [values[reference] for reference in sample.references]
        assert len(set(asked)) == needles.n_queries
        assert all(key in sample.question and key in sample.answer_prefix for key in asked)
        # What the queried keys hold is exactly what is expected.
        assert {value for value, key in values.items() if key in asked} == set(sample.references)
        if needles.haystack == "needle":
            assert len(found) > 15
        else:
            assert len(found) == needles.n_keys * needles.n_values
            assert len(set(values.values())) == needles.n_keys
        pattern = {"numbers": r"\d{7}", "uuids": UUID}[needles.values]
        assert all(re.fullmatch(pattern, reference) for reference in sample.references)
        assert all(re.fullmatch(UUID if needles.keys == "uuids" else r".+-.+", k) for k in asked)


def test_distractors_never_have_a_key_that_is_asked_for():
    needles = VARIANTS["niah_multikey_2"]
    (first, *_), (same, *_) = (
        draw_distractors(needles, 3, keys, random.Random(5)) for keys in ([], ["other-key"])
    )
    assert first == same
    key = NEEDLE.fullmatch(first)[2]
    assert all(key not in line for line in draw_distractors(needles, 3, [key], random.Random(5)))


def test_one_value_is_asked_for_in_the_singular():
    sample = run("ruler-niah_single_3", n=1)[0]
    assert sample.context.startswith(
        "A special magic uuid is hidden within the following text. Make sure to memorize it. I will quiz you about the"
        " uuid afterwards.\n"
    )
    assert re.fullmatch(
        r"What is the special magic uuid for \S+ mentioned in the provided text\?", sample.question
    )
    assert re.fullmatch(
        r" The special magic uuid for \S+ mentioned in the provided text is", sample.answer_prefix
    )


def test_several_values_are_asked_for_in_the_plural():
    sample = run("ruler-niah_multiquery", n=1)[0]
    assert sample.context.startswith("Some special magic numbers are hidden within")
    assert re.fullmatch(
        r"What are all the special magic numbers for (\S+, ){3}and \S+ mentioned in the provided text\?",
        sample.question,
    )
    assert sample.answer_prefix.endswith(" mentioned in the provided text are")


def test_the_haystacks_are_noise_text_and_needles(tmp_path):
    noise = run("ruler-niah_single_1", n=1)[0].context.splitlines()
    assert Counter(noise).most_common(1)[0][0].startswith("The grass is green. The sky is blue.")
    lines = run("ruler-niah_multikey_2", n=1)[0].context.strip().splitlines()[1:]
    assert all(NEEDLE.fullmatch(line) for line in lines)
    own = tmp_path / "own.txt"
    own.write_text("Zanzibar lies far away. Nobody went there.", encoding="utf-8")
    assert "Zanzibar" in run("ruler-niah_single_2", n=1, haystack=own)[0].context


def test_a_chain_has_five_names_that_follow_from_each_other():
    for sample in run("ruler-vt"):
        text = sample.context[sample.context.rindex("Memorize and track") :]
        value = re.search(r"assigned the value (\d{5}) in", sample.question)[1]
        links = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", text)
        assert links[0] == (sample.references[0], value)
        assert [name for name, _ in links] == list(sample.references)
        assert [source for _, source in links[1:]] == list(sample.references[:-1])
        # Distinct places: noise stands between any two links.
        assert not re.search(r"VAR [A-Z]{5} = \d+ +VAR|VAR [A-Z]{5} = VAR [A-Z]{5} +VAR", text)
        # As RULER spells it.
        assert f"5 variables are assgined the value {value}, they are: " in sample.answer_prefix


def test_the_chains_example_is_answered_and_has_names_of_three_letters():
    sample = run("ruler-vt", n=1)[0]
    example = sample.context[: sample.context.rindex("Memorize and track")]
    names = re.findall(r"VAR ([A-Z]{3}) =", example)
    assert len(names) == 5
    assert example.endswith(f"they are: {' '.join(names)}\n\n")
    assert count(example) <= 520


@pytest.mark.parametrize(("length", "often", "seldom"), [(1024, 6, 1), (4096, 30, 3)])
def test_ten_words_stand_more_often_than_all_others(length, often, seldom):
    for sample in run("ruler-cwe", length=length):
        entries = re.findall(r"(\d+)\. (\S+)", sample.context[sample.context.rindex("\n1. ") :])
        assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
        times = Counter(word for _, word in entries)
        assert {word for word, n in times.items() if n == often} == set(sample.references)
        assert set(times.values()) == {often, seldom}
        assert len(sample.references) == 10


def test_the_lists_example_is_answered():
    example, answer = run("ruler-cwe", n=1)[0].context.split("in the list are: ")
    times = Counter(re.findall(r"\d+\. (\S+)", example))
    common = [word for word, n in times.items() if n == 3]
    assert answer.startswith("1. ")
    assert set(re.findall(r"\d+\. (\S+)", answer.split("\n")[0])) == set(common)


def test_words_are_followed_by_pairs_where_the_lists_end():
    n = len({*read_words("noun"), *read_words("adjective"), *read_words("verb")})
    assert n > 8000
    words = draw_vocabulary(n + 50, random.Random(0))
    assert len(set(words)) == n + 50


@pytest.mark.parametrize("length", [512, 1024, 4096])
def test_frequencies_fall_off_and_the_answer_is_unique(length):
    for sample in run("ruler-fwe", length=length):
        text = sample.context.split("coded words. ")[1]
        ranks = Counter(text.split()).most_common()
        assert ranks[0][0] == "..."
        assert [word for word, _ in ranks[1:4]] == list(sample.references)
        assert ranks[3][1] > ranks[4][1]
        # n / (zeta(2) k^2): ranks 2 and 4 stand as 4 to 1
        assert 3.5 <= ranks[1][1] / ranks[3][1] <= 5.5
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranks[1:])


def test_questions_to_the_manual_have_certain_answers():
    for n_hops in (1, 2):
        asked = ask_manual(n_hops)
        assert len(asked.questions) > 40
        for question in asked.questions:
            words = re.search(r'words "(.*)"\?$', question.text)[1]
            holders = [text for text in asked.documents if words in " ".join(text.split())]
            assert len(holders) == 1
            assert holders[0] == asked.documents[question.own[0]]
            name = holders[0].split("\n")[0]
            if n_hops == 1:
                assert question.answers == (name,)
            else:
                contents = asked.documents[question.own[1]].split("\n")[1].split(", ")
                assert contents[contents.index(name) + 1] == question.answers[0]


def test_questions_come_with_their_documents_and_others():
    for name in ("ruler-qa_1", "ruler-qa_2"):
        sample = run(name, n=1, length=3000)[0]
        numbers = [int(each) for each in re.findall(r"^Document (\d+):$", sample.context, re.M)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 10
        assert sample.extra["source"] == "manual"


def test_documents_repeat_where_the_text_is_still_too_short(tmp_path):
    write_squad(tmp_path)
    sample = run("ruler-qa_1", n=1, length=3000, data=tmp_path)[0]
    assert sample.context.count("Rome is old.") > 20
    assert 2900 <= sample.count_tokens(count) <= 3000


def write_squad(folder):
    def paragraph(text, *asked):
        qas = [
            {"question": q, "answers": [{"text": a} for a in answers], "is_impossible": not answers}
            for q, answers in asked
        ]
        return {"context": text, "qas": qas}

    article = [
        paragraph("Paris is in France.", ("Where is Paris?", ["France", "in France", "France"])),
        paragraph("Rome is old.", ("Why is Rome?", [])),
    ]
    path = folder / "ruler/squad.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": [{"paragraphs": article}]}), encoding="utf-8")
    return path


def test_squad_is_read_without_impossible_questions(tmp_path):
    path = write_squad(tmp_path)
    for sample in run("ruler-qa_1", data=tmp_path):
        assert sample.question.endswith("Question: Where is Paris?")
        assert sample.references == ("France", "in France")
        assert sample.context.count("Paris is in France.") == 1
        assert sample.extra["source"] == str(path)


def test_hotpotqa_keeps_its_documents_together(tmp_path):
    asked = [
        {
            "question": f"Q{i}?",
            "answer": f"A{i}",
            "context": [[f"T{i}", ["One. ", f"A{i}."]], ["U", ["x"]]],
        }
        for i in range(3)
    ]
    path = tmp_path / "ruler/hotpotqa.json"
    path.parent.mkdir()
    path.write_text(json.dumps(asked), encoding="utf-8")
    samples = run("ruler-qa_2", data=tmp_path, length=300)
    assert sorted(sample.references for sample in samples) == [("A0",), ("A1",), ("A2",)]
    for sample in samples:
        i = sample.references[0][1]
        assert f":\nT{i}\nOne. A{i}." in sample.context
        assert ":\nU\nx" in sample.context


def test_a_question_whose_documents_are_all_there_are_is_left_out(tmp_path):
    """The first question alone was looked at; a later one ended in a division by zero."""
    own = [["T", ["A0."]]]
    asked = [
        {"question": "Q0?", "answer": "A0", "context": own},
        {"question": "Q1?", "answer": "A1", "context": [*own, ["U", ["A1."]]]},
    ]
    path = tmp_path / "ruler/hotpotqa.json"
    path.parent.mkdir()
    path.write_text(json.dumps(asked), encoding="utf-8")
    samples = run("ruler-qa_2", data=tmp_path, length=300)
    assert {sample.references for sample in samples} == {("A0",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data":\n [', r"squad.json:2 is not JSON: "),
        ("[" * 100_000, r"squad.json cannot be read as JSON: "),
        (
            '{"data": [{"paragraphs": [{}]}]}',
            r"squad.json is not of SQuAD's form: KeyError\('context'\)",
        ),
        ("[]", r"squad.json is not of SQuAD's form: TypeError"),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "y", "answers": [{"text": 3}]}]}]}]}',
            r"squad.json is not of SQuAD's form: AttributeError",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "y", "answers": [{"text": " "}]}]},'
            ' {"context": "z", "qas": []}]}]}',
            r"squad.json holds no question that has both",
        ),
        (
            '{"data": []}',
            r"squad.json holds no question that has both an answer and other documents",
        ),
    ],
)
def test_broken_questions_are_one_line(tmp_path, text, message):
    path = tmp_path / "ruler/squad.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        run("ruler-qa_1", data=tmp_path)


def test_questions_that_are_no_text_are_one_line(tmp_path):
    path = tmp_path / "ruler/hotpotqa.json"
    path.parent.mkdir()
    path.write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match=r"hotpotqa.json is not UTF-8 text: offset 2"):
        run("ruler-qa_2", data=tmp_path)


def test_a_manual_without_definitions_is_refused(monkeypatch):
    name = "restkv_local.evaluation.tasks.manual_questions.shipped_topics"
    monkeypatch.setattr(name, lambda: {"a": "text"})
    with pytest.raises(InputError, match="holds 0 definitions, too few"):
        ask_manual.__wrapped__(1)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_samples_of_both_forms_are_split_alike(tmp_path, name):
    """What the generators made, written as RULER writes it, comes back in the same parts."""
    short = name.removeprefix("ruler-")
    made = run(name, n=2)
    records = [
        # RULER writes where the answer stands in the text, which may be the same twice.
        {"index": 7, "input": made[0].text, "outputs": list(made[0].references), "length": 9},
        {
            "index": 7,
            "input": made[1].context + made[1].question,
            "outputs": list(made[1].references),
            "answer_prefix": made[1].answer_prefix,
        },
        {
            "index": 7,
            "input": made[1].context + made[1].question,
            "outputs": list(made[1].references),
            "gen_prefix": made[1].answer_prefix.strip(),
        },
    ]
    path = write_jsonl(tmp_path / "ruler" / "2048" / short / "validation.jsonl", *records)
    samples = run(name, n=None, data=tmp_path)
    assert len({sample.id for sample in samples}) == 3
    for sample, original in zip(samples, [*made, made[1]], strict=True):
        assert (sample.context, sample.question) == (original.context, original.question)
        assert sample.answer_prefix.rstrip() == original.answer_prefix.rstrip()
        assert (sample.references, sample.metric) == (original.references, original.metric)
        assert sample.max_new_tokens == original.max_new_tokens
        assert sample.extra["source"] == str(path)


def test_recorded_samples_that_are_of_another_task_are_refused(tmp_path):
    path = tmp_path / "ruler/2048/vt/validation.jsonl"
    write_jsonl(path, {"input": "What is the special magic number for x?", "outputs": ["1"]})
    with pytest.raises(InputError, match=r"validation.jsonl: sample 1 is none of vt"):
        run("ruler-vt", data=tmp_path)


def test_a_recorded_sample_that_any_answer_would_satisfy_is_refused(tmp_path):
    path = tmp_path / "ruler/2048/vt/validation.jsonl"
    asked = "Question: Find all variables that are assigned the value 1."
    write_jsonl(path, {"input": asked, "outputs": [""]})
    with pytest.raises(InputError, match=r"validation.jsonl: sample 1 has no answer"):
        run("ruler-vt", data=tmp_path)
