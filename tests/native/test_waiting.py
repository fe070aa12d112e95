"""A decode has ended when it returns: clocks and Ctrl-C around it are about the work, not about a queue."""

import pytest

from tests import builders

pytestmark = pytest.mark.native


def test_a_decode_waits_for_its_device(open_native, monkeypatch):
    """On a GPU llama_decode returns before the work is done, and bench timed little more than its submission."""
    native = open_native(builders.llama())
    calls = []
    for name in ("llama_decode", "llama_synchronize"):
        call = getattr(native._llama, name)

        def noted(*args, name=name, call=call):
            calls.append(name)
            return call(*args)

        monkeypatch.setattr(native._llama, name, noted)
    native.decode([1, 2, 3])
    assert calls == ["llama_decode", "llama_synchronize"]
