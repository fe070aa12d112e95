"""A log is what was added, refuses what it cannot be compared with, and names what is damaged."""

import json

import pytest

from restkv_local.errors import InputError
from restkv_local.evaluation.grid import FULL, Cell
from restkv_local.evaluation.log import EvalLog, Item, Record, read_log
from tests.evaluation.test_report import make_record

CONDITIONS = {"model": "m", "python": "3.11.7", "haystack": None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "eval.jsonl"


def write(path, *records, run=None):
    log = EvalLog(path, CONDITIONS, run or {"started": "now"})
    for record in records:
        log.add(record)
    return log


def refused(path, conditions=CONDITIONS):
    with pytest.raises(InputError) as error:
        EvalLog(path, conditions, {})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_added_is_there_again(path):
    first = make_record(id="1", prediction="é\n\u2028", references=["a"], extra={"depth": 5.0})
    second = make_record(id="2", cell=FULL)
    write(path, first)
    log = write(path, second, run={"started": "later"})
    assert list(log.records.values()) == [first, second]
    content = read_log(path)
    assert (content.records, content.was_cut) == ([first, second], False)
    assert [run["started"] for run in content.runs] == ["now", "later"]
    assert content.conditions == CONDITIONS


def test_a_run_that_adds_nothing_leaves_no_line(path):
    write(path, make_record())
    before = path.read_bytes()
    write(path)
    assert path.read_bytes() == before


def test_other_states_of_the_code_are_known(path):
    write(path, make_record(id="1"), run={"commit": "b"})
    write(path, make_record(id="2"), run={"commit": "a"})
    write(path, make_record(id="3"), run={"commit": None})
    assert EvalLog(path, CONDITIONS, {"commit": "c"}).commits == ["a", "b"]
    assert EvalLog(path, CONDITIONS, {"commit": "a"}).commits == ["b"]


def test_items_and_cells_that_differ_anywhere_are_different(path):
    record = make_record()
    changes = {"task": "t", "family": "f", "id": "9", "length": 9, "seed": 9, "question": "unknown"}
    changed = [make_record(**{name: value}) for name, value in changes.items()]
    changed.append(make_record(prompt_hash="other"))
    fields = {name: getattr(record.cell, name) for name in Cell.__slots__}
    changed += [make_record(cell=Cell(**{**fields, name: "x"})) for name in fields]
    keys = {record.key, *(each.key for each in changed)}
    assert len(keys) == 1 + len(changed) == 1 + len(Item.__slots__) + len(Cell.__slots__)


def test_an_item_that_was_another_one_is_refused(path):
    write(path, make_record(id="1", prompt_hash="then"))
    log = EvalLog(path, CONDITIONS, {})
    with pytest.raises(InputError) as error:
        log.check(make_record(id="1", prompt_hash="now").item)
    assert "eval.jsonl has scores of niah 1 with another prompt" in str(error.value)
    assert str(error.value).endswith("name another log")
    assert "\n" not in str(error.value)
    for known in ({"id": "1", "prompt_hash": "then"}, {"id": "2"}, {"id": "1", "seed": 9}):
        log.check(make_record(**known).item)


def test_two_items_of_one_name_in_a_file_are_both_known(path):
    first, second = (make_record(prompt_hash=each) for each in "ab")
    log = write(path, first)
    log.check(second.item)
    log.add(second)
    log = EvalLog(path, CONDITIONS, {})
    log.check(first.item)
    log.check(second.item)


def test_other_conditions_are_refused_by_name(path):
    write(path, make_record())
    text = refused(path, CONDITIONS | {"python": "3.12.0"})
    assert "was begun with python='3.11.7', this run has python='3.12.0'" in text
    assert text.endswith("name another log")


def test_a_log_that_holds_nothing_yet_takes_other_conditions(path):
    write(path)
    EvalLog(path, CONDITIONS | {"haystack": "book"}, {}).add(make_record())
    assert read_log(path).conditions["haystack"] == "book"


MINE = Cell("mine", "uniform", "25%", "full", "auto")


def begin(path, code):
    return EvalLog(path, CONDITIONS, {"rules": {"policy mine": code}})


def test_scores_of_a_rule_whose_code_has_changed_are_refused(path):
    begin(path, "a").add(make_record(cell=MINE))
    begin(path, "a")
    write(path, make_record(id="other"))
    with pytest.raises(InputError, match="has scores of policy mine by another state of its file"):
        begin(path, "b")
    assert read_log(path).codes == {"policy mine": ["a"]}


def test_a_rule_that_has_no_score_yet_may_change(path):
    """As one does that fails, and is mended."""
    begin(path, "a").add(make_record(id="first", cell=FULL))
    begin(path, "b").add(make_record(cell=MINE))
    assert read_log(path).codes == {"policy mine": ["b"]}
    with pytest.raises(InputError, match="policy mine"):
        begin(path, "a")


def test_scores_whose_code_nobody_noted_are_refused(path):
    write(path, make_record(cell=MINE))
    with pytest.raises(InputError, match="or by a version that did not tell"):
        begin(path, "a")


@pytest.mark.parametrize(
    "text",
    [
        "hello\n",
        "[]\n",
        '{"kind": "other"}\n',
        '{"kind": "restkv eval, version 1"}\n',
        "\n",
        "hello",
    ],
)
def test_another_file_is_refused_and_left_alone(path, text):
    path.write_text(text)
    assert "is no log of restkv eval" in refused(path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '{"task": "niah"}',
        '{"run": 3}',
        '{"run": {"rules": 3}}',
        "\x00",
        json.dumps({"scores": {"a": "x"}}),
    ],
)
def test_a_damaged_line_is_named(path, line):
    write(path, make_record(id="1"))
    with path.open("a") as stream:
        stream.write(f"{line}\n{json.dumps(make_record(id='2').to_json())}\n")
    assert "eval.jsonl, line 4 is no score" in refused(path)


