"""A long text is read once; whatever happens to the folder, the answer is the same."""

import errno
import logging
import os

import numpy as np
import pytest

from restkv_local.config import Config
from restkv_local.errors import ConfigError, SessionFileError
from restkv_local.observe import QueryMoments
from restkv_local.policies.restkv import RestKV
from restkv_local.repetition import Repetition
from restkv_local.row_table import RowSnapshot
from restkv_local.sequence import Counters, Snapshot
from restkv_local.storage.reading_cache import MIN_TOKENS, Reading, ReadingCache, reading_key
from tests.session.conversation import MODEL, assert_same_cache, cache, prose, say, talk

OPTIONS = {"budget": 96, "n_predict": 16, "seed": 3, "temp": 0.8, "n_ubatch": 256}
BOOK = prose(600)
CACHE = "restkv_local.storage.reading_cache"


def reading(n_rows=100, seed=0):
    rng = np.random.default_rng(seed)
    moments = QueryMoments(7, rng.random((2, 9, 4)), rng.random((2, 9, 4, 4)))
    figures = {"sum": rng.random((2, 3, n_rows), np.float32)}
    positions, turned_to = rng.integers(0, 99, (2, 2, 3, n_rows)).astype(np.int32)
    rows = RowSnapshot(positions, turned_to, figures)
    counters = Counters(seen=200, events=3, score_ms=0.1)
    repetition = Repetition((1, 2), 64, [3, 4], [5])
    snapshot = Snapshot(rng.bytes(n_rows * 100), rows, counters, moments, repetition)
    return Reading(snapshot, rng.random(50, np.float32))


def test_a_reading_comes_back_whole(tmp_path):
    readings, one = ReadingCache(tmp_path / "new" / "folder"), reading()
    assert readings.load("k") is None
    readings.store("k", one)
    back = readings.load("k")
    np.testing.assert_array_equal(back.logits, one.logits)
    assert back.snapshot.state == one.snapshot.state
    assert back.snapshot.counters == one.snapshot.counters
    assert back.snapshot.repetition == one.snapshot.repetition
    np.testing.assert_array_equal(back.snapshot.rows.positions, one.snapshot.rows.positions)
    np.testing.assert_array_equal(back.snapshot.rows.turned_to, one.snapshot.rows.turned_to)
    np.testing.assert_array_equal(
        back.snapshot.rows.figures["sum"], one.snapshot.rows.figures["sum"]
    )
    np.testing.assert_array_equal(back.snapshot.moments.second, one.snapshot.moments.second)
    assert back.snapshot.moments.n == 7


def test_what_older_rules_read_is_read_again(monkeypatch):
    def key():
        return reading_key(
            fingerprint="f", library="l", config=Config(), tracks=(), made=(), tokens=(), guide=()
        )

    now = key()
    assert key() == now
    monkeypatch.setattr("restkv_local.storage.reading_cache.RULES", 1)
    assert key() != now


def test_the_least_recently_used_go_first(tmp_path):
    readings = ReadingCache(tmp_path, limit_bytes=70_000)
    for age, key in enumerate("abc"):
        readings.store(key, reading())
        os.utime(tmp_path / f"{key}.reading", (100 + age, 100 + age))
    assert readings.load("a")  # now the newest
    readings.store("d", reading())
    kept = {path.stem for path in tmp_path.iterdir()}
    assert "d" in kept
    assert "a" in kept
    assert "b" not in kept
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 70_000
    readings.store("e", reading(n_rows=5000))
    assert {path.stem for path in tmp_path.iterdir()} == kept


def test_the_limit_comes_from_the_environment(monkeypatch):
    assert ReadingCache.of_user().limit_bytes == 4 << 30
    monkeypatch.setenv("RESTKV_CACHE_LIMIT", "1.5MiB")
    assert ReadingCache.of_user().limit_bytes == 3 << 19
    monkeypatch.setenv("RESTKV_CACHE_LIMIT", "")
    assert ReadingCache.of_user().limit_bytes == 4 << 30


def test_a_limit_of_nothing_is_no_cache(monkeypatch):
    monkeypatch.setenv("RESTKV_CACHE_LIMIT", "0")
    assert ReadingCache.of_user() is None


@pytest.mark.parametrize("wrong", ["many", "4GB", "12", "5%", "0%"])
def test_a_limit_that_is_no_size_is_refused_by_its_name(monkeypatch, wrong):
    """It was refused as a budget, in rows or percent, which nobody had given."""
    monkeypatch.setenv("RESTKV_CACHE_LIMIT", wrong)
    with pytest.raises(ConfigError) as refusal:
        ReadingCache.of_user()
    assert str(refusal.value) == (
        f"RESTKV_CACHE_LIMIT must be a size in KiB, MiB or GiB, as in 512MiB or 4GiB; got {wrong!r}"
    )


def test_a_damaged_reading_is_removed_and_said(tmp_path, caplog):
    readings = ReadingCache(tmp_path)
    readings.store("k", reading())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    with caplog.at_level(logging.WARNING):
        assert readings.load("k") is None
    assert "a kept reading is removed, the text is read anew" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("pathlib.Path.stat", OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        ("zipfile.ZipFile.__init__", OSError(errno.EMFILE, "Too many open"), "Too many open"),
        ("zipfile.ZipFile.read", MemoryError(), "there is not enough memory"),
        (f"{CACHE}.unpack_snapshot", MemoryError(), "there is not enough memory"),
    ],
)
def test_a_reading_that_cannot_be_read_now_stays(
    tmp_path, monkeypatch, caplog, function, error, said
):
    """It was removed: what had taken minutes to read went with a moment's failure."""
    readings = ReadingCache(tmp_path)
    readings.store("k", reading())

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        assert readings.load("k") is None
    assert "a kept reading stays, the text is read anew" in caplog.text
    assert said in caplog.text
    assert readings.load("k") is not None


