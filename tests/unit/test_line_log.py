"""A log holds whole lines, whatever happens to a write and whoever else begins it."""

import errno
import io

import pytest

from restkv_local.errors import InputError
from restkv_local.storage.line_log import LineLog, LogKind

KIND = LogKind(name="restkv test, 1", measured="cell", parse=lambda value: value["x"])
CONDITIONS = {"a": 1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def begin(path, conditions=CONDITIONS):
    return LineLog(path, KIND, conditions)


class FullDisk(io.FileIO):
    """Takes five bytes, then no more."""

    truncates = True

    def write(self, data):
        if self.tell() > self.n_before:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:5])

    def truncate(self, size=None):
        if not self.truncates:
            raise OSError(errno.EIO, "Input/output error")
        return super().truncate(size)


def fill_disk(monkeypatch, log, **options):
    """Let a line be cut short."""

    def open_full(path, mode, buffering):
        stream = FullDisk(path, mode)
        stream.n_before = path.stat().st_size
        vars(stream).update(options)
        return stream

    with monkeypatch.context() as patch:
        patch.setattr(type(log.path), "open", open_full)
        with pytest.raises(InputError, match="No space left"):
            log.append({"x": 2})


def test_a_write_cut_short_leaves_nothing(path, monkeypatch):
    """Half a line stayed, the next one was glued to it, and the log was refused from then on."""
    log = begin(path)
    log.append({"x": 1})
    before = path.read_bytes()
    fill_disk(monkeypatch, log)
    assert path.read_bytes() == before
    log.append({"x": 3})
    assert begin(path).lines == [1, 3]


def test_half_a_line_that_stays_is_a_line_of_its_own(path, monkeypatch):
    log = begin(path)
    fill_disk(monkeypatch, log, truncates=False)
    log.append({"x": 3}, {"x": 4})
    assert path.read_bytes().splitlines()[1:] == [b'{"x":', b'{"x": 3}', b'{"x": 4}']
    with pytest.raises(InputError, match=r"line 2 is no cell .* remove the line"):
        begin(path)


@pytest.mark.parametrize("when", ["read_bytes", "touch"])
def test_two_runs_that_begin_together_keep_each_others_lines(path, monkeypatch, when):
    """The second one wrote its head anew, over what the first had measured meanwhile."""
    first = begin(path) if when == "read_bytes" else None
    real = getattr(type(path), when)

    def meanwhile(self):
        with monkeypatch.context() as patch:
            patch.setattr(type(path), when, real)
            data = real(self)
            (first or begin(path)).append({"x": 7})
        return data

    with monkeypatch.context() as patch:
        patch.setattr(type(path), when, meanwhile)
        second = begin(path)
    second.append({"x": 8})
    assert begin(path).lines == [7, 8]


def test_a_line_that_was_being_written_is_not_cut(path, monkeypatch):
    log = begin(path)
    log.append({"x": 1})
    whole = path.read_bytes() + b'{"x": 2}\n'
    path.write_bytes(whole[:-4])
    real = type(path).read_bytes

    def then_whole(self):
        data = real(self)
        path.write_bytes(whole)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "read_bytes", then_whole)
        assert begin(path).was_cut
    assert begin(path).lines == [1, 2]


def test_a_log_without_lines_takes_other_conditions(path):
    begin(path)
    begin(path, {"a": 2}).append({"x": 1})
    assert begin(path, {"a": 2}).lines == [1]
