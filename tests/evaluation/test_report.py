"""Tables and pictures of records: means, intervals and spreads, as by hand."""

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restkv_local.errors import ConfigError, InputError
from restkv_local.evaluation.grid import FULL, Cell
from restkv_local.evaluation.log import Item, LogContent, Record
from restkv_local.evaluation.plots import check_folder, draw_records
from restkv_local.evaluation.report import write_report
from restkv_local.evaluation.summary import (
    bounded_mean,
    family_mean,
    kept_share,
    normal_mean,
    split_sections,
    wilson,
)

CELL = Cell("restkv", "uniform", "25%", "bounded", "auto")
KV = {"seen": 100, "kept": 25, "budget": 25}
CONDITIONS = {"model": "m", "quantisation": "F16", "fingerprint": "f" * 64, "n_obs": 32}


def make_record(cell=CELL, scores=None, kv=None, **fields):
    item = {
        "task": "niah", "family": "needles", "id": "0", "length": 400, "seed": 42,
        "question": "aware", "prompt_hash": "h",
    }  # fmt: skip
    item |= {name: fields.pop(name) for name in tuple(fields) if name in item}
    scores = {"substring": 1.0} if scores is None else scores
    return Record(item=Item(**item), cell=cell, scores=scores, kv=kv or KV, **fields)


def ruler(task, score, **fields):
    return make_record(task=f"ruler-{task}", family="ruler", scores={"match_all": score}, **fields)


def table(records, **conditions):
    """Return the rows of the only table, without rule and n columns, by the name of the cell's policy."""
    lines = write_report([LogContent({**CONDITIONS, **conditions}, records=records)]).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return rows[0][7:], {row[0]: row[5:] for row in rows[1:]}


# Numbers


@given(st.floats(0, 1), st.integers(1, 500))
def test_an_interval_holds_its_mean_within_the_bounds(share, n):
    mean = wilson(share, n)
    assert 0 <= mean.low <= mean.value <= mean.high <= 1
    assert wilson(share, 4 * n).high - wilson(share, 4 * n).low < mean.high - mean.low