def test_another_texts_reading_is_not_taken(tmp_path, caplog):
    readings = ReadingCache(tmp_path)
    readings.store("k", reading())
    (tmp_path / "k.reading").rename(tmp_path / "l.reading")
    assert readings.load("l") is None
    assert "something else" in caplog.text


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    readings = ReadingCache(tmp_path / "file" / "folder")
    readings.store("k", reading())
    assert "a reading is not kept" in caplog.text
    assert readings.load("k") is None


def key(**changes):
    plain = {
        "fingerprint": "f", "library": "l", "config": Config(), "tracks": {"sum"},
        "made": (1, 2, 3), "tokens": [1, 2], "guide": [3],
    }  # fmt: skip
    return reading_key(**plain | changes)


def test_whatever_decides_a_row_decides_the_name():
    names = {
        key(), key(fingerprint="g"), key(library="m"), key(tracks={"sum", "last_use"}),
        key(made=(1, 2, 4)), key(tokens=[1, 2, 3]), key(tokens=[1], guide=[2, 3]),
        *(key(config=Config(**{name: value})) for name, value in {
            "budget": 512, "policy": "h2o", "kernel": 5, "n_ubatch": 64, "type_v": "q8_0", "seed": 1,
        }.items()),
    }  # fmt: skip
    assert len(names) == 13
    assert key(config=Config(temp=0.0, n_threads=3, undo_mib=0)) == key()


def test_an_answer_of_another_length_needs_no_other_reading(open_chat, tmp_path):
    for n_predict in (8, 30):
        options = OPTIONS | {"n_predict": n_predict}
        session = open_chat(MODEL, readings=ReadingCache(tmp_path / "r"), **options)
        say(session, "what?", documents=[BOOK])
    assert session.report.timings["prompt_n"] == 0
    assert len(list((tmp_path / "r").iterdir())) == 1


def test_what_came_from_the_cache_is_not_said_to_be_read_again(open_chat, tmp_path):
    session = open_chat(MODEL, readings=ReadingCache(tmp_path / "r"), **OPTIONS | {"undo_mib": 0})
    say(session, "what?", documents=[BOOK])
    n_read = session.report.timings["prompt_n"]
    "".join(session.regenerate())
    assert session.report.timings["prompt_n"] == 0
    assert session.report.notes[0] == f"read before: {n_read:,} tokens from the cache folder"
    assert not any("read again" in note for note in session.report.notes)


@pytest.mark.parametrize("policy", ["restkv", "h2o", "kvzip"])
@pytest.mark.parametrize("undo_mib", [0, 64])
def test_the_same_text_is_read_once(open_chat, tmp_path, policy, undo_mib):
    options = OPTIONS | {"policy": policy, "undo_mib": undo_mib}
    readings = ReadingCache(tmp_path / "r")
    first = open_chat(MODEL, readings=readings, **options)
    answer = say(first, "what?", documents=[BOOK])
    n_read = first.report.timings["prompt_n"]
    assert n_read >= MIN_TOKENS
    assert not first.report.notes
    second = open_chat(MODEL, readings=readings, **options)
    assert say(second, "what?", documents=[BOOK]) == answer
    assert second.report.notes == [f"read before: {n_read:,} tokens from the cache folder"]
    assert second.report.timings["prompt_n"] == 0
    assert second.report.usage == first.report.usage
    assert_same_cache(cache(second), cache(first))
    assert talk(second, 2) == talk(first, 2)
    alone = open_chat(MODEL, **options)
    assert say(alone, "what?", documents=[BOOK]) == answer


def test_short_and_later_texts_are_not_kept(open_chat, tmp_path):
    session = open_chat(MODEL, readings=ReadingCache(tmp_path / "r"), **OPTIONS)
    say(session, "what?", documents=[prose(50)])
    say(session, "why?", documents=[BOOK])
    assert not (tmp_path / "r").exists()


def test_a_broken_reading_is_read_anew(open_chat, tmp_path, caplog):
    readings = ReadingCache(tmp_path / "r")
    session = open_chat(MODEL, readings=readings, **OPTIONS)
    answer = say(session, "what?", documents=[BOOK])
    (path,) = (tmp_path / "r").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    session.clear()
    assert say(session, "what?", documents=[BOOK]) == answer
    assert "is removed, the text is read anew" in caplog.text
    assert session.report.timings["prompt_n"] >= MIN_TOKENS
    session.clear()
    say(session, "what?", documents=[BOOK])
    assert session.report.timings["prompt_n"] == 0


def test_knobs_of_its_own_are_in_no_name_so_that_nothing_is_kept(open_chat, tmp_path):
    """A policy built by hand left its rows to the one that options name."""
    session = open_chat(MODEL, readings=ReadingCache(tmp_path / "r"), **OPTIONS)
    session._engine.use(policy=RestKV(reduction="last"))
    say(session, "what?", documents=[BOOK])
    assert not (tmp_path / "r").exists()
    with pytest.raises(SessionFileError, match="has knobs of its own"):
        session.save(tmp_path / "a")
    session._engine.use(policy="restkv")
    session.save(tmp_path / "a")
