"""A run that was stopped goes on; a log that does not belong to it is refused in one line."""

import json
import os
from pathlib import Path

import pytest

from restkv_local.bench.log import BenchLog, Sample
from restkv_local.bench.report import BenchReport
from restkv_local.errors import InputError

METADATA = {"model": "m", "n_threads": 2, "devices": ("cpu",)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bench.jsonl"


def write(path, *samples):
    log = BenchLog(path, METADATA)
    for sample in samples:
        log.add(sample)
    return log


def refused(path, metadata=METADATA):
    with pytest.raises(InputError) as error:
        BenchLog(path, metadata)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_added_is_there_again(path):
    first = Sample("full", 512, 0, "abc", {"pp_s": 1.5, "reading": {"decode": 1.0}})
    second = Sample("restkv 256", 512, 1, None, None, "no memory")
    write(path, first)
    log = write(path, second)
    assert log.samples == BenchLog(path, METADATA).samples == [first, second]
    assert len(path.read_text().splitlines()) == 3


def test_without_a_file_nothing_is_kept():
    log = BenchLog(None, METADATA)
    log.add(Sample("full", 512, 0))
    assert len(log.samples) == 1


def test_an_empty_file_is_begun(path):
    path.touch()
    write(path, Sample("full", 512, 0))
    assert len(BenchLog(path, METADATA).samples) == 1


@pytest.mark.parametrize("n_bytes", [1, 20, 60])
def test_a_line_that_was_cut_is_measured_again(path, n_bytes):
    write(path, Sample("full", 512, 0), Sample("full", 512, 1))
    path.write_bytes(path.read_bytes()[:-n_bytes])
    log = write(path, Sample("full", 512, 2))
    assert [sample.repetition for sample in log.samples] == [0, 2]
    assert BenchLog(path, METADATA).samples == log.samples


def test_another_machine_or_setting_is_refused_by_name(path):
    write(path, Sample("full", 512, 0))
    text = refused(path, METADATA | {"n_threads": 1})
    assert "was begun with n_threads=2, this run has n_threads=1" in text
    assert text.endswith("name another log")


@pytest.mark.parametrize(
    "text",
    ["hello\n", "[]\n", '{"kind": "other"}\n', '{"kind": "restkv bench, version 1"}\n', "\n"],
)
def test_another_file_is_refused(path, text):
    path.write_text(text)
    assert "is no log of restkv bench" in refused(path)
    assert path.read_text() == text


@pytest.mark.parametrize("line", ["{", "[]", '{"cache": "full"}', '{"cache": 1, "more": 2}', "3"])
def test_a_damaged_line_is_named(path, line):
    write(path, Sample("full", 512, 0))
    with path.open("a") as stream:
        stream.write(
            line + "\n" + json.dumps({"cache": "full", "depth": 1, "repetition": 0}) + "\n"
        )
    assert "bench.jsonl, line 3 is no sample" in refused(path)


def test_what_is_no_file_or_no_text_is_one_line(tmp_path, path):
    assert "directory" in refused(tmp_path).lower()
    assert refused(tmp_path / "none" / "b.jsonl").endswith("name another log")
    path.write_bytes(b"\xff\xfe\n")
    assert "is no log of restkv bench" in refused(path)


def test_a_log_that_goes_away_under_a_run_is_one_line(path):
    log = write(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="name another log"):
        log.add(Sample("full", 512, 0))


@pytest.mark.parametrize(
    "change",
    [{"depth": "a"}, {"cache": ["full"]}, {"result": []}, {"error": 3}, {"options": None}],
    ids=str,
)
def test_a_line_of_other_types_is_named(path, change):
    write(path, Sample("full", 512, 0))
    with path.open("a") as stream:
        stream.write(json.dumps({"cache": "full", "depth": 1, "repetition": 0} | change) + "\n")
    assert "line 3 is no sample" in refused(path)


@pytest.mark.parametrize("result", [{}, {"pp_s": "a"}])
def test_a_log_without_what_a_table_shows_is_one_line(path, result):
    write(path, Sample("full", 512, 0, None, result))
    with pytest.raises(InputError, match="does not hold what a table shows"):
        BenchReport.from_log(path)


def test_a_device_is_no_log():
    if not os.path.exists("/dev/full"):
        pytest.skip("no such device")
    assert "is a device or a pipe" in refused(Path("/dev/full"))