def test_wilsons_interval_is_the_known_one():
    """Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    mean = bounded_mean([1.0] * 81 + [0.0] * 182, 1)
    assert (round(mean.low, 4), round(mean.high, 4)) == (0.2553, 0.3662)
    assert round(wilson(0, 20).high, 4) == 0.1611


def test_a_single_value_has_no_interval():
    assert normal_mean([2.0]).high == math.inf
    mean = normal_mean([1.0, 3.0])
    assert (mean.value, mean.high - mean.value) == (2, pytest.approx(12.706))


@pytest.mark.parametrize(
    ("n", "t"), [(3, 4.303), (11, 2.228), (12, 2.201), (31, 2.042), (121, 1.980)]
)
def test_few_values_have_students_interval(n, t):
    """1.96 standard errors held 82 % at three values."""
    mean = normal_mean([float(i) for i in range(n)])
    error = statistics.stdev(range(n)) / math.sqrt(n)
    assert (mean.high - mean.value) / error == pytest.approx(t, abs=1e-3)


def test_every_task_of_a_family_counts_alike():
    records = [ruler("vt", 1.0), ruler("vt", 0.5, id="1"), ruler("cwe", 0.25)]
    whole = family_mean(records)
    assert whole.mean.value == pytest.approx(100 * (0.75 + 0.25) / 2)
    assert whole.over_tasks == pytest.approx(statistics.stdev([75, 25]))
    assert whole.over_seeds is None
    assert family_mean(records[:1]).over_tasks is None


def test_seeds_are_compared_by_the_tasks_that_all_of_them_have():
    """A seed that was stopped seemed to differ by the tasks that it lacked."""
    first = [ruler("vt", 0.5), ruler("cwe", 0.25)]
    assert family_mean([*first, ruler("vt", 0.3, seed=43)]).over_seeds == pytest.approx(
        statistics.stdev([50, 30])
    )
    assert family_mean([first[0], ruler("cwe", 0.25, seed=43)]).over_seeds is None


def test_a_spread_is_on_the_scale_of_its_score():
    """It was in percent beside scores out of 10."""
    records = [
        make_record(scores={"rouge_1": score}, seed=seed) for seed, score in ((1, 0.7), (2, 0.9))
    ]
    head, rows = table(records)
    assert head == ["niah", "sd over seeds"]
    assert rows["restkv"][2].startswith("8.0 (")
    assert rows["restkv"][3] == "1.4"


def test_rows_kept_are_those_of_the_report():
    assert kept_share([make_record(), make_record(kv={"seen": 100, "budget": 75})]) == 0.5


# Tables


def test_tasks_and_metrics_are_columns_and_cells_are_rows():
    records = [
        make_record(scores={"substring": 1.0, "rouge_1": 0.5}),
        make_record(id="1", scores={"substring": 0.0, "rouge_1": 0.25}),
        make_record(cell=FULL, scores={"substring": 1.0, "rouge_1": 1.0}, kv=KV | {"kept": 100}),
    ]
    head, rows = table(records)
    assert head == ["niah substring", "niah rouge_1"]
    assert rows["restkv"] == ["25%", "2", "50 (9-91)", "3.8 (0.6-8.6)"]
    assert rows["full"][:2] == ["100%", "1"]


def test_a_family_has_a_mean_and_spreads():
    records = [ruler(t, s, seed=seed) for t in ("vt", "cwe") for seed, s in ((1, 1.0), (2, 0.5))]
    head, rows = table(records)
    assert head == ["vt", "cwe", "mean", "sd over tasks", "sd over seeds"]
    assert rows["restkv"][2] == "75 (20-97)"
    assert rows["restkv"][4:] == ["75.0 (30.1-95.4)", "0.0", "35.4"]


def test_a_column_that_a_cell_lacks_is_empty():
    records = [ruler("vt", 1.0), ruler("cwe", 1.0), ruler("vt", 1.0, cell=FULL)]
    head, rows = table(records)
    assert rows["full"][head.index("cwe") + 2] == "-"


def test_lengths_and_ways_of_asking_stand_apart():
    records = [make_record(), make_record(length=800), make_record(question="unknown")]
    titles = [section.title for section in split_sections(records)]
    assert titles == [
        "needles, 400 tokens, question aware",
        "needles, 800 tokens, question aware",
        "needles, 400 tokens, question unknown",
    ]


def test_rules_stand_together_whatever_was_measured_first():
    cells = [Cell(p, "uniform", b, "full", "auto") for b in ("10%", "50%") for p in ("a", "b")]
    (section,) = split_sections([make_record(cell=cell) for cell in cells])
    assert [(c.policy, c.budget) for c in section.cells] == [
        ("a", "10%"), ("a", "50%"), ("b", "10%"), ("b", "50%"),
    ]  # fmt: skip


def predicted(nll, cell=CELL, **fields):
    scores = {"nll": nll, **fields}
    return make_record(cell=cell, task="ppl", family="ppl", question="", scores=scores, id=str(nll))


def test_perplexity_is_that_of_the_mean():
    head, rows = table([predicted(1.0, kl=0.1, same_top=0.5), predicted(3.0, kl=0.3, same_top=0.7)])
    assert head == ["perplexity", "KL to full, nats", "same top token, %"]
    assert rows["restkv"][2].startswith("7.39 (0.00-")
    assert rows["restkv"][3:] == ["0.2000 (-1.0706-1.4706)", "60.0 (-67.1-187.1)"]
    assert table([predicted(1e6)])[1]["restkv"][2:] == ["inf", "-", "-"]


def test_texts_that_went_on_for_other_lengths_are_tables_of_their_own():
    """They were averaged in one line, as if more samples of the same."""
    short, long = (
        [replace(predicted(nll), tokens={"after": n}) for nll in (1.0, 3.0)] for n in (8, 1128)
    )
    (section,) = split_sections(short)
    assert section.title == "ppl, 400 tokens"
    sections = split_sections([*short, *long])
    titles = [section.title for section in sections]
    assert titles == ["ppl, 400 tokens, scored 8", "ppl, 400 tokens, scored 1,128"]
    assert [len(section.records) for section in sections] == [2, 2]


def rebuilt(errors, cell=CELL, **fields):
    extra = {"layers": [3, 7], "errors": errors, "projected": True}
    scores = {"error": statistics.fmean(errors)}
    names = {"task": "reconstruction", "family": "reconstruction", "question": "", **fields}
    return make_record(cell=cell, scores=scores, extra=extra, **names)


def test_the_worst_layer_is_named():
    head, rows = table([rebuilt([0.1, 0.3]), rebuilt([0.3, 0.5], id="1")])
    assert head == ["error, mean of layers", "worst layer"]
    assert rows["restkv"][2:] == ["0.300 (-0.971-1.571)", "0.400 in 7"]


def test_logs_of_equal_conditions_are_one_and_others_stand_apart():
    first = LogContent(CONDITIONS, records=[make_record()])
    again = LogContent(CONDITIONS, records=[make_record(), make_record(id="1")])
    other = LogContent({**CONDITIONS, "n_obs": 8}, records=[make_record()])
    text = write_report([first, again, other])
    assert text.count("## m, F16\n") == 2
    assert text.count("### needles") == 2
    assert "n_obs=8" in text
    changed = LogContent(CONDITIONS, records=[make_record()], codes={"policy mine": ["0123456789"]})
    assert "; policy mine is 01234567\n" in write_report([first, changed])
    assert "| 25% | 2 | 100 (34-100) |" in text


# Pictures


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("matplotlib")
    return tmp_path


def test_every_kind_of_record_has_its_picture(folder):
    other = Cell("snapkv", "uniform", "50%", "full", "compact")
    records = [
        *(
            make_record(cell=cell, length=length, id=str(depth), extra={"depth": depth})
            for cell in (FULL, CELL, other)
            for length in (400, 800)
            for depth in (0.0, 50.0)
        ),
        ruler("vt", 0.5),
        predicted(1.0, kl=0.1, same_top=0.5),
        predicted(1.0, cell=FULL, kl=0.0, same_top=1.0),
        predicted(2.0, length=800),
        *(rebuilt([0.1, 0.3], cell=cell) for cell in (CELL, other)),
    ]
    paths = draw_records(records, folder)
    assert [path.name for path in paths] == [
        "scores.png", "niah-aware-depths.png", "ppl.png", "reconstruction.png",
    ]  # fmt: skip
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_what_there_is_nothing_for_is_not_drawn(folder):
    assert [p.name for p in draw_records([predicted(1.0)], folder)] == []
    assert [p.name for p in draw_records([rebuilt([0.1, 0.2])], folder)] == ["reconstruction.png"]
    assert draw_records([], folder) == []


def test_a_folder_is_made_and_what_is_none_is_one_line(folder, monkeypatch):
    check_folder(folder / "new")
    check_folder(folder / "new")
    assert (folder / "new").is_dir()
    (folder / "file").touch()
    for path in (folder / "file", folder / "none" / "new"):
        with pytest.raises(InputError, match="name a folder for the pictures"):
            check_folder(path)
    (folder / "scores.png").mkdir()
    with pytest.raises(InputError, match=r"scores\.png: "):
        draw_records([make_record()], folder)
    monkeypatch.setattr("restkv_local.optional.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'restkv-local\[plot\]'"):
        check_folder(folder)


def test_a_metric_of_another_version_is_shown_as_it_is():
    record = make_record(id="1", scores={"unheard-of": 0.5})
    assert "| 0.5" in write_report([LogContent({}, [], [record])])


def test_a_table_says_what_its_scores_are():
    records = [ruler("vt", 0.5), ruler("qa_1", 1.0)]
    text = write_report([LogContent(CONDITIONS, records=records)])
    assert text.endswith("match_all: share of the references in the answer, out of 100")


def test_a_policy_that_only_the_log_knows_has_its_row():
    """A user's own, registered by a script that is not running now."""
    cell = Cell("mine", "uniform", "25%", "full", "auto")
    assert cell.evicts
    _, rows = table([ruler("vt", 1.0, cell=cell)])
    assert list(rows) == ["mine"]
