"""A failure is explained by what llama.cpp said during that call, whatever other models do."""

import threading

import pytest

from restkv_local.errors import ModelError, NativeError
from restkv_local.native import NativeContext, _log
from tests import builders

pytestmark = pytest.mark.native

# So many heads that their rows are more than 2^31.
MANY = builders.llama(n_layer=32, n_head=32, n_head_kv=32, head_dim=32, n_embd=32, n_ff=32)
OPTIONS = {"n_ring": 1, "n_ubatch": 64, "n_threads": 1, "type_k": "f16", "type_v": "f16"}


@pytest.fixture
def native(tmp_path):
    native = NativeContext(MANY.write(tmp_path / "many.gguf"))
    yield native
    native.close()


def fail(native):
    with pytest.raises(NativeError) as error:
        native.open(2_200_000, **OPTIONS)
    return str(error.value)


def test_a_model_that_was_made_later_takes_no_reason_away(native, tmp_path):
    other = NativeContext(builders.llama().write(tmp_path / "other.gguf"))
    assert "more than 2^31 - 1" in fail(native)
    other.close()
    assert "more than 2^31 - 1" in fail(native)


def test_an_old_complaint_explains_no_new_failure(native, monkeypatch):
    fail(native)
    monkeypatch.setattr(native._llama, "llama_init_from_model", lambda *_: None)
    assert "it gave no reason" in fail(native)


def test_what_is_said_in_another_thread_explains_nothing_here(native, monkeypatch):
    init = native._llama.llama_init_from_model

    def beside(*args):
        made = init(*args)
        thread = threading.Thread(target=lambda: callback(4, b"another model's", None))
        thread.start()
        thread.join()
        return made

    callback = _log._hook(native._llama)
    monkeypatch.setattr(native._llama, "llama_init_from_model", beside)
    assert "more than 2^31 - 1" in fail(native)


def test_a_file_that_cannot_be_loaded_says_why(tmp_path):
    path = tmp_path / "none.gguf"
    path.write_bytes(b"GGUF")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"none\.gguf: .*(load|read)"):
            NativeContext(path)


def test_every_model_shares_one_hook(tmp_path):
    path = builders.llama().write(tmp_path / "m.gguf")
    for _ in range(3):
        NativeContext(path).close()
    assert _log._hook.cache_info().currsize == 1


@pytest.mark.parametrize("verbose", [True, False])
def test_the_log_is_shown_on_request(tmp_path, capsys, verbose):
    NativeContext(builders.llama().write(tmp_path / "m.gguf"), verbose=verbose).close()
    assert ("llama_model_loader" in capsys.readouterr().err) is verbose
