"""Files on disk: whole or refused in one line, and nothing else is touched."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from restkv_local.chat.session_file import (
    SavedSession,
    merge_settings,
    read_session,
    session_path,
    write_session,
)
from restkv_local.chat.turn import Attachment, Turn
from restkv_local.config import Config
from restkv_local.errors import ConfigError, RestKVError, SessionFileError, UnreadableFileError
from restkv_local.storage import container
from restkv_local.storage.container import read_container, read_meta, write_container
from restkv_local.storage.fingerprint import fingerprint_model
from restkv_local.storage.sole_writer import sole_writer
from tests import builders

ARRAYS = {
    "rows": np.arange(300, dtype=np.int32).reshape(3, 100),
    "none": np.zeros((2, 0), np.float32),
}
META = {"text": "Grüße\ud800 \x00", "numbers": [1, 2.5, None]}


def saved(**changes):
    plain = SavedSession(
        model="tiny",
        fingerprint="f" * 64,
        library="lib",
        config=Config(),
        system="be brief",
        turns=(Turn("why?", (Attachment.of_text("a text"),), "so", None, 3), Turn("x", heard="y")),
        text="be brief why? so",
        opened=(10, 20, 3),
        seed=7,
        n_drawn=9,
        snapshot=None,
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "folder" / "a.restkv"
    write_container(path, "session", META, ARRAYS)
    return path


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        for name in one
    )


def check(path):
    """Read a file: None if it is refused in one line, else what is in it, which must be what was written."""
    try:
        meta, arrays = read_container(path, "session")
    except SessionFileError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "\n" not in refusal
        return None
    assert meta["text"] == META["text"]
    assert meta["numbers"] == META["numbers"]
    assert same(arrays, ARRAYS)
    return meta


def test_what_was_written_is_read(file):
    assert check(file)["kind"] == "session"
    assert read_meta(file, "session")["numbers"] == META["numbers"]
    with np.load(file) as archive:  # anybody's tools open it
        np.testing.assert_array_equal(archive["rows"], ARRAYS["rows"])
    assert [path.name for path in file.parent.iterdir()] == ["a.restkv"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrays=st.dictionaries(
        st.text("abc-", min_size=1, max_size=8),
        arrays_of.arrays(
            st.sampled_from([np.uint8, np.int32, np.float32, np.float64]),
            arrays_of.array_shapes(min_dims=1, min_side=0, max_side=5),
        ),
        max_size=3,
    ),
    meta=st.dictionaries(st.sampled_from("pqr"), st.text() | st.integers() | st.booleans()),
)
def test_any_content_comes_back(tmp_path, arrays, meta):
    path = tmp_path / "any"
    write_container(path, "session", meta, arrays)
    found, back = read_container(path, "session")
    assert {name: found[name] for name in meta} == meta
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(file, tmp_path, data):
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "broken"
    path.write_bytes(broken)
    check(path)


def test_every_byte_that_holds_content_counts(file, tmp_path):
    whole = file.read_bytes()
    start = whole.index(ARRAYS["rows"].tobytes())
    path = tmp_path / "broken"
    for offset in [start, start + 700, start + 1199, whole.index(b'"text"') + 2]:
        broken = bytearray(whole)
        broken[offset] ^= 1
        path.write_bytes(broken)
        assert check(path) is None


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(file, tmp_path, share):
    whole = file.read_bytes()
    path = tmp_path / "short"
    path.write_bytes(whole[: int(share * len(whole))])
    assert check(path) is None


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_any_other_file_is_refused(tmp_path, data):
    path = tmp_path / "other"
    path.write_bytes(data)
    assert check(path) is None


def rewritten(path, out, **changes):
    """Copy a container with another meta.json, digests kept."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "meta.json":
                data = json.dumps({**json.loads(data), **changes}).encode()
            new.writestr(name, data)
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "has format 3, this version reads up to 2: update restkv-local"),
        ({"version": "x"}, "has format x"),
        ({"format": "else"}, "names no restkv-local"),
        ({"kind": "reading"}, "holds a reading, a session was asked for"),
        ({"arrays": {}}, "digest does not match"),
        ({"arrays": {"rows": {"dtype": "object", "shape": [1]}}}, "of type object"),
        ({"arrays": {"rows": {"dtype": "int32", "shape": [10**9]}}}, "damaged"),
        ({"numbers": 3}, "digest does not match"),
    ],
)
def test_what_does_not_fit_is_named(file, tmp_path, changes, message):
    with pytest.raises(SessionFileError, match=message):
        read_container(rewritten(file, tmp_path / "x", **changes), "session")


