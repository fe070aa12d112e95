"""Finding the library, and refusing another one."""

import os
import subprocess
import sys
import types

import pytest

from restkv_local.errors import AbiMismatchError, LibraryNotFoundError
from restkv_local.native import NativeContext, _library
from tests import builders


def test_a_missing_library_names_the_place_and_how_to_build(tmp_path, monkeypatch):
    monkeypatch.setenv("RESTKV_LIBRARY", str(tmp_path))
    with pytest.raises(LibraryNotFoundError, match="make setup") as error:
        _library.library_folder()
    assert str(tmp_path) in str(error.value)


def test_another_abi_is_refused_with_both_numbers(tmp_path):
    library = types.SimpleNamespace(llama_restkv_abi_version=lambda: 999)
    with pytest.raises(AbiMismatchError, match=r"has restkv ABI 999; this package needs ABI 6"):
        _library.check_abi(library, tmp_path)


def test_an_unpatched_library_is_refused(tmp_path):
    with pytest.raises(AbiMismatchError, match="unpatched"):
        _library.check_abi(types.SimpleNamespace(), tmp_path)


@pytest.mark.native
def test_stock_bindings_imported_first_are_refused_and_python_lives(tmp_path):
    """Stands for `import llama_cpp` with its own library before us: the module has no hooks."""
    script = """
import sys, types
stock = types.ModuleType("llama_cpp.llama_cpp")
stock._lib = object()
sys.modules["llama_cpp"] = types.ModuleType("llama_cpp")
sys.modules["llama_cpp.llama_cpp"] = stock
from restkv_local.errors import AbiMismatchError
from restkv_local.native import library_info
try:
    library_info()
except AbiMismatchError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "import restkv_local first" in run.stdout


@pytest.mark.native
def test_the_file_itself_may_be_named():
    folder = _library.library_folder()
    file = next(path for path in folder.iterdir() if "llama" in path.name)
    script = "from restkv_local.native._library import library_folder; print(library_folder())"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"RESTKV_LIBRARY": str(file)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(folder)


@pytest.mark.native
def test_info_tells_what_a_bug_report_needs():
    info = _library.library_info()
    assert info["abi"] == _library.ABI
    assert info["pin"].startswith("llama-cpp-python ")
    assert info["devices"]
    assert info["hooks_enabled"]


@pytest.mark.native
def test_a_log_that_quotes_a_model_does_not_command_the_terminal(tmp_path, capfd):
    model = builders.llama(metadata={"general.name": "tiny\x1b[2J\x9b2Jmodel"})
    NativeContext(model.write(tmp_path / "m.gguf"), verbose=True).close()
    log = capfd.readouterr().err
    assert "tiny[2J2Jmodel" in log
    assert not {"\x1b", "\x9b"} & set(log)


@pytest.mark.native
def test_a_folder_that_lacks_a_library_is_one_line(tmp_path):
    with pytest.raises(LibraryNotFoundError, match="lacks the library ggml-base: build it with"):
        _library._find(tmp_path, "ggml-base")


THREADS = """
import sys, threading
from restkv_local.native import NativeContext
made = []
def make():
    NativeContext(sys.argv[1]).close()
    made.append(1)
threads = [threading.Thread(target=make) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(made))
"""


@pytest.mark.native
def test_the_first_models_may_be_made_in_threads(tmp_path):
    """The bindings are imported once; who came meanwhile found half a module."""
    path = builders.llama().write(tmp_path / "m.gguf")
    run = subprocess.run(
        [sys.executable, "-c", THREADS, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr) == ("4\n", "")
