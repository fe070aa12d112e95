import io
from types import SimpleNamespace

import pytest
from cli_fakes import FakeSession, install


class TerminalInput(io.StringIO):
    """A standard input that says it is a terminal; reading it would be a hang, so it fails."""

    def isatty(self):
        return True

    def read(self, *args):
        raise AssertionError("a terminal was read to its end")


@pytest.fixture
def at_terminal(monkeypatch):
    """Standard input is a terminal, so nothing is read from it."""
    monkeypatch.setattr("sys.stdin", TerminalInput())


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def run_cli(session, monkeypatch, capsys):
    """Run ``restkv-chat`` (or ``command``) on the fake session; stdin None is a terminal."""
    from restkv_local.cli.main import chat_main

    call = install(session)

    def run(*args, stdin=None, command=chat_main):
        if stdin is None:
            monkeypatch.setattr("sys.stdin", TerminalInput())
        else:
            data = stdin.encode() if isinstance(stdin, str) else stdin
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as end:
            command([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=end.value.code, out=out, err=err, call=call)

    yield run
    call["restore"]()