def test_missing_files_folders_and_pipes_are_named(tmp_path):
    with pytest.raises(SessionFileError, match="does not exist; `restkv sessions list`"):
        read_session(tmp_path / "none")
    with pytest.raises(SessionFileError, match="is no file"):
        read_session(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SessionFileError, match="is no file"):
        read_session(tmp_path / "pipe")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(file, monkeypatch, error, call):
    before = file.read_bytes()

    def full(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(container.os, call, full)
    with pytest.raises(SessionFileError, match=r"cannot write .*; what was there is unchanged"):
        write_container(file, "session", {"text": "new"}, ARRAYS)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", ["half a pair \ud800", "a zero \0"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(SessionFileError, match="cannot write"):
        write_container(tmp_path / name, "session", {}, {})


def test_a_disk_that_fills_up_on_the_way(file, monkeypatch):
    class Full(io.BytesIO):
        def fileno(self):
            raise AssertionError("it was never complete")

        def write(self, data):
            if self.tell() > 700:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    before = file.read_bytes()
    monkeypatch.setattr(container.os, "fdopen", lambda handle, mode: os.close(handle) or Full())
    with pytest.raises(SessionFileError, match="No space left on device"):
        write_container(file, "session", {"text": "new"}, ARRAYS)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_ctrl_c_while_writing_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(container.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_container(file, "session", {}, ARRAYS)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


WRITE_ON = """
import sys
from pathlib import Path
import numpy as np
from restkv_local.storage.container import write_container
print("ready", flush=True)
i = 0
while True:
    i += 1
    write_container(Path(sys.argv[1]), "session", {"i": i}, {"rows": np.full(1 << 20, i, np.int32)})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.restkv"
    for wait in (0.05, 0.11, 0.23, 0.31, 0.42):
        child = subprocess.Popen([sys.executable, "-c", WRITE_ON, str(path)], stdout=-1)
        assert child.stdout.readline() == b"ready\n"
        while not path.exists():
            time.sleep(0.01)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        meta, arrays = read_container(path, "session")
        assert (arrays["rows"] == meta["i"]).all()


def test_what_killed_writers_left_goes_with_time(file):
    old, young = file.with_name("b.x.restkv-part"), file.with_name("a.y.restkv-part")
    download = file.with_name("film.part")  # somebody else's
    for part in (old, young, download):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(download, (0, 0))
    write_container(file, "session", META, ARRAYS)
    assert set(file.parent.iterdir()) == {file, young, download}


@pytest.mark.skipif(not hasattr(os, "symlink") or sys.platform == "win32", reason="no links")
def test_a_link_stays_a_link_and_strangers_cannot_read(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    write_container(link, "session", META, {})
    assert link.is_symlink()
    assert read_container(file, "session")[1] == {}
    assert file.stat().st_mode & 0o077 == 0


def test_a_session_comes_back(tmp_path):
    path = tmp_path / "s.restkv"
    session = saved()
    write_session(path, session)
    assert read_session(str(path)) == session


def test_no_other_file_is_replaced(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("dear all")
    with pytest.raises(
        SessionFileError, match="is no session of this version, so it is not replaced"
    ):
        write_session(path, saved())
    assert path.read_text() == "dear all"
    reading = tmp_path / "r"
    write_container(reading, "reading", {}, {})
    with pytest.raises(SessionFileError, match="choose another name"):
        write_session(reading, saved())


def test_settings_of_another_version_are_named(tmp_path):
    path = tmp_path / "s.restkv"
    write_session(path, saved())
    meta = read_meta(path, "session")
    for changes, message in [
        ({"config": {**meta["config"], "warp": 9}}, "warp"),
        ({"config": {**meta["config"], "alpha": 9.0}}, "alpha"),
        ({"turns": [{}]}, "documents"),
    ]:
        write_container(tmp_path / "t", "session", {**meta, **changes}, {})
        with pytest.raises(SessionFileError, match=f"does not fit this version.*{message}"):
            read_session(tmp_path / "t")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "../x", ".hidden", "a\0", "x" * 101, "a\n"]
)
def test_names_that_are_paths_are_refused(name):
    with pytest.raises(ConfigError, match="a session's name is up to 100"):
        session_path(name)


def test_plain_names_are_files_in_the_data_folder(tmp_path):
    assert session_path("book 2").is_relative_to(tmp_path / "data")
    assert session_path("über-1.b").name == "über-1.b.restkv"


def test_a_change_counts_unless_the_rows_cannot_follow():
    old = Config(budget=512, temp=0.0, type_k="q8_0", n_threads=3)
    merged = merge_settings(old, {"budget": "256", "type_k": "q8_0", "n_threads": 1})
    assert (merged["budget"], merged["temp"], merged["n_threads"]) == ("256", 0.0, 1)
    assert "n_threads" not in merge_settings(old, {})
    for name, value in [("type_k", "f16"), ("n_ubatch", 64), ("positions", "compact")]:
        with pytest.raises(ConfigError, match=f"{name}=.* does not fit the session, whose cache"):
            merge_settings(old, {name: value})


# Which model it is


def test_a_model_is_known_by_its_content(tmp_path):
    model = builders.llama()
    one = fingerprint_model(model.write(tmp_path / "one.gguf"))
    os.utime(tmp_path / "one.gguf", (0, 0))
    assert fingerprint_model(str(tmp_path / "one.gguf")) == one
    assert fingerprint_model(model.write(tmp_path / "other name.gguf")) == one
    assert fingerprint_model(builders.llama(seed=1).write(tmp_path / "two.gguf")) != one
    data = bytearray((tmp_path / "one.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "one.gguf").write_bytes(data)
    assert fingerprint_model(tmp_path / "one.gguf") != one


def test_every_part_of_a_split_model_counts(tmp_path):
    paths = builders.write_split(builders.llama(), tmp_path)
    one = fingerprint_model(paths[0])
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data)
    assert fingerprint_model(paths[0]) != one
    paths[1].unlink()
    with pytest.raises(RestKVError, match="is missing"):
        fingerprint_model(paths[0])


def test_a_path_that_is_too_long_is_named(tmp_path):
    path = tmp_path / ("x" * 300)
    for act in (lambda: read_session(path), lambda: write_session(path, saved())):
        with pytest.raises(SessionFileError, match="too long"):
            act()
    with pytest.raises(ConfigError, match="fewer beyond ASCII"):
        session_path("\u6f22" * 100)


def test_a_small_file_takes_no_memory_of_its_choice(tmp_path):
    path = tmp_path / "bomb.restkv"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * 50_000_000 + b"{}")
    with pytest.raises(SessionFileError, match="its parts are compressed"):
        read_meta(path, "session")


def test_a_file_replaced_while_it_is_read_is_read_as_it_was(tmp_path, monkeypatch):
    """It was called damaged: the open one was measured by the size of the one that came."""
    write_session(tmp_path / "a", saved(text="long " * 1000))
    check_sizes = container._check_sizes

    def replace_first(*what):
        monkeypatch.setattr(container, "_check_sizes", check_sizes)
        write_session(tmp_path / "a", saved())
        check_sizes(*what)

    monkeypatch.setattr(container, "_check_sizes", replace_first)
    assert read_session(tmp_path / "a").text.startswith("long")


@pytest.mark.parametrize(
    "function", ["zipfile.ZipFile.read", "restkv_local.chat.session_file._turn"]
)
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, function):
    """The file was called damaged, and its owner told to remove it."""

    def fail(*_):
        raise MemoryError

    write_session(tmp_path / "a", saved())
    monkeypatch.setattr(function, fail)
    with pytest.raises(UnreadableFileError, match=r"cannot read .*: there is not enough memory"):
        read_session(tmp_path / "a")


def test_a_file_that_cannot_be_looked_at_is_not_called_anothers(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    write_session(tmp_path / "a", saved())
    monkeypatch.setattr("zipfile.ZipFile.read", fail)
    with pytest.raises(UnreadableFileError, match="Too many open files"):
        write_session(tmp_path / "a", saved())


def test_of_two_that_save_at_once_one_is_refused(tmp_path):
    """Both looked, both saw the older file, both replaced it."""
    path = tmp_path / "a"
    for i in range(10):
        write_session(path, saved(saved=f"{i}"))
        start, results = threading.Barrier(2), []

        def write(who, before=f"{i}", start=start, results=results):
            start.wait()
            try:
                write_session(path, saved(saved=f"{before} {who}"), replaces={before})
                results.append(f"{before} {who}")
            except SessionFileError as error:
                results.append(str(error).split(" was saved by ")[-1][:13])

        writers = [threading.Thread(target=write, args=(who,)) for who in "ab"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(results) == [read_meta(path, "session")["saved"], "somebody else"]


def test_a_writer_that_does_not_end_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("restkv_local.storage.sole_writer._WAIT_SECONDS", 0.1)
    with (
        sole_writer(tmp_path / "a"),
        pytest.raises(SessionFileError, match="is being written by another process"),
    ):
        write_session(tmp_path / "a", saved())
    write_session(tmp_path / "a", saved())
    assert {path.name for path in tmp_path.iterdir()} == {"a", "cache"}


def test_a_writer_with_another_temporary_folder_is_waited_for_too(tmp_path, monkeypatch):
    """Its lock lay in that folder: both replaced the file, and one of two conversations was lost."""
    monkeypatch.setattr("restkv_local.storage.sole_writer._WAIT_SECONDS", 0.1)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "one"))
    with sole_writer(tmp_path / "a"):
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "other"))
        with pytest.raises(SessionFileError, match="is being written by another process"):
            write_session(tmp_path / "a", saved())


def test_without_a_cache_folder_the_lock_lies_in_the_temporary_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "none"))
    monkeypatch.setattr("restkv_local.storage.sole_writer._WAIT_SECONDS", 0.1)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    with (
        sole_writer(tmp_path / "a"),
        pytest.raises(SessionFileError, match="is being written by another process"),
    ):
        write_session(tmp_path / "a", saved())
    write_session(tmp_path / "a", saved())


def test_without_a_place_for_the_lock_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "none"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file" / "none"))
    with pytest.raises(SessionFileError, match="there is nowhere to lock it"):
        write_session(tmp_path / "a", saved())
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"opened": []},
        {"opened": "999"},
        {"opened": [1, 2, -3]},
        {"text": 5},
        {"system": ["x"]},
        {"n_drawn": None},
        {"n_drawn": 2**40},
        {"seed": True},
        {"config": {"scale": 10**400}},
        {"config": {"n_predict": 10**400}},
        {"turns": [{"question": 5}]},
        {"turns": [{"question": "x", "answer": 5}]},
        {"turns": [{"question": "x", "documents": [{"name": "a", "text": 5, "sha256": "f"}]}]},
    ],
    ids=str,
)
def test_fields_of_another_kind_are_refused_in_one_line(tmp_path, change):
    """A file whose digest is right: somebody wrote it so."""
    path = tmp_path / "s"
    write_session(path, saved())
    meta, arrays = read_container(path, "session")
    for name, value in change.items():
        if name == "config":
            value = {**meta["config"], **value}
        if name == "turns":
            value = [{**meta["turns"][0], **value[0]}]
        meta[name] = value
    write_container(path, "session", meta, arrays)
    before = path.read_bytes()
    with pytest.raises(SessionFileError, match="does not fit this version") as refusal:
        read_session(path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before