def test_a_line_with_fields_too_many_is_named(path):
    write(path, make_record(id="1"))
    with path.open("a") as stream:
        stream.write(json.dumps(make_record(id="2").to_json() | {"more": 1}) + "\n")
    assert "line 4 is no score" in refused(path)


def test_what_is_no_file_is_one_line(tmp_path, path):
    assert "directory" in refused(tmp_path).lower()
    assert refused(tmp_path / "none" / "e.jsonl").endswith("name another log")
    with pytest.raises(InputError, match="No such file"):
        read_log(path)


def test_a_log_that_goes_away_under_a_run_is_one_line(path):
    log = write(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="name another log"):
        log.add(make_record())


def test_a_record_reads_what_it_wrote():
    record = make_record(prediction="x", extra={"layers": [0, 1], "errors": [0.5, 1.0]})
    line = json.loads(json.dumps(record.to_json()))
    assert list(line)[:4] == ["task", "family", "id", "length"]
    assert Record.from_json(line) == record


@pytest.mark.parametrize(
    "change",
    [
        {"kv": None},
        {"length": "abc"},
        {"tokens": {"prompt": "a"}},
        {"references": [3]},
        {"scores": {}},
        {"kv": {}},
        {"kv": {"seen": "9", "budget": 3}},
        {"kv": {"seen": 0, "budget": 3}},
        {"extra": {"depth": "deep"}},
        {"extra": {"layers": [0, 1], "errors": [0.5]}},
        {"extra": {"layers": 2}},
        {"cell": {**make_record(id="1").to_json()["cell"], "policy": ["x"]}},
    ],
    ids=str,
)
def test_a_line_of_other_types_is_named(path, change):
    write(path, make_record(id="1"))
    with path.open("a") as stream:
        stream.write(json.dumps(make_record(id="2").to_json() | change) + "\n")
    assert "line 4 is no score" in refused(path)


def test_a_thousand_brackets_are_no_log(path):
    path.write_text("[" * 100_000 + "\n{}\n")
    assert "is no log of restkv eval" in refused(path)
