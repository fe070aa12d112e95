import pytest

from restkv_local import ChatSession
from tests.engine.conftest import open_llama, tokens  # noqa: F401


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    """No test touches the user's sessions."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def open_chat(open_llama):  # noqa: F811
    """Open a tiny model and start a conversation with it."""

    def open_(model, *, system=None, readings=None, **options):
        return ChatSession(open_llama(model, **options), system=system, readings=readings)

    return open_
