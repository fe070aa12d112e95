"""What is printed and drawn."""

import csv
import io
import json

import pytest

from restkv_local.bench.caches import Cache
from restkv_local.bench.log import Sample
from restkv_local.bench.plot import draw_bench
from restkv_local.bench.report import BenchReport
from restkv_local.errors import InputError

METADATA = {
    "model": "m", "architecture": "llama", "quantisation": "Q4_0", "model_bytes": 98 << 20,
    "version": "1", "llama_cpp": "pin, ABI 2", "system": "Linux x86_64", "devices": ["some CPU"],
    "cpu_count": 4, "memory_gib": 16, "n_threads": 2, "n_prompt": 512, "n_gen": 128,
}  # fmt: skip
CACHES = [Cache("full", {"policy": "full"}), Cache("restkv 256", {"budget": 256})]


@pytest.fixture
def report(samples):
    failed = Sample("full", 9000, 0, "def", None, "no memory")
    return BenchReport(METADATA, CACHES, [*samples, failed])


def test_the_table_has_a_row_for_each_test_and_a_column_for_each_cache(report):
    text = report.to_markdown()
    lines = text.splitlines()
    assert lines[0] == "- model: m (llama, Q4_0, 98 MiB)"
    assert "2 of 4 cores, 16 GiB" in lines[1]
    assert "commit abc, def" in lines[2]
    assert "| test | unit | full | restkv 256 |" in lines
    assert "| pp512 @ d1000 | t/s | 512.0 ±170.7 | 1,024.0 ±341.3 (2.00) |" in lines
    assert "| peak memory @ d4000 | MiB | 200 | 200 (1.00) |" in lines
    assert "| score @ d4000 | ms each | - | 10.0 |" in lines
    assert "Median of 3 rounds ± median distance to it" in text
    assert lines[-1] == "- not measured: full @ d9000: no memory"
    assert "goes, ms" not in text


def test_what_is_left_of_the_speed_has_a_table_where_there_are_depths(report, samples):
    # Rounds grow slower alike; 1,000 rows cost 20 ms a token and 4,000 rows 50, 500 rows 15 at both depths.
    text = report.to_markdown()
    assert "| speed left, same round | full | restkv 256 |" in text
    assert "| pp512 @ d4000 / d1000 | 1.00 | 1.00 |" in text
    assert "| tg128 @ d4000 / d1000 | 0.40 | 1.00 |" in text
    shallow = [sample for sample in samples if sample.depth == 1000]
    assert "speed left" not in BenchReport(METADATA, CACHES, shallow).to_markdown()


def test_every_line_of_a_table_is_as_wide_as_its_head(report):
    for table in report.to_markdown(with_profile=True).split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_the_profile_says_where_time_goes_and_what_could_be_gained(report):
    text = report.to_markdown(with_profile=True)
    assert "| where ttft @ d4000 goes, ms | full | restkv 256 |" in text
    assert "| where tg128 @ d4000 goes, ms | full | restkv 256 |" in text
    assert "| decode | 500 (50.0%) | 500 (50.0%) |" in text
    # 10 ms and 10 ms a thousand rows: 4,000 rows cost 50 ms, 500 rows 15.
    assert "| restkv 256 @ d4000 | 80% | 3.33 x | 3.33 x | 100% |" in text


@pytest.mark.parametrize("kind", ["type_k", "type_v"])
def test_columns_that_store_rows_otherwise_have_no_ceiling(samples, kind):
    caches = [CACHES[0], Cache("restkv 256", {kind: "q8_0"})]
    assert BenchReport(METADATA, caches, samples).ceilings() == []


def test_csv_has_a_line_for_each_figure(report):
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == len(report.figures())
    first = rows[0]
    assert (first["cache"], first["test"], first["depth"]) == ("full", "pp512", "1000")
    assert (float(first["median"]), float(first["ratio"]), first["n"]) == (512, 1, "3")


def test_json_has_everything(report):
    found = json.loads(json.dumps(report.to_json()))
    assert found["metadata"]["commits"] == ["abc", "def"]
    assert len(found["samples"]) == 13
    assert len(found["figures"]) == len(report.figures())
    assert found["errors"] == ["full @ d9000: no memory"]
    assert found["profile"]["reading"]["restkv 256"]["decode"] == 0.5
    assert found["speeds_left"][-1] == {
        "test": "tg128", "cache": "restkv 256", "depth": 4000, "base": 1000, "median": 1, "mad": 0, "n": 3,
    }  # fmt: skip
    assert found["ceilings"][0]["cache"] == "restkv 256"
    assert found["caches"] == [{"name": c.name, "options": dict(c.options)} for c in CACHES]


def test_one_round_has_no_noise_to_show(samples):
    once = [sample for sample in samples if sample.repetition == 0]
    text = BenchReport(METADATA, CACHES, once).to_markdown()
    assert "Median of 1 round ±" in text
    assert "| pp512 @ d1000 | t/s | 1,024.0 | 2,048.0 (2.00) |" in text


def test_a_column_without_the_greatest_depth_is_not_profiled_there(samples):
    some = [s for s in samples if s.cache == "full" or s.depth == 1000]
    text = BenchReport(METADATA, CACHES, some).to_markdown(with_profile=True)
    assert "| where ttft @ d4000 goes, ms | full |\n" in text


def test_unequal_numbers_of_rounds_are_said(samples):
    some = [s for s in samples if s.repetition == 0 or s.depth == 1000]
    assert "Median of 1 to 3 rounds" in BenchReport(METADATA, CACHES, some).to_markdown()


def test_a_run_of_failures_still_says_why():
    failed = [Sample("full", 1, 0, None, None, "no memory")]
    report = BenchReport(METADATA, CACHES, failed)
    assert report.to_markdown(with_profile=True).endswith("- not measured: full @ d1: no memory")
    assert report.to_csv().count("\n") == 1


@pytest.mark.parametrize("n_columns", [2, 23])
def test_a_picture_is_drawn(tmp_path, samples, n_columns):
    pytest.importorskip("matplotlib")
    more = [Cache(f"restkv {i}") for i in range(n_columns - 2)]
    path = tmp_path / "bench.png"
    draw_bench(BenchReport(METADATA, [*CACHES, *more], samples), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_depth_zero_alone_can_be_drawn(tmp_path, result):
    pytest.importorskip("matplotlib")
    samples = [Sample("full", 0, 0, None, result(ttft_s=None, events=0, peak_bytes=None))]
    draw_bench(BenchReport(METADATA, CACHES, samples), tmp_path / "b.png")


def test_a_models_name_is_no_formula(tmp_path, samples):
    pytest.importorskip("matplotlib")
    metadata = {**METADATA, "model": r"a $\frac$ b"}
    draw_bench(BenchReport(metadata, CACHES, samples), tmp_path / "b.png")
    assert (tmp_path / "b.png").exists()


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, report):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match=r"b\.png: "):
        draw_bench(report, tmp_path / "none" / "b.png")
